package store_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// model is what the record should hold.
type model struct {
	runs     map[pipeline.RunID]*pipeline.Run
	attempts map[pipeline.AttemptID]pipeline.Attempt
	last     int // number of the last run
}

func (m model) clone() model {
	return model{maps.Clone(m.runs), maps.Clone(m.attempts), m.last}
}

func (m model) pick(r *rapid.T) *pipeline.Run {
	if len(m.runs) == 0 {
		return nil
	}
	return m.runs[rapid.SampledFrom(slices.Sorted(maps.Keys(m.runs))).Draw(r, "run")]
}

var errGiveUp = errors.New("the caller gives up")

// TestRecordIsAsTheModel writes random batches, some of which are given up or
// stale, reopens the record now and then, and compares it with a model in memory.
func TestRecordIsAsTheModel(t *testing.T) {
	t.Parallel()
	base := memoryDir(t)
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(base, "")
		if err != nil {
			r.Fatal(err)
		}
		ctx := context.Background()
		db, err := store.Open(ctx, dir, testLog(t))
		if err != nil {
			r.Fatal(err)
		}
		defer func() { db.Close() }()
		agent := enrol(t, db, "agent").ID
		c := composition("build", 2)
		m := model{runs: map[pipeline.RunID]*pipeline.Run{}, attempts: map[pipeline.AttemptID]pipeline.Attempt{}}
		for range rapid.IntRange(1, 12).Draw(r, "batches") {
			if rapid.IntRange(0, 5).Draw(r, "reopen") == 0 {
				if err := db.Close(); err != nil {
					r.Fatal(err)
				}
				if db, err = store.Open(ctx, dir, testLog(t)); err != nil {
					r.Fatal(err)
				}
			}
			next := m.clone()
			var wantKind fault.Kind
			err := db.Write(ctx, func(tx *store.Tx) error {
				next = m.clone()
				for range rapid.IntRange(1, 6).Draw(r, "operations") {
					if err := operate(r, tx, &next, c, agent); err != nil {
						wantKind = fault.KindOf(err)
						if rapid.Bool().Draw(r, "goes on") {
							return nil // which must not help
						}
						return err
					}
				}
				if rapid.IntRange(0, 4).Draw(r, "give up") == 0 {
					wantKind = fault.Internal
					return errGiveUp
				}
				return nil
			})
			if got := fault.KindOf(err); got != wantKind {
				r.Fatalf("got %v, want %q", err, wantKind)
			}
			if err == nil {
				m = next
			}
			compare(r, db, m)
		}
	})
}

// memoryDir is a folder in memory where there is one: thousands of transactions
// would wait for the disk, which other tests are about.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "store")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// operate makes one random change, or a stale one, and returns its error.
func operate(r *rapid.T, tx *store.Tx, m *model, c *pipeline.Composition, agent pipeline.AgentID) error {
	run := m.pick(r)
	if run == nil || rapid.IntRange(0, 3).Draw(r, "create") == 0 {
		return createOne(r, tx, m, c)
	}
	t := rapid.SampledFrom(run.Tasks).Draw(r, "task")
	if len(t.State.Next()) == 0 {
		return nil
	}
	to := rapid.SampledFrom(t.State.Next()).Draw(r, "to")
	after := move(run, t.Name, to)
	a := after.Task(t.Name)
	if to == pipeline.Offered {
		a.Agent = agent
	}
	if rapid.IntRange(0, 9).Draw(r, "stale") == 0 {
		old := run.Clone()
		old.Version-- // nobody holds this version any more
		err := tx.SaveRun(old, after)
		if !fault.Is(err, fault.Conflict) {
			r.Fatalf("a stale write: got %v", err)
		}
		return err
	}
	if err := tx.SaveRun(run, after); err != nil {
		r.Fatalf("%s -> %s: %v", t.State, to, err)
	}
	if err := follow(tx, m, run.Task(t.Name), a, run.ID, agent); err != nil {
		r.Fatalf("attempt, %s -> %s: %v", t.State, to, err)
	}
	m.runs[run.ID] = after
	return nil
}

