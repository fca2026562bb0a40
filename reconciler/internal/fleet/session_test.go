package fleet_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
	"github.com/maestro-cd/maestro/internal/wsconn/wsconntest"
)

func TestAgentIsWelcomedAndHeard(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	k := w.enrolled(t)
	held := []wire.Held{{Attempt: attempt, Token: token, Phase: "running"}}
	c, welcome := connect(t, url, k, func(h *wire.Hello) { h.Attempts = held })
	want := &wire.Welcome{Version: 1, Agent: k.id, Server: record, Incarnation: 3, Seq: 17, HeartbeatMS: 5000, FetchToken: welcome.FetchToken}
	if d := cmp.Diff(want, welcome); d != "" || len(welcome.FetchToken) < 40 {
		t.Errorf("welcome (-want +got):\n%s", d)
	}
	ev := w.events.next(t, "connected", k.id)
	if ev.agent.Build != "test" || string(ev.agent.Facts) != `{"cpus":2}` || ev.agent.Pool != "build" || ev.agent.State != pipeline.AgentOnline {
		t.Errorf("Connected with %+v", ev.agent)
	}
	if d := cmp.Diff(held, ev.held); d != "" {
		t.Errorf("held (-sent +told):\n%s", d)
	}
	if !w.online(k.id) {
		t.Error("the agent is not online")
	}
	send(t, c, &wire.Beat{N: 41})
	w.events.next(t, "renewed", k.id)
	if ack := receive[*wire.BeatAck](t, c); *ack != (wire.BeatAck{N: 41, Incarnation: 3, Seq: 17}) {
		t.Errorf("beat 41 was acknowledged with %+v", ack)
	}
	for _, m := range []wire.Message{
		&wire.Accept{Attempt: attempt, Token: token}, &wire.Decline{Attempt: attempt, Token: token, Reason: "full"},
		&wire.Started{Attempt: attempt, Token: token}, &wire.Note{Attempt: attempt, Token: token, Text: "hm"},
		&wire.Result{Attempt: attempt, Token: token}, &wire.Facts{Facts: []byte(`{"cpus":4}`)},
	} {
		send(t, c, m)
		if d := cmp.Diff(m, w.events.next(t, "message", k.id).msg); d != "" {
			t.Errorf("%T (-sent +told):\n%s", m, d)
		}
	}
	w.sendTo(t, k.id, &wire.Cancel{Attempt: attempt, Token: token, Reason: "why not"})
	receive[*wire.Cancel](t, c)
	closed(c)
	w.events.next(t, "disconnected", k.id)
	if w.fleet.Send(k.id, &wire.Forget{}) {
		t.Error("Send to an agent that left is true")
	}
}

func TestLoopMayAnswerWithinConnected(t *testing.T) {
	t.Parallel()
	w := newWorld()
	k := w.enrolled(t)
	w.events.connected = func(a pipeline.Agent) { w.fleet.Send(a.ID, &wire.Ack{Attempt: attempt, Token: token}) }
	c, _ := connect(t, w.serve(t), k, nil)
	receive[*wire.Ack](t, c) // after the welcome
}

