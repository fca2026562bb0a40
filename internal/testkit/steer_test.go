package testkit_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// steered is what the people of the tests below have to do with. Each task leaves a
// line in a file outside of the system.
const steered = `package ops

import (
	"github.com/maestro-cd/maestro"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: {
	release: {
		tasks: {
			build: shell.#Run & {fields: script: "echo build >> TRACE"}
			deploy: shell.#Run & {needs: ["build"], fields: script: "echo deploy >> TRACE; test -f TRACE.ok"}
		}
		triggers: [{push: {}}]
	}
	risky: {
		tasks: work: shell.#Run & {effect: "once", lostAfter: "9s", agent: facts: role: "risky", fields: script: "echo started >> TRACE.risky; sleep 1000"}
		triggers: [{push: {}}]
	}
	parent: {
		tasks: go: maestro.#Run & {fields: {composition: "child", wait: false}}
		triggers: [{push: {}}]
	}
	child: {
		tasks: {
			long: shell.#Run & {agent: facts: role: "child", fields: script: "sleep 1000"}
			other: shell.#Run & {agent: facts: role: "child", fields: script: "sleep 1000"}
		}
		triggers: []
	}
}

policy: {
	groups: {ops: ["ana"]}
	requests: "ops settle what is in doubt": {verbs: ["resolve"], by: ["ops"]}
}
`

