package shim

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/redact"
)

// supervisor runs one task from start to end. All its fields belong to the
// goroutine that calls supervise, but for the sink, which the copier owns until
// it has ended.
type supervisor struct {
	cfg    Config
	sink   *sink
	events events
	lease  lease
	stops  chan os.Signal
}

// stop is a reason to end a task that runs; the zero value is none.
type stop struct {
	outcome pipeline.State
	reason  string
	lost    bool
}

// ending is how the task's own process ended.
type ending struct {
	exit   *int   // nil when a signal ended it, or nothing did
	signal string // as "SIGKILL", and what that usually means
	// alone: nothing else of the task is left.
	alone bool
}

// life is how far a task's processes have lived. Its process puts in the ending and
// closes gone; its reaper is the goroutine that does so.
type life struct {
	exited chan ending   // one, when the task's own process has ended
	gone   chan struct{} // closed when nothing of the task is left that can be waited for
	reaper sync.WaitGroup
}

func newLife() life {
	return life{exited: make(chan ending, 1), gone: make(chan struct{})}
}

// end returns how the task's own process ended, or that it did not.
func (l *life) end() ending {
	select {
	case e := <-l.exited:
		return e
	default:
		return ending{signal: "nothing: it could not be killed"}
	}
}

func (l *life) waitGone(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-l.gone:
		return true
	case <-t.C:
		return false
	}
}

func newSupervisor(cfg Config, log *os.File) *supervisor {
	return &supervisor{
		cfg:  cfg,
		sink: &sink{file: log, spare: filepath.Join(cfg.Dir, reserveFile), limit: cfg.LogLimit},
		events: events{
			from: cfg.Events, secrets: cfg.masks(),
			live:  filepath.Join(cfg.Dir, EventsFile),
			final: filepath.Join(cfg.Dir, OutputsFile),
		},
		lease: lease{path: filepath.Join(cfg.Dir, LeaseFile), deadline: cfg.Lease},
		stops: make(chan os.Signal, 1),
	}
}

// supervise starts the task, sees it to its end with all its children, and tells
// how it ended.
func (s *supervisor) supervise() Result {
	r := Result{StartedAt: time.Now().UTC()}
	end, why, err := s.runTask()
	if err != nil {
		r.StartedAt = time.Time{}
		why = stop{outcome: pipeline.Error, reason: err.Error()}
	}
	r.judge(end, why)
	if err := s.events.finish(); err != nil {
		r.EventsError = err.Error()
	}
	r.LogBytes, r.LogLost = s.sink.size, s.sink.total
	if s.sink.reason != nil {
		r.LogError = s.sink.reason.Error()
	}
	r.EndedAt = time.Now().UTC()
	return r
}

// judge turns an ending into an outcome. A program that had ended before anybody
// stopped it keeps its own verdict.
func (r *Result) judge(end ending, why stop) {
	r.Exit = end.exit
	switch {
	case why.outcome != "":
		r.Outcome, r.Reason, r.Lost = why.outcome, why.reason, why.lost
	case end.exit != nil && *end.exit == 0:
		r.Outcome = pipeline.Success
	case end.exit != nil:
		r.Outcome, r.Reason = pipeline.Failure, fmt.Sprintf("the program exited with code %d", *end.exit)
	default:
		r.Outcome, r.Reason = pipeline.Failure, "the program was ended by "+end.signal
	}
}

