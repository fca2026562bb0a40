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

func (w *work) paramNames() []string {
	var out []string
	for _, f := range w.out.Params {
		out = append(out, f.Name)
	}
	return out
}
