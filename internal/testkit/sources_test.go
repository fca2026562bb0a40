package testkit_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// builds is a composition that shows what it was started for, and what it checked out.
const builds = `package ops

import (
	"github.com/maestro-cd/maestro/plugins/git"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: build: {
	tasks: {
		checkout: git.#Checkout
		show: shell.#Run & {
			needs: ["checkout"]
			fields: {
				script: "echo \"$WHAT\"; cat file"
				env: WHAT: "\(event.kind) \(event.repo) \(event.ref) \(event.commit) by \(event.author)"
			}
		}
	}
	triggers: [
		{push: {repo: "app", branches: ["main", "feature/*"]}},
		{tag: {repo: "app", tags: ["v*"]}},
	]
}
`

// lints is a composition that another repository starts.
const lints = `package ops

import "github.com/maestro-cd/maestro/plugins/shell"

compositions: lint: {
	tasks: work: shell.#Run & {fields: script: "echo lint"}
	triggers: [{push: {repo: "lib", paths: ["src/**"]}}]
}
`

// appAndLib is an ops repository that both repositories start runs of.
func appAndLib() map[string]string {
	return testkit.Files(testkit.Ops(), composition("build", builds), composition("lint", lints))
}

// declare is the file that declares source repositories by their addresses.
func declare(more string, addresses ...string) map[string]string {
	s := "package ops\n\n"
	for i := 0; i < len(addresses); i += 2 {
		s += fmt.Sprintf("repositories: %s: url: %q\n", addresses[i], addresses[i+1])
	}
	return map[string]string{"repositories/repositories.cue": s + more}
}

// board is what the first page says of source repositories.
type sourceBoard struct {
	Repository struct {
		Problem string
		Sources []struct {
			Name, Problem string
			SeenAt        string `json:"seen_at"`
		}
	}
}

