// Package engine is the state machine of a run: given a run and one thing that
// happened, it says how the run then stands and what has to be done about it. It
// is pure: it reads no clock, file or socket, and changes nothing it is given. The
// control loop records its answer in one transaction and only then acts on it.
package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// ErrStale is returned for a message about an assignment that is no longer the
// task's: the sender is fenced off. Nothing changes.
var ErrStale = errors.New("the assignment is no longer current")

// Event is one thing that happened to a run: one of the types below.
type Event interface{ event() }

type (
	// Created: the run was just made. Its first tasks become ready.
	Created struct{}
	// Offer assigns a ready task to an agent. Attempt is complete but for its state.
	Offer struct {
		Attempt pipeline.Attempt
		Slot    int
	}
	// Accepted: the agent has written the offer down and waits for go.
	Accepted struct {
		Attempt pipeline.AttemptID
		Token   pipeline.Token
	}
	// Declined: the agent will not start the task, or was not there to answer.
	// Only an offered attempt can be declined: go was never sent, so it is certain
	// that nothing started.
	Declined struct {
		Attempt pipeline.AttemptID
		Token   pipeline.Token
		Reason  string
	}
	// NotStarted: the agent of a task in doubt is back, and holds the attempt as one
	// that it never started. It is no decline, which an agent also answers to an offer
	// that it hears again when all is over.
	NotStarted struct {
		Attempt pipeline.AttemptID
		Token   pipeline.Token
	}
	// Finished: the agent reports how the attempt ended.
	Finished struct {
		Attempt pipeline.AttemptID
		Token   pipeline.Token
		Result  pipeline.Result
	}
	// Lost: the agent has been silent for longer than the task allows.
	Lost struct {
		Attempt pipeline.AttemptID
		Reason  string
	}
	// Unfit: the task cannot go on, for a reason on this side (a field that does not
	// fit its type, a secret that cannot be read). Without a task it is the run: its
	// params or its outputs do not fit.
	Unfit struct {
		Task   pipeline.TaskName
		Reason string
	}
	// Cancel: a person, a newer run or a limit asks the run to stop.
	Cancel struct{ Reason string }
	// CancelTask: a person asks one task to stop. Those that need it are skipped.
	CancelTask struct {
		Task   pipeline.TaskName
		Reason string
	}
	// Back: the agent of a task in doubt, by its name, is there again and has it still.
	Back struct {
		Attempt pipeline.AttemptID
		Token   pipeline.Token
		Agent   string
	}
	// Resolved: a person says how a task in doubt ended, Success or Failure, or with
	// Ready that it is to be started once more.
	Resolved struct {
		Task   pipeline.TaskName
		To     pipeline.State
		Reason string
	}
)

func (Created) event()    {}
func (Offer) event()      {}
func (Accepted) event()   {}
func (Declined) event()   {}
func (NotStarted) event() {}
func (Finished) event()   {}
func (Lost) event()       {}
func (Unfit) event()      {}
func (Cancel) event()     {}

func (CancelTask) event() {}
func (Resolved) event()   {}
func (Back) event()       {}

// Step is the answer to an event.
type Step struct {
	// Run as it then stands, Version raised by one. The run given is unchanged.
	Run *pipeline.Run
	// Attempts that changed, the event's own first.
	Attempts []AttemptChange
	// Stop lists the attempts whose agents are to be told to stop.
	Stop []Stop
	// Calls are the runs to be made with this step, Cancels the called runs to be
	// cancelled.
	Calls   []Call
	Cancels []Drop
}

// AttemptChange is an attempt before and after; Before is nil for a new one.
type AttemptChange struct {
	Before *pipeline.Attempt
	After  pipeline.Attempt
}

// Stop names an attempt to be stopped. The agent ends it and reports a result.
type Stop struct {
	Task    pipeline.TaskName
	Attempt pipeline.AttemptID
	Agent   pipeline.AgentID
	Reason  string
}

// Open are the attempts of a run that an event may still be about: the offered
// and running ones, and the lost one of each task in doubt.
type Open map[pipeline.AttemptID]pipeline.Attempt

// Next applies ev to run, a run of the composition of, at the instant now. It
// returns ErrStale for a message that comes too late, and another error only for an
// event that contradicts the run, which is a defect of the caller.
func Next(run *pipeline.Run, of *pipeline.Composition, open Open, ev Event, now time.Time) (Step, error) {
	m := &machine{run: run.Clone(), of: of, open: open, now: now}
	if err := m.apply(ev); err != nil {
		return Step{}, err
	}
	m.settle()
	m.hooks(run)
	m.finish(run)
	m.hook(run)
	return Step{Run: m.run, Attempts: m.attempts, Stop: m.stop, Calls: m.calls, Cancels: m.cancels}, nil
}

