package loop_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// forum is a repository in memory: commits with one parent or two, each with a tree of
// one file, and what refs say.
type forum struct {
	*fakeRepository
	mu         sync.Mutex
	parent     map[pipeline.CommitID]pipeline.CommitID
	second     map[pipeline.CommitID]pipeline.CommitID
	others     map[[2]pipeline.CommitID][]pipeline.CommitID // as Span has them, by base and head
	tree       map[pipeline.CommitID]string                 // the commit itself unless it is here
	author     map[pipeline.CommitID]string
	statements map[string]loop.Statement
	plans      map[pipeline.CommitID]string
	told       []string
	refs       map[pipeline.Ref]string
	away, mute bool
	// planning, unless nil, says whether a branch may be looked at; late: it was anyway.
	planning func() bool
	late     bool
}

func (f *forum) ancestors(id pipeline.CommitID) []pipeline.CommitID {
	var out []pipeline.CommitID
	for ; id != ""; id = f.parent[id] {
		out = append(out, id)
		for _, merged := range f.ancestors(f.second[id]) {
			if !slices.Contains(out, merged) {
				out = append(out, merged)
			}
		}
	}
	return out
}

func (f *forum) ChangedPaths(_ context.Context, base, head pipeline.CommitID) ([]string, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if base == head || f.tree[base] != "" && f.tree[base] == f.tree[head] {
		return nil, true, nil
	}
	return []string{"a"}, true, nil
}

func (f *forum) BetweenIn(ctx context.Context, repo string, base, head pipeline.CommitID) (loop.Span, error) {
	return f.Between(ctx, base, head)
}

func (f *forum) Between(_ context.Context, base, head pipeline.CommitID) (loop.Span, error) {
	early := f.planning != nil && !f.planning()
	f.mu.Lock()
	f.late = f.late || early
	defer f.mu.Unlock()
	if f.away {
		return loop.Span{}, fault.New(fault.Unavailable, "the server is away")
	}
	before := f.ancestors(base)
	s := loop.Span{Others: f.others[[2]pipeline.CommitID{base, head}]}
	for _, id := range f.ancestors(head) {
		if slices.Contains(before, id) {
			s.Fork = cmp.Or(s.Fork, id)
			continue
		}
		s.Commits++
		s.List = append(s.List, loop.Commit{ID: id, Merges: f.second[id] != ""})
		s.People = append(s.People, review.Person{Name: f.author[id]})
	}
	return s, nil
}

func (f *forum) Statement(_ context.Context, object string, _ pipeline.CommitID) (loop.Statement, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.statements[object]
	if !ok {
		return s, fault.New(fault.Invalid, "object %s is a blob", object)
	}
	return s, nil
}

func (f *forum) FillPlanned(context.Context, pipeline.CommitID, *pipeline.Composition, plan.Blank, pipeline.Event) ([]byte, error) {
	return []byte(`"filled"`), nil
}

func (f *forum) WritePlan(_ context.Context, head pipeline.CommitID, text string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plans[head] = text
	return nil
}

func (f *forum) TellRequester(_ context.Context, _ pipeline.CommitID, line string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mute {
		return fault.New(fault.Unavailable, "the server takes no notes")
	}
	f.told = append(f.told, line)
	return nil
}

func (f *forum) Head(d loop.Draft) (pipeline.CommitID, error) {
	return pipeline.CommitID(strings.TrimPrefix(string(pipeline.DigestOf([]byte(d.Text))), "sha256:")[:40]), nil
}

func (f *forum) Publish(_ context.Context, ref pipeline.Ref, d loop.Draft) error {
	head, err := f.Head(d)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refs[ref] = string(head)
	return err
}

func (f *forum) Remove(_ context.Context, ref pipeline.Ref, object string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refs[ref] == object {
		delete(f.refs, ref)
	}
	return nil
}

const (
	c0 = "0000000000000000000000000000000000000000"
	c1 = "1111111111111111111111111111111111111111"
	c2 = "2222222222222222222222222222222222222222"
	c3 = "3333333333333333333333333333333333333333"
)

