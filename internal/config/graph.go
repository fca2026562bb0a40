package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/tools/flow"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// graph completes the edges and checks what depends on the order of tasks.
func (w *work) graph() {
	for _, t := range w.tasks {
		w.readNeeds(t)
	}
	if !w.failed && !w.plainly() {
		w.flowEdges()
	}
	if w.cycles() {
		return
	}
	g := newOrder(w.tasks)
	for _, t := range w.tasks {
		if !t.broken {
			w.bind(t, g)
		}
	}
	for _, t := range w.tasks {
		if !t.broken {
			w.checkEdges(t, g)
		}
	}
	for _, t := range w.tasks {
		if !t.broken {
			w.pin(t)
		}
	}
	w.readAround(g)
	for _, t := range w.tasks {
		w.open(t)
		t.spec.Needs = w.needs(t)
	}
	for _, t := range w.tasks {
		w.out.Tasks = append(w.out.Tasks, t.instances()...)
	}
}

func (w *work) readNeeds(t *task) {
	iter, err := get(t.v, "needs").List()
	if err != nil {
		return
	}
	for i := 0; iter.Next(); i++ {
		name := text(iter.Value())
		if name == "" {
			continue
		}
		if w.task(name) == nil {
			pos, _ := w.all.value(w.path("tasks", t.name, "needs", itoa(i))...)
			d := diag(codeNeeds, pos, "task %q needs task %q, which composition %q does not have", t.name, name, w.name)
			w.complain(withHelp(d, didYouMean(name, w.taskNames())))
			continue
		}
		pos, _ := w.all.value(w.path("tasks", t.name, "needs", itoa(i))...)
		if _, ok := t.edges[name]; !ok {
			t.edges[name] = edge{pos: pos, needs: true}
		}
	}
}

var errNotRun = errors.New("the graph is only read")

// flowParts are the parts of a task of which CUE is asked apart when a task has
// any that does not make it wait, or that waits for other reasons than its fields.
var flowParts = []string{"fields", "outputs", "when", "each", "onFailureRun"}

// flowEdges asks CUE which tasks depend on which, and on params.
// It follows every form of reference; what the syntax did not show is added.
func (w *work) flowEdges() {
	depth := len(w.path("tasks")) + 1
	apart := slices.ContainsFunc(w.tasks, func(t *task) bool {
		return t.spec.If != nil || t.fansOut || t.spec.OnFailure != nil
	})
	never := flow.RunnerFunc(func(*flow.Task) error { return errNotRun })
	isTask := func(v cue.Value) (flow.Runner, error) {
		p := v.Path().Selectors()
		switch {
		case len(p) == 3 && p[2] == cue.Str("params"),
			!apart && len(p) == depth && p[2] == cue.Str("tasks"),
			apart && len(p) == depth+1 && p[2] == cue.Str("tasks") && slices.Contains(flowParts, selectorName(p[depth])):
			return never, nil
		}
		return nil, nil
	}
	cfg := &flow.Config{Root: cue.MakePath(cue.Str("compositions"), cue.Str(w.name))}
	for _, ft := range flow.New(cfg, w.root, isTask).Tasks() {
		p := ft.Path().Selectors()
		if len(p) < depth || len(p) > depth && selectorName(p[depth]) == "onFailureRun" {
			continue
		}
		t := w.task(selectorName(p[3]))
		if t == nil {
			continue
		}
		fields := len(p) == depth || selectorName(p[depth]) == "fields"
		for _, dep := range ft.Dependencies() {
			w.flowEdge(t, dep.Path().Selectors(), depth, fields)
		}
	}
}

func (w *work) flowEdge(t *task, dep []cue.Selector, depth int, fields bool) {
	if len(dep) >= depth {
		name := selectorName(dep[3])
		if name == t.name {
			return
		}
		if _, ok := t.edges[name]; !ok && w.task(name) != nil {
			t.edges[name] = edge{pos: t.pos}
			t.refs = append(t.refs, taskRef{task: name, pos: t.pos})
		}
	}
	if fields && len(t.deferred) == 0 {
		// Something in the task waits for the run, and the syntax does not show
		// what: so all of its fields wait.
		t.deferAll()
	}
}

