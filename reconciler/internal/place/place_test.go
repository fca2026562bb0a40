package place_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/place"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func linux() pipeline.Requirement {
	return pipeline.Requirement{Facts: []pipeline.Clause{{
		Path: []string{"kernel"},
		Type: pipeline.Type{Kind: pipeline.KindString, Enum: []json.RawMessage{json.RawMessage(`"Linux"`)}, Text: `"Linux"`},
	}}}
}

func agent(id, kernel string) place.Agent {
	return place.Agent{ID: pipeline.AgentID(id), Usable: true, Facts: map[string]any{"kernel": kernel}}
}

func run(id string, tasks ...pipeline.RunTask) *pipeline.Run {
	r := &pipeline.Run{ID: pipeline.RunID(id), Composition: "c", Priority: 50}
	for i, t := range tasks {
		t.Index, t.Spec.Name, t.Spec.Priority = i, t.Name, -1
		r.Tasks = append(r.Tasks, t)
	}
	return r
}

func ready(name string) pipeline.RunTask {
	return pipeline.RunTask{Name: pipeline.TaskName(name), State: pipeline.Ready}
}

func on(name string, s pipeline.State, agent string) pipeline.RunTask {
	return pipeline.RunTask{Name: pipeline.TaskName(name), State: s, Agent: pipeline.AgentID(agent), Epoch: 1}
}

func give(runs []*pipeline.Run, agents ...place.Agent) []string {
	var out []string
	for _, a := range place.New(runs, agents, now, nil).Assign() {
		out = append(out, fmt.Sprintf("%s/%s@%s#%d", a.Run, a.Task, a.Agent, a.Slot))
	}
	return out
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("assignments (-want +got):\n%s", d)
	}
}

func TestParallelTasksOfOneRunShareItsSeat(t *testing.T) {
	t.Parallel()
	expect(t, give([]*pipeline.Run{run("r1", ready("a"), ready("b")), run("r2", ready("a"))}, agent("x", "Linux"), agent("y", "Linux")),
		"r1/a@x#0", "r1/b@x#0", "r2/a@y#0")
}

func TestAgentWorksForOneRunAtATime(t *testing.T) {
	t.Parallel()
	expect(t, give([]*pipeline.Run{run("r1", on("a", pipeline.Running, "x")), run("r2", ready("a"))}, agent("x", "Linux")))
}

func TestHigherPriorityGoesFirst(t *testing.T) {
	t.Parallel()
	urgent := run("r2", ready("a"))
	urgent.Priority = 90
	expect(t, give([]*pipeline.Run{run("r1", ready("a")), urgent}, agent("x", "Linux")), "r2/a@x#0")
}

func TestTaskThatTheSeatCannotTakeOpensAnother(t *testing.T) {
	t.Parallel()
	win := ready("b")
	win.Spec.Requirement = pipeline.Requirement{Facts: []pipeline.Clause{{
		Path: []string{"kernel"}, Type: pipeline.Type{Kind: pipeline.KindString, Patterns: []string{"^Windows"}},
	}}}
	expect(t, give([]*pipeline.Run{run("r1", on("a", pipeline.Running, "x"), win)}, agent("x", "Linux"), agent("y", "Windows")), "r1/b@y#0")
}

func TestSeatIsKeptForATaskThatWaitsOnlyForRunningOnes(t *testing.T) {
	t.Parallel()
	last := ready("c")
	last.State, last.Spec.Needs = pipeline.Pending, []pipeline.TaskName{"b"}
	busy := run("r1", on("a", pipeline.Success, "x"), on("b", pipeline.Running, "y"), last)
	expect(t, give([]*pipeline.Run{busy, run("r2", ready("a"))}, agent("x", "Linux"), agent("y", "Linux")))
	waiting := run("r1", on("a", pipeline.Success, "x"), on("b", pipeline.InDoubt, "y"), last)
	expect(t, give([]*pipeline.Run{waiting, run("r2", ready("a"))}, agent("x", "Linux")), "r2/a@x#1")
}

func TestRunThatGoesOnWaitsForTheAgentThatAnotherHasTaken(t *testing.T) {
	t.Parallel()
	reader := ready("b")
	reader.Spec.Pins = []pipeline.TaskName{"a"}
	older := run("r1", on("a", pipeline.Success, "x"), reader)
	expect(t, give([]*pipeline.Run{older, run("r2", on("a", pipeline.Running, "x"))}, agent("x", "Linux"), agent("y", "Linux")))
}

