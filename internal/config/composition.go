package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// A work is one composition being checked.
type work struct {
	*checker
	name  string
	v     cue.Value
	out   pipeline.Composition
	tasks []*task
	agent *compiled // the default requirement, once compiled
	// failed: something is wrong with it, so it is not offered.
	failed bool
	// blamed are the places of references of which it is said what is wrong.
	blamed map[pipeline.Position]bool
}

// task is one task being checked.
type task struct {
	name string
	v    cue.Value
	def  *definition
	pos  pipeline.Position
	// broken: CUE found it wrong; what follows from that is not reported.
	broken bool
	spec   pipeline.Task
	// refs are the references written in it.
	refs []taskRef
	// deferred are its fields that are known only when the run exists.
	deferred map[string]bool
	outputs  map[string]cue.Value
	// edges leads to the tasks that it needs, and says why.
	edges map[string]edge
	// conds are the parts of its condition that must all hold.
	conds []string
	// fansOut: it has each; each is set when that is sound, and item is the type of
	// its elements, as far as it is known.
	fansOut bool
	each    *pipeline.Each
	item    *pipeline.Type
}

// taskRef is a reference to another task's outputs. output is "" when all of
// them, or the task itself, are referred to.
type taskRef struct {
	task, output string
	pos          pipeline.Position
	// direct is the field whose whole value is the reference, "" for none.
	direct string
	// field is the field that it is a part of, "" for none.
	field string
	// early: without it the task does not even begin, as in its condition.
	early bool
}

type edge struct {
	pos pipeline.Position
	// param: the reference reads no output, only the order matters.
	needs bool
}

func (c *checker) compositions() {
	c.each("compositions", func(name string, v cue.Value) {
		w := &work{checker: c.withTemplates(name), name: name, v: v, blamed: map[pipeline.Position]bool{}}
		if len(c.all.at("compositions", name)) == 0 { // its name is made
			pos, _ := w.all.label("compositions", name)
			c.res.Declared = append(c.res.Declared, mention{Kind: mentionComposition, Name: name, Pos: pos})
		}
		before := len(c.res.Diagnostics)
		w.run()
		w.lint()
		c.res.Diagnostics = append(c.res.Diagnostics[:before:before], said(c.res.Diagnostics[before:])...)
		if !pipeline.HasErrors(c.res.Diagnostics[before:]) && !w.failed {
			w.out.Digest = digestOf(w.out)
			c.res.Compositions = append(c.res.Compositions, w.out)
		}
	})
}

func (w *work) path(rest ...string) []string {
	return append([]string{"compositions", w.name}, rest...)
}

func (w *work) run() {
	w.out.Name, w.out.Unit = pipeline.CompositionName(w.name), w.unit
	w.out.Pos = w.all.first(w.path()...)
	if w.borrows() {
		return
	}
	if w.shadowed() || w.readsSecrets() {
		return
	}
	broken := w.checkSpelling()
	w.validate(broken)
	if !get(w.v, "name").Exists() {
		return // not even a struct; CUE has said so
	}
	w.checkTaskSet()
	w.readTasks(broken)
	w.readHead()
	w.readParams()
	for _, t := range w.tasks {
		w.readRest(t)
	}
	w.readTriggers()
	if !get(w.v, "triggers").Exists() {
		w.mention(mentionIdle, w.name, "", w.out.Pos)
	}
	w.checkRefs()
	w.graph()
}

// validate reports what CUE finds and adds the tasks it concerns to broken.
func (w *work) validate(broken map[string]bool) {
	unknown, done := w.undeclared()
	w.complain(unknown...)
	for key := range done {
		if p := strings.Split(key, pathSep); len(p) > 4 && p[2] == "tasks" {
			broken[p[3]] = true
		}
	}
	err := w.v.Validate()
	w.failed = err != nil || len(unknown) > 0
	for _, d := range w.x.errorsBut(err, done) {
		if !w.blamed[d.Pos] {
			w.complain(d)
		}
	}
	for _, e := range errors.Errors(err) {
		p := pathOf(e)
		if len(p) > 3 && p[2] == "tasks" {
			broken[p[3]] = true
		}
	}
}

// checkTaskSet refuses tasks that exist only for some values of what is known
// later: CUE would silently leave them out.
func (w *work) checkTaskSet() {
	places := append(slices.Clone(w.all.at(w.path("tasks")...)), w.all.at(w.path()...)...)
	for _, p := range places {
		s, ok := p.value.(*ast.StructLit)
		if !ok {
			continue
		}
		for _, e := range s.Elts {
			if comp, ok := e.(*ast.Comprehension); ok && dependsOnRun(comp) {
				d := diag(codeTaskSet, position(comp.Pos()), "composition %q: which tasks there are must not depend on what is known only when it runs", w.name)
				d.Help = "declare the task always; its fields may depend on params, event and outputs"
				w.complain(d)
			}
		}
	}
}

