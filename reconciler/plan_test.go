package main_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/testkit"
)

// author is a clone of an ops repository in which somebody works.
type author struct {
	*testkit.Repo
	t *testing.T
}

// newAuthor makes one whose default branch holds hello, a composition for the docs
// only, and a task that asks for much memory.
func newAuthor(t *testing.T) *author {
	t.Helper()
	a := &author{testkit.NewRepo(t), t}
	a.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("hello", "echo hello", ""), testkit.Shell("goodbye", "echo bye", "")))
	return a
}

// edit replaces text in a file of the working copy.
func (a *author) edit(file, old, now string) {
	a.t.Helper()
	path := filepath.Join(a.Work, file)
	b, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(b), old) {
		a.t.Fatalf("%s does not hold %q: %v\n%s", file, old, err, b)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(b), old, now)), 0o644); err != nil {
		a.t.Fatal(err)
	}
}

// run runs the command line in the working copy and wants an exit code and texts.
func (a *author) run(exit int, args string, texts ...string) string {
	a.t.Helper()
	// A home of its own, so that no dev of this machine is found.
	out, got := testkit.RunIn(a.t, a.Work, []string{"XDG_STATE_HOME=" + a.t.TempDir()}, "reconciler", words(args)...)
	if got != exit {
		a.t.Errorf("reconciler %s: exit %d, want %d\n%s", args, got, exit, out)
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			a.t.Errorf("reconciler %s: want it to say %q\n%s", args, text, out)
		}
	}
	return out
}

func TestCommandsOutsideOfACloneSayWhatIsMissing(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	alone := t.TempDir()
	if out, exit := testkit.RunShell(t, alone, nil, "mkdir clone && cd clone && git init -q"); exit != 0 {
		t.Fatal(out)
	}
	for _, c := range []struct{ dir, args, want string }{
		{alone, "graph hello", "neither . nor a folder above it is an ops repository"},
		{alone, "exec hello", "is in no Git repository"},
		{alone, "review x --user ana", "this folder is in no Git repository: run this in a clone of the ops repository"},
		{alone, "request run hello --user ana", "this folder is in no Git repository: run this in a clone of the ops repository"},
		{filepath.Join(alone, "clone"), "request run hello --user ana", "this clone has no remote origin: name the one that is the ops repository with --remote"},
		{filepath.Join(alone, "clone"), "review release#1 --user ana", "this clone has no remote origin"},
		{repo.Work, "graph hello nowhere", "nowhere is not a folder"},
	} {
		out, exit := testkit.RunIn(t, c.dir, nil, "reconciler", words(c.args)...)
		if exit != 2 || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit %d, want %q\n%s", c.args, exit, c.want, out)
		}
	}
}

const helloFile = "compositions/hello/hello.cue"

func TestPlanShowsWhatTheWorkingCopyChanges(t *testing.T) {
	real(t)
	a := newAuthor(t)
	a.run(0, "plan --exit-code", "0 changed, 0 added, 0 removed, 2 unchanged; 2 runs will start on merge", "No server was asked")
	a.edit(helloFile, "echo hello", "echo HELLO")
	a.run(0, "plan", "~ hello", `"echo hello" -> "echo HELLO"`, "1 changed, 0 added, 0 removed, 1 unchanged")
	a.run(3, "plan --exit-code", "1 changed")
	a.run(0, "plan --markdown", "**maestro plan: 2 runs will start on merge, 0 errors** · `worktree` onto `main@", "| + start | `hello` | push to main |")
	var p struct {
		Digest string
		Runs   []struct{ Composition string }
	}
	if err := json.Unmarshal([]byte(a.run(0, "plan --json")), &p); err != nil || len(p.Runs) != 2 || p.Digest == "" {
		t.Errorf("JSON: %+v, %v", p, err)
	}
	a.edit(helloFile, "echo HELLO", "echo HELLO\"\n\t\t\tshell: 5 //\"")
	a.run(1, "plan", "hello", "1 broken", "see them with: reconciler vet")
	a.run(2, "plan --base nowhere", `no commit "nowhere"`)
}

func TestPlanFillsWhatATriggerTakesFromTheEvent(t *testing.T) {
	real(t)
	a := newAuthor(t)
	a.edit(helloFile, `"hello": {`, "\"hello\": {\n\tparams: on: string")
	a.edit(helloFile, "{push: {}}", "{push: {}, params: on: event.branch}")
	if out := a.run(0, "plan --json"); !strings.Contains(out, `"on": "main"`) {
		t.Errorf("the run's params are not those of the event:\n%s", out)
	}
}