// assembly is a world with people in it: c0 is in force and asks for one of ops.
type assembly struct {
	*world
	f    *forum
	p    *loop.Proposals
	tips map[pipeline.Ref]pipeline.CommitID
}

func newAssembly(t *testing.T) *assembly {
	w := &world{
		t: t, dir: memoryDir(t), logs: map[pipeline.AttemptID]int64{}, dropped: make(chan pipeline.AgentID, 100),
		repo: &fakeRepository{configs: map[pipeline.CommitID]pipeline.Config{}},
	}
	a := &assembly{world: w, tips: map[pipeline.Ref]pipeline.CommitID{}, f: &forum{
		fakeRepository: w.repo, parent: map[pipeline.CommitID]pipeline.CommitID{}, author: map[pipeline.CommitID]string{},
		second: map[pipeline.CommitID]pipeline.CommitID{}, tree: map[pipeline.CommitID]string{},
		statements: map[string]loop.Statement{}, plans: map[pipeline.CommitID]string{}, refs: map[pipeline.Ref]string{},
	}}
	a.open()
	t.Cleanup(func() { a.stop() })
	a.make(c0, "", "eve", func(cfg *pipeline.Config) {})
	a.push("") // the repository is empty at the first look
	a.tips[mainRef] = c0
	a.see()
	a.awaitLooked()
	return a
}

// open starts what a process has; stop ends it as a crash would.
func (a *assembly) open() {
	a.t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{a.t}, nil))
	db, err := store.Open(a.t.Context(), a.dir, log)
	if err != nil {
		a.t.Fatal(err)
	}
	a.db, a.sent = db, make(chan sent, 1000)
	a.runs = loop.New(loop.Config{
		DB: db, Logs: a, Fleet: a, Filler: a, Secrets: a, Law: a.law, Log: log, Default: mainRef, Repo: repoName, Proposals: true,
	})
	a.c = loop.NewCommits(loop.CommitsConfig{
		DB: db, Repository: a.repo, Runs: a.runs, Log: log, Name: repoName, Default: mainRef, Proposals: true,
	})
	a.p = loop.NewProposals(loop.ProposalsConfig{
		DB: db, Discussion: a.f, Commits: a.c, Runs: a.runs, Log: log, Name: repoName, Default: mainRef,
		Branches: true, Notes: true,
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(a.t.Context()))
	var wg sync.WaitGroup
	runs, proposals := a.runs, a.p
	wg.Go(func() { _ = runs.Run(ctx) })
	wg.Go(func() { _ = proposals.Run(ctx) })
	a.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := db.Close(); err != nil {
			a.t.Error(err)
		}
	})
}

func (a *assembly) reopen() {
	a.stop()
	a.open()
	a.see()
}

// make is a commit that declares the composition c, changed by change.
func (a *assembly) make(id, parent pipeline.CommitID, author string, change func(*pipeline.Config)) {
	a.commit(string(id), pipeline.Task{Name: "work", Fields: json.RawMessage(`{}`)})
	a.repo.mu.Lock()
	cfg := a.repo.configs[id]
	cfg.Policy = pipeline.Policy{
		Groups:  []pipeline.Group{{Name: "ops", Members: []string{"ana", "bo", "eve"}}},
		Changes: []pipeline.ChangeRule{{Name: "all", Approvers: []string{"ops"}, Count: 1}},
	}
	change(&cfg)
	cfg.Compositions[0].Digest = pipeline.DigestOf([]byte(id))
	a.repo.configs[id] = cfg
	a.repo.mu.Unlock()
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	a.f.parent[id], a.f.author[id] = parent, author
	a.f.statements[string(id)] = loop.Statement{Target: id}
}

