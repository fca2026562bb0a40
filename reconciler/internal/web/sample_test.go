package web_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/web"
)

// epoch is the moment at which the sample is looked at.
var epoch = time.Date(2026, 3, 14, 10, 30, 0, 0, time.UTC)

const (
	shaLive = pipeline.CommitID("9f3c1e2b7d40a6c85e1f2a3b4c5d6e7f80912a3b")
	shaBad  = pipeline.CommitID("c0ffee11223344556677889900aabbccddeeff00")
)

func ago(d time.Duration) time.Time { return epoch.Add(-d) }

func runIDOf(n int) pipeline.RunID { return pipeline.RunID(fmt.Sprintf("01JRUN%020d", n)) }

func attemptID(n int) pipeline.AttemptID {
	return pipeline.AttemptID(fmt.Sprintf("01JATT%020d", n))
}

// sample is a small installation in which every state occurs.
func sample() *fakeSource {
	f := &fakeSource{logs: map[pipeline.AttemptID]*fakeLog{}}
	f.live = []pipeline.Composition{acceptance(), hello()}
	f.pools = []pipeline.Pool{{Name: "linux", Pos: pipeline.Position{File: "ops.cue", Line: 8, Column: 2}}, {Name: "windows"}}
	f.plugins = samplePlugins()
	f.icons = map[pipeline.PluginName]fakeIcon{"git": {`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20"><rect x="3" y="3" width="14" height="14" rx="3" fill="#de4c36" transform="rotate(45 10 10)"/></svg>`, "image/svg+xml"}}
	f.agents = sampleAgents()
	f.runs = sampleRuns()
	f.attempts = attemptsOf(f.runs[0], 100)
	f.attempts = append(f.attempts, attemptsOf(f.runs[1], 200)...)
	f.commits = sampleCommits()
	f.proposals = sampleProposals()
	f.verdicts = []pipeline.Verdict{
		{Commit: shaLive, Ref: "refs/heads/main", Composition: "acceptance", Kind: pipeline.EventPush, Outcome: pipeline.VerdictRun, Sentence: "the push to main changed app/pom.xml, which its trigger names", Run: runIDOf(128)},
		{Commit: shaLive, Ref: "refs/heads/main", Composition: "hello", Kind: pipeline.EventPush, Outcome: pipeline.VerdictSkipped, Sentence: "no changed path matches compositions/hello/**"},
		{Commit: shaLive, Ref: "refs/heads/main", Composition: "release", Kind: pipeline.EventPush, Outcome: pipeline.VerdictRejected, Sentence: "compositions/release/release.cue has an error"},
		{Commit: shaLive, Ref: "refs/heads/main", Composition: "release", Kind: pipeline.EventCron, Outcome: pipeline.VerdictSkipped, Sentence: "suspended"},
	}
	f.board = sampleBoard(f)
	for _, a := range f.attempts {
		if a.Task != "load" && a.Task != "docs" {
			f.logs[a.ID] = &fakeLog{text: []byte(buildLog(120)), sealed: a.State != pipeline.AttemptRunning}
		}
	}
	for i := range 40 {
		f.changes = append(f.changes, pipeline.Change{Seq: pipeline.Seq(i + 1), At: ago(time.Hour), Kind: pipeline.ChangeTask, Run: runIDOf(128), Task: "checkout", State: pipeline.Running})
	}
	return f
}

func buildLog(n int) string {
	s := "\x1b[1m$ mvn -q verify\x1b[0m\n\x1b[36mINFO\x1b[0m  resolving 214 dependencies\n"
	for i := range n {
		s += fmt.Sprintf("\x1b[90m10:41:%02d\x1b[0m  \x1b[32mok\x1b[0m    case %07d shard=%d\n", i%60, i*37, i%9)
	}
	return s + "\x1b[33mWARN\x1b[0m  3 tests were slow\n\x1b[31;1mERROR\x1b[0m AssertionError: tenant 12 expected 200 got 503\n  see \x1b]8;;https://ci.example.org/report/12\x1b\\the report\x1b]8;;\x1b\\\n"
}

