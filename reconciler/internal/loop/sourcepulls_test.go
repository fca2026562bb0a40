package loop_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// checking is commit with a trigger on pull requests of app for main.
func (w *world) checking(id string, tasks ...pipeline.Task) pipeline.CommitID {
	c := w.listening(id, tasks...)
	w.repo.mu.Lock()
	defer w.repo.mu.Unlock()
	w.repo.configs[c].Compositions[0].Triggers = []pipeline.Trigger{
		{PullRequest: &pipeline.PullRequestTrigger{Repo: "app", Branches: []string{"main"}, Paths: []string{"a"}}},
	}
	return c
}

// upstream is where the branches of app are.
type upstream struct {
	world *world
	at    map[pipeline.Ref]pipeline.CommitID
	asked []pipeline.Ref
	same  *loop.Source // that remembers what it was told; nil for another one each time
	// others are as Span has them.
	others []pipeline.CommitID
}

// pull is number 7 of a branch for main.
func pull(branch string, head pipeline.CommitID) pipeline.Pull {
	return pipeline.Pull{Number: 7, Title: "mend it", Author: pipeline.Account{ID: 3, Login: "eve"}, Head: head, Branch: branch, Target: "main"}
}

func (u *upstream) look(open ...pipeline.Pull) error {
	return u.world.c.ObservePulls(u.world.t.Context(), u.source(), open)
}

func (u *upstream) source() *loop.Source {
	if u.same != nil {
		return u.same
	}
	return &loop.Source{
		Repository: app, History: u.world.repo,
		Bring: func(_ context.Context, refs []pipeline.Ref) (map[pipeline.Ref]pipeline.CommitID, error) {
			u.asked = append(u.asked, refs...)
			out := maps.Clone(u.at)
			maps.DeleteFunc(out, func(ref pipeline.Ref, _ pipeline.CommitID) bool { return !slices.Contains(refs, ref) })
			return out, nil
		},
		Between: func(_ context.Context, base, head pipeline.CommitID) (loop.Span, error) {
			return loop.Span{Commits: 1, Fork: base, Others: u.others}, nil
		},
	}
}

// see is look where nothing goes wrong, with the branches as the forge says.
func (u *upstream) see(open ...pipeline.Pull) {
	u.world.t.Helper()
	u.at = map[pipeline.Ref]pipeline.CommitID{mainRef: "m1"}
	for _, p := range open {
		u.at[pipeline.Ref("refs/heads/"+p.Target)] = "m1"
	}
	for _, p := range open {
		u.at[pipeline.Ref("refs/heads/"+p.Branch)] = p.Head
	}
	if err := u.look(open...); err != nil {
		u.world.t.Fatal(err)
	}
}

// counts checks how many runs each commit has, as commits and numbers by turns.
func (w *world) counts(when string, want ...any) {
	w.t.Helper()
	for i := 0; i < len(want); i += 2 {
		if got := len(w.runsOf(pipeline.CommitID(want[i].(string)))); got != want[i+1] {
			w.t.Errorf("%s: %s has %d runs, want %d", when, want[i], got, want[i+1])
		}
	}
}

func TestPathsOfAPullRequestOfASourceAreNotHiddenByAMerge(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.checking("c1", pipeline.Task{Name: "a"}))
	w.repo.mu.Lock()
	w.repo.same = "m1"
	w.repo.mu.Unlock()
	u := &upstream{world: w}
	u.see()
	u.see(pull("topic", "s1"))
	u.others = []pipeline.CommitID{"m0"}
	u.see(pull("topic", "s2"))
	w.counts("a head like main, and one that was merged both ways", "s1", 0, "s2", 1)
}