func TestPathsPinTheirReadersToTheAgent(t *testing.T) {
	t.Parallel()
	reader := ready("b")
	reader.Spec.Pins = []pipeline.TaskName{"a"}
	r := run("r1", on("a", pipeline.Success, "y"), reader)
	expect(t, give([]*pipeline.Run{r}, agent("x", "Linux"), agent("y", "Linux")), "r1/b@y#0")
	gone := agent("y", "Linux")
	gone.Usable = false
	expect(t, give([]*pipeline.Run{r}, agent("x", "Linux"), gone))
}

func TestUnfinishedRunsOfOneCompositionHaveTheirOwnWorkspaces(t *testing.T) {
	t.Parallel()
	held := run("r1", on("a", pipeline.Success, "x"), on("b", pipeline.InDoubt, "y"))
	expect(t, give([]*pipeline.Run{held, run("r2", ready("a"))}, agent("x", "Linux")), "r2/a@x#1")
}

func TestWarmWorkspaceIsPreferredThenTheRested(t *testing.T) {
	t.Parallel()
	x, y, z := agent("x", "Linux"), agent("y", "Linux"), agent("z", "Linux")
	x.Load, y.Load, z.Load = 3, 2, 1
	expect(t, give([]*pipeline.Run{run("r1", ready("a"))}, x, y, z), "r1/a@z#0")
	y.Warm = map[pipeline.CompositionName]bool{"c": true}
	expect(t, give([]*pipeline.Run{run("r1", ready("a"))}, x, y, z), "r1/a@y#0")
}

func TestMissingFactNeverMatches(t *testing.T) {
	t.Parallel()
	req := pipeline.Task{Requirement: linux()}
	a := place.Agent{ID: "x", Facts: map[string]any{}}
	if len(place.Excluded(&a, &req)) == 0 {
		t.Error("an agent without the fact met the requirement")
	}
	a.Facts = map[string]any{"kernel": map[string]any{"name": "Linux"}}
	if len(place.Excluded(&a, &req)) == 0 {
		t.Error("a fact of another shape met the requirement")
	}
}

func TestUntrustedAgentsTakeOnlyWhatNamesTheirPool(t *testing.T) {
	t.Parallel()
	a := place.Agent{ID: "x", Pool: "forks", Untrusted: true}
	if len(place.Excluded(&a, &pipeline.Task{})) == 0 {
		t.Error("an untrusted agent took a task of no pool")
	}
	if why := place.Excluded(&a, &pipeline.Task{Requirement: pipeline.Requirement{Pool: "forks"}}); len(why) != 0 {
		t.Errorf("an agent of the pool was excluded: %v", why)
	}
	told := pipeline.Task{Requirement: pipeline.Requirement{Pool: "forks"}, Secrets: []pipeline.SecretName{"token"}}
	if why := place.Excluded(&a, &told); len(why) != 1 || why[0] != "a trusted agent" {
		t.Errorf("an untrusted agent would get a secret: excluded by %v", why)
	}
	a.Untrusted = false
	if why := place.Excluded(&a, &told); len(why) != 0 {
		t.Errorf("an agent of the pool was excluded: %v", why)
	}
}

func TestPluginWithoutAProgramForTheAgentExcludesIt(t *testing.T) {
	t.Parallel()
	a := place.Agent{ID: "x", Facts: map[string]any{"kernel": "Linux", "architecture": "amd64"}}
	k := pipeline.Task{Plugin: "p", Programs: []pipeline.Program{{OS: "windows"}, {OS: "linux", Arch: "arm64"}}}
	if why := place.Excluded(&a, &k); len(why) != 1 || !strings.Contains(why[0], "windows, linux/arm64") {
		t.Errorf("excluded by %v", why)
	}
	k.Programs = append(k.Programs, pipeline.Program{OS: "linux"})
	if why := place.Excluded(&a, &k); len(why) != 0 {
		t.Errorf("excluded by %v", why)
	}
}

