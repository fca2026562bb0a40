//go:build linux

package runner_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/runner"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// frames carries messages over a socket: length, kind ('t' text, 'l' log), bytes.
type frames struct {
	net.Conn
	mu   sync.Mutex
	done chan struct{}
	once sync.Once
}

func (f *frames) write(kind byte, b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	head := append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), kind)
	if _, err := f.Conn.Write(append(head, b...)); err != nil {
		f.once.Do(func() { close(f.done) })
		return fault.New(fault.Unavailable, "write: %w", err)
	}
	return nil
}

func (f *frames) read() (kind byte, b []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(f.Conn, head[:]); err != nil {
		return 0, nil, err
	}
	b = make([]byte, binary.BigEndian.Uint32(head[:]))
	_, err = io.ReadFull(f.Conn, b)
	return head[4], b, err
}

func (f *frames) Done() <-chan struct{} { return f.done }

func (f *frames) Send(m wire.Message) error {
	b, err := wire.Encode(m)
	if err != nil {
		return err
	}
	return f.write('t', b)
}

func (f *frames) SendLog(l wire.LogFrame) error {
	b, err := wire.EncodeLog(l)
	if err != nil {
		return err
	}
	return f.write('l', b)
}

// standIn is an agentd without a session: a runner on a socket. It ends when it is killed.
func standIn(dir, address string) int {
	err := func() error {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		log := slog.New(slog.NewTextHandler(os.Stderr, nil))
		r, err := runner.Open(context.Background(), runner.Config{
			Dir: dir, Shim: []string{exe, "shim"}, Plugins: shellPlugin{}, Log: log, MinFree: 1,
		})
		if err != nil {
			return err
		}
		conn, err := net.Dial("unix", address)
		if err != nil {
			return err
		}
		f := &frames{Conn: conn, done: make(chan struct{})}
		hello, err := json.Marshal(r.Held(0))
		if err != nil {
			return err
		}
		if err := f.write('h', hello); err != nil {
			return err
		}
		r.Connected(f, wire.Welcome{}, time.Now())
		for {
			_, b, err := f.read()
			if err != nil {
				return err
			}
			m, err := wire.Decode(b)
			if err != nil {
				return err
			}
			r.Handle(m)
		}
	}()
	fmt.Fprintln(os.Stderr, "stand-in:", err)
	return 1
}

// killable runs stand-ins one after the other and talks to them as the control plane does.
type killable struct {
	*testing.T
	*control
	dir  string
	net  net.Listener
	cmd  *exec.Cmd
	read sync.WaitGroup
	// ready are attempts that were accepted, guarded by control's mutex.
	ready  map[pipeline.AttemptID]bool
	offers []*wire.Offer
}

func newKillable(t *testing.T) *killable {
	k := &killable{T: t, control: newControl(t), dir: t.TempDir(), ready: map[pipeline.AttemptID]bool{}}
	var err error
	if k.net, err = net.Listen("unix", filepath.Join(t.TempDir(), "s")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.kill(); k.net.Close() })
	return k
}

// boot starts a stand-in and answers what it holds.
func (k *killable) boot() {
	k.Helper()
	exe, err := os.Executable()
	if err != nil {
		k.Fatal(err)
	}
	k.cmd = exec.Command(exe)
	k.cmd.Env = append(os.Environ(), "TEST_AGENTD_DIR="+k.dir, "TEST_AGENTD_CONTROL="+k.net.Addr().String())
	k.cmd.Stderr = k.Output()
	k.cmd.WaitDelay = time.Second
	if err := k.cmd.Start(); err != nil {
		k.Fatal(err)
	}
	conn, err := k.net.Accept()
	if err != nil {
		k.Fatal(err)
	}
	f := &frames{Conn: conn, done: make(chan struct{})}
	_, b, err := f.read()
	if err != nil {
		k.Fatal(err)
	}
	var held []wire.Held
	if err := json.Unmarshal(b, &held); err != nil {
		k.Fatal(err)
	}
	k.mu.Lock()
	k.answer = func(m wire.Message) { _ = f.Send(m) } // it may be dead by now
	k.mu.Unlock()
	isHeld := map[pipeline.AttemptID]bool{}
	for _, a := range held {
		isHeld[a.Attempt] = true
		k.goOn(a)
	}
	for _, o := range k.offers {
		k.mu.Lock()
		ready := k.ready[o.Attempt]
		k.mu.Unlock()
		switch {
		case isHeld[o.Attempt]:
		case !ready: // as far as we know it was not accepted
			k.say(o)
		case count[*wire.Result](k.control, o.Attempt) == 0:
			k.Errorf("%s was accepted and is held no more", o.Attempt)
		}
	}
	k.read.Go(func() { // ends with the stand-in
		for {
			kind, b, err := f.read()
			if err != nil {
				return
			}
			k.take(kind, b)
		}
	})
}