// merge is a commit that brings head to main and nothing else.
func (a *assembly) merge(id, main, head pipeline.CommitID) {
	a.make(id, main, "eve", func(*pipeline.Config) {})
	a.repo.mu.Lock()
	cfg := a.repo.configs[head]
	cfg.Commit = id
	a.repo.configs[id] = cfg
	a.repo.mu.Unlock()
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	a.f.second[id] = head
	a.f.tree[id], a.f.tree[head] = "of "+string(head), "of "+string(head)
}

// touched changes what the composition does.
func touched(what string) func(*pipeline.Config) {
	return func(cfg *pipeline.Config) {
		cfg.Compositions[0].Tasks[0].Fields = json.RawMessage(fmt.Sprintf(`{"script":%q}`, what))
	}
}

// see shows the refs as they are now to everybody, as the server does.
func (a *assembly) see() {
	a.t.Helper()
	a.f.mu.Lock()
	tips, own := maps.Clone(a.tips), maps.Clone(a.f.refs)
	a.f.mu.Unlock()
	if err := a.c.Observe(a.t.Context(), tips); err != nil {
		a.t.Fatal(err)
	}
	a.p.Observe(loop.Observed{Tips: tips, Own: own})
}

func (a *assembly) awaitLooked() {
	a.eventually("branches were looked at", func() (bool, string) {
		looked, err := a.db.LookedAt(a.t.Context(), repoName)
		return looked[""] != "", fmt.Sprint(looked, err)
	})
}

// eventually waits for the record to become so.
func (a *assembly) eventually(what string, ok func() (bool, string)) {
	a.t.Helper()
	signal, stop := a.db.Watch()
	defer stop()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		done, why := ok()
		if done {
			return
		}
		select {
		case <-signal:
		case <-tick.C:
		case <-deadline:
			a.t.Fatalf("%s: %s", what, why)
		}
	}
}

// awaitProposal waits until the change of a branch is as it should be.
func (a *assembly) awaitProposal(branch, what string, ok func(pipeline.Proposal) bool) pipeline.Proposal {
	a.t.Helper()
	var p pipeline.Proposal
	a.eventually(branch+" "+what, func() (bool, string) {
		var err error
		if p, err = a.db.Proposal(a.t.Context(), repoName, branch); err != nil {
			return false, err.Error()
		}
		return ok(p), fmt.Sprintf("%s %s %s %q %+v %+v", p.State, p.Head.Short(), p.Approval, p.Sentence, p.Reviews, p.Merge)
	})
	return p
}

// propose pushes a branch.
func (a *assembly) propose(branch string, id pipeline.CommitID) {
	a.tips[pipeline.Ref("refs/heads/"+branch)] = id
	a.see()
}

// say pushes a signed tag that says something about a commit, under a ref.
func (a *assembly) say(ref pipeline.Ref, about pipeline.CommitID, signer, message string) string {
	a.t.Helper()
	a.f.mu.Lock()
	object := fmt.Sprintf("%040d", len(a.f.statements))
	s := loop.Statement{Target: about, Message: message, At: time.Now()}
	if signer != "" {
		s.Signers = []string{signer}
	}
	a.f.statements[object] = s
	a.f.refs[ref] = object
	a.f.mu.Unlock()
	a.see()
	return object
}

func (a *assembly) review(about pipeline.CommitID, user, message string) {
	a.say(pipeline.Ref("refs/reviews/"+string(about)+"/"+user), about, user, message)
}

func planned(head pipeline.CommitID) func(pipeline.Proposal) bool {
	return func(p pipeline.Proposal) bool {
		return p.Head == head && p.Digest != "" && p.Sentence != "its reviews have not been read"
	}
}

func approval(head pipeline.CommitID, want pipeline.Approval) func(pipeline.Proposal) bool {
	return func(p pipeline.Proposal) bool { return planned(head)(p) && p.Approval == want }
}

func (a *assembly) status(id pipeline.CommitID, state, text string) {
	a.t.Helper()
	a.eventually("status of "+id.Short(), func() (bool, string) {
		list, err := a.db.StatusesOf(a.t.Context(), id)
		if err != nil || len(list) == 0 {
			return false, fmt.Sprint(err)
		}
		return list[0].State == state && strings.Contains(list[0].Description, text), fmt.Sprintf("%+v", list[0])
	})
}