func task(name pipeline.TaskName, uses string, needs ...pipeline.TaskName) pipeline.Task {
	return pipeline.Task{
		Name: name, Uses: uses, Plugin: "shell", Needs: needs, Priority: -1, When: pipeline.OnSuccess,
		Pos: pipeline.Position{File: "compositions/acceptance/acceptance.cue", Line: 12 + len(name), Column: 3}, Outputs: pipeline.Type{Kind: pipeline.KindStruct},
	}
}

func acceptance() pipeline.Composition {
	c := pipeline.Composition{
		Name: "acceptance", Description: "Build the application, deploy it to a fresh machine and try it.",
		Pos: pipeline.Position{File: "compositions/acceptance/acceptance.cue", Line: 5, Column: 1}, Unit: "compositions/acceptance", Priority: 50,
		Params:   []pipeline.Field{{Name: "shards", Type: pipeline.Type{Kind: pipeline.KindInt, Text: "int & >0 & <10"}, Default: json.RawMessage("9"), Doc: "how many parts the test is cut into"}},
		Triggers: []pipeline.Trigger{{Push: &pipeline.PushTrigger{Branches: []string{"main"}, Paths: []string{"app/**"}}}},
		Tasks: []pipeline.Task{
			task("checkout", "git/checkout"), task("lint", "shell/run", "checkout"), task("build", "shell/run", "checkout"),
			task("unit", "shell/run", "build"), task("start-vm", "fog/provision"), task("deploy-war", "tomcat/deploy", "build", "start-vm"),
			task("acceptance", "shell/run", "checkout", "deploy-war"), task("load", "shell/run", "deploy-war"), task("confirm-deploy", "shell/run", "acceptance"),
			task("windows-smoke", "shell/run", "deploy-war"), task("migrate", "shell/run", "deploy-war"), task("docs", "shell/run", "checkout"),
			task("publish-docs", "shell/run", "docs"), task("notify", "shell/run", "confirm-deploy", "load", "lint"), task("destroy-vm", "fog/deprovision", "notify", "windows-smoke", "migrate"),
		}, Digest: "sha256:77",
	}
	c.Tasks[5].Bindings = []pipeline.Binding{{Field: "war", From: "build", Output: "war", Key: "war"}, {Field: "host", From: "start-vm", Output: "vm_ip", Key: "vm_ip"}}
	c.Tasks[5].Fields = json.RawMessage(`{"port":8080,"script":"set -e\ncp app.war /srv\nsystemctl restart tomcat"}`)
	c.Tasks[9].Requirement = pipeline.Requirement{Pool: "windows", Facts: []pipeline.Clause{{Path: []string{"os", "name"}, Type: pipeline.Type{Kind: pipeline.KindString, Text: `"windows"`}}}}
	return c
}

func hello() pipeline.Composition {
	return pipeline.Composition{
		Name: "hello", Pos: pipeline.Position{File: "compositions/hello/hello.cue", Line: 3, Column: 1},
		Tasks: []pipeline.Task{task("greet", "shell/run")},
	}
}

