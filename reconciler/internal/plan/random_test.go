package plan_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// source makes what people could have written, from a seed.
type source struct{ *rand.Rand }

func seeded(seed uint64) source { return source{rand.New(rand.NewPCG(seed, 1))} }

func (s source) yes(percent int) bool { return s.IntN(100) < percent }

func pick[T any](s source, from ...T) T { return from[s.IntN(len(from))] }

var (
	branchPatterns = []string{"!main", "main", "release/*", "**", "dev"}
	pathPatterns   = []string{"src/**", "docs/*.md", "**/*.go", "!src/x/**"}
	somePaths      = []string{"src/a.go", "docs/x.md", "README.md", "src/x/y.txt", "pools/p.cue"}
	groupNames     = []string{"ops", "dev"}
)

func (s source) some(from []string, least int) []string {
	var out []string
	for _, x := range from {
		if s.yes(40) {
			out = append(out, x)
		}
	}
	for len(out) < least {
		out = append(out, pick(s, from...))
	}
	return out
}

func (s source) pos() pipeline.Position {
	return pipeline.Position{File: fmt.Sprintf("f%d.cue", s.IntN(5)), Line: 1 + s.IntN(90), Column: 1 + s.IntN(40)}
}

func (s source) config(commit string) *pipeline.Config {
	cfg := &pipeline.Config{Commit: pipeline.CommitID(commit)}
	for i := range 3 {
		if s.yes(80) {
			cfg.Compositions = append(cfg.Compositions, s.composition(fmt.Sprintf("c%d", i)))
		}
	}
	if s.yes(30) {
		cfg.Diagnostics = append(cfg.Diagnostics, pipeline.Diagnostic{
			Severity: pipeline.SeverityError, Code: pick(s, "RC0107", "RC0108"), Pos: s.pos(),
			Unit: fmt.Sprintf("compositions/c%d", s.IntN(3)), Message: "wrong",
		})
	}
	for _, p := range []pipeline.PoolName{"linux", "gpu"} {
		if s.yes(70) {
			cfg.Pools = append(cfg.Pools, pipeline.Pool{
				Name: p, Pos: s.pos(), Facts: json.RawMessage(fmt.Sprintf(`{"cpus":%d}`, s.IntN(9))), Untrusted: s.yes(10),
			})
		}
	}
	for _, p := range []pipeline.PluginName{"shell", "git"} {
		cfg.Plugins = append(cfg.Plugins, s.plugin(p))
	}
	for _, n := range []pipeline.SecretName{"aws", "npm"} {
		if s.yes(80) {
			cfg.Secrets = append(cfg.Secrets, pipeline.Secret{Name: n, Pos: s.pos(), Env: pick(s, "A", "B")})
		}
	}
	cfg.Policy = s.policy()
	cfg.Owners = s.owners()
	return cfg
}

func (s source) owners() pipeline.Owners {
	if s.yes(10) {
		return pipeline.Owners{Problem: "the repository has no CODEOWNERS"}
	}
	out := pipeline.Owners{File: "CODEOWNERS"}
	for i := range s.IntN(4) {
		out.Rules = append(out.Rules, pipeline.OwnerRule{
			Pattern: pick(s, "*", "/src/", "docs/*", "*.go"), Owners: s.some([]string{"ana", "@octo/web", "cy@example.com"}, 0), Line: i + 1,
		})
	}
	return out
}

func (s source) plugin(name pipeline.PluginName) pipeline.Plugin {
	p := pipeline.Plugin{
		Name: name, Pos: s.pos(), Dir: "plugins/" + string(name), Tree: pipeline.Digest(fmt.Sprintf("git:%d", s.IntN(3))),
		Programs: []pipeline.Program{{OS: pick(s, "linux", "windows", ""), Argv: []string{"./run"}}},
	}
	t := pipeline.PluginTask{Name: "run", Definition: "#Run"}
	for _, f := range []string{"script", "shell"} {
		if s.yes(80) {
			t.Fields = append(t.Fields, pipeline.Field{Name: f, Type: s.typ(), Optional: s.yes(50), Doc: "doc"})
		}
	}
	p.Tasks = append(p.Tasks, t)
	return p
}

