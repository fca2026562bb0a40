package loop_test

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// player is an agent that keeps its promises: what it accepted it holds until it is
// told to forget it, and it starts nothing twice.
type player struct {
	w      *world
	agent  pipeline.Agent
	held   map[pipeline.AttemptID]*held
	starts map[pipeline.TaskName]int
	mute   bool // what it says is lost
	fails  pipeline.TaskName
}

type held struct {
	wire.Held
	task pipeline.TaskName
}

func (p *player) say(m wire.Message) {
	if !p.mute {
		p.w.runs.Message(p.agent.ID, m)
	}
}

// connect makes a new connection.
func (p *player) connect() {
	p.mute = false
	p.w.runs.Disconnected(p.agent.ID)
	var all []wire.Held
	for _, h := range p.held {
		all = append(all, h.Held)
	}
	p.agent = p.w.agent(p.agent.Name, all...)
	for _, h := range p.held {
		p.result(h)
	}
}

func (p *player) result(h *held) {
	if h.Phase == wire.HeldEnded {
		outcome := pipeline.Success
		if h.task == p.fails {
			outcome = pipeline.Failure
		}
		p.say(&wire.Result{Attempt: h.Attempt, Token: h.Token, Result: pipeline.Result{
			Outcome: outcome, Outputs: []byte(`{"id":"` + string(h.task) + `"}`),
		}})
	}
}

func (p *player) hear(m wire.Message) {
	switch m := m.(type) {
	case *wire.Offer:
		if p.held[m.Attempt] == nil {
			p.held[m.Attempt] = &held{wire.Held{Attempt: m.Attempt, Token: m.Token, Phase: wire.HeldAccepted}, m.Spec.Task}
		}
		p.say(&wire.Accept{Attempt: m.Attempt, Token: m.Token})
	case *wire.Go:
		h := p.held[m.Attempt]
		if h == nil || h.Phase != wire.HeldAccepted {
			return
		}
		h.Phase = wire.HeldEnded
		p.starts[h.task]++
		p.result(h)
	case *wire.LogAck:
		if h := p.held[m.Attempt]; h != nil {
			p.result(h)
		}
	case *wire.Ack:
		delete(p.held, m.Attempt)
	case *wire.Fenced:
		if h := p.held[m.Attempt]; h != nil && h.Phase == wire.HeldEnded {
			p.w.t.Errorf("the result of %s was turned down: %s", h.task, m.Reason)
		}
		delete(p.held, m.Attempt)
	}
}

// quiet waits until the loop has looked at all that it was told.
func (w *world) quiet() {
	w.t.Helper()
	if _, err := w.runs.Active(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// raw opens the record beside the loop, to make writes fail.
func (w *world) raw() *sql.DB {
	w.t.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(w.dir, "maestro.db")+"?_busy_timeout=10000")
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { db.Close() })
	return db
}

// TestEveryFaultAtEveryPointHasTheSameOutcome plays one run again and again: each
// message that the loop sends, and each version that it writes, goes wrong once in
// each way. Every task is started once, whatever happens.
func TestEveryFaultAtEveryPointHasTheSameOutcome(t *testing.T) {
	t.Parallel()
	messages := playFaults(t, "", 0)
	if messages < 7 {
		t.Fatalf("a run took %d messages", messages)
	}
	for _, what := range []string{
		"message lost", "answer lost", "restart before", "restart after", "restart without the agent", "heard twice", "log not read", "write fails",
	} {
		for at := 1; at <= messages; at++ {
			t.Run(fmt.Sprintf("%s %d", strings.ReplaceAll(what, " ", "-"), at), func(t *testing.T) {
				t.Parallel()
				playFaults(t, what, at)
			})
		}
	}
}

