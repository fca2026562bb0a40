package engine_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
)

func builtIn(name string, needs ...pipeline.TaskName) pipeline.Task {
	t := task(name, needs...)
	t.Plugin = pipeline.CorePlugin
	t.Outputs = pipeline.Type{Kind: pipeline.KindStruct, Open: true}
	return t
}

func call(name string, join bool, needs ...pipeline.TaskName) pipeline.Task {
	t := builtIn(name, needs...)
	t.Uses, t.Call = "core/run", &pipeline.Call{Composition: "called", Digest: "sha256:called", Join: join}
	return t
}

func gate(name string, count int, needs ...pipeline.TaskName) pipeline.Task {
	t := builtIn(name, needs...)
	t.Uses, t.Fields = "core/approval", json.RawMessage(`{"message":"deploy?"}`)
	t.Gate = &pipeline.Gate{Approvers: []string{"ops"}, Count: count, Expire: pipeline.Duration(time.Hour)}
	return t
}

func waitFor(name string, needs ...pipeline.TaskName) pipeline.Task {
	t := builtIn(name, needs...)
	t.Uses, t.Wait = "core/wait-for", &pipeline.WaitFor{Composition: "lint", Within: pipeline.Duration(time.Hour)}
	return t
}

func when(t pipeline.Task, x pipeline.Expr) pipeline.Task {
	t.If = &x
	return t
}

func approve(task, by string) engine.Reviewed {
	return engine.Reviewed{Task: pipeline.TaskName(task), Review: pipeline.Review{By: by, Approve: true}}
}

func TestCallEndsAsTheRunThatItMade(t *testing.T) {
	t.Parallel()
	c := call("c", true)
	c.Outputs = pipeline.Type{Kind: pipeline.KindStruct, Fields: []pipeline.Field{{Name: "war"}}}
	w := newWorld(c, task("after", "c"))
	w.must(t, engine.Created{})
	if len(w.calls) != 1 || w.calls[0].Composition != "called" || w.calls[0].Event.Cause.Task != "c" || w.calls[0].Event.Kind != pipeline.EventCall {
		t.Fatalf("calls = %+v", w.calls)
	}
	child := &pipeline.Run{ID: "child", Composition: "called", Number: 12, State: pipeline.Running}
	w.must(t, engine.Made{Task: "c", Run: child.ID})
	w.must(t, engine.Seen{Task: "c", Run: child})
	if got := w.run.Task("c").Reason; got != "runs called#12" {
		t.Errorf("reason = %q", got)
	}
	if err := w.do(engine.Seen{Task: "c", Run: child}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("told nothing new: %v", err)
	}
	if err := w.do(engine.Seen{Task: "c", Run: &pipeline.Run{ID: "another", State: pipeline.Success}}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("another run ended: %v", err)
	}
	child = child.Clone()
	child.State, child.Outputs = pipeline.NotNeeded, json.RawMessage(`{"more":1,"war":"a.war"}`)
	w.must(t, engine.Seen{Task: "c", Run: child})
	expect(t, w, map[string]pipeline.State{"run": "running", "c": "success", "after": "ready"})
	if got := string(w.run.Task("c").Outputs); got != `{"war":"a.war"}` {
		t.Errorf("outputs = %s, want those that the caller declares", got)
	}
}

func TestCallWithoutWaitingSucceedsOnceItsRunIsThere(t *testing.T) {
	t.Parallel()
	w := newWorld(call("c", false))
	w.must(t, engine.Created{})
	w.must(t, engine.Made{Task: "c", Run: "child"})
	w.must(t, engine.Seen{Task: "c", Run: &pipeline.Run{ID: "child", Composition: "called", Number: 3, State: pipeline.Pending}})
	expect(t, w, map[string]pipeline.State{"run": "success", "c": "success"})
	if got := string(w.run.Task("c").Outputs); got != `{"run":"child"}` {
		t.Errorf("outputs = %s", got)
	}
}

