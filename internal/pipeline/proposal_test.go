package pipeline_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestDecisionsAreKeptWhenTheyDifferAndInBounds(t *testing.T) {
	t.Parallel()
	var p pipeline.Proposal
	for i := range 3 * pipeline.MostDecisions {
		d := pipeline.Decision{At: time.Unix(int64(i), 0), Head: pipeline.CommitID(fmt.Sprint(i / 2)), Approval: pipeline.ApprovalWaiting}
		before := p.Decisions
		if p.Decided(&d) != (i%2 == 1) {
			t.Fatalf("decision %d", i)
		}
		if i%2 == 1 {
			continue
		}
		first := slices.Clone(before)
		if p.Decide(d); !slices.EqualFunc(first, before, func(a, b pipeline.Decision) bool { return a.Same(&b) }) {
			t.Fatalf("what others hold was changed: %+v", before)
		}
	}
	if n := len(p.Decisions); n != pipeline.MostDecisions || p.Decisions[n-1].Head != "74" || p.Decisions[n-1].At.Unix() != 148 {
		t.Errorf("%d, the last %+v", n, p.Decisions[n-1])
	}
}