func dependsOnRun(c *ast.Comprehension) bool {
	for _, clause := range c.Clauses {
		if len(reaches(clause)) > 0 {
			return true
		}
	}
	return false
}

func (w *work) readTasks(broken map[string]bool) {
	names := w.namesIn("tasks")
	if len(names) == 0 {
		if !w.failed {
			d := diag(codeRequired, w.out.Pos, "composition %q has no tasks", w.name)
			d.Help = "add tasks: NAME: shell.#Run & {fields: script: \"…\"}"
			w.complain(d)
		}
		return
	}
	for _, name := range names {
		t := &task{
			name: name, v: get(w.v, "tasks", name),
			deferred: map[string]bool{}, outputs: map[string]cue.Value{}, edges: map[string]edge{},
		}
		t.broken = broken[t.name]
		t.pos, _ = w.all.label(w.path("tasks", t.name)...)
		w.tasks = append(w.tasks, t)
		if most := w.batch.req.MaxTasks; most > 0 && len(w.tasks) > most {
			w.complain(diag(codeTooMany, w.out.Pos, "composition %q has more than %d tasks", w.name, most))
			w.tasks = nil
			return
		}
	}
	for _, t := range w.tasks {
		w.readTask(t)
	}
}

// namesIn lists the fields of a struct of the composition. CUE does not iterate
// over a struct with a mistake in it, so then the syntax is asked.
func (w *work) namesIn(name string) []string {
	v := get(w.v, name)
	if !v.Exists() {
		return nil
	}
	iter, err := v.Fields()
	if err != nil {
		return slices.DeleteFunc(w.all.children(w.path(name)...), func(n string) bool { return !get(v, n).Exists() })
	}
	var out []string
	for iter.Next() {
		out = append(out, iter.Selector().Unquoted())
	}
	return out
}

func (w *work) task(name string) *task {
	for _, t := range w.tasks {
		if t.name == name {
			return t
		}
	}
	return nil
}

func (w *work) taskNames() []string {
	names := make([]string, len(w.tasks))
	for i, t := range w.tasks {
		names[i] = t.name
	}
	return names
}

func (w *work) readTask(t *task) {
	t.spec = pipeline.Task{Name: pipeline.TaskName(t.name), Pos: t.pos, Priority: -1}
	uses := text(get(t.v, "uses"))
	if !w.instance(t, uses) {
		return
	}
	t.spec.Uses = uses
	plugin, _, _ := strings.Cut(uses, "/")
	t.spec.Plugin = pipeline.PluginName(plugin)
	w.readEnvelope(t)
	w.readFields(t)
	w.readOutputs(t)
	w.requirement(t)
}

// instance checks that a task is made of a plugin's definition. Writing uses by
// hand would leave its fields unchecked.
func (w *work) instance(t *task, uses string) bool {
	t.def = w.batch.definition(uses)
	if t.def != nil && isInstance(t) {
		return true
	}
	if t.broken {
		return false
	}
	t.broken = true
	d := diag(codeNotInstance, t.pos, "task %q is not made of a plugin's task", t.name)
	plugin, _, _ := strings.Cut(uses, "/")
	made := plugin + "."
	switch {
	case t.def != nil:
		made += t.def.name
	case uses != "":
		d.Note = fmt.Sprintf("it says uses: %q, which no imported plugin offers", plain(uses))
		fallthrough
	default:
		made = "shell.#Run"
	}
	d.Help = "write " + quoteLabel(t.name) + ": " + made + " & {…}"
	for _, p := range w.all.at(w.path("tasks", t.name)...) {
		switch e := p.value.(type) {
		case *ast.BinaryExpr:
			if e.Op == token.LAND {
				d.Pos, d.Help = position(e.OpPos), "a definition and its fields have one & between them"
			}
		case *ast.StructLit:
			if t.def == nil && len(e.Elts) > 0 && uses == "" {
				d.Note = "a task says what it is by the plugin's definition that it begins with; nothing else can"
			}
		}
	}
	w.complain(d)
	return false
}

