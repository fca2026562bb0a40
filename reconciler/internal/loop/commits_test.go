package loop_test

import (
	"encoding/json"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// rollUp returns the status of the commit as a whole.
func (w *world) rollUp(c pipeline.CommitID) pipeline.Status {
	w.t.Helper()
	all, err := w.db.StatusesOf(w.t.Context(), c)
	if err != nil || len(all) == 0 {
		w.t.Fatalf("statuses of %s: %v, %v", c, all, err)
	}
	return all[0]
}

func TestBranchAtTheSameCommitLeavesItsStatusAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	c := w.commit("c1", pipeline.Task{Name: "a"})
	w.push(c)
	o := w.accept(a)
	branch := func(name pipeline.Ref) {
		t.Helper()
		if err := w.c.Observe(t.Context(), map[pipeline.Ref]pipeline.CommitID{mainRef: c, name: c}); err != nil {
			t.Fatal(err)
		}
	}
	branch("refs/heads/two")
	if s := w.rollUp(c); s.State != "pending" {
		t.Errorf("while the run of the default branch runs: %+v", s)
	}
	w.runs.Message(a.ID, &wire.Result{Attempt: o.Attempt, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Failure, Reason: "no"}})
	w.await(pipeline.Failure)
	branch("refs/heads/three")
	if s := w.rollUp(c); s.State != "failure" {
		t.Errorf("after the run of the default branch failed: %+v", s)
	}
}

func TestVerdictOfAnEventSeenAgainNamesItsRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	c := w.commit("c1", pipeline.Task{Name: "a", Fields: json.RawMessage(`{}`)})
	w.push(c)
	w.push(w.commit("c2"))
	w.push(c)
	verdicts, err := w.db.Verdicts(t.Context(), c)
	if err != nil || len(verdicts) != 1 || verdicts[0].Run == "" {
		t.Errorf("verdicts = %+v, %v", verdicts, err)
	}
}
