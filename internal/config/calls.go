package config

import (
	"fmt"
	"slices"

	"cuelang.org/go/cue"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// A call is one place where a composition names another one. Whether it fits is
// judged when the results of all units are there.
type call struct {
	Kind callKind                 `json:"kind"`
	From pipeline.CompositionName `json:"from"`
	// Target is the other one, named at Pos.
	Target pipeline.CompositionName `json:"target"`
	Task   pipeline.TaskName        `json:"task,omitempty"`
	Pos    pipeline.Position        `json:"pos"`
	// Given are the params that it gives; Whole: there may be others, which are not
	// written out.
	Given []given `json:"given,omitempty"`
	Whole bool    `json:"whole,omitempty"`
	// Reads are the outputs that it reads.
	Reads []given `json:"reads,omitempty"`
	// Same: it waits for the run of its own commit.
	Same bool `json:"same,omitempty"`
}

type callKind string

const (
	callTask  callKind = "call"
	callHook  callKind = "hook"
	callWait  callKind = "wait"
	callAfter callKind = "after"
)

// given is a value that passes between compositions.
type given struct {
	Name string            `json:"name"`
	Type pipeline.Type     `json:"type"`
	Pos  pipeline.Position `json:"pos"`
	// Loose: the type is wider than what is written, so that it does not fit proves
	// nothing.
	Loose bool `json:"loose,omitempty"`
	// MayLack: it is left out when what it reads was never reported.
	MayLack bool `json:"may_lack,omitempty"`
}

func (w *work) call(c call) {
	c.From = w.out.Name
	w.res.Calls = append(w.res.Calls, c)
}

// given are the values of a struct of params; whole means that there may be more
// than can be seen.
func (w *work) given(v cue.Value, path ...string) (out []given, whole bool) {
	if !v.Exists() {
		return nil, false
	}
	iter, err := v.Fields()
	if err != nil {
		return nil, true
	}
	for iter.Next() {
		name := iter.Selector().Unquoted()
		at := append(append([]string{}, path...), name)
		pos, _ := w.all.value(w.path(at...)...)
		t, exact := w.shape(iter.Value(), at...)
		out = append(out, given{Name: name, Type: t, Pos: pos, Loose: !exact})
	}
	for n := range path {
		for _, p := range w.all.at(w.path(path[:n+1]...)...) {
			whole = whole || len(reaches(looseParts(p.value)...)) > 0
		}
	}
	return out, whole
}

// refusePaths reports values for another run that read a path of this one.
func (w *work) refusePaths(who string, path ...string) {
	for _, read := range w.readsAt(path...) {
		p := w.task(read.task)
		if p == nil {
			continue
		}
		for name, v := range p.outputs {
			t, err := compileType(v)
			if err != nil || !holds(t, pipeline.KindPath) || read.output != "" && read.output != name {
				continue
			}
			pos, _ := w.all.value(w.path(path...)...)
			d := diag(codePin, pos, "%s hands on output %q of task %q, which is a path", who, name, read.task)
			d.Note = "a path is good in its own run only: another run has another workspace, maybe on another agent"
			d.Help = "hand on what finds the file again, such as the address that it was published at"
			w.complain(d)
			return
		}
	}
}

// readHook reads a composition that is called when something has failed.
func (w *work) readHook(v cue.Value, task pipeline.TaskName, path ...string) *pipeline.Hook {
	if !v.Exists() || v.IncompleteKind() != cue.StructKind {
		return nil
	}
	at := append(append([]string{}, path...), "composition")
	name := text(get(v, "composition"))
	if !w.knownAt(at...) || name == "" {
		return nil
	}
	h := &pipeline.Hook{Composition: pipeline.CompositionName(name)}
	h.Pos, _ = w.all.value(w.path(at...)...)
	with := append(append([]string{}, path...), "with")
	if params := get(v, "with"); params.Exists() {
		h.Params = w.expr(params, with...)
	}
	who := fmt.Sprintf("composition %q: onFailure", w.name)
	if task != "" {
		who = fmt.Sprintf("task %q: onFailureRun", task)
	}
	w.refusePaths(who, with...)
	c := call{Kind: callHook, Target: h.Composition, Task: task, Pos: h.Pos}
	c.Given, c.Whole = w.given(get(v, "with"), with...)
	w.call(c)
	return h
}

// mayLack marks what hooks give and may have to leave out.
func (w *work) mayLack(g *order) {
	for i := range w.res.Calls {
		c := &w.res.Calls[i]
		if c.From != w.out.Name || c.Kind != callHook {
			continue
		}
		path := []string{"onFailure", "with"}
		t := w.task(string(c.Task))
		if t != nil {
			path = []string{"tasks", t.name, "onFailureRun", "with"}
		}
		for j := range c.Given {
			for _, read := range w.readsAt(append(slices.Clone(path), c.Given[j].Name)...) {
				p := w.task(read.task)
				sure := t != nil && p != nil && p != t && !p.fansOut && t.when() == pipeline.OnSuccess && g.certain(t, p) && g.before(t.name)[p.name]
				c.Given[j].MayLack = c.Given[j].MayLack || !sure
			}
		}
	}
}
