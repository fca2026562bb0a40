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

// Queue returns the ready tasks in the order in which they will be placed, each
// with why it waits; those of one run only when run is not "". At most limit are
// explained; the rest is left out.
func (l *Runs) Queue(ctx context.Context, run pipeline.RunID, limit int) ([]Waiting, error) {
	var out []Waiting
	err := l.ask(ctx, func() {
		b := l.board()
		for _, it := range b.Queue() {
			if run != "" && it.Run.ID != run {
				continue
			}
			if len(out) == limit {
				return
			}
			w := b.Why(it.Run, it.Task)
			out = append(out, Waiting{it.Run, it.Task, w.Blocked, w.Sentence})
		}
	})
	return out, err
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
	slices.SortFunc(out, func(a, b *pipeline.Run) int { return -cmp.Compare(a.ID, b.ID) })
	return out, err
}

// Note returns what a running task last said of itself, or "".
func (l *Runs) Note(ctx context.Context, id pipeline.AttemptID) (string, error) {
	var s string
	err := l.ask(ctx, func() { s = l.notes[id] })
	return s, err
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
	return out, err
}