func TestCancelTakesCalledRunsAlong(t *testing.T) {
	t.Parallel()
	w := newWorld(call("c", true), gate("g", 1), waitFor("w"))
	w.must(t, engine.Created{})
	w.must(t, engine.Made{Task: "c", Run: "child"})
	w.must(t, engine.Cancel{Reason: "overtaken"})
	if len(w.cancels) != 1 || w.cancels[0].Run != "child" {
		t.Errorf("cancels = %+v", w.cancels)
	}
	expect(t, w, map[string]pipeline.State{"run": "running", "c": "running", "g": "cancelled", "w": "cancelled"})
	w.must(t, engine.Seen{Task: "c", Run: &pipeline.Run{ID: "child", Composition: "called", State: pipeline.Cancelled, Reason: "told"}})
	expect(t, w, map[string]pipeline.State{"run": "cancelled", "c": "cancelled", "g": "cancelled", "w": "cancelled"})
}

func TestCallsThatNestTooDeepEnd(t *testing.T) {
	t.Parallel()
	hooked := task("bad")
	hooked.OnFailure = &pipeline.Hook{Composition: "tell"}
	w := newWorld(call("c", true), hooked)
	w.run.Depth = engine.MaxDepth
	w.must(t, engine.Created{})
	w.end(t, "bad", pipeline.Failure)
	if len(w.calls) > 0 || w.run.Task("c").State != pipeline.Error || !strings.Contains(w.run.Task("c").Reason, "16 calls") {
		t.Errorf("c: %+v, calls %+v", w.run.Task("c"), w.calls)
	}
	if got := w.run.Task("bad").Reason; !strings.Contains(got, "tell is not called") {
		t.Errorf("bad: %s", got)
	}
}

func TestGateCountsDifferentPeople(t *testing.T) {
	t.Parallel()
	w := newWorld(gate("g", 2), task("after", "g"))
	w.must(t, engine.Created{})
	g := w.run.Task("g")
	if g.Reason != "waits for 2 more approvals of ops: reconciler review c#0/g" || g.Message != "deploy?" || w.run.State != pipeline.Held {
		t.Errorf("gate = %+v, run %s", g, w.run.State)
	}
	const note = "the review by eve does not count: it is not signed"
	w.must(t, engine.Judged{Task: "g", Note: note})
	if got := w.run.Task("g").Reason; got != "waits for 2 more approvals of ops: reconciler review c#0/g; "+note {
		t.Errorf("reason = %q", got)
	}
	if err := w.do(engine.Judged{Task: "g", Note: note}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("nothing new: %v", err)
	}
	w.must(t, approve("g", "ana"))
	if err := w.do(approve("g", "ana")); !errors.Is(err, engine.ErrStale) {
		t.Errorf("the same review again: %v", err)
	}
	if got := w.run.Task("g").Reason; got != "waits for 1 more approval of ops (approved by ana): reconciler review c#0/g" {
		t.Errorf("reason = %q", got)
	}
	again := approve("g", "ana")
	again.Review.Comment = "sure"
	w.must(t, again)
	expect(t, w, map[string]pipeline.State{"run": "held", "g": "held", "after": "pending"})
	w.must(t, engine.Withdrawn{Task: "g", By: "ana"})
	if g := w.run.Task("g"); len(g.Reviews) > 0 || g.Reason != "waits for 2 more approvals of ops: reconciler review c#0/g" {
		t.Errorf("after it was withdrawn: %+v", g)
	}
	if err := w.do(engine.Withdrawn{Task: "g", By: "ana"}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("withdrawn again: %v", err)
	}
	w.must(t, again)
	w.must(t, approve("g", "bo"))
	expect(t, w, map[string]pipeline.State{"run": "running", "g": "success", "after": "ready"})
	if got := string(w.run.Task("g").Outputs); got != `{"approved_at":"0001-01-01T00:00:00Z","approved_by":["ana","bo"],"comment":"sure"}` {
		t.Errorf("outputs = %s", got)
	}
	if err := w.do(engine.Judged{Task: "g", Note: note}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("a word on a gate that is open: %v", err)
	}
	if err := w.do(engine.Withdrawn{Task: "g", By: "bo"}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("withdrawn from a gate that is open: %v", err)
	}
	if err := w.do(approve("g", "cy")); !errors.Is(err, engine.ErrStale) {
		t.Errorf("a review of a gate that is open: %v", err)
	}
}

