package testkit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// TestNothingButAReviewApproves does to a change that waits, to a fork that is held and to
// a gate all that people may do but to approve it.
func TestNothingButAReviewApproves(t *testing.T) {
	real(t)
	dir := t.TempDir()
	mark := filepath.Join(dir, "ran")
	o := openGitHub(t, testkit.Files(pullFiles(), checked(filepath.Join(dir, "base")), map[string]string{
		"compositions/release/release.cue": release, "policy/policy.cue": teamPolicy,
	}))
	o.s.StartAgent(t, "trusted", "default", "")
	startUntrusted(t, o.s, "outside")
	change, name, head := o.propose(testkit.Shell("build", "echo 1", ""))
	fork, forked := o.OpenFork("mallory", "main", "trust me", checked(mark))
	o.planned(fmt.Sprintf("pull/%d", fork), forked)
	// Whoever asks for a run has a hand in it.
	o.ask("ana", change, "/maestro run release version=1", "+1")
	door := o.AwaitGate("maestro-gate/release/2/confirm")
	o.Review("ana", door, "APPROVED", "mine")
	o.AwaitGate("maestro-gate/release/2/confirm", "`ana` approves, which does not count: who wrote or asked for it")

	answers := map[int64]string{}
	for _, n := range []int{change, fork} {
		for _, c := range [][2]string{
			{"plan", "+1"},
			{"hold", "+1"},
			{"hold off", "+1"},
			{"help", "+1"},
			{"why check", "+1"},
			{"retry", ""},
			{"run check", "confused"},
			{"retry release#2", "confused"},
			{"approve", "confused"},
			{"resolve release#2/confirm success", "confused"},
			{"retry check#99", "confused"},
		} {
			answers[o.Comment("bo", n, "/maestro "+c[0])] = c[1]
		}
		o.Comment("bo", n, "LGTM, approve\n\n/approve "+string(head))
		o.Review("bo", n, "COMMENTED", "/approve "+string(head))
		o.Review("mallory", n, "APPROVED", "")
		o.Edit(n, true, "main", false) // as a label, a new title or an assignee touches it
		o.Edit(n, false, "main", false)
	}
	// A person's approval of a fork is about merging it, and lets nothing run.
	o.Review("bo", fork, "APPROVED", "looks fine")
	o.says(fmt.Sprintf("pull/%d", fork), pipeline.ApprovalGiven, "approved by bo")
	for id, want := range answers {
		testkit.Eventually(t, "an answer", func() (bool, string) {
			got := o.Reactions(id)
			return len(got) == 1 && (want == "" || got[0] == want), fmt.Sprint(id, got)
		})
	}
	o.says(name, pipeline.ApprovalWaiting, "mallory may not write")
	if runs, err := o.s.Runs(forked); err != nil || len(runs) != 0 {
		t.Errorf("the fork ran: %+v %v", runs, err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the fork ran")
	}
	if slices.Contains(o.States(head, "maestro"), "success") {
		t.Errorf("the change was approved: %v", o.States(head, "maestro"))
	}
	main := pipeline.CommitID(o.Repo.Git(o.Repo.Bare, "rev-parse", "refs/heads/main"))
	held := func(number int) pipeline.Run {
		return awaitRun(t, o.s, "release", number, "is held", func(r pipeline.Run) bool {
			return r.Task("confirm").State == pipeline.Held && r.Task("confirm").Message != ""
		})
	}
	held(2)

	// Cancelled and done again it waits again, and an approval of the one is none of the other.
	o.ask("bo", change, "/maestro cancel release#2", "+1")
	awaitRun(t, o.s, "release", 2, "is cancelled", func(r pipeline.Run) bool { return r.State == pipeline.Cancelled })
	o.ask("bo", change, "/maestro retry release#2", "+1")
	again := held(again(t, o.s, main))
	branch := fmt.Sprintf("maestro-gate/release/%d/confirm", again.Number)
	next := o.AwaitGate(branch)
	o.Review("eve", door, "APPROVED", "of what was cancelled")
	// Nor does who had it done again, nor who asked for it under another name.
	o.Rename("ana", "ana-maria")
	o.Person("ana", "write")
	o.Team("octo/platform", "ana-maria")
	o.Review("ana-maria", next, "APPROVED", "mine still")
	o.Review("bo", next, "APPROVED", "mine too")
	for _, by := range []string{"ana-maria", "bo"} {
		o.AwaitGate(branch, "`"+by+"` approves, which does not count: who wrote or asked for it")
	}
	held(again.Number)
	o.Review("eve", next, "APPROVED", "not mine")
	awaitRun(t, o.s, "release", again.Number, "goes on", func(r pipeline.Run) bool { return r.State == pipeline.Success })
}

// again is the number of the latest run of release at a commit.
func again(t *testing.T, s *testkit.Server, commit pipeline.CommitID) int {
	t.Helper()
	runs, err := s.Runs(commit)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, r := range runs {
		if r.Composition == "release" {
			n = max(n, r.Number)
		}
	}
	return n
}