func TestHelloIsRefusedWithAReason(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	known, stranger, gone := w.enrolled(t), newKey(t), w.enrolled(t)
	w.registry.revoke(gone.id)
	alike := newKey(t)
	w.registry.mu.Lock()
	w.registry.agents[alike.id] = pipeline.Agent{ID: alike.id, PublicKey: known.public}
	w.registry.mu.Unlock()
	for name, c := range map[string]struct {
		key    key
		change func(*wire.Hello)
		final  bool
		says   string
	}{
		"not enrolled":     {stranger, nil, true, "is not enrolled with this server; make a join token"},
		"revoked":          {gone, nil, true, "was revoked"},
		"same short hash":  {alike, nil, true, "is not enrolled"},
		"another's key":    {stranger, func(h *wire.Hello) { h.PublicKey = known.public }, false, "signature"},
		"no key":           {known, func(h *wire.Hello) { h.PublicKey = nil }, false, "signature"},
		"half a signature": {known, func(h *wire.Hello) { h.Signature = h.Signature[:32] }, false, "signature"},
		"from the future":  {known, func(h *wire.Hello) { h.Versions = [2]int{7, 9} }, false, "versions 7 to 9 and the server 1 to 1; upgrade the server"},
		"from the past":    {known, func(h *wire.Hello) { h.Versions = [2]int{0, 0} }, false, "versions 0 to 0 and the server 1 to 1; upgrade agentd"},
		"facts in a list":  {known, func(h *wire.Hello) { h.Facts = []byte(`[1]`) }, false, "facts"},
		"facts too long":   {known, func(h *wire.Hello) { h.Facts = []byte(`{"a":"` + strings.Repeat("x", wire.MaxFacts) + `"}`) }, false, "facts"},
		"holds too much":   {known, func(h *wire.Hello) { h.Attempts = make([]wire.Held, 5000) }, false, "4096"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := greet(t, wsconn.Dialer{}, url, c.key, c.change)
			r := receive[*wire.Refused](t, conn)
			if r.Final != c.final || !strings.Contains(r.Reason, c.says) {
				t.Errorf("refused with %+v, want final %v and %q", r, c.final, c.says)
			}
			if code := ends(t, conn); code != wsconn.CodePolicy {
				t.Errorf("closed with %d, want %d", code, wsconn.CodePolicy)
			}
		})
	}
}

func TestConnectionBeginsWithHello(t *testing.T) {
	t.Parallel()
	w := newWorld()
	c, _ := open(t, wsconn.Dialer{}, w.serve(t))
	send(t, c, &wire.Result{Attempt: attempt, Token: token})
	receive[*wire.Refused](t, c)
	ends(t, c)
	if len(w.events.ch) != 0 {
		t.Error("a message before hello reached the loop")
	}
}

// TestChallengeTellsTheIncarnation: an agent has to know it before it says what it holds.
func TestChallengeTellsTheIncarnation(t *testing.T) {
	t.Parallel()
	w := newWorld()
	if _, c := open(t, wsconn.Dialer{}, w.serve(t)); c.Incarnation != 3 || c.Server != record {
		t.Errorf("got %+v", c)
	}
}

func TestReplayedHelloIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	k := w.enrolled(t)
	first, challenge := open(t, wsconn.Dialer{}, url)
	recorded := k.hello(challenge)
	send(t, first, recorded)
	receive[*wire.Welcome](t, first)

	second, another := open(t, wsconn.Dialer{}, url)
	if another.Nonce == challenge.Nonce {
		t.Fatal("two connections got one nonce")
	}
	send(t, second, recorded)
	if r := receive[*wire.Refused](t, second); !strings.Contains(r.Reason, "signature") {
		t.Errorf("refused with %+v", r)
	}
	elsewhere, challenge := open(t, wsconn.Dialer{}, url)
	send(t, elsewhere, k.hello(&wire.Challenge{Nonce: challenge.Nonce, Server: "record-2"}))
	receive[*wire.Refused](t, elsewhere) // signed for another server
	send(t, first, &wire.Beat{N: 1})
	receive[*wire.BeatAck](t, first)
}

func TestNewestSessionOfAKeyWins(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	k := w.enrolled(t)
	old, _ := connect(t, url, k, nil)
	w.events.next(t, "connected", k.id)
	clone, _ := connect(t, url, k, func(h *wire.Hello) { h.BootID = "boot-2" })
	if code := ends(t, old); code != wsconn.CodeReplaced {
		t.Errorf("the old session was closed with %d, want %d", code, wsconn.CodeReplaced)
	}
	if ev := <-w.events.ch; ev.kind != "disconnected" {
		t.Errorf("after the second connection came %q, want the end of the first", ev.kind)
	}
	w.events.next(t, "connected", k.id)
	w.sendTo(t, k.id, &wire.Forget{})
	receive[*wire.Forget](t, clone)
	if s := w.logged.String(); !strings.Contains(s, "agent connected twice") || !strings.Contains(s, "boot-2") {
		t.Error("no log line tells of two machines with one key")
	}
}

