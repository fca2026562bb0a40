package testkit_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

func TestGatesAreReviewedAtThePullRequestThatLedToThem(t *testing.T) {
	real(t)
	o := openGitHub(t, testkit.Files(pullFiles(), map[string]string{"compositions/release/release.cue": release}))
	o.s.StartAgent(t, "one", "default", "")
	merged := func(script string) (int, pipeline.CommitID) {
		t.Helper()
		n, name, _ := o.propose(testkit.Shell("build", script, ""))
		o.approved(name, n, "ana")
		commit := o.Merge("bo", n, false)
		o.s.AwaitTask(t, commit, "release", "confirm", pipeline.Held)
		o.AwaitComment(n, "a gate waits: review this pull request again")
		return n, commit
	}

	// The approval of the change is none of what it leads to, and its author gives none.
	n, commit := merged("echo 1")
	o.Review("eve", n, "APPROVED", "")
	testkit.Eventually(t, "it is said why the author's does not count", func() (bool, string) {
		run := o.s.AwaitTask(t, commit, "release", "confirm", pipeline.Held)
		why := run.Task("confirm").Reason
		return strings.Contains(why, "the review by eve does not count: who wrote"), why
	})
	// Nor does a word for another run.
	o.Review("ana", n, "APPROVED", "release#77 may go on")
	o.Review("bo", n, "APPROVED", "go, release#"+number(t, o.s, commit))
	run := o.s.AwaitTask(t, commit, "release", "confirm", pipeline.Success)
	if k := run.Task("confirm"); !strings.Contains(string(k.Outputs), `"bo"`) || strings.Contains(string(k.Outputs), `"ana"`) {
		t.Errorf("%s", k.Outputs)
	}
	o.s.AwaitTask(t, commit, "release", "deploy", pipeline.Success)
	o.AwaitComment(n, "all green")

	// Who asks for changes refuses it.
	n, commit = merged("echo 2")
	o.Review("bo", n, "CHANGES_REQUESTED", "not today")
	run = o.s.AwaitTask(t, commit, "release", "confirm", pipeline.Failure)
	if why := run.Task("confirm").Reason; !strings.Contains(why, "refused by bo: not today") {
		t.Errorf("%s", why)
	}
	o.AwaitStatus(commit, "maestro", "failure", "release")
}

func number(t *testing.T, s *testkit.Server, commit pipeline.CommitID) string {
	t.Helper()
	return fmt.Sprint(s.AwaitTask(t, commit, "release", "confirm", pipeline.Held).Number)
}
