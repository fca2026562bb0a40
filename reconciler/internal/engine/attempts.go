package engine

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// lostRetries is how often a lost idempotent task is started again when its
// author allows fewer retries: machines fail without the task being at fault, but
// a task that kills its agents must end.
const lostRetries = 2

func (m *machine) offer(e Offer) error {
	t := m.run.Task(e.Attempt.Task)
	if t == nil {
		return fmt.Errorf("run %s has no task %q", m.run.ID, e.Attempt.Task)
	}
	if t.State != pipeline.Ready || m.stopped(t) || e.Attempt.Token.Epoch != t.Epoch+1 {
		return ErrStale
	}
	after := e.Attempt
	after.State, after.OfferedAt = pipeline.AttemptOffered, m.now
	m.attempts = append(m.attempts, AttemptChange{After: after})
	t.Epoch, t.Attempt, t.Agent, t.Slot = after.Token.Epoch, after.ID, after.Agent, e.Slot
	t.NotBefore = time.Time{}
	m.move(t, pipeline.Offered, "offered to "+string(t.Agent))
	return nil
}

func (m *machine) finished(e Finished) error {
	states := []pipeline.AttemptState{pipeline.AttemptRunning}
	if t := m.run.Task(m.open[e.Attempt].Task); t != nil && t.State == pipeline.InDoubt {
		// The one case in which a lost agent's word still counts: nobody else was started.
		states = append(states, pipeline.AttemptLost)
	}
	t, a, err := m.current(e.Attempt, e.Token, states...)
	if err != nil {
		return err
	}
	r := e.Result
	// What it reported is kept however it ended: a clean-up task may need it.
	t.Outputs, t.Records, t.Links = r.Outputs, r.Records, r.Links
	if r.Lost {
		if t.State == pipeline.InDoubt {
			return ErrStale // the agent knows no more than we do
		}
		return m.lost(Lost{Attempt: e.Attempt, Reason: r.Reason})
	}
	if !r.Outcome.Terminal() || r.Outcome == pipeline.Skipped {
		// Turned down, it would leave the task running for ever: the agent has ended it.
		r.Reason = strings.TrimSuffix(fmt.Sprintf("its agent reported %q, which is no outcome: %s", r.Outcome, r.Reason), ": ")
		r.Outcome = pipeline.Error
	}
	after := a
	after.State, after.Outcome, after.Reason, after.Exit = pipeline.AttemptDone, r.Outcome, r.Reason, r.Exit
	after.LogBytes, after.FinishedAt = r.LogBytes, m.now
	m.change(a, after)
	t.Exit = r.Exit
	if m.retry(t, r) {
		return nil
	}
	m.move(t, r.Outcome, r.Reason)
	if r.Outcome == pipeline.NotNeeded {
		m.notNeeded(t)
	}
	if r.CancelRun && !m.run.Cancel {
		return m.cancel(Cancel{Reason: fmt.Sprintf("task %s asked for it: %s", t.Name, r.Reason)})
	}
	return nil
}

// retry puts the task back in the queue when its author allows that for this outcome.
func (m *machine) retry(t *pipeline.RunTask, r pipeline.Result) bool {
	bad := r.Outcome == pipeline.Failure || r.Outcome == pipeline.Error || r.Outcome == pipeline.Timeout
	if !bad || m.stopped(t) || r.CancelRun || t.Spec.Effect == pipeline.Once ||
		!t.Spec.Retries.Covers(r.Outcome) || t.Failures >= t.Spec.Retries.Max {
		return false
	}
	wait := backoff(time.Duration(t.Spec.Retries.Backoff), t.Failures)
	t.Failures++
	t.NotBefore = m.now.Add(wait)
	m.move(t, pipeline.Ready, fmt.Sprintf("%s: %s; try %d of %d in %s",
		r.Outcome, r.Reason, t.Failures+1, t.Spec.Retries.Max+1, wait))
	return true
}

// backoff doubles the author's pause with each failure, up to an hour.
func backoff(first time.Duration, failures int) time.Duration {
	const most = time.Hour
	for ; failures > 0 && first < most; failures-- {
		first *= 2
	}
	return min(first, most)
}

