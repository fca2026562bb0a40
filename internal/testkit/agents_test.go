package testkit_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

func TestBothProgramsAreReplacedWhileATaskRuns(t *testing.T) {
	real(t)
	const lines = 50
	script, trace := counting(t, lines)
	m := newMarks(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	a := s.StartAgent(t, "one", "default", "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("count", script+"; "+m.gate("replaced"), "")))
	run := s.AwaitTask(t, commit, "count", "work", pipeline.Running)
	seen := 0
	for range 2 { // the second time the file is replaced from which they run
		seen += 10
		awaitLine(t, s, run.Task("work").Attempt, fmt.Sprintf("line %d\n", seen))
		a.Upgrade(t)
		if exit := a.Stop(); exit != 0 {
			t.Fatalf("agentd ended with %d:\n%s", exit, a.Said())
		}
		if shims := a.Shims(); len(shims) != 1 {
			t.Fatalf("shims without their agentd: %v", shims)
		}
		a.Restart(t)
		s.AwaitAgent(t, "one")
		s.Upgrade(t)
		if exit := s.Stop(); exit != 0 {
			t.Fatalf("reconciler ended with %d:\n%s", exit, s.Said())
		}
		s.Restart(t)
		s.AwaitAgent(t, "one")
	}
	m.open(t, "replaced")
	checkCounted(t, s, s.AwaitRuns(t, commit, 1)[0], trace, lines)
}

// agents runs a subcommand of agents on the server's folder.
func agents(t *testing.T, s *testkit.Server, args ...string) (string, int) {
	t.Helper()
	return testkit.Run(t, "reconciler", append([]string{"agents"}, append(args, "--data", s.Data)...)...)
}

func TestAgentIsPausedAndDrainedByItsOperator(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	let := filepath.Join(t.TempDir(), "go")
	wait := fmt.Sprintf("until test -f %s; do sleep 0.05; done", let)
	if out, exit := agents(t, s, "drain", "one", "--reason", "new disk", "--for", "1h"); exit != 0 || !strings.Contains(out, "is drained until") {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	list := func() string {
		out, exit := testkit.Run(t, "reconciler", "agents", "--server", s.Web)
		if exit != 0 {
			t.Fatal(out)
		}
		return out
	}
	if out := list(); !strings.Contains(out, "online, drained until") || !strings.Contains(out, "(new disk)") {
		t.Errorf("agents:\n%s", out)
	}
	if html := page(t, s, "/agents"); !strings.Contains(html, "drained until") {
		t.Errorf("the page of agents does not say so:\n%s", html)
	}
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("waits", wait, "")))
	testkit.Eventually(t, "the run waits, and says why", func() (bool, string) {
		out, _ := testkit.Run(t, "reconciler", "why", "waits", "--server", s.Web)
		return strings.Contains(out, "no free agent: 1 drained until") && strings.Contains(out, "(new disk); first in line"), out
	})
	if out, exit := agents(t, s, "resume", "one"); exit != 0 || !strings.Contains(out, "takes new work") {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	s.AwaitTask(t, commit, "waits", "work", pipeline.Running)
	if out, exit := agents(t, s, "drain", "one"); exit != 0 {
		t.Fatal(out)
	}
	if out := list(); !strings.Contains(out, "online, drains") {
		t.Errorf("agents:\n%s", out)
	}
	testkit.RunShell(t, t.TempDir(), nil, "touch "+let)
	s.AwaitRuns(t, commit, 1)
	if out := list(); !strings.Contains(out, "online, drained") {
		t.Errorf("agents:\n%s", out)
	}
	if out, exit := agents(t, s, "pause", "onee"); exit == 0 || !strings.Contains(out, `no agent "onee" is enrolled; did you mean "one"?`) {
		t.Errorf("exit %d\n%s", exit, out)
	}
}

func TestRevokedAgentIsTurnedOutForEver(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	a := s.StartAgent(t, "one", "default", "")
	if out, exit := agents(t, s, "revoke", "one"); exit != 0 || !strings.Contains(out, "is revoked") {
		t.Fatalf("exit %d\n%s", exit, out)
	}
	testkit.Eventually(t, "agentd ends and says why", func() (bool, string) {
		return a.Ended() && strings.Contains(a.Said(), "was revoked"), a.Said()
	})
	a.Restart(t)
	testkit.Eventually(t, "and again", func() (bool, string) {
		return a.Ended() && strings.Contains(a.Said(), "was revoked"), a.Said()
	})
	out, exit := testkit.Run(t, "reconciler", "agents", "--server", s.Web)
	if exit != 0 || !strings.Contains(out, "revoked") {
		t.Errorf("exit %d\n%s", exit, out)
	}
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("waits", "true", "")))
	s.AwaitTask(t, commit, "waits", "work", pipeline.Ready)
	if n := strings.Count(s.Said(), "agent connected"); n != 1 {
		t.Errorf("that it was connected once is said %d times:\n%s", n, s.Said())
	}
}