// awaitSource waits until a source repository was looked at, and has a problem that
// holds the words, or none when they are "".
func awaitSource(t *testing.T, s *testkit.Server, name, problem string) {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("source %s with problem %q", name, problem), func() (bool, string) {
		var b sourceBoard
		if err := s.Get("/board", &b); err != nil {
			return false, err.Error()
		}
		for _, r := range b.Repository.Sources {
			if r.Name == name && (problem == "" && r.Problem == "" && r.SeenAt != "" || problem != "" && strings.Contains(r.Problem, problem)) {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v", b)
	})
}

// approved is a composition with a gate.
const approved = `package ops

import (
	"github.com/maestro-cd/maestro"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: release: {
	tasks: {
		confirm: maestro.#Approval & {fields: message: "Release \(event.commit) of \(event.repo)?"}
		inform: maestro.#Run & {needs: ["confirm"], fields: composition: "inform"}
	}
	triggers: [{push: repo: "app"}]
}
compositions: inform: {
	tasks: work: shell.#Run & {fields: {script: "echo \"$WHAT\"", env: WHAT: "\(event.kind) \(event.repo) \(event.commit)"}}
	triggers: []
}
compositions: follow: {
	tasks: work: shell.#Run & {fields: {script: "echo \"$WHAT\"", env: WHAT: "\(event.kind) \(event.repo) \(event.commit)"}}
	triggers: [{after: composition: "release"}]
}
`

func TestGateOfASourceRunIsReviewedByOthersThanItsAuthors(t *testing.T) {
	real(t)
	ops, app := testkit.NewRepo(t), testkit.NewRepo(t)
	app.Push("main", nil)
	s := testkit.Serve(t, ops.Bare, nil, "--allow-source", "/", "--unsigned-reviews")
	s.StartAgent(t, "one", "default", "")
	config := ops.Push("main", testkit.Files(testkit.Ops(), composition("release", approved), declare("", "app", app.Bare)))
	awaitSource(t, s, "app", "")
	head := app.Push("main", nil)
	s.AwaitTask(t, head, "release", "confirm", pipeline.Held)
	app.AwaitStatus(head, "maestro/gate/release/confirm", "pending")
	var gate pipeline.CommitID
	testkit.Eventually(t, "the gate is a commit", func() (bool, string) {
		out, exit := testkit.RunShell(t, ops.Bare, nil, "git rev-parse --verify --quiet refs/maestro/gates/release/1/confirm")
		gate = pipeline.CommitID(strings.TrimSpace(out))
		return exit == 0, out
	})
	file := ops.Git(ops.Bare, "show", string(gate)+":maestro-gate.json")
	for _, want := range []string{string(config), string(head), `"source": "app"`} {
		if !strings.Contains(file, want) {
			t.Errorf("the gate does not say %s:\n%s", want, file)
		}
	}
	ops.Git(ops.Work, "fetch", "--quiet", ops.Bare, "refs/maestro/gates/release/1/confirm")
	review(ops, gate, "ada", "approve") // who wrote the source's commit
	awaitNote(t, ops, "requests", gate, "the review by ada does not count: who wrote")
	review(ops, gate, "ana", "approve")
	for _, r := range s.AwaitRuns(t, head, 3) {
		want := map[pipeline.CompositionName]string{"inform": "call", "follow": "after"}[r.Composition] + fmt.Sprintf(" app %s\n", head)
		if r.State != pipeline.Success || r.Commit != config {
			t.Errorf("%s is %s of %s: %s", r.Composition, r.State, r.Commit, r.Reason)
		} else if r.Composition != "release" && logOf(t, s, &r, "work") != want {
			t.Errorf("%s: %q, want %q", r.Composition, logOf(t, s, &r, "work"), want)
		}
	}
	app.AwaitStatus(head, "maestro/run/follow", "success")
}

// neverSeen checks that a commit is of the past and started nothing.
func neverSeen(t *testing.T, s *testkit.Server, commit pipeline.CommitID) {
	t.Helper()
	if runs, err := s.Runs(commit); err == nil || !strings.Contains(err.Error(), "it was never seen") {
		t.Errorf("%s has %d runs, %v", commit.Short(), len(runs), err)
	}
}

// logOf is the log of a task of a run.
func logOf(t *testing.T, s *testkit.Server, r *pipeline.Run, task pipeline.TaskName) string {
	t.Helper()
	k := r.Task(task)
	if k == nil || k.Attempt == "" {
		t.Fatalf("task %s of %s#%d: %+v", task, r.Composition, r.Number, k)
	}
	return s.Log(t, k.Attempt)
}

func TestPushToASourceRunsWhatTheOpsRepositorySays(t *testing.T) {
	real(t)
	const password = "canary-source-51c0a7"
	ops, app, lib := testkit.NewRepo(t), testkit.NewRepo(t), testkit.NewRepo(t)
	server := testkit.ServeGit(t, lib.Bare, "robot", password)
	old := app.Push("main", map[string]string{"file": "old\n"})
	lib.Push("main", map[string]string{"src/a": "1"})
	s := testkit.Serve(t, ops.Bare, []string{"LIB=robot:" + password}, "--allow-source", filepath.Dir(app.Bare), "--allow-source", server.URL)
	a := s.StartAgent(t, "one", "default", "")
	ops.Push("main", testkit.Ops())
	config := ops.Push("main", testkit.Files(appAndLib(), declare(
		"repositories: lib: credentials: secret: \"lib\"\nsecrets: lib: from: env: \"LIB\"\n", "app", app.Bare, "lib", server.URL,
	)))
	awaitSource(t, s, "app", "")
	awaitSource(t, s, "lib", "")

	// The commit that was pushed is checked out, and is what the run is about.
	head := app.Push("main", map[string]string{"file": "new\n"})
	r := s.AwaitRuns(t, head, 1)[0]
	want := fmt.Sprintf("push app refs/heads/main %s by Ada\nnew\n", head)
	if got := logOf(t, s, &r, "show"); r.State != pipeline.Success || r.Commit != config || got != want {
		t.Errorf("%s of %s (%s), log %q, want %q", r.State, r.Commit, r.Reason, got, want)
	}
	app.AwaitStatus(head, "maestro/run/build", "success")
	app.AwaitStatus(head, "maestro", "success")
	if n := ops.Statuses(config); n["maestro/run/build"].State != "" || n["maestro"].State != "success" {
		t.Errorf("the commit of the ops repository has %v", n)
	}
	for _, c := range []struct{ args, want string }{
		{"why " + string(head) + " build", "push to main of app"},
		{"why " + string(head) + " lint", "watches repository lib"},
		{"why " + string(head), "refs/heads/main of app"},
		{"run build", head.Short() + " of app"},
		{"run build", "configuration " + config.Short()},
		{"why build", "push to main of app of " + head.Short() + " of app"},
		{"runs --commit " + string(head), "build#1"},
	} {
		out, exit := testkit.Run(t, "reconciler", append(strings.Fields(c.args), "--server", s.Web)...)
		if exit != 0 || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit %d, want %q\n%s", c.args, exit, c.want, out)
		}
	}
	neverSeen(t, s, old) // it was there at the first look

	// Branches, tags, paths, and a second repository.
	feature := app.Push("feature/x", map[string]string{"file": "feature\n"})
	if r := s.AwaitRuns(t, feature, 1)[0]; r.State != pipeline.Success || r.Ref != "refs/sources/app/heads/feature/x" {
		t.Errorf("%s on %s: %s", r.State, r.Ref, r.Reason)
	}
	app.Git(app.Work, "tag", "v1")
	app.Git(app.Work, "push", "--quiet", app.Bare, "v1")
	for _, r := range s.AwaitRuns(t, feature, 2) {
		if r.Event.Kind == pipeline.EventTag && !strings.HasPrefix(logOf(t, s, &r, "show"), "tag app refs/tags/v1 "+string(feature)) {
			t.Errorf("of the tag: %q", logOf(t, s, &r, "show"))
		}
	}
	lib.Remote = server.Login()
	docs := lib.Push("main", map[string]string{"README": "x"})
	lib.AwaitStatus(docs, "maestro", "success")
	source := lib.Push("main", map[string]string{"src/a": "2"})
	if r := s.AwaitRuns(t, source, 1)[0]; r.Composition != "lint" || r.State != pipeline.Success {
		t.Errorf("%s is %s", r.Composition, r.State)
	}
	lib.AwaitStatus(source, "maestro/run/lint", "success")
	if runs, err := s.Runs(docs); err != nil || len(runs) != 0 {
		t.Errorf("a push that no path fits has %d runs, %v", len(runs), err)
	}

	// A branch that was forced back, and one that is gone.
	app.Git(app.Work, "reset", "--quiet", "--hard", string(old))
	forced := app.Push("main", map[string]string{"file": "forced\n"})
	if r := s.AwaitRuns(t, forced, 1)[0]; !strings.HasSuffix(logOf(t, s, &r, "show"), "forced\n") {
		t.Errorf("log %q", logOf(t, s, &r, "show"))
	}
	app.Git(app.Work, "push", "--quiet", app.Bare, ":feature/x")
	s.AwaitRuns(t, app.Push("main", map[string]string{"file": "after\n"}), 1)
	s.CheckNoLeak(t, password, a)
}

