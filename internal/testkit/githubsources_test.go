package testkit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// checks is a check of what is proposed to another repository, which lasts until a file
// is there.
const checks = `package ops

import "github.com/maestro-cd/maestro/plugins/shell"

compositions: check: {
	params: number: int
	tasks: test: shell.#Run & {
		fields: {
			script: "echo \"$WHAT\"; until [ -e %s ]; do sleep 0.1; done"
			env: WHAT: "\(event.kind) \(params.number) of \(event.repo) for \(event.target): \(event.pull.title) by \(event.pull.author)"
		}
	}
	concurrency: {group: event.change, policy: "cancel-running"}
	triggers: [{pullRequest: {repo: "app", branches: ["main"], paths: ["src/**"]}, params: number: event.pull.number}]
}
compositions: elsewhere: {
	tasks: test: shell.#Run & {fields: script: "true"}
	triggers: [{pullRequest: repo: "lib"}]
}
`

func TestPullRequestsOfASourceRunUntilTheirNextHead(t *testing.T) {
	real(t)
	g := testkit.NewGitHub(t)
	people(g)
	app, lib := g.Source(), testkit.NewRepo(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(app.Login), 0o600); err != nil {
		t.Fatal(err)
	}
	done := filepath.Join(t.TempDir(), "done")
	g.Repo.Push("main", testkit.Ops())
	// Webhooks are all that makes it look in time.
	s := g.Serve(t, "--allow-source", g.URL, "--allow-source", lib.Bare, "--github-webhook-secret-file", secret, "--poll", "1h")
	g.Hook(s.Intake+"/github", app.Login, 2)
	a := s.StartAgent(t, "one", "default", "")
	config := g.Push("ana", "main", "", testkit.Files(composition("check", fmt.Sprintf(checks, done)), declare(
		fmt.Sprintf("repositories: app: credentials: secret: \"login\"\nsecrets: login: from: file: %q\n", secret), "app", app.Address(), "lib", lib.Bare,
	)))
	awaitSource(t, s, "app", "")
	awaitSource(t, s, "lib", "its pull requests cannot be seen: lib is not at the GitHub")
	testkit.Eventually(t, "its pull requests are looked at", func() (bool, string) {
		return slices.Contains(g.Asked(), "GET /repos/octo/app/pulls"), ""
	})

	check := append([]string{"check", "--repo", g.Address(), "--data", t.TempDir(), "--allow-source", "/", "--allow-source", g.URL}, g.Flags(t)...)
	if out, exit := testkit.Run(t, "reconciler", check...); exit != 1 || !strings.Contains(out, "pull requests of app") || !strings.Contains(out, "cannot be seen: lib") {
		t.Errorf("check: exit %d\n%s", exit, out)
	}

	// It is opened, and its next head takes its place.
	first := app.Push("topic", map[string]string{"src/a": "1"})
	n := app.Open("eve", "topic", "main", false)
	s.AwaitTask(t, first, "check", "test", pipeline.Running)
	g.AwaitStatus(first, "maestro/run/check", "pending", "")
	second := app.Push("topic", map[string]string{"src/a": "2"})
	s.AwaitTask(t, second, "check", "test", pipeline.Running)
	if r := s.AwaitRuns(t, first, 1)[0]; r.State != pipeline.Cancelled || r.Commit != config || r.Ref != "refs/sources/app/heads/topic" {
		t.Errorf("of the older head: %s of %s on %s: %s", r.State, r.Commit, r.Ref, r.Reason)
	}

	// What comes from a fork does not run, and says so; nor does what changes nothing that
	// the trigger names.
	app.Git(app.Work, "checkout", "--quiet", "--detach", app.Git(app.Bare, "rev-parse", "main"))
	fork := app.Commit(map[string]string{"src/evil": "x"})
	app.Open("mallory", "main", "main", true)
	if got := g.AwaitStatus(fork, "maestro", "failure", "comes from a fork"); got.Repo != "app" {
		t.Errorf("it is posted to %s", got.Repo)
	}
	docs := app.Push("docs", map[string]string{"src/evil": "", "README": "more\n"})
	app.Open("eve", "docs", "main", false)
	testkit.Eventually(t, "why it does not run", func() (bool, string) {
		out, _ := testkit.Run(t, "reconciler", "why", string(docs), "check", "--server", s.Web)
		return strings.Contains(out, "no changed path matches src/**"), out
	})

	// A kill starts nothing again, and what is closed starts nothing.
	s.Kill()
	s.Restart(t)
	app.Close(n)
	third := app.Push("topic", map[string]string{"src/a": "3"})
	if err := os.WriteFile(done, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	runs := s.AwaitRuns(t, second, 1)
	const want = "pull_request 1 of app for main: change topic by eve\n"
	if got := logOf(t, s, &runs[0], "test"); len(runs) != 1 || runs[0].State != pipeline.Success || got != want {
		t.Errorf("%d runs, %s, log %q, want %q", len(runs), runs[0].State, got, want)
	}
	g.AwaitStatus(second, "maestro", "success", "1 run succeeded")
	g.AwaitStatus(third, "maestro", "success", "0 runs")
	for _, c := range []pipeline.CommitID{fork, docs, third} {
		if runs, err := s.Runs(c); err != nil || len(runs) != 0 {
			t.Errorf("%s has %d runs, %v", c.Short(), len(runs), err)
		}
	}
	s.CheckNoLeak(t, "password-of-robot", a)
}