func TestPullRequestOfASourceStartsOneRunOfEachHead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.checking("c1", pipeline.Task{Name: "a"}))
	u := &upstream{world: w}
	u.see(pull("topic", "s1"))
	w.counts("the first look", "s1", 0)
	u.see(pull("topic", "s2"))
	o := w.accept(a)
	if s := o.Spec; s.Repo != app.URL || s.Commit != "s2" || s.Ref != "refs/heads/topic" || !s.Untrusted {
		t.Errorf("the agent is told %+v", s)
	}
	r := w.runsOf("s2")[0]
	want := pipeline.Event{
		Kind: "pull_request", Repo: "app", Config: "c1", Ref: "refs/heads/topic", Head: "s2", Base: "m1", Author: "Ada", Subject: "change",
		Proposal: "app/pull/7", Target: "main", Pull: &pipeline.EventPull{Number: 7, Title: "mend it", Author: pipeline.Account{ID: 3, Login: "eve"}},
	}
	got, _ := json.Marshal(r.Event)
	if text, _ := json.Marshal(want); string(got) != string(text) || r.Commit != "c1" || r.Ref != "refs/sources/app/heads/topic" {
		t.Errorf("the run of %s on %s is for\n%s, want\n%s", r.Commit, r.Ref, got, text)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	w.await(pipeline.Success)
	if s := w.statusesOf("app", "s2"); s["maestro"] != "success: 1 run succeeded" || s["maestro/run/c"] != "success: #1 success: 1 of 1 task" {
		t.Errorf("its statuses are %v", s)
	}

	// Neither a crash, nor another configuration, nor what is closed, left out of a list
	// or opened again starts what has run.
	w.restart()
	if err := w.c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	u.see(pull("topic", "s2"))
	w.push(w.checking("c2", pipeline.Task{Name: "a"}))
	u.see(pull("topic", "s2"))
	u.see()
	u.see(pull("topic", "s2"))
	w.counts("seen before", "s2", 1)
	// Another target is another event, and so is another pull request of the head.
	other := pull("topic", "s2")
	other.Target = "dev"
	u.see(other)
	w.counts("for a branch that no trigger names", "s2", 1)
	if vs, err := w.db.Verdicts(t.Context(), "s2"); err != nil || len(vs) != 1 || vs[0].Outcome != pipeline.VerdictRun || vs[0].Run != r.ID {
		t.Errorf("what ran is explained by %+v, %v", vs, err)
	}
	moved := pull("later", "s4")
	moved.Number, moved.Target = 9, "dev"
	u.see(moved)
	w.counts("opened for another branch", "s4", 0)
	moved.Target = "main"
	u.see(moved)
	w.counts("and for ours since", "s4", 1)
	other = pull("twin", "s2")
	other.Number = 8
	u.see(pull("topic", "s3"), other)
	w.counts("another one", "s2", 2, "s3", 1)
	if s := w.statusesOf("app", "s2"); s["maestro"][:7] != "pending" {
		t.Errorf("with another run its statuses are %v", s)
	}
}

func TestForkOfASourceStartsNothingAndIsNotFetched(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.checking("c1", pipeline.Task{Name: "a"}))
	u := &upstream{world: w}
	u.see()
	fork := pull("main", "f1")
	fork.Fork = true
	u.see(fork)
	w.counts("of a fork", "f1", 0)
	if len(u.asked) != 0 {
		t.Errorf("%v were fetched", u.asked)
	}
	const want = "failure: c: not run: app/pull/7 comes from a fork; propose its head from a branch of app to run it"
	if s := w.statusesOf("app", "f1"); s["maestro"] != want || len(s) != 1 {
		t.Errorf("its statuses are %v", s)
	}
	// Its head on a branch is that of somebody who may push there.
	u.see(fork, func() pipeline.Pull { p := pull("taken", "f1"); p.Number = 8; return p }())
	w.counts("on a branch", "f1", 1)
	if s := w.statusesOf("app", "f1"); s["maestro"][:7] != "pending" {
		t.Errorf("its statuses are %v", s)
	}
}

