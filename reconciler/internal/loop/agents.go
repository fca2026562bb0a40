package loop

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
)

// queue hands m to the loop, waiting while it is behind. After the loop has ended
// nothing is kept: the record has all that was acknowledged.
func (l *Runs) queue(m message) {
	select {
	case l.in <- m:
	case <-l.done:
	}
}

// Connected tells that an agent's session began, and what it still holds. Queues.
func (l *Runs) Connected(a pipeline.Agent, held []wire.Held) {
	l.queue(message{connected: &connected{a, held}})
}

// Disconnected tells that an agent's session ended. Queues.
func (l *Runs) Disconnected(id pipeline.AgentID) { l.queue(message{disconnected: id}) }

// Renewed tells that an agent's heartbeat arrived. It does not block: there are many
// of them, and the loop takes them up with whatever it looks at next.
func (l *Runs) Renewed(id pipeline.AgentID) {
	l.beatsMu.Lock()
	defer l.beatsMu.Unlock()
	l.beats[id] = time.Now()
}

// hear takes up the heartbeats that have come, before anything is made of silence.
func (l *Runs) hear() {
	l.beatsMu.Lock()
	beats := l.beats
	l.beats = map[pipeline.AgentID]time.Time{}
	l.beatsMu.Unlock()
	for id, at := range beats {
		if a := l.agents[id]; a != nil && at.After(a.renewedAt) {
			a.renewedAt = at
		}
	}
}

// Message hands over what an agent said. The identity is the session's. Queues.
func (l *Runs) Message(id pipeline.AgentID, m wire.Message) { l.queue(message{from: id, wire: m}) }

// Add hands over runs of a commit that were just recorded, each with the composition
// that it is of. Queues.
func (l *Runs) Add(commit pipeline.Head, runs []*pipeline.Run, of []*pipeline.Composition) {
	if len(runs) > 0 {
		l.queue(message{added: runs, commit: commit, of: of})
	}
}

// Cancel asks for a run to be stopped; a run that has ended is left alone. Queues.
func (l *Runs) Cancel(id pipeline.RunID, reason string) {
	l.queue(message{asked: &asked{id, engine.Cancel{Reason: reason}}})
}

// CancelNow is Cancel that waits until the record says so; fault.Unavailable when it
// does not, and then the caller asks again.
func (l *Runs) CancelNow(ctx context.Context, id pipeline.RunID, reason string) error {
	return l.doNow(ctx, id, engine.Cancel{Reason: reason}, func(r *pipeline.Run) bool { return r.Cancel })
}

// doNow hands the loop what a person asks of a run, and waits until the record says
// that it is done, or that the run has ended; fault.Unavailable when it does not, and
// then the caller asks again.
func (l *Runs) doNow(ctx context.Context, id pipeline.RunID, ev engine.Event, done func(*pipeline.Run) bool) error {
	l.queue(message{asked: &asked{id, ev}})
	// The first question may be taken up with the request, before it is written.
	for range 2 {
		if err := l.ask(ctx, func() {}); err != nil {
			return err
		}
	}
	r, err := l.cfg.DB.Run(ctx, id)
	if err == nil && !done(r) && !r.State.Terminal() {
		return fault.New(fault.Unavailable, "what was asked of run %s is not done yet", id)
	}
	return err
}

// doAsked applies what a person asks. An agent that still holds what a person has
// settled is fenced off.
func (l *Runs) doAsked(p *pass, m *asked) {
	resolved, isResolved := m.event.(engine.Resolved)
	var lost []pipeline.Attempt
	if ar := l.active[m.run]; ar != nil && isResolved {
		for _, a := range ar.open {
			if a.Task == resolved.Task {
				lost = append(lost, a)
			}
		}
	}
	if _, ok := l.apply(p, m.run, m.event); !ok {
		return
	}
	for _, a := range lost {
		l.tell(p, a.Agent, &wire.Fenced{Attempt: a.ID, Token: a.Token, Reason: resolved.Reason})
	}
}

