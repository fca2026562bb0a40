package loop_test

import (
	"maps"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

var app = pipeline.Repository{Name: "app", URL: "https://example.com/app.git", Trusted: []string{"main"}}

// listening is commit with a trigger on pushes to app.
func (w *world) listening(id string, tasks ...pipeline.Task) pipeline.CommitID {
	c := w.commit(id, tasks...)
	w.repo.mu.Lock()
	defer w.repo.mu.Unlock()
	cfg := w.repo.configs[c]
	cfg.Repositories = []pipeline.Repository{app}
	cfg.Compositions[0].Triggers = []pipeline.Trigger{{Push: &pipeline.PushTrigger{Repo: "app", Branches: []string{"*"}}}}
	w.repo.configs[c] = cfg
	return c
}

// look shows where the refs of a source repository are, as branches and commits by turns.
func (w *world) look(at *pipeline.Repository, refs ...string) {
	w.t.Helper()
	tips := map[pipeline.Ref]pipeline.CommitID{}
	for i := 0; i < len(refs); i += 2 {
		tips[pipeline.Ref("refs/heads/"+refs[i])] = pipeline.CommitID(refs[i+1])
	}
	if more, err := w.c.ObserveSource(w.t.Context(), &loop.Source{Repository: *at, History: w.repo}, tips); more || err != nil {
		w.t.Fatalf("more %t, %v", more, err)
	}
}

func (w *world) runsOf(c pipeline.CommitID) []*pipeline.Run {
	w.t.Helper()
	runs, err := w.db.Runs(w.t.Context(), store.Filter{Commit: c, Limit: 100})
	if err != nil {
		w.t.Fatal(err)
	}
	return runs
}

func TestSourceStartsRunsOfWhatIsInForce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.listening("c1", pipeline.Task{Name: "a"}))
	w.look(&app, "main", "s1", "topic", "s1")
	if runs := w.runsOf("s1"); len(runs) != 0 {
		t.Fatalf("the first look made %d runs", len(runs))
	}
	w.look(&app, "main", "s2", "topic", "s1")
	o := w.accept(a)
	if s := o.Spec; s.Repo != app.URL || s.Source != "app" || s.Commit != "s2" || s.Ref != mainRef || s.Untrusted {
		t.Errorf("the agent is told %+v", s)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	r := w.await(pipeline.Success)
	if r.Commit != "c1" || r.Ref != "refs/sources/app/heads/main" || r.Event.Config != "c1" || r.Head() != (pipeline.Head{Repo: "app", Commit: "s2"}) {
		t.Errorf("the run is of %s on %s: %+v", r.Commit, r.Ref, r.Event)
	}
	if s := w.statusesOf("app", "s2"); s["maestro"] != "success: 1 run succeeded" || s["maestro/run/c"] != "success: #1 success: 1 of 1 task" {
		t.Errorf("its statuses are %v", s)
	}
	if s := w.statusesOf("", "c1"); len(s) != 1 {
		t.Errorf("the commit in force has %v", s)
	}

	// After a crash the same look is nothing new, nor is a branch that comes back to
	// where it was while the same is in force.
	w.restart()
	if err := w.c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.look(&app, "main", "s2", "topic", "s1")
	w.look(&app, "main", "s1", "topic", "s1")
	w.look(&app, "main", "s2", "topic", "s1")
	if runs := w.runsOf("s2"); len(runs) != 1 {
		t.Errorf("s2 has %d runs", len(runs))
	}
	// With another configuration it is another event.
	w.push(w.listening("c2", pipeline.Task{Name: "a"}))
	w.look(&app, "main", "s1", "topic", "s1")
	w.look(&app, "main", "s2", "topic", "s1")
	if runs := w.runsOf("s2"); len(runs) != 2 || runs[0].Commit != "c2" {
		t.Errorf("s2 has %d runs", len(runs))
	}
}

// statusesOf are the desired statuses of a commit of a repository.
func (w *world) statusesOf(repo string, c pipeline.CommitID) map[string]string {
	w.t.Helper()
	all, err := w.db.StatusesOf(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]string{}
	for _, s := range all {
		if s.Repo == repo {
			out[s.Context] = s.State + ": " + s.Description
		}
	}
	return out
}

func TestUntrustedBranchOfASourceGetsNothingOfTheDefaultOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.set(&w.noSecrets, nil)
	w.push("")
	a := w.agent("one")
	w.push(w.listening("c1", pipeline.Task{Name: "a"}, pipeline.Task{Name: "b", Needs: []pipeline.TaskName{"a"}, Secrets: []pipeline.SecretName{"key"}}))
	w.look(&app, "main", "s1")
	w.look(&app, "main", "s1", "topic", "s2")
	o := w.accept(a)
	if !o.Spec.Untrusted || o.Spec.Task != "a" {
		t.Errorf("the agent is told %+v", o.Spec)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	if r := w.await(pipeline.Error); r.Task("b").Epoch != 0 {
		t.Errorf("the task with a secret was offered: %+v", r.Task("b"))
	}
	w.look(&app, "main", "s2", "topic", "s2")
	if o := w.accept(a); o.Spec.Untrusted {
		t.Errorf("of a trusted branch: %+v", o.Spec)
	}
}

func TestOneCommitOfTwoRepositoriesIsTwo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	c := w.listening("c1", pipeline.Task{Name: "a"})
	w.push(c)
	w.look(&app, "main", "s1")
	w.look(&app, "main", "c1") // somebody pushed the commit of the ops repository there
	o := w.accept(a)
	w.runs.Message(a.ID, &wire.Result{Attempt: o.Attempt, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Failure, Reason: "no"}})
	w.await(pipeline.Failure)
	ours, theirs := w.statusesOf("", c), w.statusesOf("app", c)
	if ours["maestro"] != "success: 0 runs: c: watches repository app" || len(ours) != 1 {
		t.Errorf("the ops repository shows %v", ours)
	}
	if len(theirs) != 2 || theirs["maestro"][:7] != "failure" {
		t.Errorf("the source repository shows %v", theirs)
	}
}

func TestSourceThatComesBackIsSeenForTheFirstTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.listening("c1", pipeline.Task{Name: "a"}))
	w.look(&app, "main", "s1")
	moved := app
	moved.URL = "https://example.com/moved.git"
	w.look(&moved, "main", "s2") // another repository under the name
	if err := w.c.KeepSources(t.Context(), &pipeline.Config{Repositories: []pipeline.Repository{moved}}); err != nil {
		t.Fatal(err)
	}
	w.look(&app, "main", "s3")
	w.look(&moved, "main", "s4")
	var made []pipeline.CommitID
	for _, c := range []pipeline.CommitID{"s1", "s2", "s3", "s4"} {
		for range w.runsOf(c) {
			made = append(made, c)
		}
	}
	if len(made) != 1 || made[0] != "s4" {
		t.Errorf("there are runs of %v, want s4", made)
	}
	refs, err := w.db.ObservedRefs(t.Context(), repoName)
	if err != nil || !maps.Equal(refs, map[pipeline.Ref]pipeline.CommitID{"maestro:baseline": "seen", "maestro:baseline-tags": "seen", mainRef: "c1"}) {
		t.Errorf("of the ops repository is kept %v, %v", refs, err)
	}
}
