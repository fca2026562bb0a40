package plan

import (
	"cmp"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// line says of each run what it waits for and how long such runs took.
func line(runs []Run, f *Fleet) {
	if f == nil {
		return
	}
	past := make(map[pipeline.CompositionName]*History, len(f.History))
	for i := range f.History {
		past[f.History[i].Composition] = &f.History[i]
	}
	ahead := slices.Clone(f.Runs)
	for i := range runs {
		r := &runs[i]
		if h := past[r.Name]; h != nil {
			r.Waits, r.Takes = estimate(h.Waits), estimate(h.Durations)
		}
		if r.Composition.Concurrency == nil && r.Composition.MaxRunning == 0 {
			continue // it waits for nobody, and nobody for it
		}
		r.wait(ahead)
		if !r.Open && !r.Full {
			ahead = append(ahead, Unfinished{
				Composition: r.Name, Group: r.Group, State: pipeline.Pending, Waiting: len(r.Behind) > 0,
			})
		}
	}
}

// wait finds those of the unfinished runs that r waits for, or ends.
func (r *Run) wait(ahead []Unfinished) {
	c := r.Composition
	policy := pipeline.Queue
	if c.Concurrency != nil {
		policy = c.Concurrency.Policy
	}
	running, queued := 0, 0
	var same []RunName
	for _, u := range ahead {
		name := RunName{u.Composition, u.Number}
		if u.Composition == c.Name {
			if u.Waiting {
				queued++
			} else {
				running++
				same = append(same, name)
			}
		}
		if r.Group == "" || u.Group != r.Group {
			continue
		}
		switch {
		case policy == pipeline.CancelRunning, policy == pipeline.LatestOnly && u.Waiting:
			r.Cancels = append(r.Cancels, name)
		default:
			r.Behind = append(r.Behind, name)
		}
	}
	if c.MaxRunning > 0 && running >= c.MaxRunning {
		r.Behind = append(r.Behind, same...)
	}
	r.Behind, r.Cancels = inOrder(r.Behind), inOrder(r.Cancels)
	r.Full = c.MaxQueued > 0 && len(r.Behind) > 0 && queued >= c.MaxQueued
}

// inOrder sorts by name and number, a run of this plan last, and drops repetitions.
func inOrder(list []RunName) []RunName {
	slices.SortFunc(list, func(a, b RunName) int {
		return cmp.Or(cmp.Compare(a.Composition, b.Composition), cmp.Compare(uint(a.Number-1), uint(b.Number-1)))
	})
	return slices.Compact(list)
}

// estimate takes the nearest-rank percentiles.
func estimate(samples []time.Duration) Estimate {
	if len(samples) == 0 {
		return Estimate{}
	}
	s := slices.Sorted(slices.Values(samples))
	rank := func(percent int) pipeline.Duration { return pipeline.Duration(s[(len(s)*percent+99)/100-1]) }
	return Estimate{P50: rank(50), P90: rank(90), Of: len(s)}
}