// isInstance compares the fields that a task may have with those of the
// definition that it claims to use.
func isInstance(t *task) bool {
	have := fieldNames(get(t.v, "fields"))
	for _, f := range t.def.fields {
		if !slices.Contains(have, f.Name) {
			return false
		}
	}
	if len(t.def.fields) == 0 {
		return true
	}
	return len(have) >= len(t.def.fields)
}

// leastLostAfter is where an agent shows as stalled: six heartbeats did not come.
const leastLostAfter = 30 * time.Second

// envelope are the fields of #Task that must be known when the commit is planned.
var envelope = []string{
	"description", "needs", "timeout", "startTimeout", "lostAfter", "retries", "agent", "priority", "run", "onFailure", "effect", "uses",
}

// readRest reads what may refer to the params and to other tasks.
func (w *work) readRest(t *task) {
	if t.broken || t.def == nil {
		return
	}
	w.readWhen(t)
	w.readEach(t)
	w.readBuiltIn(t)
	t.spec.OnFailure = w.readHook(get(t.v, "onFailureRun"), t.spec.Name, "tasks", t.name, "onFailureRun")
	w.locate(t)
}

func (w *work) readEnvelope(t *task) {
	if !w.known(t.v, envelope, "tasks", t.name) || t.broken {
		t.broken = true
		return
	}
	s := &t.spec
	s.Description = text(get(t.v, "description"))
	s.Timeout = w.duration(get(t.v, "timeout"), "tasks", t.name, "timeout")
	s.StartTimeout = w.duration(get(t.v, "startTimeout"), "tasks", t.name, "startTimeout")
	s.LostAfter = w.duration(get(t.v, "lostAfter"), "tasks", t.name, "lostAfter")
	s.When = pipeline.RunWhen(text(get(t.v, "run")))
	s.Effect = pipeline.Effect(text(get(t.v, "effect")))
	s.Continue = text(get(t.v, "onFailure")) == "continue"
	s.Priority = number(get(t.v, "priority"), -1)
	if r := get(t.v, "retries"); r.Exists() {
		s.Retries.Max = number(get(r, "max"), 0)
		s.Retries.Backoff = w.duration(get(r, "backoff"), "tasks", t.name, "retries", "backoff")
		if on := get(r, "on"); on.Exists() {
			_ = decode(on, &s.Retries.On) // a list of strings, checked by CUE
		}
	}
	if s.Effect == pipeline.Once && s.Retries.Max > 0 {
		pos, _ := w.all.label(w.path("tasks", t.name, "retries")...)
		d := warn(codeValue, pos, "task %q says effect: \"once\" and retries: it is never started a second time by itself, so that nothing tries it again", t.name)
		w.complain(withHelp(d, "take one of them out"))
	}
	if d := time.Duration(s.LostAfter); d > 0 && d < leastLostAfter {
		pos, _ := w.all.label(w.path("tasks", t.name, "lostAfter")...)
		d := warn(codeValue, pos, "task %q counts as lost after %s of silence: agents are heard of every 5s, so a short pause of the network takes it away from its agent", t.name, d)
		w.complain(withHelp(d, "leave lostAfter out for 10m, or write 30s or more"))
	}
}

// known checks that the named fields are concrete and refer to nothing of the run.
func (w *work) known(v cue.Value, names []string, at ...string) bool {
	ok := true
	for _, name := range names {
		if !w.knownAt(append(slices.Clone(at), name)...) {
			ok = false
		}
		f := get(v, name)
		if !ok || !f.Exists() || name == "agent" || f.Err() != nil {
			continue
		}
		if err := f.Validate(cue.Concrete(true)); err != nil {
			ok = false
			w.complain(w.x.errors(err)...)
		}
	}
	return ok
}

// knownAt checks that what is written at a path refers to nothing of the run.
func (w *work) knownAt(at ...string) bool {
	ok := true
	path := w.path(at...)
	for _, p := range w.all.at(path...) {
		if p.value == nil || len(reaches(p.value)) == 0 {
			continue
		}
		ok = false
		pos := w.firstRef(p.value)
		if w.blamed[pos] {
			continue
		}
		d := diag(codeTooLate, pos, "%s must be known when the commit is planned", w.x.subject(path))
		d.Note = "fields, when, each, with, outputs and the concurrency group may refer to params, event and the outputs of tasks"
		w.complain(d)
	}
	return ok
}

func (w *work) duration(v cue.Value, at ...string) pipeline.Duration {
	s := text(v)
	if s == "" {
		return 0
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		pos, _ := w.all.value(w.path(at...)...)
		w.complain(diag(codeValue, pos, "%s is longer than can be counted", w.x.subject(w.path(at...))))
	}
	return pipeline.Duration(d)
}
