package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
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

// begin starts the command line against s, to be listened to while it runs.
func begin(t *testing.T, s *testkit.Server, args string) *testkit.Process {
	t.Helper()
	return testkit.StartShell(t, "reconciler "+args, "", []string{"RECONCILER_SERVER=" + s.Web}, "exec "+testkit.Programs(t)+"/reconciler "+args)
}

func hears(t *testing.T, p *testkit.Process, texts ...string) {
	t.Helper()
	testkit.Eventually(t, "the command says so", func() (bool, string) {
		for _, text := range texts {
			if !strings.Contains(p.Said(), text) {
				return false, "not " + text + " in:\n" + p.Said()
			}
		}
		return true, ""
	})
}

func ends(t *testing.T, p *testkit.Process, exit int) {
	t.Helper()
	testkit.Eventually(t, "the command ends", func() (bool, string) { return p.Ended(), p.Said() })
	if got := p.Stop(); got != exit {
		t.Errorf("exit %d, want %d\n%s", got, exit, p.Said())
	}
}

// held is a task that runs until the file that it returns is there.
func held(t *testing.T, before string) (script, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "go")
	return before + "\nwhile [ ! -e " + file + " ]; do sleep 0.05; done; echo bye", file
}

func release(t *testing.T, file string) {
	t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCommandsShowWhatATaskSaysWhileItRuns(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	script, file := held(t, `emit="$MAESTRO_AGENTD emit"
$emit progress 0.42; $emit text copying; $emit waiting "the lock"; $emit link page https://example.com/page`)
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("hello", script, "")))
	s.AwaitTask(t, commit, "hello", "work", pipeline.Running)
	watch := begin(t, s, "watch hello")
	const note = "runs on agent one: 42% done, waits for the lock, copying"
	hears(t, watch, note, "page: https://example.com/page")
	says(t, s, 0, words("why hello"), "is running: 0 of 1 task done; work "+note, "started by push to main of "+commit.Short())
	says(t, s, 0, words("run hello"), note, "links to page: https://example.com/page")
	says(t, s, 0, words("runs"), note)
	testkit.Eventually(t, "the status tells of the task", func() (bool, string) {
		d := repo.Statuses(commit)["maestro/run/hello"].Description
		return strings.Contains(d, "work"), d
	})
	release(t, file)
	ends(t, watch, 0)
	says(t, s, 0, words("why hello"), "hello#1 is success", "started by push to main", "ran ", "on agent one")
	says(t, s, 0, words("why hello work --json"), `"started_by": "push to main"`)
}

func TestFollowersOutliveARestartOfTheServer(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	script, file := held(t, "echo hello")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("hello", script, "")))
	s.AwaitTask(t, commit, "hello", "work", pipeline.Running)
	watch, logs := begin(t, s, "watch hello"), begin(t, s, "logs -f hello")
	hears(t, watch, "running")
	hears(t, logs, "hello\n")
	times := func(n int, text string) {
		t.Helper()
		for _, p := range []*testkit.Process{watch, logs} {
			testkit.Eventually(t, fmt.Sprintf("%q, %d times", text, n), func() (bool, string) {
				return strings.Count(p.Said(), text) == n, p.Said()
			})
		}
	}
	for i, end := range []func(){func() { s.Stop() }, func() { s.Kill() }} {
		end()
		times(i+1, "is lost; trying again")
		s.Restart(t)
		times(i+1, "connected again")
	}
	release(t, file)
	ends(t, watch, 0)
	ends(t, logs, 0)
	if n := strings.Count(logs.Said(), "hello\n"); n != 1 || !strings.Contains(logs.Said(), "bye\n") {
		t.Errorf("the log was printed so:\n%s", logs.Said())
	}
	s.Stop()
	says(t, s, 5, words("watch hello"), "no server answers")
	says(t, s, 5, words("logs -f hello"), "no server answers")
}

