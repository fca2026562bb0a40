//go:build linux

package runner_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/runner"
	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// The test binary is its own shim, and its own agentd where one is to be killed.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "shim" {
		os.Exit(shim.Main(os.Stdin, os.Stderr))
	}
	if dir := os.Getenv("TEST_AGENTD_DIR"); dir != "" {
		os.Exit(standIn(dir, os.Getenv("TEST_AGENTD_CONTROL")))
	}
	os.Exit(m.Run())
}

func shimProcess(dir string) (shim.Process, bool) {
	var p shim.Process
	b, err := os.ReadFile(filepath.Join(dir, shim.PIDFile))
	return p, err == nil && json.Unmarshal(b, &p) == nil
}

func shimAlive(dir string) bool {
	p, ok := shimProcess(dir)
	return ok && p.Alive()
}

func (h *host) attemptDir(o *wire.Offer) string {
	return filepath.Join(h.dir, "attempts", string(o.Attempt))
}

func want(t *testing.T, r pipeline.Result, outcome pipeline.State, reason string) {
	t.Helper()
	if r.Outcome != outcome || !strings.Contains(r.Reason, reason) {
		t.Errorf("outcome %q because %q, want %q because of %q", r.Outcome, r.Reason, outcome, reason)
	}
}

func TestTaskGoesFromOfferToAcknowledgedResult(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	o := h.start(job(`echo hello; "$MAESTRO_AGENTD" 2>/dev/null; echo '{"output":{"name":"n","value":3}}' >> $MAESTRO_EVENTS; touch $TMPDIR/x kept`))
	r := h.result(o)
	want(t, r, pipeline.Success, "")
	if string(r.Outputs) != `{"n":3}` || r.Exit == nil || *r.Exit != 0 || h.log(o.Attempt) != "hello\n" {
		t.Errorf("result %+v, log %q", r, h.log(o.Attempt))
	}
	h.eventually("nothing is held", func() bool { return len(h.r.Held(0)) == 0 })
	h.eventually("its files are gone", func() bool {
		_, err1 := os.Stat(h.attemptDir(o))
		_, err2 := os.Stat(filepath.Join(h.dir, "scratch", string(o.Attempt)))
		return os.IsNotExist(err1) && os.IsNotExist(err2)
	})
	if _, err := os.Stat(filepath.Join(h.dir, "work", "build", "trusted-0", "kept")); err != nil {
		t.Errorf("the workspace is not kept: %v", err)
	}
}

func TestNothingStartsBeforeGo(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	o := job("echo ran")
	h.r.Handle(o)
	expect[*wire.Accept](h.control, o.Attempt)
	if held := h.r.Held(0); len(held) != 1 || held[0].Phase != wire.HeldAccepted {
		t.Errorf("held = %v", held)
	}
	// Another one goes from its offer to its end meanwhile.
	other := job("echo ran")
	other.Spec.Task = "other"
	want(t, h.result(h.start(other)), pipeline.Success, "")
	h.r.Handle(&wire.Cancel{Attempt: o.Attempt, Token: o.Token, Reason: "run 8 is newer"})
	want(t, h.result(o), pipeline.Cancelled, "run 8 is newer")
	if count[*wire.Started](h.control, o.Attempt) > 0 || h.log(o.Attempt) != "" {
		t.Error("it started")
	}
}

func TestLeaveThatComesTooLateStartsNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	o := job("echo ran")
	o.Spec.LostAfter = 1 // a nanosecond
	h.r.Handle(o)
	expect[*wire.Accept](h.control, o.Attempt)
	h.r.Handle(&wire.Go{Attempt: o.Attempt, Token: o.Token})
	if r := h.result(o); !r.Lost || count[*wire.Started](h.control, o.Attempt) > 0 {
		t.Errorf("result = %+v", r)
	}
}

func TestRepeatedMessagesStartNothingTwice(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	mark := filepath.Join(t.TempDir(), "starts")
	o := job("echo x >> " + mark + "; sleep 0.5")
	say := func() {
		h.r.Handle(o)
		h.r.Handle(&wire.Go{Attempt: o.Attempt, Token: o.Token})
	}
	h.start(o)
	for range 5 {
		say()
	}
	want(t, h.result(o), pipeline.Success, "")
	h.eventually("it is forgotten", func() bool { return len(h.r.Held(0)) == 0 })
	say() // late duplicates after the acknowledgement
	if d := expect[*wire.Decline](h.control, o.Attempt); !strings.Contains(d.Reason, "has ended here") {
		t.Errorf("declined because %q", d.Reason)
	}
	h.close()
	h.open().connect()
	say() // and after a restart
	h.eventually("it is declined again", func() bool { return count[*wire.Decline](h.control, o.Attempt) == 2 })
	if b, err := os.ReadFile(mark); err != nil || string(b) != "x\n" {
		t.Errorf("starts: %q, %v", b, err)
	}
}

func TestMessageWithAnotherTokenMeansNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	o := h.start(job("read x; sleep 0.3; echo end"))
	other := pipeline.Token{Incarnation: 1, Epoch: 2}
	for _, m := range []wire.Message{
		&wire.Cancel{Attempt: o.Attempt, Token: other}, &wire.Fenced{Attempt: o.Attempt, Token: other},
		&wire.Ack{Attempt: o.Attempt, Token: other}, &wire.LogAck{Attempt: o.Attempt, Token: other, Length: 1 << 40},
		&wire.Go{Attempt: o.Attempt, Token: other}, &wire.Ack{Attempt: o.Attempt, Token: o.Token}, // nothing to acknowledge yet
		&wire.Cancel{Attempt: newID(), Token: o.Token}, &wire.LogAck{Attempt: o.Attempt, Token: o.Token, Length: -1},
	} {
		h.r.Handle(m)
	}
	want(t, h.result(o), pipeline.Success, "")
	if h.log(o.Attempt) != "end\n" {
		t.Errorf("log = %q", h.log(o.Attempt))
	}
}

func TestOfferThatCannotBeTakenIsDeclinedWithTheReason(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*runner.Config, *wire.Offer)
		want   string
	}{
		"identity that is a path": {func(_ *runner.Config, o *wire.Offer) { o.Attempt = "../../../../../../etc/cron" }, "not a ULID"},
		"wrong platform": {func(_ *runner.Config, o *wire.Offer) {
			o.Spec.Plugin.Programs = []pipeline.Program{{OS: "plan9", Argv: []string{"x"}}}
		}, "no program for linux/"},
		"no space":         {func(c *runner.Config, _ *wire.Offer) { c.MinFree = 1 << 60 }, "MiB left"},
		"other repository": {func(c *runner.Config, _ *wire.Offer) { c.Policy.Repos = []string{"https://a"} }, "does not allow tasks of repository"},
		"other plugin":     {func(c *runner.Config, _ *wire.Offer) { c.Policy.Plugins = []string{"git"} }, `does not allow plugin "shell"`},
		"untrusted": {
			func(c *runner.Config, o *wire.Offer) { c.Policy.RefuseUntrusted, o.Spec.Untrusted = true, true },
			"does not allow untrusted",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			o := job("echo ran")
			c.change(&h.cfg, o)
			h.open().connect()
			h.r.Handle(o)
			if d := expect[*wire.Decline](h.control, o.Attempt); !strings.Contains(d.Reason, c.want) {
				t.Errorf("declined because %q, want %q", d.Reason, c.want)
			}
			if len(h.r.Held(0)) > 0 {
				t.Error("it is held all the same")
			}
		})
	}
}

func TestPlacesAreLimited(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.cfg.Seats = 1
	h.open().connect()
	first := h.start(job("read x; sleep 100"))
	second := job("echo ran")
	second.Spec.Task = "test"
	h.r.Handle(second)
	if d := expect[*wire.Decline](h.control, second.Attempt); !strings.Contains(d.Reason, "1 places") {
		t.Errorf("declined because %q", d.Reason)
	}
	h.r.Handle(&wire.Cancel{Attempt: first.Attempt, Token: first.Token, Reason: "enough"})
	h.result(first)
	second.Attempt = newID()
	h.start(second)
	want(t, h.result(second), pipeline.Success, "")
}

func TestSecondAttemptOfATaskDoesNotRunBesideTheFirst(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	first := h.start(job("sleep 100"))
	second := job("echo second")
	second.Token.Epoch = 2
	h.r.Handle(second)
	if d := expect[*wire.Decline](h.control, second.Attempt); !strings.Contains(d.Reason, "still runs here") {
		t.Errorf("declined because %q", d.Reason)
	}
	h.r.Handle(&wire.Fenced{Attempt: first.Attempt, Token: first.Token, Reason: "given up"})
	h.eventually("the first is gone", func() bool { _, err := os.Stat(h.attemptDir(first)); return os.IsNotExist(err) })
	second.Attempt = newID()
	h.start(second)
	want(t, h.result(second), pipeline.Success, "")
	if count[*wire.Result](h.control, first.Attempt) > 0 {
		t.Error("a disowned attempt reported")
	}
}

func TestAcceptedAttemptGivesWayToALaterOneOfItsTask(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	first, second := job("echo first"), job("echo second")
	second.Token.Epoch = 2
	h.r.Handle(first)
	expect[*wire.Accept](h.control, first.Attempt)
	h.start(second)
	want(t, h.result(second), pipeline.Success, "")
	h.r.Handle(&wire.Go{Attempt: first.Attempt, Token: first.Token})
	h.eventually("nothing is held", func() bool { return len(h.r.Held(0)) == 0 })
	if count[*wire.Started](h.control, first.Attempt) > 0 {
		t.Error("both started")
	}
}

