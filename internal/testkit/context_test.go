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

// workflow is a composition with this body, which runs on every push to main.
func workflow(name, body string) map[string]string {
	text := "package ops\n\nimport (\n"
	for _, plugin := range []string{"git", "shell"} {
		if strings.Contains(body, plugin+".#") {
			text += fmt.Sprintf("\t\"github.com/maestro-cd/maestro/plugins/%s\"\n", plugin)
		}
	}
	triggers := "triggers: [{push: {}}]"
	if strings.Contains(body, "triggers:") {
		triggers = ""
	}
	return composition(name, fmt.Sprintf("%s)\n\ncompositions: %q: {\n%s\n%s\n}\n", text, name, body, triggers))
}

// marks is a file outside of the system in which tasks leave lines.
type marks string

func newMarks(t *testing.T) marks { return marks(filepath.Join(t.TempDir(), "marks")) }

// leave is shell that leaves a mark.
func (m marks) leave(text string) string { return fmt.Sprintf("echo %s >> %s", text, m) }

// gate is shell that waits until the gate of that name is opened.
func (m marks) gate(name string) string {
	return fmt.Sprintf("while [ ! -e %s.%s ]; do sleep 0.05; done", m, name)
}

func (m marks) open(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile(string(m)+"."+name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (m marks) lines(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(string(m))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

// states lists the tasks of a run with their states, in the order of the file.
func states(r *pipeline.Run) string {
	var out []string
	for _, k := range r.Tasks {
		out = append(out, fmt.Sprintf("%s:%s", k.Name, k.State))
	}
	return strings.Join(out, " ")
}

// one starts a server with one agent on an ops repository with these files, and
// returns the only run of the push.
func one(t *testing.T, sets ...map[string]string) (*testkit.Server, pipeline.Run) {
	t.Helper()
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	return s, s.AwaitRuns(t, repo.Push("main", testkit.Files(append([]map[string]string{testkit.Ops()}, sets...)...)), 1)[0]
}

func TestPoolDecidesWhoRuns(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "in-a", "a", "")
	s.StartAgent(t, "in-b", "b", "")
	names := agentNames(t, s)
	sets := []map[string]string{testkit.Ops(), {"pools/more.cue": "package ops\n\npools: {a: {}, b: {}}\n"}}
	for i := range 4 {
		sets = append(sets, testkit.Shell(fmt.Sprint("only-b-", i), "true", `agent: pool: "b"`))
	}
	for _, r := range s.AwaitRuns(t, repo.Push("main", testkit.Files(sets...)), 4) {
		if k := r.Task("work"); r.State != pipeline.Success || names[k.Agent] != "in-b" {
			t.Errorf("%s is %s on %s", r.Composition, r.State, names[k.Agent])
		}
	}
}

func TestHigherPriorityGoesFirst(t *testing.T) {
	real(t)
	m := newMarks(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	busy := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("busy", m.gate("go"), "")))
	s.AwaitTask(t, busy, "busy", "work", pipeline.Running)
	sets := []map[string]string{{"compositions/busy": ""}}
	for name, priority := range map[string]int{"low": 10, "high": 90, "middle": 50} {
		sets = append(sets, workflow(name, fmt.Sprintf("priority: %d\ntasks: work: shell.#Run & {fields: script: %q}", priority, m.leave(name))))
	}
	commit := repo.Push("main", testkit.Files(sets...))
	for _, name := range []pipeline.CompositionName{"low", "middle", "high"} {
		s.AwaitTask(t, commit, name, "work", pipeline.Ready)
	}
	m.open(t, "go")
	s.AwaitRuns(t, commit, 3)
	if got := strings.Join(m.lines(t), " "); got != "high middle low" {
		t.Errorf("order is %s", got)
	}
}

func TestWorkspaceStaysWarmForItsComposition(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	script := `ls; echo "$MAESTRO_NUMBER" > left-$MAESTRO_COMPOSITION-$MAESTRO_NUMBER`
	first := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("mine", script, "")))
	s.AwaitRuns(t, first, 1)
	second := repo.Push("main", testkit.Shell("other", script, ""))
	want := map[pipeline.CompositionName]string{"mine": "left-mine-1\n", "other": ""}
	for _, r := range s.AwaitRuns(t, second, 2) {
		if got := s.Log(t, r.Task("work").Attempt); got != want[r.Composition] {
			t.Errorf("%s finds %q, want %q", r.Composition, got, want[r.Composition])
		}
	}
}