func (l *Runs) agentConnected(ctx context.Context, p *pass, c *connected) {
	if known := l.agents[c.agent.ID]; known != nil {
		c.agent.Pause = known.Pause // the session may have read it before it was changed
	}
	a := l.know(c.agent)
	a.connected, a.renewedAt = true, time.Now()
	a.State, a.SeenAt = pipeline.AgentOnline, time.Now().UTC()
	l.saveAgent(p, a)
	held := map[pipeline.AttemptID]bool{}
	for _, h := range c.held {
		held[h.Attempt] = true
		l.heldAttempt(ctx, p, a.ID, h)
	}
	for _, open := range l.openOn(a.ID) {
		if held[open.ID] {
			continue
		}
		l.notHeld(p, open)
	}
}

// saveAgent records how the agent looks now. It is information for people; nothing
// that follows depends on it.
func (l *Runs) saveAgent(p *pass, a *agent) { p.agents[a.ID] = a.Agent }

// heldAttempt goes on with an attempt that the agent still has, from wherever
// either side was cut off.
func (l *Runs) heldAttempt(ctx context.Context, p *pass, id pipeline.AgentID, h wire.Held) {
	a, ok := l.openAttempt(h.Attempt)
	if !ok || a.Agent != id || a.Token != h.Token {
		l.refuse(ctx, p, id, h.Attempt, h.Token)
		return
	}
	run := l.active[a.Run].run
	t := run.Task(a.Task)
	switch {
	case engine.Stopped(run, t):
		l.tell(p, id, &wire.Cancel{Attempt: a.ID, Token: a.Token, Reason: cmp.Or(t.Cancel, run.Reason)})
	case h.Phase == wire.HeldAccepted && a.State == pipeline.AttemptOffered:
		l.accepted(p, id, a)
	case h.Phase == wire.HeldAccepted && a.State == pipeline.AttemptRunning:
		l.sendGo(p, a)
	case h.Phase == wire.HeldAccepted && a.State == pipeline.AttemptLost:
		l.notStarted(p, a)
	case a.State == pipeline.AttemptOffered:
		// It has started, so the record that let it was put back to a moment before.
		l.apply(p, a.Run, engine.Accepted{Attempt: a.ID, Token: a.Token})
	case a.State == pipeline.AttemptLost:
		l.apply(p, a.Run, engine.Back{Attempt: a.ID, Token: a.Token, Agent: l.nameOf(id)})
	}
	if h.Phase != wire.HeldAccepted {
		received, err := l.cfg.Logs.Received(ctx, a.ID)
		if err != nil {
			l.cfg.Log.Error("log length not read", "attempt_id", a.ID, "err", err)
			return
		}
		l.tell(p, id, &wire.LogAck{Attempt: a.ID, Token: a.Token, Length: received, Resend: true})
	}
}

// notStarted ends the doubt about a task whose agent was lost between go and the
// start, and has written down that it did not start it.
func (l *Runs) notStarted(p *pass, a pipeline.Attempt) {
	l.apply(p, a.Run, engine.NotStarted{Attempt: a.ID, Token: a.Token})
	l.tell(p, a.Agent, &wire.Fenced{Attempt: a.ID, Token: a.Token, Reason: "it was given up before it started"})
}

// notHeld settles an open attempt that its agent, now connected, does not have. It
// writes down what it accepts before it says so, so it has never started an offer
// that it does not hold; of a running one it has lost all trace.
func (l *Runs) notHeld(p *pass, a pipeline.Attempt) {
	if a.State == pipeline.AttemptOffered {
		l.apply(p, a.Run, engine.Declined{Attempt: a.ID, Token: a.Token, Reason: "the agent came back without it"})
		return
	}
	l.apply(p, a.Run, engine.Lost{Attempt: a.ID, Reason: fmt.Sprintf("agent %s came back without it", l.nameOf(a.Agent))})
}

// nameOf is what people call an agent.
func (l *Runs) nameOf(id pipeline.AgentID) string {
	if a := l.agents[id]; a != nil && a.Name != "" {
		return a.Name
	}
	return string(id)
}