func TestSessionsOfOneKeyNeverOverlap(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	k := w.enrolled(t)
	var wg sync.WaitGroup
	const connections = 30
	for range connections {
		wg.Go(func() {
			c, err := wsconn.Dialer{}.Dial(t.Context(), url+wire.PathConnect)
			if err != nil {
				return
			}
			defer closed(c)
			f, err := c.Receive(t.Context())
			if err != nil {
				return
			}
			_ = c.Send(t.Context(), k.hello(f.Message.(*wire.Challenge)))
			for range 2 {
				_ = c.Send(t.Context(), &wire.Beat{})
			}
			_, _ = c.Receive(t.Context())
		})
	}
	wg.Wait()
	if err := w.fleet.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(w.events.ch)
	connected, sessions := false, 0
	for ev := range w.events.ch {
		switch {
		case ev.kind == "connected" && !connected:
			connected = true
			sessions++
		case ev.kind == "disconnected" && connected:
			connected = false
		case ev.kind == "renewed" && connected:
		default:
			t.Fatalf("%s while connected is %v", ev.kind, connected)
		}
	}
	if connected || sessions == 0 {
		t.Errorf("%d sessions, the last still connected: %v", sessions, connected)
	}
}

func TestMessagesAreTheSessionsWhateverTheyClaim(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	victim, thief := w.enrolled(t), w.enrolled(t)
	connect(t, url, victim, nil)
	c, _ := connect(t, url, thief, nil)
	w.sendTo(t, victim.id, &wire.Go{Attempt: attempt, Token: token})
	send(t, c, &wire.Result{Attempt: attempt, Token: token})
	w.events.next(t, "message", thief.id) // next skips others, so it was told as the thief's

	if err := c.SendLog(t.Context(), wire.LogFrame{Attempt: attempt, Token: token, Data: []byte("lies")}); err != nil {
		t.Fatal(err)
	}
	if m := receive[*wire.Fenced](t, c); m.Attempt != attempt || m.Token != token {
		t.Errorf("fenced %+v", m)
	}
	if n := w.logs.length(attempt); n != 0 {
		t.Errorf("%d bytes of the thief are in the victim's log", n)
	}
	if !strings.Contains(w.logged.String(), "log bytes of an attempt that is not this agent's") {
		t.Error("no audit line")
	}
}

func TestServersMessagesAreNotTheAgentsToSend(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	for _, m := range []wire.Message{&wire.Welcome{}, &wire.Go{}, &wire.Fenced{}, &wire.Hello{}} {
		k := w.enrolled(t)
		c, _ := connect(t, url, k, nil)
		send(t, c, m)
		if code := ends(t, c); code != wsconn.CodePolicy {
			t.Errorf("%T closed the session with %d, want %d", m, code, wsconn.CodePolicy)
		}
		w.events.next(t, "disconnected", k.id)
	}
}

func TestUnknownKindIsAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld()
	k := w.enrolled(t)
	raw := rawSession(t, w.serve(t), k)
	for range 3 {
		if _, err := raw.Write(wsconntest.Frame(wsconntest.Fin|wsconntest.Text, []byte(`{"kind":"dance","body":{}}`))); err != nil {
			t.Fatal(err)
		}
		if _, b, err := raw.Next(); err != nil || string(b) != `{"kind":"unsupported","body":{"kind":"dance"}}` {
			t.Errorf("answer = %s, %v", b, err)
		}
	}
}

func TestWrongFactsAreIgnored(t *testing.T) {
	t.Parallel()
	w := newWorld()
	k := w.enrolled(t)
	c, _ := connect(t, w.serve(t), k, nil)
	send(t, c, &wire.Facts{Facts: []byte(`"none"`)})
	send(t, c, &wire.Facts{Facts: []byte(`{"good":true}`)})
	if m := w.events.next(t, "message", k.id).msg.(*wire.Facts); string(m.Facts) != `{"good":true}` {
		t.Errorf("told %s", m.Facts)
	}
}

// pipeWorld is a world on an in-memory network, for use within a synctest bubble.
func pipeWorld(t *testing.T) (w *world, d wsconn.Dialer, p *wsconntest.Pipe, end func()) {
	t.Helper()
	w = newWorld()
	p = wsconntest.NewPipe(w.fleet.Handler())
	return w, wsconn.Dialer{NetDial: p.Dial}, p, func() {
		if err := w.fleet.Close(context.Background()); err != nil {
			t.Error(err)
		}
		p.Close()
	}
}