func TestPathKeepsItsReaderOnTheSameAgent(t *testing.T) {
	real(t)
	m := newMarks(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "builder", "default", "role=build\n")
	s.StartAgent(t, "deployer", "default", "role=deploy\n")
	names := agentNames(t, s)
	deploy := `agent: facts: role: "deploy"`
	commit := repo.Push("main", testkit.Files(testkit.Ops(), map[string]string{"data.txt": "from the checkout\n"}, workflow("pinned", fmt.Sprintf(`
tasks: {
	checkout: git.#Checkout & {agent: facts: role: "build"}
	one: shell.#Run & {needs: ["checkout"], fields: {script: %q, workdir: "."}, %s}
	two: shell.#Run & {needs: ["one"], fields: {script: "true", workdir: "."}, %s}
	read: shell.#Run & {needs: ["two", "checkout"], fields: script: "cat data.txt"}
}`, m.gate("one"), deploy, deploy))))
	// Its next task is two steps away, so the run lets the builder go to another run.
	s.AwaitTask(t, commit, "pinned", "one", pipeline.Running)
	hog := repo.Push("main", testkit.Files(map[string]string{"compositions/pinned": ""}, testkit.Shell("hog", m.gate("hog"), `agent: facts: role: "build"`)))
	s.AwaitTask(t, hog, "hog", "work", pipeline.Running)
	m.open(t, "one")
	s.AwaitTask(t, commit, "pinned", "read", pipeline.Ready)
	out, exit := testkit.Run(t, "reconciler", "why", "--server", s.Web, "pinned", "read")
	if exit != 0 || !strings.Contains(out, "1 busy, 1 without the files that it reads") {
		t.Errorf("why says %q", out)
	}
	m.open(t, "hog")
	r := s.AwaitRuns(t, commit, 1)[0]
	if k := r.Task("read"); r.State != pipeline.Success || names[k.Agent] != "builder" || names[r.Task("two").Agent] != "deployer" {
		t.Errorf("the run is %s, read ran on %s, two on %s: %s", r.State, names[k.Agent], names[r.Task("two").Agent], r.Reason)
	} else if log := s.Log(t, k.Attempt); log != "from the checkout\n" {
		t.Errorf("it read %q", log)
	}
}

func TestTasksRunAsTheirConditionsSay(t *testing.T) {
	real(t)
	m := newMarks(t)
	flaky := fmt.Sprintf(`%s; [ $(grep -c try %s) -ge 3 ]`, m.leave("try"), m)
	_, r := one(t, workflow("conditions", fmt.Sprintf(`
tasks: {
	flaky: shell.#Run & {fields: script: %q, retries: {max: 3, backoff: "50ms", on: ["failure"]}}
	tolerated: shell.#Run & {needs: ["flaky"], fields: script: "exit 4", onFailure: "continue"}
	dependent: shell.#Run & {needs: ["tolerated"], fields: script: "true"}
	broken: shell.#Run & {needs: ["dependent"], fields: script: "exit 5"}
	never: shell.#Run & {needs: ["broken"], fields: script: "true"}
	alarm: shell.#Run & {needs: ["broken"], fields: script: "true", run: "on-failure"}
	calm: shell.#Run & {needs: ["dependent"], fields: script: "true", run: "on-failure"}
	cleanup: shell.#Run & {needs: ["never", "alarm"], fields: script: "true", run: "always"}
}`, flaky)))
	want := "flaky:success tolerated:failure dependent:success broken:failure never:skipped alarm:success calm:skipped cleanup:success"
	if got := states(&r); got != want {
		t.Errorf("tasks are\n%s, want\n%s", got, want)
	}
	if got := strings.Join(m.lines(t), " "); got != "try try try" {
		t.Errorf("marks are %s", got)
	}
	if r.State != pipeline.Failure || strings.Contains(r.Reason, "tolerated") || !strings.Contains(r.Reason, "broken") {
		t.Errorf("the run is %s: %s", r.State, r.Reason)
	}
}

func TestTaskMayFindThatNothingIsNeeded(t *testing.T) {
	real(t)
	_, r := one(t, workflow("idle", `
tasks: {
	look: shell.#Run & {fields: script: "\"$MAESTRO_AGENTD\" emit not-needed 'the tree is as it was'"}
	build: shell.#Run & {needs: ["look"], fields: script: "exit 1"}
	sweep: shell.#Run & {needs: ["build"], fields: script: "true", run: "always"}
}`))
	if got := states(&r); got != "look:not_needed build:not_needed sweep:success" || r.State != pipeline.NotNeeded {
		t.Errorf("the run is %s: %s", r.State, got)
	}
	if why := r.Task("look").Reason; !strings.Contains(why, "the tree is as it was") {
		t.Errorf("the reason is %q", why)
	}
}

