package fleet_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
	"github.com/maestro-cd/maestro/reconciler/internal/fleet"
)

const (
	record  = "record-1"
	attempt = pipeline.AttemptID("01JDXXXXXXXXXXXXXXXXXXXXXX")
)

var token = pipeline.Token{Incarnation: 1, Epoch: 1}

// fakeRegistry is the record of agents, in memory.
type fakeRegistry struct {
	mu      sync.Mutex
	agents  map[pipeline.AgentID]pipeline.Agent
	tokens  map[[32]byte]pipeline.AgentID // "" while not used
	calls   int
	touched map[pipeline.AgentID]time.Time
}

func (r *fakeRegistry) Enrol(_ context.Context, hash [32]byte, a pipeline.Agent, now time.Time) (pipeline.Agent, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	by, ok := r.tokens[hash]
	switch {
	case !ok:
		return a, fault.New(fault.NotFound, "this join token does not exist")
	case by != "":
		return a, fault.New(fault.Conflict, "this join token was used already")
	case r.agents[a.ID].Revoked:
		return a, fault.New(fault.Invalid, "the key of this agent was revoked")
	}
	r.tokens[hash] = a.ID
	a.Pool, a.EnrolledAt = "build", now
	r.agents[a.ID] = a
	return a, nil
}

func (r *fakeRegistry) Agent(_ context.Context, id pipeline.AgentID) (pipeline.Agent, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.agents[id]
	if !ok {
		return a, fault.New(fault.NotFound, "agent %s does not exist", id)
	}
	return a, nil
}

func (r *fakeRegistry) Admitted(context.Context) (map[pipeline.AgentID]bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[pipeline.AgentID]bool{}
	for id, a := range r.agents {
		out[id] = !a.Revoked
	}
	return out, nil
}

func (r *fakeRegistry) TouchAgents(_ context.Context, seen map[pipeline.AgentID]time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, at := range seen {
		r.touched[id] = at
	}
	return nil
}

func (r *fakeRegistry) revoke(id pipeline.AgentID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.agents[id]
	a.Revoked = true
	r.agents[id] = a
}

// event is one call of fleet.Events.
type event struct {
	kind  string
	id    pipeline.AgentID
	agent pipeline.Agent
	held  []wire.Held
	msg   wire.Message
}

// fakeEvents keeps what the loop would be told.
type fakeEvents struct {
	ch chan event
	// connected, if set, is called within Connected.
	connected func(pipeline.Agent)
}

func (e *fakeEvents) Connected(a pipeline.Agent, held []wire.Held) {
	if e.connected != nil {
		e.connected(a)
	}
	e.ch <- event{kind: "connected", id: a.ID, agent: a, held: held}
}

func (e *fakeEvents) Disconnected(id pipeline.AgentID) { e.ch <- event{kind: "disconnected", id: id} }
func (e *fakeEvents) Renewed(id pipeline.AgentID)      { e.ch <- event{kind: "renewed", id: id} }
func (e *fakeEvents) Message(id pipeline.AgentID, m wire.Message) {
	e.ch <- event{kind: "message", id: id, msg: m}
}

// next waits for an event of that kind about an agent and skips others.
func (e *fakeEvents) next(t *testing.T, kind string, id pipeline.AgentID) event {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case ev := <-e.ch:
			if ev.kind == kind && ev.id == id {
				return ev
			}
		case <-timeout:
			t.Fatalf("no event %s of %s", kind, id)
		}
	}
}

// fakeLogs takes log bytes, or refuses them.
type fakeLogs struct {
	mu    sync.Mutex
	got   map[pipeline.AttemptID]int64 // end of the last bytes
	fails bool
	taken chan int64 // offsets
}

func (l *fakeLogs) Append(a pipeline.AttemptID, off int64, data []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails {
		return fault.New(fault.Unavailable, "no space left")
	}
	l.got[a] = off + int64(len(data))
	select {
	case l.taken <- off:
	default:
	}
	return nil
}

func (l *fakeLogs) fail(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fails = on
}

func (l *fakeLogs) length(a pipeline.AttemptID) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.got[a]
}

const (
	goodTree   = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
	brokenTree = "0000000000000000000000000000000000000001"
	goodSum    = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)

type fakeBundles struct{}

func (fakeBundles) Plugin(_ context.Context, tree pipeline.Digest, w io.Writer) error {
	switch tree {
	case "git:" + goodTree:
		_, err := io.WriteString(w, "a tar stream")
		return err
	case "git:" + brokenTree:
		_, _ = w.Write(make([]byte, 1<<20))
		return errors.New("the disk broke")
	}
	return fault.New(fault.NotFound, "no plugin with tree %s", tree)
}

func (fakeBundles) Archive(_ context.Context, sum string) (io.ReadCloser, error) {
	if sum != goodSum {
		return nil, fault.New(fault.NotFound, "no archive %s", sum)
	}
	return io.NopCloser(strings.NewReader("an archive")), nil
}