func TestAgentThatDeclinedIsPassedOver(t *testing.T) {
	t.Parallel()
	runs := []*pipeline.Run{run("r1", ready("a"))}
	refused := func(_ pipeline.RunID, _ pipeline.TaskName, a pipeline.AgentID) string {
		if a == "x" {
			return "x: no disk"
		}
		return ""
	}
	both := []place.Agent{agent("x", "Linux"), agent("y", "Linux")}
	if got := place.New(runs, both, now, refused).Assign(); len(got) != 1 || got[0].Agent != "y" {
		t.Errorf("assigned %v", got)
	}
	only := place.New(runs, both[:1], now, refused)
	if got := only.Assign(); len(got) != 0 {
		t.Errorf("assigned %v", got)
	}
	if w := only.Why(runs[0], &runs[0].Tasks[0]); !strings.Contains(w.Sentence, "x: no disk") {
		t.Errorf("why = %q", w.Sentence)
	}
}

func TestWaitingTaskSaysWhy(t *testing.T) {
	t.Parallel()
	need := ready("a")
	need.Spec.Requirement = linux()
	gone := func(id string) place.Agent {
		a := agent(id, "Linux")
		a.Usable = false
		return a
	}
	later := ready("a")
	later.NotBefore, later.Reason = now.Add(9*time.Second), "failure: exit 1; try 2 of 3 in 10s"
	for _, tc := range []struct {
		name    string
		runs    []*pipeline.Run
		agents  []place.Agent
		blocked bool
		want    string
	}{
		{"no agents", []*pipeline.Run{run("r1", need)}, nil, true, "no agent is enrolled"},
		{"none fits", []*pipeline.Run{run("r1", need)}, []place.Agent{agent("x", "Windows")}, true, `no agent fits: 1 of 1 lack kernel: "Linux"`},
		{"busy", []*pipeline.Run{run("r1", need), run("r0", on("a", pipeline.Running, "x"))}, []place.Agent{agent("x", "Linux")}, false, "no free agent with kernel: \"Linux\": 1 busy; first in line"},
		{"most first", []*pipeline.Run{run("r1", need), run("r0", on("a", pipeline.Running, "x"))}, []place.Agent{agent("x", "Linux"), gone("y"), gone("z")}, false, "2 not connected, 1 busy; first in line"},
		{"as many of each", []*pipeline.Run{run("r1", need), run("r0", on("a", pipeline.Running, "x"))}, []place.Agent{gone("w"), agent("x", "Linux")}, false, "1 busy, 1 not connected; first in line"},
		{"retry", []*pipeline.Run{run("r1", later)}, []place.Agent{agent("x", "Linux")}, false, "try 2 of 3 in 10s (in 9s)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := place.New(tc.runs, tc.agents, now, nil).Why(tc.runs[0], &tc.runs[0].Tasks[0])
			if w.Blocked != tc.blocked || !strings.Contains(w.Sentence, tc.want) {
				t.Errorf("why = %v %q, want %v %q", w.Blocked, w.Sentence, tc.blocked, tc.want)
			}
		})
	}
}

// TestAssignmentsAreSoundAndComplete draws boards at random: no agent gets two
// runs, nothing goes to an agent that must not have it, and no ready task is left
// while a free agent could take it.
func TestAssignmentsAreSoundAndComplete(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var agents []place.Agent
		for i := range rapid.IntRange(0, 5).Draw(t, "agents") {
			a := agent(fmt.Sprintf("x%d", i), rapid.SampledFrom([]string{"Linux", "Windows"}).Draw(t, "kernel"))
			a.Usable = rapid.IntRange(0, 4).Draw(t, "usable") > 0
			agents = append(agents, a)
		}
		var runs []*pipeline.Run
		owner := map[pipeline.AgentID]pipeline.RunID{}
		for i := range rapid.IntRange(1, 6).Draw(t, "runs") {
			id := fmt.Sprintf("r%d", i)
			var tasks []pipeline.RunTask
			for j := range rapid.IntRange(1, 3).Draw(t, "tasks") {
				k := ready(fmt.Sprintf("t%d", j))
				if rapid.Bool().Draw(t, "needs linux") {
					k.Spec.Requirement = linux()
				}
				if len(agents) > 0 && rapid.IntRange(0, 3).Draw(t, "running") == 0 {
					a := rapid.SampledFrom(agents).Draw(t, "on").ID
					if o, taken := owner[a]; !taken || o == pipeline.RunID(id) {
						owner[a] = pipeline.RunID(id)
						k = on(string(k.Name), pipeline.Running, string(a))
					}
				}
				tasks = append(tasks, k)
			}
			runs = append(runs, run(id, tasks...))
		}
		check(t, runs, agents, owner)
	})
}

