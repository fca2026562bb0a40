//go:build linux

package runner_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/journal"
	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

func TestRestartedRunnerFindsEverythingAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	h.mu.Lock()
	h.deaf = true // nobody acknowledges
	h.mu.Unlock()
	accepted, running, ended := job("echo a"), job("echo b; sleep 1; echo b2"), job("echo c")
	for i, o := range []*wire.Offer{accepted, running, ended} {
		o.Spec.Task = pipeline.TaskName("t" + strconv.Itoa(i))
	}
	h.r.Handle(accepted)
	expect[*wire.Accept](h.control, accepted.Attempt)
	h.start(running)
	h.start(ended)
	h.result(ended)
	h.untilLog(running.Attempt, "b\n")
	h.close()

	h.open()
	phases := map[pipeline.AttemptID]string{}
	for _, a := range h.r.Held(0) {
		phases[a.Attempt] = a.Phase
		if a.Token != running.Token {
			t.Errorf("token of %s is %v", a.Attempt, a.Token)
		}
	}
	for o, phase := range map[*wire.Offer]string{accepted: wire.HeldAccepted, running: wire.HeldRunning, ended: wire.HeldEnded} {
		if phases[o.Attempt] != phase {
			t.Errorf("%s is %q, want %q", o.Spec.Task, phases[o.Attempt], phase)
		}
	}
	h.mu.Lock()
	h.deaf = false
	h.mu.Unlock()
	h.connect()
	h.r.Handle(&wire.Go{Attempt: accepted.Attempt, Token: accepted.Token})
	h.eventually("all three are acknowledged", func() bool { return len(h.r.Held(0)) == 0 })
	for o, log := range map[*wire.Offer]string{accepted: "a\n", running: "b\nb2\n", ended: "c\n"} {
		want(t, h.result(o), pipeline.Success, "")
		if h.log(o.Attempt) != log {
			t.Errorf("log of %s = %q, want %q", o.Spec.Task, h.log(o.Attempt), log)
		}
	}
}

// The record is put back to before the end of a task whose result was acknowledged: the
// agent, restarted or not, tells it again, and of the log what became of it.
func TestAcknowledgedResultIsToldAgainToARecordThatWasPutBack(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.record = 1
	h.open().connect()
	o := job(`echo begun; echo ended; echo '{"output":{"name":"x","value":1}}' >> "$MAESTRO_EVENTS"`)
	o.Spec.Outputs = pipeline.Type{Open: true}
	h.start(o)
	first := h.result(o)
	gone := func() { h.eventually("nothing is held", func() bool { return len(h.r.Held(h.record)) == 0 }) }
	gone()
	h.connect()
	if held := h.r.Held(1); len(held) != 0 {
		t.Errorf("held for the record that acknowledged: %v", held)
	}

	h.close()
	h.open().putBack(o.Attempt, len("begun\n"))
	again := h.result(o)
	want(t, again, first.Outcome, "the last 6 bytes of its log were lost")
	if again.LogBytes != 6 || string(again.Outputs) != `{"x":1}` || *again.Exit != *first.Exit {
		t.Errorf("told again: %+v, first: %+v", again, first)
	}
	gone()

	// A second time, and that record does not want it; a third one may.
	h.mu.Lock()
	h.deaf = true
	h.mu.Unlock()
	h.putBack(o.Attempt, 0)
	h.result(o)
	h.r.Handle(&wire.Fenced{Attempt: o.Attempt, Token: o.Token, Reason: "no such assignment"})
	gone()
	h.close()
	h.open()
	if held := h.r.Held(h.record); len(held) != 0 {
		t.Errorf("held for the record that did not want it: %v", held)
	}
	h.mu.Lock()
	h.deaf = false
	h.mu.Unlock()
	h.putBack(o.Attempt, 0)
	if r := h.result(o); r.Outcome != first.Outcome {
		t.Errorf("told the third record: %+v", r)
	}
	gone()
}

// A result without a log waits as well until somebody shows that it knows the attempt.
func TestAcknowledgedResultIsNotToldToWhoDoesNotAskForIt(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.record = 1
	h.open().connect()
	o := h.start(job("true"))
	h.result(o)
	h.eventually("nothing is held", func() bool { return len(h.r.Held(1)) == 0 })
	h.mu.Lock()
	h.messages = nil
	h.mu.Unlock()
	if held := h.r.Held(2); len(held) != 1 {
		t.Fatalf("held = %v", held)
	}
	other := &link{c: h.control, done: make(chan struct{})}
	h.r.Connected(other, wire.Welcome{Version: 1, Incarnation: 2}, time.Now())
	h.r.Handle(&wire.Fenced{Attempt: o.Attempt, Token: o.Token, Reason: "no such assignment"})
	h.eventually("nothing is held", func() bool { return len(h.r.Held(2)) == 0 })
	if n := count[*wire.Result](h.control, o.Attempt); n != 0 {
		t.Errorf("the result was told %d times", n)
	}
}

