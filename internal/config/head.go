package config

import (
	"cuelang.org/go/cue"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// readHead reads what a composition says apart from its tasks.
func (w *work) readHead() {
	if !w.known(w.v, []string{"description", "priority", "timeout", "suspend", "agent"}) {
		return
	}
	w.out.Description = text(get(w.v, "description"))
	w.out.Priority = number(get(w.v, "priority"), 50)
	w.out.Timeout = w.duration(get(w.v, "timeout"), "timeout")
	w.out.Suspend = flag(get(w.v, "suspend"))
}

func (w *work) readParams() {
	params := get(w.v, "params")
	if !params.Exists() {
		return
	}
	iter, err := params.Fields(cue.Optional(true))
	if err != nil {
		return
	}
	for iter.Next() {
		if iter.Selector().LabelType() != cue.StringLabel || iter.Selector().ConstraintType() == cue.PatternConstraint {
			continue
		}
		name := iter.Selector().Unquoted()
		pos, _ := w.all.label(w.path("params", name)...)
		if w.paramTooLate(name) || !keyRE.MatchString(name) { // CUE has refused the name
			continue
		}
		f, err := compileField(iter, 0)
		if err != nil {
			w.complain(diag(codeTypeForm, pos, "composition %q: the type of param %q cannot be checked when a run starts: %s", w.name, name, err))
			continue
		}
		if f.Default != nil {
			f.Optional = false
		}
		if holds(f.Type, pipeline.KindSecret) {
			d := diag(codeTypeForm, pos, "composition %q: param %q must not be a reference to a secret", w.name, name)
			d.Note = "which secrets a task can reach is decided by the file, not by who starts a run"
			w.complain(d)
			continue
		}
		w.out.Params = append(w.out.Params, f)
	}
}

func (w *work) paramTooLate(name string) bool {
	late := false
	for _, p := range w.all.at(w.path("params", name)...) {
		if p.value != nil && len(reaches(p.value)) > 0 {
			w.complain(diag(codeTooLate, position(p.value.Pos()), "composition %q: param %q must not refer to params, event or tasks", w.name, name))
			late = true
		}
	}
	return late
}

func (w *work) param(name string) *pipeline.Field {
	for i := range w.out.Params {
		if w.out.Params[i].Name == name {
			return &w.out.Params[i]
		}
	}
	return nil
}

func (w *work) readTriggers() {
	list := get(w.v, "triggers")
	for i := 0; ; i++ {
		v := list.LookupPath(cue.MakePath(cue.Index(i)))
		if !v.Exists() {
			return
		}
		w.readTrigger(i, v)
	}
}

func (w *work) readTrigger(i int, v cue.Value) {
	at := w.path("triggers", itoa(i))
	var t pipeline.Trigger
	t.Pos, _ = w.all.label(at...)
	for _, p := range w.all.at(at...) {
		if len(reaches(p.value)) > 0 {
			d := diag(codeTooLate, w.firstRef(p.value), "composition %q: a trigger must be known when the commit is planned", w.name)
			d.Help = "tasks can refer to the event themselves"
			w.complain(d)
			return
		}
	}
	if err := v.Validate(cue.Concrete(true)); err != nil {
		if v.Validate() == nil { // else it has been reported
			w.complain(w.x.errors(err)...)
		}
		return
	}
	push := get(v, "push")
	if !push.Exists() {
		d := diag(codeRequired, t.Pos, "composition %q: the trigger says no event", w.name)
		d.Help = `write {push: {branches: ["main"]}}`
		w.complain(d)
		return
	}
	var p pipeline.PushTrigger
	if err := decode(push, &p); err != nil {
		return // validated as concrete; anything else was reported
	}
	if p.Repo != "" {
		pos, _ := w.all.value(append(at, "push", "repo")...)
		d := diag(codeSourceRepo, pos, "composition %q: pushes to %q start nothing: only this repository is watched", w.name, plain(p.Repo))
		d.Note = "pushes to other repositories cannot start runs yet"
		d.Help = "leave repo out: the push is then one to this repository"
		w.complain(d)
		return
	}
	t.Push = &p
	given := map[string]bool{}
	if params := get(v, "params"); params.Exists() {
		w.triggerParams(i, params, given)
		t.Params.Value, _ = params.MarshalJSON() // validated as concrete
	}
	for _, f := range w.out.Params {
		if !given[f.Name] && f.Default == nil && !f.Optional {
			d := diag(codeRequired, t.Pos, "composition %q: the trigger does not give param %q", w.name, f.Name)
			d.Help = "add params: " + f.Name + ": " + f.Type.String() + " to the trigger, or give the param a default"
			w.complain(d)
		}
	}
	w.out.Triggers = append(w.out.Triggers, t)
}

func (w *work) triggerParams(i int, params cue.Value, given map[string]bool) {
	iter, err := params.Fields()
	if err != nil {
		return
	}
	for iter.Next() {
		name := iter.Selector().Unquoted()
		given[name] = true
		pos, _ := w.all.value(w.path("triggers", itoa(i), "params", name)...)
		f := w.param(name)
		if f == nil {
			w.complain(withHelp(diag(codeParamRef, pos, "composition %q has no param %q", w.name, name), didYouMean(name, w.paramNames())))
			continue
		}
		raw, err := iter.Value().MarshalJSON()
		if err != nil {
			continue // validated as concrete
		}
		if bad := f.Type.CheckJSON(raw); len(bad) > 0 {
			d := diag(codeValue, pos, "composition %q: param %q: %s", w.name, name, plain(bad[0]))
			d.Note = "it is declared as " + f.Type.String()
			w.complain(d)
		}
	}
}

func (w *work) paramNames() []string {
	var out []string
	for _, f := range w.out.Params {
		out = append(out, f.Name)
	}
	return out
}
