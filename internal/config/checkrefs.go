package config

import (
	"fmt"
	"slices"
	"strings"

	"cuelang.org/go/cue"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// A referrer is what a reference stands in: a task, or a part of the composition.
type referrer struct {
	// who completes the sentence "… refers to".
	who string
	// task is nil for a part of the composition.
	task *task
	// field of the task, "" outside of fields.
	field string
	// hook: it is looked at when something has failed, so it waits for nothing and
	// may refer to its own task.
	hook bool
	// early: the task does not run without it, as its condition.
	early bool
	// refused are the roots that it may not refer to, and why.
	refused map[string]string
	// trigger, when the reference stands in the params of one.
	trigger *pipeline.Trigger
}

// checkRefs looks at every reference that is written in the composition: to
// params, to the event, and to tasks and their outputs. CUE calls a misspelt one
// merely incomplete.
func (w *work) checkRefs() {
	for _, t := range w.tasks {
		who := fmt.Sprintf("task %q", t.name)
		seen := map[pipeline.Position]bool{}
		w.checkPart(referrer{who: who, task: t, hook: true}, seen, nil, "tasks", t.name, "onFailureRun")
		w.checkPart(referrer{who: who, task: t, early: true}, seen, nil, "tasks", t.name, "when")
		w.checkPart(referrer{who: who, task: t, early: true}, seen, nil, "tasks", t.name, "each")
		direct := w.directRefs(t)
		for _, name := range w.all.children(w.path("tasks", t.name, "fields")...) {
			w.checkPart(referrer{who: who, task: t, field: name}, seen, direct, "tasks", t.name, "fields", name)
		}
		w.checkPart(referrer{who: who, task: t}, seen, direct, "tasks", t.name)
	}
	who := func(part string) referrer { return referrer{who: fmt.Sprintf("composition %q: %s", w.name, part)} }
	w.checkPart(who("outputs"), map[pipeline.Position]bool{}, nil, "outputs")
	w.checkPart(who("onFailure"), map[pipeline.Position]bool{}, nil, "onFailure")
	group := who("the concurrency group")
	group.refused = map[string]string{"tasks": "it is decided before any task runs"}
	w.checkPart(group, map[pipeline.Position]bool{}, nil, "concurrency", "group")
}

// checkPart looks at the references below a path that were not looked at before.
func (w *work) checkPart(by referrer, seen map[pipeline.Position]bool, direct map[pipeline.Position]string, path ...string) {
	visit := func(c chain, _ spelling) { w.checkChain(by, c, direct, seen) }
	for _, p := range w.all.at(w.path(path...)...) {
		if p.value != nil {
			w.chainsIn(p.value, visit)
		}
		for _, g := range p.guards {
			w.chainsIn(g, visit)
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

func (w *work) checkChain(by referrer, c chain, direct map[pipeline.Position]string, seen map[pipeline.Position]bool) {
	last := c[len(c)-1]
	if seen[last.pos] || w.blamed[last.pos] {
		return
	}
	seen[last.pos] = true
	if why, no := by.refused[c[0].name]; no {
		d := diag(codeTooLate, c[0].pos, "%s refers to %s, which it must not", by.who, c[0].name)
		d.Note = why
		w.complain(d)
		return
	}
	if len(c) < 2 {
		return
	}
	name := c[1]
	switch c[0].name {
	case "params":
		if get(w.v, "params", name.name).Exists() || child(get(w.v, "params"), name.name).Exists() && w.declaresParam(name.name) {
			if f := w.param(name.name); f != nil && len(c) == 2 {
				w.checkSupplied(by, c, direct[last.pos], f.Type)
			}
			return
		}
		d := diag(codeParamRef, name.pos, "%s refers to param %q, which composition %q does not declare", by.who, name.name, w.name)
		w.complain(withHelp(d, didYouMean(name.name, fieldNames(get(w.v, "params")))))
	case "event":
		w.checkEventRef(by, c)
	case "tasks":
		w.checkTaskRef(by, c, direct[last.pos])
	}
}

// checkSupplied warns when what starts a run may give a value that the field which
// takes it does not.
func (w *work) checkSupplied(by referrer, c chain, field string, got pipeline.Type) {
	if by.task == nil || by.task.def == nil || field == "" || by.task.spec.BuiltIn() {
		return
	}
	f := by.task.def.field(field)
	if f == nil {
		return
	}
	want, err := compileType(f.value)
	if err != nil || !meets(want, got) || covers(want, got) || f.value.Subsume(get(w.v, "params", c[1].name), cue.Raw()) == nil {
		return
	}
	text := f.Type.Text
	if text == "" {
		text = want.String()
	}
	d := warn(codeUnproved, c[0].pos, "%s: field %q takes %s, which is %s: that it fits %s is checked when the task starts", by.who, field, c.text(), shown(got), text)
	d.Note = declaredAt(f.pos)
	if !strings.Contains(text, "#") {
		d.Help = fmt.Sprintf("declare the param as params: %s: %s, and a wrong value is refused before there is a run", quoteLabel(c[1].name), text)
	}
	w.complain(d)
}

func (w *work) declaresParam(name string) bool {
	return slices.Contains(fieldNames(get(w.v, "params")), name)
}

// checkEventRef looks at a reference to the event. What has no type of its own,
// the payload and the outputs of another run, is for the params of triggers: there
// it gets one.
func (w *work) checkEventRef(by referrer, c chain) {
	event := w.batch.schema().LookupPath(cue.ParsePath("#Event"))
	known, at, what := fieldNames(event), c[1], "event"
	if part := at.name; (part == "cause" || part == "pull") && len(c) > 2 {
		known, at, what = fieldNames(get(event, part)), c[2], "event."+part
	}
	if !slices.Contains(known, at.name) {
		d := diag(codeParamRef, at.pos, "%s refers to %s.%s, which no event has", by.who, what, at.name)
		d.Note = "an event has " + strings.Join(known, ", ")
		if what != "event" {
			d.Note = what + " has " + strings.Join(known, ", ")
		}
		w.complain(withHelp(d, didYouMean(at.name, known)))
		if by.task != nil {
			by.task.broken = true
		}
		return
	}
	untyped := at.name == "payload" || what == "event.cause" && at.name == "outputs"
	if !untyped {
		return
	}
	if by.trigger == nil {
		d := diag(codeParamRef, at.pos, "%s refers to %s.%s, which only the params of a trigger may", by.who, what, at.name)
		d.Note = "not every event has one, and a param has a type"
		d.Help = "declare a param and give it in the trigger: params: NAME: " + what + "." + at.name + ".NAME"
		w.complain(d)
		return
	}
	w.checkPayload(by, c)
}

// checkPayload compares a reference to the event's payload with what the webhook
// declares.
func (w *work) checkPayload(by referrer, c chain) {
	hook := by.trigger.Webhook
	switch {
	case c[1].name == "cause" && by.trigger.After == nil:
		d := diag(codeParamRef, c[2].pos, "%s refers to the outputs of another run, and follows none", by.who)
		d.Help = "only a trigger after: {composition: …} has them"
		w.complain(d)
	case c[1].name == "payload" && hook == nil:
		d := diag(codeParamRef, c[1].pos, "%s refers to event.payload, which only a webhook has", by.who)
		w.complain(d)
	case c[1].name == "payload" && len(c) > 2 && hook.Payload != nil && !hook.Payload.Open:
		if _, ok := fieldType(*hook.Payload, c[2].name); ok {
			return
		}
		var known []string
		for _, f := range hook.Payload.Fields {
			known = append(known, f.Name)
		}
		d := diag(codeParamRef, c[2].pos, "%s refers to event.payload.%s, which the webhook's payload does not have", by.who, c[2].name)
		d.Note = "it has " + strings.Join(known, ", ")
		w.complain(withHelp(d, didYouMean(c[2].name, known)))
	}
}

func (w *work) checkTaskRef(by referrer, c chain, direct string) {
	name := c[1]
	p := w.task(name.name)
	if p == nil {
		d := diag(codeTaskRef, name.pos, "%s refers to task %q, which composition %q does not have", by.who, name.name, w.name)
		w.complain(withHelp(d, didYouMean(name.name, w.taskNames())))
		if by.task != nil {
			by.task.broken = true
		}
		return
	}
	if p == by.task && len(c) > 2 && c[2].name == "each" {
		return // its own element
	}
	ref := taskRef{task: p.name, pos: name.pos, direct: direct, field: by.field, early: by.early}
	if len(c) > 2 && c[2].name != "outputs" {
		d := diag(codeOutputRef, c[2].pos, "%s refers to tasks.%s.%s, but only outputs of other tasks can be read", by.who, p.name, c[2].name)
		d.Help = "what two tasks share is written once beside them, as _" + c[len(c)-1].name + ": …, and both refer to that"
		if _, ok := p.outputs[c[2].name]; ok {
			d.Help = "write tasks." + quoteLabel(p.name) + ".outputs." + c[2:].text()
		}
		w.complain(withHelp(d, didYouMean(c[2].name, []string{"outputs"})))
		return
	}
	if p.fansOut {
		w.fannedOut(by, p, c)
		return
	}
	if len(c) > 3 {
		ref.output, ref.pos = c[3].name, c[3].pos
		if _, ok := p.outputs[ref.output]; !ok && p.def != nil {
			w.unknownOutput(by, p, c[3])
			return
		}
		if len(c) > 4 {
			ref.direct = "" // a part of an output: CUE knows its type
			if w.unknownPart(by, p, c) {
				return
			}
		}
	} else {
		ref.direct = ""
	}
	if by.task == nil || by.hook {
		return
	}
	t := by.task
	t.refs = append(t.refs, ref)
	if _, ok := t.edges[p.name]; !ok {
		t.edges[p.name] = edge{pos: ref.pos}
	}
}

// unknownPart reports a reference to a part that the struct of an output does not
// declare. CUE takes it for a value that is yet to come.
func (w *work) unknownPart(by referrer, p *task, c chain) bool {
	v := p.outputs[c[3].name]
	for i, at := range c[4:] {
		known := fieldNames(v)
		next := child(v, at.name)
		if next.Exists() || len(known) == 0 {
			v = next
			continue
		}
		d := diag(codeOutputRef, at.pos, "%s refers to tasks.%s, but %s has no %q", by.who, c[1:].text(), c[3:4+i].text(), at.name)
		d.Note = "it has " + strings.Join(known, ", ")
		w.complain(withHelp(d, didYouMean(at.name, known)))
		if by.task != nil {
			by.task.broken = true
		}
		return true
	}
	return false
}

func (w *work) fannedOut(by referrer, p *task, c chain) {
	d := diag(codeOutputRef, c[len(c)-1].pos, "%s refers to the outputs of task %q, which is one task for each element of a list", by.who, p.name)
	d.Note = fmt.Sprintf("they are tasks of their own, %s-1 and so on, and those beyond the list have no outputs", p.name)
	d.Help = fmt.Sprintf("wait for all of them with needs: [%q], and let them leave what is to be read where a later task finds it", p.name)
	w.complain(d)
	if by.task != nil {
		by.task.broken = true
	}
}

func (w *work) unknownOutput(by referrer, p *task, at link) {
	// CUE says the same of closed outputs; it is said once.
	w.res.Diagnostics = slices.DeleteFunc(w.res.Diagnostics, func(d pipeline.Diagnostic) bool {
		return d.Code == codeOutputRef && d.Pos.File == at.pos.File && d.Pos.Line == at.pos.Line && !strings.Contains(d.Message, "of task")
	})
	d := diag(codeOutputRef, at.pos, "%s refers to output %q of task %q, which does not have it", by.who, at.name, p.name)
	known := sortedKeys(p.outputs)
	switch {
	case len(known) > 0:
		d.Note = "its outputs are " + strings.Join(known, ", ")
	case p.def.openOutputs:
		d.Note = fmt.Sprintf("declare it on the task: outputs: %s: string", at.name)
	}
	w.complain(withHelp(d, didYouMean(at.name, known)))
	if by.task != nil {
		by.task.broken = true
	}
}
