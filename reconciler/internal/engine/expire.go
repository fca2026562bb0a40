package engine

import (
	"fmt"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Due returns when a task has waited long enough, for people, for another run or for
// an agent: Expired is then due. The zero time is never.
func Due(t *pipeline.RunTask) time.Time {
	var limit pipeline.Duration
	switch {
	case t.State == pipeline.Ready && t.Spec.StartTimeout > 0:
		since := t.ReadyAt
		if t.NotBefore.After(since) {
			since = t.NotBefore
		}
		return since.Add(time.Duration(t.Spec.StartTimeout))
	case t.State == pipeline.Held && t.Spec.Gate != nil:
		limit = t.Spec.Gate.Expire
	case t.State == pipeline.Running && t.Spec.Wait != nil:
		limit = t.Spec.Wait.Within
	case t.State == pipeline.Running && t.Spec.Call != nil:
		limit = t.Spec.Timeout
	}
	if limit <= 0 {
		return time.Time{}
	}
	return t.StartedAt.Add(time.Duration(limit))
}

func (m *machine) expired(e Expired) error {
	t := m.run.Task(e.Task)
	if t == nil || Due(t).IsZero() || Due(t).After(m.now) {
		return ErrStale
	}
	switch s := &t.Spec; {
	case t.State == pipeline.Ready:
		m.move(t, pipeline.Timeout, fmt.Sprintf("no agent took it within %s", s.StartTimeout))
	case s.Gate != nil:
		m.move(t, pipeline.Timeout, fmt.Sprintf("%d of %d approvals within %s", len(approvers(t)), max(s.Gate.Count, 1), s.Gate.Expire))
	case s.Wait != nil:
		m.move(t, pipeline.Timeout, fmt.Sprintf("no run of %s ended within %s", s.Wait.Composition, s.Wait.Within))
	default:
		m.drop(t, "its caller waited for it no longer than "+s.Timeout.String())
		m.move(t, pipeline.Timeout, fmt.Sprintf("%s took longer than %s", s.Call.Composition, s.Timeout))
	}
	return nil
}
