package loop_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func TestTaskGoesFromPushToAcknowledgedResult(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a", Fields: json.RawMessage(`{"x":1}`)}))
	o := w.accept(a)
	if string(o.Spec.Fields) != `{"x":1}` || o.Spec.Plugin.Tree != "git:1" || o.Spec.Commit != "c1" {
		t.Errorf("spec = %+v", o.Spec)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	expect[*wire.Ack](w, a.ID)
	r := w.await(pipeline.Success)
	statuses, err := w.db.StatusesOf(t.Context(), r.Commit)
	if err != nil || len(statuses) != 2 || statuses[0].State != "success" || statuses[1].State != "success" {
		t.Errorf("statuses = %+v, %v", statuses, err)
	}
}

func TestSameEventStartsOneRunOverRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	c := w.commit("c1", pipeline.Task{Name: "a"})
	w.push(c)
	w.push(c)
	w.restart()
	w.push(c)
	// A ref that goes back to where it was asks for the same run again.
	w.push(w.commit("c2"))
	w.push(c)
	runs, err := w.db.Runs(t.Context(), store.Filter{Commit: c, Limit: 10})
	if err != nil || len(runs) != 1 {
		t.Errorf("%d runs of one event, %v", len(runs), err)
	}
}

func TestFirstLookIsABaseline(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.commit("c1", pipeline.Task{Name: "a"})
	w.push(c)
	if runs, err := w.db.Runs(t.Context(), store.Filter{Limit: 10}); err != nil || len(runs) != 0 {
		t.Errorf("the past ran: %d runs, %v", len(runs), err)
	}
	if w.c.Live() == nil || w.c.Live().Commit != c {
		t.Error("the first commit is not live")
	}
}

func TestUnavailableRepositoryIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	c := w.commit("c1", pipeline.Task{Name: "a"})
	w.repo.fail = fault.New(fault.Unavailable, "the disk is away")
	if err := w.c.Observe(t.Context(), map[pipeline.Ref]pipeline.CommitID{mainRef: c}); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("Observe = %v", err)
	}
	w.repo.fail = nil
	w.push(c)
	if runs, err := w.db.Runs(t.Context(), store.Filter{Limit: 10}); err != nil || len(runs) != 1 {
		t.Errorf("%d runs, %v", len(runs), err)
	}
}

func TestRestartGoesOnWhereTheRecordIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	o := w.accept(a)
	w.restart()
	w.logs[o.Attempt] = 5
	w.agent("one", wire.Held{Attempt: o.Attempt, Token: o.Token, Phase: wire.HeldRunning})
	if ack := expect[*wire.LogAck](w, a.ID); ack.Length != 5 {
		t.Errorf("log goes on from %d, want 5", ack.Length)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	expect[*wire.Ack](w, a.ID)
	r := w.await(pipeline.Success)
	if r.Tasks[0].Epoch != 1 {
		t.Errorf("the task was started %d times", r.Tasks[0].Epoch)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	expect[*wire.Ack](w, a.ID) // the first one may have been lost
}

// TestResultEndsATaskThatTheRecordHoldsAsOffered: only a record that was put back does.
func TestResultEndsATaskThatTheRecordHoldsAsOffered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	o := expect[*wire.Offer](w, a.ID)
	w.restart()
	w.agent("one", wire.Held{Attempt: o.Attempt, Token: o.Token, Phase: wire.HeldEnded})
	expect[*wire.LogAck](w, a.ID)
	w.runs.Message(a.ID, success(o, `{}`))
	expect[*wire.Ack](w, a.ID)
	if r := w.await(pipeline.Success); r.Tasks[0].Epoch != 1 {
		t.Errorf("the task was started %d times", r.Tasks[0].Epoch)
	}
}

