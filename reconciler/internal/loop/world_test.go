package loop_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

const (
	repoName = "/srv/ops.git"
	mainRef  = pipeline.Ref("refs/heads/main")
	patience = 20 * time.Second
)

type sent struct {
	to pipeline.AgentID
	m  wire.Message
}

// world is the loop with a real record. Agents are played by the test, over the
// interface that their sessions use.
type world struct {
	t    *testing.T
	dir  string
	db   *store.DB
	runs *loop.Runs
	repo *fakeRepository
	c    *loop.Commits
	sent chan sent
	stop func()

	mu   sync.Mutex
	logs map[pipeline.AttemptID]int64
	// What goes wrong, unless nil.
	noLogs, noFields, noSecrets error
	// sealing, unless nil, is received from before a log is sealed.
	sealing chan struct{}
	dropped chan pipeline.AgentID
	// blanks are the values of parts, as in "build: fields of test".
	blanks map[string]string
	// inForce is the policy that was last seen in force.
	inForce *pipeline.Policy
}

// memoryDir is a folder in memory where there is one: what a disk does at a crash
// is the store's to prove.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "loop")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, dir: memoryDir(t), logs: map[pipeline.AttemptID]int64{}, dropped: make(chan pipeline.AgentID, 100),
		repo:      &fakeRepository{configs: map[pipeline.CommitID]pipeline.Config{}},
		noSecrets: fault.New(fault.Invalid, "it is not declared"),
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start opens the record and runs the loop; stop ends both, as a crash would, for
// nothing is written at the end.
func (w *world) start() {
	w.t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{w.t}, nil))
	db, err := store.Open(w.t.Context(), w.dir, log)
	if err != nil {
		w.t.Fatal(err)
	}
	w.db, w.sent = db, make(chan sent, 1000)
	w.runs = loop.New(loop.Config{
		DB: db, Logs: w, Fleet: w, Filler: w, Secrets: w, Law: w.law, Live: func() *pipeline.Config { return w.c.Live() }, Log: log, Default: mainRef, Repo: repoName,
	})
	w.c = loop.NewCommits(loop.CommitsConfig{
		DB: db, Repository: w.repo, Filler: w, Runs: w.runs, Log: log, Name: repoName, Default: mainRef,
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan error, 1)
	go func() { done <- w.runs.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		if err := db.Close(); err != nil {
			w.t.Error(err)
		}
	})
}

func (w *world) restart() {
	w.stop()
	w.start()
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

func (w *world) Send(id pipeline.AgentID, m wire.Message) bool {
	w.sent <- sent{id, m}
	return true
}

func (w *world) Drop(id pipeline.AgentID, _ string) { w.dropped <- id }

func (w *world) Received(_ context.Context, id pipeline.AttemptID) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.logs[id], w.noLogs
}