func playFaults(t *testing.T, what string, at int) (messages int) {
	w := newWorld(t)
	p := &player{w: w, held: map[pipeline.AttemptID]*held{}, starts: map[pipeline.TaskName]int{}}
	w.push("")
	p.agent = w.agent("one")
	if what == "write fails" {
		w.breakWrite(at)
	}
	w.push(w.commit("c1",
		pipeline.Task{Name: "a"},
		pipeline.Task{Name: "b", Needs: []pipeline.TaskName{"a"}, Bindings: []pipeline.Binding{{Field: "id", From: "a", Output: "id"}}},
		pipeline.Task{Name: "c", Needs: []pipeline.TaskName{"b"}, Deferred: true},
	))
	signal, stop := w.db.Watch()
	defer func() { stop() }()
	deadline := time.After(patience)
	for {
		r, err := w.db.RunByNumber(t.Context(), "c", 1)
		if err == nil && r.State.Terminal() {
			w.checkOnce(p, r)
			return messages
		}
		select {
		case s := <-w.sent:
			if messages++; messages != at {
				p.hear(s.m)
				break
			}
			w.fail(p, what, s.m)
			stop()
			signal, stop = w.db.Watch()
		case <-w.dropped:
			w.mendWrite()
			p.connect()
		case <-signal:
		case <-deadline:
			t.Fatalf("the run does not end: %+v, %v", r, err)
		}
	}
}

// fail makes the message go wrong in the way named.
func (w *world) fail(p *player, what string, m wire.Message) {
	switch what {
	case "message lost":
		p.connect()
	case "answer lost":
		p.mute = true
		p.hear(m)
		p.connect()
	case "restart before":
		w.restart()
		p.connect()
	case "restart after":
		p.hear(m)
		w.restart()
		p.connect()
	case "restart without the agent":
		p.mute = true
		p.hear(m)
		w.restart()
		w.restart()
		p.connect()
	case "heard twice":
		p.hear(m)
		p.hear(m)
	case "log not read":
		w.set(&w.noLogs, errors.New("the disk is away"))
		p.hear(m)
		p.connect()
		w.quiet()
		w.set(&w.noLogs, nil)
		p.connect()
	default:
		p.hear(m)
	}
}

// breakWrite makes the write of the run's version fail until mendWrite.
func (w *world) breakWrite(version int) {
	w.t.Helper()
	_, err := w.raw().Exec(fmt.Sprintf(`CREATE TRIGGER broken BEFORE UPDATE ON runs WHEN NEW.version = %d
		BEGIN SELECT RAISE(ABORT, 'the disk is full'); END`, version+1))
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) mendWrite() {
	w.t.Helper()
	if _, err := w.raw().Exec(`DROP TRIGGER IF EXISTS broken`); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) checkOnce(p *player, r *pipeline.Run) {
	w.t.Helper()
	if r.State != pipeline.Success {
		w.t.Errorf("the run is %s: %s", r.State, r.Reason)
	}
	for _, k := range r.Tasks {
		if p.starts[k.Name] != 1 {
			w.t.Errorf("task %s was started %d times", k.Name, p.starts[k.Name])
		}
	}
	attempts, err := w.db.Attempts(w.t.Context(), r.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	done := slices.DeleteFunc(attempts, func(a pipeline.Attempt) bool { return a.State == pipeline.AttemptDeclined })
	if len(done) != len(r.Tasks) {
		w.t.Errorf("%d attempts for %d tasks: %+v", len(done), len(r.Tasks), done)
	}
	if s := w.rollUp(r.Commit); s.State != "success" {
		w.t.Errorf("status = %+v", s)
	}
}

func TestFieldsThatCannotBeComputedNowHoldNobodyUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.set(&w.noFields, fault.New(fault.Unavailable, "the evaluator is away"))
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a", Deferred: true}, pipeline.Task{Name: "b"}))
	o := w.accept(a)
	if o.Spec.Task != "b" {
		t.Fatalf("%s was offered, whose fields are not known", o.Spec.Task)
	}
	r := w.await(pipeline.Running)
	for deadline := time.Now().Add(patience); ; {
		m, err := w.runs.Moment(t.Context(), r.ID, 10)
		if err == nil && len(m.Queue) == 1 && strings.Contains(m.Queue[0].Sentence, "the evaluator is away") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("queue = %+v, %v", m.Queue, err)
		}
	}
	w.set(&w.noFields, nil)
	if o := w.accept(a); o.Spec.Task != "a" {
		t.Errorf("%s was offered", o.Spec.Task)
	}
}

