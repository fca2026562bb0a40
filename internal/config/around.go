package config

import (
	"fmt"

	"cuelang.org/go/cue"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// readAround reads what belongs to the composition as a whole and may refer to its
// tasks. The order of tasks is known by now.
func (w *work) readAround(g *order) {
	w.readOutputsOf(g)
	w.out.OnFailure = w.readHook(get(w.v, "onFailure"), "", "onFailure")
	w.mayLack(g)
	w.readConcurrency()
	if v := get(w.v, "limits"); v.Exists() && w.known(v, []string{"running", "queued"}, "limits") {
		w.out.MaxRunning, w.out.MaxQueued = number(get(v, "running"), 0), number(get(v, "queued"), 0)
	}
}

func (w *work) readConcurrency() {
	v := get(w.v, "concurrency")
	if !v.Exists() || v.Err() != nil || !w.known(v, []string{"policy"}, "concurrency") {
		return
	}
	group := get(v, "group")
	if !group.Exists() {
		pos, _ := w.all.label(w.path("concurrency")...)
		d := diag(codeRequired, pos, "composition %q: concurrency needs a group", w.name)
		d.Help = fmt.Sprintf("add group: %q: runs of one group exclude each other, across compositions", w.name)
		w.complain(d)
		return
	}
	w.out.Concurrency = &pipeline.Concurrency{
		Group: w.expr(group, "concurrency", "group"), Policy: pipeline.Overtake(text(get(v, "policy"))),
	}
}

// readOutputsOf reads what the composition returns to its callers.
func (w *work) readOutputsOf(g *order) {
	v := get(w.v, "outputs")
	if !v.Exists() || v.Err() != nil {
		return
	}
	iter, err := v.Fields()
	if err != nil {
		return
	}
	for iter.Next() {
		name := iter.Selector().Unquoted()
		if iter.Selector().LabelType() != cue.StringLabel || !w.sureAtEnd(name, g) {
			continue
		}
		t, _ := w.shape(iter.Value(), "outputs", name)
		if holds(t, pipeline.KindSecret) {
			pos, _ := w.all.value(w.path("outputs", name)...)
			d := diag(codeSecret, pos, "composition %q: output %q must not be a reference to a secret", w.name, name)
			d.Note = "which secrets a task can reach is decided by its own file"
			w.complain(d)
			continue
		}
		w.out.Outputs = append(w.out.Outputs, pipeline.Field{Name: name, Type: t, Doc: docOf(iter.Value())})
		w.refusePaths(fmt.Sprintf("composition %q: output %q", w.name, name), "outputs", name)
	}
	w.out.Returns = w.expr(v, "outputs")
}

// sureAtEnd reports whether an output of the composition reads only what is there
// whenever a run has succeeded.
func (w *work) sureAtEnd(name string, g *order) bool {
	for _, read := range w.readsAt("outputs", name) {
		p := w.task(read.task)
		if p == nil || p.broken {
			return false // said elsewhere
		}
		if p.spec.If == nil && !p.spec.Continue && g.conditional(p.name) == "" {
			continue
		}
		pos, _ := w.all.value(w.path("outputs", name)...)
		d := diag(codeMaySkip, pos, "composition %q: output %q reads task %q, which may have no outputs when the run succeeds: %s", w.name, name, p.name, g.whyAbsent(p))
		d.Help = "return what is always there, or let a task that always runs decide on the value"
		w.complain(d)
		return false
	}
	return true
}
