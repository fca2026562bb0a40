package loop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// step is a change of a run that waits to be written, with what follows from it.
type step struct {
	before *pipeline.Run
	engine.Step
}

// pass is one transaction under way: what to write, and what to do once it is.
type pass struct {
	steps  []step
	calls  []call // of which no run was made yet
	made   []made
	agents map[pipeline.AgentID]pipeline.Agent // that look different
	pauses map[pipeline.AgentID]*pipeline.Pause
	after  []func(context.Context)
	touch  map[pipeline.Head]bool
	said   map[pipeline.RunID]*pipeline.Run // see say
	// restate: commits whose status is to be told anew.
	restate map[pipeline.Head]bool
	// placing: something happened by which a task may find an agent. Most messages are
	// heartbeats and questions, and to look at every run costs more than they do.
	placing bool
	// line: somebody may have to wait for another run, or for one less.
	line bool
	// failed: the record could not be read, so nothing of this counts.
	failed error
}

// process looks at a batch: decide, place, write, then act.
func (l *Runs) process(ctx context.Context, batch []message) {
	batch = append(l.again, batch...)
	l.again = nil
	l.hear()
	p := &pass{touch: map[pipeline.Head]bool{}, agents: map[pipeline.AgentID]pipeline.Agent{}, pauses: map[pipeline.AgentID]*pipeline.Pause{}}
	if l.fresh {
		l.fresh = false
		l.recovered(p)
	}
	for _, m := range batch {
		l.look(ctx, p, m)
	}
	l.settle(ctx, p)
	if err := l.commit(ctx, p); err != nil {
		l.cfg.Log.Error("record not written", "err", err, "steps", len(p.steps))
		l.recover(ctx)
		// Agents say it all again; people do not.
		l.again = slices.DeleteFunc(batch, func(m message) bool { return m.asked == nil && m.pause == nil })
		return
	}
	for _, f := range p.after {
		f(ctx)
	}
	l.activate(p)
	l.lookAt(ctx, p, batch)
	if next := l.next; len(next) > 0 {
		l.next = nil
		l.process(ctx, next)
	}
}

// recover starts again from the record after a write that failed or whose outcome
// is unknown: nothing was acknowledged, so the agents tell it all again.
func (l *Runs) recover(ctx context.Context) {
	for {
		pause := time.NewTimer(min(lastPause, firstPause<<min(l.failures, 10)))
		l.failures++
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
		err := l.reload(ctx)
		if err == nil {
			break
		}
		l.cfg.Log.Error("record not read", "err", err)
	}
	for id, a := range l.agents {
		if a.connected {
			l.cfg.Fleet.Drop(id, "the record could not be written; connect again")
		}
	}
}

// apply asks engine what follows from ev and keeps the answer in memory and in
// the pass. It reports whether the event counted.
func (l *Runs) apply(p *pass, id pipeline.RunID, ev engine.Event) (engine.Step, bool) {
	ar := l.active[id]
	if ar == nil {
		return engine.Step{}, false
	}
	s, err := engine.Next(ar.run, ar.of, ar.open, ev, time.Now().UTC())
	if err != nil {
		if !errors.Is(err, engine.ErrStale) {
			l.cfg.Log.Error("event contradicts the run", "run_id", id, "event", fmt.Sprintf("%T", ev), "err", err)
		}
		return engine.Step{}, false
	}
	p.steps = append(p.steps, step{before: ar.run, Step: s})
	l.adopt(p, ar, s)
	return s, true
}

