package config

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A crew keeps children ready, so that starting a process is not on the way from
// a push to its run. A child is used again until it has done its share.
type crew struct {
	argv []string // immutable after New
	log  *slog.Logger

	mu     sync.Mutex
	idle   []*worker // guarded by mu
	closed bool      // guarded by mu
	wg     sync.WaitGroup
}

// share is how many requests one child answers. Contexts leak a little, and a
// fresh process is cheap.
const share = 64

// worker is one child process. It is used by one goroutine at a time.
type worker struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr *tail
	served int
	// overdue is set by the clock that killed it.
	overdue atomic.Bool
	waited  sync.Once
	err     error
}

// errDied says that a child ended while it was at work.
type errDied struct {
	why string
	// transient: a busy machine may have caused it, so it is not to be remembered.
	transient bool
	// certain: what came before it in the batch has no part in it.
	certain bool
}

func (e *errDied) Error() string { return e.why }

// take returns a child, started before if there is one.
func (c *crew) take() (*worker, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errors.New("the evaluator is closed")
	}
	if n := len(c.idle); n > 0 {
		w := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return w, nil
	}
	c.mu.Unlock()
	return c.start()
}

// put gives a child back after an answered request.
func (c *crew) put(w *worker) {
	if w.served++; w.served >= share {
		w.stop()
		c.spare()
		return
	}
	c.mu.Lock()
	const most = 2
	if c.closed || len(c.idle) >= most {
		c.mu.Unlock()
		w.stop()
		return
	}
	c.idle = append(c.idle, w)
	c.mu.Unlock()
}

// spare starts a child in the background if none waits. Close waits for it.
func (c *crew) spare() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) > 0 {
		return
	}
	c.wg.Add(1)
	go func() { // ends when the process has started
		defer c.wg.Done()
		w, err := c.start()
		if err != nil {
			c.log.Warn("evaluator child does not start", "err", err)
			return
		}
		c.mu.Lock()
		keep := !c.closed
		if keep {
			c.idle = append(c.idle, w)
		}
		c.mu.Unlock()
		if !keep {
			w.stop()
		}
	}()
}

func (c *crew) close() {
	c.mu.Lock()
	c.closed = true
	idle := c.idle
	c.idle = nil
	c.mu.Unlock()
	for _, w := range idle {
		w.stop()
	}
	c.wg.Wait()
}

func (c *crew) start() (*worker, error) {
	if len(c.argv) == 0 {
		return nil, errors.New("no command for the evaluator's child is configured")
	}
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	// Nothing of our environment: it may hold secrets.
	cmd.Env = []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	w := &worker{cmd: cmd, stderr: &tail{}}
	cmd.Stderr = w.stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("evaluator child: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("evaluator child: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start evaluator child: %w", err)
	}
	w.in, w.out = in, bufio.NewReaderSize(out, 1<<16)
	return w, nil
}

// ask sends one request and hands each reply to visit until the child is done.
// The clock starts anew with each reply. A child that ends, is late or says
// nonsense gives *errDied; it is stopped then and must not be used again.
func (w *worker) ask(ctx context.Context, req *request, wall time.Duration, visit func(reply)) error {
	unhook := context.AfterFunc(ctx, w.kill)
	defer unhook()
	clock := time.AfterFunc(wall, func() { w.overdue.Store(true); w.kill() })
	defer clock.Stop()

	if err := json.NewEncoder(w.in).Encode(req); err != nil {
		return w.died(ctx)
	}
	for {
		line, err := readLine(w.out)
		if err != nil {
			return w.died(ctx)
		}
		var r reply
		if err := json.Unmarshal(line, &r); err != nil {
			w.kill()
			return w.died(ctx)
		}
		clock.Reset(wall)
		if r.Done {
			return nil
		}
		visit(r)
	}
}

var errLongLine = errors.New("the line is too long")

// readLine reads one line of bounded length: the child's word is not trusted.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxReply+1<<10 {
			return nil, errLongLine
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// kill is harmless once the process has been waited for.
func (w *worker) kill() { _ = w.cmd.Process.Kill() }

// stop lets an idle child end and waits for it.
func (w *worker) stop() {
	w.in.Close()
	w.kill()
	w.wait()
}

func (w *worker) wait() {
	w.waited.Do(func() {
		io.Copy(io.Discard, io.LimitReader(w.out, 64<<20)) // until the pipe closes
		w.err = w.cmd.Wait()
	})
}

// died collects why a child has ended.
func (w *worker) died(ctx context.Context) error {
	w.kill()
	w.in.Close()
	w.wait()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	said := w.stderr.String()
	status, _ := w.cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case w.overdue.Load():
		return &errDied{why: "it took longer than allowed", transient: true, certain: true}
	case w.cmd.ProcessState.ExitCode() == exitCPU, status.Signaled() && status.Signal() == syscall.SIGXCPU:
		return &errDied{why: "it used up its CPU time", certain: true}
	case strings.Contains(said, "stack exceeds") || strings.Contains(said, "stack overflow"):
		return &errDied{why: "it nests too deeply"}
	case strings.Contains(said, "out of memory"), strings.Contains(said, "cannot allocate"),
		// The collector itself falls over when it gets no memory; nothing else in
		// the child can touch memory that is not its own.
		strings.Contains(said, "SIGSEGV"):
		return &errDied{why: "it used up its memory"}
	}
	return &errDied{why: "the evaluator ended while working on it", transient: true}
}

// tail keeps the first bytes of what a child writes to its standard error: the
// runtime names the cause there before anything else.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const most = 4 << 10
	t.buf = append(t.buf, p[:min(len(p), max(0, most-len(t.buf)))]...)
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