func TestDrainTakesNothingNewAndWaits(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	o := h.start(job("sleep 0.5"))
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.r.Stop(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop = %v while a task runs", err)
	}
	next := job("echo ran")
	next.Spec.Task = "test"
	h.r.Handle(next)
	if d := expect[*wire.Decline](h.control, next.Attempt); !strings.Contains(d.Reason, "being stopped") {
		t.Errorf("declined because %q", d.Reason)
	}
	if err := h.r.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if count[*wire.Result](h.control, o.Attempt) != 1 {
		t.Error("it did not wait for the result")
	}
}

func TestCancelStopsTheTask(t *testing.T) {
	t.Parallel()
	h := newHost(t).open().connect()
	o := h.start(job("echo begun; sleep 100"))
	h.untilLog(o.Attempt, "begun")
	h.r.Handle(&wire.Cancel{Attempt: o.Attempt, Token: o.Token, Reason: "superseded by run 8"})
	want(t, h.result(o), pipeline.Cancelled, "superseded by run 8")
}

// A journal that names a process which is now somebody else's must not lead to
// that process being watched, or killed.
// agentd died between starting the shim and telling it what to run: nothing has
// run, and the next go starts it, even a task that may start only once.
// flaky has a plugin at the third try, and counts.
type flaky struct {
	tries atomic.Int64
	err   error
}

func (f *flaky) Fetch(ctx context.Context, p wire.Plugin) (string, []string, error) {
	if f.tries.Add(1) < 3 {
		return "", nil, f.err
	}
	return shellPlugin{}.Fetch(ctx, p)
}

func TestPluginThatCannotBeHadJustNowIsTriedAgain(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.cfg.Plugins = &flaky{err: fault.New(fault.Unavailable, "the server restarts")}
	h.open().connect()
	want(t, h.run("echo x"), pipeline.Success, "")
}

func TestPluginThatIsWrongEndsTheAttempt(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	f := &flaky{err: fault.New(fault.Invalid, "digest of plugin shell is wrong")}
	h.cfg.Plugins = f
	h.open().connect()
	o := job("echo x")
	h.r.Handle(o)
	h.r.Handle(&wire.Go{Attempt: o.Attempt, Token: o.Token})
	want(t, h.result(o), pipeline.Error, "digest of plugin shell is wrong")
	if f.tries.Load() != 1 {
		t.Errorf("%d tries", f.tries.Load())
	}
}

func TestShimThatCannotStartIsAnError(t *testing.T) {
	t.Parallel()
	for name, argv := range map[string][]string{"missing": {"/no/such/agentd", "shim"}, "ends at once": {"/bin/false"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.cfg.Shim = argv
			h.open().connect()
			o := job("echo x")
			h.insist(o)
			want(t, h.result(o), pipeline.Error, "shim")
		})
	}
}

// insist offers o and says go whenever it is accepted, as the control plane does.
func (h *host) insist(o *wire.Offer) {
	h.r.Handle(o)
	for said := 0; ; said++ {
		m := h.until("accept or result", func(m wire.Message) bool {
			return is[*wire.Result](m, o.Attempt) || count[*wire.Accept](h.control, o.Attempt) > said
		})
		if is[*wire.Result](m, o.Attempt) {
			return
		}
		h.r.Handle(&wire.Go{Attempt: o.Attempt, Token: o.Token})
	}
}

func TestShimThatIsKilledBeforeItStartsAnythingIsReplaced(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"before it reads":   `[ -e %[1]s/tried ] && exec "$0" shim; touch %[1]s/tried; kill -9 $$`,
		"after it has read": `[ -e %[1]s/tried ] && exec "$0" shim; touch %[1]s/tried; cat >/dev/null; kill -9 $$`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.cfg.Shim = []string{"/bin/sh", "-c", fmt.Sprintf(script, t.TempDir()), h.cfg.Shim[0]}
			h.open().connect()
			o := job("echo ran")
			o.Spec.Effect = pipeline.Once // certainly not started, so that it may be
			h.insist(o)
			want(t, h.result(o), pipeline.Success, "")
			if h.log(o.Attempt) != "ran\n" {
				t.Errorf("log = %q", h.log(o.Attempt))
			}
		})
	}
}

func TestPolicyShortensTimeouts(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.cfg.Policy.MaxTimeout = pipeline.Duration(300 * time.Millisecond)
	h.open().connect()
	want(t, h.run("sleep 100"), pipeline.Timeout, "300ms")
}

func TestPolicyThatIsNotUnderstoodIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "policy.json")
	if p, err := runner.LoadPolicy(path); err != nil || len(p.Repos) > 0 {
		t.Errorf("without a file: %+v, %v", p, err)
	}
	for text, ok := range map[string]bool{
		`{"repos":["https://a"],"max_timeout":"1h"}`: true,
		`{"repo":["https://a"]}`:                     false,
		`{"repos":`:                                  false,
		`{"max_timeout":3}`:                          false,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := runner.LoadPolicy(path)
		if (err == nil) != ok || (ok && (p.MaxTimeout != pipeline.Duration(time.Hour) || len(p.Repos) != 1)) || (!ok && !fault.Is(err, fault.Invalid)) {
			t.Errorf("%s: %+v, %v", text, p, err)
		}
	}
}
