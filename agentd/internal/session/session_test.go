package session_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/agentd/internal/session"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
	"github.com/maestro-cd/maestro/internal/wsconn/wsconntest"
)

// onLoopback runs a session against s over a real socket.
func onLoopback(t *testing.T, s *fakeServer, cfg session.Config) *running {
	t.Helper()
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	cfg.Server = srv.URL
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
		s.known(t, cfg.Dir)
	}
	r := run(cfg)
	t.Cleanup(func() {
		_ = r.stop()
		if t.Failed() {
			t.Log(r.logged)
		}
	})
	return r
}

func TestAgentAnswersTheChallengeAndIsWelcomed(t *testing.T) {
	t.Parallel()
	s, runner := newServer(), newRunner()
	runner.held = []wire.Held{{Attempt: attempt, Token: token, Phase: "running"}}
	r := onLoopback(t, s, session.Config{
		Runner: runner, Build: "v1", Name: "otto", Facts: func() json.RawMessage { return []byte(`{"cpus":2}`) },
	})
	c := s.next(t)
	if h := c.hello; h.Name != "otto" || h.Build != "v1" || string(h.Facts) != `{"cpus":2}` || h.Versions != [2]int{1, 1} || h.OS == "" || h.Arch == "" {
		t.Errorf("hello %+v", h)
	}
	if d := cmp.Diff(runner.Warm(), c.hello.Warm); d != "" {
		t.Errorf("warm (-want +told):\n%s", d)
	}
	if d := cmp.Diff(runner.held, c.hello.Attempts); d != "" {
		t.Errorf("held (-want +told):\n%s", d)
	}
	if n := runner.heldFor.Load(); n != 1 {
		t.Errorf("what is held was asked for incarnation %d", n)
	}
	if w := <-r.runner.welcome; w.Server != "record-1" || w.Seq != 10 {
		t.Errorf("the runner was connected with %+v", w)
	}
}

func TestLinkCarriesBothWays(t *testing.T) {
	t.Parallel()
	s := newServer()
	r := onLoopback(t, s, session.Config{})
	c, link := s.next(t), <-r.runner.links
	for _, m := range []wire.Message{
		&wire.Offer{Attempt: attempt, Token: token}, &wire.Go{Attempt: attempt, Token: token}, &wire.Ack{Attempt: attempt},
		&wire.Fenced{Attempt: attempt}, &wire.Cancel{Attempt: attempt}, &wire.LogAck{Attempt: attempt, Length: 5},
		&wire.Forget{Runs: nil}, &wire.Unsupported{Kind: "note"},
	} {
		if err := c.Send(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if got := <-r.runner.got; !strings.HasSuffix(typeOf(got), typeOf(m)) {
			t.Errorf("the runner got %T, want %T", got, m)
		}
	}
	if err := link.Send(&wire.Accept{Attempt: attempt, Token: token}); err != nil {
		t.Fatal(err)
	}
	if f := <-c.got; typeOf(f.Message) != typeOf(&wire.Accept{}) {
		t.Errorf("the server got %T", f.Message)
	}
	data := bytes.Repeat([]byte("line\n"), 1000)
	if err := link.SendLog(wire.LogFrame{Attempt: attempt, Token: token, Offset: 3, Data: data}); err != nil {
		t.Fatal(err)
	}
	if f := <-c.got; f.Message != nil || f.Log.Offset != 3 || !bytes.Equal(f.Log.Data, data) {
		t.Errorf("the server got %d log bytes at %d", len(f.Log.Data), f.Log.Offset)
	}
	if err := link.Send(&wire.Note{Text: strings.Repeat("x", wire.MaxFrame)}); !fault.Is(err, fault.Invalid) {
		t.Errorf("an oversized message = %v, want invalid", err)
	}
	c.Close(wsconn.CodeGoingAway, "")
	<-link.Done()
	if err := link.Send(&wire.Note{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Send over a dead link = %v, want unavailable", err)
	}
	if err := link.SendLog(wire.LogFrame{Attempt: attempt, Data: data}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("SendLog over a dead link = %v, want unavailable", err)
	}
	s.next(t)
	if again := <-r.runner.links; again == link {
		t.Error("the runner got the dead link again")
	}
}

func typeOf(m wire.Message) string {
	b, _ := wire.Encode(m)
	kind, _, _ := bytes.Cut(b, []byte(","))
	return string(kind)
}

func TestStopIsPoliteAndNoError(t *testing.T) {
	t.Parallel()
	s := newServer()
	r := onLoopback(t, s, session.Config{})
	c, link := s.next(t), <-r.runner.links
	if err := link.Send(&wire.Result{Attempt: attempt, Token: token}); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Errorf("Run = %v after its context ended", err)
	}
	if f := <-c.got; typeOf(f.Message) != typeOf(&wire.Result{}) {
		t.Errorf("what was queued did not arrive, but %T", f.Message)
	}
	if err := <-c.ended; wsconn.CodeOf(err) != wsconn.CodeGoingAway {
		t.Errorf("the server saw %v, want code %d", err, wsconn.CodeGoingAway)
	}
}

func TestFinalRefusalEndsRunWithAdvice(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		s := newServer()
		if !late {
			s.refuse = &wire.Refused{Reason: "agent a-1 was revoked; remove the folder", Final: true}
		}
		r := onLoopback(t, s, session.Config{})
		if late {
			c := s.next(t)
			_ = c.Send(t.Context(), &wire.Refused{Reason: "agent a-1 was revoked; remove the folder", Final: true})
		}
		if err := <-r.ended; !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "revoked; remove the folder") {
			t.Errorf("refused late %v: Run = %v", late, err)
		}
	}
}