// adopt makes the step the state in memory. If the write fails, reload undoes it.
func (l *Runs) adopt(p *pass, ar *activeRun, s engine.Step) {
	before := ar.run
	ar.run = s.Run
	for _, c := range s.Attempts {
		a := c.After
		t := s.Run.Task(a.Task)
		inDoubt := a.State == pipeline.AttemptLost && t.State == pipeline.InDoubt
		if a.State == pipeline.AttemptOffered || a.State == pipeline.AttemptRunning || inDoubt {
			ar.open[a.ID] = a
			l.attempts[a.ID] = a.Run
		} else {
			delete(ar.open, a.ID)
			delete(l.attempts, a.ID)
			l.notes.drop(a.ID)
			delete(l.gos, a.ID)
		}
		delete(l.fields, fieldKey{a.Run, a.Task})
	}
	for id, a := range ar.open {
		if a.State == pipeline.AttemptLost && s.Run.Task(a.Task).State != pipeline.InDoubt {
			delete(ar.open, id) // the doubt is over
			delete(l.attempts, id)
		}
	}
	for _, st := range s.Stop {
		token := pipeline.Token{}
		for _, c := range s.Attempts { // a withdrawn offer is no longer open
			if c.After.ID == st.Attempt {
				token = c.After.Token
			}
		}
		if a, ok := ar.open[st.Attempt]; ok {
			token = a.Token
		}
		l.tell(p, st.Agent, &wire.Cancel{Attempt: st.Attempt, Token: token, Reason: st.Reason})
	}
	for _, c := range s.Calls {
		p.calls = append(p.calls, call{s.Run, c})
	}
	if f := l.commits[s.Run.Head()]; f != nil {
		f.runs[s.Run.ID] = s.Run
	}
	if before.State != s.Run.State || before.Reason != s.Run.Reason || anyGateMoved(before, s.Run) {
		p.touch[s.Run.Head()] = true
	}
	for _, d := range s.Cancels {
		l.apply(p, d.Run, engine.Cancel{Reason: d.Reason})
	}
	l.follow(s.Run)
	if s.Run.State.Terminal() {
		l.finished(p, s.Run)
		p.line = p.line || inLine(s.Run, ar.of)
		l.reportEnd(p, s.Run)
	}
}

func byHead(a, b pipeline.Head) int {
	return cmp.Or(strings.Compare(string(a.Commit), string(b.Commit)), strings.Compare(a.Repo, b.Repo))
}

// tell sends a message once the pass is written.
func (l *Runs) tell(p *pass, id pipeline.AgentID, m wire.Message) {
	p.after = append(p.after, func(context.Context) { l.cfg.Fleet.Send(id, m) })
}

// commit writes the pass. Nothing to write costs nothing.
func (l *Runs) commit(ctx context.Context, p *pass) error {
	if p.failed != nil || len(p.steps)+len(p.agents)+len(p.pauses)+len(p.said)+len(p.restate) == 0 {
		return p.failed
	}
	var statuses []pipeline.Status
	for id := range p.restate {
		p.touch[id] = true
	}
	for _, id := range slices.SortedFunc(maps.Keys(p.touch), byHead) {
		statuses = append(statuses, l.statuses(id, p)...)
	}
	err := l.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		for _, m := range p.made {
			if err := tx.CreateRun(m.run, m.of); fault.Is(err, fault.Conflict) {
				l.cfg.Log.Error("run made twice", "run_id", m.run.ID, "err", err)
			} else if err != nil {
				return err
			} else if err := tx.RecordVerdicts([]pipeline.Verdict{verdictOf(m.run)}); err != nil {
				return err
			}
		}
		for _, s := range p.steps {
			if err := tx.SaveRun(s.before, s.Run); err != nil {
				return err
			}
			for _, a := range s.Attempts {
				if err := tx.SaveAttempt(a.Before, &a.After); err != nil {
					return err
				}
			}
		}
		for _, id := range slices.Sorted(maps.Keys(p.agents)) {
			if err := tx.SaveAgent(p.agents[id]); fault.Is(err, fault.Invalid) || fault.Is(err, fault.NotFound) {
				l.cfg.Log.Error("agent not recorded", "agent_id", id, "err", err)
			} else if err != nil {
				return err
			}
		}
		for _, id := range slices.Sorted(maps.Keys(p.pauses)) {
			if err := tx.PauseAgent(id, p.pauses[id]); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		for _, s := range statuses {
			if err := tx.Desire(s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	l.failures = 0
	if len(statuses) > 0 && l.cfg.StatusesChanged != nil {
		l.cfg.StatusesChanged()
	}
	return nil
}