func createOne(r *rapid.T, tx *store.Tx, m *model, c *pipeline.Composition) error {
	n := rapid.IntRange(1, 8).Draw(r, "n")
	run := newRun(c, n)
	err := tx.CreateRun(run, c)
	if m.runs[run.ID] != nil {
		if !fault.Is(err, fault.Conflict) {
			r.Fatalf("the same event again: got %v", err)
		}
		return nil // the transaction goes on
	}
	if m.last++; err != nil || run.Number != m.last {
		r.Fatalf("create: got number %d, %v, want %d", run.Number, err, m.last)
	}
	m.runs[run.ID] = run
	return nil
}

// follow writes what a task's move means for its attempt.
func follow(tx *store.Tx, m *model, before, after *pipeline.RunTask, run pipeline.RunID, agent pipeline.AgentID) error {
	if after.State == pipeline.Offered {
		a := pipeline.Attempt{
			ID: after.Attempt, Run: run, Task: after.Name, Agent: agent,
			Token: pipeline.Token{Incarnation: 1, Epoch: after.Epoch}, State: pipeline.AttemptOffered, OfferedAt: noon,
		}
		m.attempts[a.ID] = a
		return tx.SaveAttempt(nil, &a)
	}
	to := map[pipeline.State]pipeline.AttemptState{pipeline.Offered: pipeline.AttemptDeclined, pipeline.Running: pipeline.AttemptLost}[before.State]
	if after.State == pipeline.Running {
		to = pipeline.AttemptRunning
	}
	if to == "" {
		return nil
	}
	was := m.attempts[before.Attempt]
	a := in(was, to)
	m.attempts[a.ID] = *a
	return tx.SaveAttempt(&was, a)
}

func compare(r *rapid.T, db *store.DB, m model) {
	ctx := context.Background()
	var unfinished []*pipeline.Run
	for _, id := range slices.Sorted(maps.Keys(m.runs)) {
		got, err := db.Run(ctx, id)
		if d := cmp.Diff(m.runs[id], got); d != "" || err != nil {
			r.Fatalf("run %s: %v: want - got +\n%s", id, err, d)
		}
		if !got.State.Terminal() {
			unfinished = append(unfinished, got)
		}
		attempts, err := db.Attempts(ctx, id)
		if err != nil {
			r.Fatal(err)
		}
		invariants(r, attempts, m)
	}
	got, err := db.UnfinishedRuns(ctx)
	if d := cmp.Diff(unfinished, got); d != "" || err != nil {
		r.Fatalf("unfinished: %v: want - got +\n%s", err, d)
	}
	changes, err := db.Changes(ctx, 0, 1<<20)
	if err != nil {
		r.Fatal(err)
	}
	states := map[string]pipeline.State{}
	for i, c := range changes {
		if c.Seq != pipeline.Seq(i+1) {
			r.Fatalf("change %d has seq %d", i, c.Seq)
		}
		states[fmt.Sprint(c.Run, "/", c.Task)] = c.State
	}
	// Whoever follows the changes knows the state of every run and moved task.
	for id, run := range m.runs {
		if states[string(id)+"/"] != run.State {
			r.Fatalf("run %s is %s, and a follower thinks %s", id, run.State, states[string(id)+"/"])
		}
		for _, t := range run.Tasks {
			if s := states[fmt.Sprint(id, "/", t.Name)]; s != t.State && t.Reason != "" {
				r.Fatalf("task %s of %s is %s, and a follower thinks %s", t.Name, id, t.State, s)
			}
		}
	}
}

func invariants(r *rapid.T, attempts []pipeline.Attempt, m model) {
	open, epoch := map[pipeline.TaskName]int{}, map[pipeline.TaskName]int64{}
	slices.SortFunc(attempts, func(a, b pipeline.Attempt) int { return int(a.Token.Epoch - b.Token.Epoch) })
	for _, a := range attempts {
		if d := cmp.Diff(m.attempts[a.ID], a); d != "" {
			r.Fatalf("attempt %s: want - got +\n%s", a.ID, d)
		}
		if a.State == pipeline.AttemptOffered || a.State == pipeline.AttemptRunning {
			open[a.Task]++
		}
		if open[a.Task] > 1 || a.Token.Epoch <= epoch[a.Task] {
			r.Fatalf("attempt %s: %d open, epoch %d after %d", a.ID, open[a.Task], a.Token.Epoch, epoch[a.Task])
		}
		epoch[a.Task] = a.Token.Epoch
	}
}
