package loop_test

import (
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// owned makes the policy ask for the owners of the one path that changes.
func owned(owners ...string) func(*pipeline.Config) {
	return func(cfg *pipeline.Config) {
		cfg.Policy.Groups = append(cfg.Policy.Groups, pipeline.Group{Name: "web", Members: []string{"zoe"}})
		cfg.Policy.Changes = []pipeline.ChangeRule{{Name: "owners approve", Count: 1, Codeowners: true}}
		cfg.Owners = pipeline.Owners{File: "CODEOWNERS", Rules: []pipeline.OwnerRule{{Pattern: "/a", Owners: owners}}}
	}
}

func TestOwnersOfTheDefaultBranchApproveAChange(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", owned("@octo/web", "z@example.com"))
	a.tips[mainRef] = c1
	a.see()
	// The change names its author's friend as the owner, and drops the rule.
	a.make(c2, c1, "eve", func(cfg *pipeline.Config) {
		owned("mallory")(cfg)
		cfg.Policy.Changes = nil
		touched("mine")(cfg)
	})
	a.propose("mine", c2)
	const needed = "needs 1 approval of @octo/web or z@example.com for a"
	a.awaitProposal("mine", "asks for its owners", func(p pipeline.Proposal) bool { return planned(c2)(p) && p.Sentence == needed })
	a.review(c2, "mallory", "approve")
	a.awaitProposal("mine", "is approved by somebody else", func(p pipeline.Proposal) bool {
		return len(p.Reviews) == 1 && p.Reviews[0].Counts && p.Sentence == needed && p.Approval == pipeline.ApprovalWaiting
	})
	a.review(c2, "zoe", "approve") // of the group that is named like the team
	p := a.awaitProposal("mine", "is approved by an owner", approval(c2, pipeline.ApprovalGiven))
	if p.Sentence != "approved by mallory and zoe" || len(p.Needs) != 2 || p.Needs[1].Have != 1 {
		t.Errorf("%+v", p)
	}

	// Whose it is has changed on the default branch since.
	a.make(c3, c1, "eve", owned("ana"))
	a.tips[mainRef] = c3
	a.see()
	a.awaitProposal("mine", "asks for the other owner", func(p pipeline.Proposal) bool {
		return p.Base == c3 && p.Approval == pipeline.ApprovalWaiting && strings.Contains(p.Sentence, "needs 1 approval of ana for a") && !p.Reviews[1].Counts
	})
	a.review(c2, "ana", "approve")
	a.awaitProposal("mine", "is approved by the other owner", approval(c2, pipeline.ApprovalGiven))
}

func TestNobodyApprovesWhileTheOwnersAreNotKnown(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", func(cfg *pipeline.Config) {
		owned()(cfg)
		cfg.Owners = pipeline.Owners{Problem: "the repository has no CODEOWNERS"}
	})
	a.tips[mainRef] = c1
	a.see()
	a.make(c2, c1, "eve", owned("ana"))
	a.propose("mine", c2)
	a.awaitProposal("mine", "is planned", planned(c2))
	a.review(c2, "ana", "approve")
	a.awaitProposal("mine", "waits for what nobody can give", func(p pipeline.Proposal) bool {
		return len(p.Reviews) == 1 && p.Approval == pipeline.ApprovalWaiting && strings.Contains(p.Sentence, "on the default branch the repository has no CODEOWNERS")
	})
}

func TestAPathThatAMergeTookBackWaitsForItsOwner(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", owned("ana"))
	a.tips[mainRef] = c1
	a.see()
	// Main and the branch were merged into each other. The branch has "a" as one of the
	// commits that both have, and not as the other, which is what main has.
	a.make(c2, c1, "eve", owned("ana"))
	a.f.mu.Lock()
	a.f.tree[c1], a.f.tree[c2] = "before", "before"
	a.f.others = map[[2]pipeline.CommitID][]pipeline.CommitID{{c1, c2}: {c0}}
	a.f.mu.Unlock()
	a.propose("mine", c2)
	p := a.awaitProposal("mine", "is planned", planned(c2))
	if len(p.Needs) != 2 || p.Approval != pipeline.ApprovalWaiting {
		t.Errorf("nobody is asked for what the merge brings: %+v", p)
	}
}