func (l *Runs) agentDisconnected(ctx context.Context, p *pass, id pipeline.AgentID) {
	a := l.agents[id]
	if a == nil || !a.connected {
		return
	}
	if known, err := l.cfg.DB.Agent(ctx, id); err == nil { // it may be the reason
		a.Revoked = known.Revoked
	}
	a.connected = false
	a.State, a.SeenAt = pipeline.AgentOffline, a.renewedAt.UTC()
	l.saveAgent(p, a)
	for _, open := range l.openOn(id) {
		if open.State == pipeline.AttemptOffered {
			// Without an answer no go was sent, so nothing started.
			l.apply(p, open.Run, engine.Declined{Attempt: open.ID, Token: open.Token, Reason: "agent " + a.Name + " disconnected"})
		}
	}
}

func (l *Runs) openAttempt(id pipeline.AttemptID) (pipeline.Attempt, bool) {
	if ar := l.active[l.attempts[id]]; ar != nil {
		a, ok := ar.open[id]
		return a, ok
	}
	return pipeline.Attempt{}, false
}

// openOn lists the open attempts of an agent, oldest first.
func (l *Runs) openOn(id pipeline.AgentID) []pipeline.Attempt {
	var out []pipeline.Attempt
	for _, aid := range slices.Sorted(maps.Keys(l.attempts)) {
		if a, ok := l.openAttempt(aid); ok && a.Agent == id {
			out = append(out, a)
		}
	}
	return out
}

func (l *Runs) agentSays(ctx context.Context, p *pass, from pipeline.AgentID, m wire.Message) {
	switch m := m.(type) {
	case *wire.Accept:
		a, ok := l.mine(from, m.Attempt, m.Token)
		switch {
		case ok && a.State == pipeline.AttemptOffered:
			l.accepted(p, from, a)
		case ok && a.State == pipeline.AttemptRunning:
			l.sendGo(p, a) // it did not hear the first one
		default:
			l.refuse(ctx, p, from, m.Attempt, m.Token)
		}
	case *wire.Decline:
		if a, ok := l.mine(from, m.Attempt, m.Token); ok {
			l.apply(p, a.Run, engine.Declined{Attempt: a.ID, Token: a.Token, Reason: fmt.Sprintf("agent %s declined: %s", from, m.Reason)})
			l.declinedBy(from, a, m.Reason)
		}
	case *wire.Note:
		l.note(from, m)
	case *wire.Result:
		l.result(ctx, p, from, m)
	case *wire.Facts:
		if a := l.agents[from]; a != nil {
			a.Facts = slices.Clone(m.Facts)
			if v, err := pipeline.DecodeJSON(m.Facts); err == nil {
				a.facts = v
			}
			l.saveAgent(p, a)
		}
	case *wire.Started:
		l.cfg.Log.Debug("task started", "attempt_id", m.Attempt, "agent_id", from)
	}
}

// mine returns the open attempt when it is the agent's and the token is the record's.
func (l *Runs) mine(from pipeline.AgentID, id pipeline.AttemptID, tok pipeline.Token) (pipeline.Attempt, bool) {
	a, ok := l.openAttempt(id)
	return a, ok && a.Agent == from && a.Token == tok
}

// accepted lets the task start, once that is written. Secrets that cannot be read
// any more take the offer back, for nothing has started: why is then found out as for
// every task that is to be offered.
func (l *Runs) accepted(p *pass, from pipeline.AgentID, a pipeline.Attempt) {
	withdrawn := &wire.Fenced{Attempt: a.ID, Token: a.Token, Reason: "the offer was withdrawn"}
	if _, err := l.secrets(&l.active[a.Run].run.Task(a.Task).Spec); err != nil {
		l.apply(p, a.Run, engine.Declined{Attempt: a.ID, Token: a.Token, Reason: err.Error()})
		l.tell(p, from, withdrawn)
		return
	}
	if _, ok := l.apply(p, a.Run, engine.Accepted{Attempt: a.ID, Token: a.Token}); !ok {
		l.tell(p, from, withdrawn)
		return
	}
	l.sendGo(p, a)
}

