package testkit_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

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
		run := o.s.AwaitTask(t, commit, "release", "confirm", pipeline.Held)
		o.AwaitComment(n, "a gate waits: review this pull request again")
		laterThan(t, &run)
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

// laterThan waits for a later second than the one in which the gate confirm was reached:
// GitHub tells seconds only, and a review of the same one may be of the change.
func laterThan(t *testing.T, run *pipeline.Run) {
	t.Helper()
	reached := run.Task("confirm").StartedAt
	testkit.Eventually(t, "a later second than that of the gate", func() (bool, string) {
		return time.Now().Truncate(time.Second).After(reached), reached.String()
	})
}

func number(t *testing.T, s *testkit.Server, commit pipeline.CommitID) string {
	t.Helper()
	return fmt.Sprint(s.AwaitTask(t, commit, "release", "confirm", pipeline.Held).Number)
}

// ship has a gate in the middle, after something that people want to see.
const ship = `package ops

import (
	"github.com/maestro-cd/maestro"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: ship: {
	tasks: {
		stage: shell.#Run & {
			fields: script: "\"$MAESTRO_AGENTD\" emit output url https://staging.example/7"
			outputs: url: string
		}
		confirm: maestro.#Approval & {
			needs: ["stage"]
			fields: {message: "is \(tasks.stage.outputs.url) right?", approvers: ["ops"], expire: "1h"}
		}
		deploy: shell.#Run & {
			needs: ["confirm"]
			fields: script: "echo \"$SAID by $BY\"; echo \"at $AT\""
			fields: env: {SAID: tasks.confirm.outputs.comment, BY: tasks.confirm.outputs.approved_by[0], AT: tasks.confirm.outputs.approved_at}
		}
	}
	triggers: [{push: branches: ["main"]}]
}
`

func TestGateOfAPushOpensAPullRequest(t *testing.T) {
	real(t)
	g := testkit.NewGitHub(t)
	people(g)
	g.Push("ada", "main", "", testkit.Files(pullFiles(), map[string]string{"compositions/ship/ship.cue": ship}))
	s := g.Serve(t)
	s.StartAgent(t, "one", "default", "")
	// The answer to the first attempt never comes.
	g.Fail(func(method, path string) testkit.Fault {
		return testkit.Fault{Lost: method == "POST" && path == "/repos/octo/ops/pulls"}
	})
	first := g.Push("eve", "main", "", map[string]string{"README": "in force"})
	s.AwaitTask(t, first, "ship", "confirm", pipeline.Held)
	n := g.AwaitGate("maestro-gate/ship/1/confirm", "waits at `confirm`: is https", "Needs 1 approval of ops (ana, bo), and has 0",
		"`stage`", "`\"https://staging.example/7\"`", "| `deploy` | `shell/run` | approved |", "the task times out")
	g.Fail(nil)

	// Who pushed the commit does not approve it, nor does anybody who may not write.
	g.Review("eve", n, "APPROVED", "I say so")
	g.Review("mallory", n, "APPROVED", "me too")
	g.AwaitGate("maestro-gate/ship/1/confirm", "`eve` approves, which does not count: who wrote", "`mallory` approves, which does not count: mallory may not write")
	s.Kill()
	s.Restart(t)
	// Nor does closing it, and it is opened again.
	g.ClosePull("eve", n)
	again := g.AwaitGate("maestro-gate/ship/1/confirm", "`eve` refuses, which does not count: who wrote")
	run := s.AwaitTask(t, first, "ship", "confirm", pipeline.Held)
	if why := run.Task("confirm").Reason; again != n || !strings.Contains(why, fmt.Sprintf("or review its pull request %d; ", n)) {
		t.Errorf("pull request %d after %d: %s", again, n, why)
	}

	g.Review("bo", n, "APPROVED", "looks right")
	run = s.AwaitTask(t, first, "ship", "deploy", pipeline.Success)
	if log := s.Log(t, run.Task("deploy").Attempt); !strings.Contains(log, "looks right by bo") || !strings.Contains(log, "at 20") {
		t.Errorf("the tasks after it see %q", log)
	}
	g.AwaitSettled(n, "`confirm` success: approved by bo: looks right")
	if own := g.Repo.Git(g.Repo.Bare, "for-each-ref", "--format=%(refname)", "refs/maestro/gates"); own != "" {
		t.Errorf("left: %s", own)
	}

	// Who closes the next one refuses, and that takes precedence.
	second := g.Push("eve", "main", "", map[string]string{"README": "more"})
	m := g.AwaitGate("maestro-gate/ship/2/confirm")
	g.Fail(func(method, path string) testkit.Fault {
		if strings.HasSuffix(path, "/reviews") {
			return testkit.Fault{Status: http.StatusBadGateway, Body: "{}"}
		}
		return testkit.Fault{}
	})
	g.Review("ana", m, "APPROVED", "")
	g.ClosePull("bo", m)
	g.Fail(nil)
	run = s.AwaitTask(t, second, "ship", "confirm", pipeline.Failure)
	if why := run.Task("confirm").Reason; why != "refused by bo: closed its pull request" {
		t.Error(why)
	}
	g.AwaitSettled(m, "`confirm` failure: refused by bo")

	// None of that started a run, was planned, or was opened twice.
	for _, asked := range g.Asked() {
		if strings.HasPrefix(asked, "POST ") && strings.Contains(asked, "/issues/") {
			t.Errorf("a comment: %s", asked)
		}
	}
	if all := g.Pulls(); all != 2 {
		t.Errorf("%d pull requests", all)
	}
	for _, base := range []string{"maestro-gate/_base", "maestro-gate/ship/1/confirm"} {
		if p, err := proposal(s, base); err == nil {
			t.Errorf("%s is a change: %+v", base, p)
		}
	}
}

func TestDismissedApprovalCountsAtNoGate(t *testing.T) {
	real(t)
	g := testkit.NewGitHub(t)
	people(g)
	g.Push("ada", "main", "", testkit.Files(pullFiles(), map[string]string{
		"compositions/ship/ship.cue": strings.Replace(ship, `approvers: ["ops"]`, `approvers: ["ops"], count: 2`, 1),
	}))
	s := g.Serve(t)
	s.StartAgent(t, "one", "default", "")
	commit := g.Push("eve", "main", "", map[string]string{"README": "in force"})
	n := g.AwaitGate("maestro-gate/ship/1/confirm", "has 0")
	waits := func(what, want string) {
		t.Helper()
		testkit.Eventually(t, what, func() (bool, string) {
			run := s.AwaitTask(t, commit, "ship", "confirm", pipeline.Held)
			why := run.Task("confirm").Reason
			return strings.HasPrefix(why, want), why
		})
	}
	id := g.Review("ana", n, "APPROVED", "")
	waits("the first counts", "waits for 1 more approval of ops (approved by ana)")
	g.Dismiss(id)
	waits("it was dismissed", "waits for 2 more approvals of ops")
	g.Review("bo", n, "APPROVED", "")
	waits("the other counts alone", "waits for 1 more approval of ops (approved by bo)")
	g.Review("ana", n, "APPROVED", "after all")
	run := s.AwaitTask(t, commit, "ship", "confirm", pipeline.Success)
	if why := run.Task("confirm").Reason; why != "approved by ana, bo: after all" {
		t.Error(why)
	}
}
