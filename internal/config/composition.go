package config

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/errors"

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
}

// taskRef is a reference to another task's outputs. output is "" when all of
// them, or the task itself, are referred to.
type taskRef struct {
	task, output string
	pos          pipeline.Position
	// direct is the field whose whole value is the reference, "" for none.
	direct string
}

type edge struct {
	pos pipeline.Position
	// param: the reference reads no output, only the order matters.
	needs bool
}

func (c *checker) compositions() {
	c.each("compositions", func(name string, v cue.Value) {
		w := &work{checker: c, name: name, v: v}
		before := len(c.res.Diagnostics)
		w.run()
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
	w.out.Pos, _ = w.all.label(w.path()...)
	broken := w.validate()
	if !get(w.v, "name").Exists() {
		return // not even a struct; CUE has said so
	}
	w.checkTaskSet()
	w.readTasks(broken)
	w.readHead()
	w.readParams()
	w.readTriggers()
	w.checkRefs()
	w.graph()
}

// validate reports what CUE finds and returns the tasks it concerns.
func (w *work) validate() map[string]bool {
	broken := map[string]bool{}
	err := w.v.Validate()
	if err == nil {
		return broken
	}
	w.failed = true
	ds := w.x.errors(err)
	w.complain(ds...)
	for _, e := range errors.Errors(err) {
		p := pathOf(e)
		if len(p) > 3 && p[2] == "tasks" {
			broken[p[3]] = true
		}
	}
	return broken
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
	d.Help = "import the plugin and write: " + t.name + ": shell.#Run & {fields: …}"
	if t.def != nil {
		plugin, _, _ := strings.Cut(uses, "/")
		d.Help = "write: " + t.name + ": " + plugin + "." + t.def.name + " & {…}"
	} else if uses != "" {
		d.Note = fmt.Sprintf("it says uses: %q, which no imported plugin offers", uses)
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

// envelope are the fields of #Task that must be known when the commit is planned.
var envelope = []string{
	"description", "needs", "timeout", "lostAfter", "retries", "agent", "priority", "run", "onFailure", "effect", "uses",
}

func (w *work) readEnvelope(t *task) {
	if !w.known(t.v, envelope, "tasks", t.name) || t.broken {
		t.broken = true
		return
	}
	s := &t.spec
	s.Description = text(get(t.v, "description"))
	s.Timeout = w.duration(get(t.v, "timeout"), "tasks", t.name, "timeout")
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
		d := warn(codeValue, pos, "task %q says effect: \"once\" and retries: it is tried again only after an outcome that its plugin reported", t.name)
		w.complain(d)
	}
}

// known checks that the named fields are concrete and refer to nothing of the run.
func (w *work) known(v cue.Value, names []string, at ...string) bool {
	ok := true
	for _, name := range names {
		path := w.path(append(slices.Clone(at), name)...)
		for _, p := range w.all.at(path...) {
			if p.value == nil || len(reaches(p.value)) == 0 {
				continue
			}
			ok = false
			d := diag(codeTooLate, firstRef(p.value, w.name), "%s must be known when the commit is planned", w.x.subject(path))
			d.Note = "only fields may refer to params, event and the outputs of tasks"
			w.complain(d)
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

// readFields splits a task's fields into those that are known and those that wait.
func (w *work) readFields(t *task) {
	fields := get(t.v, "fields")
	loose := w.looseHits(t)
	known := map[string]json.RawMessage{}
	for _, f := range t.def.fields {
		fv := get(fields, f.Name)
		if !fv.Exists() {
			if f.presence == presenceRequired && f.inherit == "" && fields.Exists() {
				w.missing(t, &f)
			}
			continue
		}
		if loose[f.Name] {
			t.deferred[f.Name] = true
			w.deferredSecrets(t, &f)
		}
	}
	// A default that is made of other fields waits when any of them does.
	for _, f := range t.def.fields {
		if f.derived && len(t.deferred) > 0 && get(fields, f.Name).Exists() && len(w.all.at(w.path("tasks", t.name, "fields", f.Name)...)) == 0 {
			t.deferred[f.Name] = true
		}
	}
	if t.broken {
		return
	}
	for _, f := range t.def.fields {
		fv := get(fields, f.Name)
		if !fv.Exists() || t.deferred[f.Name] {
			continue
		}
		if err := fv.Validate(cue.Concrete(true)); err != nil {
			w.complain(w.x.errors(err)...)
			continue
		}
		raw, err := fv.MarshalJSON()
		if err != nil {
			pos, _ := w.all.value(w.path("tasks", t.name, "fields", f.Name)...)
			w.complain(diag(codeValue, pos, "task %q: field %q is not JSON", t.name, f.Name))
			continue
		}
		known[f.Name] = raw
		w.mentionSecrets(t, &f, raw)
	}
	t.spec.Deferred = len(t.deferred) > 0
	if len(known) > 0 {
		t.spec.Fields, _ = json.Marshal(known) // valid JSON by construction
	}
}

func (w *work) missing(t *task, f *fieldDef) {
	d := diag(codeRequired, t.pos, "task %q (%s) needs field %q", t.name, t.spec.Uses, f.Name)
	d.Note = declaredAt(f.pos)
	d.Help = "add fields: " + f.Name + ": " + f.Type.Text
	w.complain(d)
}

// looseHits reports which fields refer to the run. A field that was not written
// where the index can see it waits if anything around it refers to the run.
func (w *work) looseHits(t *task) map[string]bool {
	around := w.all.at(w.path("tasks", t.name)...)
	around = append(slices.Clone(around), w.all.at(w.path("tasks", t.name, "fields")...)...)
	loose := false
	for _, p := range around {
		loose = loose || len(reaches(looseParts(p.value)...)) > 0 || len(reaches(p.guards...)) > 0
	}
	out := map[string]bool{}
	for _, f := range t.def.fields {
		places := w.all.at(w.path("tasks", t.name, "fields", f.Name)...)
		hit := loose
		for _, p := range places {
			hit = hit || p.value != nil && len(reaches(p.value)) > 0 || len(reaches(p.guards...)) > 0
		}
		out[f.Name] = hit
	}
	return out
}

// looseParts are the parts of an expression that are not written out as fields.
func looseParts(e ast.Expr) []ast.Node {
	switch e := e.(type) {
	case nil:
		return nil
	case *ast.ParenExpr:
		return looseParts(e.X)
	case *ast.BinaryExpr:
		return append(looseParts(e.X), looseParts(e.Y)...)
	case *ast.StructLit:
		var out []ast.Node
		for _, d := range e.Elts {
			switch d := d.(type) {
			case *ast.EmbedDecl:
				out = append(out, looseParts(d.Expr)...)
			case *ast.Field:
				if _, _, err := ast.LabelName(d.Label); err != nil {
					out = append(out, d)
				}
			}
		}
		return out
	}
	return []ast.Node{e}
}

func (w *work) readOutputs(t *task) {
	v := get(t.v, "outputs")
	t.spec.Outputs = pipeline.Type{Kind: pipeline.KindStruct, Open: t.def.openOutputs}
	if !v.Exists() || v.IncompleteKind() != cue.StructKind {
		return
	}
	iter, err := v.Fields(cue.Optional(true))
	if err != nil {
		return
	}
	for iter.Next() {
		if iter.Selector().LabelType() != cue.StringLabel || iter.Selector().ConstraintType() == cue.PatternConstraint {
			continue
		}
		name := iter.Selector().Unquoted()
		t.outputs[name] = iter.Value()
		f, err := compileField(iter, 0)
		if t.def.output(name) == nil || err != nil {
			pos, _ := w.all.label(w.path("tasks", t.name, "outputs", name)...)
			w.complain(checkOutput(fmt.Sprintf("task %q: output", t.name), name, pos, iter, err)...)
		}
		f.Default = nil
		t.spec.Outputs.Fields = append(t.spec.Outputs.Fields, f)
	}
	sort.Slice(t.spec.Outputs.Fields, func(i, j int) bool { return t.spec.Outputs.Fields[i].Name < t.spec.Outputs.Fields[j].Name })
}

func (d *definition) output(name string) *fieldDef {
	for i := range d.outputs {
		if d.outputs[i].Name == name {
			return &d.outputs[i]
		}
	}
	return nil
}

// mentionSecrets records the secrets that a known field refers to.
func (w *work) mentionSecrets(t *task, f *fieldDef, raw json.RawMessage) {
	v, err := pipeline.DecodeJSON(raw)
	if err != nil {
		return
	}
	for _, name := range secretsIn(f.Type, v) {
		pos, _ := w.all.value(w.path("tasks", t.name, "fields", f.Name)...)
		w.mentionSecret(t, name, pos)
	}
}

// deferredSecrets looks at a field that waits for the run. Which secrets it can
// reach must be written out all the same.
func (w *work) deferredSecrets(t *task, f *fieldDef) {
	if !holds(f.Type, pipeline.KindSecret) {
		return
	}
	base := keyOf(w.path("tasks", t.name, "fields", f.Name))
	for _, key := range sortedKeys(w.all.places) {
		if key != base && !strings.HasPrefix(key, base+pathSep) || !strings.HasSuffix(key, pathSep+"secret") {
			continue
		}
		for _, p := range w.all.places[key] {
			lit, ok := p.value.(*ast.BasicLit)
			if !ok {
				continue
			}
			w.mentionSecret(t, unquote(lit.Value), position(lit.Pos()))
		}
	}
	if f.Type.Kind == pipeline.KindSecret && len(w.all.at(append(strings.Split(base, pathSep), "secret")...)) == 0 ||
		w.secretRefers(base) {
		pos, _ := w.all.value(strings.Split(base, pathSep)...)
		d := diag(codeSecret, pos, "task %q: field %q: a secret must be named where it is used", t.name, f.Name)
		d.Note = "which secrets a task can reach is decided by the file, not by the run"
		d.Help = "write " + f.Name + `: secret: "NAME"`
		w.complain(d)
	}
}

// secretRefers reports whether the name of a secret below a path waits for the run.
func (w *work) secretRefers(base string) bool {
	for key, places := range w.all.places {
		if !strings.HasPrefix(key, base+pathSep) || !strings.HasSuffix(key, pathSep+"secret") {
			continue
		}
		if slices.ContainsFunc(places, func(p place) bool { return p.value != nil && len(reaches(p.value)) > 0 }) {
			return true
		}
	}
	return false
}

func (w *work) mention(kind, name string, t *task, pos pipeline.Position) {
	w.res.Mentions = append(w.res.Mentions, mention{Kind: kind, Name: name, Composition: w.out.Name, Task: t.spec.Name, Pos: pos})
}

func (w *work) mentionSecret(t *task, name string, pos pipeline.Position) {
	w.mention(mentionSecret, name, t, pos)
	if s := pipeline.SecretName(name); !slices.Contains(t.spec.Secrets, s) {
		t.spec.Secrets = append(t.spec.Secrets, s)
		slices.Sort(t.spec.Secrets)
	}
}

// secretsIn finds the references to secrets in a value of a type.
func secretsIn(t pipeline.Type, v any) []string {
	var out []string
	switch t.Kind {
	case pipeline.KindSecret:
		if m, ok := v.(map[string]any); ok {
			if s, ok := m["secret"].(string); ok {
				out = append(out, s)
			}
		}
	case pipeline.KindOneOf:
		for _, alt := range t.OneOf {
			if alt.Fits(v) {
				return secretsIn(alt, v)
			}
		}
	case pipeline.KindList:
		list, _ := v.([]any)
		for _, e := range list {
			if t.Elem != nil {
				out = append(out, secretsIn(*t.Elem, e)...)
			}
		}
	case pipeline.KindStruct:
		m, _ := v.(map[string]any)
		for _, name := range sortedKeys(m) {
			if inner, ok := fieldType(t, name); ok {
				out = append(out, secretsIn(inner, m[name])...)
			}
		}
	}
	return out
}

func fieldType(t pipeline.Type, name string) (pipeline.Type, bool) {
	for _, f := range t.Fields {
		if f.Name == name {
			return f.Type, true
		}
	}
	if t.Rest != nil {
		return *t.Rest, true
	}
	return pipeline.Type{}, false
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// holds reports whether values of a type may contain a value of a kind.
func holds(t pipeline.Type, kind pipeline.Kind) bool {
	if t.Kind == kind {
		return true
	}
	inner := func(u pipeline.Type) bool { return holds(u, kind) }
	return slices.ContainsFunc(t.OneOf, inner) ||
		slices.ContainsFunc(t.Fields, func(f pipeline.Field) bool { return inner(f.Type) }) ||
		t.Elem != nil && inner(*t.Elem) || t.Rest != nil && inner(*t.Rest)
}