// sendGo sends go with the secrets that the task refers to. While it is not known
// what is declared, as after a start, go waits; a secret that is gone stops the attempt.
func (l *Runs) sendGo(p *pass, a pipeline.Attempt) {
	t := l.active[a.Run].run.Task(a.Task)
	values, err := l.secrets(&t.Spec)
	delete(l.gos, a.ID)
	switch {
	case fault.Is(err, fault.Unavailable):
		l.gos[a.ID] = true
	case err != nil:
		l.tell(p, a.Agent, &wire.Cancel{Attempt: a.ID, Token: a.Token, Reason: err.Error()})
	default:
		l.tell(p, a.Agent, &wire.Go{Attempt: a.ID, Token: a.Token, Secrets: values})
	}
}

// mostSecrets bounds the values that one task gets: they have to fit into a message.
const mostSecrets = wire.MaxFrame / 8

func (l *Runs) secrets(t *pipeline.Task) (map[string]wire.Redacted, error) {
	if len(t.Secrets) == 0 {
		return nil, nil
	}
	size := 0
	values := make(map[string]wire.Redacted, len(t.Secrets))
	for _, name := range t.Secrets {
		v, err := l.cfg.Secrets.Secret(name)
		if err != nil {
			return nil, err
		}
		if size += len(v); size > mostSecrets {
			return nil, fault.New(fault.Invalid, "its secrets have more than %d bytes together, %s among them", mostSecrets, name)
		}
		values[string(name)] = wire.Redacted(v)
	}
	return values, nil
}

// refuse answers a message about an attempt that is not open, or not the agent's: a
// result that was recorded is acknowledged again, anything else is fenced off.
func (l *Runs) refuse(ctx context.Context, p *pass, from pipeline.AgentID, id pipeline.AttemptID, tok pipeline.Token) {
	a, err := l.cfg.DB.Attempt(ctx, id)
	if err == nil && a.Agent == from && a.Token == tok && a.State == pipeline.AttemptDone {
		l.tell(p, from, &wire.Ack{Attempt: id, Token: tok})
		return
	}
	reason := "the assignment is no longer current"
	if err != nil || a.Agent != from {
		reason = "no such assignment"
	}
	l.tell(p, from, &wire.Fenced{Attempt: id, Token: tok, Reason: reason})
}

func (l *Runs) result(ctx context.Context, p *pass, from pipeline.AgentID, m *wire.Result) {
	a, ok := l.mine(from, m.Attempt, m.Token)
	if !ok {
		l.refuse(ctx, p, from, m.Attempt, m.Token)
		return
	}
	received, err := l.cfg.Logs.Received(ctx, a.ID)
	if err != nil {
		l.cfg.Log.Error("log length not read", "attempt_id", a.ID, "err", err)
		return
	}
	if received < m.Result.LogBytes {
		// The result counts only with its whole log; the agent sends it again after.
		l.tell(p, from, &wire.LogAck{Attempt: a.ID, Token: a.Token, Length: received, Resend: true})
		return
	}
	l.lasted(a, time.Now())
	if _, ok := l.apply(p, a.Run, engine.Finished{Attempt: a.ID, Token: a.Token, Result: m.Result}); !ok {
		l.refuse(ctx, p, from, m.Attempt, m.Token)
		return
	}
	l.freed(from)
	l.tell(p, from, &wire.Ack{Attempt: a.ID, Token: a.Token})
	p.after = append(p.after, func(ctx context.Context) { l.seal(ctx, a.ID, m.Result.LogBytes) })
}

// seal closes a log without waiting for the disk: one that is full must not keep
// everybody from being heard. A log that was not sealed counts as ended with its attempt.
func (l *Runs) seal(ctx context.Context, id pipeline.AttemptID, length int64) {
	l.work.Go(func() { // ends with the write, or with ctx
		if err := l.cfg.Logs.Seal(ctx, id, length); err != nil && ctx.Err() == nil {
			l.cfg.Log.Error("log not sealed", "attempt_id", id, "err", err)
		}
	})
}

