package main_test

import (
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// real marks a test that runs the programs.
func real(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("runs the programs; the quick part leaves that out")
	}
	t.Parallel()
}

// says runs the command line against s and wants an exit code and each of the texts.
func says(t *testing.T, s *testkit.Server, exit int, args []string, texts ...string) string {
	t.Helper()
	out, got := testkit.RunIn(t, "", []string{"RECONCILER_SERVER=" + s.Web}, "reconciler", args...)
	if got != exit {
		t.Errorf("reconciler %s: exit %d, want %d\n%s", strings.Join(args, " "), got, exit, out)
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("reconciler %s: want it to say %q\n%s", strings.Join(args, " "), text, out)
		}
	}
	return out
}

func words(s string) []string { return strings.Fields(s) }

// helloServer serves one composition that has run once.
func helloServer(t *testing.T) (*testkit.Server, *testkit.Repo, pipeline.CommitID) {
	t.Helper()
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("hello", "echo hello", "")))
	s.AwaitRuns(t, commit, 1)
	return s, repo, commit
}

func TestCommitIsNamedByItsFirstDigits(t *testing.T) {
	real(t)
	s, _, commit := helloServer(t)
	short, unknown := string(commit[:7]), "0000000"
	says(t, s, 0, words("why "+short), "hello", "push to main")
	says(t, s, 0, words("why "+strings.ToUpper(string(commit[:12]))+" hello"), "hello", "push to main")
	says(t, s, 0, words("runs --commit "+short), "hello#1", "success")
	says(t, s, 2, words("why "+unknown), "no commit "+unknown)
	says(t, s, 2, words("runs --commit "+unknown), "no commit "+unknown)
	says(t, s, 2, words("runs --commit abc"), "at least 7")
	var rec pipeline.CommitRecord
	if err := s.Get("/commits/"+short, &rec); err != nil || rec.Commit != commit {
		t.Errorf("API: %s, %v; want %s", rec.Commit, err, commit)
	}
}