func (t *task) deferAll() {
	t.spec.Deferred, t.spec.Fields = true, nil
	if t.def != nil {
		for _, f := range t.def.fields {
			t.deferred[f.Name] = true
		}
	}
}

func selectorName(s cue.Selector) string {
	if s.LabelType() == cue.StringLabel {
		return s.Unquoted()
	}
	return s.String()
}

// cycles reports tasks that wait for each other, each circle once.
func (w *work) cycles() bool {
	state := map[string]int{} // 1 under way, 2 done
	var path []string
	found := false
	var visit func(name string)
	visit = func(name string) {
		switch state[name] {
		case 1:
			circle := append(slices.Clone(path[slices.Index(path, name):]), name)
			w.reportCycle(circle)
			found = true
			return
		case 2:
			return
		}
		state[name] = 1
		path = append(path, name)
		for _, next := range sortedKeys(w.task(name).edges) {
			visit(next)
		}
		path = path[:len(path)-1]
		state[name] = 2
	}
	for _, t := range w.tasks {
		visit(t.name)
	}
	return found
}

func (w *work) reportCycle(circle []string) {
	t := w.task(circle[0])
	d := diag(codeCycle, t.edges[circle[1]].pos, "tasks wait for each other: %s", strings.Join(circle, " -> "))
	var why []string
	for i, name := range circle[:len(circle)-1] {
		e := w.task(name).edges[circle[i+1]]
		how := "reads an output of"
		if e.needs {
			how = "names in needs"
		}
		why = append(why, fmt.Sprintf("%s %s %s (line %d)", name, how, circle[i+1], e.pos.Line))
	}
	d.Note = strings.Join(why, "; ")
	w.complain(d)
}

// checkEdges compares the type of each output that is read with the field that
// takes it. Unification alone would accept an output that only sometimes fits.
func (w *work) checkEdges(t *task, g *order) {
	for _, ref := range t.refs {
		p := w.task(ref.task)
		if !g.readable(t, ref, p) {
			w.maybeAbsent(t, p, ref, g)
			continue
		}
		if ref.direct == "" || ref.output == "" {
			continue
		}
		got, ok := p.outputs[ref.output]
		f := t.def.field(ref.direct)
		if !ok || f == nil {
			continue
		}
		what := fmt.Sprintf("task %q: field %q takes tasks.%s.outputs.%s", t.name, f.Name, p.name, ref.output)
		w.checkEdgeType(what, ref.pos, f, got)
	}
}

// checkEdgeType reports whether it is proved that an output always fits a field.
func (w *work) checkEdgeType(what string, pos pipeline.Position, f *fieldDef, got cue.Value) bool {
	wantType, wantErr := compileType(f.value)
	gotType, gotErr := compileType(got)
	// Subsume takes anything for an instance of !="x".
	if len(wantType.Not) == 0 && f.value.Subsume(got, cue.Raw()) == nil {
		return true
	}
	if wantErr == nil && gotErr == nil && covers(wantType, gotType) {
		return true
	}
	have, want := constraintText(got), f.Type.Text
	if want == "" {
		want = constraintText(f.value)
	}
	if wantErr == nil && hasPattern(wantType) && f.value.Unify(got).Err() == nil {
		d := warn(codeUnproved, pos, "%s, which is only known to be %s: that it fits %s is checked when the task starts", what, have, want)
		d.Note = declaredAt(f.pos)
		w.complain(d)
		return false
	}
	d := diag(codeEdgeType, pos, "%s, which is %s and need not be %s", what, have, want)
	d.Note = declaredAt(f.pos)
	w.complain(d)
	return false
}

// hasPattern reports whether a type has a pattern, of which it cannot be decided
// here whether another contains it.
func hasPattern(t pipeline.Type) bool {
	if len(t.Patterns)+len(t.NotPatterns) > 0 {
		return true
	}
	return slices.ContainsFunc(t.OneOf, hasPattern) || t.Elem != nil && hasPattern(*t.Elem) || t.Rest != nil && hasPattern(*t.Rest) ||
		slices.ContainsFunc(t.Fields, func(f pipeline.Field) bool { return hasPattern(f.Type) })
}