func TestBranchIsAChangeFromPlanToMerge(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("louder"))
	a.propose("feature/louder", c1)
	p := a.awaitProposal("feature/louder", "is planned", approval(c1, pipeline.ApprovalWaiting))
	if p.Base != c0 || p.Fork != c0 || p.Target != "main" || fmt.Sprint(p.Predicted) != "[c]" || len(p.Plan) == 0 || p.Text == "" {
		t.Errorf("%+v", p)
	}
	a.status(c1, "pending", "plan: 1 run on merge; needs 1 approval of ops")
	a.eventually("note", func() (bool, string) {
		a.f.mu.Lock()
		defer a.f.mu.Unlock()
		return a.f.plans[c1] == p.Markdown && p.Markdown != "", a.f.plans[c1]
	})
	if !strings.Contains(p.Markdown, "approval by ops: ana, bo (") || fmt.Sprint(p.Needs[0].People) != "[ana bo]" {
		t.Errorf("eve wrote it, and is named among those who may approve:\n%s%+v", p.Markdown, p.Needs)
	}
	a.review(c1, "eve", "approve")     // who wrote it
	a.review(c1, "mallory", "approve") // in no group
	a.awaitProposal("feature/louder", "has two that do not count", func(p pipeline.Proposal) bool {
		return len(p.Reviews) == 2 && !p.Reviews[0].Counts && !p.Reviews[1].Counts
	})
	a.review(c1, "ana", "approve")
	a.awaitProposal("feature/louder", "is approved", approval(c1, pipeline.ApprovalGiven))
	a.status(c1, "success", "approved by ana")

	a.tips[mainRef] = c1
	a.see()
	p = a.awaitProposal("feature/louder", "is merged", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
	if p.Merge.Sentence != "predicted 1 run, started 1" || p.Merge.Commit != c1 || p.Merge.Approval != pipeline.ApprovalGiven {
		t.Errorf("%+v", p.Merge)
	}
}

// A run that ends while a review is counted may write the status of their commit by
// what was known of the change before.
func TestStatusOfAChangeIsToldAgainAfterItsRuns(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("louder"))
	a.propose("feature/louder", c1)
	a.awaitProposal("feature/louder", "is planned", planned(c1))
	a.review(c1, "ana", "approve")
	a.status(c1, "success", "approved by ana")
	list, err := a.db.StatusesOf(t.Context(), c1)
	if err != nil {
		t.Fatal(err)
	}
	late := list[0]
	late.State, late.Description = "pending", "plan: its reviews have not been read"
	if err := a.db.Write(t.Context(), func(tx *store.Tx) error { return tx.Desire(late) }); err != nil {
		t.Fatal(err)
	}
	a.runs.Restate(c1)
	a.status(c1, "success", "approved by ana")
}