func TestOnlyTrustedBranchesOfASourceHaveSecrets(t *testing.T) {
	real(t)
	ops, app := testkit.NewRepo(t), testkit.NewRepo(t)
	app.Push("main", map[string]string{"file": "x"})
	s := testkit.Serve(t, ops.Bare, []string{"KEY=canary-key-77a1"}, "--allow-source", app.Bare)
	s.StartAgent(t, "one", "default", "")
	const body = `package ops

import "github.com/maestro-cd/maestro/plugins/shell"

compositions: use: {
	tasks: work: shell.#Run & {fields: {script: "echo ${#KEY}", env: KEY: secret: "key"}}
	triggers: [{push: {repo: "app", branches: ["*"]}}, {tag: repo: "app"}]
}
compositions: plain: {
	tasks: work: shell.#Run & {agent: pool: "default", fields: script: "echo plain"}
	triggers: [{push: {repo: "app", branches: ["*"]}}]
}
policy: pools: default: {compositions: ["*"], branches: ["main"]}
secrets: key: from: env: "KEY"
`
	ops.Push("main", testkit.Files(testkit.Ops(), composition("use", body),
		declare("repositories: app: trusted: [\"release\", \"main\"]\n", "app", app.Bare)))
	awaitSource(t, s, "app", "")
	for _, branch := range []string{"main", "release"} {
		commit := app.Push(branch, nil)
		for _, r := range s.AwaitRuns(t, commit, 2) {
			if r.State != pipeline.Success {
				t.Errorf("%s of %s is %s: %s", r.Composition, branch, r.State, r.Reason)
			}
		}
	}
	other := app.Push("other", nil)
	testkit.Eventually(t, "the verdicts say no", func() (bool, string) {
		out, _ := testkit.Run(t, "reconciler", "why", string(other), "--server", s.Web)
		return strings.Contains(out, "pool default is for branch main"), out
	})
	freed := ops.Push("main", testkit.Files(composition("use", strings.Replace(body, `, branches: ["main"]}`, "}", 1))))
	ops.AwaitStatus(freed, "maestro", "success")
	other = app.Push("other", nil)
	for _, r := range s.AwaitRuns(t, other, 2) {
		if r.Composition == "plain" && r.State != pipeline.Success {
			t.Errorf("without a secret: %s %s", r.State, r.Reason)
		}
		if r.Composition == "use" && (r.State == pipeline.Success || !strings.Contains(r.Task("work").Reason, "secret key is for branch main, not for other of repository app")) {
			t.Errorf("with a secret: %s %s", r.State, r.Task("work").Reason)
		}
	}
}