func (s source) typ() pipeline.Type {
	switch s.IntN(3) {
	case 0:
		return pipeline.Type{Kind: pipeline.KindString, Patterns: []string{pick(s, "a", "b")}}
	case 1:
		return pipeline.Type{Kind: pipeline.KindInt, Min: fmt.Sprint(s.IntN(9))}
	}
	return pipeline.Type{Kind: pipeline.KindBool}
}

func (s source) expr(value string) pipeline.Expr {
	if s.yes(30) {
		return pipeline.Expr{Deferred: true, Text: "event.x + " + value, Pos: s.pos()}
	}
	return pipeline.Expr{Value: json.RawMessage(value), Pos: s.pos(), Text: "said"}
}

func (s source) composition(name string) pipeline.Composition {
	c := pipeline.Composition{
		Name: pipeline.CompositionName(name), Pos: s.pos(), Unit: "compositions/" + name, Priority: s.IntN(100),
		Timeout: pipeline.Duration(s.IntN(3)) * pipeline.Duration(time.Minute), Suspend: s.yes(10),
		MaxRunning: s.IntN(2), MaxQueued: s.IntN(3), Description: pick(s, "", "what it does"),
	}
	if s.yes(50) {
		c.Params = append(c.Params, pipeline.Field{Name: "v", Type: pipeline.Type{Kind: pipeline.KindInt}, Default: json.RawMessage("1")})
	}
	if s.yes(40) {
		c.Concurrency = &pipeline.Concurrency{Group: s.expr(`"prod"`), Policy: pick(s, pipeline.Queue, pipeline.CancelRunning, pipeline.LatestOnly)}
	}
	for i := range 2 {
		if s.yes(60) {
			c.Tasks = append(c.Tasks, s.task(fmt.Sprintf("t%d", i)))
		}
	}
	for range s.IntN(4) {
		c.Triggers = append(c.Triggers, s.trigger())
	}
	if s.yes(20) {
		c.OnFailure = &pipeline.Hook{Composition: "c0", Params: s.expr(`{"v":3}`), Pos: s.pos()}
	}
	return c
}

func (s source) task(name string) pipeline.Task {
	t := pipeline.Task{
		Name: pipeline.TaskName(name), Pos: s.pos(), Plugin: pick[pipeline.PluginName](s, "shell", "git"), Uses: "shell/run",
		Timeout: pipeline.Duration(s.IntN(3)) * pipeline.Duration(time.Minute), Priority: s.IntN(4) - 1,
		When: pick(s, pipeline.OnSuccess, pipeline.Always), Outputs: pipeline.Type{Kind: pipeline.KindStruct},
		Fields:  json.RawMessage(fmt.Sprintf(`{"script":%q,"env":{"n":%d}}`, pick(s, "make", "true"), s.IntN(3))),
		Secrets: []pipeline.SecretName{"aws", "npm"}[:s.IntN(3)], Places: map[string]pipeline.Position{"timeout": s.pos()},
		Retries: pipeline.Retries{Max: s.IntN(2)}, Continue: s.yes(20), Effect: pick(s, pipeline.Idempotent, pipeline.Once),
	}
	t.Requirement.Pool = pick[pipeline.PoolName](s, "", "linux", "gpu")
	if s.yes(60) {
		t.Requirement.Facts = append(t.Requirement.Facts, pipeline.Clause{Path: []string{"cpus"}, Type: pipeline.Type{Kind: pipeline.KindInt, Min: fmt.Sprint(s.IntN(8))}, Pos: s.pos()})
	}
	if s.yes(30) {
		t.Deferred, t.Open = true, map[string]pipeline.Expr{"shell": {Deferred: true, Text: pick(s, "params.v", "event.ref"), Pos: s.pos()}}
	}
	switch s.IntN(8) {
	case 0:
		t.Plugin, t.Uses, t.Gate = pipeline.CorePlugin, "core/approval", &pipeline.Gate{Approvers: s.some(groupNames, 0), Count: s.IntN(3)}
	case 1:
		t.Plugin, t.Uses, t.Call = pipeline.CorePlugin, "core/run", &pipeline.Call{Composition: pick[pipeline.CompositionName](s, "c1", "c2"), Join: s.yes(50)}
	}
	return t
}

