package plan

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// breaks finds the uses of plugins that a changed manifest does not allow: the
// compositions that the head lacks because their folder has errors, as they are in
// the base, against the manifests of the head.
func (p *Plan) breaks(in *Input) {
	if in.Base == nil || in.Base == in.Head {
		return
	}
	changed := map[pipeline.PluginName]bool{}
	for i := range p.Changes {
		if c := &p.Changes[i]; c.Kind == KindPlugin && c.Op != Added {
			changed[pipeline.PluginName(c.Name)] = true
		}
	}
	if len(changed) == 0 {
		return
	}
	for _, c := range byName(in.Base.Compositions) {
		if in.Head.Composition(c.Name) != nil || !broken(in.Head, c.Unit) {
			continue
		}
		for i := range c.Tasks {
			if t := &c.Tasks[i]; changed[t.Plugin] {
				p.Breaks = append(p.Breaks, use{in, c, t}.breaks()...)
			}
		}
	}
	slices.SortFunc(p.Breaks, func(a, b Break) int {
		return cmp.Or(cmp.Compare(a.Plugin, b.Plugin), cmp.Compare(a.Composition, b.Composition), cmp.Compare(a.Task, b.Task), cmp.Compare(a.Field, b.Field))
	})
}

func broken(cfg *pipeline.Config, unit string) bool {
	return slices.ContainsFunc(cfg.Diagnostics, func(d pipeline.Diagnostic) bool {
		return d.Severity == pipeline.SeverityError && (d.Unit == unit || d.Unit == "")
	})
}

// use is a task that uses a changed plugin.
type use struct {
	in *Input
	c  *pipeline.Composition
	t  *pipeline.Task
}

func (u use) breaks() []Break {
	was, is := definition(u.in.Base, u.t), definition(u.in.Head, u.t)
	switch {
	case was == nil:
		return nil
	case u.in.Head.Plugin(u.t.Plugin) == nil:
		return []Break{u.at("", "plugin %s is gone", u.t.Plugin)}
	case is == nil:
		return []Break{u.at("", "plugin %s has no task %s%s", u.t.Plugin, was.Name, offers(u.in.Head.Plugin(u.t.Plugin)))}
	}
	return append(u.fields(was, is), u.outputs(was, is)...)
}

func definition(cfg *pipeline.Config, t *pipeline.Task) *pipeline.PluginTask {
	p := cfg.Plugin(t.Plugin)
	if p == nil {
		return nil
	}
	_, name, _ := strings.Cut(t.Uses, "/")
	for i := range p.Tasks {
		if p.Tasks[i].Name == name {
			return &p.Tasks[i]
		}
	}
	return nil
}

func offers(p *pipeline.Plugin) string {
	var names []string
	for _, t := range p.Tasks {
		names = append(names, t.Name)
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return "; it has " + strings.Join(names, ", ")
}

func (u use) at(field, format string, args ...any) Break {
	pos := u.t.Pos
	if p, ok := u.t.Places["fields."+field]; ok {
		pos = p
	}
	return Break{Plugin: u.t.Plugin, Composition: u.c.Name, Task: u.t.Name, Field: field, Why: fmt.Sprintf(format, args...), Pos: pos}
}

// fields checks what the task sets against what the manifest takes, and what the
// manifest asks for in addition.
func (u use) fields(was, is *pipeline.PluginTask) []Break {
	var out []Break
	set := map[string]json.RawMessage{}
	if len(u.t.Fields) > 0 && json.Unmarshal(u.t.Fields, &set) != nil {
		return nil
	}
	for name := range u.t.Open {
		set[name] = nil
	}
	for _, b := range u.t.Bindings {
		set[b.Field] = nil
	}
	for name, value := range set {
		f := field(is.Fields, name)
		old := field(was.Fields, name)
		switch {
		case f == nil && old != nil && old.Default != nil && string(old.Default) == string(value):
			// A default that the old manifest filled in, and that nobody wrote.
		case f == nil:
			out = append(out, u.at(name, "%s has no field %s", u.t.Uses, name))
		case value != nil:
			if wrong := f.Type.CheckJSON(value); len(wrong) > 0 && !(old != nil && string(old.Default) == string(value)) {
				out = append(out, u.at(name, "%s", strings.Join(wrong, "; ")))
			}
		case old != nil && !sameType(old.Type, f.Type):
			out = append(out, u.at(name, "field %s was %s and is %s", name, old.Type, f.Type))
		}
	}
	for _, f := range is.Fields {
		old := field(was.Fields, f.Name)
		_, there := set[f.Name]
		if !there && !f.Optional && f.Default == nil && (old == nil || old.Optional || old.Default != nil) {
			out = append(out, u.at(f.Name, "%s needs field %s (%s)", u.t.Uses, f.Name, f.Type))
		}
	}
	return out
}

// outputs checks what other tasks read of this one.
func (u use) outputs(was, is *pipeline.PluginTask) []Break {
	var out []Break
	for _, old := range was.Outputs {
		f := field(is.Outputs, old.Name)
		if f != nil && sameType(f.Type, old.Type) {
			continue
		}
		for i := range u.c.Tasks {
			reader := &u.c.Tasks[i]
			name, reads := readsOutput(reader, u.t.Name, old.Name)
			if !reads {
				continue
			}
			b := use{u.in, u.c, reader}.at(name, "task %s has no output %s", u.t.Name, old.Name)
			if f != nil {
				b.Why = fmt.Sprintf("output %s of task %s was %s and is %s", old.Name, u.t.Name, old.Type, f.Type)
			}
			b.Plugin = u.t.Plugin
			out = append(out, b)
		}
	}
	return out
}

// readsOutput returns the field of t that reads an output of another task.
func readsOutput(t *pipeline.Task, from pipeline.TaskName, output string) (string, bool) {
	for _, b := range t.Bindings {
		if b.From == from && b.Output == output {
			return b.Field, true
		}
	}
	for name, x := range t.Open {
		if slices.Contains(x.Reads, from) && strings.Contains(x.Text, "tasks."+string(from)+".outputs."+output) {
			return name, true
		}
	}
	return "", false
}

func field(list []pipeline.Field, name string) *pipeline.Field {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

func sameType(a, b pipeline.Type) bool { return string(a.AppendKey(nil)) == string(b.AppendKey(nil)) }
