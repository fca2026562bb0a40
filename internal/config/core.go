package config

import (
	"encoding/json"
	"fmt"
	"slices"

	"cuelang.org/go/cue"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// coreDefinitions are the tasks that the control plane runs itself.
var coreDefinitions = []string{"#Approval", "#Run", "#WaitFor"}

const (
	coreRun      = "core/run"
	coreApproval = "core/approval"
	coreWaitFor  = "core/wait-for"
)

// core reads the built-in tasks from the schema, as if it were a plugin's manifest.
func (b *batch) core() *manifest {
	const key = "core:" // no directory is called so
	if m := b.plugins[key]; m != nil {
		return m
	}
	m := &manifest{name: string(pipeline.CorePlugin), defs: map[string]*definition{}}
	for _, name := range coreDefinitions {
		v := b.schema().LookupPath(cue.ParsePath(name))
		m.readDefinition(name, text(get(v, "uses")), v)
	}
	b.plugins[key] = m
	return m
}

// forAgents are the parts of a task that speak to an agent.
var forAgents = []string{"agent", "effect", "lostAfter", "retries", "startTimeout", "timeout"}

// readBuiltIn reads what the control plane does for a built-in task.
func (w *work) readBuiltIn(t *task) {
	if t.broken || t.spec.Plugin != pipeline.CorePlugin {
		return
	}
	for _, name := range forAgents {
		path := w.path("tasks", t.name, name)
		if len(w.all.at(path...)) == 0 || name == "timeout" && t.spec.Uses == coreRun {
			continue
		}
		pos, _ := w.all.label(path...)
		d := diag(codeField, pos, "task %q (%s) must not have %q: it runs in the control plane, on no agent", t.name, t.spec.Uses, name)
		switch {
		case name == "timeout" && t.spec.Uses == coreApproval:
			d.Help = `write fields: expire: "24h"`
		case name == "timeout":
			d.Help = `write fields: within: "1h"`
		}
		w.complain(d)
	}
	fields := get(t.v, "fields")
	switch t.spec.Uses {
	case coreRun:
		w.readCall(t, fields)
	case coreApproval:
		w.readGate(t, fields)
	case coreWaitFor:
		w.readWait(t, fields)
	}
}

// static reports whether a field of a built-in task is known when the commit is
// planned, as what is called must be.
func (w *work) static(t *task, names ...string) bool {
	ok := true
	for _, name := range names {
		if !t.deferred[name] {
			continue
		}
		ok = false
		pos, _ := w.all.value(w.path("tasks", t.name, "fields", name)...)
		d := diag(codeTooLate, pos, "task %q: field %q must be known when the commit is planned", t.name, name)
		d.Note = "which compositions call each other, and who approves, is part of the plan"
		w.complain(d)
	}
	t.broken = t.broken || !ok
	return ok
}

func (w *work) readCall(t *task, fields cue.Value) {
	if !w.static(t, "composition", "wait") {
		return
	}
	name := text(get(fields, "composition"))
	t.spec.Call = &pipeline.Call{Composition: pipeline.CompositionName(name), Join: flag(get(fields, "wait"))}
	t.spec.Fields = callFields(t.spec.Fields)
	if t.spec.Deferred {
		t.spec.Fields = nil
	}
	pos, _ := w.all.value(w.path("tasks", t.name, "fields", "composition")...)
	c := call{Kind: callTask, Target: t.spec.Call.Composition, Task: t.spec.Name, Pos: pos}
	c.Given, c.Whole = w.given(get(fields, "with"), "tasks", t.name, "fields", "with")
	w.refusePaths(fmt.Sprintf("task %q", t.name), "tasks", t.name, "fields", "with")
	t.spec.Outputs.Open = false // the rest of what is returned is dropped
	if t.spec.Call.Join {
		c.Reads = w.declaredOutputs(t)
	} else if !w.onlyRun(t) {
		return
	}
	w.call(c)
}

// callFields is what a call's fields are to those who run it: the params that it
// gives. The rest of them is in the plan.
func callFields(raw json.RawMessage) json.RawMessage {
	var fields struct {
		With json.RawMessage `json:"with"`
	}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &fields); err != nil {
			return raw // it was made as JSON
		}
	}
	out, err := json.Marshal(map[string]json.RawMessage{"params": orObject(fields.With)})
	if err != nil {
		return raw
	}
	return out
}

// declaredOutputs are the outputs of a called composition that its caller says it reads.
func (w *work) declaredOutputs(t *task) []given {
	var out []given
	for _, f := range t.spec.Outputs.Fields {
		pos, _ := w.all.label(w.path("tasks", t.name, "outputs", f.Name)...)
		out = append(out, given{Name: f.Name, Type: f.Type, Pos: pos})
	}
	return out
}

// onlyRun checks the outputs of a call that does not wait: nobody knows those of
// the called run yet.
func (w *work) onlyRun(t *task) bool {
	ok := true
	for _, f := range t.spec.Outputs.Fields {
		if f.Name == "run" && f.Type.Kind == pipeline.KindString {
			continue
		}
		ok = false
		pos, _ := w.all.label(w.path("tasks", t.name, "outputs", f.Name)...)
		d := diag(codeOutputForm, pos, "task %q has no output %q: it does not wait for the run that it calls", t.name, f.Name)
		d.Note = "its only output is the called run, as outputs: run: string"
		d.Help = "leave out wait: false"
		w.complain(d)
	}
	return ok
}

func (w *work) readGate(t *task, fields cue.Value) {
	if !w.static(t, "approvers", "count", "expire", "sha_echo") {
		return
	}
	g := &pipeline.Gate{Count: number(get(fields, "count"), 1), Echo: flag(get(fields, "sha_echo"))}
	g.Expire = w.duration(get(fields, "expire"), "tasks", t.name, "fields", "expire")
	if list := get(fields, "approvers"); list.Exists() {
		_ = decode(list, &g.Approvers) // a list of names, checked by CUE
	}
	t.spec.Gate = g
	w.mentionGroups(g.Approvers, g.Count, fmt.Sprintf("task %q", t.name), w.path("tasks", t.name, "fields", "approvers"))
}

func (w *work) readWait(t *task, fields cue.Value) {
	if !w.static(t, "composition", "commit", "result", "within") {
		return
	}
	t.spec.Wait = &pipeline.WaitFor{
		Composition: pipeline.CompositionName(text(get(fields, "composition"))),
		AnyCommit:   text(get(fields, "commit")) == "any",
		AnyResult:   text(get(fields, "result")) == "any",
		Within:      w.duration(get(fields, "within"), "tasks", t.name, "fields", "within"),
	}
	pos, _ := w.all.value(w.path("tasks", t.name, "fields", "composition")...)
	w.call(call{Kind: callWait, Target: t.spec.Wait.Composition, Task: t.spec.Name, Pos: pos, Same: !t.spec.Wait.AnyCommit})
}

// mentionGroups records the groups that are to approve, to be compared with the policy.
func (c *checker) mentionGroups(groups []string, count int, who string, path []string) {
	for i, name := range groups {
		pos, exact := c.all.value(append(slices.Clone(path), itoa(i))...)
		if !exact {
			pos, _ = c.all.value(path...)
		}
		c.res.Groups = append(c.res.Groups, groupUse{Name: name, Who: who, Pos: pos})
	}
	if len(groups) > 0 {
		pos, _ := c.all.value(path...)
		c.res.Groups = append(c.res.Groups, groupUse{All: groups, Count: count, Who: who, Pos: pos})
	}
}
