package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

func comp(name string, push ...pipeline.PushTrigger) pipeline.Composition {
	c := pipeline.Composition{Name: pipeline.CompositionName(name), Digest: "sha256:1"}
	for _, p := range push {
		c.Triggers = append(c.Triggers, pipeline.Trigger{Push: &p})
	}
	return c
}

func push(branch string, paths ...string) plan.Input {
	return plan.Input{
		Default: pipeline.Ref("refs/heads/" + branch), Paths: paths,
		Event: pipeline.Event{Kind: "push", Ref: pipeline.Ref("refs/heads/" + branch), Head: "c0ffee"},
	}
}

func planned(cfg *pipeline.Config, in plan.Input) plan.Plan {
	in.Head = cfg
	return plan.Of(in)
}

func TestPushTriggersDecideAndSayWhy(t *testing.T) {
	t.Parallel()
	main := []string{"main"}
	for _, tc := range []struct {
		name    string
		c       pipeline.Composition
		p       plan.Input
		outcome string
		why     string
	}{
		{"branch", comp("a", pipeline.PushTrigger{Branches: main}), push("main"), "run", "push to main"},
		{"other branch", comp("a", pipeline.PushTrigger{Branches: main}), push("dev"), "skipped", "branch dev is not main"},
		{"glob", comp("a", pipeline.PushTrigger{Branches: []string{"release/**"}}), push("release/1/2"), "run", "push to release/1/2"},
		{"taken back", comp("a", pipeline.PushTrigger{Branches: []string{"**", "!wip/*"}}), push("wip/x"), "skipped", "branch wip/x is not ** or !wip/*"},
		{"path", comp("a", pipeline.PushTrigger{Branches: main, Paths: []string{"src/**"}}), push("main", "src/a/b.go"), "run", "push to main"},
		{"no path", comp("a", pipeline.PushTrigger{Branches: main, Paths: []string{"src/**"}}), push("main", "docs/x.md"), "skipped", "no changed path matches src/**"},
		{"second trigger", comp("a", pipeline.PushTrigger{Branches: []string{"x"}}, pipeline.PushTrigger{Branches: main}), push("main"), "run", "push to main"},
		{"none", comp("a"), push("main"), "skipped", "no push trigger; nothing starts it"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			got := planned(&pipeline.Config{Compositions: []pipeline.Composition{tc.c}}, tc.p)
			if v := got.Verdicts[0]; v.Outcome != tc.outcome || v.Sentence != tc.why {
				t.Errorf("verdict = %s (%s), want %s (%s)", v.Outcome, v.Sentence, tc.outcome, tc.why)
			}
			if (len(got.Runs) == 1) != (tc.outcome == "run") {
				t.Errorf("%d runs for verdict %s", len(got.Runs), tc.outcome)
			}
		})
	}
}

func TestUnknownPathsMeetEveryPathClause(t *testing.T) {
	t.Parallel()
	c := comp("a", pipeline.PushTrigger{Branches: []string{"main"}, Paths: []string{"src/**"}})
	p := push("main")
	p.PathsUnknown = true
	if got := planned(&pipeline.Config{Compositions: []pipeline.Composition{c}}, p); len(got.Runs) != 1 {
		t.Error("a push whose paths are unknown was skipped")
	}
}

func TestBrokenUnitIsRejectedAndTheOthersRun(t *testing.T) {
	t.Parallel()
	cfg := &pipeline.Config{
		Compositions: []pipeline.Composition{comp("good", pipeline.PushTrigger{Branches: []string{"main"}})},
		Diagnostics: []pipeline.Diagnostic{
			{Severity: pipeline.SeverityError, Unit: "compositions/bad", Pos: pipeline.Position{File: "compositions/bad/x.cue", Line: 3, Column: 1}, Message: "no"},
			{Severity: pipeline.SeverityError, Unit: "compositions/bad", Message: "again"},
		},
	}
	got := planned(cfg, push("main"))
	want := []pipeline.Verdict{
		{Commit: "c0ffee", Ref: "refs/heads/main", Composition: "good", Kind: "push", Outcome: "run", Sentence: "push to main"},
		{Commit: "c0ffee", Ref: "refs/heads/main", Composition: "compositions/bad", Kind: "push", Outcome: "rejected", Sentence: "compositions/bad/x.cue:3:1: no"},
	}
	if d := cmp.Diff(want, got.Verdicts); d != "" {
		t.Error(d)
	}
}