func TestRefusalFailsAGateAndTimeEndsIt(t *testing.T) {
	t.Parallel()
	w := newWorld(gate("refused", 2), gate("late", 1))
	w.must(t, engine.Created{})
	w.must(t, approve("refused", "ana"))
	w.must(t, engine.Reviewed{Task: "refused", Review: pipeline.Review{By: "ana", Comment: "on second thoughts"}})
	if err := w.do(engine.Expired{Task: "late"}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("expired early: %v", err)
	}
	w.now = engine.Due(w.run.Task("late"))
	w.must(t, engine.Expired{Task: "late"})
	expect(t, w, map[string]pipeline.State{"run": "timeout", "refused": "failure", "late": "timeout"})
	if got := w.run.Task("refused").Reason; got != "refused by ana: on second thoughts" {
		t.Errorf("reason = %q", got)
	}
}

func TestGateAsksForItsMessageWhileItHolds(t *testing.T) {
	t.Parallel()
	g := gate("g", 1)
	g.Fields, g.Deferred = nil, true
	w := newWorld(g)
	w.must(t, engine.Created{})
	if got := engine.Wants(w.run, nil); len(got) != 1 || got[0] != (engine.Want{Part: pipeline.PartFields, Task: "g"}) {
		t.Errorf("wants = %+v", got)
	}
	w.must(t, engine.Asked{Task: "g", Fields: json.RawMessage(`{"message":"deploy 1.2?"}`)})
	if w.run.Task("g").Message != "deploy 1.2?" || len(engine.Wants(w.run, nil)) > 0 {
		t.Errorf("gate = %+v", w.run.Task("g"))
	}
}

func TestWaitEndsWithTheRunThatItFinds(t *testing.T) {
	t.Parallel()
	lint := func(s pipeline.State) *pipeline.Run {
		return &pipeline.Run{ID: "l", Composition: "lint", Number: 4, State: s}
	}
	for state, want := range map[pipeline.State]pipeline.State{
		pipeline.Success: pipeline.Success, pipeline.NotNeeded: pipeline.Success,
		pipeline.Failure: pipeline.Failure, pipeline.Cancelled: pipeline.Failure,
	} {
		w := newWorld(waitFor("w"))
		w.must(t, engine.Created{})
		w.must(t, engine.Seen{Task: "w", Run: lint(pipeline.Running)})
		if got := w.run.Task("w").Reason; got != "waits for lint#4, at most 1h0m0s" {
			t.Errorf("reason = %q", got)
		}
		w.must(t, engine.Seen{Task: "w", Run: lint(state)})
		if got := w.run.Task("w").State; got != want {
			t.Errorf("lint ended in %s, the wait in %s", state, got)
		}
	}
	w := newWorld(waitFor("w"))
	w.must(t, engine.Created{})
	w.now = engine.Due(w.run.Task("w"))
	w.must(t, engine.Expired{Task: "w"})
	expect(t, w, map[string]pipeline.State{"run": "timeout", "w": "timeout"})
}