func TestAcceptThatWasLostIsMadeUpForAtTheNextConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	o := expect[*wire.Offer](w, a.ID)
	w.restart()
	w.agent("one", wire.Held{Attempt: o.Attempt, Token: o.Token, Phase: wire.HeldAccepted})
	expect[*wire.Go](w, a.ID)
}

func TestOfferOfAnAgentThatGoesAwayIsGivenToAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	o := expect[*wire.Offer](w, a.ID)
	w.runs.Disconnected(a.ID)
	b := w.agent("two")
	o2 := expect[*wire.Offer](w, b.ID)
	if o2.Token.Epoch != o.Token.Epoch+1 {
		t.Errorf("second offer has epoch %d", o2.Token.Epoch)
	}
	w.agent("one", wire.Held{Attempt: o.Attempt, Token: o.Token, Phase: wire.HeldAccepted})
	if f := expect[*wire.Fenced](w, a.ID); f.Attempt != o.Attempt {
		t.Errorf("fenced %s", f.Attempt)
	}
}

func TestNobodySpeaksForAnotherAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	o := w.accept(a)
	b := w.agent("two")
	w.runs.Message(b.ID, success(o, `{}`))
	expect[*wire.Fenced](w, b.ID)
	forged := *o
	forged.Token.Epoch++
	w.runs.Message(a.ID, success(&forged, `{}`))
	expect[*wire.Fenced](w, a.ID)
	if r := w.await(pipeline.Running); r.Tasks[0].State != pipeline.Running {
		t.Errorf("task is %s", r.Tasks[0].State)
	}
}

func TestResultCountsOnlyWithItsWholeLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	o := w.accept(a)
	res := success(o, `{}`)
	res.Result.LogBytes = 10
	w.runs.Message(a.ID, res)
	if ack := expect[*wire.LogAck](w, a.ID); !ack.Resend || ack.Length != 0 {
		t.Errorf("answer = %+v", ack)
	}
	w.mu.Lock()
	w.logs[o.Attempt] = 10
	w.mu.Unlock()
	w.runs.Message(a.ID, res)
	expect[*wire.Ack](w, a.ID)
}

func TestAgentThatForgotATaskLosesIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	w.accept(a)
	w.runs.Disconnected(a.ID)
	w.agent("one")
	if o := expect[*wire.Offer](w, a.ID); o.Token.Epoch != 2 {
		t.Errorf("epoch = %d, want a second start", o.Token.Epoch)
	}
}

func TestOnceTaskOfAnAgentThatForgotItIsInDoubt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a", Effect: pipeline.Once}))
	o := w.accept(a)
	w.runs.Disconnected(a.ID)
	w.agent("one")
	w.await(pipeline.InDoubt)
	w.restart()
	w.agent("one")
	w.runs.Message(a.ID, success(o, `{}`)) // found after all
	expect[*wire.Ack](w, a.ID)
	w.await(pipeline.Success)
}

func TestBindingsAndFilledFieldsReachTheTask(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1",
		pipeline.Task{Name: "a"},
		pipeline.Task{
			Name: "b", Needs: []pipeline.TaskName{"a"}, Fields: json.RawMessage(`{"x":1}`),
			Bindings: []pipeline.Binding{{Field: "dir", From: "a", Output: "workdir"}},
		},
		pipeline.Task{Name: "c", Needs: []pipeline.TaskName{"b"}, Deferred: true},
		pipeline.Task{Name: "d", Needs: []pipeline.TaskName{"c"}, Deferred: true, Description: "does not fit"},
	))
	w.runs.Message(a.ID, success(w.accept(a), `{"workdir":"src"}`))
	o := w.accept(a)
	if string(o.Spec.Fields) != `{"dir":"src","x":1}` {
		t.Errorf("fields of b = %s", o.Spec.Fields)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	o = w.accept(a)
	if string(o.Spec.Fields) != `{"saw":2}` {
		t.Errorf("fields of c = %s", o.Spec.Fields)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	if r := w.await(pipeline.Error); r.Task("d").Reason != "field x does not fit" {
		t.Errorf("d: %s", r.Task("d").Reason)
	}
}

func TestSecretThatIsMissingFailsTheTaskAndSaysWhich(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a", Secrets: []pipeline.SecretName{"key"}}))
	if r := w.await(pipeline.Error); r.Task("a").Reason != "secret key: it is not declared" {
		t.Errorf("reason = %q", r.Task("a").Reason)
	}
}

func TestCancelledRunTellsItsAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	o := w.accept(a)
	r := w.await(pipeline.Running)
	w.runs.Cancel(r.ID, "no longer wanted")
	if c := expect[*wire.Cancel](w, a.ID); c.Attempt != o.Attempt || c.Token != o.Token {
		t.Errorf("cancel = %+v", c)
	}
	w.runs.Message(a.ID, &wire.Result{Attempt: o.Attempt, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Cancelled}})
	w.await(pipeline.Cancelled)
}

