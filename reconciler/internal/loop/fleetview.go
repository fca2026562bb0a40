package loop

import (
	"context"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// Fleet returns the agents and the unfinished runs as a plan sees them, between two
// passes.
func (l *Runs) Fleet(ctx context.Context) (*plan.Fleet, error) {
	f := &plan.Fleet{}
	err := l.ask(ctx, func() {
		now := time.Now()
		seats := l.board().Seats()
		for id, a := range l.agents {
			if a.Revoked {
				continue
			}
			_, busy := seats[id]
			f.Agents = append(f.Agents, plan.Agent{
				ID: id, Name: a.Name, Pool: a.Pool, Untrusted: a.Untrusted, Facts: a.facts,
				Online: a.connected && !a.stalled(now), Busy: busy,
			})
		}
		for _, ar := range l.active {
			r := ar.run
			f.Runs = append(f.Runs, plan.Unfinished{
				Run: r.ID, Composition: r.Composition, Number: r.Number, Group: r.Group, State: r.State,
				Waiting: len(r.Behind) > 0 || r.State == pipeline.Pending && r.StartedAt.IsZero(),
			})
		}
	})
	if err != nil {
		return nil, err // the loop may be at it still
	}
	return f, nil
}
