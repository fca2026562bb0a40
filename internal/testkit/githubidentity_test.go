package testkit_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

func TestARepositoryInThePlaceOfTheServedOneApprovesNothing(t *testing.T) {
	real(t)
	o := openGitHub(t, pullFiles())
	n, name, _ := o.propose(testkit.Shell("build", "echo 1", ""))
	o.approved(name, n, "ana")
	o.Replace()
	o.says(name, pipeline.ApprovalWaiting, "the repository is another one of the same name (number 8, and it was 7)")
	o.s.Kill()
	o.s.Restart(t)
	o.Review("bo", n, "APPROVED", "")
	o.says(name, pipeline.ApprovalWaiting, "needs 1 approval of ops")
}

func TestCommentsRetryAndResolve(t *testing.T) {
	real(t)
	files := pullFiles()
	flag := filepath.Join(t.TempDir(), "flag")
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	files["compositions/check/check.cue"] = `package ops

import "github.com/maestro-cd/maestro/plugins/shell"

compositions: check: {
	tasks: work: shell.#Run & {fields: script: "test ! -e ` + flag + ` || exit 3"}
	triggers: [{pullRequest: {}}]
}
`
	o := openGitHub(t, files)
	o.s.StartAgent(t, "one", "default", "")
	n, _, head := o.propose(testkit.Shell("build", "echo 1", ""))
	o.AwaitStatus(head, "maestro/run/check", "failure", "")
	o.ask("mallory", n, "/maestro retry", "confused")
	o.AwaitComment(n, "mallory: not done: who asks may not write")
	o.ask("bo", n, "/maestro resolve check#1/work success", "confused")
	o.AwaitComment(n, "bo: not done: check\\#1 has ended as failure")
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	o.ask("bo", n, "/maestro retry check#1", "+1")
	o.AwaitStatus(head, "maestro/run/check", "success", "")
	o.ask("bo", n, "/maestro retry check#1", "+1")
	o.AwaitComment(n, "bo: starts check\\#2, which goes on from", "bo: starts check\\#3, which goes on from")
	o.AwaitStatus(head, "maestro/run/check", "success", "")
	o.ask("bo", n, "/maestro retry check#3", "confused")
	o.ask("bo", n, "/maestro retry", "+1")
	o.AwaitComment(n, "bo: nothing of it failed; the plan is made anew")
}