func TestApprovalIsVoidForEverAfterAnotherHead(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.make(c2, c1, "eve", touched("two"))
	a.propose("x", c1)
	a.awaitProposal("x", "is planned", planned(c1))
	a.review(c1, "ana", "approve")
	a.awaitProposal("x", "is approved", approval(c1, pipeline.ApprovalGiven))
	a.f.mu.Lock()
	a.f.mute = true // what goes wrong elsewhere keeps nothing valid
	a.f.mu.Unlock()
	a.say("refs/maestro/requests/eve/1", c1, "eve", "run nothing")
	a.propose("x", c2)
	a.awaitProposal("x", "moved on", approval(c2, pipeline.ApprovalWaiting))
	a.status(c2, "pending", "needs 1 approval")
	a.propose("x", c1)
	a.awaitProposal("x", "is back", approval(c1, pipeline.ApprovalWaiting))
	a.reopen()
	a.review(c1, "bo", "approve")
	p := a.awaitProposal("x", "is approved anew", approval(c1, pipeline.ApprovalGiven))
	if p.Sentence != "approved by bo" {
		t.Errorf("%+v", p)
	}
	// What was decided at each head stays, with what it was made of.
	var decided []string
	inputs := map[pipeline.Digest]bool{}
	for _, d := range p.Decisions {
		decided = append(decided, fmt.Sprintf("%s %s %s %v %v", d.Head.Short()[:1], d.Approval, d.Sentence, d.Rules, d.By))
		inputs[d.Inputs] = true
	}
	want := []string{
		"1 waiting needs 1 approval of ops [all: 0 of 1] []", "1 approved approved by ana [all: 1 of 1] [ana]",
		"2 waiting needs 1 approval of ops [all: 0 of 1] []", "1 waiting needs 1 approval of ops [all: 0 of 1] []",
		"1 approved approved by bo [all: 1 of 1] [bo]",
	}
	if !slices.Equal(decided, want) || len(inputs) != len(want) {
		t.Errorf("decisions %q with %d different inputs, want %q", decided, len(inputs), want)
	}
}

func TestApprovalIsVoidForEverAfterAnotherPlan(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.propose("x", c1)
	before := a.awaitProposal("x", "is planned", planned(c1))
	a.review(c1, "ana", "approve")
	a.awaitProposal("x", "is approved", approval(c1, pipeline.ApprovalGiven))
	// The base moves, and with it what the change means.
	a.make(c2, c0, "eve", touched("other"))
	a.tips[mainRef] = c2
	a.see()
	after := a.awaitProposal("x", "is planned anew", func(p pipeline.Proposal) bool { return p.Base == c2 && approval(c1, pipeline.ApprovalWaiting)(p) })
	if before.Digest == after.Digest {
		t.Fatal("the plan is the same; the test proves nothing")
	}
	a.make(c3, c2, "eve", func(*pipeline.Config) {}) // and back
	a.tips[mainRef] = c3
	a.see()
	p := a.awaitProposal("x", "is planned as at first", func(p pipeline.Proposal) bool { return p.Base == c3 })
	if p.Digest != before.Digest {
		t.Logf("digest %s, at first %s", p.Digest, before.Digest)
	}
	a.awaitProposal("x", "is not approved again", approval(c1, pipeline.ApprovalWaiting))
}

func TestAReviewThatWasTakenBackDoesNotComeBack(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.propose("x", c1)
	a.awaitProposal("x", "is planned", planned(c1))
	const ref = pipeline.Ref("refs/reviews/" + c1 + "/ana")
	push := func(object string) {
		a.f.mu.Lock()
		defer a.f.mu.Unlock()
		if object == "" {
			delete(a.f.refs, ref)
		} else {
			a.f.refs[ref] = object
		}
	}
	for _, meanwhile := range []string{"", "refuse"} {
		object := a.say(ref, c1, "ana", "approve")
		a.awaitProposal("x", "is approved", approval(c1, pipeline.ApprovalGiven))
		if meanwhile == "" {
			push("")
			a.see()
		} else {
			a.say(ref, c1, "ana", meanwhile)
		}
		a.awaitProposal("x", "has another word of hers, or none", func(p pipeline.Proposal) bool { return p.Approval != pipeline.ApprovalGiven })
		push(object) // somebody else has kept her tag
		a.see()
		p := a.awaitProposal("x", "has her old tag", func(p pipeline.Proposal) bool {
			return p.Approval == pipeline.ApprovalWaiting && len(p.Reviews) == 1 && p.Reviews[0].Approve
		})
		if !strings.Contains(p.Reviews[0].Why, "taken back or replaced") {
			t.Errorf("%+v", p.Reviews)
		}
		a.reopen()
	}
	a.review(c1, "ana", "approve")
	a.awaitProposal("x", "is approved anew", approval(c1, pipeline.ApprovalGiven))
}