// machine is one Next under way; it owns its copy of the run.
type machine struct {
	run      *pipeline.Run
	of       *pipeline.Composition // nil when nothing of it matters
	open     Open
	now      time.Time
	attempts []AttemptChange
	stop     []Stop
	calls    []Call
	cancels  []Drop
	decided  *Decided
	gentles  map[pipeline.TaskName]bool // see gentle
	behind   string                     // why the run waits in line, when the event says
	stuck    *Stuck
	state    pipeline.State // the run's, where its tasks do not say; why is its reason
	why      string
}

func (m *machine) apply(ev Event) error {
	switch e := ev.(type) {
	case Created:
		return nil
	case Offer:
		return m.offer(e)
	case Accepted:
		t, a, err := m.current(e.Attempt, e.Token, pipeline.AttemptOffered)
		if err != nil {
			return err
		}
		after := a
		after.State, after.StartedAt = pipeline.AttemptRunning, m.now
		m.change(a, after)
		t.StartedAt = m.now
		m.move(t, pipeline.Running, "runs on "+string(t.Agent))
		return nil
	case Declined:
		t, a, err := m.current(e.Attempt, e.Token, pipeline.AttemptOffered)
		if err != nil {
			return err
		}
		m.end(a, pipeline.AttemptDeclined, "", e.Reason)
		m.move(t, pipeline.Ready, "offered again: "+e.Reason)
		return nil
	case NotStarted:
		return m.notStarted(e)
	case Finished:
		return m.finished(e)
	case Lost:
		return m.lost(e)
	case Unfit:
		return m.unfit(e)
	case Cancel:
		return m.cancel(e)
	case CancelTask:
		t := m.run.Task(e.Task)
		if t == nil || t.State.Terminal() || t.Cancel != "" {
			return ErrStale
		}
		t.Cancel = e.Reason
		m.stopTask(t, e.Reason)
		return nil
	case Resolved:
		return m.resolved(e)
	case Back:
		return m.back(e)
	}
	return m.applyBuiltIn(ev)
}

func (m *machine) unfit(e Unfit) error {
	if e.Task == "" {
		if !m.run.Draft && !m.returns() {
			return ErrStale
		}
		m.state, m.why = pipeline.Error, e.Reason
		for i := range m.run.Tasks {
			if t := &m.run.Tasks[i]; t.State == pipeline.Pending {
				m.move(t, pipeline.Skipped, "the run did not begin")
			}
		}
		return nil
	}
	t := m.run.Task(e.Task)
	if t == nil || t.State.Terminal() || t.State != pipeline.Ready && !t.Spec.BuiltIn() && !asks(&t.Spec) {
		return ErrStale
	}
	m.move(t, pipeline.Error, e.Reason)
	return nil
}

func (m *machine) cancel(e Cancel) error {
	if m.run.State.Terminal() {
		return ErrStale
	}
	m.run.Cancel = true
	m.run.Reason = e.Reason
	for i := range m.run.Tasks {
		t := &m.run.Tasks[i]
		if m.stopped(t) {
			m.stopTask(t, e.Reason)
		}
	}
	return nil
}

// stopTask stops what of t is under way; what waits is settled with the rest.
func (m *machine) stopTask(t *pipeline.RunTask, reason string) {
	switch t.State {
	case pipeline.Offered:
		m.withdraw(t, reason)
		m.move(t, pipeline.Cancelled, reason)
	case pipeline.Running, pipeline.InDoubt:
		switch {
		case t.Spec.Call != nil:
			m.drop(t, "its caller was cancelled: "+reason) // and the task ends as it does
		case t.Spec.BuiltIn():
			m.move(t, pipeline.Cancelled, reason)
		default:
			m.stop = append(m.stop, Stop{t.Name, t.Attempt, t.Agent, reason})
		}
	case pipeline.Held:
		m.move(t, pipeline.Cancelled, reason)
	}
}

func (m *machine) stopped(t *pipeline.RunTask) bool { return Stopped(m.run, t) }

// Stopped reports whether t, a task of r, was cancelled and must not go on: itself, or
// along with r. What has to run always does so in a cancelled run, once anything of it
// has started: a tear-down that is stopped half-way leaves behind what it was to clean up.
func Stopped(r *pipeline.Run, t *pipeline.RunTask) bool {
	return t.Cancel != "" || r.Cancel && !(t.Spec.When == pipeline.Always && started(r))
}

// whyStopped is the reason of a task that was cancelled.
func (m *machine) whyStopped(t *pipeline.RunTask) string {
	if t.Cancel != "" {
		return t.Cancel
	}
	return m.run.Reason
}

// notNeeded ends what has not started: one task found that there is nothing to do.
// Tasks that run are let finish, and "always" tasks still run.
func (m *machine) notNeeded(by *pipeline.RunTask) {
	why := fmt.Sprintf("task %s found that there is nothing to do", by.Name)
	for i := range m.run.Tasks {
		t := &m.run.Tasks[i]
		if t.Spec.When == pipeline.Always {
			continue
		}
		switch t.State {
		case pipeline.Offered:
			m.withdraw(t, why)
			m.move(t, pipeline.NotNeeded, why)
		case pipeline.Pending, pipeline.Ready, pipeline.Held:
			m.move(t, pipeline.NotNeeded, why)
		}
	}
}