func TestWhatIsProposedGetsNothingOfTheDefaultBranch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.set(&w.noSecrets, nil)
	w.push("")
	a := w.agent("one")
	c := w.checking("c1", pipeline.Task{Name: "a"}, pipeline.Task{Name: "b", Needs: []pipeline.TaskName{"a"}, Secrets: []pipeline.SecretName{"key"}})
	w.repo.mu.Lock()
	cfg := w.repo.configs[c]
	next := cfg.Compositions[0]
	next.Name, next.Digest, next.Tasks = "next", "sha256:next", next.Tasks[:1]
	next.Triggers = []pipeline.Trigger{{After: &pipeline.AfterTrigger{Composition: "c", Result: "any"}}}
	cfg.Compositions = append(cfg.Compositions, next)
	w.repo.configs[c] = cfg
	w.repo.mu.Unlock()
	w.push(c)
	w.follow()
	w.await0(t)
	u := &upstream{world: w}
	u.see()
	u.see(pull("main", "s1")) // a trusted branch, as for a release
	o := w.accept(a)
	if !o.Spec.Untrusted || o.Spec.Task != "a" {
		t.Errorf("the agent is told %+v", o.Spec)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	if r := w.await(pipeline.Error); r.Task("b").Epoch != 0 {
		t.Errorf("the task with a secret was offered: %+v", r.Task("b"))
	}
	o = w.accept(a) // nor does what follows from it
	if s := o.Spec; s.Composition != "next" || !s.Untrusted || s.Ref != mainRef {
		t.Errorf("the agent is told %+v", s)
	}
	for _, r := range w.runsOf("s1") {
		if r.Event.Pull == nil || r.Event.Pull.Number != 7 || r.Event.Proposal != "app/pull/7" {
			t.Errorf("%s is for %+v", r.Composition, r.Event)
		}
	}
}

func TestASecretReachesAPullRequestWhereARuleSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.set(&w.noSecrets, nil)
	w.push("")
	a := w.agent("one")
	c := w.checking("c1", pipeline.Task{Name: "a", Secrets: []pipeline.SecretName{"key"}})
	w.repo.mu.Lock()
	cfg := w.repo.configs[c]
	cfg.Policy.Secrets = []pipeline.SecretRule{{Secret: "key", Repositories: []string{"app"}, Untrusted: true}}
	w.repo.configs[c] = cfg
	w.repo.mu.Unlock()
	w.push(c)
	u := &upstream{world: w}
	u.see()
	u.see(pull("topic", "s1"))
	if o := w.accept(a); !o.Spec.Untrusted || !slices.Equal(o.Spec.Secrets, []pipeline.SecretName{"key"}) {
		t.Errorf("the agent is told %+v", o.Spec)
	}
}

func TestWhoOpenedAPullRequestDoesNotApproveAGateOfItsRun(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "ana", func(cfg *pipeline.Config) {
		gate := coreTask("g")
		gate.Gate = &pipeline.Gate{Approvers: []string{"ops"}, Count: 1, Expire: pipeline.Duration(time.Hour)}
		cfg.Repositories = []pipeline.Repository{app}
		cfg.Compositions[0].Tasks = []pipeline.Task{gate}
		cfg.Compositions[0].Triggers = []pipeline.Trigger{{PullRequest: &pipeline.PullRequestTrigger{Repo: "app", Branches: []string{"main"}}}}
	})
	a.tips[mainRef] = c1
	a.see()
	a.f.mu.Lock()
	a.f.parent[c3], a.f.author[c3] = c2, "ada"
	a.f.mu.Unlock()
	u := &upstream{world: a.world}
	u.see()
	u.see(pull("topic", c3)) // opened by eve, who is of ops
	r := a.awaitRun("c", 2, func(r *pipeline.Run) bool { return r.State == pipeline.Held })
	ref := loop.GateRef("c", r.Number, "g")
	var head pipeline.CommitID
	a.eventually("the gate is published", func() (bool, string) {
		a.f.mu.Lock()
		defer a.f.mu.Unlock()
		head = pipeline.CommitID(a.f.refs[ref])
		return head != "", string(ref)
	})
	a.review(head, "eve", "approve")
	a.eventually("eve is told", func() (bool, string) {
		a.f.mu.Lock()
		defer a.f.mu.Unlock()
		all := strings.Join(a.f.told, "\n")
		return strings.Contains(all, "the review by eve does not count"), all
	})
	a.review(head, "bo", "approve")
	a.awaitRun("c", 2, func(r *pipeline.Run) bool { return r.Task("g").State == pipeline.Success })
}