func TestSkipByConditionIsNoFailure(t *testing.T) {
	t.Parallel()
	reads := task("reads", "no")
	reads.Open = map[string]pipeline.Expr{"x": {Deferred: true, Reads: []pipeline.TaskName{"no"}}}
	bound := task("bound", "no")
	bound.Bindings = []pipeline.Binding{{Field: "x", From: "no", Output: "x"}}
	w := newWorld(
		when(task("no"), pipeline.Expr{Value: json.RawMessage("false"), Text: "event.branch == \"main\""}),
		when(task("yes"), pipeline.Expr{Value: json.RawMessage("true")}),
		task("order", "no", "yes"), reads, bound, task("far", "reads"),
	)
	w.must(t, engine.Created{})
	if got := w.run.Task("no").Reason; got != `its condition is false: event.branch == "main"` {
		t.Errorf("reason = %q", got)
	}
	w.end(t, "yes", pipeline.Success)
	expect(t, w, map[string]pipeline.State{
		"run": "running", "no": "skipped", "yes": "success", "order": "ready", "reads": "skipped", "bound": "skipped", "far": "ready",
	})
	if got := w.run.Task("reads").Reason; got != "reads outputs of task no, which did not get to it" {
		t.Errorf("reason = %q", got)
	}
}

func TestSkipBehindAFailureStaysOne(t *testing.T) {
	t.Parallel()
	w := newWorld(task("bad"), when(task("c", "bad"), pipeline.Expr{Value: json.RawMessage("false")}), task("d", "c"))
	w.must(t, engine.Created{})
	w.end(t, "bad", pipeline.Failure)
	expect(t, w, map[string]pipeline.State{"run": "failure", "bad": "failure", "c": "skipped", "d": "skipped"})
}

func TestConditionIsAskedForOnceItsNeedsHaveEnded(t *testing.T) {
	t.Parallel()
	w := newWorld(task("a"), when(task("c", "a"), pipeline.Expr{Deferred: true, Text: "tasks.a.outputs.go"}), when(gate("g", 1), pipeline.Expr{Deferred: true}))
	w.must(t, engine.Created{})
	if got := engine.Wants(w.run, nil); len(got) != 1 || got[0].Task != "g" {
		t.Errorf("wants = %+v", got)
	}
	w.must(t, engine.Decided{Task: "g", If: json.RawMessage("true")})
	w.end(t, "a", pipeline.Success)
	expect(t, w, map[string]pipeline.State{"run": "held", "a": "success", "c": "pending", "g": "held"})
	if got := w.run.Task("c").Reason; got != "waits for its condition, which is being computed" {
		t.Errorf("reason = %q", got)
	}
	w.must(t, engine.Decided{Task: "c", If: json.RawMessage("false")})
	expect(t, w, map[string]pipeline.State{"run": "held", "a": "success", "c": "skipped", "g": "held"})
}

func TestInstancesBeyondTheListAreSkipped(t *testing.T) {
	t.Parallel()
	var tasks []pipeline.Task
	for i := range 3 {
		k := task(fmt.Sprintf("t-%d", i+1))
		k.Each = &pipeline.Each{Of: "t", Index: i + 1, Max: 3, Items: pipeline.Expr{Value: json.RawMessage(`["a","b"]`)}}
		tasks = append(tasks, k)
	}
	w := newWorld(append(tasks, task("after", "t-1", "t-2", "t-3"))...)
	w.must(t, engine.Created{})
	w.end(t, "t-1", pipeline.Success)
	w.end(t, "t-2", pipeline.Success)
	expect(t, w, map[string]pipeline.State{"run": "running", "t-1": "success", "t-2": "success", "t-3": "skipped", "after": "ready"})
	if got := w.run.Task("t-3").Reason; got != "the list has 2 elements" {
		t.Errorf("reason = %q", got)
	}
	for i := range tasks {
		tasks[i].Each.Items = pipeline.Expr{Deferred: true}
	}
	w = newWorld(tasks...)
	w.must(t, engine.Created{})
	for _, k := range tasks {
		w.must(t, engine.Decided{Task: k.Name, Items: json.RawMessage(`[1,2,3,4]`)})
	}
	expect(t, w, map[string]pipeline.State{"run": "ready", "t-1": "ready", "t-2": "ready", "t-3": "error"})
}