// sampleRuns returns runs newest first; the first one has every state of a task.
func sampleRuns() []pipeline.Run {
	c := acceptance()
	one, two := 1, 2
	run := pipeline.Run{
		ID: runIDOf(128), Number: 128, Key: "push:128", Composition: "acceptance", Digest: c.Digest, Commit: shaLive, Ref: "refs/heads/main",
		Event: pipeline.Event{Kind: "push", Ref: "refs/heads/main", Head: shaLive, Author: "Ana Lima", Subject: "use tomcat 10"}, Params: json.RawMessage(`{"shards":9}`),
		Priority: 50, State: pipeline.Running, CreatedAt: ago(6*time.Minute + 20*time.Second), StartedAt: ago(6*time.Minute + 12*time.Second), Version: 31,
	}
	set := map[pipeline.TaskName]pipeline.RunTask{
		"checkout":       {State: pipeline.Success, Agent: "a-3", ReadyAt: ago(380 * time.Second), StartedAt: ago(372 * time.Second), FinishedAt: ago(361 * time.Second), Outputs: json.RawMessage(`{"commit":"9f3c1e2b7d40","dir":"/w/src"}`)},
		"lint":           {State: pipeline.Failure, Reason: "exit 1: 3 problems in 2 files", Agent: "a-1", Exit: &one, Epoch: 2, Failures: 1, ReadyAt: ago(361 * time.Second), StartedAt: ago(250 * time.Second), FinishedAt: ago(209 * time.Second)},
		"build":          {State: pipeline.Success, Agent: "a-3", ReadyAt: ago(361 * time.Second), StartedAt: ago(358 * time.Second), FinishedAt: ago(290 * time.Second), Outputs: json.RawMessage(`{"version":"10.2.7","war":"/w/target/app.war"}`)},
		"unit":           {State: pipeline.Timeout, Reason: "stopped at its timeout of 1m, set in acceptance.cue:31:3", Agent: "a-3", ReadyAt: ago(290 * time.Second), StartedAt: ago(288 * time.Second), FinishedAt: ago(228 * time.Second)},
		"start-vm":       {State: pipeline.Success, Agent: "a-7", ReadyAt: ago(380 * time.Second), StartedAt: ago(376 * time.Second), FinishedAt: ago(300 * time.Second), Outputs: json.RawMessage(`{"vm_id":"i-0a1b","vm_ip":"10.1.4.12"}`), Links: []pipeline.Link{{Name: "console", URL: "https://cloud.example.org/vm/i-0a1b"}, {Name: "evil", URL: "javascript:alert(1)"}}},
		"deploy-war":     {State: pipeline.Success, Agent: "a-3", ReadyAt: ago(290 * time.Second), StartedAt: ago(288 * time.Second), FinishedAt: ago(279 * time.Second), Outputs: json.RawMessage(`{"url":"http://10.1.4.12:8080"}`)},
		"acceptance":     {State: pipeline.Running, Agent: "a-7", ReadyAt: ago(279 * time.Second), StartedAt: ago(214 * time.Second), Epoch: 1},
		"load":           {State: pipeline.Offered, Agent: "a-3", ReadyAt: ago(279 * time.Second), Epoch: 1},
		"confirm-deploy": {State: pipeline.Pending},
		"windows-smoke":  {State: pipeline.Ready, ReadyAt: ago(279 * time.Second)},
		"migrate":        {State: pipeline.InDoubt, Agent: "a-9", ReadyAt: ago(279 * time.Second), StartedAt: ago(270 * time.Second), Epoch: 1, Reason: "agent vm-9 was lost while it ran, and it may be started only once; a late result or “/maestro resolve migrate success|failure|rerun” decides"},
		"docs":           {State: pipeline.NotNeeded, Reason: "no page has changed", Agent: "a-1", ReadyAt: ago(361 * time.Second), StartedAt: ago(360 * time.Second), FinishedAt: ago(359 * time.Second)},
		"publish-docs":   {State: pipeline.Cancelled, Reason: "docs was not needed", FinishedAt: ago(359 * time.Second)},
		"notify":         {State: pipeline.Skipped, Reason: "lint did not succeed", FinishedAt: ago(209 * time.Second)},
		"destroy-vm":     {State: pipeline.Ready, ReadyAt: ago(100 * time.Second), Exit: &two},
	}
	for i, t := range c.Tasks {
		rt := set[t.Name]
		rt.Name, rt.Index, rt.Spec = t.Name, i, t
		run.Tasks = append(run.Tasks, rt)
	}
	runs := []pipeline.Run{run}
	for n := 127; n > 96; n-- {
		runs = append(runs, finished(c, n))
	}
	h := hello()
	last := pipeline.Run{
		ID: runIDOf(57), Number: 57, Composition: "hello", Commit: shaLive, Ref: "refs/heads/main", State: pipeline.Pending, CreatedAt: ago(20 * time.Second),
		Event: pipeline.Event{Kind: "manual", Author: "Ana Lima"}, Tasks: []pipeline.RunTask{{Name: "greet", Spec: h.Tasks[0], State: pipeline.Pending}},
	}
	return append(runs, last)
}

