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

// checkRefs looks at every reference that is written in the composition: to
// params, to the event, and to tasks and their outputs. CUE calls a misspelt one
// merely incomplete.
func (w *work) checkRefs() {
	for _, t := range w.tasks {
		base := w.path("tasks", t.name)
		seen := map[pipeline.Position]bool{}
		for _, p := range w.all.at(base...) {
			if p.value == nil {
				continue
			}
			direct := w.directRefs(t)
			w.chainsIn(p.value, func(c chain, _ spelling) { w.checkChain(t, c, direct, seen) })
			for _, g := range p.guards {
				w.chainsIn(g, func(c chain, _ spelling) { w.checkChain(t, c, direct, seen) })
			}
		}
	}
}

// directRefs maps the first position of a reference to the field of which it is
// the whole value.
func (w *work) directRefs(t *task) map[pipeline.Position]string {
	out := map[pipeline.Position]string{}
	if t.def == nil {
		return out
	}
	for _, f := range t.def.fields {
		for _, p := range w.all.at(w.path("tasks", t.name, "fields", f.Name)...) {
			if p.value == nil {
				continue
			}
			if c, _ := w.read(chainOf(p.value, 0)); c != nil {
				out[c[len(c)-1].pos] = f.Name
			}
		}
	}
	return out
}

func (w *work) checkChain(t *task, c chain, direct map[pipeline.Position]string, seen map[pipeline.Position]bool) {
	last := c[len(c)-1]
	if seen[last.pos] || len(c) < 2 || w.blamed[last.pos] {
		return
	}
	seen[last.pos] = true
	name := c[1]
	switch c[0].name {
	case "params":
		if get(w.v, "params", name.name).Exists() || child(get(w.v, "params"), name.name).Exists() && w.declaresParam(name.name) {
			return
		}
		d := diag(codeParamRef, name.pos, "task %q refers to param %q, which composition %q does not declare", t.name, name.name, w.name)
		w.complain(withHelp(d, didYouMean(name.name, fieldNames(get(w.v, "params")))))
	case "event":
		if known := w.batch.eventNames(); !slices.Contains(known, name.name) {
			d := diag(codeParamRef, name.pos, "task %q refers to event.%s, which no event has", t.name, name.name)
			d.Note = "an event has " + strings.Join(known, ", ")
			w.complain(withHelp(d, didYouMean(name.name, known)))
			t.broken = true
		}
	case "tasks":
		w.checkTaskRef(t, c, direct[last.pos])
	}
}

func (w *work) declaresParam(name string) bool {
	return slices.Contains(fieldNames(get(w.v, "params")), name)
}

func (w *work) checkTaskRef(t *task, c chain, direct string) {
	name := c[1]
	p := w.task(name.name)
	if p == nil {
		d := diag(codeTaskRef, name.pos, "task %q refers to task %q, which composition %q does not have", t.name, name.name, w.name)
		w.complain(withHelp(d, didYouMean(name.name, w.taskNames())))
		t.broken = true
		return
	}
	ref := taskRef{task: p.name, pos: name.pos, direct: direct}
	if len(c) > 2 && c[2].name != "outputs" {
		d := diag(codeOutputRef, c[2].pos, "task %q refers to tasks.%s.%s, but only outputs of other tasks can be read", t.name, p.name, c[2].name)
		d.Help = "what two tasks share is written once beside them, as _" + c[len(c)-1].name + ": …, and both refer to that"
		w.complain(withHelp(d, didYouMean(c[2].name, []string{"outputs"})))
		return
	}
	if len(c) > 3 {
		ref.output, ref.pos = c[3].name, c[3].pos
		if _, ok := p.outputs[ref.output]; !ok && p.def != nil {
			w.unknownOutput(t, p, c[3])
			return
		}
		if len(c) > 4 {
			ref.direct = "" // a part of an output: CUE knows its type
		}
	} else {
		ref.direct = ""
	}
	t.refs = append(t.refs, ref)
	if _, ok := t.edges[p.name]; !ok {
		t.edges[p.name] = edge{pos: ref.pos}
	}
}

func (w *work) unknownOutput(t, p *task, at link) {
	// CUE says the same of closed outputs; it is said once.
	w.res.Diagnostics = slices.DeleteFunc(w.res.Diagnostics, func(d pipeline.Diagnostic) bool {
		return d.Code == codeOutputRef && d.Pos.File == at.pos.File && d.Pos.Line == at.pos.Line && !strings.Contains(d.Message, "of task")
	})
	d := diag(codeOutputRef, at.pos, "task %q refers to output %q of task %q, which does not have it", t.name, at.name, p.name)
	known := sortedKeys(p.outputs)
	switch {
	case len(known) > 0:
		d.Note = "its outputs are " + strings.Join(known, ", ")
	case p.def.openOutputs:
		d.Note = fmt.Sprintf("declare it on the task: outputs: %s: string", at.name)
	}
	w.complain(withHelp(d, didYouMean(at.name, known)))
	t.broken = true
}

// graph completes the edges and checks what depends on the order of tasks.
func (w *work) graph() {
	for _, t := range w.tasks {
		w.readNeeds(t)
	}
	if !w.failed {
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
	for _, t := range w.tasks {
		for _, name := range sortedKeys(t.edges) {
			t.spec.Needs = append(t.spec.Needs, pipeline.TaskName(name))
		}
		w.out.Tasks = append(w.out.Tasks, t.spec)
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

// flowEdges asks CUE which tasks depend on which, and on params.
// It follows every form of reference; what the syntax did not show is added.
func (w *work) flowEdges() {
	depth := len(w.path("tasks")) + 1
	never := flow.RunnerFunc(func(*flow.Task) error { return errNotRun })
	isTask := func(v cue.Value) (flow.Runner, error) {
		p := v.Path().Selectors()
		if len(p) == 3 && p[2] == cue.Str("params") || len(p) == depth && p[2] == cue.Str("tasks") {
			return never, nil
		}
		return nil, nil
	}
	cfg := &flow.Config{Root: cue.MakePath(cue.Str("compositions"), cue.Str(w.name))}
	for _, ft := range flow.New(cfg, w.root, isTask).Tasks() {
		p := ft.Path().Selectors()
		if len(p) != depth {
			continue
		}
		t := w.task(selectorName(p[3]))
		if t == nil {
			continue
		}
		for _, dep := range ft.Dependencies() {
			w.flowEdge(t, dep.Path().Selectors(), depth)
		}
	}
}

func (w *work) flowEdge(t *task, dep []cue.Selector, depth int) {
	if len(dep) == depth {
		name := selectorName(dep[3])
		if name == t.name {
			return
		}
		if _, ok := t.edges[name]; !ok {
			t.edges[name] = edge{pos: t.pos}
			t.refs = append(t.refs, taskRef{task: name, pos: t.pos})
		}
	}
	if len(t.deferred) == 0 {
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
		if !g.certain(t, p) {
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
	d := diag(codeMaySkip, ref.pos, "task %q reads an output of task %q, which may have none: %s", t.name, p.name, g.whyAbsent(p))
	w.complain(d)
}

// pin keeps a task on the agent of the tasks whose paths it reads.
func (w *work) pin(t *task) {
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