func (w *work) maybeAbsent(t, p *task, ref taskRef, g *order) {
	if t.when() != pipeline.OnSuccess && g.certain(t, p) {
		d := diag(codeMaySkip, ref.pos, "task %q reads an output of task %q, which may have failed without it", t.name, p.name)
		d.Note = fmt.Sprintf("%q has run: %q, so it runs whatever became of %q", t.name, t.when(), p.name)
		d.Help = "read it in an optional field, which is left out then; or call a composition with onFailureRun, whose params may lack it"
		w.complain(d)
		return
	}
	d := diag(codeMaySkip, ref.pos, "task %q reads an output of task %q, which may have none: %s", t.name, p.name, g.whyAbsent(p))
	switch {
	case p.spec.If != nil && ref.early:
		d.Help = "a condition cannot rely on what is decided by another condition"
	case p.spec.If != nil && p.spec.If.Text != "":
		d.Help = "give it the same condition: when: " + p.spec.If.Text
	}
	w.complain(d)
}

// pin keeps a task on the agent of the tasks whose paths it reads.
func (w *work) pin(t *task) {
	if t.spec.Plugin == pipeline.CorePlugin {
		return // it touches no file
	}
	pins := map[string]bool{}
	for _, b := range t.spec.Bindings {
		w.pinTo(t, string(b.From), b.Output, pins)
	}
	for _, ref := range t.refs {
		w.pinTo(t, ref.task, ref.output, pins)
	}
	for _, name := range sortedKeys(pins) {
		t.spec.Pins = append(t.spec.Pins, pipeline.TaskName(name))
		w.checkPin(t, w.task(name))
	}
}

func (w *work) pinTo(t *task, from, output string, pins map[string]bool) {
	p := w.task(from)
	if p == nil || p == t {
		return
	}
	for _, f := range p.spec.Outputs.Fields {
		if (output == "" || f.Name == output) && holds(f.Type, pipeline.KindPath) {
			pins[from] = true
		}
	}
}

func (w *work) checkPin(t, p *task) {
	a, b := t.spec.Requirement, p.spec.Requirement
	pos := t.pos
	if at, ok := w.all.value(w.path("tasks", t.name, "agent")...); ok {
		pos = at
	}
	why := ""
	if a.Pool != "" && b.Pool != "" && a.Pool != b.Pool {
		why = fmt.Sprintf("%q requires pool %q, and %q requires pool %q", t.name, a.Pool, p.name, b.Pool)
	} else if fact := contradiction(a, b); fact != "" {
		why = fmt.Sprintf("they require different values of fact %s", fact)
	}
	if why == "" {
		return
	}
	d := diag(codePin, pos, "task %q reads a path of task %q and so must run on the same agent, but %s", t.name, p.name, why)
	d.Help = "give both the same requirement"
	for _, b := range t.spec.Bindings {
		if string(b.From) == p.name {
			d.Help += fmt.Sprintf(`; or, if %q needs no file of %q, say so: fields: %s: "."`, t.name, p.name, b.Field)
		}
	}
	d.Note = "files stay on the agent that has them"
	w.complain(d)
}

// contradiction finds a fact of which no value fits both requirements.
func contradiction(a, b pipeline.Requirement) string {
	for _, x := range a.Facts {
		for _, y := range b.Facts {
			if !slices.Equal(x.Path, y.Path) {
				continue
			}
			disjoint := len(x.Type.Enum) > 0 && !slices.ContainsFunc(x.Type.Enum, fits(y.Type)) ||
				len(y.Type.Enum) > 0 && !slices.ContainsFunc(y.Type.Enum, fits(x.Type))
			if disjoint {
				return strings.Join(x.Path, ".")
			}
		}
	}
	return ""
}

func fits(t pipeline.Type) func(json.RawMessage) bool {
	return func(raw json.RawMessage) bool { return len(t.CheckJSON(raw)) == 0 }
}
