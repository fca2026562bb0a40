package fleet

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
)

const (
	// handshakeTime is from the upgrade to the Hello, lookups included.
	handshakeTime = 15 * time.Second
	// Messages cost one, and one more for each 4 KiB. An agent that ends its link
	// with a thousand results goes straight through; a flood is slowed to what the
	// loop takes without anybody noticing.
	messageRate  = 500
	messageBurst = 2000
	messageBytes = 4 << 10
	// mostHeld bounds what an agent may hold.
	mostHeld = 4096
	// mostWarm bounds the workspaces that it may speak of.
	mostWarm  = 1000
	mostLabel = 128
)

// session is one agent's connection. Its goroutine is the handler that serves it.
type session struct {
	f     *Fleet
	conn  *wsconn.Conn
	log   *slog.Logger
	agent pipeline.Agent
	boot  string
	host  string
	// version of the protocol that both sides speak.
	version int
	fetch   string // the token for downloads
	// ended is closed when the session's last event has been delivered.
	ended chan struct{}
	rate  *bucket

	// Owned by the session's goroutine.
	held   map[pipeline.AttemptID]pipeline.Token
	fenced map[pipeline.AttemptID]bool

	// Guarded by Fleet.mu.
	live      bool // between Welcome and the end
	downloads int
}

// refusal is why an agent may not connect.
type refusal wire.Refused

func (r *refusal) Error() string { return r.Reason }

func refused(final bool, format string, args ...any) *refusal {
	return &refusal{Reason: fmt.Sprintf(format, args...), Final: final}
}

func notEnrolled(id pipeline.AgentID) *refusal {
	return refused(true, "agent %s is not enrolled with this server; make a join token with `reconciler agents invite` and start agentd with it", id)
}

func revoked(id pipeline.AgentID) *refusal {
	return refused(true, "agent %s was revoked; to let the machine in again, delete identity.key in agentd's data folder and enrol it with a new join token", id)
}

// connect serves one agent's websocket until it ends.
func (f *Fleet) connect(w http.ResponseWriter, r *http.Request) {
	host := hostOf(r)
	release := f.handshakes.take(host)
	if release == nil {
		w.Header().Set("Retry-After", "5")
		answer(w, http.StatusServiceUnavailable, "too many agents are connecting; try again")
		return
	}
	defer release()
	conn, err := wsconn.Upgrade(w, r, wsconn.Options{})
	if err != nil {
		f.cfg.Log.Info("connection refused", "remote", r.RemoteAddr, "err", err)
		return
	}
	defer func() {
		conn.Close(wsconn.CodeNormal, "")
		<-conn.Done()
	}()
	log := f.cfg.Log.With("remote", r.RemoteAddr)
	s, hello, err := f.handshake(conn, log, host)
	if err != nil {
		var no *refusal
		if errors.As(err, &no) {
			refuse(conn, no)
		}
		log.Info("agent refused", "audit", true, "err", err)
		return
	}
	release()
	s.serve(hello)
}

func refuse(conn *wsconn.Conn, r *refusal) {
	_ = conn.TrySend((*wire.Refused)(r))
	conn.Close(wsconn.CodePolicy, r.Reason)
}

