package testkit_test

import (
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// TestAnOwnedPathWaitsForItsOwnerAtTheBase: the owners of a change are those that the
// default branch names, and not those that the change would like to have (T18).
func TestAnOwnedPathWaitsForItsOwnerAtTheBase(t *testing.T) {
	real(t)
	files := pullFiles()
	files["policy/policy.cue"] = "package ops\n\npolicy: changes: \"owners approve\": codeowners: true\n"
	files["CODEOWNERS"] = "* @bo\n/compositions/ @octo/platform\n/CODEOWNERS @Kim\n"
	o := openGitHub(t, files)
	o.Person("tim", "write")
	o.Person("kim", "write")
	o.Team("octo/platform", "tim")
	change := map[string]string{"compositions/build/more.txt": "more", "CODEOWNERS": "* @ana\n"}
	n, name, head := o.propose(change)
	const both = "needs 1 approval of @octo/platform for compositions/build/more.txt and 1 approval of Kim for CODEOWNERS"
	awaitChange(t, o.s, name, "is of what is in force", func(p pipeline.Proposal) bool { return p.Sentence == both })

	// Ana would own all of it, and Mallory may not even write.
	o.Review("mallory", n, "APPROVED", "")
	o.approved2(name, n, "ana", pipeline.ApprovalWaiting, both)
	o.AwaitStatus(head, "maestro", "pending", "needs 1 approval of @octo/platform for compositions/build/more.txt")
	o.approved2(name, n, "kim", pipeline.ApprovalWaiting, "needs 1 approval of @octo/platform for compositions/build/more.txt")
	comment := o.AwaitComment(n, "~~Kim for CODEOWNERS~~", "- @\u200bocto/platform for compositions/build/more.txt")
	if strings.Contains(comment, "@octo") {
		t.Errorf("somebody is mentioned:\n%s", comment)
	}
	o.approved2(name, n, "tim", pipeline.ApprovalGiven, "approved by ana and kim and tim")

	// Another owner at the base voids what was approved.
	o.Push("ana", "main", "main", map[string]string{"CODEOWNERS": "* @bo\n/compositions/ @octo/platform @bo\n/CODEOWNERS @kim\n"})
	o.says(name, pipeline.ApprovalWaiting, "the plan is another one since; review again")
	o.says(name, pipeline.ApprovalWaiting, "needs 1 approval of @octo/platform or bo for compositions/build/more.txt")
}