func TestRevokedAgentIsTurnedOutWithinAHeartbeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, d, _, end := pipeWorld(t)
		defer end()
		k := w.enrolled(t)
		c := greet(t, d, "http://pipe", k, nil)
		defer closed(c)
		receive[*wire.Welcome](t, c)
		for n := range int64(8) { // sightings are recorded every 30 s
			if err := c.TrySend(&wire.Beat{N: n}); err != nil {
				t.Fatal(err)
			}
			receive[*wire.BeatAck](t, c)
			time.Sleep(4 * time.Second) // of the false clock
		}
		w.registry.revoke(k.id)
		start := time.Now()
		for {
			f, err := c.Receive(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if m, ok := f.Message.(*wire.Refused); ok {
				if !m.Final || !strings.Contains(m.Reason, "revoked") {
					t.Errorf("refused with %+v", m)
				}
				break
			}
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("turned out after %v, want one heartbeat", took)
		}
		if code := ends(t, c); code != wsconn.CodePolicy {
			t.Errorf("closed with %d", code)
		}
		w.registry.mu.Lock()
		defer w.registry.mu.Unlock()
		if w.registry.touched[k.id].IsZero() {
			t.Error("the sighting was not recorded")
		}
	})
}

func TestHalfOpenConnectionsGiveTheirPlacesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, d, p, end := pipeWorld(t)
		defer end()
		k := w.enrolled(t)
		var halves []*wsconntest.Raw
		for range 1000 {
			conn, err := p.Dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			raw, err := wsconntest.Upgrade(conn, wire.PathConnect, wire.Subprotocol)
			if err != nil {
				conn.Close()
				break
			}
			defer raw.Close()
			halves = append(halves, raw)
		}
		if n := len(halves); n < 16 || n > 256 {
			t.Errorf("%d connections from one address may be half open", n)
		}
		if _, err := d.Dial(t.Context(), "http://pipe"+wire.PathConnect); !fault.Is(err, fault.Unavailable) {
			t.Errorf("dial while all places are taken = %v, want unavailable", err)
		}
		start := time.Now()
		var wg sync.WaitGroup
		for _, raw := range halves {
			wg.Go(func() {
				for {
					if _, _, err := raw.Next(); err != nil {
						return
					}
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took < 10*time.Second || took > 20*time.Second {
			t.Errorf("half-open connections were closed after %v, want 15 s", took)
		}
		c := greet(t, d, "http://pipe", k, nil)
		defer closed(c)
		receive[*wire.Welcome](t, c)
	})
}

func TestFloodSlowsOnlyItsOwnSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, d, _, end := pipeWorld(t)
		defer end()
		loud, quiet := w.enrolled(t), w.enrolled(t)
		flood := greet(t, d, "http://pipe", loud, nil)
		defer closed(flood)
		receive[*wire.Welcome](t, flood)
		other := greet(t, d, "http://pipe", quiet, nil)
		defer closed(other)
		receive[*wire.Welcome](t, other)

		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				if _, err := flood.Receive(context.Background()); err != nil {
					return
				}
			}
		})
		wg.Go(func() {
			for n := range int64(100_000) {
				if flood.Send(context.Background(), &wire.Beat{N: n}) != nil {
					return
				}
			}
		})
		for n := range int64(10) {
			start := time.Now()
			send(t, other, &wire.Beat{N: n})
			for receive[*wire.BeatAck](t, other).N != n {
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("another agent waited %v", took)
			}
			time.Sleep(time.Second)
		}
		beats := 0
		for range len(w.events.ch) {
			if ev := <-w.events.ch; ev.kind == "renewed" && ev.id == loud.id {
				beats++
			}
		}
		// The burst, and the rate for ten seconds.
		if beats < 2000 || beats > 2000+500*10+100 {
			t.Errorf("%d heartbeats of 100,000 came through in 10 s", beats)
		}
		closed(flood)
		wg.Wait()
	})
}