func TestWaitingTaskIsExplained(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	m, err := w.runs.Moment(t.Context(), "", 10)
	if err != nil || len(m.Queue) != 1 || !m.Queue[0].Blocked {
		t.Fatalf("moment = %+v, %v", m, err)
	}
}

func TestWhatATaskSaysIsKeptWhileItRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	o := w.accept(a)
	r := w.await(pipeline.Running)
	signal, stop := w.runs.WatchNotes()
	defer stop()
	said := func() pipeline.Note {
		m, err := w.runs.Moment(t.Context(), "", 10) // answers after what was queued before
		if err != nil || m.Names[a.ID] != "one" {
			t.Fatalf("moment = %+v, %v", m, err)
		}
		return m.Notes[o.Attempt]
	}
	part, lock, nothing := 0.4, "the lock", ""
	say := func(n wire.Note) {
		n.Attempt, n.Token = o.Attempt, o.Token
		w.runs.Message(a.ID, &n)
	}
	say(wire.Note{Progress: &part, Text: "copying"})
	say(wire.Note{Waiting: &lock, Links: []pipeline.Link{{Name: "page", URL: "https://x/1"}}})
	say(wire.Note{Links: []pipeline.Link{{Name: "page", URL: "https://x/2"}}})
	if n := said(); n.String() != "40% done, waits for the lock, copying" || len(n.Links) != 1 || n.Links[0].URL != "https://x/2" {
		t.Errorf("note = %q, %+v", &n, n)
	}
	<-signal
	if runs, newest := w.runs.Noted(2); newest != 3 || len(runs) != 1 || runs[0] != r.ID {
		t.Errorf("noted = %v, %d", runs, newest)
	}
	say(wire.Note{Waiting: &nothing})
	if n := said(); n.Waiting != "" || n.Text != "copying" {
		t.Errorf("note = %+v, want it to go on", n)
	}
	w.runs.Message("other", &wire.Note{Attempt: o.Attempt, Token: o.Token, Text: "not mine to tell"})
	if n := said(); n.Text != "copying" {
		t.Errorf("note = %+v, from an agent that does not have the task", n)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	w.await(pipeline.Success)
	if n := said(); !n.Empty() {
		t.Errorf("note = %+v after the end", n)
	}
	if runs, _ := w.runs.Noted(0); len(runs) != 0 {
		t.Errorf("noted = %v after the end", runs)
	}
}

func TestAnAgentThatLeftIsSilentSinceItWasLastHeardOf(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	w.accept(a)
	before := time.Now()
	w.runs.Disconnected(a.ID)
	tick := time.NewTicker(100 * time.Millisecond) // that time passes is no event
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		m, err := w.runs.Moment(t.Context(), "", 10)
		at, silent := m.Silent[a.ID]
		switch {
		case err != nil || silent && at.After(before) || time.Now().After(deadline):
			t.Fatalf("silent = %v, %v", m.Silent, err)
		case silent:
			return
		}
	}
}