func TestHooksAreCalledOnceWithWhatFailed(t *testing.T) {
	t.Parallel()
	bad := task("bad", "a")
	bad.OnFailure = &pipeline.Hook{Composition: "rollback", Digest: "sha256:r"}
	w := newWorld(task("a"), bad, task("b"))
	w.of = &pipeline.Composition{OnFailure: &pipeline.Hook{Composition: "tell"}}
	w.must(t, engine.Created{})
	a := w.start(t, "a")
	w.must(t, engine.Finished{Attempt: a.ID, Token: a.Token, Result: pipeline.Result{Outcome: pipeline.Success, Outputs: json.RawMessage(`{"x":1}`)}})
	w.end(t, "bad", pipeline.Failure)
	if len(w.calls) != 1 || w.calls[0].Composition != "rollback" || w.calls[0].Digest != "sha256:r" {
		t.Fatalf("calls = %+v", w.calls)
	}
	c := w.calls[0].Event.Cause
	if w.calls[0].Event.Kind != pipeline.EventFailure || c.Task != "bad" || c.State != pipeline.Failure || c.Reason != "because" || string(c.Outputs["a"]) != `{"x":1}` {
		t.Errorf("cause = %+v", c)
	}
	w.calls = nil
	w.end(t, "b", pipeline.Success)
	if len(w.calls) != 1 || w.calls[0].Composition != "tell" || w.calls[0].Event.Cause.Task != "" || w.calls[0].Event.Cause.State != pipeline.Failure {
		t.Errorf("calls = %+v", w.calls)
	}
}

func TestRunEndsOnceItHasWhatItReturns(t *testing.T) {
	t.Parallel()
	of := &pipeline.Composition{Returns: pipeline.Expr{Deferred: true}}
	w := newWorld(task("a"))
	w.of = of
	w.must(t, engine.Created{})
	w.end(t, "a", pipeline.Success)
	if w.run.State != pipeline.Running || w.run.Reason != "computes its outputs" {
		t.Errorf("run is %s: %s", w.run.State, w.run.Reason)
	}
	if got := engine.Wants(w.run, of); len(got) != 1 || got[0].Part != pipeline.PartOutputs {
		t.Errorf("wants = %+v", got)
	}
	before := *w
	w.must(t, engine.Unfit{Reason: "url: is missing"})
	if w.run.State != pipeline.Error || w.run.Reason != "url: is missing" {
		t.Errorf("run is %s: %s", w.run.State, w.run.Reason)
	}
	w = &before
	w.must(t, engine.Returned{Outputs: json.RawMessage(`{"url":"x"}`)})
	if w.run.State != pipeline.Success || string(w.run.Outputs) != `{"url":"x"}` || len(engine.Wants(w.run, of)) > 0 {
		t.Errorf("run = %+v", w.run)
	}
	static := newWorld(task("a"))
	static.of = &pipeline.Composition{Returns: pipeline.Expr{Value: json.RawMessage(`{"n":1}`)}}
	static.must(t, engine.Created{})
	static.end(t, "a", pipeline.Success)
	if static.run.State != pipeline.Success || string(static.run.Outputs) != `{"n":1}` {
		t.Errorf("run = %+v", static.run)
	}
}

func TestDraftAndPlaceInLineHoldEverythingBack(t *testing.T) {
	t.Parallel()
	w := newWorld(task("a"), gate("g", 1), call("c", true))
	w.run.Draft = true
	w.must(t, engine.Created{})
	all := func(s pipeline.State) map[string]pipeline.State {
		return map[string]pipeline.State{"run": s, "a": s, "g": s, "c": s}
	}
	expect(t, w, all(pipeline.Pending))
	w.must(t, engine.Prepared{Params: json.RawMessage(`{}`), Group: "prod", Behind: []pipeline.RunID{"x"}, Why: "behind c#1 in group prod"})
	expect(t, w, all(pipeline.Pending))
	if w.run.Reason != "behind c#1 in group prod" || w.run.Task("g").Reason != w.run.Reason || w.run.Group != "prod" {
		t.Errorf("run = %+v", w.run)
	}
	waits := *w
	w.must(t, engine.Moved{})
	expect(t, w, map[string]pipeline.State{"run": "running", "a": "ready", "g": "held", "c": "running"})
	w = &waits
	w.must(t, engine.Cancel{Reason: "overtaken"})
	expect(t, w, all(pipeline.Cancelled))

	w = newWorld(task("a"))
	w.run.Draft = true
	w.must(t, engine.Created{})
	w.must(t, engine.Unfit{Reason: "params of c: n: is missing"})
	expect(t, w, map[string]pipeline.State{"run": "error", "a": "skipped"})
	if w.run.Reason != "params of c: n: is missing" {
		t.Errorf("reason = %q", w.run.Reason)
	}
}

