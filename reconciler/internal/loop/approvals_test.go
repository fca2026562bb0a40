package loop_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

func TestApprovalEndsByItselfAfterADay(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.propose("x", c1)
	p := a.awaitProposal("x", "is planned", planned(c1))
	a.f.mu.Lock()
	a.f.statements["old"] = loop.Statement{
		Target: c1, Signers: []string{"ana"}, At: time.Now().Add(-review.Lifetime + 5*time.Second), Message: "approve\n\nplan: " + string(p.Digest),
	}
	a.f.refs["refs/reviews/"+c1+"/ana"] = "old"
	a.f.mu.Unlock()
	a.see()
	// Nothing happens but that time passes. That it was approved before is found among
	// what was decided, however late somebody looks.
	p = a.awaitProposal("x", "is not approved any more", func(p pipeline.Proposal) bool {
		return len(p.Decisions) == 3 && approval(c1, pipeline.ApprovalWaiting)(p)
	})
	if p.Decisions[1].Approval != pipeline.ApprovalGiven || !strings.Contains(p.Reviews[0].Why, "older than 24 hours") {
		t.Errorf("%+v of %+v", p.Decisions, p.Reviews)
	}
	a.status(c1, "pending", "needs 1 approval of ops")
}

func TestPolicyThatAsksForMoreVoidsAnApproval(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("one"))
	a.propose("x", c1)
	a.awaitProposal("x", "is planned", planned(c1))
	a.review(c1, "ana", "approve")
	a.awaitProposal("x", "is approved", approval(c1, pipeline.ApprovalGiven))
	for i, stricter := range []func(*pipeline.Config){
		func(cfg *pipeline.Config) { cfg.Policy.Changes[0].Count = 2 },
		func(cfg *pipeline.Config) { cfg.Policy.Groups[0].Members = []string{"bo", "eve"} },
	} {
		base := []pipeline.CommitID{c2, c3}[i]
		a.make(base, c0, "eve", stricter)
		a.tips[mainRef] = base
		a.see()
		a.awaitProposal("x", "needs more", func(p pipeline.Proposal) bool { return p.Base == base && approval(c1, pipeline.ApprovalWaiting)(p) })
	}
}

func TestWhoRetriesARunDoesNotApproveItsGate(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "cy", func(cfg *pipeline.Config) {
		gate := coreTask("g")
		gate.Gate = &pipeline.Gate{Count: 1, Approvers: []string{"ops"}, Expire: pipeline.Duration(time.Hour)}
		cfg.Policy.Groups[0].Members = []string{"ana", "bo", "dan"}
		cfg.Compositions[0].Tasks = []pipeline.Task{gate}
		cfg.Compositions[0].Triggers = []pipeline.Trigger{{Manual: &pipeline.ManualTrigger{Approvers: []string{"ops"}}}}
	})
	a.tips[mainRef] = c1
	a.see()
	held := func(number int) pipeline.CommitID {
		t.Helper()
		a.awaitRun("c", number, func(r *pipeline.Run) bool { return r.Task("g").State == pipeline.Held })
		var head string
		a.eventually("the gate is published", func() (bool, string) {
			a.see()
			a.f.mu.Lock()
			defer a.f.mu.Unlock()
			head = a.f.refs[loop.GateRef("c", number, "g")]
			return head != "", ""
		})
		return pipeline.CommitID(head)
	}
	first := latest(t, a)
	a.say("refs/maestro/requests/ana/1", c1, "ana", "run c")
	run := first + 1
	held(run)
	a.say("refs/maestro/requests/ana/2", c1, "ana", fmt.Sprintf("cancel c#%d", run))
	a.awaitRun("c", run, in(pipeline.Cancelled))
	a.say("refs/maestro/requests/bo/1", c1, "bo", fmt.Sprintf("retry c#%d", run))
	head := held(run + 1)
	for _, user := range []string{"ana", "bo"} {
		a.review(head, user, "approve")
		a.awaitRun("c", run+1, func(r *pipeline.Run) bool {
			a.see()
			return strings.Contains(r.Task("g").Reason, "the review by "+user+" does not count: who wrote or asked for it")
		})
	}
	a.review(head, "dan", "approve")
	a.awaitRun("c", run+1, in(pipeline.Success))
}