func TestSourceThatCannotBeReadHoldsUpNothing(t *testing.T) {
	real(t)
	ops, app := testkit.NewRepo(t), testkit.NewRepo(t)
	app.Push("main", map[string]string{"file": "x"})
	server := testkit.ServeGit(t, app.Bare, "robot", "password-of-robot")
	absent := testkit.NewRepo(t)
	elsewhere := filepath.Join(filepath.Dir(absent.Bare), "later.git")
	s := testkit.Serve(t, ops.Bare, []string{"APP=robot:password-of-robot"},
		"--allow-source", server.URL, "--allow-source", filepath.Dir(absent.Bare))
	s.StartAgent(t, "one", "default", "")
	ops.Push("main", testkit.Files(appAndLib(), declare(
		"repositories: app: credentials: secret: \"app\"\nsecrets: app: from: env: \"APP\"\n",
		"app", server.URL, "lib", elsewhere, "far", "/etc/far.git", "near", "https://localhost:1/x.git",
	)))
	awaitSource(t, s, "app", "")
	awaitSource(t, s, "lib", "there is no such folder")
	awaitSource(t, s, "far", "--allow-source")
	awaitSource(t, s, "near", "no public address")
	if out, exit := testkit.RunIn(t, "", []string{"APP=robot:password-of-robot"}, "reconciler", "check", "--repo", ops.Bare, "--server", s.Web,
		"--data", t.TempDir(), "--allow-source", server.URL, "--allow-source", filepath.Dir(absent.Bare)); exit != 1 ||
		strings.Count(out, "source") < 4 || !strings.Contains(out, "--allow-source") {
		t.Errorf("check: exit %d\n%s", exit, out)
	}
	for _, page := range []string{"/", "/problems"} {
		resp, err := http.Get(s.Web + page)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(text), "there is no such folder") {
			t.Errorf("%s does not show the problem (%v)", page, err)
		}
	}
	server.Stop()
	awaitSource(t, s, "app", "connection refused")

	// The ops repository and its runs go on.
	commit := ops.Push("main", good())
	if r := s.AwaitRuns(t, commit, 1)[0]; r.State != pipeline.Success {
		t.Errorf("%s: %s", r.State, r.Reason)
	}
	if got := ops.AwaitStatus(commit, "maestro", "success").Description; !strings.HasSuffix(got, "; cannot read app, far, lib, near") {
		t.Errorf("the status does not say what cannot be read: %s", got)
	}

	// What was pushed meanwhile runs when it is back, and its statuses arrive.
	head := app.Push("main", map[string]string{"file": "meanwhile\n"})
	server.Start()
	r := s.AwaitRuns(t, head, 1)[0]
	awaitSource(t, s, "app", "")
	app.AwaitStatus(head, "maestro", "failure") // the checkout has no login
	if r.State != pipeline.Failure {
		t.Errorf("%s: %s", r.State, r.Reason)
	}
	absent.Git("", "init", "--quiet", "--bare", "-b", "main", elsewhere)
	awaitSource(t, s, "lib", "")
	testkit.Eventually(t, "the status names them no more", func() (bool, string) {
		got := ops.Statuses(commit)["maestro"].Description
		return strings.HasSuffix(got, "; cannot read far, near"), got
	})
	absent.Remote = elsewhere
	if r := s.AwaitRuns(t, absent.Push("main", map[string]string{"src/x": "y"}), 1)[0]; r.State != pipeline.Success {
		t.Errorf("%s: %s", r.State, r.Reason)
	}
}