func TestNoHeadRunsThatIsNotWhereGitHasTheBranch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.checking("c1", pipeline.Task{Name: "a"}))
	u := &upstream{world: w}
	u.see()
	other := pull("fine", "s9")
	other.Number = 8
	u.at = map[pipeline.Ref]pipeline.CommitID{mainRef: "m1", "refs/heads/topic": "s0", "refs/heads/fine": "s9"}
	if err := u.look(pull("topic", "s1"), other); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a head that is not there: %v", err)
	}
	w.counts("while they do not agree", "s1", 0, "s0", 0, "s9", 1)
	u.see(pull("topic", "s1"), other)
	w.counts("once they do", "s1", 1, "s9", 1)
}

// TestAPullRequestOfASourceThatGitNeverAgreesOnWaitsAlone has looks that follow each other
// at once.
func TestAPullRequestOfASourceThatGitNeverAgreesOnWaitsAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.checking("c1", pipeline.Task{Name: "a"}))
	u := &upstream{world: w}
	u.same = u.source()
	u.see()
	u.at["refs/heads/fine"] = "s9"
	var left interface{ RetryAt() time.Time }
	for range 20 {
		if err := u.look(pull("topic", "s1")); !errors.As(err, &left) {
			t.Fatalf("one that does not agree: %v", err)
		}
	}
	// Busy machines may take seconds for that; without pauses it was asked about 20 times.
	if len(u.asked) > 2*8 {
		t.Errorf("git was asked for %v", u.asked)
	}
	other := pull("fine", "s9")
	other.Number = 8
	if err := u.look(pull("topic", "s1"), other); !errors.As(err, &left) {
		t.Errorf("with another one beside it: %v", err)
	}
	w.counts("beside it", "s1", 0, "s9", 1)
	u.see(pull("topic", "s2"), other)
	w.counts("at another head it is tried at once", "s2", 1)
}

func TestPullRequestsThatNobodyAskedForAreSeenForTheFirstTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.checking("c1", pipeline.Task{Name: "a"}))
	u := &upstream{world: w}
	keep := func() {
		t.Helper()
		if err := w.c.KeepSources(t.Context(), w.c.Live()); err != nil {
			t.Fatal(err)
		}
	}
	u.see()
	keep()
	u.see(pull("topic", "s1"))
	w.counts("while a trigger asks", "s1", 1)
	w.push(w.listening("c2", pipeline.Task{Name: "a"}))
	keep()
	w.push(w.checking("c3", pipeline.Task{Name: "a"}))
	keep()
	u.see(pull("topic", "s2"))
	w.counts("since another asks", "s2", 0)
	u.see(pull("topic", "s3"))
	w.counts("moved since", "s3", 1)
}

func TestTheOldestClosedPullRequestsAreForgotten(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.checking("c1", pipeline.Task{Name: "a"}))
	u := &upstream{world: w}
	var many []pipeline.Pull
	for n := 1; n <= 1003; n++ {
		p := pull(fmt.Sprint("b", n), "s1")
		p.Number, p.Target = n, "release/1" // a target may have slashes
		many = append(many, p)
	}
	u.see(many...)
	u.see(many[0])
	refs, err := w.db.ObservedRefs(t.Context(), loop.SourceKey(&app)+" pulls")
	if err != nil || len(refs) != 1002 || refs["refs/pull/0000000001/release/1"] != "s1" || refs["refs/pull/0000000002/release/1"] != "" || refs["refs/pull/0000001003/release/1"] != "s1" {
		t.Errorf("%d are remembered (%v)", len(refs), err)
	}
	if runs, err := w.db.Runs(t.Context(), store.Filter{Limit: 10}); err != nil || len(runs) != 0 {
		t.Errorf("%d runs, %v", len(runs), err)
	}
}