// latest is the number of the latest run of c.
func latest(t *testing.T, a *assembly) int {
	t.Helper()
	n := 0
	for {
		if _, err := a.db.RunByNumber(t.Context(), "c", n+1); err != nil {
			return n
		}
		n++
	}
}

func TestTagsProposeNothingAndSayNothingOfWhatIsInForce(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", func(cfg *pipeline.Config) {
		touched("one")(cfg)
		cfg.Policy.Changes = nil
	})
	a.make(c2, c1, "eve", touched("two"))
	for _, tip := range []pipeline.CommitID{c1, c2} {
		a.tips[mainRef] = tip
		a.see()
		a.eventually("main was looked at", func() (bool, string) {
			looked, err := a.db.LookedAt(t.Context(), repoName)
			return looked["main"] == tip, fmt.Sprint(looked, err)
		})
	}
	// One of a commit that nobody was asked about, and one that main does not have.
	a.make(c3, c2, "eve", touched("three"))
	a.tips["refs/tags/old"], a.tips["refs/tags/stray"] = c1, c3
	a.propose("x", c3)
	a.awaitProposal("x", "is planned", planned(c3))
	a.see()
	a.review(c3, "ana", "approve")
	a.awaitProposal("x", "is approved", approval(c3, pipeline.ApprovalGiven))
	looked, err := a.db.LookedAt(t.Context(), repoName)
	if err != nil || looked[""] != c2 {
		t.Errorf("in force is %q, %v", looked[""], err)
	}
	if p, err := a.db.Proposal(t.Context(), repoName, ""); err == nil {
		t.Errorf("a tag is a change: %+v", p)
	}
	a.make(c4, c2, "eve", touched("four"))
	a.tips[mainRef] = c4
	a.see()
	a.stray(c4, "1 commit came to main that no change held (444444444444); merged without approval: needs 1 approval of ops")
}

func TestOvertakingARunOpensNoGateBesideIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	gate := coreTask("g")
	gate.Gate = &pipeline.Gate{Count: 1, Expire: pipeline.Duration(time.Hour)}
	held := pushed("held", gate, shellTask("deploy", "g"))
	c := pushed("c", shellTask("a"))
	c.Concurrency = &pipeline.Concurrency{Group: pipeline.Expr{Value: json.RawMessage(`"prod"`)}, Policy: pipeline.CancelRunning}
	held.Concurrency = c.Concurrency
	w.push(w.config("c1", held))
	w.awaitRun("held", 1, in(pipeline.Held))
	// One of another composition of its group overtakes what runs, and again; what waits for
	// people neither goes on nor is anything of it offered.
	alone := pushed("aside", gate, shellTask("deploy", "g"))
	w.push(w.config("c2", c, alone))
	w.awaitRun("held", 1, in(pipeline.Cancelled))
	w.awaitRun("aside", 1, in(pipeline.Held))
	o := w.accept(a)
	w.push(w.config("c3", c))
	expect[*wire.Cancel](w, a.ID)
	w.runs.Message(a.ID, &wire.Result{Attempt: o.Attempt, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Cancelled}})
	w.runs.Message(a.ID, success(w.accept(a), `{}`))
	w.awaitRun("c", 2, in(pipeline.Success))
	for name, want := range map[pipeline.CompositionName]pipeline.State{"held": pipeline.Cancelled, "aside": pipeline.Held} {
		r := w.awaitRun(name, 1, in(want))
		if d := r.Task("deploy"); d.Attempt != "" {
			t.Errorf("%s: deploy was offered: %+v", name, d)
		}
	}
}