func TestSourceThatACommitRemovesIsWatchedNoMore(t *testing.T) {
	real(t)
	ops, app, lib := testkit.NewRepo(t), testkit.NewRepo(t), testkit.NewRepo(t)
	app.Push("main", map[string]string{"file": "x"})
	lib.Push("main", map[string]string{"src/a": "1"})
	s := testkit.Serve(t, ops.Bare, nil, "--allow-source", "/")
	s.StartAgent(t, "one", "default", "")
	both := testkit.Files(appAndLib(), declare("", "app", app.Bare, "lib", lib.Bare))
	ops.Push("main", both)
	awaitSource(t, s, "app", "")
	awaitSource(t, s, "lib", "")
	s.AwaitRuns(t, app.Push("main", nil), 1)
	gone := ops.Push("main", testkit.Files(composition("build", ""), declare("", "lib", lib.Bare)))
	ops.AwaitStatus(gone, "maestro", "success")
	testkit.Eventually(t, "app is not listed", func() (bool, string) {
		var b sourceBoard
		err := s.Get("/board", &b)
		return err == nil && len(b.Repository.Sources) == 1, fmt.Sprintf("%+v, %v", b, err)
	})
	between := app.Push("main", nil)
	if r := s.AwaitRuns(t, lib.Push("main", map[string]string{"src/a": "2"}), 1)[0]; r.Composition != "lint" {
		t.Errorf("%s ran", r.Composition)
	}
	ops.Push("main", both)
	awaitSource(t, s, "app", "")
	s.AwaitRuns(t, app.Push("main", nil), 1)
	neverSeen(t, s, between) // nobody watched
}

func TestSourceCommitStartsOneRunThroughKills(t *testing.T) {
	real(t)
	ops, app := testkit.NewRepo(t), testkit.NewRepo(t)
	app.Push("main", map[string]string{"file": "x"})
	s := testkit.Serve(t, ops.Bare, nil, "--allow-source", "/")
	s.StartAgent(t, "one", "default", "")
	ops.Push("main", testkit.Files(appAndLib(), declare("", "app", app.Bare, "lib", app.Bare)))
	awaitSource(t, s, "app", "")
	const pushes = 4
	var commits []pipeline.CommitID
	for i := range pushes {
		commits = append(commits, app.Push("main", map[string]string{"file": fmt.Sprint(i, "\n")}))
		if i%2 == 0 {
			testkit.Eventually(t, "the run is made", func() (bool, string) {
				runs, err := s.Runs(commits[i])
				return len(runs) > 0, fmt.Sprint(err)
			})
		}
		s.Kill()
		s.Restart(t)
		s.AwaitRuns(t, commits[i], 1)
	}
	for i, c := range commits {
		runs := s.AwaitRuns(t, c, 1)
		if len(runs) != 1 || runs[0].Number != i+1 || runs[0].State != pipeline.Success {
			t.Errorf("commit %d has %d runs: %+v", i, len(runs), runs)
		}
		app.AwaitStatus(c, "maestro/run/build", "success")
	}
}

