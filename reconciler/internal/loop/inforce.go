package loop

import (
	"slices"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// A run does what it was planned with, whatever later commits say. In which order and
// on which agents it does it is not part of that: limits, priorities and what tasks ask
// of agents go by the configuration in force, so that a change of them applies to what
// waits already. Runs of other branches go by what their branch says.

// force is the configuration in force, by name.
type force struct {
	cfg    *pipeline.Config
	byName map[pipeline.CompositionName]*pipeline.Composition
}

// lookAtForce takes up another configuration, and reports whether there was one.
func (l *Runs) lookAtForce() bool {
	if l.cfg.Live == nil {
		return false
	}
	cfg := l.cfg.Live()
	if cfg == nil || cfg == l.force.cfg {
		return false
	}
	l.force = force{cfg, make(map[pipeline.CompositionName]*pipeline.Composition, len(cfg.Compositions))}
	for i := range cfg.Compositions {
		l.force.byName[cfg.Compositions[i].Name] = &cfg.Compositions[i]
	}
	return true
}

// inForce returns what is in force of the run's composition, nil when that is just
// what the run was planned with, or nothing.
func (l *Runs) inForce(ar *activeRun) *pipeline.Composition {
	c := l.force.byName[ar.run.Composition]
	if c == nil || c.Digest == ar.of.Digest || !l.trusted(ar.run) {
		return nil
	}
	return c
}

// limited returns the run's composition with the limits in force.
func (l *Runs) limited(ar *activeRun) *pipeline.Composition {
	c := l.inForce(ar)
	if c == nil || c.MaxRunning == ar.of.MaxRunning && c.MaxQueued == ar.of.MaxQueued {
		return ar.of
	}
	of := *ar.of
	of.MaxRunning, of.MaxQueued = c.MaxRunning, c.MaxQueued
	return &of
}

// placed is a run as placement sees it, and what that was worked out from.
type placed struct {
	run *pipeline.Run
	of  *pipeline.Run
	by  *pipeline.Composition
}

// placed returns the run with the priorities and requirements in force.
func (l *Runs) placed(ar *activeRun) *pipeline.Run {
	c := l.inForce(ar)
	if c == nil {
		return ar.run
	}
	if ar.placed.of != ar.run || ar.placed.by != c {
		ar.placed = placed{asIn(ar.run, c), ar.run, c}
	}
	return ar.placed.run
}

// asIn returns the run with the priorities and requirements that c gives it.
func asIn(r *pipeline.Run, c *pipeline.Composition) *pipeline.Run {
	out := r.Clone()
	out.Priority = c.Priority
	for i := range out.Tasks {
		t := &out.Tasks[i]
		now := c.Task(t.Name)
		if now == nil || t.State.Terminal() || t.State.Active() {
			continue
		}
		t.Spec.Priority = now.Priority
		// Who has begun to read files goes on where they are.
		if !slices.ContainsFunc(t.Spec.Pins, func(n pipeline.TaskName) bool { return r.Task(n) != nil && r.Task(n).Agent != "" }) {
			t.Spec.Requirement = now.Requirement
		}
	}
	return out
}
