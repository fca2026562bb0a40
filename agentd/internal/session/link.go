package session

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
)

const (
	handshakeTime    = 15 * time.Second
	defaultHeartbeat = 5 * time.Second
	leastHeartbeat   = 100 * time.Millisecond
	// unansweredTime is how long heartbeats may go without an answer while pings
	// are answered: the server's socket lives and the server does not.
	unansweredTime = 30 * time.Second
	bootIDFile     = "/proc/sys/kernel/random/boot_id"
)

// link is one connection after its Welcome.
type link struct {
	conn  *wsconn.Conn
	fetch string // token for downloads

	mu   sync.Mutex
	n    int64
	sent map[int64]time.Time // heartbeats that were not acknowledged
}

func (l *link) Send(m wire.Message) error { return l.conn.TrySend(m) }

// SendLog needs no context: it ends with the connection.
func (l *link) SendLog(f wire.LogFrame) error { return l.conn.SendLog(context.Background(), f) }

func (l *link) Done() <-chan struct{} { return l.conn.Ending() }

// connect serves one connection from dialling to its end. A *finalError is a
// refusal for good.
func (s *Session) connect(ctx context.Context) error {
	facts := s.facts() // before dialling, because the server's patience is short
	conn, err := wsconn.Dialer{TLS: s.tls.Clone(), NetDial: s.cfg.NetDial}.Dial(ctx, s.cfg.Server+wire.PathConnect)
	if err != nil {
		return err
	}
	defer func() {
		conn.Close(wsconn.CodeNormal, "")
		<-conn.Done()
	}()
	w, asked, err := s.greet(ctx, conn, facts)
	if err != nil {
		return err
	}
	s.up = time.Now()
	s.welcomed(w)
	defer s.writeReached()
	l := &link{conn: conn, fetch: w.FetchToken, sent: map[int64]time.Time{}}
	s.move(l)
	defer s.move(nil)
	s.cfg.Log.Info("connected", "server", s.cfg.Server, "agent_id", w.Agent, "version", w.Version)
	s.cfg.Runner.Connected(l, *w, asked)

	var wg sync.WaitGroup // both end with the connection
	wg.Go(func() { l.beat(heartbeat(w)) })
	wg.Go(func() { s.keepFacts(l, facts) })
	defer wg.Wait()
	defer conn.Close(wsconn.CodeNormal, "")
	for {
		frame, err := conn.Receive(ctx)
		var unknown *wire.UnknownError
		switch {
		case errors.As(err, &unknown):
			_ = l.Send(&wire.Unsupported{Kind: unknown.Kind})
		case err != nil:
			return err
		default:
			if err := s.take(l, frame.Message); err != nil {
				return err
			}
		}
	}
}

// greet answers the server's challenge and waits for its welcome. It also returns when
// it asked for that.
func (s *Session) greet(ctx context.Context, conn *wsconn.Conn, facts json.RawMessage) (w *wire.Welcome, asked time.Time, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, handshakeTime, errors.New("the server did not answer in time"))
	defer cancel()
	frame, err := conn.Receive(ctx)
	if err != nil {
		return nil, asked, err
	}
	challenge, ok := frame.Message.(*wire.Challenge)
	if !ok {
		return nil, asked, fault.New(fault.Unavailable, "connect: the server began with %T, not a challenge", frame.Message)
	}
	boot, _ := os.ReadFile(bootIDFile) // Linux only; elsewhere there is none to tell
	hello := &wire.Hello{
		Versions: [2]int{wire.MinVersion, wire.Version}, Build: s.cfg.Build,
		PublicKey: s.id.PublicKey(), Signature: s.id.sign(wire.SignedHello(challenge.Nonce, challenge.Server)),
		Name: s.cfg.Name, OS: runtime.GOOS, Arch: runtime.GOARCH, BootID: strings.TrimSpace(string(boot)),
		Facts: facts, Attempts: s.cfg.Runner.Held(challenge.Incarnation), Warm: s.cfg.Runner.Warm(), Seen: s.seen(challenge.Server),
	}
	asked = time.Now()
	if err := conn.Send(ctx, hello); err != nil {
		return nil, asked, err
	}
	if frame, err = conn.Receive(ctx); err != nil {
		return nil, asked, err
	}
	switch m := frame.Message.(type) {
	case *wire.Welcome:
		return m, asked, nil
	case *wire.Refused:
		if m.Final {
			return nil, asked, &finalError{m.Reason}
		}
		return nil, asked, fault.New(fault.Unavailable, "the server refused the agent: %s", m.Reason)
	}
	return nil, asked, fault.New(fault.Unavailable, "connect: the server answered %T to hello", frame.Message)
}

// take handles one message of the server.
func (s *Session) take(l *link, m wire.Message) error {
	switch m := m.(type) {
	case *wire.BeatAck:
		s.reached(m)
		if sent, ok := l.answered(m.N); ok {
			s.cfg.Runner.Renewed(sent)
		}
	case *wire.Refused:
		if m.Final {
			return &finalError{m.Reason}
		}
		return fault.New(fault.Unavailable, "the server refused the agent: %s", m.Reason)
	case *wire.Offer, *wire.Go, *wire.Ack, *wire.Fenced, *wire.Cancel, *wire.LogAck, *wire.Forget, *wire.Unsupported:
		s.cfg.Runner.Handle(m)
	default:
		s.cfg.Log.Warn("message of the server ignored", "type", fmt.Sprintf("%T", m))
	}
	return nil
}

// beat sends heartbeats until the connection ends, and ends it when none is
// acknowledged any more.
func (l *link) beat(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		n, oldest := l.next(time.Now())
		if oldest > max(unansweredTime, 3*every) {
			l.conn.Close(wsconn.CodePolicy, "heartbeats are not acknowledged")
			return
		}
		if l.Send(&wire.Beat{N: n}) != nil {
			return
		}
		select {
		case <-tick.C:
		case <-l.Done():
			return
		}
	}
}

// next notes a heartbeat before it is sent: what the answer renews counts from a
// time at which it cannot have been received yet.
func (l *link) next(now time.Time) (n int64, oldest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.sent {
		oldest = max(oldest, now.Sub(at))
	}
	l.n++
	l.sent[l.n] = now
	return l.n, oldest
}

// answered returns when heartbeat n was sent, and forgets it and those before it.
func (l *link) answered(n int64) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.sent[n]
	if ok {
		for k := range l.sent {
			if k <= n {
				delete(l.sent, k)
			}
		}
	}
	return at, ok
}

func heartbeat(w *wire.Welcome) time.Duration {
	every := time.Duration(w.HeartbeatMS) * time.Millisecond
	if every < leastHeartbeat {
		return defaultHeartbeat
	}
	return every
}

// keepFacts sends the facts again when they have changed, until the connection ends.
func (s *Session) keepFacts(l *link, told json.RawMessage) {
	for {
		select {
		case <-s.refresh:
		case <-l.Done():
			return
		}
		facts := s.facts()
		if bytes.Equal(facts, told) {
			continue
		}
		if l.Send(&wire.Facts{Facts: facts}) != nil {
			return
		}
		told = facts
	}
}

// facts returns what may be sent of the facts.
func (s *Session) facts() json.RawMessage {
	facts := s.cfg.Facts()
	if len(facts) > wire.MaxFacts || len(facts) > 0 && (facts[0] != '{' || !json.Valid(facts)) {
		s.cfg.Log.Error("facts not sent: they have to be one JSON object", "bytes", len(facts), "most", wire.MaxFacts)
		return nil
	}
	return facts
}
