package sim_test

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/agentd/agenttest"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// world is what is outside of both programs: it sees what really happened.
type world struct {
	repo  repository
	forge fakeForge

	mu     sync.Mutex
	lives  map[pipeline.AttemptID]*life
	order  []*life
	twice  []pipeline.AttemptID
	began  time.Time
	events []string
}

// life is one start of a task's program.
type life struct {
	task     agenttest.Task
	from, to time.Duration // to is zero while it runs
	lines    int           // written
	whole    bool          // it came to its own end
	exit     int
}

func newWorld() *world {
	return &world{lives: map[pipeline.AttemptID]*life{}, began: time.Now()}
}

// note keeps a line for the story of a failure.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, fmt.Sprintf("%9.3f ", time.Since(w.began).Seconds())+fmt.Sprintf(format, args...))
}

// program is what tasks do: they write lines over a while.
func (w *world) program(ctx context.Context, t agenttest.Task, out io.Writer) int {
	var f struct {
		For   seconds
		Lines int
		Fails int
	}
	if err := json.Unmarshal(t.Fields, &f); err != nil {
		return 2
	}
	l := w.start(t)
	defer w.end(l)
	pause := f.For.duration()
	const pieces = 5
	for i := range pieces {
		for l.lines < f.Lines*(i+1)/pieces {
			if _, err := io.WriteString(out, line(t.Attempt, l.lines)); err != nil {
				return 3
			}
			l.lines++
		}
		timer := time.NewTimer(pause / pieces)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return -1
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// Tries that were lost do not count as failures; those before this one did not
	// all run, so the count is of whole lives.
	failed := 0
	for _, o := range w.order {
		if o.task.Key == t.Key && o.whole {
			failed++
		}
	}
	l.whole = true
	if failed < f.Fails {
		l.exit = 1
	}
	return l.exit
}

func (w *world) start(t agenttest.Task) *life {
	w.note("task %s of run %s starts, try %d, attempt %s", t.Name, t.Run, t.Try, t.Attempt)
	w.mu.Lock()
	defer w.mu.Unlock()
	l := &life{task: t, from: time.Since(w.began)}
	if w.lives[t.Attempt] != nil {
		w.twice = append(w.twice, t.Attempt)
	}
	w.lives[t.Attempt] = l
	w.order = append(w.order, l)
	return l
}

func (w *world) end(l *life) {
	w.mu.Lock()
	l.to = time.Since(w.began)
	w.mu.Unlock()
	w.note("task %s of run %s ends, attempt %s, whole: %v", l.task.Name, l.task.Run, l.task.Attempt, l.whole)
}

// line is the n-th line that an attempt prints.
func line(id pipeline.AttemptID, n int) string {
	return fmt.Sprintf("%d %s %08x\n", n, id, crc32.ChecksumIEEE(fmt.Appendf(nil, "%s/%d", id, n)))
}

// repository has the commits that were pushed.
type repository struct {
	mu      sync.Mutex
	configs map[pipeline.CommitID]pipeline.Config
	tip     pipeline.CommitID
}

func (r *repository) push(cfg pipeline.Config) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.configs == nil {
		r.configs = map[pipeline.CommitID]pipeline.Config{}
	}
	r.configs[cfg.Commit], r.tip = cfg, cfg.Commit
}

func (r *repository) refs() map[pipeline.Ref]pipeline.CommitID {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tip == "" {
		return nil
	}
	return map[pipeline.Ref]pipeline.CommitID{mainRef: r.tip}
}

func (r *repository) Evaluate(_ context.Context, id pipeline.CommitID) (pipeline.Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	cfg, ok := r.configs[id]
	if !ok {
		return cfg, fault.New(fault.Unavailable, "commit %s is not there", id)
	}
	return cfg, nil
}

func (*repository) Describe(context.Context, pipeline.CommitID) (author, subject string, err error) {
	return "Ada", "change", nil
}

func (*repository) ChangedPaths(context.Context, pipeline.CommitID, pipeline.CommitID) ([]string, bool, error) {
	return nil, false, nil
}

// fakeForge shows statuses.
type fakeForge struct {
	mu    sync.Mutex
	down  int // reasons why it does not answer
	posts int
	shown map[string]pipeline.Status
}

func (f *fakeForge) Name() string { return "simulated forge" }

func (f *fakeForge) Post(_ context.Context, s pipeline.Status) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.posts++
	if f.down > 0 && f.posts%2 == 0 {
		return fault.New(fault.Unavailable, "the forge is down")
	}
	if f.shown == nil {
		f.shown = map[string]pipeline.Status{}
	}
	f.shown[string(s.Commit)+" "+s.Context] = s
	if f.down > 0 { // the post arrived, and its answer did not
		return fault.New(fault.Unavailable, "the forge did not answer")
	}
	return nil
}

func (f *fakeForge) Statuses(context.Context, pipeline.CommitID) ([]pipeline.Status, error) {
	return nil, fault.New(fault.Unavailable, "not asked here")
}

func (f *fakeForge) fail(by int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down += by
}

func (f *fakeForge) state(commit pipeline.CommitID, context string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shown[string(commit)+" "+context].State
}
