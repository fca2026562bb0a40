package loop_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

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