// TestNoPathOfBuiltInTasksBreaksTheContract plays runs in which everything may
// happen, to tasks of all kinds. Whatever came first, the run ends once those outside
// answer, no call is made twice, and nothing is stuck without somebody to move it.
func TestNoPathOfBuiltInTasksBreaksTheContract(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(drawAll(t)...)
		w.of = &pipeline.Composition{OnFailure: &pipeline.Hook{Composition: "tell"}}
		if rapid.Bool().Draw(t, "returns") {
			w.of.Returns = pipeline.Expr{Deferred: true}
		}
		w.run.Draft = rapid.Bool().Draw(t, "draft")
		p := &player{t: t, world: w, made: map[string]int{}, children: map[pipeline.RunID]pipeline.State{}}
		p.do(engine.Created{})
		for range rapid.IntRange(0, 30).Draw(t, "events") {
			if w.run.State.Terminal() {
				break
			}
			p.step()
		}
		for range 40 * (1 + len(w.run.Tasks)) {
			if w.run.State.Terminal() {
				return
			}
			if !p.answer() {
				t.Fatalf("nobody can move the run: %s %q %+v", w.run.State, w.run.Reason, w.states())
			}
		}
		t.Fatalf("the run does not end: %+v", w.states())
	})
}

func drawAll(t *rapid.T) []pipeline.Task {
	var out []pipeline.Task
	for i := range rapid.IntRange(1, 6).Draw(t, "tasks") {
		var needs []pipeline.TaskName
		for _, earlier := range out {
			if rapid.IntRange(0, 3).Draw(t, "needs") == 0 {
				needs = append(needs, earlier.Name)
			}
		}
		name := fmt.Sprintf("t%d", i)
		k := task(name, needs...)
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			k = call(name, rapid.Bool().Draw(t, "join"), needs...)
		case 1:
			k = gate(name, rapid.IntRange(1, 2).Draw(t, "count"), needs...)
			k.Deferred = rapid.Bool().Draw(t, "deferred")
		case 2:
			k = waitFor(name, needs...)
		}
		k.When = rapid.SampledFrom([]pipeline.RunWhen{"", pipeline.Always, pipeline.OnFailure}).Draw(t, "when")
		k.Continue = rapid.Bool().Draw(t, "continue")
		if rapid.IntRange(0, 2).Draw(t, "if") == 0 {
			k = when(k, pipeline.Expr{Deferred: true, Reads: needs})
		}
		if rapid.IntRange(0, 4).Draw(t, "each") == 0 {
			k.Each = &pipeline.Each{Of: "e", Index: 2, Max: 3, Items: pipeline.Expr{Deferred: true}}
		}
		if rapid.IntRange(0, 2).Draw(t, "hook") == 0 {
			k.OnFailure = &pipeline.Hook{Composition: "tell"}
		}
		out = append(out, k)
	}
	return out
}

// player is everybody outside of the engine.
type player struct {
	t *rapid.T
	*world
	made     map[string]int
	children map[pipeline.RunID]pipeline.State
	n        int
}

