package fleet

import (
	"context"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// sweepTime bounds one look at the record; the next sweep looks again.
const sweepTime = 30 * time.Second

// sightEvery is how many sweeps there are for one record of sightings: with 5 s
// between them one in 30 s, which costs a thousand agents little.
const sightEvery = 6

// sweep does what no event triggers: records sightings, ends the sessions of
// revoked agents, asks again for log bytes that could not be taken.
func (f *Fleet) sweep() {
	ctx, cancel := context.WithTimeout(f.life, sweepTime)
	defer cancel()

	f.mu.Lock()
	seen := f.sightingsLocked()
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
	if len(live) == 0 {
		return
	}
	admitted, err := f.cfg.Registry.Admitted(ctx)
	if err != nil {
		if f.life.Err() == nil {
			f.cfg.Log.Warn("revocations not checked", "err", err)
		}
		return
	}
	for _, s := range live {
		switch admitted, known := admitted[s.agent.ID]; {
		case !known:
			s.refuse(notEnrolled(s.agent.ID))
		case !admitted:
			s.refuse(revoked(s.agent.ID))
		}
	}
}

// sightingsLocked returns what is to be recorded of when agents were heard of. That is
// for people alone, who are told of connected agents from memory; so it is done seldom.
func (f *Fleet) sightingsLocked() map[pipeline.AgentID]time.Time {
	if f.sweepsDone++; f.sweepsDone%sightEvery != 0 {
		return nil
	}
	seen := f.seen
	f.seen = map[pipeline.AgentID]time.Time{}
	return seen
}
