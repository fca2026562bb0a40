package agenttest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/journal"
	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Task is what a program knows of itself.
type Task struct {
	Attempt pipeline.AttemptID
	Name    pipeline.TaskName
	Run     pipeline.RunID
	// Key is the task's idempotency key, Try the number of the attempt.
	Key    string
	Try    int
	Fields json.RawMessage
}

// Program runs a task to its end and returns its exit code. It writes the task's log
// to out, and returns at once when ctx ends, which is how it is killed.
type Program func(ctx context.Context, t Task, out io.Writer) (exit int)

// Step is an instant at which an agent may be killed.
type Step string

// The steps of a start, in order.
const (
	BeforeSpawn Step = "before spawn"
	AfterSpawn  Step = "after spawn" // the shim waits to be told what to run
	BeforeGive  Step = "before give" // and the journal says so
	AfterGive   Step = "after give"
)

// ErrKilled is what a call returns to an agent that was killed in it.
var ErrKilled = errors.New("agentd was killed")

// Machine is a simulated machine. Make it with NewMachine. Its methods may be called
// from any goroutine.
type Machine struct {
	program Program
	// grace is how long a program goes on after it was told to end.
	grace time.Duration
	// at is called at each step of a start, and reports whether the agent was killed.
	at func(Step) bool

	mu     sync.Mutex
	boot   int
	booted time.Time
	pids   int
	procs  map[int]*process // alive, by pid
	full   bool
	// strays are programs that outlive their shim.
	strays map[pipeline.AttemptID]*process
}

// NewMachine returns a machine that has just started.
func NewMachine(p Program, grace time.Duration, at func(Step) bool) *Machine {
	return &Machine{
		program: p, grace: grace, at: at, boot: 1, booted: time.Now(),
		procs: map[int]*process{}, strays: map[pipeline.AttemptID]*process{},
	}
}

// SetFull makes the machine's disk as good as full, or not.
func (m *Machine) SetFull(full bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.full = full
}

// Running reports how many shims have a task.
func (m *Machine) Running() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, p := range m.procs {
		if p.given {
			n++
		}
	}
	return n
}

// KillShim ends the n-th shim that has a task, as SIGKILL does. What it ran goes on for
// a while, unless the agent finds it.
func (m *Machine) KillShim(n int) bool {
	m.mu.Lock()
	var all []*process
	for pid := range m.pids + 1 {
		if p := m.procs[pid]; p != nil && p.given {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		m.mu.Unlock()
		return false
	}
	p := all[n%len(all)]
	delete(m.procs, p.id.PID)
	m.strays[p.cfg.Attempt] = p
	p.all.Go(func() { // ends with the program
		t := time.NewTimer(5 * time.Second)
		defer t.Stop()
		select {
		case <-t.C:
			p.kill()
		case <-p.life.Done():
		}
	})
	m.mu.Unlock()
	close(p.shot)
	return true
}

// PowerCut ends everything that runs and starts the machine again, whose agent, with
// its files in dir, must have been killed. What was not yet on the disk is lost: keep
// says how much of n pieces or bytes is still there.
func (m *Machine) PowerCut(dir string, keep func(n int) int) error {
	m.mu.Lock()
	var all []*process
	for _, p := range m.procs {
		all = append(all, p)
	}
	for _, p := range m.strays {
		all = append(all, p)
	}
	m.boot++
	m.booted = time.Now()
	m.procs, m.strays = map[int]*process{}, map[pipeline.AttemptID]*process{}
	m.mu.Unlock()
	for _, p := range all {
		p.kill()
	}
	for _, p := range all {
		p.all.Wait()
	}
	for _, p := range all {
		if err := loseTail(filepath.Join(p.dir, shim.LogFile), p.dir, keep); err != nil {
			return err
		}
	}
	return loseNotes(filepath.Join(dir, "journal"), keep)
}

// loseTail cuts a log that no fsync was made of: one comes with the result.
func loseTail(log, dir string, keep func(int) int) error {
	if _, err := os.Stat(filepath.Join(dir, shim.ResultFile)); err == nil {
		return nil
	}
	fi, err := os.Stat(log)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Truncate(log, int64(keep(int(fi.Size()))))
}

// loseNotes cuts the journal after its last promise: notes behind it were not fsynced.
func loseNotes(path string, keep func(int) int) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	lines := bytes.SplitAfter(b, []byte("\n"))
	safe := 0
	for i, line := range lines {
		for _, kind := range []journal.Kind{journal.Accepted, journal.Started} {
			if bytes.Contains(line, []byte(`"kind":"`+string(kind)+`"`)) {
				safe = i + 1
			}
		}
	}
	notes := len(bytes.Join(lines[safe:], nil))
	return os.WriteFile(path, b[:len(b)-notes+keep(notes)], 0o600)
}

// Close kills all that runs and waits for it.
func (m *Machine) Close() {
	_ = m.PowerCut(os.DevNull, func(n int) int { return n })
}

// orphan ends the shims that wait for an agent which is gone.
func (m *Machine) orphan() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for pid, p := range m.procs {
		if !p.given {
			delete(m.procs, pid)
			close(p.done)
		}
	}
}