// settle moves every task that waits for nothing any more, until none does.
func (m *machine) settle() {
	for moved := true; moved; {
		moved = false
		for i := range m.run.Tasks {
			t := &m.run.Tasks[i]
			if t.State != pipeline.Pending && (t.State != pipeline.Ready || !m.stopped(t)) {
				continue
			}
			to, reason := m.decide(t)
			switch {
			case to == t.State:
				continue
			case to == pipeline.Ready && t.Spec.BuiltIn():
				m.begin(t)
			default:
				m.move(t, to, reason)
			}
			moved = true
		}
	}
}

// decide says where a pending or ready task goes now.
func (m *machine) decide(t *pipeline.RunTask) (to pipeline.State, reason string) {
	var waits, bad []string
	for _, name := range t.Spec.Needs {
		n := m.run.Task(name)
		switch {
		case n == nil: // the plan does not have it; nothing will ever end this wait
			return pipeline.Error, fmt.Sprintf("needs task %q, which the run does not have", name)
		case !n.State.Terminal():
			waits = append(waits, string(name))
		case !n.State.Good() && !n.Tolerated() && !m.gentle(n):
			bad = append(bad, fmt.Sprintf("%s: %s", name, n.State))
		}
	}
	switch {
	case m.stopped(t):
		return pipeline.Cancelled, m.whyStopped(t)
	case t.State == pipeline.Ready:
		return pipeline.Ready, ""
	case waitsInLine(m.run):
		return pipeline.Pending, ""
	case len(bad) > 0 && (t.Spec.When == pipeline.OnSuccess || t.Spec.When == ""):
		return pipeline.Skipped, "needs " + strings.Join(bad, ", ")
	case len(waits) > 0:
		return pipeline.Pending, ""
	case t.Spec.When == pipeline.OnFailure && len(bad) == 0:
		return pipeline.Skipped, "runs on failure only, and nothing it needs failed"
	}
	for _, b := range t.Spec.Bindings {
		from := m.run.Task(b.From)
		switch {
		case b.Optional || from != nil && from.Reported(b.Output):
		case from == nil || !from.Ran():
			return pipeline.Skipped, fmt.Sprintf("inherits %s from task %s, which did not get to it", b.Field, b.From)
		default:
			return pipeline.Error, fmt.Sprintf("field %s is inherited from output %s of task %s, which ended as %s and did not report it",
				b.Field, b.Output, b.From, from.State)
		}
	}
	if name := m.lacks(&t.Spec); name != "" {
		return pipeline.Skipped, fmt.Sprintf("reads outputs of task %s, which did not get to it", name)
	}
	return m.choose(t)
}

func started(r *pipeline.Run) bool {
	return slices.ContainsFunc(r.Tasks, func(t pipeline.RunTask) bool { return t.Epoch > 0 || !t.StartedAt.IsZero() })
}

// finish derives what the run shows from its tasks.
func (m *machine) finish(before *pipeline.Run) {
	r := m.run
	for i := range r.Tasks {
		if t := &r.Tasks[i]; t.State == pipeline.Pending {
			t.Reason = m.waitsFor(before, t)
		}
	}
	r.Version++
	r.State = m.runState()
	if r.StartedAt.IsZero() && r.State == pipeline.Running {
		r.StartedAt = m.now
	}
	if r.State.Terminal() && !before.State.Terminal() {
		r.FinishedAt = m.now
	}
	switch {
	case m.why != "":
		r.Reason = m.why
	case r.State.Terminal():
		if !r.Cancel || r.State != pipeline.Cancelled {
			r.Reason = Sentence(r)
		}
	case r.Cancel:
	case waitsInLine(r):
		r.Reason = m.line(before)
	case r.State == pipeline.Running && pipeline.RunState(r.Tasks).Terminal():
		r.Reason = "computes its outputs"
		if m.stuck != nil {
			r.Reason = m.stuck.Why
		}
	default:
		r.Reason = Sentence(r)
	}
}

// runState is how the run stands. When all its tasks have succeeded it goes on until
// it has what it returns.
func (m *machine) runState() pipeline.State {
	s := pipeline.RunState(m.run.Tasks)
	switch {
	case m.state != "":
		return m.state
	case s != pipeline.Success || m.of == nil || m.run.Outputs != nil:
	case m.of.Returns.Deferred && m.run.Cancel:
		return pipeline.Cancelled
	case m.returns():
		return pipeline.Running
	default:
		m.run.Outputs = m.of.Returns.Value
	}
	return s
}

func (m *machine) move(t *pipeline.RunTask, to pipeline.State, reason string) {
	if t.State == to {
		t.Reason = reason
		return
	}
	offered := t.State == pipeline.Offered
	t.State, t.Reason = to, reason
	switch {
	case to == pipeline.Ready && !offered: // an offer that came to nothing was none of its time
		t.ReadyAt = m.now
	case to.Terminal():
		t.FinishedAt = m.now
	}
}