// world is a fleet with everything around it faked.
type world struct {
	fleet    *fleet.Fleet
	registry *fakeRegistry
	events   *fakeEvents
	logs     *fakeLogs
	logged   *logged
	refuse   atomic.Pointer[string] // what admit says
	seen     chan wire.Seen
}

func (w *world) admit(_ pipeline.Agent, seen wire.Seen) string {
	select {
	case w.seen <- seen:
	default:
	}
	if why := w.refuse.Load(); why != nil {
		return *why
	}
	return ""
}

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

func newWorld() *world {
	w := &world{
		registry: &fakeRegistry{agents: map[pipeline.AgentID]pipeline.Agent{}, tokens: map[[32]byte]pipeline.AgentID{}, touched: map[pipeline.AgentID]time.Time{}},
		events:   &fakeEvents{ch: make(chan event, 1<<16)},
		logs:     &fakeLogs{got: map[pipeline.AttemptID]int64{}, taken: make(chan int64, 1<<16)},
		logged:   &logged{},
		seen:     make(chan wire.Seen, 100),
	}
	w.fleet = fleet.New(fleet.Config{
		Server: record, Log: slog.New(slog.NewTextHandler(w.logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Registry: w.registry, Events: w.events, Logs: w.logs, Bundles: fakeBundles{},
		Reached: func() (int64, pipeline.Seq) { return 3, 17 },
		Admit:   w.admit,
	})
	return w
}

// serve puts the world on a loopback socket.
func (w *world) serve(t *testing.T) (url string) {
	t.Helper()
	srv := httptest.NewServer(w.fleet.Handler())
	t.Cleanup(srv.Close)
	t.Cleanup(func() {
		if err := w.fleet.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(w.logged)
		}
	})
	return srv.URL
}

// key is an agent's identity.
type key struct {
	private ed25519.PrivateKey
	public  ed25519.PublicKey
	id      pipeline.AgentID
}

func newKey(t testing.TB) key {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key{private, public, pipeline.AgentIDOf(public)}
}

// enrolled returns a key that the registry knows.
func (w *world) enrolled(t testing.TB) key {
	t.Helper()
	k := newKey(t)
	w.registry.mu.Lock()
	defer w.registry.mu.Unlock()
	w.registry.agents[k.id] = pipeline.Agent{ID: k.id, Name: "machine", Pool: "build", PublicKey: k.public}
	return k
}

func (k key) hello(c *wire.Challenge) *wire.Hello {
	return &wire.Hello{
		Versions: [2]int{wire.MinVersion, wire.Version}, Build: "test", PublicKey: k.public,
		Signature: ed25519.Sign(k.private, wire.SignedHello(c.Nonce, c.Server)),
		Name:      "machine", OS: "linux", Arch: "amd64", BootID: "boot-1", Facts: []byte(`{"cpus":2}`),
	}
}

// open dials and returns the challenge.
func open(t *testing.T, d wsconn.Dialer, url string) (*wsconn.Conn, *wire.Challenge) {
	t.Helper()
	c, err := d.Dial(t.Context(), url+wire.PathConnect)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(c) })
	return c, receive[*wire.Challenge](t, c)
}

// connect opens a session of k; change, if not nil, alters its hello.
func connect(t *testing.T, url string, k key, change func(*wire.Hello)) (*wsconn.Conn, *wire.Welcome) {
	t.Helper()
	c := greet(t, wsconn.Dialer{}, url, k, change)
	return c, receive[*wire.Welcome](t, c)
}

func greet(t *testing.T, d wsconn.Dialer, url string, k key, change func(*wire.Hello)) *wsconn.Conn {
	t.Helper()
	c, challenge := open(t, d, url)
	h := k.hello(challenge)
	if change != nil {
		change(h)
	}
	send(t, c, h)
	return c
}

func closed(c *wsconn.Conn) {
	c.Close(wsconn.CodeNormal, "")
	<-c.Done()
}

func send(t *testing.T, c *wsconn.Conn, m wire.Message) {
	t.Helper()
	if err := c.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
}

// receive waits for a message of type M.
func receive[M wire.Message](t *testing.T, c *wsconn.Conn) M {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	f, err := c.Receive(ctx)
	if err != nil {
		t.Fatalf("Receive = %v, want %T", err, *new(M))
	}
	m, ok := f.Message.(M)
	if !ok {
		t.Fatalf("Receive = %T %+v, want %T", f.Message, f.Message, *new(M))
	}
	return m
}

// ends waits for the end of c and returns the code with which the fleet closed it.
func ends(t *testing.T, c *wsconn.Conn) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if _, err := c.Receive(ctx); err != nil {
			return wsconn.CodeOf(err)
		}
	}
}

func (w *world) sendTo(t *testing.T, id pipeline.AgentID, m wire.Message) {
	t.Helper()
	if !w.fleet.Send(id, m) {
		t.Fatalf("Send %T to %s is false", m, id)
	}
}

func (w *world) online(id pipeline.AgentID) bool { return slices.Contains(w.fleet.Online(), id) }
