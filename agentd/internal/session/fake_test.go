package session_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/session"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
)

const attempt = pipeline.AttemptID("01JDXXXXXXXXXXXXXXXXXXXXXX")

var token = pipeline.Token{Incarnation: 1, Epoch: 1}

// fakeServer is the control plane as far as one agent can see it.
type fakeServer struct {
	mu          sync.Mutex
	record      string
	incarnation int64
	seq         pipeline.Seq
	fetch       string
	enrolled    map[pipeline.AgentID]bool
	tokens      map[string]pipeline.AgentID // "" while not used
	refuse      *wire.Refused               // instead of a welcome
	down        bool                        // answers 503
	mute        bool                        // acknowledges no heartbeat
	ackAfter    time.Duration
	// welcomeAfter is how long hello waits for its answer.
	welcomeAfter time.Duration
	enrolments   int
	beats        []time.Time // when they came

	// conns has each connection that was welcomed.
	conns chan *served
}

// served is one welcomed connection. Its handler reads it and acknowledges heartbeats.
type served struct {
	*wsconn.Conn
	hello *wire.Hello
	got   chan wsconn.Frame // all but heartbeats
	ended chan error        // why it ended
}

func newServer() *fakeServer {
	return &fakeServer{
		record: "record-1", incarnation: 1, seq: 10, fetch: "fetch-me", enrolled: map[pipeline.AgentID]bool{},
		tokens: map[string]pipeline.AgentID{}, conns: make(chan *served, 1000),
	}
}

// set changes the server under its lock.
func (s *fakeServer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *fakeServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	down, fetch := s.down, s.fetch
	s.mu.Unlock()
	switch {
	case down:
		http.Error(w, `{"error":"the server sleeps"}`, http.StatusServiceUnavailable)
	case r.URL.Path == wire.PathConnect:
		s.connect(w, r)
	case r.URL.Path == wire.PathEnrol:
		s.enrol(w, r)
	case r.Header.Get("Authorization") != "Bearer "+fetch:
		http.Error(w, `{"error":"the fetch token is not that of a live session"}`, http.StatusUnauthorized)
	case r.URL.Path == wire.PathPlugin+"good.tar":
		_, _ = w.Write([]byte("a tar stream"))
	case r.URL.Path == wire.PathPlugin+"broken.tar":
		_, _ = w.Write(make([]byte, 1<<16))
		panic(http.ErrAbortHandler)
	case r.URL.Path == wire.PathPlugin+"moved.tar":
		http.Redirect(w, r, wire.PathPlugin+"good.tar", http.StatusFound)
	default:
		http.Error(w, `{"error":"no such plugin"}`, http.StatusNotFound)
	}
}

func (s *fakeServer) enrol(w http.ResponseWriter, r *http.Request) {
	var req wire.EnrolRequest
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil || r.Method != http.MethodPost || r.URL.RawQuery != "" ||
		!ed25519.Verify(req.PublicKey, wire.SignedEnrol(token), req.Signature) {
		http.Error(w, `{"error":"bad enrolment"}`, http.StatusBadRequest)
		return
	}
	id := pipeline.AgentIDOf(req.PublicKey)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enrolments++
	by, ok := s.tokens[token]
	if !ok || by != "" {
		http.Error(w, `{"error":"this join token was used; make another"}`, http.StatusForbidden)
		return
	}
	s.tokens[token], s.enrolled[id] = id, true
	_ = json.NewEncoder(w).Encode(wire.EnrolResponse{Agent: id, Pool: "build", Server: s.record})
}

func (s *fakeServer) connect(w http.ResponseWriter, r *http.Request) {
	c, err := wsconn.Upgrade(w, r, wsconn.Options{})
	if err != nil {
		return
	}
	defer func() {
		c.Close(wsconn.CodeNormal, "")
		<-c.Done()
	}()
	ctx := context.Background()
	s.mu.Lock()
	record, incarnation := s.record, s.incarnation
	s.mu.Unlock()
	if c.Send(ctx, &wire.Challenge{Nonce: "nonce", Server: record, Incarnation: incarnation}) != nil {
		return
	}
	f, err := c.Receive(ctx)
	hello, ok := f.Message.(*wire.Hello)
	if err != nil || !ok || !ed25519.Verify(hello.PublicKey, wire.SignedHello("nonce", record), hello.Signature) {
		return
	}
	time.Sleep(s.welcomeAfter)
	answer := s.answer(hello)
	_ = c.Send(ctx, answer)
	if _, ok := answer.(*wire.Refused); ok {
		c.Close(wsconn.CodePolicy, "refused")
		return
	}
	conn := &served{Conn: c, hello: hello, got: make(chan wsconn.Frame, 1000), ended: make(chan error, 1)}
	s.conns <- conn
	conn.ended <- s.read(conn)
}

