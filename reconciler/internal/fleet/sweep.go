package fleet

import (
	"context"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// sweepTime bounds one look at the record; the next sweep looks again.
const sweepTime = 30 * time.Second

// sweep does what no event triggers: records sightings, ends the sessions of
// revoked agents, asks again for log bytes that could not be taken.
func (f *Fleet) sweep() {
	ctx, cancel := context.WithTimeout(f.life, sweepTime)
	defer cancel()

	f.mu.Lock()
	seen := f.seen
	f.seen = map[pipeline.AgentID]time.Time{}
	live := make([]*session, 0, len(f.sessions))
	for _, s := range f.sessions {
		if s.live {
			live = append(live, s)
		}
	}
	resend := f.brokenLocked()
	f.mu.Unlock()

	for _, r := range resend {
		r.send()
	}
	if len(seen) > 0 {
		if err := f.cfg.Registry.TouchAgents(ctx, seen); err != nil && f.life.Err() == nil {
			f.cfg.Log.Warn("sightings of agents not recorded", "agents", len(seen), "err", err)
		}
	}
	for _, s := range live {
		a, err := f.cfg.Registry.Agent(ctx, s.agent.ID)
		switch {
		case fault.Is(err, fault.NotFound):
			s.refuse(notEnrolled(s.agent.ID))
		case err == nil && a.Revoked:
			s.refuse(revoked(s.agent.ID))
		case err != nil && f.life.Err() == nil:
			s.log.Warn("revocation not checked", "err", err)
		}
	}
}
