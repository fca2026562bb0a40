package pipeline

// State is where a task or a run stands. One set of words serves the record,
// the API, the pages and the command line.
type State string

const (
	// Pending: waits for tasks before it. The engine moves it on when the last
	// of them ends. A crash leaves it pending; nothing was promised.
	Pending State = "pending"
	// Held: waits for people to review a gate. Their reviews move it on, or the end
	// of the time that the gate allows.
	Held State = "held"
	// Ready: queued for an agent. Placement moves it on.
	Ready State = "ready"
	// Offered: an agent was asked and has not answered; nothing has started. The
	// agent's answer, or the end of the offer, moves it on.
	Offered State = "offered"
	// Running: an agent accepted, so the task may have started. The agent's
	// result moves it on, or the loss of the agent. A crash of either side leaves
	// it running: the process lives on under its shim.
	Running State = "running"
	// InDoubt: the agent was lost while an effect "once" task ran. Only a late
	// result with the same token or a person moves it on.
	InDoubt State = "in_doubt"

	// Success: the work was done.
	Success State = "success"
	// Failure: the work said no (its program failed).
	Failure State = "failure"
	// Error: we failed (agent lost, plugin missing, outputs of the wrong type).
	Error State = "error"
	// Timeout: the limit written in the composition was reached.
	Timeout State = "timeout"
	// Cancelled: stopped by a person or a newer run.
	Cancelled State = "cancelled"
	// Skipped: did not run because a task it needs did not succeed.
	Skipped State = "skipped"
	// NotNeeded: a task found that there is nothing to do; a success of its own.
	NotNeeded State = "not_needed"
)

// next is the transition table of a task: the states that may follow each.
// docs/ARCHITECTURE.md draws it, and a test compares the two.
var next = map[State][]State{
	Pending: {Ready, Held, Running, Skipped, Cancelled, NotNeeded, Error}, // running: a built-in task
	Held:    {Success, Failure, Timeout, Cancelled, NotNeeded, Error},
	Ready:   {Offered, Skipped, Cancelled, NotNeeded, Error, Timeout},
	Offered: {Running, Ready, Cancelled, NotNeeded, Error},
	Running: {Success, Failure, Error, Timeout, Cancelled, NotNeeded, Ready, InDoubt},
	InDoubt: {Success, Failure, Error, Timeout, Cancelled, NotNeeded, Ready}, // by a late result or a person

	Success: nil, Failure: nil, Error: nil, Timeout: nil, Cancelled: nil, Skipped: nil, NotNeeded: nil,
}

// States lists every state, waiting ones first, outcomes last.
func States() []State {
	return []State{Pending, Held, Ready, Offered, Running, InDoubt, Success, Failure, Error, Timeout, Cancelled, Skipped, NotNeeded}
}

// Valid reports whether s is one of the state words.
func (s State) Valid() bool { _, ok := next[s]; return ok }

// Terminal reports whether s is an outcome; an outcome is for ever.
func (s State) Terminal() bool { return s.Valid() && len(next[s]) == 0 }

// Active reports whether an agent holds the task or may still hold it.
func (s State) Active() bool { return s == Offered || s == Running || s == InDoubt }

// Good reports whether s is an outcome that lets dependents run.
func (s State) Good() bool { return s == Success || s == NotNeeded }

// Next returns the states that may follow s. The caller must not change it.
func (s State) Next() []State { return next[s] }

// CanBecome reports whether a task in state s may move to state to.
func (s State) CanBecome(to State) bool {
	for _, n := range next[s] {
		if n == to {
			return true
		}
	}
	return false
}

// RunState derives a run's state from its tasks: an outcome once every task has
// one, the worst of them first; otherwise Running when anything has started, and
// Ready or Pending before that. A run without tasks is a success.
func RunState(tasks []RunTask) State {
	all, started := true, false
	seen := map[State]bool{}
	for _, t := range tasks {
		if !t.Tolerated() {
			seen[t.State] = true
		}
		all = all && t.State.Terminal()
		started = started || t.Epoch > 0 || t.State.Active() || !t.StartedAt.IsZero()
	}
	if !all {
		moves := seen[Running] || seen[Offered] || seen[Ready]
		switch {
		case seen[InDoubt] && !moves:
			return InDoubt
		case seen[Held] && !moves:
			return Held
		case started:
			return Running
		case seen[Ready]:
			return Ready
		}
		return Pending
	}
	for _, bad := range []State{Error, Timeout, Failure, Cancelled, NotNeeded} {
		if seen[bad] {
			return bad
		}
	}
	return Success
}
