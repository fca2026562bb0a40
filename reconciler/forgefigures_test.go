package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/testkit"
)

// hookedGitHub is a GitHub whose webhooks are all that a server hears between looks that
// are an hour apart.
func hookedGitHub(t *testing.T, files map[string]string) (*testkit.GitHub, *testkit.Server) {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the webhook's secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := testkit.NewGitHub(t)
	g.Person("eve", "write")
	g.Person("ana", "write")
	g.Repo.Push("main", files)
	s := g.Serve(t, "--poll", "1h", "--github-webhook-secret-file", secret)
	g.Hook(s.Intake+"/github", "the webhook's secret", 1)
	s.StartAgent(t, "one", "default", "")
	first := g.Push("ana", "main", "main", map[string]string{"README": "in force"})
	g.AwaitStatus(first, "maestro", "success", "")
	return g, s
}

// webhooks measures from a post of GitHub to the first act of the first task's program.
func webhooks(t *testing.T, tab *table) {
	const pushes = 60
	stamps := t.TempDir()
	g, s := hookedGitHub(t, testkit.Files(testkit.Ops(), testkit.Shell("first", stamping(stamps), "")))
	var took []time.Duration
	for i := range pushes {
		commit := g.Push("ana", "main", "", map[string]string{"README": fmt.Sprint(i)})
		told := time.Now() // the post is the last that a push does
		at := stamp(t, stamps, commit)
		if i > 4 { // the first ones warm the caches
			took = append(took, at.Sub(told))
		}
		s.AwaitRuns(t, commit, 1)
	}
	tab.add("GitHub's webhook -> first process of the first task", spread(took), "p50 80 ms, p95 150 ms")
	s.Stop()
}

// pullRequests measures from the webhook of a pull request to what people see of it,
// where one composition of a thousand changes.
func pullRequests(t *testing.T, tab *table) {
	const compositions, pulls = 1000, 25
	files := map[string]string{}
	for i := range compositions {
		for name, text := range sevenTasks(fmt.Sprintf("c%04d", i), "1m") {
			files[name] = strings.Replace(text, "[{push: {}}]", `[{push: {paths: ["never"]}}]`, 1)
		}
	}
	g, s := hookedGitHub(t, testkit.Files(testkit.Ops(), files))
	var status, comment []time.Duration
	for i := range pulls {
		branch := fmt.Sprint("change-", i)
		head := g.Push("eve", branch, "main", sevenTasks(fmt.Sprintf("c%04d", i), "2m"))
		n := g.Open("eve", branch, "main", "a change")
		told := time.Now()
		testkit.Eventually(t, "the plan in the status", func() (bool, string) {
			st := g.Status(head, "maestro")
			return strings.HasPrefix(st.Description, "plan: "), fmt.Sprintf("%+v", st)
		})
		status = append(status, time.Since(told))
		g.AwaitComment(n, "maestro plan: ")
		comment = append(comment, time.Since(told))
	}
	tab.add("pull request of 1,000 compositions, 1 changed -> status", spread(status), "p95 1 s")
	tab.add("and its comment", spread(comment), "p95 2 s")
	s.Stop()
}

func spread(took []time.Duration) string {
	return fmt.Sprintf("p50 %s, p95 %s", ms(percentile(took, 50)), ms(percentile(took, 95)))
}