func TestTaskThatCancelsTheRunEndsWholeProcessTrees(t *testing.T) {
	real(t)
	m := newMarks(t)
	// A child, a grandchild in a session of its own that ignores being asked, and
	// one that has let go of its parent.
	tree := fmt.Sprintf(`sleep 1000 & echo $! >> %[1]s
setsid sh -c 'trap "" TERM HUP INT; echo $$ >> %[1]s; while :; do sleep 1; done' &
(sh -c 'echo $$ >> %[1]s; exec sleep 1000' &)
echo $$ >> %[1]s
wait`, m)
	_, r := one(t, workflow("stop", fmt.Sprintf(`
tasks: {
	long: shell.#Run & {fields: script: %q}
	stopper: shell.#Run & {fields: script: "while [ \"$(wc -l < %s)\" != 4 ]; do sleep 0.05; done; \"$MAESTRO_AGENTD\" emit cancel 'seen enough'"}
	after: shell.#Run & {needs: ["long"], fields: script: "true"}
	sweep: shell.#Run & {needs: ["after"], fields: script: "true", run: "always"}
}`, tree, m)))
	if got := states(&r); got != "long:cancelled stopper:cancelled after:cancelled sweep:success" || r.State != pipeline.Cancelled {
		t.Errorf("the run is %s: %s", r.State, got)
	}
	if !strings.Contains(r.Reason, "seen enough") {
		t.Errorf("the reason is %q", r.Reason)
	}
	for _, pid := range m.lines(t) {
		if stat, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(stat), ") Z ") {
			t.Errorf("process %s lives on: %s", pid, stat)
		}
	}
}

func TestFieldsTakeParamsEventAndEarlierOutputs(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	files := testkit.Files(testkit.Ops(), workflow("values", `
params: {who: *"world" | string, times: *2 | int, tag: string}
triggers: [{push: {}, params: tag: "v1"}]
tasks: {
	count: shell.#Run & {
		fields: {
			script: "echo $WHO $TIMES $TAG $BRANCH $COMMIT; \"$MAESTRO_AGENTD\" emit output-json n 7; \"$MAESTRO_AGENTD\" emit output-json list '[\"a\",\"b\"]'"
			env: {WHO: params.who, TIMES: "\(params.times)", TAG: params.tag, BRANCH: event.branch, COMMIT: event.commit}
		}
		outputs: {n: int, list: [...string]}
	}
	use: shell.#Run & {
		fields: {
			script: "echo $N $FIRST"
			env: {N: "\(tasks.count.outputs.n*params.times)", FIRST: tasks.count.outputs.list[0]}
		}
	}
}`))
	commit := repo.Push("main", files)
	r := s.AwaitRuns(t, commit, 1)[0]
	if r.State != pipeline.Success {
		t.Fatalf("the run is %s: %s", r.State, r.Reason)
	}
	if got, want := s.Log(t, r.Task("count").Attempt), fmt.Sprintf("world 2 v1 main %s\n", commit); got != want {
		t.Errorf("the first task says %q, want %q", got, want)
	}
	if got := s.Log(t, r.Task("use").Attempt); got != "14 a\n" {
		t.Errorf("the second task says %q", got)
	}
}

func TestTaskGetsWhatItGaveLastTime(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	program := map[string]string{"plugins/memory/do": "#!/bin/sh\ngrep -o '\"previous\":\\(null\\|{[^}]*}\\)'\n\"$MAESTRO_AGENTD\" emit output-json n \"$MAESTRO_NUMBER\"\n[ \"$MAESTRO_NUMBER\" != 2 ]\n"}
	files := testkit.Files(testkit.Ops(), plugin("memory", `{argv: ["./do"]}`, "n: int"), program, uses("memory"))
	for i, want := range []string{`null`, `{"n":1}`, `{"n":1}`, `{"n":3}`} {
		r := s.AwaitRuns(t, repo.Push("main", files), 1)[0]
		if got := strings.ReplaceAll(strings.TrimSpace(s.Log(t, r.Task("work").Attempt)), " ", ""); got != `"previous":`+want {
			t.Errorf("run %d, which is %s, gets %s, want %s", i+1, r.State, got, want)
		}
		files = nil
	}
}