// finished is an older run: mostly good, every ninth bad.
func finished(c pipeline.Composition, n int) pipeline.Run {
	start := ago(time.Duration(128-n) * 3 * time.Hour)
	run := pipeline.Run{
		ID: runIDOf(n), Number: n, Composition: c.Name, Commit: shaLive, Ref: "refs/heads/main", State: pipeline.Success, Priority: 50,
		Event: pipeline.Event{Kind: "push", Ref: "refs/heads/main", Author: "Ben Okri", Subject: fmt.Sprintf("raise heap to %dg", n%7+1)}, CreatedAt: start, StartedAt: start.Add(2 * time.Second),
	}
	run.FinishedAt = run.StartedAt.Add(time.Duration(240+n*37%170) * time.Second)
	for i, t := range c.Tasks {
		rt := pipeline.RunTask{Name: t.Name, Index: i, Spec: t, State: pipeline.Success, Agent: "a-3", StartedAt: run.StartedAt, FinishedAt: run.FinishedAt}
		if n%9 == 0 && i == 6 {
			rt.State, rt.Reason = pipeline.Failure, "exit 1"
			run.State = pipeline.Failure
		}
		if n%9 == 0 && i > 6 {
			rt.State = pipeline.Skipped
		}
		if n == 121 && i == 3 {
			rt.State, rt.Reason = pipeline.Error, "agent vm-2 was lost"
			run.State = pipeline.Error
		}
		run.Tasks = append(run.Tasks, rt)
	}
	return run
}

func attemptsOf(run pipeline.Run, first int) []pipeline.Attempt {
	var out []pipeline.Attempt
	for i := range run.Tasks {
		t := &run.Tasks[i]
		if t.StartedAt.IsZero() && t.State != pipeline.Offered {
			continue
		}
		a := pipeline.Attempt{
			ID: attemptID(first + len(out)), Run: run.ID, Task: t.Name, Agent: t.Agent, State: pipeline.AttemptDone, Outcome: t.State,
			OfferedAt: t.StartedAt.Add(-time.Second), StartedAt: t.StartedAt, FinishedAt: t.FinishedAt, Token: pipeline.Token{Incarnation: 1, Epoch: 1},
		}
		switch t.State {
		case pipeline.Running:
			a.State, a.Outcome = pipeline.AttemptRunning, ""
		case pipeline.Offered:
			a.State, a.Outcome, a.OfferedAt = pipeline.AttemptOffered, "", ago(3*time.Second)
		case pipeline.InDoubt:
			a.State, a.Outcome, a.FinishedAt = pipeline.AttemptLost, "", ago(90*time.Second)
		case pipeline.Failure:
			earlier := a
			earlier.State, earlier.Outcome, earlier.Reason = pipeline.AttemptLost, "", "the agent was silent for 10m"
			earlier.OfferedAt, earlier.StartedAt, earlier.FinishedAt = ago(360*time.Second), ago(359*time.Second), ago(255*time.Second)
			out = append(out, earlier)
			a.ID = attemptID(first + len(out))
		}
		out = append(out, a)
	}
	return out
}

func sampleAgents() []web.AgentView {
	facts := json.RawMessage(`{"os":{"name":"debian","family":"linux","release":"12"},"kernel":"linux","architecture":"amd64","cpus":{"count":8,"model":"EPYC 7763"},"memory":{"total_mb":32096},"tools":{"git":"/usr/bin/git","java":"/usr/bin/java","sh":"/bin/sh"},"network":{"ip":"10.1.4.3","interfaces":["lo","eth0"]}}`)
	agent := func(id pipeline.AgentID, name string, state pipeline.AgentState, seen time.Duration, tasks ...pipeline.TaskName) web.AgentView {
		v := web.AgentView{Agent: pipeline.Agent{ID: id, Name: name, Pool: "linux", Facts: facts, Build: "agentd 0.1.0", State: state, EnrolledAt: ago(90 * time.Hour), SeenAt: ago(seen)}, Online: state == pipeline.AgentOnline}
		for _, t := range tasks {
			v.Running = append(v.Running, web.TaskRef{Run: runIDOf(128), Composition: "acceptance", Number: 128, Task: t})
		}
		return v
	}
	agents := []web.AgentView{
		agent("a-1", "vm-1", pipeline.AgentOnline, time.Second), agent("a-3", "vm-3", pipeline.AgentOnline, 2*time.Second, "load"),
		agent("a-7", "vm-7", pipeline.AgentOnline, time.Second, "acceptance"), agent("a-8", "vm-8", pipeline.AgentOffline, 3*time.Hour), agent("a-9", "vm-9", pipeline.AgentStalled, 95*time.Second, "migrate"),
	}
	agents[3].Untrusted, agents[3].Revoked = true, true
	return agents
}

