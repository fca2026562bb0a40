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
