package testkit_test

import (
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

func TestWhatNoPullRequestHeldIsUnapproved(t *testing.T) {
	real(t)
	o := openGitHub(t, pullFiles())
	o.s.StartAgent(t, "one", "default", "")
	var merged []pipeline.CommitID
	for _, merge := range []func(n int) pipeline.CommitID{
		func(n int) pipeline.CommitID { return o.Merge("ana", n, false) },
		func(n int) pipeline.CommitID { return o.Merge("ana", n, true) },
		func(n int) pipeline.CommitID { return o.Rebase("ana", n) },
	} {
		// Two commits, while main moves on beside them in the same file.
		n, name, head := o.propose(map[string]string{"README": "in force\n\n\n\n\nfirst"})
		branch := "change-" + strings.TrimPrefix(name, "pull/")
		second := o.Push("eve", branch, "", testkit.Shell("build", "echo "+name, ""))
		if second == head {
			t.Fatal("nothing was pushed")
		}
		o.planned(name, second)
		o.approved(name, n, "ana")
		o.AwaitStatus(second, "maestro", "success", "approved by ana")
		merged = append(merged, merge(n))
		p := awaitChange(t, o.s, name, "is merged", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
		if p.Merge.Approval != pipeline.ApprovalGiven {
			t.Errorf("%s: %+v", name, p)
		}
	}
	stray := o.Push("eve", "main", "", testkit.Shell("build", "echo by myself", ""))
	o.AwaitStatus(stray, "maestro", "failure", "merged without the approval it needed; ")
	if p, err := proposal(o.s, "main@{"+stray.Short()+"}"); err != nil || p.State != pipeline.ProposalMerged || p.Approval != pipeline.ApprovalWaiting || !strings.HasPrefix(p.Sentence, "1 commit came to main that no change held ("+stray.Short()+")") {
		t.Errorf("%+v %v", p, err)
	}
	// What was merged as it should be is not judged with it.
	for i, commit := range merged {
		o.AwaitStatus(commit, "maestro", "success", "")
		if states := o.States(commit, "maestro"); strings.Contains(strings.Join(states, " "), "failure") {
			t.Errorf("merge %d went %v", i, states)
		}
	}
}
