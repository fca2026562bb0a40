package plan

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// firings compares the cron triggers of base and head. What is in both goes on as it
// was; what is left on both sides of one composition is one that moves.
func (p *Plan) firings(in *Input) {
	if in.Base == in.Head {
		return
	}
	base := cmp.Or(in.Base, &pipeline.Config{})
	before, after := clocks(base), clocks(in.Head)
	for _, c := range both(before, after) {
		if was := base.Composition(c); was != nil && in.Head.Composition(c) == nil && broken(in.Head, was.Unit) {
			continue
		}
		old, now := left(before[c], after[c]), left(after[c], before[c])
		for i := range max(len(old), len(now)) {
			f := Firing{Composition: c, Op: Changed}
			if i < len(old) {
				f.Old, f.Was = old[i].String(), next(old[i], in.Now)
			} else {
				f.Op = Added
			}
			if i < len(now) {
				f.New, f.Next = now[i].String(), next(now[i], in.Now)
			} else {
				f.Op = Removed
			}
			p.Firings = append(p.Firings, f)
		}
	}
}

// clock is a cron trigger.
type clock struct{ schedule, zone string }

func (c clock) String() string {
	return c.schedule + " " + cmp.Or(c.zone, "UTC")
}

// clocks are the cron triggers of each composition that is not suspended, sorted.
func clocks(cfg *pipeline.Config) map[pipeline.CompositionName][]clock {
	out := map[pipeline.CompositionName][]clock{}
	for i := range cfg.Compositions {
		c := &cfg.Compositions[i]
		for _, t := range c.Triggers {
			if t.Cron != nil && !c.Suspend {
				out[c.Name] = append(out[c.Name], clock{strings.Join(strings.Fields(t.Cron.Schedule), " "), t.Cron.Zone})
			}
		}
		slices.SortFunc(out[c.Name], func(a, b clock) int {
			return cmp.Or(cmp.Compare(a.schedule, b.schedule), cmp.Compare(a.zone, b.zone))
		})
	}
	return out
}

func both[T any](a, b map[pipeline.CompositionName][]T) []pipeline.CompositionName {
	var out []pipeline.CompositionName
	for _, m := range []map[pipeline.CompositionName][]T{a, b} {
		for c := range m {
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// left returns what of list is not in other, one for one.
func left[T comparable](list, other []T) []T {
	other = slices.Clone(other)
	var out []T
	for _, c := range list {
		if i := slices.Index(other, c); i >= 0 {
			other = slices.Delete(other, i, i+1)
		} else {
			out = append(out, c)
		}
	}
	return out
}

// next are the three next firings after now.
func next(c clock, now time.Time) []time.Time {
	s, err := pipeline.ParseSchedule(c.schedule, c.zone)
	if err != nil {
		return nil
	}
	var out []time.Time
	for range 3 {
		if now = s.Next(now); now.IsZero() {
			break
		}
		out = append(out, now)
	}
	return out
}