// handshake challenges the agent and believes what it can prove.
func (f *Fleet) handshake(conn *wsconn.Conn, log *slog.Logger, host string) (*session, *wire.Hello, error) {
	ctx, cancel := context.WithTimeoutCause(f.life, handshakeTime, errors.New("no hello in time"))
	defer cancel()
	// The nonce lives in this call only, so that no signature serves twice.
	nonce := rand.Text() + rand.Text()
	incarnation, _ := f.cfg.Reached()
	if err := conn.Send(ctx, &wire.Challenge{Nonce: nonce, Server: f.cfg.Server, Incarnation: incarnation}); err != nil {
		return nil, nil, err
	}
	frame, err := conn.Receive(ctx)
	var unknown *wire.UnknownError
	if err != nil && !errors.As(err, &unknown) {
		return nil, nil, err
	}
	hello, ok := frame.Message.(*wire.Hello)
	if !ok {
		return nil, nil, refused(false, "a connection begins with hello")
	}
	agent, err := f.identify(ctx, hello, nonce)
	if err != nil {
		return nil, nil, err
	}
	if v := hello.Versions; v[1] < wire.MinVersion || v[0] > wire.Version {
		behind := "agentd"
		if v[0] > wire.Version {
			behind = "the server"
		}
		return nil, nil, refused(false, "this agent speaks protocol versions %d to %d and the server %d to %d; upgrade %s",
			v[0], v[1], wire.MinVersion, wire.Version, behind)
	}
	if !goodFacts(hello.Facts) {
		return nil, nil, refused(false, "facts have to be one JSON object of at most %d bytes", wire.MaxFacts)
	}
	if len(hello.Attempts) > mostHeld {
		return nil, nil, refused(false, "an agent may hold %d attempts, not %d", mostHeld, len(hello.Attempts))
	}
	if why := f.cfg.Admit(agent, hello.Seen); why != "" {
		return nil, nil, refused(false, "%s", why)
	}
	agent.Facts, agent.Build, agent.State, agent.SeenAt = hello.Facts, label(hello.Build), pipeline.AgentOnline, time.Now()
	if name := label(hello.Name); name != "" {
		agent.Name = name
	}
	for _, name := range hello.Warm[:min(len(hello.Warm), mostWarm)] {
		if pipeline.ValidName(string(name)) {
			agent.Warm = append(agent.Warm, name)
		}
	}
	s := &session{
		f: f, conn: conn, agent: agent, version: min(hello.Versions[1], wire.Version), boot: label(hello.BootID), host: host, fetch: rand.Text() + rand.Text(),
		log: log.With("agent_id", agent.ID, "agent", agent.Name), ended: make(chan struct{}),
		rate: newBucket(messageRate, messageBurst),
		held: make(map[pipeline.AttemptID]pipeline.Token, len(hello.Attempts)), fenced: map[pipeline.AttemptID]bool{},
	}
	for _, h := range hello.Attempts {
		s.held[h.Attempt] = h.Token
	}
	return s, hello, nil
}

// identify returns the enrolled agent that signed the nonce. The identity comes
// from the key alone; nothing else in the message can claim it.
func (f *Fleet) identify(ctx context.Context, hello *wire.Hello, nonce string) (pipeline.Agent, error) {
	if len(hello.PublicKey) != ed25519.PublicKeySize ||
		!ed25519.Verify(hello.PublicKey, wire.SignedHello(nonce, f.cfg.Server), hello.Signature) {
		return pipeline.Agent{}, refused(false, "the signature does not answer the challenge")
	}
	id := pipeline.AgentIDOf(hello.PublicKey)
	a, err := f.cfg.Registry.Agent(ctx, id)
	switch {
	case fault.Is(err, fault.NotFound):
		return a, notEnrolled(id)
	case err != nil:
		f.cfg.Log.Error("agent not looked up", "agent_id", id, "err", err)
		return a, refused(false, "the server cannot read its record at the moment")
	case a.Revoked:
		return a, revoked(id)
	case a.ID != id || !bytes.Equal(a.PublicKey, hello.PublicKey):
		// The identity is a shortened hash: the whole key decides.
		return a, notEnrolled(id)
	}
	return a, nil
}

// serve runs the session from Welcome to its end.
func (s *session) serve(hello *wire.Hello) {
	if !s.enter() {
		return
	}
	defer s.leave()
	f := s.f
	f.cfg.Events.Connected(s.agent, hello.Attempts)
	s.log.Info("agent connected", "pool", s.agent.Pool, "build", s.agent.Build, "os", label(hello.OS), "arch", label(hello.Arch), "held", len(hello.Attempts))
	err := s.read()
	switch {
	case fault.Is(err, fault.Invalid):
		s.log.Warn("agent broke the protocol", "audit", true, "err", err)
	default:
		s.log.Info("agent disconnected", "err", err)
	}
}

// enter makes the session its agent's only one. It waits for the session before
// it to deliver its last event, and is false when a newer one has come meanwhile.
func (s *session) enter() bool {
	f, id := s.f, s.agent.ID
	f.mu.Lock()
	before := f.sessions[id]
	f.sessions[id] = s
	f.mu.Unlock()
	if before != nil {
		s.replace(before)
	}
	f.mu.Lock()
	current := f.sessions[id] == s && !f.closed
	if !current {
		if f.sessions[id] == s {
			delete(f.sessions, id)
		}
		f.mu.Unlock()
		close(s.ended)
		return false
	}
	incarnation, seq := f.cfg.Reached()
	// The queue is empty, so that this can neither fail nor be overtaken.
	_ = s.conn.TrySend(&wire.Welcome{
		Version: s.version, Agent: id, Server: f.cfg.Server, Incarnation: incarnation,
		Seq: seq, HeartbeatMS: f.cfg.Heartbeat.Milliseconds(), FetchToken: s.fetch,
	})
	s.live = true
	f.fetchers[sha256.Sum256([]byte(s.fetch))] = s
	f.seen[id] = time.Now()
	f.mu.Unlock()
	f.startSweep()
	return true
}

