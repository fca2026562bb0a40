package web

import (
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/ui"
)

// timeline maps instants of a run to thousandths of its length.
type timeline struct {
	from, to time.Time
}

// whole is the width of the picture that a segment is placed in.
const whole = 1000

func newTimeline(run *pipeline.Run, now time.Time) timeline {
	l := timeline{from: run.CreatedAt, to: run.FinishedAt}
	if l.to.IsZero() {
		l.to = now
	}
	if l.to.Sub(l.from) < time.Second {
		l.to = l.from.Add(time.Second)
	}
	return l
}

func (l timeline) at(t time.Time) int {
	x := int(float64(t.Sub(l.from)) / float64(l.to.Sub(l.from)) * whole)
	return min(max(x, 0), whole)
}

// steps are the distances that the axis may have.
var steps = []time.Duration{
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 15 * time.Second, 30 * time.Second,
	time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour, 7 * 24 * time.Hour,
}

// mostTicks is how many labels fit beside each other.
const mostTicks = 5

func (l timeline) axis() []tick {
	length := l.to.Sub(l.from)
	step := steps[len(steps)-1]
	for _, s := range steps {
		if length/s <= mostTicks {
			step = s
			break
		}
	}
	var ticks []tick
	for d := time.Duration(0); d <= length && len(ticks) <= mostTicks; d += step {
		name := ui.Duration(d)
		if d == 0 {
			name = "0"
		}
		ticks = append(ticks, tick{name, l.at(l.from.Add(d))})
	}
	return ticks
}

// segments draws a task: waiting in the queue, being handed to an agent, running,
// and so again for each attempt. What the control plane does itself has none: a call
// runs, a gate or a wait waits.
func (l timeline) segments(t *pipeline.RunTask, attempts []pipeline.Attempt) []segment {
	var out []segment
	add := func(kind string, state pipeline.State, from, to time.Time) {
		if from.IsZero() {
			return
		}
		if to.IsZero() {
			to = l.to
		}
		if to.Before(from) {
			return
		}
		x := l.at(from)
		// A segment stays visible however short it was.
		w := max(l.at(to)-x, 3)
		x = min(x, whole-w)
		out = append(out, segment{Kind: kind, State: state, X: x, W: w, Title: kind + " " + ui.Duration(to.Sub(from))})
	}
	waitFrom := t.ReadyAt
	for _, a := range attempts {
		add("wait", "", waitFrom, a.OfferedAt)
		handed := a.StartedAt
		if handed.IsZero() {
			handed = a.FinishedAt
		}
		add("dispatch", "", a.OfferedAt, handed)
		if !a.StartedAt.IsZero() {
			add("run", outcomeOf(a, t), a.StartedAt, a.FinishedAt)
		}
		waitFrom = a.FinishedAt
	}
	switch {
	case t.State == pipeline.Ready:
		add("wait", "", waitFrom, time.Time{})
	case t.Spec.Call != nil:
		add("run", t.State, t.StartedAt, t.FinishedAt)
	case t.Spec.BuiltIn():
		add("wait", "", t.StartedAt, t.FinishedAt)
	}
	return out
}

// outcomeOf is the state that an attempt's run is drawn in.
func outcomeOf(a pipeline.Attempt, t *pipeline.RunTask) pipeline.State {
	switch {
	case a.Outcome != "":
		return a.Outcome
	case a.State == pipeline.AttemptLost && t.State == pipeline.InDoubt:
		return pipeline.InDoubt
	case a.State == pipeline.AttemptLost:
		return pipeline.Error
	}
	return pipeline.Running
}