// process is a shim and its task.
type process struct {
	m    *Machine
	dir  string
	id   shim.Process
	done chan struct{} // closed when the shim has ended
	shot chan struct{} // closed when the shim alone is killed
	stop chan string   // why it is cancelled; room for one
	life context.Context
	kill context.CancelFunc // ends shim and program at once
	all  sync.WaitGroup     // the shim's goroutine and the program's

	given bool // guarded by Machine.mu
	cfg   shim.Config
}

func (m *Machine) bootID() string { return "boot-" + strconv.Itoa(m.boot) }

func (m *Machine) spawn(dir string) *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pids++
	p := &process{
		m: m, dir: dir, id: shim.Process{PID: m.pids, Start: uint64(m.pids), Boot: m.bootID()},
		done: make(chan struct{}), shot: make(chan struct{}), stop: make(chan string, 1),
	}
	p.life, p.kill = context.WithCancel(context.Background())
	m.procs[p.id.PID] = p
	return p
}

// give starts the shim's work, unless it has ended.
func (p *process) give(cfg shim.Config) error {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	if p.m.procs[p.id.PID] != p {
		return errors.New("the shim has ended")
	}
	p.given, p.cfg = true, cfg
	p.all.Go(p.run) // ends with the task, or by kill
	return nil
}

// run is the shim.
func (p *process) run() {
	defer close(p.done)
	defer func() {
		p.m.mu.Lock()
		defer p.m.mu.Unlock()
		delete(p.m.procs, p.id.PID)
	}()
	if !p.sleep(3 * time.Millisecond) { // a program takes its time to start
		return
	}
	log, err := os.OpenFile(filepath.Join(p.dir, shim.LogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return // the agent finds that nothing was started
	}
	if err := writeJSON(filepath.Join(p.dir, shim.PIDFile), p.id); err != nil {
		_ = log.Close()
		return
	}
	ended := make(chan int, 1)
	p.all.Go(func() { // ends with the program, which ends with life
		defer log.Close()
		ended <- p.m.program(p.life, taskOf(p.cfg), log)
	})
	began := time.Now()
	r, ok := p.watch(ended)
	if !ok {
		return
	}
	if fi, err := log.Stat(); err == nil {
		r.LogBytes = fi.Size()
	} else if fi, err := os.Stat(filepath.Join(p.dir, shim.LogFile)); err == nil {
		r.LogBytes = fi.Size()
	}
	r.StartedAt, r.EndedAt = began.UTC(), time.Now().UTC()
	// One that cannot be written is one of a shim that was killed just before.
	_ = writeJSON(filepath.Join(p.dir, shim.ResultFile), r)
}

// watch waits for the program's end, or ends it; false when the shim was killed.
func (p *process) watch(ended <-chan int) (shim.Result, bool) {
	const look = 200 * time.Millisecond
	tick := time.NewTicker(look)
	defer tick.Stop()
	lease := p.cfg.Lease
	for {
		select {
		case exit := <-ended:
			if p.life.Err() != nil {
				return shim.Result{}, false
			}
			r := shim.Result{Outcome: pipeline.Success, Exit: &exit}
			if exit != 0 {
				r.Outcome, r.Reason = pipeline.Failure, fmt.Sprintf("the program exited with code %d", exit)
			}
			return r, true
		case <-p.shot:
			return shim.Result{}, false
		case reason := <-p.stop:
			return shim.Result{Outcome: pipeline.Cancelled, Reason: reason}, p.end(ended)
		case <-tick.C:
			if p.cfg.Once || p.m.now() < lease {
				continue
			}
			if lease = p.readLease(lease); p.m.now() >= lease {
				return shim.Result{Outcome: pipeline.Error, Reason: "lost contact", Lost: true}, p.end(ended)
			}
		}
	}
}

// end asks the program to end, which it does after the grace, and reports whether the
// shim lived so long.
func (p *process) end(ended <-chan int) bool {
	t := time.NewTimer(p.m.grace)
	defer t.Stop()
	select {
	case <-ended:
		return p.life.Err() == nil
	case <-t.C:
		p.kill()
		<-ended
		return p.m.alive(p.id) // not when the power was cut meanwhile
	case <-p.shot:
		return false
	}
}

func (p *process) readLease(last time.Duration) time.Duration {
	b, err := os.ReadFile(filepath.Join(p.dir, shim.LeaseFile))
	if err != nil {
		return last
	}
	ns, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return last
	}
	return time.Duration(ns)
}

func (p *process) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-p.shot:
		return false
	case <-p.life.Done():
		return false
	}
}

func taskOf(cfg shim.Config) Task {
	t := Task{Attempt: cfg.Attempt}
	var in struct {
		Task   pipeline.TaskName `json:"task"`
		Run    pipeline.RunID    `json:"run"`
		Try    int               `json:"try"`
		Fields json.RawMessage   `json:"fields"`
	}
	if json.Unmarshal(cfg.Input, &in) == nil {
		t.Name, t.Run, t.Try, t.Fields = in.Task, in.Run, in.Try, in.Fields
	}
	for _, e := range cfg.Env {
		if key, ok := bytes.CutPrefix([]byte(e), []byte("MAESTRO_IDEMPOTENCY_KEY=")); ok {
			t.Key = string(key)
		}
	}
	return t
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