func check(t *rapid.T, runs []*pipeline.Run, agents []place.Agent, owner map[pipeline.AgentID]pipeline.RunID) {
	given := map[string]bool{}
	byID := map[pipeline.AgentID]place.Agent{}
	for _, a := range agents {
		byID[a.ID] = a
	}
	tasks := map[string]*pipeline.RunTask{}
	for _, r := range runs {
		for i := range r.Tasks {
			tasks[string(r.ID)+"/"+string(r.Tasks[i].Name)] = &r.Tasks[i]
		}
	}
	for _, g := range place.New(runs, agents, now, nil).Assign() {
		key := string(g.Run) + "/" + string(g.Task)
		a := byID[g.Agent]
		if given[key] || tasks[key].State != pipeline.Ready {
			t.Fatalf("%s was given out twice or is not ready", key)
		}
		given[key] = true
		if !a.Usable || len(place.Excluded(&a, &tasks[key].Spec)) > 0 {
			t.Fatalf("%s went to %s, which must not have it", key, a.ID)
		}
		if o, taken := owner[g.Agent]; taken && o != g.Run {
			t.Fatalf("agent %s has runs %s and %s", g.Agent, o, g.Run)
		}
		owner[g.Agent] = g.Run
	}
	for key, k := range tasks {
		if k.State != pipeline.Ready || given[key] {
			continue
		}
		for _, a := range agents {
			o, taken := owner[a.ID]
			mine := taken && strings.HasPrefix(key, string(o)+"/")
			if a.Usable && (!taken || mine) && len(place.Excluded(&a, &k.Spec)) == 0 {
				t.Fatalf("%s waits although %s could take it", key, a.ID)
			}
		}
	}
}

func BenchmarkThousandTasksOnThousandAgents(b *testing.B) {
	var runs []*pipeline.Run
	req := linux()
	for i := range 1000 {
		r := run(fmt.Sprintf("r%04d", i), ready("a"))
		r.Tasks[0].Spec.Requirement = req
		runs = append(runs, r)
	}
	var agents []place.Agent
	for i := range 1000 {
		agents = append(agents, agent(fmt.Sprintf("x%04d", i), "Linux"))
	}
	for b.Loop() {
		if n := len(place.New(runs, agents, now, nil).Assign()); n != 1000 {
			b.Fatalf("assigned %d", n)
		}
	}
}

// refusing tells that a task is declined by an agent, or by nobody in particular.
func refusing(run, task, agent string) place.Refused {
	return func(r pipeline.RunID, t pipeline.TaskName, a pipeline.AgentID) string {
		if string(r) == run && string(t) == task && string(a) == agent {
			return "no room"
		}
		return ""
	}
}

func TestRunWhoseNextTaskIsDeclinedHoldsNoSeatForIt(t *testing.T) {
	t.Parallel()
	runs := []*pipeline.Run{run("r1", on("a", pipeline.Success, "x"), ready("b")), run("r2", ready("a"))}
	for _, by := range []string{"x", ""} {
		got := place.New(runs, []place.Agent{agent("x", "Linux")}, now, refusing("r1", "b", by)).Assign()
		if len(got) != 1 || got[0].Run != "r2" {
			t.Errorf("declined by %q: assignments = %v, want r2 on x", by, got)
		}
	}
}

func TestTaskThatNobodyIsAskedToTakeSaysWhy(t *testing.T) {
	t.Parallel()
	r := run("r1", ready("a"))
	b := place.New([]*pipeline.Run{r}, []place.Agent{agent("x", "Linux")}, now, refusing("r1", "a", ""))
	if w := b.Why(r, &r.Tasks[0]); w.Blocked || w.Sentence != "no room" {
		t.Errorf("why = %+v", w)
	}
}

func TestAgentIsClosedToARunByWhereItsCodeIsFrom(t *testing.T) {
	t.Parallel()
	ours, theirs := run("r1", ready("a")), run("r2", ready("a"))
	theirs.Event = pipeline.Event{Repo: "app", Ref: "refs/heads/feature"}
	x, y := agent("x", "Linux"), agent("y", "Linux")
	x.Closed = func(r *pipeline.Run) bool { return r.Event.Repo != "" }
	y.Closed = x.Closed
	expect(t, give([]*pipeline.Run{ours, theirs}, x, y), "r1/a@x#0")
}
