//go:build linux

package runner_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/runner"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// control stands in for the control plane: it keeps what it is told and checks
// that logs come without a gap and without a change. It outlives links and runners.
type control struct {
	t *testing.T

	mu       sync.Mutex
	messages []wire.Message
	logs     map[pipeline.AttemptID][]byte
	silent   map[pipeline.AttemptID]bool // logs that are not acknowledged
	forgets  bool                        // the next frame but the first is lost, and all but 10 bytes before it
	deaf     bool                        // results are not acknowledged
	record   int64                       // incarnation
	answer   func(wire.Message)          // to the agent of the moment
	changed  chan struct{}
}

func newControl(t *testing.T) *control {
	return &control{t: t, logs: map[pipeline.AttemptID][]byte{}, silent: map[pipeline.AttemptID]bool{}, changed: make(chan struct{})}
}

func (c *control) receive(m wire.Message) {
	c.mu.Lock()
	c.messages = append(c.messages, m)
	close(c.changed)
	c.changed = make(chan struct{})
	answer, deaf := c.answer, c.deaf
	var reply wire.Message
	if r, ok := m.(*wire.Result); ok && !deaf {
		stored := int64(len(c.logs[r.Attempt]))
		switch {
		case stored < r.Result.LogBytes:
			c.t.Errorf("result of %s says %d bytes of log, %d are here", r.Attempt, r.Result.LogBytes, stored)
		case stored > r.Result.LogBytes:
			c.t.Errorf("result of %s says %d bytes of log, we have %d", r.Attempt, r.Result.LogBytes, stored)
		default:
			reply = &wire.Ack{Attempt: r.Attempt, Token: r.Token}
		}
	}
	c.mu.Unlock()
	if reply != nil && answer != nil {
		answer(reply)
	}
}

func (c *control) receiveLog(f wire.LogFrame) {
	c.mu.Lock()
	have := c.logs[f.Attempt]
	resend := c.forgets && f.Offset > 0
	if resend {
		c.forgets = false
		c.logs[f.Attempt] = have[:10]
	} else if f.Offset > int64(len(have)) {
		c.t.Errorf("log of %s: a gap, %d bytes are here and a frame begins at %d", f.Attempt, len(have), f.Offset)
	} else {
		overlap := min(int64(len(have))-f.Offset, int64(len(f.Data)))
		if !bytes.Equal(have[f.Offset:f.Offset+overlap], f.Data[:overlap]) {
			c.t.Errorf("log of %s: what came again at %d is not the same", f.Attempt, f.Offset)
		}
		c.logs[f.Attempt] = append(have, f.Data[overlap:]...)
	}
	ack := &wire.LogAck{Attempt: f.Attempt, Token: f.Token, Length: int64(len(c.logs[f.Attempt])), Resend: resend}
	answer, silent := c.answer, c.silent[f.Attempt]
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	if !silent && answer != nil {
		answer(ack)
	}
}

func (c *control) log(id pipeline.AttemptID) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.logs[id])
}

// until waits for a message of which ok is true, from the first one on.
func (c *control) until(what string, ok func(wire.Message) bool) wire.Message {
	c.t.Helper()
	deadline := time.After(30 * time.Second)
	for i := 0; ; {
		c.mu.Lock()
		all, changed := c.messages, c.changed
		c.mu.Unlock()
		for ; i < len(all); i++ {
			if ok(all[i]) {
				return all[i]
			}
		}
		select {
		case <-changed:
		case <-deadline:
			c.t.Fatalf("waited in vain for %s; got %s", what, show(all))
		}
	}
}

func (c *control) untilLog(id pipeline.AttemptID, text string) {
	c.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		c.mu.Lock()
		have, changed := string(c.logs[id]), c.changed
		c.mu.Unlock()
		if bytes.Contains([]byte(have), []byte(text)) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			c.t.Fatalf("waited in vain for %q in the log, which is %.200q", text, have)
		}
	}
}

func show(all []wire.Message) string {
	var b bytes.Buffer
	for _, m := range all {
		j, _ := json.Marshal(m)
		fmt.Fprintf(&b, "\n  %T %.300s", m, j)
	}
	return b.String()
}

// expect waits for a message of type M about an attempt.
func expect[M wire.Message](c *control, id pipeline.AttemptID) M {
	c.t.Helper()
	return c.until(fmt.Sprintf("%T of %s", *new(M), id), func(m wire.Message) bool { return is[M](m, id) }).(M)
}

func is[M wire.Message](m wire.Message, id pipeline.AttemptID) bool {
	_, ok := m.(M)
	return ok && reflect.ValueOf(m).Elem().FieldByName("Attempt").Interface() == id
}

// count returns how many messages of type M came about an attempt.
func count[M wire.Message](c *control, id pipeline.AttemptID) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, m := range c.messages {
		if is[M](m, id) {
			n++
		}
	}
	return n
}

// link is a connection within the process. What passes it is encoded and decoded.
type link struct {
	c    *control
	done chan struct{}
	once sync.Once
}

func (l *link) Done() <-chan struct{} { return l.done }

func (l *link) cut() { l.once.Do(func() { close(l.done) }) }

func (l *link) up() error {
	select {
	case <-l.done:
		return fault.New(fault.Unavailable, "the link is cut")
	default:
		return nil
	}
}

func (l *link) Send(m wire.Message) error {
	b, err := wire.Encode(m)
	if err != nil {
		l.c.t.Error(err)
		return err
	}
	if err := l.up(); err != nil {
		return err
	}
	if m, err = wire.Decode(b); err != nil {
		l.c.t.Error(err)
		return err
	}
	go l.c.receive(m) // the network is not the agent's goroutine; ends by itself
	return nil
}

