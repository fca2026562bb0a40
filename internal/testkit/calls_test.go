package testkit_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// callers are compositions that call each other, and leave a mark for each task.
func callers(m marks) map[string]string {
	return composition("release", fmt.Sprintf(`package ops

import (
	"github.com/maestro-cd/maestro"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: release: {
	triggers: [{push: {}}]
	params: shards: *["one", "two"] | [...string]
	concurrency: group: "prod-\(event.branch)"
	outputs: url: tasks.deploy.outputs.url
	tasks: {
		build: maestro.#Run & {
			fields: {composition: "build", with: version: event.branch}
			outputs: war: string
		}
		lint: maestro.#Run & {fields: composition: "lint"}
		broken: maestro.#Run & {
			fields: composition: "broken"
			onFailure: "continue"
			onFailureRun: {composition: "tell", with: what: "broken"}
		}
		shard: shell.#Run & {
			needs: ["lint"]
			each: {items: params.shards, max: 3}
			fields: script: "echo \(each.item)-\(event.branch) >> %[1]s"
		}
		elsewhere: shell.#Run & {
			when: event.branch != "main"
			fields: script: "echo elsewhere >> %[1]s"
		}
		deploy: shell.#Run & {
			needs: ["elsewhere", "broken"]
			fields: {
				script: "echo deploy-$WAR >> %[1]s; \"$MAESTRO_AGENTD\" emit output url http://$WAR"
				env: WAR: tasks.build.outputs.war
			}
			outputs: url: string
		}
	}
}

compositions: build: {
	params: version: string
	outputs: war: tasks.compile.outputs.war
	tasks: compile: shell.#Run & {
		fields: {
			script: "echo compile >> %[1]s; %[2]s; \"$MAESTRO_AGENTD\" emit output war $VERSION.war"
			env: VERSION: params.version
		}
		outputs: war: string
	}
}

compositions: lint: tasks: check: shell.#Run & {fields: script: "echo check >> %[1]s"}

compositions: broken: tasks: fail: shell.#Run & {fields: script: "echo fail >> %[1]s; exit 3"}

compositions: tell: {
	params: what: string
	tasks: say: shell.#Run & {
		fields: {
			script: "echo $WHAT-$TASK-$STATE-$KIND >> %[1]s"
			env: {WHAT: params.what, TASK: event.cause.task, STATE: event.cause.state, KIND: event.kind}
		}
	}
}

compositions: after: {
	triggers: [{after: composition: "release", params: from: "\(event.cause.composition)-\(event.cause.number)"}]
	params: from: string
	tasks: say: shell.#Run & {fields: {script: "echo after-$FROM >> %[1]s", env: FROM: params.from}}
}
`, m, m.gate("compile")))
}

// named returns the runs of the commit as "composition#number state", sorted.
func named(s *testkit.Server, commit pipeline.CommitID) ([]string, error) {
	runs, err := s.Runs(commit)
	var out []string
	for _, r := range runs {
		out = append(out, fmt.Sprintf("%s#%d %s", r.Composition, r.Number, r.State))
	}
	slices.Sort(out)
	return out, err
}

// TestCallsRunOnceThoughTheControlPlaneIsKilled forks and joins called runs, with a
// hook, a fan-out, a group and a run that follows. The control plane is killed while
// they run, and everything happens once.
func TestCallsRunOnceThoughTheControlPlaneIsKilled(t *testing.T) {
	real(t)
	m := newMarks(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	s.StartAgent(t, "two", "default", "")
	first := repo.Push("main", testkit.Files(testkit.Ops(), callers(m)))
	s.AwaitTask(t, first, "build", "compile", pipeline.Running)
	s.Kill()
	second := repo.Push("main", map[string]string{"README.md": "more"})
	s.Restart(t)
	waits := s.AwaitTask(t, second, "release", "deploy", pipeline.Pending)
	testkit.Eventually(t, "the second release behind the first", func() (bool, string) {
		r := s.AwaitTask(t, second, "release", "deploy", pipeline.Pending)
		return r.Reason == "behind release#1 in group prod-main", r.Reason
	})
	if waits.Number != 2 {
		t.Errorf("the second release is #%d", waits.Number)
	}
	s.Kill()
	s.Restart(t)
	m.open(t, "compile")
	s.AwaitTask(t, first, "release", "deploy", pipeline.Success)
	s.Kill()
	s.Restart(t)
	for commit, n := range map[pipeline.CommitID]int{first: 1, second: 2} {
		want := []string{
			fmt.Sprintf("after#%d success", n), fmt.Sprintf("broken#%d failure", n), fmt.Sprintf("build#%d success", n),
			fmt.Sprintf("lint#%d success", n), fmt.Sprintf("release#%d success", n), fmt.Sprintf("tell#%d success", n),
		}
		testkit.Eventually(t, "all runs of "+commit.Short(), func() (bool, string) {
			got, err := named(s, commit)
			return slices.Equal(got, want), fmt.Sprint(got, err)
		})
	}
	runs, err := s.Runs(first)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		if r.Composition == "release" {
			if string(r.Outputs) != `{"url":"http://main.war"}` {
				t.Errorf("the release returned %s", r.Outputs)
			}
			want := "build:success lint:success broken:failure shard-1:success shard-2:success shard-3:skipped elsewhere:skipped deploy:success"
			if got := states(&r); got != want {
				t.Errorf("states: %s, want %s", got, want)
			}
		}
	}
	got := m.lines(t)
	slices.Sort(got)
	var want []string
	for i := range 2 {
		want = append(want, "compile", "check", "fail", "one-main", "two-main", "deploy-main.war", "broken-broken-failure-failure", fmt.Sprintf("after-release-%d", i+1))
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("marks: %s\nwant:  %s", strings.Join(got, " "), strings.Join(want, " "))
	}
}