func TestWrongSettingsEndRun(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]session.Config{
		"no scheme":       {Server: "example.com:8080"},
		"another scheme":  {Server: "ftp://example.com"},
		"a path":          {Server: "https://example.com/maestro"},
		"a user":          {Server: "https://me:pw@example.com"},
		"a query":         {Server: "https://example.com?token=x"},
		"nothing":         {},
		"no certificates": {Server: "https://127.0.0.1:1", CA: file},
		"no such file":    {Server: "https://127.0.0.1:1", CA: file + "x"},
	} {
		cfg.Dir = t.TempDir()
		r := run(cfg)
		if err := <-r.ended; !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: Run = %v, want invalid", name, err)
		}
		_ = r.stop()
	}
}

func TestCertificateOfTheFileIsTrusted(t *testing.T) {
	t.Parallel()
	s := newServer()
	srv := httptest.NewTLSServer(s)
	t.Cleanup(srv.Close)
	dir := t.TempDir()
	s.known(t, dir)
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	r := run(session.Config{Server: srv.URL, CA: ca, Dir: dir})
	defer r.stop()
	s.next(t)
	<-r.runner.links
	body, err := r.Fetch(t.Context(), wire.PathPlugin+"good.tar")
	if err != nil {
		t.Fatal(err)
	}
	body.Close()

	doubtful := run(session.Config{Server: srv.URL, Dir: dir})
	defer doubtful.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := doubtful.Fetch(ctx, wire.PathPlugin+"good.tar"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Fetch without the certificate = %v, want unavailable", err)
	}
	if len(s.conns) != 0 {
		t.Error("connected to a server whose certificate nobody vouched for")
	}
}

// onPipe runs f in a bubble with a false clock, with a server on an in-memory
// network that knows the agent of cfg.
func onPipe(t *testing.T, f func(t *testing.T, s *fakeServer, cfg session.Config)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newServer()
		p := wsconntest.NewPipe(s)
		defer p.Close()
		s.known(t, dir)
		f(t, s, session.Config{Server: "http://127.0.0.1:8080", Dir: dir, NetDial: p.Dial})
	})
}

func TestHeartbeatRenewsFromTheTimeItWasSent(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.ackAfter = 2 * time.Second
		start := time.Now()
		r := run(cfg)
		defer r.stop()
		c := s.next(t)
		var want time.Duration
		for range 10 {
			sent := <-r.runner.renewed
			if got := sent.Sub(start); got != want || time.Since(sent) != 2*time.Second {
				t.Fatalf("renewed as of %v, %v ago; want %v, and the 2 s the answer took", got, time.Since(sent), want)
			}
			want += 5 * time.Second
		}
		// An answer to nothing, or a second one, renews nothing.
		_ = c.TrySend(&wire.BeatAck{N: 1})
		_ = c.TrySend(&wire.BeatAck{N: 9999})
		synctest.Wait()
		if n := len(r.runner.renewed); n != 0 {
			t.Errorf("renewed %d times by stray answers", n)
		}
	})
}

