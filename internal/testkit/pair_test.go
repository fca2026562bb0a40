package testkit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

func TestMain(m *testing.M) {
	code := m.Run()
	testkit.RemovePrograms()
	os.Exit(code)
}

// real marks a test that runs the programs.
func real(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs the programs; the quick part leaves that out")
	}
	t.Parallel()
}

func TestDemoDoesTheMainJob(t *testing.T) {
	real(t)
	out, exit := testkit.Run(t, "reconciler", "demo")
	if exit != 0 || !strings.Contains(out, "success  ") {
		t.Fatalf("exit %d\n%s", exit, out)
	}
}

func TestPushRunsTasksOnTheAgentsThatFit(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "role=build\n")
	s.StartAgent(t, "two", "default", "role=deploy\n")
	commit := repo.Push("main", testkit.Files(testkit.Ops(),
		testkit.Shell("on-build", `echo "I am $MAESTRO_TASK"`, `agent: facts: role: "build"`),
		testkit.Shell("on-deploy", `echo deploying`, `agent: facts: role: "deploy"`)))
	names := agentNames(t, s)
	for _, r := range s.AwaitRuns(t, commit, 2) {
		work := r.Task("work")
		want := map[pipeline.CompositionName]string{"on-build": "one", "on-deploy": "two"}[r.Composition]
		if r.State != pipeline.Success || names[work.Agent] != want {
			t.Errorf("%s is %s on %s (%s), want success on %s", r.Composition, r.State, names[work.Agent], work.Reason, want)
		}
		if r.Composition == "on-build" {
			if got := s.Log(t, work.Attempt); got != "I am work\n" {
				t.Errorf("log = %q", got)
			}
		}
	}
	repo.AwaitStatus(commit, "maestro", "success")
	repo.AwaitStatus(commit, "maestro/run/on-build", "success")
}

func agentNames(t *testing.T, s *testkit.Server) map[pipeline.AgentID]string {
	t.Helper()
	var list struct{ Agents []pipeline.Agent }
	if err := s.Get("/agents", &list); err != nil {
		t.Fatal(err)
	}
	out := map[pipeline.AgentID]string{}
	for _, a := range list.Agents {
		out[a.ID] = a.Name
	}
	return out
}

// counting is a task that takes a while and leaves a trace outside of the system:
// one line in a file for each start, and numbered lines in its log.
func counting(t *testing.T, lines int) (script, trace string) {
	trace = filepath.Join(t.TempDir(), "starts")
	return fmt.Sprintf("echo started >> %s; i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line $i; sleep 0.1; done", trace, lines), trace
}

func checkCounted(t *testing.T, s *testkit.Server, r pipeline.Run, trace string, lines int) {
	t.Helper()
	if r.State != pipeline.Success {
		t.Errorf("run is %s: %s", r.State, r.Reason)
	}
	b, err := os.ReadFile(trace)
	if err != nil || string(b) != "started\n" {
		t.Errorf("starts: %q, %v; want one", b, err)
	}
	var want strings.Builder
	for i := range lines {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	if got := s.Log(t, r.Task("work").Attempt); got != want.String() {
		t.Errorf("the log is not every line once:\n%s", got)
	}
}

func TestKilledReconcilerLosesNothing(t *testing.T) {
	real(t)
	const lines = 60
	script, trace := counting(t, lines)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("count", script, "")))
	run := s.AwaitTask(t, commit, "count", "work", pipeline.Running)
	awaitLine(t, s, run.Task("work").Attempt, "line 10\n")
	s.Kill()
	s.Restart(t)
	checkCounted(t, s, s.AwaitRuns(t, commit, 1)[0], trace, lines)
	repo.AwaitStatus(commit, "maestro", "success")
}

func TestKilledAgentLosesNothing(t *testing.T) {
	real(t)
	const lines = 60
	script, trace := counting(t, lines)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	a := s.StartAgent(t, "one", "default", "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("count", script, "")))
	run := s.AwaitTask(t, commit, "count", "work", pipeline.Running)
	awaitLine(t, s, run.Task("work").Attempt, "line 10\n")
	a.Kill()
	a.Restart(t)
	checkCounted(t, s, s.AwaitRuns(t, commit, 1)[0], trace, lines)
}

func awaitLine(t *testing.T, s *testkit.Server, attempt pipeline.AttemptID, line string) {
	t.Helper()
	testkit.Eventually(t, "log has "+line, func() (bool, string) {
		got := s.Log(t, attempt)
		return strings.Contains(got, line), got
	})
}