func (s source) trigger() pipeline.Trigger {
	t := pipeline.Trigger{Pos: s.pos()}
	switch s.IntN(9) {
	case 0:
		t.PullRequest = &pipeline.PullRequestTrigger{Branches: s.some(branchPatterns, 1), Paths: s.some(pathPatterns, 0)}
	case 1:
		t.Tag = &pipeline.TagTrigger{Tags: []string{pick(s, "v*", "**")}}
	case 2:
		t.Cron = &pipeline.CronTrigger{Schedule: pick(s, "0 2 * * *", "*/5 * * * *", "30 4 * * 1"), Zone: pick(s, "", "Europe/Paris")}
	case 3:
		t.After = &pipeline.AfterTrigger{Composition: "c0", Result: pick(s, "success", "failure", "any"), Branches: s.some(branchPatterns, 0)}
	case 4:
		t.Webhook = &pipeline.WebhookTrigger{ID: pick(s, "hook", "other"), Secret: "aws"}
	case 5:
		t.Manual = &pipeline.ManualTrigger{Approvers: s.some(groupNames, 0)}
	default:
		t.Push = &pipeline.PushTrigger{Branches: s.some(branchPatterns, 1), Paths: s.some(pathPatterns, 0)}
	}
	if s.yes(40) {
		t.Params = s.expr(fmt.Sprintf(`{"v":%d}`, s.IntN(3)))
	}
	return t
}

func (s source) policy() pipeline.Policy {
	var p pipeline.Policy
	for _, g := range groupNames {
		if s.yes(70) {
			p.Groups = append(p.Groups, pipeline.Group{Name: g, Members: s.some([]string{"ana", "bo", "cy"}, 1), Pos: s.pos()})
		}
	}
	for i := range s.IntN(3) {
		p.Changes = append(p.Changes, pipeline.ChangeRule{
			Name: fmt.Sprint("rule", i), Paths: s.some(pathPatterns, 0), Compositions: s.some([]string{"c0", "c*"}, 0), Approvers: s.some(groupNames, 0), Count: s.IntN(3), Codeowners: s.yes(40), Pos: s.pos(),
		})
	}
	if s.yes(20) {
		p.Secrets = append(p.Secrets, pipeline.SecretRule{Secret: "aws", Compositions: s.some([]string{"c0", "c[12]"}, 1), Pos: s.pos()})
	}
	if s.yes(20) {
		p.Pools = append(p.Pools, pipeline.PoolRule{Pool: "gpu", Compositions: s.some([]string{"c0", "c[12]"}, 1), Pos: s.pos()})
	}
	return p
}

// near is a configuration that people could have made of another one.
func (s source) near(cfg *pipeline.Config, commit string) *pipeline.Config {
	out := copied(cfg)
	out.Commit = pipeline.CommitID(commit)
	fresh := s.config(commit)
	for i := range out.Compositions {
		if s.yes(30) {
			out.Compositions[i] = s.composition(string(out.Compositions[i].Name))
		}
	}
	if s.yes(30) {
		out.Policy = fresh.Policy
	}
	if s.yes(30) {
		out.Plugins, out.Pools = fresh.Plugins, fresh.Pools
	}
	out.Diagnostics = fresh.Diagnostics
	return out
}

func copied[T any](v *T) *T {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	out := new(T)
	if err := json.Unmarshal(b, out); err != nil {
		panic(err)
	}
	return out
}

func (s source) event() pipeline.Event {
	e := pipeline.Event{
		Kind: pick(s, pipeline.EventPush, pipeline.EventPush, pipeline.EventPullRequest, pipeline.EventTag, pipeline.EventCron, pipeline.EventAfter, pipeline.EventWebhook, pipeline.EventManual),
		Ref:  "refs/heads/main", Head: "b", Base: "a", Author: pick(s, "ana", "eve"), Subject: "text",
	}
	switch e.Kind {
	case pipeline.EventPush:
		e.Ref = pick[pipeline.Ref](s, "refs/heads/main", "refs/heads/main", "refs/heads/release/1", "refs/heads/dev")
	case pipeline.EventPullRequest:
		e.Ref, e.Proposal, e.Target = "refs/heads/dev", "dev", "main"
	case pipeline.EventTag:
		e.Ref = "refs/tags/v1"
	case pipeline.EventCron:
		e.Time = time.Date(2026, 3, 2, pick(s, 1, 2, 4), pick(s, 0, 30), 0, 0, time.UTC)
	case pipeline.EventAfter:
		e.Cause = &pipeline.Cause{Run: "01", Composition: "c0", Number: 3, State: pick(s, pipeline.Success, pipeline.Failure)}
	case pipeline.EventWebhook:
		e.Name, e.ID = "hook", "delivery"
	case pipeline.EventManual:
		e.Name, e.ID = pick(s, "c0", "c1", "c2"), "request"
	}
	return e
}

