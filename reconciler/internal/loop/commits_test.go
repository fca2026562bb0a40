package loop_test

import (
	"encoding/json"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
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

func TestTheDefaultBranchDoesNotWaitForManyOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.c.Hurry()
	w.push("")
	refs := map[pipeline.Ref]pipeline.CommitID{mainRef: w.config("c1", pushed("c", shellTask("a")))}
	see := func(fails, behind bool, want ...pipeline.CommitID) {
		t.Helper()
		if err := w.c.Observe(t.Context(), refs); (err != nil) != fails || w.c.Behind() != behind {
			t.Errorf("err = %v, behind %t", err, w.c.Behind())
		}
		for _, id := range want {
			if _, err := w.db.Commit(t.Context(), id); err != nil {
				t.Errorf("not carried out: %v", err)
			}
		}
	}
	for _, b := range []string{"w", "x", "y", "z"} {
		refs[pipeline.Ref("refs/heads/"+b)] = w.config(pipeline.CommitID("of-"+b), pushed("c", shellTask("a")))
	}
	w.repo.lost, refs["refs/heads/a"] = "lost", "lost" // what cannot be read has its turn each time, and takes nobody's
	see(true, true, "c1", "of-w")
	delete(refs, "refs/heads/a")
	refs[mainRef] = w.config("c2", pushed("c", shellTask("a"))) // and moves meanwhile
	see(false, true, "c2", "of-x")
	if _, err := w.db.Commit(t.Context(), "of-y"); !fault.Is(err, fault.NotFound) {
		t.Errorf("a branch came before the refs were read again: %v", err)
	}
	see(false, true, "of-y")
	see(false, false, "of-z")
	see(false, false)
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

func TestRunOfAForkLeavesTheStatusOfTheRepositoryAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	c := w.commit("c1", pipeline.Task{Name: "a"})
	w.push(c)
	w.runs.Message(a.ID, success(w.accept(a), `{}`))
	own := w.await(pipeline.Success)
	of, err := w.db.Composition(t.Context(), own.Digest)
	if err != nil {
		t.Fatal(err)
	}
	fork := &pipeline.Run{
		ID: own.ID + "Z", Key: own.Key + "-of-a-fork", Composition: "c", Digest: own.Digest, Commit: c, Ref: pipeline.PullRef(2), Event: own.Event,
		State: pipeline.Pending, CreatedAt: own.CreatedAt, Tasks: []pipeline.RunTask{{Name: "a", Spec: own.Task("a").Spec, State: pipeline.Pending}},
	}
	fork.Event.Ref = fork.Ref
	if err := w.db.Write(t.Context(), func(tx *store.Tx) error { return tx.CreateRun(fork, of) }); err != nil {
		t.Fatal(err)
	}
	w.runs.Add(fork.Head(), []*pipeline.Run{fork}, []*pipeline.Composition{of})
	w.runs.Cancel(fork.ID, "by whom it is")
	w.awaitRun("c", 2, in(pipeline.Cancelled))
	w.quiet()
	all, err := w.db.StatusesOf(t.Context(), c)
	if err != nil || len(all) != 2 {
		t.Fatal(all, err)
	}
	for _, s := range all {
		if s.State != "success" {
			t.Errorf("what came of a fork's run is said of the commit: %+v", s)
		}
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