func TestTaskIsCancelledAfterARestart(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	o := h.start(job("echo begun; sleep 100"))
	h.untilLog(o.Attempt, "begun")
	h.close()
	h.open().connect()
	h.r.Handle(&wire.Cancel{Attempt: o.Attempt, Token: o.Token, Reason: "enough"})
	want(t, h.result(o), pipeline.Cancelled, "enough")
}

func TestFencedTaskDiesEvenIfTheAgentIsRestartedMeanwhile(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	h.cfg.Grace = 0
	o := h.start(job("trap '' TERM; echo begun; while :; do sleep 0.1; done"))
	h.untilLog(o.Attempt, "begun")
	h.r.Handle(&wire.Fenced{Attempt: o.Attempt, Token: o.Token, Reason: "given up"})
	h.close()
	h.open()
	if held := h.r.Held(0); len(held) > 0 {
		t.Errorf("a disowned attempt is held: %v", held)
	}
	h.connect()
	h.eventually("it is dead and gone", func() bool { _, err := os.Stat(h.attemptDir(o)); return os.IsNotExist(err) })
}

func TestKilledShimMeansLost(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	o := h.start(job("echo begun; (setsid sleep 100 &); sleep 100"))
	h.untilLog(o.Attempt, "begun")
	p, ok := shimProcess(h.attemptDir(o))
	if !ok {
		t.Fatal("no pid file")
	}
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r := h.result(o)
	want(t, r, pipeline.Error, "watches over the task was killed")
	if !r.Lost {
		t.Error("the result does not say that the attempt is lost")
	}
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), string(o.Attempt)) {
			t.Errorf("%s is still there", f)
		}
	}
}

func TestProcessOfTheSameNumberIsNotAdopted(t *testing.T) {
	t.Parallel()
	self, err := shim.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		process journal.Process
		reason  string
	}{
		"other start time": {journal.Process{PID: self.PID, Start: self.Start - 1, Boot: self.Boot}, "was killed"},
		"other boot":       {journal.Process{PID: self.PID, Start: self.Start, Boot: "another"}, "machine was restarted"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			o := job("echo x")
			j, err := journal.Open(filepath.Join(h.dir, "journal"), h.cfg.Log)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range []journal.Record{
				{Kind: journal.Accepted, Attempt: o.Attempt, Token: o.Token, At: time.Now(), Spec: &o.Spec},
				{Kind: journal.Started, Attempt: o.Attempt, Token: o.Token, At: time.Now(), Process: &c.process},
			} {
				if err := j.Promise(r); err != nil {
					t.Fatal(err)
				}
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(h.attemptDir(o), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(h.attemptDir(o), shim.PIDFile), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
			h.open().connect()
			r := h.result(o)
			want(t, r, pipeline.Error, c.reason)
			if !r.Lost {
				t.Error("not lost")
			}
		})
	}
}

func TestShimThatWasNeverToldIsStartedAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	o := job("echo ran")
	o.Spec.Effect = pipeline.Once
	self, err := shim.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(filepath.Join(h.dir, "journal"), h.cfg.Log)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []journal.Record{
		{Kind: journal.Accepted, Attempt: o.Attempt, Token: o.Token, At: time.Now(), Spec: &o.Spec},
		{
			Kind: journal.Started, Attempt: o.Attempt, Token: o.Token, At: time.Now(),
			Process: &journal.Process{PID: self.PID, Start: self.Start - 1, Boot: self.Boot},
		},
	} {
		if err := j.Promise(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	h.open()
	if held := h.r.Held(0); len(held) != 1 || held[0].Phase != wire.HeldAccepted {
		t.Fatalf("held = %v", held)
	}
	h.connect()
	h.r.Handle(&wire.Go{Attempt: o.Attempt, Token: o.Token})
	want(t, h.result(o), pipeline.Success, "")
	if h.log(o.Attempt) != "ran\n" {
		t.Errorf("log = %q", h.log(o.Attempt))
	}
}

func TestSilenceStopsIdempotentTasksAndHeartbeatsKeepThem(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		effect  pipeline.Effect
		renewed bool
		lost    bool
	}{
		"silence stops an idempotent task": {pipeline.Idempotent, false, true},
		"heartbeats keep it":               {pipeline.Idempotent, true, false},
		"once goes on":                     {pipeline.Once, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t).open().connect()
			o := job("echo begun; sleep 2")
			o.Spec.Effect = c.effect
			o.Spec.LostAfter = pipeline.Duration(2 * time.Second) // a lease of one
			h.start(o)
			if c.renewed {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() { // ends with ctx
					beat := time.NewTicker(100 * time.Millisecond)
					defer beat.Stop()
					for {
						select {
						case <-beat.C:
							h.r.Renewed(time.Now())
						case <-ctx.Done():
							return
						}
					}
				}()
			}
			r := h.result(o)
			if r.Lost != c.lost || (c.lost && !strings.Contains(r.Reason, "lost contact")) || (!c.lost && r.Outcome != pipeline.Success) {
				t.Errorf("result = %+v", r)
			}
		})
	}
}