func TestSourceOnGitHubGetsStatusesThere(t *testing.T) {
	real(t)
	g, app := testkit.NewGitHub(t), testkit.NewRepo(t)
	app.Push("main", map[string]string{"file": "x"})
	git := testkit.ServeGit(t, app.Bare, "robot", "password-of-robot")
	if err := os.Symlink(app.Bare, filepath.Join(filepath.Dir(app.Bare), "app.git")); err != nil {
		t.Fatal(err)
	}
	// One host for the API and for Git, as where GitHub is served for one company.
	host := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/octo/") {
			g.ServeHTTP(w, r)
			return
		}
		if _, password, _ := r.BasicAuth(); password == g.Token || strings.Contains(r.Header.Get("Authorization"), g.Token) {
			t.Error("the forge's token was sent for the repository")
		}
		http.StripPrefix("/octo", git).ServeHTTP(w, r)
	}))
	t.Cleanup(host.Close)
	app.Git(app.Bare, "config", "http.receivepack", "true")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("robot:password-of-robot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := g.Serve(t, "--github-api", host.URL+"/api/v3/", "--allow-source", host.URL, "--github-webhook-secret-file", secret, "--poll", "1h")
	hint := func(repository string) {
		t.Helper()
		body := fmt.Sprintf(`{"repository": {"id": 7, "full_name": %q}, "sent": %d}`, repository, time.Now().UnixNano())
		mac := hmac.New(sha256.New, []byte("robot:password-of-robot"))
		mac.Write([]byte(body))
		req, err := http.NewRequest(http.MethodPost, s.Intake+"/github", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-GitHub-Event", "push")
		req.Header.Set("X-GitHub-Delivery", fmt.Sprint(time.Now().UnixNano()))
		req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if want := repository != "octo/other"; err != nil || strings.Contains(string(answer), "true") != want {
			t.Errorf("a push to %s is answered %s (%v)", repository, answer, err)
		}
	}
	a := s.StartAgent(t, "one", "default", "")
	config := g.Repo.Push("main", testkit.Files(testkit.Ops(), composition("lint", lints), declare(
		fmt.Sprintf("repositories: lib: credentials: secret: \"lib\"\nsecrets: lib: from: file: %q\n", secret), "lib", host.URL+"/octo/app.git",
	)))
	hint("octo/ops")
	awaitSource(t, s, "lib", "")
	head := app.Push("main", map[string]string{"src/a": "1"})
	hint("octo/other")
	hint("Octo/app")
	for context, at := range map[string]struct {
		commit pipeline.CommitID
		repo   string
	}{"maestro/run/lint": {head, "app"}, "maestro": {config, "ops"}} {
		if got := g.AwaitStatus(at.commit, context, "success", ""); got.Repo != at.repo {
			t.Errorf("%s was posted to %s, want %s", context, got.Repo, at.repo)
		}
	}
	g.AwaitStatus(head, "maestro", "success", "1 run succeeded")
	if notes := app.Statuses(head); notes != nil {
		t.Errorf("notes were written besides: %v", notes)
	}
	s.CheckNoLeak(t, "password-of-robot", a)
}

func TestGuideToSourcesRuns(t *testing.T) {
	real(t)
	ops, web, assets := testkit.NewRepo(t), testkit.NewRepo(t), testkit.NewRepo(t)
	web.Push("main", map[string]string{"src/a": "1", "Makefile": "test:\n\t@echo tested $$(cat src/a)\n"})
	assets.Push("main", map[string]string{"Makefile": "test:\n\t@echo tested assets\n"})
	s := testkit.Serve(t, ops.Bare, nil, "--allow-source", "/")
	s.StartAgent(t, "one", "default", "")
	files := testkit.Ops()
	for _, m := range blockRE.FindAllStringSubmatch(document(t, "docs/compositions.md"), -1) {
		if m[2] == "compositions/web/web.cue" {
			files[m[2]] = m[3]
		}
	}
	config := ops.Push("main", testkit.Files(files, declare("", "web", web.Bare, "assets", assets.Bare)))
	awaitSource(t, s, "web", "")
	awaitSource(t, s, "assets", "")
	for _, push := range []struct {
		repo   *testkit.Repo
		branch string
		file   string
		want   string
	}{
		{web, "main", "src/a", "tested 2\n"}, {assets, "main", "b", "tested assets\n"}, {web, "feature/x", "src/a", "tested 3\n"},
	} {
		commit := push.repo.Push(push.branch, map[string]string{push.file: strings.TrimSuffix(strings.TrimPrefix(push.want, "tested "), "\n")})
		r := s.AwaitRuns(t, commit, 1)[0]
		if got := logOf(t, s, &r, "test"); got != push.want || r.Commit != config {
			t.Errorf("%s of %s: log %q, want %q", r.State, push.branch, got, push.want)
		}
		push.repo.AwaitStatus(commit, "maestro", "success")
	}
}

func TestSourceThatTakesNoStatusesIsShownAndGetsThemLater(t *testing.T) {
	real(t)
	ops, app := testkit.NewRepo(t), testkit.NewRepo(t)
	app.Push("main", map[string]string{"src/a": "1"})
	server := testkit.ServeGit(t, app.Bare, "robot", "password-of-robot")
	app.Git(app.Bare, "config", "http.receivepack", "false") // as for a token that may only read
	s := testkit.Serve(t, ops.Bare, []string{"LIB=robot:password-of-robot"}, "--allow-source", server.URL)
	s.StartAgent(t, "one", "default", "")
	ops.Push("main", testkit.Files(testkit.Ops(), composition("lint", lints), declare(
		"repositories: lib: credentials: secret: \"lib\"\nsecrets: lib: from: env: \"LIB\"\n", "lib", server.URL,
	)))
	awaitSource(t, s, "lib", "")
	head := app.Push("main", map[string]string{"src/a": "2"})
	if r := s.AwaitRuns(t, head, 1)[0]; r.State != pipeline.Success {
		t.Errorf("%s: %s", r.State, r.Reason)
	}
	awaitSource(t, s, "lib", "its statuses cannot be written: ")
	app.Git(app.Bare, "config", "http.receivepack", "true")
	app.AwaitStatus(head, "maestro/run/lint", "success")
	app.AwaitStatus(head, "maestro", "success")
	awaitSource(t, s, "lib", "")
}