func (p *player) do(ev engine.Event) {
	before := p.run
	p.calls = nil
	if err := p.world.do(ev); err != nil {
		if !errors.Is(err, engine.ErrStale) {
			p.t.Fatalf("%T: %v", ev, err)
		}
		return
	}
	p.check(before)
	for _, c := range p.calls {
		key := c.Event.Kind + " " + string(c.Task)
		if p.made[key]++; p.made[key] > 1 {
			p.t.Fatalf("%s is called twice", key)
		}
		if c.Event.Kind == pipeline.EventCall {
			p.n++
			id := pipeline.RunID(fmt.Sprintf("child-%d", p.n))
			p.children[id] = pipeline.Pending
			p.do(engine.Made{Task: c.Task, Run: id})
		}
	}
}

func (p *player) check(before *pipeline.Run) {
	for i := range p.run.Tasks {
		was, is := &before.Tasks[i], &p.run.Tasks[i]
		if was.State != is.State && (was.State.Terminal() || !reachable(was.State, is.State)) {
			p.t.Fatalf("task %s went from %s to %s", is.Name, was.State, is.State)
		}
		if is.Spec.BuiltIn() && (is.Epoch > 0 || is.State == pipeline.Ready || is.State == pipeline.Offered || is.State == pipeline.InDoubt) {
			p.t.Fatalf("built-in task %s is %s in epoch %d", is.Name, is.State, is.Epoch)
		}
		if is.State != pipeline.Pending && !is.State.Terminal() && (p.run.Draft || len(p.run.Behind) > 0) {
			p.t.Fatalf("task %s is %s and its run waits in line", is.Name, is.State)
		}
		if !is.State.Terminal() && is.Reason == "" {
			p.t.Fatalf("task %s is %s without a sentence", is.Name, is.State)
		}
		if p.run.State.Terminal() && !is.State.Terminal() {
			p.t.Fatalf("the run is %s and task %s %s", p.run.State, is.Name, is.State)
		}
		bad := is.State == pipeline.Failure || is.State == pipeline.Error || is.State == pipeline.Timeout
		if now := was.State != is.State && bad && is.Spec.OnFailure != nil; now {
			found := false
			for _, c := range p.calls {
				found = found || c.Event.Kind == pipeline.EventFailure && c.Task == is.Name
			}
			if !found {
				p.t.Fatalf("task %s ended in %s and its hook is not called", is.Name, is.State)
			}
		}
	}
	if !p.run.State.Terminal() && p.run.Reason == "" {
		p.t.Fatalf("the run is %s without a sentence", p.run.State)
	}
}

// step lets something happen, sensible or not.
func (p *player) step() {
	name := rapid.SampledFrom(p.run.Tasks).Draw(p.t, "task").Name
	switch rapid.IntRange(0, 9).Draw(p.t, "step") {
	case 0:
		p.do(engine.Cancel{Reason: "enough"})
	case 1:
		p.do(engine.Unfit{Task: name, Reason: "does not fit"})
	case 2:
		if rapid.Bool().Draw(p.t, "withdrawn") {
			p.do(engine.Withdrawn{Task: name, By: "x"})
			return
		}
		p.do(engine.Reviewed{Task: name, Review: pipeline.Review{By: "x", Approve: rapid.Bool().Draw(p.t, "approve")}})
	case 3:
		if due := engine.Due(p.run.Task(name)); !due.IsZero() {
			p.now = due
		}
		p.do(engine.Expired{Task: name})
	case 4:
		p.do(engine.Moved{})
	case 5:
		p.do(engine.Decided{Task: name, If: json.RawMessage(`"x"`), Items: json.RawMessage(`[]`)})
	case 6:
		p.do(engine.Unfit{Reason: "no params"})
	default:
		p.answer()
	}
}