// goOn answers for an attempt that the stand-in holds, as the control plane does.
func (k *killable) goOn(a wire.Held) {
	k.mu.Lock()
	stored := int64(len(k.logs[a.Attempt]))
	k.ready[a.Attempt] = true
	k.mu.Unlock()
	if a.Phase == wire.HeldAccepted {
		k.say(&wire.Go{Attempt: a.Attempt, Token: a.Token})
		return
	}
	k.say(&wire.LogAck{Attempt: a.Attempt, Token: a.Token, Length: stored, Resend: true})
}

func (k *killable) take(kind byte, b []byte) {
	if kind == 'l' {
		l, err := wire.DecodeLog(b)
		if err != nil {
			k.Error(err)
			return
		}
		k.receiveLog(l)
		return
	}
	m, err := wire.Decode(b)
	if err != nil {
		k.Error(err)
		return
	}
	if a, ok := m.(*wire.Accept); ok {
		k.mu.Lock()
		k.ready[a.Attempt] = true
		answer := k.answer
		k.mu.Unlock()
		answer(&wire.Go{Attempt: a.Attempt, Token: a.Token})
	}
	k.receive(m)
}

// kill ends the stand-in as a crash does.
func (k *killable) kill() {
	if k.cmd == nil {
		return
	}
	_ = k.cmd.Process.Kill()
	_ = k.cmd.Wait()
	k.read.Wait()
	k.cmd = nil
}

func (k *killable) say(m wire.Message) {
	k.mu.Lock()
	answer := k.answer
	k.mu.Unlock()
	answer(m)
}

func TestTaskSurvivesTheDeathOfAgentdWithEveryLineOnce(t *testing.T) {
	t.Parallel()
	k := newKillable(t)
	k.boot()
	o := job("for i in $(seq 1 60); do echo line $i; sleep 0.05; done")
	k.offers = append(k.offers, o)
	k.say(o)
	for _, line := range []string{"line 10\n", "line 30\n", "line 50\n"} {
		k.untilLog(o.Attempt, line)
		k.kill()
		k.boot()
	}
	r := expect[*wire.Result](k.control, o.Attempt).Result
	want(t, r, pipeline.Success, "")
	var all strings.Builder
	for i := 1; i <= 60; i++ {
		fmt.Fprintf(&all, "line %d\n", i)
	}
	if got := k.log(o.Attempt); got != all.String() {
		t.Errorf("log = %q", got)
	}
	if n := count[*wire.Started](k.control, o.Attempt); n != 1 {
		t.Errorf("started %d times", n)
	}
}

// Kills at any instant, most of them around offer, go and start: no task is lost,
// none runs twice, and no log has a gap.
func TestKillsAtAnyInstantLoseNothingAndRepeatNothing(t *testing.T) {
	t.Parallel()
	k := newKillable(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	mark := filepath.Join(t.TempDir(), "starts")
	k.boot()
	for i := range 12 {
		o := job(fmt.Sprintf("echo %d >> %s; seq 1 500; sleep 0.0%d; echo end", i, mark, rnd.IntN(9)))
		o.Spec.Task = pipeline.TaskName(fmt.Sprintf("t%d", i))
		o.Spec.Effect = pipeline.Once
		k.offers = append(k.offers, o)
		k.say(o)
		pause(t, time.Duration(rnd.IntN(25))*time.Millisecond)
		k.kill()
		k.boot()
	}
	for i, o := range k.offers {
		want(t, expect[*wire.Result](k.control, o.Attempt).Result, pipeline.Success, "")
		if log := k.log(o.Attempt); strings.Count(log, "\n") != 501 || !strings.HasSuffix(log, "500\nend\n") {
			t.Errorf("log of task %d has %d lines", i, strings.Count(log, "\n"))
		}
	}
	b, err := os.ReadFile(mark)
	if err != nil {
		t.Fatal(err)
	}
	for i := range k.offers {
		if n := strings.Count("\n"+string(b), fmt.Sprintf("\n%d\n", i)); n != 1 {
			t.Errorf("task %d started %d times", i, n)
		}
	}
}

// pause is the length of a life, not a wait for an event.
func pause(t *testing.T, d time.Duration) {
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}