func (m *machine) lost(e Lost) error {
	t, a, err := m.current(e.Attempt, m.open[e.Attempt].Token, pipeline.AttemptRunning)
	if err != nil {
		return err
	}
	m.end(a, pipeline.AttemptLost, "", e.Reason)
	switch {
	case t.Spec.Effect == pipeline.Once:
		m.move(t, pipeline.InDoubt, fmt.Sprintf(
			"%s; it may have run, and is never started again by itself: its agent's late report settles it, %s", e.Reason, m.orAPerson(t),
		))
	case m.stopped(t):
		m.move(t, pipeline.Cancelled, e.Reason)
	case t.Failures < max(t.Spec.Retries.Max, lostRetries):
		t.Failures++
		m.move(t, pipeline.Ready, e.Reason+"; waits for another agent")
	default:
		m.move(t, pipeline.Error, fmt.Sprintf("%s, %d times in all", e.Reason, t.Failures+1))
	}
	return nil
}

// orAPerson is how the doubt about t ends when its agent says nothing.
func (m *machine) orAPerson(t *pipeline.RunTask) string {
	return fmt.Sprintf("or a person who has looked: reconciler request resolve %s/%s success, failure or rerun", nameOf(m.run), t.Name)
}

// back tells that the agent of a task in doubt is there again, and has it.
func (m *machine) back(e Back) error {
	t, _, err := m.current(e.Attempt, e.Token, pipeline.AttemptLost)
	if err != nil {
		return err
	}
	reason := fmt.Sprintf("agent %s is back and has it still: its report settles it, %s", e.Agent, m.orAPerson(t))
	if t.State != pipeline.InDoubt || t.Reason == reason {
		return ErrStale
	}
	m.move(t, pipeline.InDoubt, reason)
	return nil
}

// resolved takes a person's word for what nobody else knows. The lost attempt stays
// lost: its agent is fenced off when it speaks of it.
func (m *machine) resolved(e Resolved) error {
	t := m.run.Task(e.Task)
	if t == nil || t.State != pipeline.InDoubt {
		return ErrStale
	}
	if e.To == pipeline.Ready && m.stopped(t) {
		e.To = pipeline.Cancelled
	}
	m.move(t, e.To, e.Reason)
	return nil
}

// withdraw takes an offer back: go was not sent, so it is certain that nothing started.
func (m *machine) withdraw(t *pipeline.RunTask, reason string) {
	if a, ok := m.open[t.Attempt]; ok {
		m.end(a, pipeline.AttemptDeclined, "", reason)
	}
	m.stop = append(m.stop, Stop{t.Name, t.Attempt, t.Agent, reason})
}

// current returns the attempt and its task, when the token is the record's, the
// attempt the task's latest, and in one of the states.
func (m *machine) current(id pipeline.AttemptID, tok pipeline.Token, states ...pipeline.AttemptState) (*pipeline.RunTask, pipeline.Attempt, error) {
	a, ok := m.open[id]
	t := m.run.Task(a.Task)
	if !ok || t == nil || t.Attempt != id || t.Epoch != a.Token.Epoch || tok != a.Token ||
		!slices.Contains(states, a.State) || t.State.Terminal() {
		return nil, a, ErrStale
	}
	return t, a, nil
}

// notStarted ends a doubt: the task may be offered again. The attempt stays lost.
func (m *machine) notStarted(e NotStarted) error {
	t, a, err := m.current(e.Attempt, e.Token, pipeline.AttemptLost)
	if err != nil {
		return err
	}
	m.move(t, pipeline.Ready, fmt.Sprintf("offered again: agent %s is back and had not started it", a.Agent))
	return nil
}

func (m *machine) change(before, after pipeline.Attempt) {
	m.attempts = append(m.attempts, AttemptChange{Before: &before, After: after})
}

func (m *machine) end(a pipeline.Attempt, s pipeline.AttemptState, outcome pipeline.State, reason string) {
	after := a
	after.State, after.Outcome, after.Reason, after.FinishedAt = s, outcome, reason, m.now
	m.change(a, after)
}