func (s *supervisor) runTask() (ending, stop, error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return ending{}, stop{}, fmt.Errorf("start the program: %w", err)
	}
	defer inW.Close()
	outR, outW, err := os.Pipe()
	if err != nil {
		inR.Close()
		return ending{}, stop{}, fmt.Errorf("start the program: %w", err)
	}
	defer outR.Close()
	p, err := s.start(inR, outW)
	inR.Close()
	outW.Close()
	if err != nil {
		return ending{}, stop{}, err
	}

	var wg sync.WaitGroup
	copied := make(chan struct{})
	wg.Go(func() { feed(inW, s.cfg.Input) })            // ends when it has written all, or inW is closed
	wg.Go(func() { defer close(copied); s.copy(outR) }) // ends at the end of the output, or when outR is closed
	end, why := s.watch(p)
	select {
	case <-copied:
	case <-time.After(killing):
		// Somebody outside the task's processes holds the other end, or something
		// of it could not be killed. It must not keep the result from being told.
	}
	outR.Close()
	inW.Close()
	wg.Wait()
	p.release()
	return end, why, nil
}

func (s *supervisor) start(in, out *os.File) (*process, error) {
	path, err := lookup(s.cfg.Argv[0], s.cfg.PluginDir, s.cfg.Env)
	if err != nil {
		return nil, err
	}
	p, err := start(path, s.cfg.Argv, s.cfg.WorkDir, s.cfg.Env, in, out)
	if err != nil {
		return nil, fmt.Errorf("start %s in %s: %w", path, s.cfg.WorkDir, err)
	}
	return p, nil
}

// feed writes the input; a program need not read it.
func feed(w *os.File, input []byte) {
	_, _ = w.Write(input)
	w.Close()
}

// copy brings the output to the log, masked.
func (s *supervisor) copy(out io.Reader) {
	w := redact.New(s.sink, s.cfg.masks())
	buf := make([]byte, 64<<10)
	for {
		n, err := out.Read(buf)
		// The sink takes everything, so the writers have no errors.
		_, _ = w.Write(buf[:n])
		if err != nil {
			break
		}
	}
	_ = w.Close()
	s.sink.end()
}

// watch waits for the task to end, or ends it.
func (s *supervisor) watch(p *process) (ending, stop) {
	var timeout <-chan time.Time
	if s.cfg.Timeout > 0 {
		t := time.NewTimer(s.cfg.Timeout)
		defer t.Stop()
		timeout = t.C
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		var why stop
		select {
		case end := <-p.exited:
			if !end.alone {
				s.sweep(p, draining)
			}
			return end, stop{}
		case <-timeout:
			why = stop{outcome: pipeline.Timeout, reason: fmt.Sprintf("stopped after %s, its timeout", s.cfg.Timeout)}
		case <-s.stops:
			if why = s.cancelled(); why.outcome == "" {
				why = stop{pipeline.Error, "stopped by a signal that did not come from agentd; the machine may be shutting down", true}
			}
		case <-ticker.C:
			s.events.follow()
			why = s.check()
		}
		if why.outcome != "" {
			if !s.sweep(p, 0) {
				why.reason += "; some of its processes could not be killed"
			}
			return p.end(), why
		}
	}
}

func (s *supervisor) check() stop {
	if why := s.cancelled(); why.outcome != "" {
		return why
	}
	if !s.cfg.Once && s.lease.expired() {
		return stop{pipeline.Error, "lost contact with the control plane; stopped before another agent may start the task", true}
	}
	return stop{}
}

func (s *supervisor) cancelled() stop {
	b, err := os.ReadFile(filepath.Join(s.cfg.Dir, CancelFile))
	if err != nil {
		return stop{}
	}
	return stop{outcome: pipeline.Cancelled, reason: string(b[:min(len(b), mostReason)])}
}

// sweep ends every process of the task: after patience TERM, after the grace KILL.
// It reports whether all are gone.
func (s *supervisor) sweep(p *process, patience time.Duration) bool {
	if patience > 0 && p.waitGone(patience) {
		return true
	}
	p.terminate()
	if p.waitGone(s.cfg.Grace) {
		return true
	}
	// What was forked while the others were killed is found by the next look.
	for deadline := time.Now().Add(killing); time.Now().Before(deadline); {
		p.kill()
		if p.waitGone(20 * time.Millisecond) {
			return true
		}
	}
	return false
}