func TestReviewBeforeThePlanCountsOnlyWhenItNamesIt(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.f.mu.Lock()
	a.f.statements["early"] = loop.Statement{Target: c1, Message: "approve", Signers: []string{"ana"}, At: time.Now()}
	a.f.refs["refs/reviews/"+c1+"/ana"] = "early"
	a.f.mu.Unlock()
	a.propose("x", c1)
	p := a.awaitProposal("x", "has the early review", func(p pipeline.Proposal) bool { return len(p.Reviews) == 1 })
	if p.Approval != pipeline.ApprovalWaiting || !strings.Contains(p.Reviews[0].Why, "before there was a plan") {
		t.Errorf("%+v", p)
	}
	a.review(c1, "bo", "approve\n\nplan: "+string(p.Digest)[:30])
	a.awaitProposal("x", "is approved", approval(c1, pipeline.ApprovalGiven))
}

func TestRefusalClosesAndForgedReviewsSayWhy(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.propose("x", c1)
	a.awaitProposal("x", "is planned", planned(c1))
	ref := func(user string) pipeline.Ref { return pipeline.Ref("refs/reviews/" + c1 + "/" + user) }
	a.say(ref("ana"), c1, "mallory", "approve")  // signed by another
	a.say(ref("bo"), c1, "", "approve")          // not signed
	a.say(ref("cy"), c0, "cy", "approve")        // a tag of another commit
	a.say(ref("dee"), c1, "dee", "looks good")   // says neither
	a.say(ref("x<b>"), c1, "ana", "approve")     // no name
	a.say(ref("ana/deep"), c1, "ana", "approve") // no name either
	a.f.mu.Lock()
	a.f.refs[ref("eli")] = "a blob"
	a.f.statements["forged"] = loop.Statement{Target: c1, Message: "approve", Forged: "the signature does not fit"}
	a.f.refs[ref("fay")] = "forged"
	a.f.mu.Unlock()
	a.see()
	p := a.awaitProposal("x", "has all of them", func(p pipeline.Proposal) bool { return len(p.Reviews) == 6 })
	why := map[string]string{"ana": "signed by mallory", "bo": "not signed", "cy": "a tag of", "dee": "begin it with", "eli": "cannot be read", "fay": "does not fit"}
	for _, r := range p.Reviews {
		if r.Counts || !strings.Contains(r.Why, why[r.By]) || why[r.By] == "" {
			t.Errorf("%+v, want %q", r, why[r.By])
		}
	}
	a.review(c1, "bo", "refuse\n\nnot today")
	a.status(c1, "failure", "refused by bo: not today")
	a.review(c1, "ana", "approve")
	a.awaitProposal("x", "stays refused", func(p pipeline.Proposal) bool { return len(p.Reviews) == 6 && p.Approval == pipeline.ApprovalRefused })
}

func TestThousandsOfReviewsAreContained(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.propose("x", c1)
	a.awaitProposal("x", "is planned", planned(c1))
	a.f.mu.Lock()
	for i := range 5000 {
		a.f.refs[pipeline.Ref(fmt.Sprintf("refs/reviews/%s/u%d", c1, i))] = c1
		a.f.refs[pipeline.Ref(fmt.Sprintf("refs/reviews/%040d/u", i))] = c1
	}
	a.f.mu.Unlock()
	a.see()
	a.awaitProposal("x", "read some", func(p pipeline.Proposal) bool { return len(p.Reviews) == 200 })
	a.review(c1, "ana", "approve")
	p := a.awaitProposal("x", "read hers", func(p pipeline.Proposal) bool {
		return slices.ContainsFunc(p.Reviews, func(o pipeline.Opinion) bool { return o.By == "ana" })
	})
	if p.Approval != pipeline.ApprovalWaiting {
		t.Errorf("approved out of a list that was cut: %+v", p.Sentence)
	}
}