// note keeps what a running task says of itself, for people who ask why it takes long.
func (l *Runs) note(from pipeline.AgentID, m *wire.Note) {
	a, ok := l.mine(from, m.Attempt, m.Token)
	if !ok {
		return
	}
	l.notes.add(a.Run, m, time.Now())
}

// tick does what depends on time alone: offers that nobody answered, agents that
// have been silent for too long.
func (l *Runs) tick(p *pass) {
	now := time.Now()
	p.line = l.lookAtForce() || p.line
	for _, id := range slices.Sorted(maps.Keys(l.attempts)) {
		a, ok := l.openAttempt(id)
		if !ok {
			continue
		}
		switch a.State {
		case pipeline.AttemptOffered:
			if now.Sub(a.OfferedAt) > offerTTL {
				l.apply(p, a.Run, engine.Declined{Attempt: a.ID, Token: a.Token, Reason: fmt.Sprintf("agent %s did not answer within %s", a.Agent, offerTTL)})
				l.tell(p, a.Agent, &wire.Fenced{Attempt: a.ID, Token: a.Token, Reason: "the offer was not answered in time"})
			}
		case pipeline.AttemptRunning:
			if l.gos[id] {
				l.sendGo(p, a)
			}
			l.checkLease(p, a, now)
		}
	}
	l.endPauses(p, now)
	l.checkDeadlines(p, now)
	l.expire(p, now)
	l.checkPins(p, now)
	l.describe(p, now)
}

// checkPins ends ready tasks that read files of an agent which does not come back:
// nobody else has the files, and the run would wait for ever.
func (l *Runs) checkPins(p *pass, now time.Time) {
	for id, ar := range l.active {
		for i := range ar.run.Tasks {
			if t := &ar.run.Tasks[i]; t.State == pipeline.Ready && len(t.Spec.Pins) > 0 {
				if gone := l.filesGone(ar.run, t, now); gone != "" {
					l.apply(p, id, engine.Unfit{Task: t.Name, Reason: gone})
				}
			}
		}
	}
}

// filesGone says why nobody has the files any more that t reads, or "".
func (l *Runs) filesGone(r *pipeline.Run, t *pipeline.RunTask, now time.Time) string {
	for _, name := range t.Spec.Pins {
		from := r.Task(name)
		if from == nil || from.Agent == "" {
			continue
		}
		a := l.agents[from.Agent]
		silent, limit := now.Sub(t.ReadyAt), lostAfter(&t.Spec)
		switch {
		case a == nil || a.Revoked:
			return fmt.Sprintf("reads files of task %s, and agent %s, which has them, was revoked", name, from.Agent)
		case !a.connected && min(silent, now.Sub(a.renewedAt)) > limit:
			return fmt.Sprintf("reads files of task %s, and agent %s, which has them, was silent for %s", name, a.Name, limit)
		}
	}
	return ""
}

// lostAfter is how long an agent may be silent before a task is given up.
func lostAfter(t *pipeline.Task) time.Duration {
	if t.LostAfter == 0 {
		return pipeline.DefaultLostAfter
	}
	return time.Duration(t.LostAfter)
}

func (l *Runs) checkLease(p *pass, a pipeline.Attempt, now time.Time) {
	t := l.active[a.Run].run.Task(a.Task)
	limit := lostAfter(&t.Spec)
	ag := l.agents[a.Agent]
	if ag != nil && now.Sub(ag.renewedAt) < limit {
		return
	}
	l.apply(p, a.Run, engine.Lost{Attempt: a.ID, Reason: fmt.Sprintf("agent %s was silent for %s", l.nameOf(a.Agent), limit)})
}

// checkDeadlines stops runs that took longer than their composition allows.
func (l *Runs) checkDeadlines(p *pass, now time.Time) {
	for id, ar := range l.active {
		r := ar.run
		limit := time.Duration(ar.of.Timeout)
		if limit > 0 && !r.Cancel && !r.StartedAt.IsZero() && now.Sub(r.StartedAt) > limit {
			l.apply(p, id, engine.Cancel{Reason: fmt.Sprintf("took longer than the %s that the composition allows", limit)})
		}
	}
}