func TestWelcomeRenewsFromTheTimeItWasAskedFor(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.welcomeAfter = 10 * time.Second
		r := run(cfg)
		defer r.stop()
		s.next(t)
		if asked := <-r.runner.asked; time.Since(asked) != 10*time.Second {
			t.Errorf("the lease counts from %v ago, want the 10 s the answer took", time.Since(asked))
		}
	})
}

func TestReconnectsBackOffWithFullJitter(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, _ *fakeServer, cfg session.Config) {
		const tries = 400
		dialled := make(chan time.Time, tries)
		cfg.NetDial = func(context.Context, string, string) (net.Conn, error) {
			select {
			case dialled <- time.Now():
			default:
			}
			return nil, errNoRoute
		}
		r := run(cfg)
		last, sum, short, long := <-dialled, time.Duration(0), 0, 0
		for n := range tries - 1 {
			at := <-dialled
			gap, limit := at.Sub(last), 30*time.Second
			if n < 6 {
				limit = 500 * time.Millisecond << n
			}
			last = at
			if gap > limit {
				t.Fatalf("try %d came after %v, most is %v", n+2, gap, limit)
			}
			if n >= 6 {
				sum += gap
				if gap < 10*time.Second {
					short++
				}
				if gap > 20*time.Second {
					long++
				}
			}
		}
		// Spread evenly between nothing and 30 s: thirds, with a wide margin.
		mean := sum / (tries - 7)
		if mean < 12*time.Second || mean > 18*time.Second || short < tries/5 || long < tries/5 {
			t.Errorf("delays have mean %v, %d below 10 s and %d above 20 s of %d", mean, short, long, tries)
		}
		if err := r.stop(); err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestSteadyConnectionMakesTheNextReturnQuick(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.set(func() { s.down = true })
		r := run(cfg)
		defer r.stop()
		time.Sleep(10 * time.Minute)
		s.set(func() { s.down = false })
		for range 20 {
			c := s.next(t)
			time.Sleep(time.Minute)
			start := time.Now()
			c.Close(wsconn.CodeGoingAway, "restart")
			s.conns <- s.next(t)
			if took := time.Since(start); took > time.Second {
				t.Errorf("came back after %v", took)
			}
		}
	})
}

func TestConnectionsThatDoNotLastAreNoReasonToHurry(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		r := run(cfg)
		defer r.stop()
		start := time.Now()
		const times = 40
		for range times {
			s.next(t).Close(wsconn.CodeGoingAway, "restart")
		}
		if took := time.Since(start); took < 4*time.Minute {
			t.Errorf("connected %d times in %v, want about one in 15 s", times, took)
		}
	})
}

func TestQuarrelOverAnIdentityIsSlow(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		r := run(cfg)
		defer r.stop()
		for range 10 {
			c := s.next(t)
			start := time.Now()
			c.Close(wsconn.CodeReplaced, "another took over")
			s.conns <- s.next(t)
			if took := time.Since(start); took < 15*time.Second || took > 31*time.Second {
				t.Errorf("came back after %v, want 15 to 30 s", took)
			}
		}
		if !strings.Contains(r.logged.String(), "another agentd uses this identity") {
			t.Error("nobody is told")
		}
	})
}

func TestSilentServerIsLeft(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		inner, hole := cfg.NetDial, &blackHole{}
		cfg.NetDial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := inner(ctx, network, addr)
			return hole.wrap(conn), err
		}
		r := run(cfg)
		defer r.stop()
		s.next(t)
		link := <-r.runner.links
		time.Sleep(time.Minute)
		start := time.Now()
		hole.open.Store(true) // bytes vanish in both directions, and no error says so
		<-link.Done()
		if took := time.Since(start); took > 16*time.Second {
			t.Errorf("the link was given up after %v, want 15 s", took)
		}
		hole.open.Store(false)
		s.next(t)
	})
}

// blackHole swallows what is written and holds back what is read while open.
type blackHole struct{ open atomic.Bool }

func (b *blackHole) wrap(c net.Conn) net.Conn { return &holed{c, b} }