func TestParamsAreFilledInAndChecked(t *testing.T) {
	t.Parallel()
	c := comp("a")
	c.Params = []pipeline.Field{
		{Name: "version", Type: pipeline.Type{Kind: pipeline.KindString}},
		{Name: "count", Type: pipeline.Type{Kind: pipeline.KindInt}, Default: []byte("3")},
	}
	got, err := plan.Params(&c, []byte(`{"version":"1.0"}`))
	if err != nil || string(got) != `{"count":3,"version":"1.0"}` {
		t.Errorf("Params = %s, %v", got, err)
	}
	_, err = plan.Params(&c, []byte(`{"count":"x","typo":1}`))
	for _, want := range []string{"version: is missing", "count: \"x\" is not of type int", "typo: is not declared"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

func TestKeyIsStableAndTellsEveryPartApart(t *testing.T) {
	t.Parallel()
	c := comp("a")
	e := push("main").Event
	base := plan.Key(e, &c, []byte("{}"), 0)
	if plan.Key(e, &c, []byte("{}"), 0) != base {
		t.Error("the same event has two keys")
	}
	other := c
	other.Digest = "sha256:2"
	moved := e
	moved.Head = "beef"
	elsewhere, later, another := e, e, e
	elsewhere.Ref, later.Kind, another.Repo = "refs/heads/other", pipeline.EventManual, "/srv/other.git"
	seen := map[pipeline.RunKey]string{base: "base"}
	for what, k := range map[string]pipeline.RunKey{
		"digest": plan.Key(e, &other, []byte("{}"), 0), "head": plan.Key(moved, &c, []byte("{}"), 0),
		"ref": plan.Key(elsewhere, &c, []byte("{}"), 0), "kind": plan.Key(later, &c, []byte("{}"), 0), "repo": plan.Key(another, &c, []byte("{}"), 0),
		"params": plan.Key(e, &c, []byte(`{"a":1}`), 0), "generation": plan.Key(e, &c, []byte("{}"), 1),
	} {
		if was, dup := seen[k]; dup {
			t.Errorf("%s and %s have one key", what, was)
		}
		seen[k] = what
	}
}

func TestADeliveryHasOneKeyOnAnyCommit(t *testing.T) {
	t.Parallel()
	c := comp("a")
	e := pipeline.Event{Kind: pipeline.EventWebhook, Ref: "refs/heads/main", Head: "c0ffee", Name: "deploy", ID: "1"}
	base := plan.Key(e, &c, []byte(`{"a":1}`), 0)
	later, other := e, e
	later.Head = "beef"
	changed := c
	changed.Digest = "sha256:2"
	if plan.Key(later, &changed, nil, 0) != base {
		t.Error("the same delivery has two keys")
	}
	other.ID = "2"
	elsewhere := e
	elsewhere.Name = "release"
	b := comp("b")
	for _, k := range []pipeline.RunKey{
		plan.Key(other, &c, nil, 0), plan.Key(elsewhere, &c, nil, 0), plan.Key(e, &b, nil, 0), plan.Key(e, &c, nil, 1),
	} {
		if k == base {
			t.Error("two deliveries have one key")
		}
	}
}

func TestStatusesRollUpTheWorstFirst(t *testing.T) {
	t.Parallel()
	run := func(name string, n int, s pipeline.State, why string) *pipeline.Run {
		return &pipeline.Run{ID: pipeline.RunID(fmt.Sprint(name, n)), Commit: "c", Composition: pipeline.CompositionName(name), Number: n, State: s, Reason: why}
	}
	got := plan.Statuses(plan.Facts{Commit: "c", URL: "http://x", Runs: []*pipeline.Run{
		run("b", 1, pipeline.Success, "2 of 2 tasks"), run("a", 6, pipeline.Error, "old"), run("a", 7, pipeline.Failure, "lint: exit 1"), run("c", 2, pipeline.Running, "1 of 2 tasks, running x"),
	}})
	want := []pipeline.Status{
		{Commit: "c", Context: "maestro", State: "failure", Description: "2 of 3 runs done: a #7 failure: lint: exit 1", URL: "http://x/commits/c"},
		{Commit: "c", Context: "maestro/run/a", State: "failure", Description: "#7 failure: lint: exit 1", URL: "http://x/c/a/7"},
		{Commit: "c", Context: "maestro/run/b", State: "success", Description: "#1 success: 2 of 2 tasks", URL: "http://x/c/b/1"},
		{Commit: "c", Context: "maestro/run/c", State: "pending", Description: "#2 running: 1 of 2 tasks, running x", URL: "http://x/c/c/2"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestRunOfAForkDoesNotSpeakForACommitOfTheRepository(t *testing.T) {
	t.Parallel()
	run := func(id string, ref pipeline.Ref, state pipeline.State) *pipeline.Run {
		return &pipeline.Run{ID: pipeline.RunID(id), Number: 1, Commit: "c", Ref: ref, Composition: "check", State: state}
	}
	own, fork := pipeline.Ref("refs/heads/x"), pipeline.PullRef(2)
	for name, c := range map[string]struct {
		runs []*pipeline.Run
		want string
	}{
		"a fork's after one that failed":  {[]*pipeline.Run{run("1", own, pipeline.Failure), run("2", fork, pipeline.Success)}, "failure"},
		"a fork's before one that waits":  {[]*pipeline.Run{run("1", fork, pipeline.Success), run("2", own, pipeline.Ready)}, "pending"},
		"a fork's that failed":            {[]*pipeline.Run{run("1", own, pipeline.Success), run("2", fork, pipeline.Failure)}, "success"},
		"a fork's alone":                  {[]*pipeline.Run{run("1", fork, pipeline.Success)}, "success"},
		"two of a fork":                   {[]*pipeline.Run{run("1", fork, pipeline.Success), run("2", fork, pipeline.Failure)}, "failure"},
		"two of the repository":           {[]*pipeline.Run{run("1", own, pipeline.Failure), run("2", own, pipeline.Success)}, "success"},
		"a fork's between two, the later": {[]*pipeline.Run{run("1", own, pipeline.Failure), run("2", fork, pipeline.Success), run("3", own, pipeline.Failure)}, "failure"},
	} {
		for range 2 {
			for _, s := range plan.Statuses(plan.Facts{Commit: "c", Runs: c.runs}) {
				if s.State != c.want {
					t.Errorf("%s: %s is %s, want %s", name, s.Context, s.State, c.want)
				}
			}
			slices.Reverse(c.runs)
		}
	}
}

func TestNothingToRunIsASuccessThatSaysSo(t *testing.T) {
	t.Parallel()
	got := plan.Statuses(plan.Facts{Commit: "c", Verdicts: []pipeline.Verdict{{Composition: "a", Sentence: "branch x is not main"}}})
	want := []pipeline.Status{{Commit: "c", Context: "maestro", State: "success", Description: "0 runs: a: branch x is not main"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestWhatTheClockWasAnsweredIsNotWhyAPushStartedNothing(t *testing.T) {
	t.Parallel()
	of := func(kinds ...string) string {
		f := plan.Facts{Commit: "c"}
		for _, k := range kinds {
			f.Verdicts = append(f.Verdicts, pipeline.Verdict{Composition: "a", Kind: k, Sentence: "told a " + k})
		}
		return plan.RollUp(f).Description
	}
	for want, kinds := range map[string][]string{
		"0 runs: a: told a push": {"after", "cron", "push", "webhook"},
		"0 runs: a: told a tag":  {"manual", "tag"},
		"0 runs: a: told a cron": {"cron", "manual"},
	} {
		if got := of(kinds...); got != want {
			t.Errorf("of %v: %q, want %q", kinds, got, want)
		}
	}
}

func TestDescriptionsNeverExceedTheForgesLimit(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		f := plan.Facts{Commit: "c", Runs: []*pipeline.Run{{Composition: "a", State: pipeline.Failure, Reason: text}}}
		if rapid.Bool().Draw(t, "broken") {
			f.Diagnostics = []pipeline.Diagnostic{{Severity: pipeline.SeverityError, Message: text}, {Message: text}}
		}
		for _, s := range plan.Statuses(f) {
			if n := utf8.RuneCountInString(s.Description); n > 140 || strings.ContainsAny(s.Description, "\n\r") {
				t.Fatalf("description has %d characters: %q", n, s.Description)
			}
		}
	})
}

func TestPlanShowsWhatARunCalls(t *testing.T) {
	t.Parallel()
	task := func(name, call string) pipeline.Task {
		return pipeline.Task{
			Name: pipeline.TaskName(name), Plugin: pipeline.CorePlugin,
			Call: &pipeline.Call{Composition: pipeline.CompositionName(call), Digest: "sha256:1", Join: true},
		}
	}
	cfg := &pipeline.Config{Compositions: []pipeline.Composition{
		{Name: "a", Tasks: []pipeline.Task{task("one", "b"), task("two", "c")}, Triggers: []pipeline.Trigger{{Push: &pipeline.PushTrigger{Branches: []string{"main"}}}}},
		{Name: "b", Tasks: []pipeline.Task{task("deep", "c"), task("back", "a"), {Name: "ok", Plugin: pipeline.CorePlugin, Gate: &pipeline.Gate{}}}},
		{Name: "c", Tasks: []pipeline.Task{{Name: "work", Plugin: "shell", Requirement: pipeline.Requirement{Pool: "big"}}}},
		{Name: "d", Tasks: []pipeline.Task{{Name: "idle", Plugin: "shell"}}},
	}}
	in := push("main")
	in.Head, in.Fleet = cfg, &plan.Fleet{At: time.Unix(1, 0), Agents: []plan.Agent{{Pool: "small", Online: true}, {Pool: "big", Online: true}}}
	p := plan.Of(in)
	if d := cmp.Diff([]pipeline.CompositionName{"b", "c"}, p.Runs[0].Calls); d != "" {
		t.Errorf("calls (-want +got):\n%s", d)
	}
	text := p.Text(plan.TextOptions{})
	for _, want := range []string{"calls c: 1 of 2 agents", "; calls b;", "gate b/ok", "1 run and what it calls will start on merge"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	nobody := in
	nobody.Fleet = nil
	unasked := plan.Of(nobody)
	if text := unasked.Text(plan.TextOptions{}); !strings.Contains(text, "calls b, c;") {
		t.Errorf("nothing of what is called in\n%s", text)
	}
	if text := unasked.Markdown(plan.MarkdownOptions{}); !strings.Contains(text, "not asked; calls b, c |") {
		t.Errorf("nothing of what is called in\n%s", text)
	}
	again := in
	changed := *cfg
	changed.Compositions = append([]pipeline.Composition(nil), cfg.Compositions...)
	changed.Compositions[2].Tasks = []pipeline.Task{{Name: "work", Plugin: "shell", Requirement: pipeline.Requirement{Pool: "small"}}}
	again.Head = &changed
	if plan.Of(again).Digest == p.Digest {
		t.Error("the digest is the same with another text of what is called")
	}
}
