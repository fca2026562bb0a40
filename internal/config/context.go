package config

import (
	"fmt"
	"slices"

	"cuelang.org/go/cue"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// An order answers questions about which task precedes which. It is extended as
// bindings add edges; a binding only ever repeats an order that is there.
type order struct {
	tasks     map[string]*task
	ancestors map[string]map[string]bool
	sure      map[string]map[string]bool
	skip      map[string]string
}

func newOrder(tasks []*task) *order {
	g := &order{tasks: map[string]*task{}, ancestors: map[string]map[string]bool{}, sure: map[string]map[string]bool{}, skip: map[string]string{}}
	for _, t := range tasks {
		g.tasks[t.name] = t
	}
	return g
}

// before returns all that must have ended when a task starts. The graph has no circles.
func (g *order) before(name string) map[string]bool {
	if a, ok := g.ancestors[name]; ok {
		return a
	}
	a := map[string]bool{}
	for need := range g.tasks[name].edges {
		a[need] = true
		for further := range g.before(need) {
			a[further] = true
		}
	}
	g.ancestors[name] = a
	return a
}

// succeeded returns the tasks that have surely succeeded when a task starts.
func (g *order) succeeded(name string) map[string]bool {
	if s, ok := g.sure[name]; ok {
		return s
	}
	s := map[string]bool{}
	if g.tasks[name].when() == pipeline.OnSuccess {
		for need := range g.tasks[name].edges {
			if !g.tasks[need].spec.Continue {
				s[need] = true
			}
			// It has run, successfully or not, so what it waited for held.
			for further := range g.succeeded(need) {
				s[further] = true
			}
		}
	}
	g.sure[name] = s
	return s
}

// certain reports whether t can rely on the outputs of p. Reading them makes t
// wait for p, and t is skipped when p fails; so p may be any earlier task, unless
// it may be skipped in a run without failures, or its failure is tolerated.
func (g *order) certain(t, p *task) bool {
	if !g.holds(t, p) {
		return false
	}
	if g.succeeded(t.name)[p.name] {
		return true
	}
	return g.before(t.name)[p.name] && !p.spec.Continue && g.conditional(p.name) == ""
}

// holds reports whether the condition of p, if it has one, holds whenever t runs:
// t has the same, or more.
func (g *order) holds(t, p *task) bool {
	if p.spec.If == nil {
		return true
	}
	return len(p.conds) > 0 && !slices.ContainsFunc(p.conds, func(c string) bool { return !slices.Contains(t.conds, c) })
}

// readable is certain for a reference that is written out. One that decides
// whether its task runs cannot lean on that decision, and a task that also runs
// after failures has to expect that nothing was reported.
func (g *order) readable(t *task, ref taskRef, p *task) bool {
	switch {
	case ref.early && p.spec.If != nil:
		return false
	case t.when() != pipeline.OnSuccess && !g.succeeded(t.name)[p.name]:
		f := t.def.field(ref.field)
		return f != nil && f.mayLack()
	}
	return g.certain(t, p)
}

// conditional names the task because of which a task is skipped when nothing
// fails: itself or one that it needs; "" when there is none.
func (g *order) conditional(name string) string {
	t := g.tasks[name]
	switch t.when() {
	case pipeline.OnFailure:
		return name
	case pipeline.Always:
		return ""
	}
	if why, ok := g.skip[name]; ok {
		return why
	}
	why := ""
	for _, need := range sortedKeys(t.edges) {
		if why = g.conditional(need); why != "" {
			break
		}
	}
	g.skip[name] = why
	return why
}

// mayLack reports whether a task can do without the field. One that reads what was
// never reported is then left out.
func (f *fieldDef) mayLack() bool {
	return f.presence == presenceOptional && (f.inherit == "" || f.soft)
}

// whyAbsent says why a task may not have outputs.
func (g *order) whyAbsent(p *task) string {
	switch why := g.conditional(p.name); {
	case p.spec.If != nil:
		if p.spec.If.Text == "" {
			return "its condition is false"
		}
		return "it has a condition, when: " + p.spec.If.Text
	case p.spec.Continue:
		return `it has onFailure: "continue", so the run goes on without them`
	case why == p.name:
		return `it has run: "on-failure" and is skipped when nothing fails`
	case why != "":
		return fmt.Sprintf(`it needs %q, which has run: "on-failure" and is skipped when nothing fails`, why)
	}
	return "it is not ordered before"
}

func (t *task) when() pipeline.RunWhen {
	if t.spec.When == "" {
		return pipeline.OnSuccess
	}
	return t.spec.When
}

// bind fills the fields that a task inherits from the context: each from the
// nearest earlier task that surely provides the key.
func (w *work) bind(t *task, g *order) {
	fields := get(t.v, "fields")
	for i := range t.def.fields {
		f := &t.def.fields[i]
		if f.inherit == "" || get(fields, f.Name).Exists() {
			continue
		}
		w.bindField(t, f, g)
	}
}

// provider is an output that the context can give.
type provider struct {
	task   *task
	output string
	value  cue.Value
}

// providers are the outputs of other tasks under a key, in the order of the file.
func (w *work) providers(t *task, key string) []provider {
	var out []provider
	for _, p := range w.tasks {
		if p == t || p.def == nil || p.fansOut {
			continue
		}
		for _, name := range sortedKeys(p.outputs) {
			if provides(p, name) == key {
				out = append(out, provider{p, name, p.outputs[name]})
			}
		}
	}
	return out
}

// mayProvide reports whether a broken task would have provided a key.
func (w *work) mayProvide(t *task, key string) bool {
	return slices.ContainsFunc(w.tasks, func(p *task) bool {
		if !p.broken || p == t {
			return false
		}
		return p.def == nil || slices.ContainsFunc(p.def.outputs, func(o fieldDef) bool { return o.provide == key })
	})
}

// provides is the key under which a task gives an output to the context: what the
// manifest says, or the composition where it declares the output itself.
func provides(p *task, output string) string {
	if d := p.def.output(output); d != nil {
		return d.provide
	}
	if a := p.outputs[output].Attribute("provide"); a.Err() == nil {
		key, _ := a.String(0)
		return key
	}
	return ""
}

func (w *work) bindField(t *task, f *fieldDef, g *order) {
	all := w.providers(t, f.inherit)
	before := g.before(t.name)
	var earlier, sure []provider
	for _, p := range all {
		if before[p.task.name] {
			earlier = append(earlier, p)
			if g.certain(t, p.task) {
				sure = append(sure, p)
			}
		}
	}
	nearest := slices.DeleteFunc(slices.Clone(sure), func(p provider) bool {
		return slices.ContainsFunc(sure, func(q provider) bool { return g.before(q.task.name)[p.task.name] })
	})
	switch {
	case len(nearest) == 1:
		w.bindTo(t, f, nearest[0])
	case len(nearest) > 1:
		w.ambiguous(t, f, nearest)
	case w.mayProvide(t, f.inherit):
		// A broken task was meant to; what is wrong with it is said there.
	case len(earlier) > 0:
		w.maySkip(t, f, earlier, g)
	case len(all) > 0:
		w.notOrdered(t, f, all, g)
	case !f.soft:
		d := w.unbound(codeNoProvider, t, f, "and no earlier task provides it")
		d.Help = "set it, or add a task that provides " + f.inherit
		w.complain(d)
	}
}

// unbound says that a field of the context is not there. For a field that may be
// absent it is a warning, because the author may have meant something else.
func (w *work) unbound(code string, t *task, f *fieldDef, why string) pipeline.Diagnostic {
	verb, severity := "needs", pipeline.SeverityError
	if f.soft {
		verb, severity = "would take", pipeline.SeverityWarning
	}
	d := diag(code, t.pos, "task %q (%s) %s field `%s: %s`, %s", t.name, t.spec.Uses, verb, f.Name, f.Type.Text, why)
	d.Severity = severity
	d.Note = fmt.Sprintf("%s; inherits %s from the context", declaredAt(f.pos), f.inherit)
	return d
}

func (w *work) bindTo(t *task, f *fieldDef, p provider) {
	pos := t.pos
	what := fmt.Sprintf("task %q: field %q takes %s from the context, output %q of task %q", t.name, f.Name, f.inherit, p.output, p.task.name)
	before := len(w.res.Diagnostics)
	if holds(f.Type, pipeline.KindSecret) {
		d := diag(codeSecret, pos, "task %q: field %q is a secret and must be named where it is used", t.name, f.Name)
		d.Note = "which secrets a task can reach is decided by the file, not by another task"
		d.Help = "add fields: " + f.Name + ": secret: \"NAME\""
		w.complain(d)
		return
	}
	proved := w.checkEdgeType(what, pos, f, p.value)
	if pipeline.HasErrors(w.res.Diagnostics[before:]) {
		return
	}
	t.spec.Bindings = append(t.spec.Bindings, pipeline.Binding{
		Field: f.Name, From: pipeline.TaskName(p.task.name), Output: p.output, Key: f.inherit, Optional: f.soft,
	})
	// The value is merged in as it is, without evaluating anything, unless it has
	// yet to be checked or the manifest makes other fields of it.
	if !proved || slices.ContainsFunc(t.def.fields, func(d fieldDef) bool { return d.derived }) {
		t.spec.Deferred = true
	}
	if _, ok := t.edges[p.task.name]; !ok {
		t.edges[p.task.name] = edge{pos: t.pos}
	}
}

func names(ps []provider) []string {
	var out []string
	for _, p := range ps {
		if !slices.Contains(out, p.task.name) {
			out = append(out, p.task.name)
		}
	}
	return out
}

func (w *work) ambiguous(t *task, f *fieldDef, ps []provider) {
	d := w.unbound(codeAmbiguous, t, f, fmt.Sprintf("and tasks %s provide it in no fixed order", listed(names(ps))))
	if len(names(ps)) == 1 {
		d = w.unbound(codeAmbiguous, t, f, fmt.Sprintf("and task %q provides it twice", ps[0].task.name))
	}
	d.Severity = pipeline.SeverityError
	d.Help = fmt.Sprintf("say which: fields: %s: tasks.%s.outputs.%s", f.Name, ps[0].task.name, ps[0].output)
	w.complain(d)
}

func (w *work) maySkip(t *task, f *fieldDef, ps []provider, g *order) {
	p := ps[len(ps)-1]
	d := w.unbound(codeMaySkip, t, f, fmt.Sprintf("and task %q, which provides it, may not have: %s", p.task.name, g.whyAbsent(p.task)))
	d.Help = "set " + f.Name + ", or let it come from a task that surely succeeds before this one"
	w.complain(d)
}

func (w *work) notOrdered(t *task, f *fieldDef, ps []provider, g *order) {
	which := names(ps)
	code, why := codeNotOrdered, fmt.Sprintf("and task %s provides it but is not ordered before %q", listed(which), t.name)
	d := w.unbound(code, t, f, why)
	if g.before(which[0])[t.name] {
		if f.soft {
			return // it runs first by intent, in the workspace as it is
		}
		d = w.unbound(codeNotOrdered, t, f, fmt.Sprintf("and task %q, which provides it, runs only after %q", which[0], t.name))
		d.Help = "set " + f.Name + ", or add a task before this one that provides " + f.inherit
		w.complain(d)
		return
	}
	d.Help = fmt.Sprintf("add needs: [%q]", which[0])
	if f.soft {
		d.Help += ", or set " + f.Name
	}
	w.complain(d)
}
