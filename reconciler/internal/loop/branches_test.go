package loop_test

import (
	"maps"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
)

// What is in force is known before the refs are looked at that brought it. A plan that is
// made in between takes what the default branch has for the change's own.
func TestPlanIsMadeAnewWhenItsForkTurnsOutToBeAnotherOne(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", touched("on the default branch"))
	a.make(c2, c1, "eve", touched("louder"))
	old := maps.Clone(a.tips)
	a.tips[mainRef] = c1
	if err := a.c.Observe(t.Context(), maps.Clone(a.tips)); err != nil {
		t.Fatal(err)
	}
	old["refs/heads/louder"] = c2
	a.p.Observe(loop.Observed{Tips: old})
	a.awaitProposal("louder", "is planned from too early on", func(p pipeline.Proposal) bool { return planned(c2)(p) && p.Base == c1 && p.Fork == c0 })
	a.propose("louder", c2)
	a.awaitProposal("louder", "is planned from where it begins", func(p pipeline.Proposal) bool { return planned(c2)(p) && p.Fork == c1 })
}

func TestPlanIsMadeAnewWhenTwoHistoriesTurnOutToBeMerged(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", owned("ana"))
	a.make(c2, c0, "eve", owned("ana"))
	a.f.mu.Lock()
	a.f.tree[c0], a.f.tree[c2] = "before", "before"
	a.f.others = map[[2]pipeline.CommitID][]pipeline.CommitID{{c1, c2}: {c3}}
	a.f.mu.Unlock()
	old := maps.Clone(a.tips)
	a.tips[mainRef] = c1
	if err := a.c.Observe(t.Context(), maps.Clone(a.tips)); err != nil {
		t.Fatal(err)
	}
	old["refs/heads/mine"] = c2
	a.p.Observe(loop.Observed{Tips: old})
	a.awaitProposal("mine", "is planned from too early on", func(p pipeline.Proposal) bool { return planned(c2)(p) && p.Base == c1 && len(p.Needs) == 0 })
	a.propose("mine", c2)
	a.awaitProposal("mine", "asks the owner too", func(p pipeline.Proposal) bool { return planned(c2)(p) && p.Fork == c0 && len(p.Needs) == 2 })
}
