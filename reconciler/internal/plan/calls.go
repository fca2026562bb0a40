package plan

import (
	"cmp"
	"slices"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// calls says of each run what it calls, and which gates hold it on the way.
func (p *Plan) calls(cfg *pipeline.Config) {
	for i := range p.Runs {
		r := &p.Runs[i]
		r.Gates = gates(r.Composition, "")
		r.Calls = called(cfg, r.Composition)
		for _, name := range r.Calls {
			r.Gates = append(r.Gates, gates(cfg.Composition(name), name)...)
		}
	}
}

// Called are the compositions that the runs call, and those that they call, by name.
func (p *Plan) Called() []pipeline.CompositionName {
	var out []pipeline.CompositionName
	for i := range p.Runs {
		out = append(out, p.Runs[i].Calls...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// called returns the compositions that c calls, and those that they call, by name.
// Hooks are left out: they run only when something fails.
func called(cfg *pipeline.Config, c *pipeline.Composition) []pipeline.CompositionName {
	seen := map[pipeline.CompositionName]bool{c.Name: true}
	var out []pipeline.CompositionName
	for next := []*pipeline.Composition{c}; len(next) > 0; next = next[1:] {
		for i := range next[0].Tasks {
			call := next[0].Tasks[i].Call
			if call == nil || seen[call.Composition] {
				continue
			}
			seen[call.Composition] = true
			if other := cfg.Composition(call.Composition); other != nil {
				out, next = append(out, call.Composition), append(next, other)
			}
		}
	}
	slices.Sort(out)
	return out
}

func gates(c *pipeline.Composition, name pipeline.CompositionName) []Held {
	var out []Held
	for i := range c.Tasks {
		if t := &c.Tasks[i]; t.Gate != nil {
			out = append(out, Held{name, t.Name, t.Gate.Approvers, max(t.Gate.Count, 1)})
		}
	}
	slices.SortFunc(out, func(a, b Held) int { return cmp.Compare(a.Task, b.Task) })
	return out
}