func (s *fakeServer) answer(hello *wire.Hello) wire.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := pipeline.AgentIDOf(hello.PublicKey)
	switch {
	case s.refuse != nil:
		return s.refuse
	case !s.enrolled[id]:
		return &wire.Refused{Reason: "not enrolled; make a join token", Final: true}
	}
	return &wire.Welcome{Version: 1, Agent: id, Server: s.record, Incarnation: s.incarnation, Seq: s.seq, HeartbeatMS: 5000, FetchToken: s.fetch}
}

func (s *fakeServer) read(conn *served) error {
	for {
		f, err := conn.Receive(context.Background())
		if err != nil {
			return err
		}
		beat, ok := f.Message.(*wire.Beat)
		if !ok {
			conn.got <- f
			continue
		}
		s.mu.Lock()
		s.beats = append(s.beats, time.Now())
		mute, after := s.mute, s.ackAfter
		ack := &wire.BeatAck{N: beat.N, Incarnation: s.incarnation, Seq: s.seq}
		s.mu.Unlock()
		if mute {
			continue
		}
		time.Sleep(after)
		_ = conn.TrySend(ack)
	}
}

// next waits for the next welcomed connection.
func (s *fakeServer) next(t *testing.T) *served {
	t.Helper()
	select {
	case c := <-s.conns:
		return c
	case <-time.After(5 * time.Minute): // short under a false clock, and the test's limit otherwise
		t.Fatal("no connection")
		return nil
	}
}

// fakeRunner takes what the session hands on.
type fakeRunner struct {
	held    []wire.Held
	heldFor atomic.Int64
	links   chan session.Link
	welcome chan wire.Welcome
	got     chan wire.Message
	renewed chan time.Time
	asked   chan time.Time
}

func newRunner() *fakeRunner {
	return &fakeRunner{
		links: make(chan session.Link, 1000), welcome: make(chan wire.Welcome, 1000),
		got: make(chan wire.Message, 1000), renewed: make(chan time.Time, 10_000), asked: make(chan time.Time, 1000),
	}
}

func (r *fakeRunner) Held(incarnation int64) []wire.Held {
	r.heldFor.Store(incarnation)
	return r.held
}

func (r *fakeRunner) Warm() []pipeline.CompositionName {
	return []pipeline.CompositionName{"warm"}
}

func (r *fakeRunner) Connected(l session.Link, w wire.Welcome, asked time.Time) {
	r.asked <- asked
	r.welcome <- w
	r.links <- l
}
func (r *fakeRunner) Handle(m wire.Message)  { r.got <- m }
func (r *fakeRunner) Renewed(sent time.Time) { r.renewed <- sent }

// logged keeps log lines.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// running is a session under test.
type running struct {
	*session.Session
	runner *fakeRunner
	logged *logged
	stop   func() error // ends Run and returns what it returned
	ended  chan error   // what Run returned
}

// run starts a session; the caller calls stop.
func run(cfg session.Config) *running {
	r := &running{logged: &logged{}, ended: make(chan error, 1)}
	runner, ok := cfg.Runner.(*fakeRunner)
	if !ok {
		runner = newRunner()
	}
	r.runner, cfg.Runner = runner, runner
	cfg.Log = slog.New(slog.NewTextHandler(r.logged, nil))
	if cfg.Name == "" {
		cfg.Name = "machine"
	}
	r.Session = session.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var err error
	go func() { // ends with stop
		defer close(done)
		err = r.Run(ctx)
		r.ended <- err
	}()
	r.stop = func() error {
		cancel()
		<-done
		return err
	}
	return r
}

// known makes the identity in dir and tells the server of it.
func (s *fakeServer) known(t *testing.T, dir string) pipeline.AgentID {
	t.Helper()
	id, err := session.LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.enrolled[id.ID] = true })
	return id.ID
}

var errNoRoute = errors.New("no route to host")
