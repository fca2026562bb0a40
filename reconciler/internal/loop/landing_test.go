package loop_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const c4 = "4444444444444444444444444444444444444444"

// approved proposes c1 on a branch x and has it approved.
func (a *assembly) approved() {
	a.t.Helper()
	a.make(c1, c0, "eve", touched("one"))
	a.propose("x", c1)
	a.awaitProposal("x", "is planned", planned(c1))
	a.review(c1, "ana", "approve")
	a.awaitProposal("x", "is approved", approval(c1, pipeline.ApprovalGiven))
}

// stray waits until it is said that something came to main that no change held.
func (a *assembly) stray(at pipeline.CommitID, sentence string) {
	a.t.Helper()
	p := a.awaitProposal("main@{"+at.Short()+"}", "is there", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
	if p.Merge.Sentence != sentence || p.Merge.Commit != at || p.Approval != pipeline.ApprovalWaiting || len(p.Needs) != 1 {
		a.t.Errorf("%q of %+v", p.Merge.Sentence, p)
	}
	a.status(at, "failure", "merged without the approval it needed; ")
}

func TestACommitMoreThanTheApprovedHeadIsAnUnapprovedMerge(t *testing.T) {
	t.Parallel()
	for name, push := range map[string]func(*assembly){
		"the head moves and is merged at once": func(a *assembly) {
			a.make(c2, c1, "eve", touched("two"))
			a.tips["refs/heads/x"], a.tips[mainRef] = c2, c2
		},
		"a merge commit of what no branch shows": func(a *assembly) {
			a.make(c2, c1, "eve", touched("two"))
			a.merge(c3, c0, c2)
			a.tips[mainRef] = c3
		},
		"the same file in the merge itself": func(a *assembly) {
			a.merge(c3, c0, c1)
			a.make(c2, c1, "eve", touched("two"))
			a.merge(c3, c0, c2)
			a.f.mu.Lock()
			a.f.second[c3] = c1
			a.f.mu.Unlock()
			a.tips[mainRef] = c3
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAssembly(t)
			a.approved()
			push(a)
			a.see()
			tip := a.tips[mainRef]
			what := "1 commit came to main that no change held (222222222222)"
			if strings.Contains(name, "itself") {
				what = "what came to main is not what its changes held"
			}
			a.stray(tip, what+"; merged without approval: needs 1 approval of ops")
			p := a.awaitProposal("x", "is merged", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
			if p.Merge.Approval != pipeline.ApprovalGiven {
				t.Errorf("%+v", p.Merge)
			}
			if r, err := a.db.RunByNumber(t.Context(), "c", 2); err != nil || r.Commit != tip {
				t.Errorf("what came is not carried out: %+v, %v", r, err)
			}
		})
	}
}

func TestAnApprovedChangeMayBeMergedInAnyWay(t *testing.T) {
	t.Parallel()
	for name, push := range map[string]func(*assembly) pipeline.CommitID{
		"fast forward": func(a *assembly) pipeline.CommitID { return c1 },
		"merge commit": func(a *assembly) pipeline.CommitID {
			a.merge(c2, c0, c1)
			return c2
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAssembly(t)
			a.approved()
			a.tips[mainRef] = push(a)
			a.see()
			a.awaitProposal("x", "is merged", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
			a.status(a.tips[mainRef], "pending", "0 of 1 run")
			if p, err := a.db.Proposal(t.Context(), repoName, "main@{"+a.tips[mainRef].Short()+"}"); !fault.Is(err, fault.NotFound) {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
}

func TestAPushOfItsOwnIsHeldAgainstThePolicyThatWasInForce(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", func(cfg *pipeline.Config) {
		touched("one")(cfg)
		cfg.Policy.Changes = nil // it takes the rule away
	})
	a.tips[mainRef] = c1
	a.see()
	a.stray(c1, "1 commit came to main that no change held (111111111111); merged without approval: needs 1 approval of ops")
	a.make(c2, c1, "eve", touched("two")) // it brings the rule back, for which nobody has to be asked
	a.tips[mainRef] = c2
	a.see()
	a.status(c2, "pending", "0 of 1 run")
	a.eventually("what came is judged", func() (bool, string) {
		looked, err := a.db.LookedAt(t.Context(), repoName)
		return looked["main"] == c2, fmt.Sprint(looked, err)
	})
	a.reopen()
	a.status(c1, "failure", "merged without the approval it needed; ")
	a.make(c3, c2, "eve", touched("three"))
	a.make(c4, c3, "eve", touched("four"))
	a.tips[mainRef] = c4
	a.see()
	a.stray(c4, "2 commits came to main that no change held (444444444444, 333333333333); merged without approval: needs 1 approval of ops")
}
