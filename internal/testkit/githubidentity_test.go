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

compositions: {
	check: {
		tasks: work: shell.#Run & {agent: facts: role: "any", fields: script: "test ! -e ` + flag + ` || exit 3"}
		triggers: [{pullRequest: {}}]
	}
	risky: {
		tasks: work: shell.#Run & {effect: "once", lostAfter: "9s", agent: facts: role: "risky", fields: script: "echo started >> ` + flag + `.risky; sleep 1000"}
		triggers: [{pullRequest: {}}]
	}
}

policy: requests: "ops settle what is in doubt": {verbs: ["resolve"], by: ["ops"]}
`
	o := openGitHub(t, files)
	o.s.StartAgent(t, "one", "default", "role=any\n")
	risky := o.s.StartAgent(t, "risky", "default", "role=risky\n")
	n, _, head := o.propose(testkit.Shell("build", "echo 1", ""))
	testkit.Eventually(t, "what may be started once has started", func() (bool, string) {
		got := traced(t, flag+".risky")
		return got == "started", got
	})
	o.s.AwaitTask(t, head, "risky", "work", pipeline.Running)
	risky.Kill()
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

	// What its agent was lost with waits for somebody who may say how it ended.
	o.s.AwaitTask(t, head, "risky", "work", pipeline.InDoubt)
	for by, text := range map[string]string{
		"mallory": "/maestro resolve risky#1/work success", "eve": "/maestro resolve risky#1/work success",
		"bo": "/maestro resolve risky#1/work fine", "ana": "/maestro resolve risky#1/nothing success",
	} {
		o.ask(by, n, text, "confused")
	}
	o.AwaitComment(n, "mallory: not done: who asks may not write", "eve: not done: the policy lets only ops resolve risky",
		"bo: not done: want: resolve risky\\#1/TASK success, failure or rerun")
	o.s.AwaitTask(t, head, "risky", "work", pipeline.InDoubt)
	o.ask("ana", n, "/maestro resolve risky#1/work success it is up", "+1")
	o.AwaitComment(n, "ana: settles risky\\#1/work as success")
	run := o.s.AwaitTask(t, head, "risky", "work", pipeline.Success)
	if why := run.Task("work").Reason; why != "settled by ana: it is up" {
		t.Error(why)
	}
	o.AwaitStatus(head, "maestro/run/risky", "success", "")
	o.ask("ana", n, "/maestro resolve risky#1/work failure", "confused")
	if got := traced(t, flag+".risky"); got != "started" {
		t.Errorf("a task that may be started once: %s", got)
	}
	o.ask("bo", n, "/maestro retry", "+1")
	o.AwaitComment(n, "bo: nothing of it failed; the plan is made anew")
}