func TestBrokenSessionEndsAlone(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	good := w.enrolled(t)
	healthy, _ := connect(t, url, good, nil)
	for name, c := range map[string]struct {
		bytes []byte
		want  int
	}{
		"huge":        {wsconntest.Header(wsconntest.Fin|wsconntest.Text, 1<<63), wsconn.CodeTooBig},
		"compressed":  {wsconntest.Frame(wsconntest.Fin|wsconntest.RSV1|wsconntest.Text, []byte("x")), wsconn.CodeProtocol},
		"unmasked":    {[]byte{wsconntest.Fin | wsconntest.Text, 1, 'x'}, wsconn.CodeProtocol},
		"not UTF-8":   {wsconntest.Frame(wsconntest.Fin|wsconntest.Text, []byte{0xff}), wsconn.CodePayload},
		"not a log":   {wsconntest.Frame(wsconntest.Fin|wsconntest.Binary, []byte{0xff}), wsconn.CodePayload},
		"interleaved": {append(wsconntest.Frame(wsconntest.Text, []byte("{")), wsconntest.Frame(wsconntest.Fin|wsconntest.Text, []byte("{"))...), wsconn.CodeProtocol},
	} {
		k := w.enrolled(t)
		raw := rawSession(t, url, k)
		if _, err := raw.Write(c.bytes); err != nil {
			t.Fatal(err)
		}
		if code, text, err := raw.CloseCode(); err != nil || code != c.want {
			t.Errorf("%s: closed with %d %q (%v), want %d", name, code, text, err, c.want)
		}
		w.events.next(t, "disconnected", k.id)
		if !strings.Contains(w.logged.String(), "agent broke the protocol\" remote="+raw.LocalAddr().String()) {
			t.Errorf("%s: no log line", name)
		}
	}
	send(t, healthy, &wire.Beat{N: 9})
	receive[*wire.BeatAck](t, healthy)
}

func TestCloseSaysGoodbyeAndTakesNobody(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	k := w.enrolled(t)
	c, _ := connect(t, url, k, nil)
	half, _ := open(t, wsconn.Dialer{}, url)
	w.sendTo(t, k.id, &wire.Forget{})
	if err := w.fleet.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	receive[*wire.Forget](t, c) // what was queued
	if code := ends(t, c); code != wsconn.CodeGoingAway {
		t.Errorf("closed with %d, want %d", code, wsconn.CodeGoingAway)
	}
	ends(t, half)
	w.events.next(t, "disconnected", k.id)
	if _, err := (wsconn.Dialer{}).Dial(t.Context(), url+wire.PathConnect); !fault.Is(err, fault.Unavailable) {
		t.Errorf("dial after Close = %v, want unavailable", err)
	}
}

func TestAgentIsKeptOutWithASentenceAndMayComeAgain(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	k := w.enrolled(t)
	why := "the record is older than it was"
	w.refuse.Store(&why)
	seen := wire.Seen{Server: record, Incarnation: 4, Seq: 99}
	no := receive[*wire.Refused](t, greet(t, wsconn.Dialer{}, url, k, func(h *wire.Hello) { h.Seen = seen }))
	if no.Reason != why || no.Final {
		t.Errorf("got %+v", no)
	}
	if got := <-w.seen; got != seen {
		t.Errorf("asked about %+v", got)
	}
	if w.online(k.id) {
		t.Error("the agent is online")
	}
	w.refuse.Store(nil)
	connect(t, url, k, nil)
	w.events.next(t, "connected", k.id)
}

func TestTheHighestVersionThatBothSpeakIsSpoken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w, d, _, end := pipeWorld(t)
		defer end()
		for agent, want := range map[[2]int]string{
			{wire.MinVersion, wire.Version}:            "",
			{wire.MinVersion, wire.Version + 8}:        "",
			{wire.Version + 1, wire.Version + 8}:       "upgrade the server",
			{wire.MinVersion - 1, wire.MinVersion - 1}: "upgrade agentd",
		} {
			c := greet(t, d, "http://pipe", w.enrolled(t), func(h *wire.Hello) { h.Versions = agent })
			if want == "" {
				if m := receive[*wire.Welcome](t, c); m.Version != wire.Version {
					t.Errorf("an agent that speaks %v is spoken to in %d", agent, m.Version)
				}
			} else if m := receive[*wire.Refused](t, c); m.Final || !strings.Contains(m.Reason, want) {
				t.Errorf("an agent that speaks %v is refused with %+v", agent, m)
			}
			closed(c)
		}
	})
}
