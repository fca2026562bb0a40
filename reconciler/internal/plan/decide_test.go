package plan_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// with is a composition of these triggers.
func with(name string, triggers ...pipeline.Trigger) pipeline.Composition {
	return pipeline.Composition{Name: pipeline.CompositionName(name), Digest: "sha256:1", Triggers: triggers}
}

// decide plans an event on main, where cfg is in force.
func decide(cfg *pipeline.Config, e pipeline.Event, change ...func(*plan.Input)) plan.Plan {
	if e.Ref == "" {
		e.Ref = "refs/heads/main"
	}
	in := plan.Input{Default: "refs/heads/main", Base: cfg, Head: cfg, Event: e}
	for _, f := range change {
		f(&in)
	}
	return plan.Of(in)
}

// says is the verdict on the only composition, as "run: push to main".
func says(p plan.Plan) string {
	if len(p.Verdicts) == 0 {
		return ""
	}
	return p.Verdicts[0].Outcome + ": " + p.Verdicts[0].Sentence
}

func TestEveryKindOfEventIsDecidedAndSaysWhy(t *testing.T) {
	t.Parallel()
	due := time.Date(2026, 3, 2, 2, 0, 0, 0, time.UTC)
	ended := func(s pipeline.State) pipeline.Event {
		return pipeline.Event{Kind: pipeline.EventAfter, Cause: &pipeline.Cause{Run: "1", Composition: "build", Number: 7, State: s}}
	}
	pr := &pipeline.PullRequestTrigger{Branches: []string{"main"}, Paths: []string{"src/**"}}
	change := pipeline.Event{Kind: pipeline.EventPullRequest, Ref: "refs/heads/louder", Proposal: "louder", Target: "main"}
	after := func(result string, branches ...string) pipeline.Trigger {
		return pipeline.Trigger{After: &pipeline.AfterTrigger{Composition: "build", Result: result, Branches: branches}}
	}
	manual := func(groups ...string) pipeline.Trigger {
		return pipeline.Trigger{Manual: &pipeline.ManualTrigger{Approvers: groups}}
	}
	ask := func(who, what string) pipeline.Event {
		return pipeline.Event{Kind: pipeline.EventManual, Author: who, Name: what}
	}
	hook := pipeline.Trigger{Webhook: &pipeline.WebhookTrigger{ID: "deploy", Payload: &pipeline.Type{
		Kind: pipeline.KindStruct, Fields: []pipeline.Field{{Name: "version", Type: pipeline.Type{Kind: pipeline.KindString}}},
	}}}
	post := func(id, body string) pipeline.Event {
		return pipeline.Event{Kind: pipeline.EventWebhook, Name: id, Payload: json.RawMessage(body)}
	}
	for _, tc := range []struct {
		name  string
		on    pipeline.Trigger
		event pipeline.Event
		paths []string
		want  string
	}{
		{"a change", pipeline.Trigger{PullRequest: pr}, change, []string{"src/a"}, "run: change louder for main"},
		{"a change of nothing it watches", pipeline.Trigger{PullRequest: pr}, change, []string{"x"}, "skipped: no changed path matches src/**"},
		{"a change for another branch", pipeline.Trigger{PullRequest: pr}, pipeline.Event{Kind: pipeline.EventPullRequest, Target: "dev"}, nil, "skipped: target dev is not main"},
		{"a change, without the trigger", manual(), change, nil, "skipped: no pullRequest trigger; it starts on manual"},
		{"a tag", pipeline.Trigger{Tag: &pipeline.TagTrigger{Tags: []string{"v*"}}}, pipeline.Event{Kind: pipeline.EventTag, Ref: "refs/tags/v1"}, nil, "run: tag v1"},
		{"another tag", pipeline.Trigger{Tag: &pipeline.TagTrigger{Tags: []string{"v*"}}}, pipeline.Event{Kind: pipeline.EventTag, Ref: "refs/tags/x"}, nil, "skipped: tag x is not v*"},
		{"the clock", pipeline.Trigger{Cron: &pipeline.CronTrigger{Schedule: "0 2 * * *"}}, pipeline.Event{Kind: pipeline.EventCron, Time: due}, nil, "run: cron 0 2 * * *, due 2026-03-02T02:00:00Z"},
		{"the clock of others", pipeline.Trigger{Cron: &pipeline.CronTrigger{Schedule: "0 3 * * *"}}, pipeline.Event{Kind: pipeline.EventCron, Time: due}, nil, ""},
		{"after a success", after("success"), ended(pipeline.NotNeeded), nil, "run: build#7 ended in not_needed"},
		{"after a failure, which it is not for", after("success"), ended(pipeline.Timeout), nil, "skipped: runs after success of build, and build#7 ended in timeout"},
		{"after any bad end", after("failure"), ended(pipeline.Error), nil, "run: build#7 ended in error"},
		{"after any end", after("any"), ended(pipeline.Cancelled), nil, "run: build#7 ended in cancelled"},
		{"after a run on another branch", after("any", "dev"), ended(pipeline.Success), nil, "skipped: build#7 ran on main, which is not dev"},
		{"after something else", pipeline.Trigger{After: &pipeline.AfterTrigger{Composition: "other", Result: "any"}}, ended(pipeline.Success), nil, ""},
		{"a webhook", hook, post("deploy", `{"version":"1"}`), nil, "run: webhook deploy"},
		{"a webhook of others", hook, post("x", `{"version":"1"}`), nil, ""},
		{"a webhook that says something else", hook, post("deploy", `{"version":1}`), nil, `rejected: webhook deploy: payload: version: 1 is not a string`},
		{"a person", manual(), ask("eve", "c"), nil, "run: asked for by eve"},
		{"a person who may", manual("ops"), ask("ana", "c"), nil, "run: asked for by ana"},
		{"a person who may not", manual("ops"), ask("eve", "c"), nil, "rejected: eve asked for it, who is not in ops ()"},
		{"a person, for others", manual(), ask("ana", "d"), nil, ""},
		{"a person, without the trigger", after("any"), ask("ana", "c"), nil, "skipped: no manual trigger"},
		{"nothing that is known", pipeline.Trigger{}, ask("ana", "c"), nil, "skipped: no manual trigger"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cfg := &pipeline.Config{
				Compositions: []pipeline.Composition{with("c", tc.on)},
				Policy:       pipeline.Policy{Groups: []pipeline.Group{{Name: "ops", Members: []string{"ana", "bo"}}}},
			}
			p := decide(cfg, tc.event, func(in *plan.Input) { in.Paths = tc.paths })
			if got := says(p); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestEventsOfOneKindAtOneCommitHaveRunsOfTheirOwn(t *testing.T) {
	t.Parallel()
	c := with("c")
	seen := map[pipeline.RunKey]string{}
	for name, e := range map[string]pipeline.Event{
		"push": {Kind: "cron"}, "two": {Kind: "cron", Time: time.Unix(120, 0)}, "three": {Kind: "cron", Time: time.Unix(180, 0)},
		"cause": {Kind: "cron", Cause: &pipeline.Cause{Run: "1"}}, "task": {Kind: "cron", Cause: &pipeline.Cause{Run: "1", Task: "t"}},
		"id": {Kind: "cron", ID: "x"}, "name": {Kind: "cron", Name: "x"}, "change": {Kind: "cron", Proposal: "x"}, "target": {Kind: "cron", Target: "x"},
	} {
		k := plan.Key(e, &c, nil, 0)
		if was, dup := seen[k]; dup {
			t.Errorf("%s and %s have one key", was, name)
		}
		seen[k] = name
	}
}

func TestPolicyOfTheDefaultBranchJudgesAChange(t *testing.T) {
	t.Parallel()
	c := with("deploy", pipeline.Trigger{Push: &pipeline.PushTrigger{Branches: []string{"**"}}})
	c.Tasks = []pipeline.Task{{Name: "t", Secrets: []pipeline.SecretName{"aws"}, Requirement: pipeline.Requirement{Pool: "prod"}}}
	strict := pipeline.Policy{
		Secrets: []pipeline.SecretRule{{Secret: "aws", Compositions: []string{"release", "deploy"}}},
		Pools:   []pipeline.PoolRule{{Pool: "prod", Compositions: []string{"release"}, Pos: pipeline.Position{File: "policy.cue", Line: 9, Column: 1}}},
	}
	loose := &pipeline.Config{Compositions: []pipeline.Composition{c}}
	base := &pipeline.Config{Policy: strict}
	push := func(branch pipeline.Ref) string {
		return says(plan.Of(plan.Input{
			Default: "refs/heads/main", Base: base, Head: loose, Event: pipeline.Event{Kind: pipeline.EventPush, Ref: branch},
		}))
	}
	if got, want := push("refs/heads/dev"), "rejected: task t: pool prod is for release (policy.cue:9:1)"; got != want {
		t.Errorf("a branch that drops the policy: %s, want %s", got, want)
	}
	base.Policy.Pools = nil
	if got, want := push("refs/heads/dev"), "rejected: task t: secret aws is for branch main, not for dev ()"; got != want {
		t.Errorf("a branch: %s, want %s", got, want)
	}
	if got, want := push("refs/heads/main"), "run: push to main"; got != want {
		t.Errorf("the default branch, which brings its policy: %s, want %s", got, want)
	}
}

func TestBlanksAreFilledAndThenTheRunIsWhole(t *testing.T) {
	t.Parallel()
	c := with("c", pipeline.Trigger{
		Push: &pipeline.PushTrigger{Branches: []string{"main"}}, Params: pipeline.Expr{Deferred: true, Text: "{v: event.commit}"},
	})
	c.Params = []pipeline.Field{{Name: "v", Type: pipeline.Type{Kind: pipeline.KindString}}}
	c.Concurrency = &pipeline.Concurrency{Group: pipeline.Expr{Deferred: true, Text: "params.v"}}
	cfg := &pipeline.Config{Compositions: []pipeline.Composition{c}}
	in := plan.Input{Default: "refs/heads/main", Head: cfg, Event: pipeline.Event{Kind: pipeline.EventPush, Ref: "refs/heads/main"}}

	first := plan.Of(in)
	if len(first.Blanks) != 1 || first.Blanks[0].Blank.Part != pipeline.PartTrigger || !first.Runs[0].Open || first.Runs[0].Key != "" {
		t.Fatalf("first: %+v", first)
	}
	in.Filled = append(in.Filled, plan.Filled{Blank: first.Blanks[0], Value: json.RawMessage(`{"v":"x"}`)})
	second := plan.Of(in)
	if len(second.Blanks) != 1 || second.Blanks[0].Blank.Part != pipeline.PartGroup || string(second.Blanks[0].Params) != `{"v":"x"}` {
		t.Fatalf("second: %+v", second)
	}
	in.Filled = append(in.Filled, plan.Filled{Blank: second.Blanks[0], Value: json.RawMessage(`"group"`)})
	last := plan.Of(in)
	if len(last.Blanks) != 0 || last.Runs[0].Open || last.Runs[0].Group != "group" || last.Runs[0].Key == "" {
		t.Errorf("last: %+v", last)
	}
	if last.Digest != first.Digest {
		t.Error("the digest depends on what was filled")
	}
	in.Filled = nil
	whole := plan.Complete(in, func(b plan.Blank) plan.Filled {
		if b.Blank.Part == pipeline.PartGroup {
			return plan.Filled{Value: json.RawMessage(`"group"`)}
		}
		return plan.Filled{Value: json.RawMessage(`{"v":"x"}`)}
	})
	if d := cmp.Diff(outline(last.Runs), outline(plan.Of(whole).Runs)); d != "" {
		t.Errorf("completed at once: %s", d)
	}
	in.Filled = []plan.Filled{{Blank: first.Blanks[0], Problem: "params of the trigger: no commit"}}
	if got, want := says(plan.Of(in)), "rejected: c: params of the trigger: no commit"; got != want {
		t.Errorf("a fill that fails: %s, want %s", got, want)
	}
}

func TestPersonsParamsJoinThoseOfTheTriggerAndReplaceNone(t *testing.T) {
	t.Parallel()
	c := with("c", pipeline.Trigger{Manual: &pipeline.ManualTrigger{}, Params: pipeline.Expr{Value: json.RawMessage(`{"env":"staging"}`)}})
	c.Params = []pipeline.Field{{Name: "env", Type: pipeline.Type{Kind: pipeline.KindString}}, {Name: "v", Type: pipeline.Type{Kind: pipeline.KindInt}}}
	cfg := &pipeline.Config{Compositions: []pipeline.Composition{c}}
	ask := func(params string) plan.Plan {
		return decide(cfg, pipeline.Event{Kind: pipeline.EventManual, Name: "c", Author: "ana"}, func(in *plan.Input) { in.Params = json.RawMessage(params) })
	}
	if p := ask(`{"v":1}`); len(p.Runs) != 1 || string(p.Runs[0].Params) != `{"env":"staging","v":1}` {
		t.Errorf("joined: %s %+v", says(p), p.Runs)
	}
	if got := says(ask(`{"v":1,"env":"prod"}`)); !strings.Contains(got, "rejected: the manual trigger sets env itself") {
		t.Errorf("replaced: %s", got)
	}
	if got := says(ask(`[]`)); !strings.Contains(got, "rejected: params are not a JSON object") {
		t.Errorf("no object: %s", got)
	}
}

func TestRunsQueueCancelAndOverflowAsTheirCompositionSays(t *testing.T) {
	t.Parallel()
	push := pipeline.Trigger{Push: &pipeline.PushTrigger{Branches: []string{"main"}}}
	grouped := func(name string, policy pipeline.Overtake) pipeline.Composition {
		c := with(name, push)
		c.Concurrency = &pipeline.Concurrency{Group: pipeline.Expr{Value: json.RawMessage(`"prod"`)}, Policy: policy}
		return c
	}
	limited := with("limited", push)
	limited.MaxRunning, limited.MaxQueued = 1, 1
	unfinished := []plan.Unfinished{
		{Composition: "release", Number: 4, Group: "prod"},
		{Composition: "release", Number: 5, Group: "prod", Waiting: true},
		{Composition: "limited", Number: 1},
		{Composition: "limited", Number: 2, Waiting: true},
		{Composition: "other", Number: 9, Group: "test"},
	}
	names := func(list []plan.RunName) string {
		var out []string
		for _, n := range list {
			out = append(out, string(n.Composition)+"#"+string(rune('0'+n.Number)))
		}
		return strings.Join(out, " ")
	}
	type outcome struct {
		Behind, Cancels string
		Full            bool
	}
	run := func(of ...pipeline.Composition) map[pipeline.CompositionName]outcome {
		p := decide(&pipeline.Config{Compositions: of}, pipeline.Event{Kind: pipeline.EventPush}, func(in *plan.Input) { in.Fleet = &plan.Fleet{Runs: unfinished} })
		out := map[pipeline.CompositionName]outcome{}
		for _, r := range p.Runs {
			out[r.Name] = outcome{names(r.Behind), names(r.Cancels), r.Full}
		}
		return out
	}
	want := map[pipeline.CompositionName]outcome{
		"a-queue":  {Behind: "release#4 release#5"},
		"b-latest": {Behind: "release#4", Cancels: "release#5"}, "limited": {Behind: "limited#1", Full: true}, "free": {},
	}
	got := run(limited, with("free", push), grouped("a-queue", pipeline.Queue))
	for name, o := range run(grouped("b-latest", pipeline.LatestOnly)) {
		got[name] = o
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := run(grouped("c", pipeline.CancelRunning))["c"]; got.Cancels != "release#4 release#5" || got.Behind != "" {
		t.Errorf("cancel-running: %+v", got)
	}
	if got := run(grouped("a", pipeline.Queue), grouped("b", pipeline.Queue))["b"]; got.Behind != "a#0 release#4 release#5" {
		t.Errorf("two runs of one plan in a group: %+v", got)
	}
}

func TestEstimatesAreNearestRanks(t *testing.T) {
	t.Parallel()
	var took []time.Duration
	for i := range 10 {
		took = append(took, time.Duration(10-i)*time.Minute)
	}
	cfg := &pipeline.Config{Compositions: []pipeline.Composition{with("c", pipeline.Trigger{Push: &pipeline.PushTrigger{Branches: []string{"main"}}})}}
	p := decide(cfg, pipeline.Event{Kind: pipeline.EventPush}, func(in *plan.Input) {
		in.Fleet = &plan.Fleet{History: []plan.History{{Composition: "c", Durations: took}}}
	})
	want := plan.Estimate{P50: pipeline.Duration(5 * time.Minute), P90: pipeline.Duration(9 * time.Minute), Of: 10}
	if got := p.Runs[0].Takes; got != want || got.String() != "5m / 9m" {
		t.Errorf("got %+v (%s), want %+v", got, got, want)
	}
	if p.Runs[0].Waits != (plan.Estimate{}) {
		t.Error("an estimate without history")
	}
}

func TestATriggerThatMustNotFireLeavesItToOneThatMay(t *testing.T) {
	t.Parallel()
	hook := func(field string) pipeline.Trigger {
		return pipeline.Trigger{Webhook: &pipeline.WebhookTrigger{ID: "deploy", Payload: &pipeline.Type{
			Kind: pipeline.KindStruct, Fields: []pipeline.Field{{Name: field, Type: pipeline.Type{Kind: pipeline.KindString}}},
		}}}
	}
	cfg := &pipeline.Config{Compositions: []pipeline.Composition{with("a", hook("version"), hook("tag"), hook("branch"))}}
	for body, want := range map[string]string{
		`{"version":"1"}`: "run: webhook deploy", `{"tag":"v1"}`: "run: webhook deploy", `{"branch":"b"}`: "run: webhook deploy",
		`{"x":1}`: `rejected: webhook deploy: payload: version: is missing; "x": is not declared`,
	} {
		p := decide(cfg, pipeline.Event{Kind: pipeline.EventWebhook, Name: "deploy", Payload: json.RawMessage(body)})
		if got := says(p); got != want {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
	if p := decide(cfg, pipeline.Event{Kind: pipeline.EventWebhook, Name: "deploy", Payload: json.RawMessage(`{"tag":"v1"}`)}); p.Runs[0].Trigger != 1 {
		t.Errorf("trigger %d fires", p.Runs[0].Trigger)
	}
}