func TestGoWaitsUntilItIsKnownWhatSecretsThereAre(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.set(&w.noSecrets, nil)
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a", Secrets: []pipeline.SecretName{"token"}}))
	o := w.accept(a)
	// The agent has not heard go, and the next reconciler knows no configuration yet.
	w.set(&w.noSecrets, fault.New(fault.Unavailable, "no configuration is live yet"))
	w.restart()
	w.agent("one", wire.Held{Attempt: o.Attempt, Token: o.Token, Phase: wire.HeldAccepted})
	w.quiet()
	w.set(&w.noSecrets, nil)
	for {
		switch m := (<-w.sent).m.(type) {
		case *wire.Go:
			if m.Attempt != o.Attempt || m.Secrets["token"] != "the value of token" {
				t.Errorf("go = %+v", m)
			}
			return
		case *wire.Cancel, *wire.Fenced, *wire.Offer:
			t.Fatalf("the agent was sent %T", m)
		}
	}
}

func TestOfferThatFitsIntoNoMessageIsAnErrorOfItsTask(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a", Fields: []byte(`{"x":"` + strings.Repeat("x", wire.MaxFrame) + `"}`)}))
	if r := w.await(pipeline.Error); !strings.Contains(r.Reason, "bytes, most is") {
		t.Errorf("reason = %q", r.Reason)
	}
}

func TestLogThatCannotBeSealedHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.sealing = make(chan struct{})
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}, pipeline.Task{Name: "b", Needs: []pipeline.TaskName{"a"}}))
	for range 2 {
		w.runs.Message(a.ID, success(w.accept(a), `{}`))
	}
	w.await(pipeline.Success)
}

func TestCancelSurvivesAWriteThatFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.breakWrite(1)
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	r, err := w.db.RunByNumber(t.Context(), "c", 1)
	if err != nil {
		t.Fatal(err)
	}
	w.runs.Cancel(r.ID, "no longer wanted")
	w.quiet()
	w.mendWrite()
	if r := w.await(pipeline.Cancelled); r.Reason != "no longer wanted" {
		t.Errorf("reason = %q", r.Reason)
	}
}

func TestACancelThatIsNotWrittenIsNotAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.config("c1", pushed("c", shellTask("a"))))
	r := w.await(pipeline.Ready)
	w.breakWrite(int(r.Version))
	if err := w.runs.CancelNow(t.Context(), r.ID, "cancelled by ana"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("with a record that takes nothing: %v", err)
	}
	w.mendWrite()
	if err := w.runs.CancelNow(t.Context(), r.ID, "cancelled by ana"); err != nil {
		t.Error(err)
	}
	if r, err := w.db.Run(t.Context(), r.ID); err != nil || r.State != pipeline.Cancelled {
		t.Errorf("it is %s, %v", r.State, err)
	}
}

func TestOnceTaskThatItsAgentNeverStartedIsOfferedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a", Effect: pipeline.Once}))
	o := w.accept(a)
	w.runs.Message(a.ID, &wire.Result{Attempt: o.Attempt, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Error, Lost: true}})
	w.await(pipeline.InDoubt)
	// An answer to an offer that was heard twice says nothing of a start.
	w.runs.Message(a.ID, &wire.Decline{Attempt: o.Attempt, Token: o.Token, Reason: "it has ended here and was acknowledged"})
	w.quiet()
	w.await(pipeline.InDoubt)
	w.runs.Disconnected(a.ID)
	w.agent("one", wire.Held{Attempt: o.Attempt, Token: o.Token, Phase: wire.HeldAccepted})
	if f := expect[*wire.Fenced](w, a.ID); f.Attempt != o.Attempt {
		t.Errorf("fenced %s", f.Attempt)
	}
	again := w.accept(a)
	if again.Token.Epoch != 2 {
		t.Errorf("epoch = %d, want a second offer", again.Token.Epoch)
	}
	w.runs.Message(a.ID, success(again, `{}`))
	w.await(pipeline.Success)
}
