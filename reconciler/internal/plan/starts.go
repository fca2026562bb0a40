package plan

import (
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// otherwise says what starts a composition that has no trigger of the event's kind.
func (d *decision) otherwise(c *pipeline.Composition) string {
	var on, after, starts []string
	for i := range c.Triggers {
		t := &c.Triggers[i]
		if t.After != nil {
			after = append(after, string(t.After.Composition))
		} else {
			on = append(on, word(t.Kind()))
		}
	}
	if len(on) > 0 {
		starts = append(starts, "on "+some(on))
	}
	if len(after) > 0 {
		starts = append(starts, "after "+some(after))
	}
	if by := d.callers()[c.Name]; len(by) > 0 {
		starts = append(starts, "when "+some(by)+" calls it")
	}
	if len(starts) == 0 {
		return "; nothing starts it"
	}
	return "; it starts " + strings.Join(starts, ", ")
}

// some are different words, but for those that are too many.
func some(words []string) string {
	const most = 3
	var out []string
	for _, w := range words {
		if !slices.Contains(out, w) {
			out = append(out, w)
		}
	}
	if len(out) > most {
		out = append(out[:most-1], "others")
	}
	return either(out)
}

// callers are the compositions of the head that call each composition, when something
// failed too.
func (d *decision) callers() map[pipeline.CompositionName][]string {
	if d.calledBy != nil {
		return d.calledBy
	}
	d.calledBy = map[pipeline.CompositionName][]string{}
	for _, c := range byName(d.Head.Compositions) {
		for to := range callees(c) {
			d.calledBy[to] = append(d.calledBy[to], string(c.Name))
		}
	}
	return d.calledBy
}

// callees are the compositions that c names to be called.
func callees(c *pipeline.Composition) map[pipeline.CompositionName]bool {
	out := map[pipeline.CompositionName]bool{}
	if c.OnFailure != nil {
		out[c.OnFailure.Composition] = true
	}
	for i := range c.Tasks {
		if t := &c.Tasks[i]; t.Call != nil {
			out[t.Call.Composition] = true
		}
		if h := c.Tasks[i].OnFailure; h != nil {
			out[h.Composition] = true
		}
	}
	return out
}