func (s source) fleet() *plan.Fleet {
	f := &plan.Fleet{At: time.Unix(1_770_000_000, 0).UTC()}
	for i := range s.IntN(6) {
		f.Agents = append(f.Agents, plan.Agent{
			ID: pipeline.AgentID(fmt.Sprint("a", i)), Pool: pick[pipeline.PoolName](s, "", "linux", "gpu"), Untrusted: s.yes(20), Online: s.yes(80), Busy: s.yes(30),
			Facts: map[string]any{"cpus": json.Number(fmt.Sprint(s.IntN(9))), "kernel": "Linux", "architecture": "amd64"},
		})
	}
	for i := range s.IntN(4) {
		f.Runs = append(f.Runs, plan.Unfinished{
			Run: pipeline.RunID(fmt.Sprint("r", i)), Composition: pick[pipeline.CompositionName](s, "c0", "c1"), Number: i + 1, Group: pick(s, "", "prod"), Waiting: s.yes(40),
		})
	}
	for _, c := range []pipeline.CompositionName{"c0", "c2"} {
		h := plan.History{Composition: c}
		for range s.IntN(5) {
			h.Durations, h.Waits = append(h.Durations, time.Duration(s.IntN(1000))*time.Second), append(h.Waits, time.Duration(s.IntN(90))*time.Second)
		}
		f.History = append(f.History, h)
	}
	return f
}

// input is a question: two configurations, an event and a fleet.
func (s source) input() plan.Input {
	in := plan.Input{
		Default: "refs/heads/main", Base: s.config("a"), Event: s.event(), Fleet: s.fleet(), Paths: s.some(somePaths, 0),
		PathsUnknown: s.yes(10), Now: time.Unix(1_770_000_000, 0).UTC(),
	}
	in.Head = s.near(in.Base, "b")
	if s.yes(60) {
		for range 2 { // triggers, then groups
			_, _, blanks := plan.Decide(in)
			in.Filled = append(in.Filled, filled(blanks)...)
		}
	}
	return in
}

func filled(blanks []plan.Blank) []plan.Filled {
	var out []plan.Filled
	for _, b := range blanks {
		f := plan.Filled{Blank: b, Value: json.RawMessage(`"prod"`)}
		if b.Blank.Part == pipeline.PartTrigger {
			f.Value = json.RawMessage(`{}`)
		}
		out = append(out, f)
	}
	return out
}

func mix[T any](s source, list []T) {
	s.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

// shuffled is the same question with every list that has no order in another one.
func (s source) shuffled(in plan.Input) plan.Input {
	in = *copied(&in)
	for _, cfg := range []*pipeline.Config{in.Base, in.Head} {
		mix(s, cfg.Compositions)
		mix(s, cfg.Pools)
		mix(s, cfg.Plugins)
		mix(s, cfg.Secrets)
		mix(s, cfg.Diagnostics)
		mix(s, cfg.Policy.Groups)
		mix(s, cfg.Policy.Changes)
		for i := range cfg.Owners.Rules {
			mix(s, cfg.Owners.Rules[i].Owners)
		}
		for i := range cfg.Policy.Groups {
			mix(s, cfg.Policy.Groups[i].Members)
		}
		for i := range cfg.Compositions {
			mix(s, cfg.Compositions[i].Tasks)
			for j := range cfg.Compositions[i].Tasks {
				mix(s, cfg.Compositions[i].Tasks[j].Secrets)
			}
		}
	}
	mix(s, in.Fleet.Agents)
	mix(s, in.Fleet.Runs)
	mix(s, in.Fleet.History)
	mix(s, in.Paths)
	mix(s, in.Filled)
	return in
}