func (w *world) Seal(ctx context.Context, _ pipeline.AttemptID, _ int64) error {
	if w.sealing == nil {
		return nil
	}
	select {
	case <-w.sealing:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// set changes what goes wrong.
func (w *world) set(where *error, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*where = err
}

func (w *world) Fill(_ context.Context, _ *pipeline.Composition, run *pipeline.Run, b pipeline.Blank, outputs map[pipeline.TaskName]json.RawMessage) (json.RawMessage, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := string(b.Part)
	if b.Task != "" {
		key += " of " + string(b.Task)
	}
	if v, ok := w.blanks[string(run.Composition)+": "+key]; ok {
		return json.RawMessage(v), nil
	}
	if t := run.Task(b.Task); t != nil && t.Spec.Description == "does not fit" {
		return nil, fault.New(fault.Invalid, "field x does not fit")
	}
	if w.noFields != nil {
		return nil, w.noFields
	}
	return json.Marshal(map[string]any{"saw": len(outputs)})
}

func (w *world) law() (*pipeline.Policy, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if live := w.c.Live(); live != nil {
		w.inForce = &live.Policy
	}
	if w.inForce != nil { // a restart knows what was in force
		return w.inForce, nil
	}
	return nil, fault.New(fault.Unavailable, "no configuration is live yet")
}

func (w *world) Secret(name pipeline.SecretName) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.noSecrets != nil {
		return "", fmt.Errorf("secret %s: %w", name, w.noSecrets)
	}
	return "the value of " + string(name), nil
}

type fakeRepository struct {
	mu      sync.Mutex
	configs map[pipeline.CommitID]pipeline.Config
	fail    error
	lost    pipeline.CommitID // cannot be read
	same    pipeline.CommitID // from which nothing differs
}

func (r *fakeRepository) Evaluate(_ context.Context, id pipeline.CommitID) (pipeline.Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id == r.lost && id != "" {
		return pipeline.Config{}, fault.New(fault.Unavailable, "commit %s cannot be read", id)
	}
	return r.configs[id], r.fail
}

func (*fakeRepository) Describe(context.Context, pipeline.CommitID) (author, subject string, err error) {
	return "Ada", "change", nil
}

func (r *fakeRepository) ChangedPaths(_ context.Context, base, _ pipeline.CommitID) ([]string, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if base == r.same && base != "" {
		return nil, true, nil
	}
	return []string{"a"}, true, nil
}

// expect returns the next message of the type to an agent, passing over others.
func expect[M wire.Message](w *world, to pipeline.AgentID) M {
	w.t.Helper()
	deadline := time.After(patience)
	var seen []string
	for {
		select {
		case s := <-w.sent:
			if m, ok := s.m.(M); ok && (to == "" || s.to == to) {
				return m
			}
			seen = append(seen, fmt.Sprintf("%T to %s", s.m, s.to))
		case <-deadline:
			var want M
			w.t.Fatalf("no %T to %q; saw %v", want, to, seen)
		}
	}
}

// agent enrols an agent and connects it.
func (w *world) agent(name string, held ...wire.Held) pipeline.Agent {
	w.t.Helper()
	key := sha256.Sum256([]byte(name))
	hash := sha256.Sum256([]byte("token " + name))
	a := pipeline.Agent{ID: pipeline.AgentIDOf(key[:]), Name: name, PublicKey: key[:], Facts: json.RawMessage(`{}`)}
	if known, err := w.db.Agent(w.t.Context(), a.ID); err == nil {
		a = known
	} else {
		if err := w.db.CreateJoinToken(w.t.Context(), hash, "default", false, time.Now().Add(time.Hour)); err != nil {
			w.t.Fatal(err)
		}
		if a, err = w.db.Enrol(w.t.Context(), hash, a, time.Now()); err != nil {
			w.t.Fatal(err)
		}
	}
	w.runs.Connected(a, held)
	return a
}

// commit makes a configuration of one composition with these tasks.
func (w *world) commit(id string, tasks ...pipeline.Task) pipeline.CommitID {
	for i := range tasks {
		tasks[i].Plugin, tasks[i].Uses, tasks[i].Priority = "shell", "shell/run", -1
		tasks[i].Outputs = pipeline.Type{Kind: pipeline.KindStruct, Open: true}
	}
	c := pipeline.CommitID(id)
	w.repo.mu.Lock()
	defer w.repo.mu.Unlock()
	w.repo.configs[c] = pipeline.Config{
		Commit:       c,
		Plugins:      []pipeline.Plugin{{Name: "shell", Tree: "git:1", Programs: []pipeline.Program{{Argv: []string{"./run"}}}}},
		Compositions: []pipeline.Composition{{Name: "c", Digest: "sha256:c", Tasks: tasks, Triggers: []pipeline.Trigger{{Push: &pipeline.PushTrigger{Branches: []string{"main"}}}}}},
	}
	return c
}

func (w *world) push(id pipeline.CommitID) {
	w.t.Helper()
	refs := map[pipeline.Ref]pipeline.CommitID{}
	if id != "" {
		refs[mainRef] = id
	}
	if err := w.c.Observe(w.t.Context(), refs); err != nil {
		w.t.Fatal(err)
	}
}

// await returns the run once it is in the state.
func (w *world) await(s pipeline.State) *pipeline.Run {
	w.t.Helper()
	signal, stop := w.db.Watch()
	defer stop()
	deadline := time.After(patience)
	for {
		r, err := w.db.RunByNumber(w.t.Context(), "c", 1)
		if err == nil && r.State == s {
			return r
		}
		select {
		case <-signal:
		case <-deadline:
			w.t.Fatalf("run is not %s: %+v, %v", s, r, err)
		}
	}
}

func (w *world) accept(a pipeline.Agent) *wire.Offer {
	w.t.Helper()
	o := expect[*wire.Offer](w, a.ID)
	w.runs.Message(a.ID, &wire.Accept{Attempt: o.Attempt, Token: o.Token})
	expect[*wire.Go](w, a.ID)
	return o
}

func success(o *wire.Offer, outputs string) *wire.Result {
	return &wire.Result{Attempt: o.Attempt, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Success, Outputs: json.RawMessage(outputs)}}
}