func TestMergeWithoutApprovalIsSaidPlainly(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.propose("x", c1)
	a.awaitProposal("x", "is planned", planned(c1))
	a.merge(c2, c0, c1)
	a.tips[mainRef] = c2
	delete(a.tips, "refs/heads/x")
	a.see()
	p := a.awaitProposal("x", "is merged", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
	if p.Merge.Sentence != "predicted 1 run, started 1; merged without approval: needs 1 approval of ops" {
		t.Errorf("%q", p.Merge.Sentence)
	}
	a.status(c2, "failure", "merged without the approval it needed; 0 of 1 run")
	a.status(c1, "failure", "merged as "+c2[:12])
}

func TestDeletedBranchClosesItsChange(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.propose("x", c1)
	a.awaitProposal("x", "is planned", planned(c1))
	delete(a.tips, "refs/heads/x")
	a.see()
	a.awaitProposal("x", "is closed", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalClosed })
	a.propose("x", c1)
	a.awaitProposal("x", "is open again", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalOpen && planned(c1)(p) })
}

func TestBranchWithNothingOfItsOwnIsNoChange(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.propose("x", c0)
	a.status(c0, "pending", "c #1") // what the default branch runs, and nothing of a plan
	if _, err := a.db.Proposal(t.Context(), repoName, "x"); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}

func TestWhatAChangeDoesNotStartIsInTheLedger(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", func(cfg *pipeline.Config) {
		touched("one")(cfg)
		cfg.Compositions[0].Triggers = []pipeline.Trigger{{PullRequest: &pipeline.PullRequestTrigger{Branches: []string{"main"}, Paths: []string{"src/**"}}}}
	})
	a.propose("x", c1)
	a.awaitProposal("x", "is planned", planned(c1))
	verdicts, err := a.db.Verdicts(t.Context(), c1)
	if err != nil || len(verdicts) != 2 {
		t.Fatalf("%+v, %v", verdicts, err)
	}
	if v := verdicts[0]; v.Kind != pipeline.EventPullRequest || v.Outcome != pipeline.VerdictSkipped || v.Sentence != "no changed path matches src/**" {
		t.Errorf("%+v", v)
	}
	if v := verdicts[1]; v.Sentence != "no push trigger; it starts on pullRequest" {
		t.Errorf("%+v", v)
	}
}

func TestPullRequestTriggerRunsOnceForEachHead(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	check := func(cfg *pipeline.Config) {
		touched("one")(cfg)
		cfg.Compositions[0].Triggers = append(cfg.Compositions[0].Triggers, pipeline.Trigger{
			PullRequest: &pipeline.PullRequestTrigger{Branches: []string{"main"}},
		})
	}
	a.make(c1, c0, "eve", check)
	a.propose("x", c1)
	a.awaitProposal("x", "is planned", planned(c1))
	runs := func(want int) {
		t.Helper()
		list, err := a.db.Runs(t.Context(), store.Filter{Commit: c1, Limit: 10})
		if err != nil || len(list) != want || want > 0 && (list[0].Event.Kind != pipeline.EventPullRequest || list[0].Event.Proposal != "x" || list[0].Ref != "refs/heads/x") {
			t.Errorf("%+v, %v; want %d", list, err, want)
		}
	}
	runs(1)
	a.make(c2, c0, "eve", touched("base"))
	a.tips[mainRef] = c2
	a.see()
	a.awaitProposal("x", "is planned anew", func(p pipeline.Proposal) bool { return p.Base == c2 })
	a.reopen()
	a.awaitProposal("x", "is there", planned(c1))
	runs(1)
}