// answer lets somebody do what the run waits for, and reports whether anybody could.
func (p *player) answer() bool {
	if p.run.Draft {
		p.do(engine.Prepared{Params: json.RawMessage(`{}`), Behind: rapid.SampledFrom([][]pipeline.RunID{nil, {"x"}}).Draw(p.t, "behind"), Why: "behind x"})
		return true
	}
	if len(p.run.Behind) > 0 {
		p.do(engine.Moved{})
		return true
	}
	if wants := engine.Wants(p.run, p.of); len(wants) > 0 {
		w := rapid.SampledFrom(wants).Draw(p.t, "want")
		switch w.Part {
		case pipeline.PartIf:
			list := rapid.SampledFrom([]string{`[]`, `[1,2]`, `[1,2,3,4]`}).Draw(p.t, "list")
			p.do(engine.Decided{Task: w.Task, Items: json.RawMessage(list), If: json.RawMessage(fmt.Sprint(rapid.Bool().Draw(p.t, "if")))})
		case pipeline.PartFields:
			p.do(engine.Asked{Task: w.Task, Fields: json.RawMessage(`{"message":"?"}`)})
		default:
			p.do(engine.Returned{Outputs: json.RawMessage(`{}`)})
		}
		return true
	}
	moved := false
	for i := range p.run.Tasks {
		if i < len(p.run.Tasks) && !p.run.State.Terminal() {
			k := p.run.Tasks[i]
			moved = p.move(&k) || moved
		}
	}
	return moved
}

func (p *player) move(k *pipeline.RunTask) bool {
	outcomes := []pipeline.State{pipeline.Success, pipeline.Failure, pipeline.Error, pipeline.Cancelled, pipeline.NotNeeded}
	switch {
	case k.State == pipeline.Held:
		p.do(approve(string(k.Name), fmt.Sprintf("person-%d", len(k.Reviews))))
	case k.State == pipeline.Running && k.Spec.Call != nil:
		if k.Child == "" {
			p.t.Fatalf("task %s runs, and no run was made for it", k.Name)
		}
		p.do(engine.Seen{Task: k.Name, Run: &pipeline.Run{ID: k.Child, Composition: "called", State: rapid.SampledFrom(outcomes).Draw(p.t, "child")}})
	case k.State == pipeline.Running && k.Spec.Wait != nil:
		p.do(engine.Seen{Task: k.Name, Run: &pipeline.Run{ID: "lint", Composition: "lint", State: rapid.SampledFrom(outcomes).Draw(p.t, "lint")}})
	case k.State == pipeline.Ready:
		a := p.offer(k.Name)
		p.do(engine.Offer{Attempt: a})
		p.do(engine.Accepted{Attempt: a.ID, Token: a.Token})
		p.do(engine.Finished{Attempt: a.ID, Token: a.Token, Result: pipeline.Result{Outcome: rapid.SampledFrom(outcomes).Draw(p.t, "outcome")}})
	default:
		return false
	}
	return true
}

func TestWhatCannotBeComputedNowIsSaid(t *testing.T) {
	t.Parallel()
	w := newWorld(when(task("c"), pipeline.Expr{Deferred: true}))
	w.of = &pipeline.Composition{Returns: pipeline.Expr{Deferred: true}}
	w.run.Draft = true
	w.must(t, engine.Created{})
	w.must(t, engine.Stuck{Why: "the disk is away"})
	if w.run.Reason != "the disk is away" || w.run.Task("c").Reason != "the disk is away" {
		t.Errorf("draft: %s", w.run.Reason)
	}
	if err := w.do(engine.Stuck{Why: "the disk is away"}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("said again: %v", err)
	}
	w.must(t, engine.Prepared{})
	w.must(t, engine.Stuck{Task: "c", Why: "the child is away"})
	if got := w.run.Task("c").Reason; got != "the child is away" {
		t.Errorf("condition: %s", got)
	}
	w.must(t, engine.Decided{Task: "c", If: json.RawMessage("true")})
	w.end(t, "c", pipeline.Success)
	w.must(t, engine.Stuck{Why: "the child is away"})
	if w.run.State != pipeline.Running || w.run.Reason != "the child is away" {
		t.Errorf("outputs: %s %s", w.run.State, w.run.Reason)
	}
	if err := w.do(engine.Stuck{Task: "c", Why: "late"}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("of a task that has ended: %v", err)
	}
}
