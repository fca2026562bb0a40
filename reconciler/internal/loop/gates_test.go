package loop_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
)

// TestApprovalThatIsTakenBackCountsAtNoGate lets one of two take an approval back while
// the gate waits for the other.
func TestApprovalThatIsTakenBackCountsAtNoGate(t *testing.T) {
	t.Parallel()
	a := newAssembly(t)
	a.make(c1, c0, "eve", func(cfg *pipeline.Config) {
		gate := coreTask("g")
		gate.Gate = &pipeline.Gate{Approvers: []string{"ops"}, Count: 2, Expire: pipeline.Duration(time.Hour)}
		cfg.Compositions[0].Tasks = []pipeline.Task{gate}
	})
	a.tips[mainRef] = c1
	a.see()
	r := a.awaitRun("c", 2, func(r *pipeline.Run) bool { return r.State == pipeline.Held })
	ref := loop.GateRef("c", r.Number, "g")
	var head pipeline.CommitID
	a.eventually("the gate is published", func() (bool, string) {
		a.f.mu.Lock()
		defer a.f.mu.Unlock()
		head = pipeline.CommitID(a.f.refs[ref])
		return head != "", string(ref)
	})
	waits := func(want string) {
		t.Helper()
		a.awaitRun("c", 2, func(r *pipeline.Run) bool { return strings.HasPrefix(r.Task("g").Reason, want) })
	}
	a.review(head, "ana", "approve")
	waits("waits for 1 more approval of ops (approved by ana)")
	a.f.mu.Lock()
	delete(a.f.refs, pipeline.Ref("refs/reviews/"+string(head)+"/ana"))
	a.f.mu.Unlock()
	a.see()
	waits("waits for 2 more approvals of ops")
	a.review(head, "bo", "approve")
	waits("waits for 1 more approval of ops (approved by bo)")
	a.review(head, "ana", "approve")
	a.awaitRun("c", 2, func(r *pipeline.Run) bool { return r.Task("g").State == pipeline.Success })
}

func TestNobodyApprovesBesideAReviewThatMayBeDismissed(t *testing.T) {
	t.Parallel()
	ana, bo := pipeline.Review{By: "ana", Approve: true}, pipeline.Review{By: "bo", Approve: true}
	no := pipeline.Review{By: "bo"}
	has := []pipeline.Review{ana}
	for name, c := range map[string]struct {
		counting []pipeline.Review
		heard    bool
		give     []pipeline.Review
		back     []string
	}{
		"both count":                {[]pipeline.Review{ana, bo}, true, []pipeline.Review{bo}, nil},
		"the first was dismissed":   {[]pipeline.Review{bo}, true, []pipeline.Review{bo}, []string{"ana"}},
		"the first is not heard of": {[]pipeline.Review{bo}, false, nil, nil},
		"and the other refuses":     {[]pipeline.Review{no}, false, []pipeline.Review{no}, nil},
		"both are heard of":         {[]pipeline.Review{ana, bo}, false, []pipeline.Review{bo}, nil},
		"nothing new":               {[]pipeline.Review{ana}, true, nil, nil},
	} {
		give, back := loop.ToGive(has, c.counting, c.heard)
		if !slices.Equal(give, c.give) || !slices.Equal(back, c.back) {
			t.Errorf("%s: gives %+v, takes back %v", name, give, back)
		}
	}
}
