package loop

import (
	"context"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// pausing keeps new work from an agent, or with nil gives it work again.
type pausing struct {
	agent pipeline.AgentID
	pause *pipeline.Pause
}

// Pause keeps new work from an agent from now on, or with nil gives it work again, and
// waits until the record says so. An agent that is not enrolled is fault.NotFound;
// after fault.Unavailable the caller asks again.
func (l *Runs) Pause(ctx context.Context, id pipeline.AgentID, pause *pipeline.Pause) error {
	if _, err := l.cfg.DB.Agent(ctx, id); err != nil {
		return err
	}
	l.queue(message{pause: &pausing{id, pause}})
	for range 2 { // as for doNow
		if err := l.ask(ctx, func() {}); err != nil {
			return err
		}
	}
	a, err := l.cfg.DB.Agent(ctx, id)
	if err == nil && (a.Pause == nil) != (pause == nil) {
		return fault.New(fault.Unavailable, "what was asked of agent %s is not recorded yet", id)
	}
	return err
}

func (l *Runs) setPause(p *pass, m *pausing) {
	if a := l.agents[m.agent]; a != nil { // else it has not connected yet
		a.Pause = m.pause
	}
	p.pauses[m.agent] = m.pause
}

// endPauses gives agents work again whose pause was to last until now.
func (l *Runs) endPauses(p *pass, now time.Time) {
	for id, a := range l.agents {
		if a.Pause != nil && a.Pause.Over(now) {
			l.setPause(p, &pausing{agent: id})
			l.cfg.Log.Info("pause of agent ended", "agent_id", id, "name", a.Name)
		}
	}
}

// away says why an agent takes no new work, "" when it does.
func (a *agent) away(now time.Time) string {
	switch {
	case a.Revoked:
		return "revoked"
	case !a.connected:
		return "not connected"
	case a.stalled(now):
		return "silent"
	case a.Pause != nil:
		return a.Pause.String()
	}
	return ""
}