// replace ends the session before this one. Two machines with one key look just
// like an agent that comes back, but for the boot they speak of.
func (s *session) replace(before *session) {
	cloned := before.boot != s.boot
	if cloned || before.host != s.host {
		s.log.Warn("agent connected twice; the newer session stays", "audit", true, "other_boot", cloned,
			"boot_id", s.boot, "host", s.host, "before_boot_id", before.boot, "before_host", before.host)
	}
	before.conn.Close(wsconn.CodeReplaced, "a newer connection with the same key took over")
	<-before.ended
}

// leave delivers the session's last event and lets the next one begin.
func (s *session) leave() {
	f, id := s.f, s.agent.ID
	f.mu.Lock()
	s.live = false
	delete(f.fetchers, sha256.Sum256([]byte(s.fetch)))
	for attempt, st := range f.streams {
		if st.session == s {
			delete(f.streams, attempt)
		}
	}
	f.mu.Unlock()
	f.cfg.Events.Disconnected(id)
	f.mu.Lock()
	if f.sessions[id] == s {
		delete(f.sessions, id)
	}
	f.mu.Unlock()
	close(s.ended)
}

// read passes on what the agent says until the connection ends.
func (s *session) read() error {
	for {
		frame, err := s.conn.Receive(s.f.life)
		var unknown *wire.UnknownError
		if errors.As(err, &unknown) {
			s.reply(&wire.Unsupported{Kind: unknown.Kind})
			err = nil
		}
		if err != nil {
			return err
		}
		switch {
		case unknown != nil:
			s.throttle(frame.Size)
		case frame.Message == nil:
			if !s.f.takeLog(s, frame.Log) {
				return fault.New(fault.Invalid, "log bytes against the rules")
			}
		default:
			s.throttle(frame.Size)
			if err := s.take(frame.Message); err != nil {
				return err
			}
		}
	}
}

// throttle slows an agent down that talks too much, by not reading from it. The
// others have their own goroutines and notice nothing.
func (s *session) throttle(size int) {
	wait := s.rate.wait(1 + float64(size)/messageBytes)
	if wait == 0 {
		return
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.conn.Ending():
	}
}

func (s *session) take(m wire.Message) error {
	ev, id := s.f.cfg.Events, s.agent.ID
	switch m := m.(type) {
	case *wire.Beat:
		ev.Renewed(id)
		s.f.mu.Lock()
		s.f.seen[id] = time.Now()
		s.f.mu.Unlock()
		incarnation, seq := s.f.cfg.Reached()
		s.reply(&wire.BeatAck{N: m.N, Incarnation: incarnation, Seq: seq})
	case *wire.Facts:
		if !goodFacts(m.Facts) {
			s.log.Warn("facts not taken", "bytes", len(m.Facts))
			return nil
		}
		ev.Message(id, m)
	case *wire.Accept, *wire.Decline, *wire.Started, *wire.Note, *wire.Result:
		ev.Message(id, m)
	case *wire.Unsupported:
		s.log.Info("agent does not know a kind of message", "kind", label(m.Kind))
	default:
		s.end(wsconn.CodePolicy, "this message is the server's to send")
		return fault.New(fault.Invalid, "agent sent %T", m)
	}
	return nil
}

// reply answers the agent, and waits for it to read its answers before more is
// read from it. When it never does, the connection ends and so does the wait.
func (s *session) reply(m wire.Message) { _ = s.conn.Send(s.f.life, m) }

func (s *session) end(code int, text string) { s.conn.Close(code, text) }

func (s *session) refuse(r *refusal) {
	s.log.Warn("agent turned out", "audit", true, "reason", r.Reason)
	refuse(s.conn, r)
}

func goodFacts(facts json.RawMessage) bool {
	return len(facts) == 0 || len(facts) <= wire.MaxFacts && facts[0] == '{'
}

// label makes a text from outside fit for log lines and pages.
func label(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), mostLabel)], "")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s))
}

func hostOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