func TestLogIsFollowedFromBeforeItsTaskStarts(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("hello", "echo hello", "")))
	testkit.Eventually(t, "a run", func() (bool, string) {
		out, exit := testkit.RunIn(t, "", []string{"RECONCILER_SERVER=" + s.Web}, "reconciler", "run", "hello")
		return exit == 0, out
	})
	says(t, s, 2, words("logs hello"), "no agent was given it")
	logs := begin(t, s, "logs -f hello")
	hears(t, logs, "work of hello#1 is blocked: no agent is enrolled")
	s.StartAgent(t, "one", "default", "")
	hears(t, logs, "hello\n")
	ends(t, logs, 0)
}

func TestWhatBlocksARunIsSaidEverywhere(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	a := s.StartAgent(t, "one", "default", "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("hello", "echo hello", `agent: facts: role: "deploy"`)))
	s.AwaitTask(t, commit, "hello", "work", pipeline.Ready)
	const why = `no agent fits: 1 of 1 lack role`
	watch := begin(t, s, "watch hello")
	hears(t, watch, "◇ blocked", why)
	for _, args := range []string{"run hello", "runs", "why hello"} {
		says(t, s, 0, words(args), "blocked", why)
	}
	testkit.Eventually(t, "the statuses say so", func() (bool, string) {
		st := repo.Statuses(commit)
		return strings.Contains(st["maestro/run/hello"].Description, why) && strings.Contains(st["maestro"].Description, "blocked"), fmt.Sprint(st)
	})
	// A fact that the agent gets ends it, and the same watch sees that.
	if err := os.MkdirAll(filepath.Join(a.Dir, "facts.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.Dir, "facts.d", "role.txt"), []byte("role=deploy\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Kill()
	a.Restart(t)
	ends(t, watch, 0)
}

func TestSilentAgentIsNamed(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	a := s.StartAgent(t, "one", "default", "")
	script, file := held(t, "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("hello", script, "")))
	s.AwaitTask(t, commit, "hello", "work", pipeline.Running)
	watch := begin(t, s, "watch hello")
	a.Kill()
	const why = "on agent one, which is silent since "
	hears(t, watch, why)
	for _, args := range []string{"run hello", "runs", "why hello"} {
		says(t, s, 0, words(args), why, "counts as lost at")
	}
	a.Restart(t)
	release(t, file)
	ends(t, watch, 0)
}

func TestBadReferencesAreClearErrors(t *testing.T) {
	real(t)
	s, _, _ := helloServer(t)
	for args, text := range map[string]string{
		"run hello#":                     "does not name a run",
		"run hello#x":                    "does not name a run",
		"watch HELLO":                    "does not name a run",
		"run helo":                       `there is no composition helo; did you mean "hello"?`,
		"run helo#1":                     `did you mean "hello"?`,
		"why nothing":                    "there is no composition nothing",
		"runs --composition helo":        `did you mean "hello"?`,
		"run hello#7":                    "composition hello has no run 7",
		"logs hello wrok":                `did you mean "work"?`,
		"why hello wrok":                 `did you mean "work"?`,
		"logs hello --try 3":             "has no try 3; it has 1",
		"logs hello --try 0":             "counted from 1",
		"runs --state good":              "good",
		"runs --limit x":                 "see: reconciler runs --help",
		"runs -o yaml":                   "not table, json",
		"runs --lim 3":                   "see: reconciler runs --help",
		"run":                            "see: reconciler run --help",
		"retry hello":                    "see: reconciler --help",
		"runs --server ftp://x":          "is not an address",
		"run 01M8441GEHMXHWKZR3V21V":     "does not name a run",
		"run 01M8441GEHMXHWKZR3V21VRS6K": "there is no run",
	} {
		says(t, s, 2, words(args), text)
	}
	host := strings.TrimPrefix(s.Web, "http://")
	says(t, s, 0, words("runs --server "+host), "hello#1")
	says(t, s, 0, words("run hello#1"), "hello#1")
	says(t, s, 0, words("run hello/1"), "hello#1")
	says(t, s, 5, words("runs --server "+strings.TrimPrefix(s.Intake, "http://")), "is it the right --server?")
}

func TestLogIntoAPipeHasNoColours(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("hello", `printf '\033[31mre\033[1md\033[0m alert\n'`, "")))
	r := s.AwaitRuns(t, commit, 1)[0]
	says(t, s, 0, words("logs hello"), "red alert\n")
	says(t, s, 0, words("logs hello --raw"), "\x1b[31mre\x1b[1md\x1b[0m alert\n")
	var found struct{ Total int }
	if err := s.Get("/attempts/"+string(r.Tasks[0].Attempt)+"/lines?q=red+alert", &found); err != nil || found.Total != 1 {
		t.Errorf("search: %+v, %v; want the line that reads so", found, err)
	}
}

func TestInitKeepsWhatIsThereAndSaysSo(t *testing.T) {
	real(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".gitignore"), []byte("mine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, exit := testkit.RunIn(t, dir, nil, "reconciler", "init")
	kept, err := os.ReadFile(filepath.Join(dir, ".gitignore"))
	if exit != 0 || string(kept) != "mine\n" || err != nil || !strings.Contains(out, ".gitignore (kept") || !strings.Contains(out, "next: reconciler vet") {
		t.Errorf("exit %d, %q, %v\n%s", exit, kept, err, out)
	}
	if out, exit := testkit.RunIn(t, dir, nil, "reconciler", "init"); exit != 2 || !strings.Contains(out, "an ops repository already") {
		t.Errorf("again: exit %d\n%s", exit, out)
	}
	below := filepath.Join(dir, "compositions", "hello")
	if out, exit := testkit.RunIn(t, below, nil, "reconciler", "vet"); exit != 0 || !strings.Contains(out, "1 composition, 1 pool,") || !strings.Contains(out, ": 0 errors, 0 warnings") {
		t.Errorf("vet in a folder below: exit %d\n%s", exit, out)
	}
	if out, _ := testkit.RunIn(t, dir, nil, "reconciler", "vet", "--json"); out != "[]\n" {
		t.Errorf("vet --json of no mistakes: %q", out)
	}
}

func TestCheckLooksAtTheSecretsOfTheLiveConfiguration(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	file := filepath.Join(t.TempDir(), "token")
	repo.Push("main", testkit.Files(testkit.Ops(), map[string]string{"secrets/s.cue": fmt.Sprintf(`package ops

secrets: {
	"by-env": from: env: "MAESTRO_TEST_TOKEN"
	"by-file": from: file: %q
}
`, file)}))
	args := []string{"check", "--repo", repo.Bare, "--data", t.TempDir(), "--server", "http://127.0.0.1:1"}
	out, exit := testkit.Run(t, "reconciler", args...)
	if exit != 1 || !strings.Contains(out, "✗ secret by-file: ") || !strings.Contains(out, "! secret by-env: ") || !strings.Contains(out, "1 problem, 3 warnings") {
		t.Errorf("exit %d\n%s", exit, out)
	}
	if err := os.WriteFile(file, []byte("a long enough value"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, exit = testkit.RunIn(t, "", []string{"MAESTRO_TEST_TOKEN=another long value"}, "reconciler", append(args, "--json")...)
	var found []struct{ What, State, Text string }
	if err := json.Unmarshal([]byte(out), &found); err != nil || exit != 0 {
		t.Fatalf("exit %d, %v\n%s", exit, err, out)
	}
	for _, f := range found {
		if f.What == "secret" && f.State != "ok" || strings.Contains(f.Text, "value") {
			t.Errorf("%+v", f)
		}
	}
}

func TestAgentIsInvitedToARunningDev(t *testing.T) {
	real(t)
	repo, other := testkit.NewRepo(t), testkit.NewRepo(t)
	state := testkit.ShortDir(t)
	env := []string{"XDG_STATE_HOME=" + state}
	dev := func(r *testkit.Repo) *testkit.Process {
		r.Push("main", testkit.Files(testkit.Ops(), map[string]string{"pools/linux/p.cue": "package ops\n\npools: linux: {}\n"}))
		return testkit.StartShell(t, "dev", "", env, "exec "+testkit.Programs(t)+"/reconciler dev --agents 0 --listen 127.0.0.1:0 --intake 127.0.0.1:0 --repo "+r.Bare)
	}
	invite := func(exit int, texts ...string) {
		t.Helper()
		out, got := testkit.RunIn(t, "", env, "reconciler", "agents", "invite", "--pool", "linx")
		for _, text := range texts {
			if got != exit || !strings.Contains(out, text) {
				t.Errorf("exit %d, want %d and %q\n%s", got, exit, text, out)
			}
		}
	}
	invite(5, "no server runs")
	hears(t, dev(repo), "Ctrl-C ends it", "commit evaluated")
	invite(0, "maestro-join", `the live configuration declares no pool linx; did you mean "linux"?`)
	hears(t, dev(other), "Ctrl-C ends it", "commit evaluated") // with a record of its own
	invite(2, "several servers run; say which with --data")
}

func TestDemoSaysWhatBlocksItAndEnds(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	repo.Write(testkit.Files(testkit.Ops(), testkit.Shell("hello", "echo hello", `agent: facts: role: "nobody"`)))
	out, exit := testkit.RunIn(t, "", []string{"TMPDIR=" + testkit.ShortDir(t)}, "reconciler", "demo", "--from", filepath.Join(repo.Work, "compositions"))
	if exit != 6 || !strings.Contains(out, "◇ blocked") || !strings.Contains(out, "error: hello#1 is blocked: ") || !strings.Contains(out, "agents that fit") {
		t.Errorf("exit %d\n%s", exit, out)
	}
}

func TestAgentAtTheWrongDoorIsToldWhereToGo(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	out, exit := testkit.Run(t, "agentd", "--server", s.Web, "--data", testkit.ShortDir(t), "--token", s.Invite(t, "default"))
	if exit != 2 || !strings.Contains(out, "this is the web view") || !strings.Contains(out, "give that as --server") || !strings.Contains(out, s.Intake) {
		t.Errorf("exit %d\n%s", exit, out)
	}
}

func TestARejectedCompositionHasItsName(t *testing.T) {
	real(t)
	s, repo, _ := helloServer(t)
	broken := repo.Push("main", map[string]string{
		"compositions/hello/hello.cue": "package ops\n\ncompositions: hello: tasks: 3\n",
		"compositions/fresh/fresh.cue": "package ops\n\ncompositions: fresh: tasks: 3\n",
	})
	testkit.Eventually(t, "the verdicts", func() (bool, string) {
		out, exit := testkit.RunIn(t, "", []string{"RECONCILER_SERVER=" + s.Web}, "reconciler", "why", string(broken))
		return exit == 0, out
	})
	out := says(t, s, 0, words("why "+string(broken[:12])), "\nhello ", "rejected", "\ncompositions/fresh ")
	if strings.Contains(out, "\ncompositions/hello ") {
		t.Errorf("a composition that is known is named by its folder:\n%s", out)
	}
	says(t, s, 0, words("why "+string(broken[:12])+" hello"), "rejected")
	says(t, s, 2, words("why "+string(broken[:12])+" helo"), `did you mean "hello"?`)
}

func TestAnInterruptedDemoLeavesNothingBehind(t *testing.T) {
	real(t)
	dir := testkit.ShortDir(t)
	demo := testkit.StartShell(t, "demo", "", []string{"TMPDIR=" + dir}, "exec "+testkit.Programs(t)+"/reconciler demo --serve")
	hears(t, demo, "agentd, twice")
	for range 2 { // as a sender does that reaches a program and its group
		if err := demo.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
	}
	ends(t, demo, 130)
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
