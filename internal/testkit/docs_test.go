package testkit_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/sops"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// document reads a file of the tree.
func document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var blockRE = regexp.MustCompile("(?ms)^```(\\w+)(?: (\\S+))?\n(.*?)^```$")

// pluginsOfManual returns the files that docs/plugins.md shows, as it shows them.
func pluginsOfManual(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, m := range blockRE.FindAllStringSubmatch(document(t, "docs/plugins.md"), -1) {
		if strings.HasPrefix(m[2], "plugins/") {
			out[m[2]] = m[3]
		}
	}
	if len(out) < 4 {
		t.Fatalf("the manual shows %d files of plugins", len(out))
	}
	return out
}

func outputs(t *testing.T, r *pipeline.Run, task pipeline.TaskName) map[string]any {
	t.Helper()
	k := r.Task(task)
	if k == nil || k.State != pipeline.Success {
		t.Fatalf("task %s of %s: %+v", task, r.Composition, k)
	}
	var out map[string]any
	if err := json.Unmarshal(k.Outputs, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestShellPluginOfTheManualRunsInTheCommitThatAddsIt(t *testing.T) {
	real(t)
	const secret = "canary-bearer-0d9e8f7a6b"
	var asked atomic.Int32
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+secret {
			t.Errorf("authorization = %q", r.Header.Get("Authorization"))
		}
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(page.Close)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, []string{"ACME_TOKEN=" + secret})
	a := s.StartAgent(t, "one", "default", "")
	repo.Push("main", testkit.Ops())
	commit := repo.Push("main", testkit.Files(pluginsOfManual(t), map[string]string{"secrets/acme.cue": `package ops

secrets: "acme-token": from: env: "ACME_TOKEN"
`}, composition("site", fmt.Sprintf(`package ops

import (
	"example.com/ops/plugins/http"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: site: {
	tasks: {
		smoke: http.#Ping & {
			fields: {
				url:   %q
				wait:  0
				token: secret: "acme-token"
			}
		}
		report: shell.#Run & {
			fields: {
				script: "echo it answered $STATUS"
				env: STATUS: "\(tasks.smoke.outputs.status)"
			}
		}
	}
	triggers: [{push: {}}]
}
`, page.URL))))
	r := s.AwaitRuns(t, commit, 1)[0]
	got := outputs(t, &r, "smoke")
	if got["status"] != 200.0 || len(got) != 2 {
		t.Errorf("outputs are %v", got)
	}
	if links := r.Task("smoke").Links; len(links) != 1 || links[0].URL != page.URL {
		t.Errorf("links are %v", links)
	}
	if log := s.Log(t, r.Task("smoke").Attempt); !strings.Contains(log, "try 2 of 5: status 503") {
		t.Errorf("log is %q", log)
	}
	if log := s.Log(t, r.Task("report").Attempt); log != "it answered 200\n" {
		t.Errorf("log of the next task is %q", log)
	}
	s.CheckNoLeak(t, secret, a)
}

func TestPythonPluginOfTheManualComparesWithTheLastRun(t *testing.T) {
	real(t)
	source, repo := testkit.NewRepo(t), testkit.NewRepo(t)
	work := func(subject string) pipeline.CommitID {
		source.Git(source.Work, "commit", "--quiet", "--allow-empty", "-m", subject)
		source.Git(source.Work, "push", "--quiet", source.Bare, "HEAD:refs/heads/main")
		return pipeline.CommitID(source.Git(source.Work, "rev-parse", "HEAD"))
	}
	work("[ACME-12] begin")
	head := work("mend [ACME-7] and [ACME-12]")
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	files := testkit.Files(testkit.Ops(), pluginsOfManual(t), composition("news", fmt.Sprintf(`package ops

import (
	"example.com/ops/plugins/changelog"
	"github.com/maestro-cd/maestro/plugins/git"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: news: {
	tasks: {
		checkout: git.#Checkout & {fields: url: %q}
		changes: changelog.#Write & {needs: ["checkout"]}
		show: shell.#Run & {
			fields: {
				script: "cat \"$MAESTRO_WORKSPACE/$FILE\""
				env: FILE: tasks.changes.outputs.file
			}
		}
	}
	triggers: [{push: {}}]
}
`, source.Bare)))
	r := s.AwaitRuns(t, repo.Push("main", files), 1)[0]
	want := map[string]any{"file": "src/CHANGES.txt", "commit": string(head), "changes": 2.0, "tickets": []any{"ACME-12", "ACME-7"}}
	if d := cmp.Diff(want, outputs(t, &r, "changes")); d != "" {
		t.Errorf("outputs differ (-want +got):\n%s", d)
	}
	if log := s.Log(t, r.Task("show").Attempt); log != "* mend [ACME-7] and [ACME-12]\n* [ACME-12] begin\n" {
		t.Errorf("the file that was written is %q", log)
	}
	r = s.AwaitRuns(t, repo.Push("main", nil), 1)[0]
	if k := r.Task("changes"); r.State != pipeline.NotNeeded || k.State != pipeline.NotNeeded || !strings.Contains(k.Reason, string(head[:12])) {
		t.Errorf("without news the run is %s, the task %s: %s", r.State, k.State, k.Reason)
	}
	work("[ACME-9] go on")
	r = s.AwaitRuns(t, repo.Push("main", nil), 1)[0]
	if got := outputs(t, &r, "changes"); got["changes"] != 1.0 {
		t.Errorf("after one more commit: %v", got)
	}
}

// manual runs the commands of a document as they are written, in a home of their own.
type manual struct {
	t      *testing.T
	text   string
	home   string
	blocks []string
	env    []string
}

func openReadme(t *testing.T) *manual {
	t.Helper()
	r := openManual(t, "README.md")
	if len(r.blocks) != 4 {
		t.Fatalf("README.md has %d blocks of commands; these tests run 4", len(r.blocks))
	}
	return r
}

func openManual(t *testing.T, name string) *manual {
	t.Helper()
	r := &manual{t: t, text: document(t, name), home: testkit.ShortDir(t)}
	for _, m := range blockRE.FindAllStringSubmatch(r.text, -1) {
		if m[1] == "sh" {
			r.blocks = append(r.blocks, m[3])
		}
	}
	bin := filepath.Join(r.home, "bin")
	caches, exit := testkit.RunShell(t, "", nil, "go env GOCACHE GOMODCACHE")
	dirs := strings.Fields(caches)
	if exit != 0 || len(dirs) != 2 {
		t.Fatalf("go env: %s", caches)
	}
	r.env = []string{
		"HOME=" + r.home, "XDG_STATE_HOME=", "GOCACHE=" + dirs[0], "GOMODCACHE=" + dirs[1], "GOBIN=" + bin,
		"MAKEFLAGS=BIN=" + bin, "PATH=" + bin + string(os.PathListSeparator) + os.Getenv("PATH"),
		"GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com",
		"RECONCILER_LISTEN=127.0.0.1:0", "RECONCILER_INTAKE=127.0.0.1:0", "RECONCILER_POLL=1s",
		"AGENTD_DATA=" + filepath.Join(r.home, "agentd"), // root's is one for all of the machine
	}
	return r
}

// sh runs commands in a folder and returns what they printed.
func (r *manual) sh(dir, script string) string {
	r.t.Helper()
	out, exit := testkit.RunShell(r.t, dir, r.env, script)
	if exit != 0 {
		r.t.Fatalf("exit %d of\n%s\n%s", exit, script, out)
	}
	return out
}

// install puts the programs where the commands find them.
func (r *manual) install() {
	r.t.Helper()
	if err := os.Symlink(testkit.Programs(r.t), filepath.Join(r.home, "bin")); err != nil {
		r.t.Fatal(err)
	}
}

// server waits for the server that keeps its data below the home, in the one folder
// that data matches, and makes it the one that commands ask.
func (r *manual) server(p *testkit.Process, data string) *testkit.Server {
	r.t.Helper()
	s := &testkit.Server{Process: p}
	testkit.Eventually(r.t, "the server's addresses", func() (bool, string) {
		if p.Ended() {
			r.t.Fatalf("the commands ended:\n%s", p.Said())
		}
		files, err := filepath.Glob(filepath.Join(r.home, ".local", "state", "maestro", data, "server.json"))
		if err != nil || len(files) != 1 {
			return false, p.Said()
		}
		s.Data = filepath.Dir(files[0])
		b, err := os.ReadFile(files[0])
		return err == nil && json.Unmarshal(b, s) == nil, p.Said()
	})
	r.env = append(r.env, "RECONCILER_SERVER="+s.Web)
	return s
}

func TestReadmeMakes(t *testing.T) {
	real(t)
	r := openReadme(t)
	var targets []string
	for line := range strings.Lines(r.blocks[0]) {
		targets = append(targets, strings.Fields(line)[1])
	}
	if d := cmp.Diff([]string{"demo", "test"}, targets); d != "" {
		t.Fatalf("targets that README.md names first (-want +got):\n%s", d)
	}
	root := filepath.Join("..", "..")
	if out := r.sh(root, "make demo"); !strings.Contains(out, "maestro/run/hello") {
		t.Errorf("make demo says\n%s", out)
	}
	r.sh(root, "make -n test run") // these do not end, or run this test
}

func TestReadmeMakesARepositoryOfYourOwn(t *testing.T) {
	real(t)
	r := openReadme(t)
	dev := testkit.StartShell(t, "README: your own repository", filepath.Join("..", ".."), r.env, r.blocks[1])
	r.server(dev, "dev/*")
	awaitRun := func(composition string) {
		testkit.Eventually(t, "a run of "+composition, func() (bool, string) {
			out := r.sh("", "reconciler runs -o name --composition "+composition+" || true") // not known before the push is seen
			return strings.HasPrefix(out, composition+"#"), out
		})
		r.sh("", "reconciler watch "+composition)
	}
	awaitRun("hello")
	out := r.sh("", r.blocks[2])
	for _, want := range []string{"hello#1", "✓ success", "hello#1 is success"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	var example string
	for _, m := range blockRE.FindAllStringSubmatch(r.text, -1) {
		if m[1] == "cue" {
			example = m[3]
		}
	}
	work := filepath.Join(r.home, "pipelines")
	for name, text := range map[string]string{"compositions/build/build.cue": example, "Makefile": "test:\n\t@echo all is tested\n"} {
		path := filepath.Join(work, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r.sh(work, "reconciler vet && git add -A && git commit -q -m build && git push -q")
	awaitRun("build")
	if out := r.sh("", "reconciler logs build test"); !strings.Contains(out, "all is tested\n") {
		t.Errorf("log of the example is %q", out)
	}
	for _, command := range []string{"git notes --ref=refs/notes/maestro/status show COMMIT", "agentd facts"} {
		if !strings.Contains(r.text, command) {
			t.Errorf("README.md does not say %q any more", command)
		}
	}
	note := r.sh(filepath.Join(r.home, "pipelines.git"), "git notes --ref=refs/notes/maestro/status show main")
	if !strings.Contains(note, `"maestro/run/build"`) {
		t.Errorf("the note says %s", note)
	}
	if out := r.sh("", "agentd facts"); !strings.Contains(out, "memory.total_mb") {
		t.Errorf("agentd facts prints %s", out)
	}
}

func TestReadmeServes(t *testing.T) {
	real(t)
	r := openReadme(t)
	r.install()
	repo := testkit.NewRepo(t)
	commands := strings.Split(strings.TrimSpace(r.blocks[3]), "\n")
	if len(commands) != 3 {
		t.Fatalf("commands are %q", commands)
	}
	dir := t.TempDir()
	adapt := func(command, old, new string) string {
		if !strings.Contains(command, old) {
			t.Fatalf("no %s in %q", old, command)
		}
		return strings.Replace(command, old, new, 1)
	}
	s := r.server(testkit.StartShell(t, "README: serve", dir, r.env, adapt(commands[0], "/srv/ops.git", repo.Bare)), "reconciler")
	r.sh(dir, commands[1])
	agent := testkit.StartShell(t, "README: agentd", dir, r.env, adapt(commands[2], "http://reconciler:8421", s.Intake))
	testkit.Eventually(t, "an agent is online", func() (bool, string) {
		out := r.sh(dir, "reconciler agents")
		return strings.Contains(out, "online"), out + agent.Said()
	})
	commit := repo.Push("main", testkit.Files(testkit.Ops(), good()))
	if run := s.AwaitRuns(t, commit, 1)[0]; run.State != pipeline.Success {
		t.Errorf("the run is %s: %s", run.State, run.Reason)
	}
	if out := r.sh(dir, "reconciler check --repo "+repo.Bare); !strings.Contains(out, "0 problems, 0 warnings") {
		t.Errorf("check says\n%s", out)
	}
}

// TestGuideIsOneCleanRepository checks all that docs/compositions.md shows, together.
func TestGuideIsOneCleanRepository(t *testing.T) {
	real(t)
	files := []map[string]string{testkit.Ops()}
	n := 0
	for _, m := range blockRE.FindAllStringSubmatch(document(t, "docs/compositions.md"), -1) {
		if m[1] == "sh" {
			continue // TestPostsStartRunsOnce runs it
		}
		if m[1] == "yaml" {
			if _, err := sops.ParseRules([]byte(m[3])); err != nil || m[2] != sops.RulesFile {
				t.Errorf("the block of %s: %v", m[2], err)
			}
			continue
		}
		if m[1] != "cue" || m[2] == "" {
			t.Errorf("a block of %q %q is not checked", m[1], m[2])
			continue
		}
		n++
		files = append(files, map[string]string{m[2]: m[3]})
	}
	if n < 8 {
		t.Fatalf("the guide shows %d files", n)
	}
	dir := t.TempDir()
	for name, text := range testkit.Files(files...) {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bin := testkit.Programs(t)
	if out, exit := testkit.RunShell(t, dir, nil, bin+"/reconciler vet . && "+bin+"/reconciler fmt --check compositions pools policy repositories secrets templates"); exit != 0 || !strings.Contains(out, ": 0 errors, 0 warnings") {
		t.Errorf("exit %d:\n%s", exit, out)
	}
}