func sampleCommits() []pipeline.CommitRecord {
	return []pipeline.CommitRecord{
		{Commit: shaBad, Ref: "refs/heads/main", Base: shaLive, Author: "Ben Okri", Subject: "deprovision after the release", SeenAt: ago(4 * time.Minute), Diagnostics: []pipeline.Diagnostic{
			{
				Severity: pipeline.SeverityError, Code: "RC0107", Pos: pipeline.Position{File: "compositions/release/release.cue", Line: 31, Column: 9}, Message: `task "deprovision" needs instance_ids, and no earlier task provides it`,
				Note: "fog.#Deprovision declares instance_ids at plugins/fog/plugin.cue:22:3", Help: "let deprovision come after provision, or give instance_ids a value", Unit: "compositions/release",
			},
			{Severity: pipeline.SeverityWarning, Code: "RC0302", Pos: pipeline.Position{File: "compositions/hello/hello.cue"}, Message: "task \"greet\" has no timeout"},
		}},
		{Commit: shaLive, Ref: "refs/heads/main", Author: "Ana Lima", Subject: "use tomcat 10", Live: true, SeenAt: ago(7 * time.Minute)},
	}
}

func samplePlugins() []pipeline.Plugin {
	text := pipeline.Type{Kind: pipeline.KindString}
	return []pipeline.Plugin{
		{
			Name: "git", Description: "Git repositories.", Icon: "icon.svg", Dir: "builtin:git", Tree: "git:4b825dc642cb6eb9a060e54bf8d69288fbee4904", Programs: []pipeline.Program{{Argv: []string{"./git.sh"}}},
			Tasks: []pipeline.PluginTask{{
				Name: "checkout", Definition: "#Checkout", Description: "Check a commit out into the workspace.",
				Fields:  []pipeline.Field{{Name: "url", Type: text, Optional: true, Doc: "the run's own repository by default"}, {Name: "depth", Type: pipeline.Type{Kind: pipeline.KindInt}, Default: json.RawMessage("1")}},
				Outputs: []pipeline.Field{{Name: "commit", Type: text}, {Name: "dir", Type: pipeline.Type{Kind: pipeline.KindPath}}},
			}},
		},
		{Name: "shell", Description: "Commands of a shell.", Dir: "builtin:shell", Tree: "git:aa", Programs: []pipeline.Program{{OS: "linux", Arch: "amd64", Argv: []string{"sh"}}, {OS: "darwin", Argv: []string{"sh"}}}},
	}
}