type holed struct {
	net.Conn
	hole *blackHole
}

func (h *holed) Write(b []byte) (int, error) {
	if h.hole.open.Load() {
		return len(b), nil
	}
	return h.Conn.Write(b)
}

func (h *holed) Read(b []byte) (int, error) {
	for {
		n, err := h.Conn.Read(b)
		if err != nil || !h.hole.open.Load() {
			return n, err
		}
	}
}

func TestServerThatAcknowledgesNoHeartbeatIsLeft(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.mute = true // but answers pings
		start := time.Now()
		r := run(cfg)
		defer r.stop()
		c := s.next(t)
		<-c.ended
		if took := time.Since(start); took < 30*time.Second || took > 40*time.Second {
			t.Errorf("left after %v, want a little more than 30 s", took)
		}
		s.next(t)
	})
}

func TestRefusalThatMayPassIsTriedAgain(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.refuse = &wire.Refused{Reason: "upgrade the server"}
		r := run(cfg)
		defer r.stop()
		time.Sleep(time.Minute)
		s.set(func() { s.refuse = nil })
		s.next(t)
		if !strings.Contains(r.logged.String(), "upgrade the server") {
			t.Error("the reason is not in the log")
		}
	})
}

func TestChangedFactsAreSentAndOthersAreNot(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		var facts atomic.Value
		facts.Store(`{"v":1}`)
		cfg.Facts = func() json.RawMessage { return []byte(facts.Load().(string)) }
		r := run(cfg)
		defer r.stop()
		c := s.next(t)
		r.FactsChanged()
		synctest.Wait()
		if n := len(c.got); n != 0 {
			t.Errorf("the same facts were sent %d times", n)
		}
		facts.Store(`{"v":2}`)
		r.FactsChanged()
		if m, ok := (<-c.got).Message.(*wire.Facts); !ok || string(m.Facts) != `{"v":2}` {
			t.Errorf("the server got %+v", m)
		}
		facts.Store(`{"v":"` + strings.Repeat("x", wire.MaxFacts) + `"}`)
		c.Close(wsconn.CodeGoingAway, "")
		if c = s.next(t); len(c.hello.Facts) != 0 || !strings.Contains(r.logged.String(), "facts not sent") {
			t.Errorf("%d bytes of facts were sent", len(c.hello.Facts))
		}
	})
}

func TestOlderRecordIsNoticed(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		warned := func(incarnation, seq int64) bool {
			s.set(func() { s.incarnation, s.seq = incarnation, pipeline.Seq(seq) })
			r := run(cfg)
			s.next(t)
			<-r.runner.links
			_ = r.stop()
			return strings.Contains(r.logged.String(), "record is older")
		}
		for _, c := range []struct {
			incarnation, seq int64
			want             bool
			why              string
		}{
			{1, 10, false, "first seen"},
			{1, 10, false, "nothing happened"},
			{1, 30, false, "went on"},
			{1, 20, true, "went back, and a restart of the agent does not forget"},
			{1, 29, true, "the warning did not lower what is remembered"},
			{2, 5, false, "restored with a new incarnation"},
			{1, 99, true, "the old incarnation"},
		} {
			if got := warned(c.incarnation, c.seq); got != c.want {
				t.Errorf("incarnation %d seq %d (%s): warned %v", c.incarnation, c.seq, c.why, got)
			}
		}
	})
}

func TestAgentRemembersWhatHeartbeatsTellAndSaysIt(t *testing.T) {
	t.Parallel()
	onPipe(t, func(t *testing.T, s *fakeServer, cfg session.Config) {
		s.set(func() { s.incarnation, s.seq = 2, 10 })
		r := run(cfg)
		if first := s.next(t); first.hello.Seen != (wire.Seen{}) {
			t.Errorf("before it was ever connected: %+v", first.hello.Seen)
		}
		<-r.runner.links
		s.set(func() { s.seq = 40 })
		time.Sleep(12 * time.Second) // two heartbeats
		s.set(func() { s.incarnation, s.seq = 2, 5 })
		time.Sleep(12 * time.Second)
		_ = r.stop() // and what was not written is
		r = run(cfg)
		defer r.stop()
		if got, want := s.next(t).hello.Seen, (wire.Seen{Server: "record-1", Incarnation: 2, Seq: 40}); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}