func TestRequestIsDoneOnceAndAnswered(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", func(cfg *pipeline.Config) {
		cfg.Compositions[0].Params = []pipeline.Field{
			{Name: "version", Type: pipeline.Type{Kind: pipeline.KindString}}, {Name: "n", Type: pipeline.Type{Kind: pipeline.KindInt}, Default: json.RawMessage("1")},
		}
		cfg.Compositions[0].Triggers = []pipeline.Trigger{{Manual: &pipeline.ManualTrigger{Approvers: []string{"ops"}}}}
	})
	a.tips[mainRef] = c1
	a.see()
	told := func(n int, want string) {
		t.Helper()
		a.eventually("answer "+want, func() (bool, string) {
			a.f.mu.Lock()
			defer a.f.mu.Unlock()
			return len(a.f.told) == n && strings.Contains(a.f.told[n-1], want), fmt.Sprintf("%q", a.f.told)
		})
	}
	object := a.say("refs/maestro/requests/ana/1", c1, "ana", "run c version=1.0 n=3")
	told(1, "ana: starts c#2")
	r, err := a.db.RunByNumber(t.Context(), "c", 2)
	if err != nil || string(r.Params) != `{"n":3,"version":"1.0"}` || r.Event.Author != "ana" || r.Event.Kind != pipeline.EventManual || r.Commit != c1 {
		t.Fatalf("%+v, %v", r, err)
	}
	verdicts, err := a.db.Verdicts(t.Context(), c1)
	if err != nil || len(verdicts) != 2 || verdicts[0].Kind != pipeline.EventManual || verdicts[0].Run != r.ID ||
		verdicts[1].Kind != pipeline.EventPush || verdicts[1].Sentence != "no push trigger; it starts on manual" {
		t.Errorf("verdicts = %+v, %v", verdicts, err)
	}
	a.eventually("the ref is gone", func() (bool, string) {
		a.f.mu.Lock()
		defer a.f.mu.Unlock()
		return len(a.f.refs) == 0, fmt.Sprint(a.f.refs)
	})
	a.f.mu.Lock()
	a.f.refs["refs/maestro/requests/eve/again"] = object // somebody pushes it once more
	a.f.mu.Unlock()
	a.see()
	a.say("refs/maestro/requests/mallory/1", c1, "mallory", "run c version=1.0")
	told(2, "mallory: not done: mallory asked for it, who is not in ops")
	a.say("refs/maestro/requests/ana/2", c1, "mallory", "run c version=1.0")
	told(3, "ana: not done: it is signed by mallory")
	a.say("refs/maestro/requests/ana/3", c1, "", "cancel c#2")
	told(4, "not signed")
	a.say("refs/maestro/requests/ana/4", c1, "ana", "run nothing")
	told(5, "there is no composition nothing")
	a.say("refs/maestro/requests/ana/5", c1, "ana", "run c n=many")
	told(6, "version: is missing")
	a.say("refs/maestro/requests/ana/6", c1, "ana", "cancel c#2 wrong version")
	told(7, "ana: cancels c#2")
	a.eventually("cancelled", func() (bool, string) {
		r, err := a.db.RunByNumber(t.Context(), "c", 2)
		return err == nil && r.State == pipeline.Cancelled, fmt.Sprint(r.State, r.Reason, err)
	})
	if _, err := a.db.RunByNumber(t.Context(), "c", 3); !fault.Is(err, fault.NotFound) {
		t.Errorf("a request was carried out twice: %v", err)
	}
}

func TestPeopleAreHeardBeforeBranchesArePlanned(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.f.mu.Lock()
	a.f.planning = func() bool { // while a branch is looked at
		a.f.mu.Lock()
		defer a.f.mu.Unlock()
		return len(a.f.told) == 1
	}
	a.f.statements["asked"] = loop.Statement{Target: c0, Message: "run nothing", Signers: []string{"ana"}, At: time.Now()}
	a.f.refs["refs/maestro/requests/ana/1"] = "asked"
	a.f.mu.Unlock()
	a.propose("x", c1)
	a.awaitProposal("x", "is planned", planned(c1))
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	if a.f.late {
		t.Error("a request waited for a plan")
	}
}

func TestUnreachableRepositoryIsLookedAtAgain(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.f.mu.Lock()
	a.f.away = true
	a.f.mu.Unlock()
	a.propose("x", c1)
	a.status(c1, "pending", "there is no plan yet")
	a.f.mu.Lock()
	a.f.away = false
	a.f.mu.Unlock()
	a.awaitProposal("x", "is planned", planned(c1))
}