func sampleBoard(f *fakeSource) web.Board {
	newest := f.commits[0]
	b := web.Board{
		Repository: web.Repository{URL: "https://git.example.org/ops.git", Ref: "refs/heads/main", Live: shaLive, Subject: "use tomcat 10", Author: "Ana Lima", SeenAt: ago(12 * time.Second)},
		Agents:     web.AgentCounts{Enrolled: 5, Online: 3, Busy: 2},
		Newest:     &newest,
		Moment: web.Moment{Queue: []web.Waiting{
			{TaskRef: web.TaskRef{Run: runIDOf(128), Composition: "acceptance", Number: 128, Task: "windows-smoke"}, Pool: "windows", Priority: 50, Since: ago(279 * time.Second), Blocked: true, Sentence: `no agent fits: os.name must be "windows", and pool windows has no agent`},
			{TaskRef: web.TaskRef{Run: runIDOf(128), Composition: "acceptance", Number: 128, Task: "destroy-vm"}, Pool: "linux", Priority: 50, Since: ago(100 * time.Second), Sentence: "1st in pool linux; all 3 agents that fit are busy, vm-7 is likely free in about 2m"},
		}},
	}
	names := []pipeline.CompositionName{"acceptance", "hello", "infra-dns", "infra-network", "nightly", "release"}
	for k, name := range names {
		s := web.CompositionSummary{Name: name, Median: pipeline.Duration(time.Duration(40+k*70) * time.Second), Suspended: name == "nightly", Removed: name == "release"}
		if k == 0 {
			s.Description = acceptance().Description
		}
		for n := 99; n <= 128 && k != 4; n++ {
			p := web.RunPoint{ID: runIDOf(n), Number: n, State: pipeline.Success, Duration: pipeline.Duration(time.Duration(100+n*(37+k)%170) * time.Second)}
			switch {
			case n%9 == 0 && k < 2:
				p.State = pipeline.Failure
			case n == 121:
				p.State = pipeline.Error
			case n == 110:
				p.State = pipeline.Cancelled
			case n == 128 && k == 0:
				p.State = pipeline.Running
			}
			s.Recent = append(s.Recent, p)
		}
		b.Compositions = append(b.Compositions, s)
	}
	b.Compositions[4].Recent = []web.RunPoint{}
	b.Queue = slices.Clip(b.Queue)
	return b
}

func sampleProposals() []pipeline.Proposal {
	open := pipeline.Proposal{
		Branch: "feature/louder", Target: "main", Head: shaBad, Base: shaLive, Fork: shaLive, Author: "Ana Lima", Subject: "say it louder",
		State: pipeline.ProposalOpen, Approval: pipeline.ApprovalWaiting, Sentence: "needs 1 approval of ops", Digest: "sha256:5be1",
		Plan: json.RawMessage(`{"digest":"sha256:5be1"}`), Text: "~ acceptance\n    ~ tasks.deploy.fields.image  \"tomcat:9\" -> \"tomcat:10\"\n", Markdown: "### plan",
		Needs: []pipeline.Need{
			{Rule: "pools need ops", Approvers: []string{"ops"}, People: []string{"ana", "bo"}, Want: 1},
			{Rule: "pools need ops", Owners: []string{"@octo/web", "zoe"}, Paths: []string{"web/a", "web/b"}, More: 2, Want: 1},
			{Rule: "pools need ops", Nobody: "the repository has no CODEOWNERS", Want: 1},
		},
		Reviews: []pipeline.Opinion{
			{Review: pipeline.Review{By: "mallory", Approve: true, Comment: "please", At: ago(time.Hour)}, Why: "mallory is in none of the groups that are asked"},
			{Review: pipeline.Review{By: "bo", At: ago(time.Minute)}, Signed: true, Counts: true},
		},
		Decisions: []pipeline.Decision{
			{At: ago(2 * time.Hour), Head: shaLive, Plan: "sha256:5be0", Approval: pipeline.ApprovalGiven, Sentence: "approved by <bo>", Rules: []string{"pools need ops: 1 of 1"}, By: []string{"bo (id:583231)"}, Inputs: "sha256:0123456789abcdef"},
			{At: ago(time.Hour), Head: shaBad, Plan: "sha256:5be1", Approval: pipeline.ApprovalWaiting, Sentence: "needs 1 approval of ops", Rules: []string{"pools need ops: 0 of 1"}, Inputs: "sha256:fedcba9876543210"},
		},
		Predicted: []pipeline.CompositionName{"acceptance", "hello"}, Diagnostics: sampleCommits()[1].Diagnostics,
		OpenedAt: ago(2 * time.Hour), HeadAt: ago(time.Hour), PlannedAt: ago(time.Hour), ChangedAt: ago(time.Minute),
	}
	merged := open
	merged.Branch, merged.State, merged.Diagnostics = "merged", pipeline.ProposalMerged, nil
	merged.Merge = &pipeline.Merge{
		Commit: shaLive, Approval: pipeline.ApprovalWaiting, Predicted: merged.Predicted, Started: merged.Predicted,
		Sentence: "predicted 2 runs, started 2; merged without approval: needs 1 approval of ops", At: ago(time.Minute),
	}
	return []pipeline.Proposal{open, merged}
}