func traced(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

// page is what a browser is shown.
func page(t *testing.T, s *testkit.Server, path string) string {
	t.Helper()
	resp, err := http.Get(s.Web + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v\n%s", path, resp.Status, err, b)
	}
	return string(b)
}

// awaitRun waits until a run by its number is as it should be.
func awaitRun(t *testing.T, s *testkit.Server, c string, n int, what string, ok func(pipeline.Run) bool) pipeline.Run {
	t.Helper()
	var r pipeline.Run
	testkit.Eventually(t, fmt.Sprintf("%s#%d %s", c, n, what), func() (bool, string) {
		r = pipeline.Run{}
		if err := s.Get(fmt.Sprintf("/compositions/%s/runs/%d", c, n), &r); err != nil {
			return false, err.Error()
		}
		why := string(r.State) + ": " + r.Reason
		for _, k := range r.Tasks {
			why += fmt.Sprintf(" [%s %s: %s]", k.Name, k.State, k.Reason)
		}
		return ok(r), why
	})
	return r
}

func TestPeopleSteerRunsThroughGit(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil, "--unsigned-reviews")
	s.StartAgent(t, "one", "default", "role=any\n")
	s.StartAgent(t, "child", "default", "role=child\n")
	risky := s.StartAgent(t, "risky", "default", "role=risky\n")
	trace := filepath.Join(t.TempDir(), "trace")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), map[string]string{
		"compositions/all/all.cue": strings.ReplaceAll(steered, "TRACE", trace),
		"ops.cue":                  strings.Replace(testkit.Ops()["ops.cue"], "event:", "policy: maestro.#Policy\nevent:", 1),
	}))
	ana, eve := clone(t, repo, "ana", ""), clone(t, repo, "eve", "")
	ask := func(dir string, args ...string) {
		t.Helper()
		if out, exit := testkit.RunIn(t, dir, nil, "reconciler", append(append([]string{"request"}, args...), "--wait", "0")...); exit != 0 {
			t.Fatalf("%v: exit %d\n%s", args, exit, out)
		}
	}
	is := func(state pipeline.State) func(pipeline.Run) bool {
		return func(r pipeline.Run) bool { return r.State == state }
	}

	// What failed is done again, and what came before it is not.
	awaitRun(t, s, "release", 1, "fails", is(pipeline.Failure))
	if err := os.WriteFile(trace+".ok", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ask(eve, "retry", "release#1")
	awaitNote(t, repo, "requests", commit, "eve: starts release#2, which goes on from #1 with the result of build")
	again := awaitRun(t, s, "release", 2, "succeeds", is(pipeline.Success))
	repo.AwaitStatus(commit, "maestro/run/release", "success")
	if got := traced(t, trace); got != "build deploy deploy" {
		t.Errorf("traces: %s", got)
	}
	if b := again.Task("build"); again.Resumes == nil || again.Resumes.Number != 1 || again.Resumes.By != "eve" ||
		b.Reused == nil || b.Reused.Run != again.Resumes.Run || !strings.Contains(b.Reason, "taken over from release#1") {
		t.Errorf("%+v, build %+v", again.Resumes, b)
	}
	out, _ := testkit.Run(t, "reconciler", "run", "--server", s.Web, "release#2")
	if !regexp.MustCompile(`(?m)^build +✓ success +taken over from release#1`).MatchString(out) {
		t.Errorf("the command line tells of tries of what no agent was given:\n%s", out)
	}
	if html := page(t, s, "/c/release/2"); !strings.Contains(html, ">release#1</a>, asked for by eve") {
		t.Errorf("the run's page does not say what it goes on from:\n%s", html)
	}
	if html := page(t, s, "/c/release/2/t/build"); !strings.Contains(html, "<dt>result of</dt>") {
		t.Errorf("the task's page does not say whose result it has:\n%s", html)
	}
	ask(eve, "retry", "release#2")
	awaitNote(t, repo, "requests", commit, "eve: not done: release#2 has ended as success")

	// A task in doubt waits for somebody who may say how it ended.
	awaitRun(t, s, "risky", 1, "runs", func(r pipeline.Run) bool {
		return r.Task("work").State == pipeline.Running && traced(t, trace+".risky") == "started"
	})
	risky.Kill()
	r := awaitRun(t, s, "risky", 1, "is in doubt", is(pipeline.InDoubt))
	if why := r.Task("work").Reason; !strings.Contains(why, "agent risky was silent") || !strings.Contains(why, "reconciler request resolve risky#1/work success, failure or rerun") {
		t.Errorf("in doubt: %s", why)
	}
	if html := page(t, s, "/c/risky/1/t/work"); !strings.Contains(html, "reconciler request resolve risky#1/work rerun</pre>") {
		t.Errorf("the task's page does not say what ends the doubt:\n%s", html)
	}
	ask(eve, "resolve", "risky#1/work", "success")
	awaitNote(t, repo, "requests", commit, "eve: not done: the policy lets only ops resolve risky")
	ask(ana, "resolve", "risky#1/work", "success", "-m", "it is up")
	awaitNote(t, repo, "requests", commit, "ana: settles risky#1/work as success")
	r = awaitRun(t, s, "risky", 1, "succeeds", is(pipeline.Success))
	if why := r.Task("work").Reason; why != "settled by ana: it is up" {
		t.Errorf("settled: %s", why)
	}
	risky.Restart(t)
	testkit.Eventually(t, "what the lost agent still runs is stopped", func() (bool, string) {
		shims := risky.Shims()
		return len(shims) == 0, fmt.Sprint(shims)
	})
	if got := traced(t, trace+".risky"); got != "started" {
		t.Errorf("a task that may be started once: %s", got)
	}

	// One task of a run, and a run that nobody waits for.
	awaitRun(t, s, "child", 1, "runs", func(r pipeline.Run) bool {
		return r.Task("long").State == pipeline.Running && r.Task("other").State == pipeline.Running
	})
	ask(eve, "cancel", "child#1/other")
	awaitNote(t, repo, "requests", commit, "eve: cancels child#1/other")
	r = awaitRun(t, s, "child", 1, "has one task less", func(r pipeline.Run) bool { return r.Task("other").State == pipeline.Cancelled })
	if r.State != pipeline.Running {
		t.Errorf("child is %s", r.State)
	}
	ask(eve, "cancel", "parent#1", "--tree", "-m", "not today")
	awaitNote(t, repo, "requests", commit, "eve: cancels parent#1 and the run below it")
	awaitRun(t, s, "child", 1, "ends", is(pipeline.Cancelled))
}
