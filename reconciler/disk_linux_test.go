package main_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// TestNearlyFullDiskGivesNobodyWorkAndStillTakesResults fills the disk of a server
// while a task runs, and makes room again.
func TestNearlyFullDiskGivesNobodyWorkAndStillTakesResults(t *testing.T) {
	real(t)
	data := testkit.ShortDir(t)
	if err := syscall.Mount("tmpfs", data, "tmpfs", 0, "size=64m,mode=700"); err != nil {
		t.Skipf("a small file system cannot be mounted, which takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(data, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	repo := testkit.NewRepo(t)
	s := testkit.ServeIn(t, data, repo.Bare, nil, "--low-water", "24MiB")
	s.StartAgent(t, "one", "default", "")
	gate := filepath.Join(t.TempDir(), "go")
	first := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("long", "while [ ! -e "+gate+" ]; do sleep 0.1; done; echo ended", "")))
	s.AwaitTask(t, first, "long", "work", pipeline.Running)

	ballast := filepath.Join(data, "filler")
	if err := os.WriteFile(ballast, []byte(strings.Repeat("x", 44<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the server says so", func() (bool, string) {
		said := notices(t, s)
		return strings.Contains(said, "are needed") && strings.Contains(said, data), said
	})
	says(t, s, 1, words("check --repo "+repo.Bare+" --data "+data+" --low-water 24MiB --server "+s.Web), "nothing is given to agents: make room")
	second := repo.Push("main", again(testkit.Shell("short", "echo hi", ""), "new"))
	s.AwaitTask(t, second, "short", "work", pipeline.Ready)
	says(t, s, 0, words("why short#1"), "nothing is given to agents: the disk of")
	// What runs goes on, and its result is taken.
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run := s.AwaitTask(t, first, "long", "work", pipeline.Success)
	if log := s.Log(t, run.Task("work").Attempt); !strings.HasSuffix(log, "ended\n") {
		t.Errorf("got log %q", log)
	}
	if r := s.AwaitTask(t, second, "short", "work", pipeline.Ready); r.Tasks[0].Epoch != 0 {
		t.Errorf("it was offered: %+v", r.Tasks[0])
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "it goes on by itself", func() (bool, string) {
		runs, err := s.Runs(second)
		for _, r := range runs {
			if r.Composition == "short" {
				return r.State == pipeline.Success, string(r.State) + ": " + r.Reason
			}
		}
		return false, errText(err)
	})
	if said := notices(t, s); said != "" {
		t.Errorf("with room again: %s", said)
	}
}

func errText(err error) string {
	if err == nil {
		return "no run"
	}
	return err.Error()
}
