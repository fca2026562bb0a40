package loop

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Waiting is a ready task and why no agent has it yet.
type Waiting struct {
	Run      *pipeline.Run
	Task     *pipeline.RunTask
	Blocked  bool
	Sentence string
}

// ask runs f in the loop's goroutine between two passes and waits for it.
func (l *Runs) ask(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case l.in <- message{ask: func() { f(); close(done) }}:
	case <-l.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-l.done:
		return fault.New(fault.Unavailable, "the control loop has ended")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Moment is what the loop knows just now and the record does not hold.
type Moment struct {
	// Queue holds the ready tasks in the order in which they will be placed.
	Queue []Waiting
	// Notes are what running tasks last said of themselves.
	Notes map[pipeline.AttemptID]pipeline.Note
	// Silent are the agents that have running tasks and do not answer, with when
	// they last did, or when this process began to wait for them.
	Silent map[pipeline.AgentID]time.Time
	// Names are what people call the agents.
	Names map[pipeline.AgentID]string
}

// Moment returns how things are between two passes. The queue is that of one run
// only when run is not "", and at most limit of its tasks are explained; the rest
// is left out.
func (l *Runs) Moment(ctx context.Context, run pipeline.RunID, limit int) (Moment, error) {
	m := Moment{Silent: map[pipeline.AgentID]time.Time{}, Names: map[pipeline.AgentID]string{}}
	err := l.ask(ctx, func() {
		m.Notes = l.notes.all()
		for id, a := range l.agents {
			m.Names[id] = a.Name
		}
		for id := range l.attempts {
			if a, ok := l.openAttempt(id); ok && a.State == pipeline.AttemptRunning && l.silent(a.Agent) {
				m.Silent[a.Agent] = l.agents[a.Agent].renewedAt.UTC()
			}
		}
		b := l.board()
		for _, it := range b.Queue() {
			if run != "" && it.Run.ID != run {
				continue
			}
			if len(m.Queue) == limit {
				return
			}
			w := b.Why(it.Run, it.Task)
			m.Queue = append(m.Queue, Waiting{it.Run, it.Task, w.Blocked, w.Sentence})
		}
	})
	if err != nil {
		return Moment{}, err
	}
	return m, nil
}

// offlineAfter is when people are told of an agent that is not connected: longer than
// agents take to come back to a server that was started again.
const offlineAfter = 3 * time.Second

// silent reports whether an agent that is known does not answer.
func (l *Runs) silent(id pipeline.AgentID) bool {
	a := l.agents[id]
	if a == nil {
		return false
	}
	quiet := time.Since(a.renewedAt)
	return quiet > StalledAfter || !a.connected && quiet > offlineAfter
}

// Active returns the unfinished runs, newest first, from memory. They are shared
// and never change: a run that moves is another value.
func (l *Runs) Active(ctx context.Context) ([]*pipeline.Run, error) {
	var out []*pipeline.Run
	err := l.ask(ctx, func() {
		out = make([]*pipeline.Run, 0, len(l.active))
		for _, ar := range l.active {
			out = append(out, ar.run)
		}
	})
	if err != nil {
		return nil, err // the loop may be at it still
	}
	slices.SortFunc(out, func(a, b *pipeline.Run) int { return -cmp.Compare(a.ID, b.ID) })
	return out, nil
}

// Connections returns when each connected agent last renewed.
func (l *Runs) Connections(ctx context.Context) (map[pipeline.AgentID]time.Time, error) {
	out := map[pipeline.AgentID]time.Time{}
	err := l.ask(ctx, func() {
		for id, a := range l.agents {
			if a.connected {
				out[id] = a.renewedAt
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