// TestPlanSeesWhatAFieldThatWaitsRefersTo: the text of a field may stay as it is while
// what it means changes, and the other way round.
func TestPlanSeesWhatAFieldThatWaitsRefersTo(t *testing.T) {
	real(t)
	a := newAuthor(t)
	const file = "compositions/deep/deep.cue"
	a.Push("main", map[string]string{"lib/lib.cue": "package lib\n\ngreeting: \"hi\"\n", file: `package ops

import (
	"github.com/maestro-cd/maestro/plugins/shell"
	"example.com/ops/lib"
)

compositions: deep: {
	params: who: *"x" | string
	_helper: "b \(params.who)"
	let aside = "l \(params.who)"
	tasks: {
		one: shell.#Run & {fields: script: "echo \(lib.greeting) \(params.who)"}
		two: shell.#Run & {fields: script: _helper}
		three: shell.#Run & {fields: script: aside}
		four: shell.#Run & {
			if params.who != "a" {fields: script: "c"}
			if params.who == "a" {fields: script: "d"}
		}
	}
	triggers: [{push: branches: ["main"]}]
}
`})
	a.run(0, "plan --exit-code", "3 unchanged")
	for _, c := range []struct{ name, file, old, now, task string }{
		{"a package of the repository", "lib/lib.cue", `"hi"`, `"ho"`, "one"},
		{"a helper field", file, `"b \(`, `"bb \(`, "two"},
		{"a let", file, `"l \(`, `"ll \(`, "three"},
		{"a condition", file, `!= "a"`, `!= "q"`, "four"},
	} {
		a.edit(c.file, c.old, c.now)
		a.run(3, "plan --exit-code", "~ tasks."+c.task+".fields.script", "what it refers to has changed", "3 tasks unchanged")
		a.edit(c.file, c.now, c.old)
	}
	a.edit("lib/lib.cue", "greeting", "// why\ngreeting")
	a.edit(file, "_helper:", "_helper:    ")
	a.edit(file, "\t\ttwo:", "\n\t\t// a comment\n\t\ttwo:")
	a.Git(a.Work, "mv", file, "compositions/deep/other.cue")
	a.run(0, "plan --exit-code", "3 unchanged")
}

func TestPlanOfABranchLeavesOutWhatItLacks(t *testing.T) {
	real(t)
	a := newAuthor(t)
	a.Git(a.Work, "switch", "--quiet", "-c", "louder")
	a.edit(helloFile, "echo hello", "echo HELLO")
	a.Git(a.Work, "commit", "--quiet", "-am", "louder")
	a.Git(a.Work, "switch", "--quiet", "main")
	a.edit("compositions/goodbye/goodbye.cue", "echo bye", "echo ciao")
	a.Git(a.Work, "commit", "--quiet", "-am", "ciao")
	out := a.run(0, "plan --base main --head louder", "main has 1 commits that this change lacks", "~ hello", "1 changed, 0 added")
	if strings.Contains(out, "ciao") {
		t.Errorf("the change of the base is shown as one of the branch:\n%s", out)
	}
}

func TestPlanKnowsTheAgentsOfAServer(t *testing.T) {
	real(t)
	a := newAuthor(t)
	s := testkit.Serve(t, a.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	a.edit(helloFile, "echo hello", "echo HELLO")
	a.run(0, "plan --server "+s.Web, "1 of 1 agent", "Agents as of")
	a.run(5, "plan --server http://127.0.0.1:1", "no server answers")
}

func TestGraphDrawsWhatWaitsForWhat(t *testing.T) {
	real(t)
	a := newAuthor(t)
	a.edit(helloFile, "triggers:", "tasks: later: shell.#Run & {needs: [\"work\"], fields: script: \"true\", run: \"on-failure\"}\n\ttriggers:")
	a.run(0, "graph hello", "later", "shell/run", "(when one of them fails)")
	a.run(0, "graph hello --format dot", `"work" -> "later" [style=dashed]`)
	a.run(0, "graph hello --format mermaid", "flowchart LR", "-.->")
	a.run(2, "graph hello --format svg", "not text, dot or mermaid")
	a.run(2, "graph nothing", `no composition "nothing"; there are: goodbye, hello`)
}

func TestFmtChangesTheLayoutAndNothingElse(t *testing.T) {
	real(t)
	a := newAuthor(t)
	a.run(0, "fmt")
	a.edit(helloFile, "compositions: \"hello\": {", "compositions:    \"hello\": {\n\n\n")
	a.run(1, "fmt --check", helloFile)
	a.run(0, "plan --exit-code", "0 changed")
	a.run(0, "fmt", helloFile)
	a.run(0, "fmt --check compositions")
	a.edit(helloFile, "hello\": {", "hello\": {{")
	a.run(2, "fmt", helloFile+":")
}

func TestExplainTellsWhatACodeMeans(t *testing.T) {
	real(t)
	a := newAuthor(t)
	a.run(0, "explain", "CODE", "RC0107")
	a.run(0, "explain rc0107", "RC0107: ", "Wrong, in ", "Right, in ")
	a.run(0, "explain RC0107 --json", `"Code": "RC0107"`)
	a.run(2, "explain RC9999", `no code "RC9999"`)
}