func (l *link) SendLog(f wire.LogFrame) error {
	b, err := wire.EncodeLog(f)
	if err != nil {
		l.c.t.Error(err)
		return err
	}
	if err := l.up(); err != nil {
		return err
	}
	if f, err = wire.DecodeLog(b); err != nil {
		l.c.t.Error(err)
		return err
	}
	l.c.receiveLog(f)
	return nil
}

// shellPlugin runs the field "script" with sh; it needs no fetching.
type shellPlugin struct{}

func (shellPlugin) Fetch(_ context.Context, p wire.Plugin) (string, []string, error) {
	return "/", []string{"sh", "-c", `eval "$FIELD_SCRIPT"`}, nil
}

// host is a machine with an agent whose runner can be stopped and opened again.
type host struct {
	*testing.T
	*control
	dir string
	cfg runner.Config
	r   *runner.Runner

	link *link
	stop context.CancelFunc
	done chan error
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{T: t, control: newControl(t), dir: t.TempDir()}
	h.cfg = runner.Config{
		Dir: h.dir, Shim: shimCommand(t), Self: "/agentd", Plugins: shellPlugin{}, MinFree: 1, Grace: 300 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	t.Cleanup(func() { h.killAll() })
	return h
}

func shimCommand(t *testing.T) []string {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{exe, "shim"}
}

// open starts the runner and, unless offline, connects it.
func (h *host) open() *host {
	h.Helper()
	ctx, stop := context.WithCancel(h.Context())
	r, err := runner.Open(ctx, h.cfg)
	if err != nil {
		h.Fatal(err)
	}
	h.r, h.stop, h.done = r, stop, make(chan error, 1)
	done := h.done
	go func() { done <- r.Run(ctx) }()
	h.Cleanup(h.close)
	return h
}

// connect makes a new link and tells, as the control plane does, what it has.
func (h *host) connect() *host {
	if h.link != nil {
		h.link.cut()
	}
	h.link = &link{c: h.control, done: make(chan struct{})}
	held := h.r.Held(h.record)
	h.mu.Lock()
	h.answer = h.r.Handle
	h.mu.Unlock()
	h.r.Connected(h.link, wire.Welcome{Version: 1, Incarnation: h.record}, time.Now())
	for _, a := range held {
		if a.Phase != wire.HeldAccepted {
			h.r.Handle(&wire.LogAck{Attempt: a.Attempt, Token: a.Token, Length: int64(len(h.log(a.Attempt))), Resend: true})
		}
	}
	return h
}

// putBack makes the control plane an earlier one, which has that much of the log of an
// attempt, and connects the agent to it.
func (h *host) putBack(id pipeline.AttemptID, length int) *host {
	h.mu.Lock()
	h.record++
	h.messages = nil
	h.logs[id] = h.logs[id][:length]
	h.mu.Unlock()
	return h.connect()
}

// close ends the runner; what runs goes on.
func (h *host) close() {
	if h.stop == nil {
		return
	}
	if h.link != nil {
		h.link.cut()
	}
	h.mu.Lock()
	h.answer = nil
	h.mu.Unlock()
	h.stop()
	if err := <-h.done; err != nil {
		h.Error(err)
	}
	h.stop = nil
}

// killAll ends what a test has left running.
func (h *host) killAll() {
	dirs, _ := filepath.Glob(filepath.Join(h.dir, "attempts", "*"))
	for _, d := range dirs {
		_ = os.WriteFile(filepath.Join(d, "cancel"), []byte("the test is over"), 0o600)
	}
	for _, d := range dirs {
		h.eventually("the shim of "+d+" has ended", func() bool { return !shimAlive(d) })
	}
}

func (h *host) eventually(what string, ok func() bool) {
	h.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			h.Fatalf("waited in vain until %s", what)
		}
	}
}

var serial = make(chan int, 1)

func init() { serial <- os.Getpid() * 100_000 }

func newID() pipeline.AttemptID {
	n := <-serial
	serial <- n + 1
	return pipeline.AttemptID(fmt.Sprintf("01JD%022d", n))
}

// job is an offer of a script.
func job(script string) *wire.Offer {
	fields, err := json.Marshal(map[string]any{"script": script})
	if err != nil {
		panic(err) // a string always encodes
	}
	return &wire.Offer{
		Attempt: newID(), Token: pipeline.Token{Incarnation: 1, Epoch: 1},
		Spec: wire.Spec{
			Run: "01JDRUN", Number: 7, Composition: "build", Task: "compile", Uses: "shell/run", Fields: fields,
			Plugin:    wire.Plugin{Name: "shell", Programs: []pipeline.Program{{Argv: []string{"sh"}}}},
			Outputs:   pipeline.Type{Kind: pipeline.KindStruct, Open: true},
			LostAfter: pipeline.Duration(time.Hour), Effect: pipeline.Idempotent, TryNumber: 1,
			Repo: "file:///ops.git", Commit: "c0ffee", Ref: "refs/heads/main", IdempotencyKey: "key-1",
		},
	}
}

// start offers a job and lets it go.
func (h *host) start(o *wire.Offer) *wire.Offer {
	h.Helper()
	h.r.Handle(o)
	expect[*wire.Accept](h.control, o.Attempt)
	h.r.Handle(&wire.Go{Attempt: o.Attempt, Token: o.Token})
	expect[*wire.Started](h.control, o.Attempt)
	return o
}

func (h *host) result(o *wire.Offer) pipeline.Result {
	h.Helper()
	return expect[*wire.Result](h.control, o.Attempt).Result
}

func (h *host) run(script string) pipeline.Result {
	h.Helper()
	return h.result(h.start(job(script)))
}
