package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
)

var epoch0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// world is a run with its open attempts, as the control loop keeps them.
type world struct {
	run  *pipeline.Run
	of   *pipeline.Composition
	open engine.Open
	all  map[pipeline.AttemptID]pipeline.Attempt
	now  time.Time
	n    int
	stop []engine.Stop
	// of the last step
	calls   []engine.Call
	cancels []engine.Drop
}

func newWorld(tasks ...pipeline.Task) *world {
	w := &world{open: engine.Open{}, all: map[pipeline.AttemptID]pipeline.Attempt{}, now: epoch0}
	w.run = &pipeline.Run{ID: "r1", Composition: "c", State: pipeline.Pending}
	for i, t := range tasks {
		w.run.Tasks = append(w.run.Tasks, pipeline.RunTask{Name: t.Name, Index: i, Spec: t, State: pipeline.Pending})
	}
	return w
}

func (w *world) do(ev engine.Event) error {
	w.now = w.now.Add(time.Second)
	step, err := engine.Next(w.run, w.of, w.open, ev, w.now)
	if err != nil {
		return err
	}
	w.run = step.Run
	w.stop, w.calls, w.cancels = step.Stop, step.Calls, step.Cancels
	for _, c := range step.Attempts {
		w.all[c.After.ID] = c.After
		w.open[c.After.ID] = c.After
		t := w.run.Task(c.After.Task)
		inDoubt := t.State == pipeline.InDoubt && t.Attempt == c.After.ID
		if c.After.State != pipeline.AttemptOffered && c.After.State != pipeline.AttemptRunning && !inDoubt {
			delete(w.open, c.After.ID)
		}
	}
	return nil
}

func (w *world) offer(task pipeline.TaskName) pipeline.Attempt {
	w.n++
	t := w.run.Task(task)
	return pipeline.Attempt{
		ID: pipeline.AttemptID(fmt.Sprintf("at%d", w.n)), Run: w.run.ID, Task: task, Agent: "a-1",
		Token: pipeline.Token{Incarnation: 1, Epoch: t.Epoch + 1},
	}
}

// start brings a ready task to running and returns its attempt.
func (w *world) start(t *testing.T, task pipeline.TaskName) pipeline.Attempt {
	t.Helper()
	a := w.offer(task)
	w.must(t, engine.Offer{Attempt: a})
	w.must(t, engine.Accepted{Attempt: a.ID, Token: a.Token})
	return a
}

func (w *world) must(t *testing.T, ev engine.Event) {
	t.Helper()
	if err := w.do(ev); err != nil {
		t.Fatalf("%T: %v", ev, err)
	}
}

func (w *world) end(t *testing.T, task pipeline.TaskName, outcome pipeline.State) {
	t.Helper()
	a := w.start(t, task)
	w.must(t, engine.Finished{Attempt: a.ID, Token: a.Token, Result: pipeline.Result{Outcome: outcome, Reason: "because"}})
}

func (w *world) states() map[string]pipeline.State {
	m := map[string]pipeline.State{"run": w.run.State}
	for _, t := range w.run.Tasks {
		m[string(t.Name)] = t.State
	}
	return m
}

func expect(t *testing.T, w *world, want map[string]pipeline.State) {
	t.Helper()
	if d := cmp.Diff(want, w.states()); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
}

func task(name string, needs ...pipeline.TaskName) pipeline.Task {
	return pipeline.Task{Name: pipeline.TaskName(name), Needs: needs, Priority: -1}
}

func TestTasksBecomeReadyWhenTheirNeedsSucceed(t *testing.T) {
	t.Parallel()
	w := newWorld(task("a"), task("b", "a"), task("c", "a", "b"))
	w.must(t, engine.Created{})
	expect(t, w, map[string]pipeline.State{"run": "ready", "a": "ready", "b": "pending", "c": "pending"})
	if got := w.run.Task("c").Reason; got != "waits for a, b" {
		t.Errorf("reason of c = %q", got)
	}
	w.end(t, "a", pipeline.Success)
	expect(t, w, map[string]pipeline.State{"run": "running", "a": "success", "b": "ready", "c": "pending"})
	w.end(t, "b", pipeline.Success)
	w.end(t, "c", pipeline.Success)
	expect(t, w, map[string]pipeline.State{"run": "success", "a": "success", "b": "success", "c": "success"})
	if w.run.FinishedAt.IsZero() || w.run.StartedAt.IsZero() {
		t.Error("a finished run has no times")
	}
}

func TestFailureSkipsDependentsAndRunsTearDown(t *testing.T) {
	t.Parallel()
	always, onFailure := task("clean", "b"), task("report", "a")
	always.When, onFailure.When = pipeline.Always, pipeline.OnFailure
	w := newWorld(task("a"), task("b", "a"), always, onFailure)
	w.must(t, engine.Created{})
	w.end(t, "a", pipeline.Failure)
	expect(t, w, map[string]pipeline.State{"run": "running", "a": "failure", "b": "skipped", "clean": "ready", "report": "ready"})
	w.end(t, "clean", pipeline.Success)
	w.end(t, "report", pipeline.Success)
	if w.run.State != pipeline.Failure || w.run.Reason != "a: because" {
		t.Errorf("run is %s (%s), want failure (a: because)", w.run.State, w.run.Reason)
	}
}

func TestToleratedFailureDoesNotFailTheRun(t *testing.T) {
	t.Parallel()
	lint := task("lint")
	lint.Continue = true
	w := newWorld(lint, task("b", "lint"))
	w.must(t, engine.Created{})
	w.end(t, "lint", pipeline.Failure)
	w.end(t, "b", pipeline.Success)
	expect(t, w, map[string]pipeline.State{"run": "success", "lint": "failure", "b": "success"})
}

func TestRetryWaitsLongerEachTimeAndEnds(t *testing.T) {
	t.Parallel()
	a := task("a")
	a.Retries = pipeline.Retries{Max: 2, Backoff: pipeline.Duration(10 * time.Second), On: []pipeline.State{pipeline.Failure}}
	w := newWorld(a)
	w.must(t, engine.Created{})
	for _, wait := range []time.Duration{10 * time.Second, 20 * time.Second} {
		w.end(t, "a", pipeline.Failure)
		if got := w.run.Task("a").NotBefore.Sub(w.now); got != wait {
			t.Errorf("pause = %s, want %s", got, wait)
		}
		expect(t, w, map[string]pipeline.State{"run": "running", "a": "ready"})
	}
	w.end(t, "a", pipeline.Failure)
	expect(t, w, map[string]pipeline.State{"run": "failure", "a": "failure"})
}

func TestStaleMessagesChangeNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(task("a"))
	w.must(t, engine.Created{})
	old := w.offer("a")
	w.must(t, engine.Offer{Attempt: old})
	w.must(t, engine.Declined{Attempt: old.ID, Token: old.Token, Reason: "no disk"})
	a := w.start(t, "a")
	before := w.run
	forged := a.Token
	forged.Incarnation++
	for _, ev := range []engine.Event{
		engine.Accepted{Attempt: old.ID, Token: old.Token},
		engine.Finished{Attempt: old.ID, Token: old.Token, Result: pipeline.Result{Outcome: pipeline.Success}},
		engine.Accepted{Attempt: a.ID, Token: a.Token},
		engine.Declined{Attempt: a.ID, Token: a.Token},
		engine.Finished{Attempt: a.ID, Token: old.Token, Result: pipeline.Result{Outcome: pipeline.Success}},
		engine.Finished{Attempt: a.ID, Token: forged, Result: pipeline.Result{Outcome: pipeline.Success}},
		engine.Finished{Attempt: "unknown", Token: a.Token, Result: pipeline.Result{Outcome: pipeline.Success}},
		engine.Lost{Attempt: old.ID},
		engine.Unfit{Task: "a"},
		engine.Offer{Attempt: w.offer("a")},
	} {
		if err := w.do(ev); !errors.Is(err, engine.ErrStale) {
			t.Errorf("%T = %v, want ErrStale", ev, err)
		}
	}
	if d := cmp.Diff(before, w.run); d != "" {
		t.Errorf("a stale message changed the run:\n%s", d)
	}
}

func TestLostTaskIsStartedAgainOnlyWhenThatIsSafe(t *testing.T) {
	t.Parallel()
	once := task("once")
	once.Effect = pipeline.Once
	w := newWorld(task("again"), once)
	w.must(t, engine.Created{})
	for range 2 {
		a := w.start(t, "again")
		w.must(t, engine.Lost{Attempt: a.ID, Reason: "agent a-1 silent for 10m"})
		if w.run.Task("again").State != pipeline.Ready {
			t.Fatalf("again is %s, want ready", w.run.Task("again").State)
		}
	}
	a := w.start(t, "again")
	w.must(t, engine.Lost{Attempt: a.ID, Reason: "agent a-1 silent for 10m"})
	o := w.start(t, "once")
	w.must(t, engine.Lost{Attempt: o.ID, Reason: "agent a-1 silent for 10m"})
	expect(t, w, map[string]pipeline.State{"run": "in_doubt", "again": "error", "once": "in_doubt"})
	w.must(t, engine.Finished{Attempt: o.ID, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Success}})
	expect(t, w, map[string]pipeline.State{"run": "error", "again": "error", "once": "success"})
}

func TestDoubtEndsWhenItsAgentHadNotStarted(t *testing.T) {
	t.Parallel()
	once := task("once")
	once.Effect = pipeline.Once
	w := newWorld(once)
	w.must(t, engine.Created{})
	o := w.start(t, "once")
	if err := w.do(engine.NotStarted{Attempt: o.ID, Token: o.Token}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("of a task that runs: %v, want ErrStale", err)
	}
	w.must(t, engine.Lost{Attempt: o.ID, Reason: "agent a-1 silent for 10m"})
	if err := w.do(engine.Declined{Attempt: o.ID, Token: o.Token}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("a decline, which may be about an offer heard twice: %v, want ErrStale", err)
	}
	w.must(t, engine.NotStarted{Attempt: o.ID, Token: o.Token})
	expect(t, w, map[string]pipeline.State{"run": "running", "once": "ready"})
	if err := w.do(engine.Finished{Attempt: o.ID, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Success}}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("its result after that: %v, want ErrStale", err)
	}
}

func TestAttemptThatItsAgentLostIsLost(t *testing.T) {
	t.Parallel()
	once := task("once")
	once.Effect = pipeline.Once
	w := newWorld(task("again"), once)
	w.must(t, engine.Created{})
	a, o := w.start(t, "again"), w.start(t, "once")
	lost := pipeline.Result{Outcome: pipeline.Error, Lost: true, Reason: "the machine was started again"}
	w.must(t, engine.Finished{Attempt: a.ID, Token: a.Token, Result: lost})
	w.must(t, engine.Finished{Attempt: o.ID, Token: o.Token, Result: lost})
	expect(t, w, map[string]pipeline.State{"run": "running", "again": "ready", "once": "in_doubt"})
	if err := w.do(engine.Finished{Attempt: o.ID, Token: o.Token, Result: lost}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("a second report of the loss = %v, want ErrStale", err)
	}
}

func TestResultWithoutAnOutcomeEndsTheTaskInError(t *testing.T) {
	t.Parallel()
	for _, outcome := range []pipeline.State{"", "broken", pipeline.Running, pipeline.Skipped} {
		w := newWorld(task("a"))
		w.must(t, engine.Created{})
		a := w.start(t, "a")
		w.must(t, engine.Finished{Attempt: a.ID, Token: a.Token, Result: pipeline.Result{Outcome: outcome}})
		expect(t, w, map[string]pipeline.State{"run": "error", "a": "error"})
		if want := fmt.Sprintf("its agent reported %q, which is no outcome", outcome); w.run.Task("a").Reason != want {
			t.Errorf("reason = %q, want %q", w.run.Task("a").Reason, want)
		}
	}
}

func TestTearDownGetsWhatAFailedTaskReported(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		outcome  pipeline.State
		outputs  string
		optional bool
		want     pipeline.State
		reason   string
	}{
		"reported":                   {pipeline.Failure, `{"id":"i-1"}`, false, pipeline.Ready, ""},
		"reported before a timeout":  {pipeline.Timeout, `{"id":"i-1"}`, false, pipeline.Ready, ""},
		"reported before a cancel":   {pipeline.Cancelled, `{"id":"i-1"}`, false, pipeline.Ready, ""},
		"not reported":               {pipeline.Failure, `{"other":1}`, false, pipeline.Error, "output id of task a, which ended as failure and did not report it"},
		"nothing reported":           {pipeline.Error, "", false, pipeline.Error, "did not report it"},
		"not reported, and optional": {pipeline.Failure, "", true, pipeline.Ready, ""},
		"stopped before it could":    {pipeline.Cancelled, "", false, pipeline.Skipped, "did not get to it"},
		"nothing to do":              {pipeline.NotNeeded, "", false, pipeline.Skipped, "did not get to it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			clean := task("clean", "a")
			clean.When = pipeline.Always
			clean.Bindings = []pipeline.Binding{{Field: "id", From: "a", Output: "id", Optional: c.optional}}
			w := newWorld(task("a"), clean)
			w.must(t, engine.Created{})
			a := w.start(t, "a")
			w.must(t, engine.Finished{Attempt: a.ID, Token: a.Token, Result: pipeline.Result{Outcome: c.outcome, Reason: "because", Outputs: []byte(c.outputs)}})
			if k := w.run.Task("clean"); k.State != c.want || !strings.Contains(k.Reason, c.reason) {
				t.Errorf("clean is %s: %s", k.State, k.Reason)
			}
		})
	}
}

func TestTearDownOfTaskThatNeverRanIsSkipped(t *testing.T) {
	t.Parallel()
	clean := task("clean", "b")
	clean.When = pipeline.Always
	clean.Bindings = []pipeline.Binding{{Field: "id", From: "b", Output: "id"}}
	w := newWorld(task("a"), task("b", "a"), clean)
	w.must(t, engine.Created{})
	w.end(t, "a", pipeline.Failure)
	expect(t, w, map[string]pipeline.State{"run": "failure", "a": "failure", "b": "skipped", "clean": "skipped"})
}

func TestTearDownUnderWayOutlivesACancelAndALoss(t *testing.T) {
	t.Parallel()
	clean, sweep := task("clean", "a"), task("sweep", "a")
	clean.When, sweep.When = pipeline.Always, pipeline.Always
	sweep.Retries = pipeline.Retries{Max: 1, On: []pipeline.State{pipeline.Failure}}
	w := newWorld(task("a"), clean, sweep)
	w.must(t, engine.Created{})
	w.end(t, "a", pipeline.Success)
	running, offered := w.start(t, "clean"), w.offer("sweep")
	w.must(t, engine.Offer{Attempt: offered})
	w.must(t, engine.Cancel{Reason: "no longer wanted"})
	if len(w.stop) > 0 {
		t.Errorf("told to stop: %+v", w.stop)
	}
	w.must(t, engine.Accepted{Attempt: offered.ID, Token: offered.Token})
	w.must(t, engine.Finished{Attempt: offered.ID, Token: offered.Token, Result: pipeline.Result{Outcome: pipeline.Failure}})
	w.must(t, engine.Lost{Attempt: running.ID, Reason: "silent"})
	expect(t, w, map[string]pipeline.State{"run": "running", "a": "success", "clean": "ready", "sweep": "ready"})
	w.end(t, "clean", pipeline.Success)
	w.end(t, "sweep", pipeline.Success)
	if w.run.State != pipeline.Success {
		t.Errorf("run is %s: %s", w.run.State, w.run.Reason)
	}
}

func TestCancelStopsWhatRunsAndStartsNothingButTearDown(t *testing.T) {
	t.Parallel()
	clean := task("clean", "a", "b", "c")
	clean.When = pipeline.Always
	w := newWorld(task("a"), task("b"), task("c", "a"), clean)
	w.must(t, engine.Created{})
	a := w.start(t, "a")
	b := w.offer("b")
	w.must(t, engine.Offer{Attempt: b})
	w.must(t, engine.Cancel{Reason: "superseded by #2"})
	if len(w.stop) != 2 {
		t.Errorf("told %d agents to stop, want 2", len(w.stop))
	}
	if got := w.all[b.ID].State; got != pipeline.AttemptDeclined {
		t.Errorf("withdrawn offer is %q, want declined", got)
	}
	expect(t, w, map[string]pipeline.State{"run": "running", "a": "running", "b": "cancelled", "c": "cancelled", "clean": "pending"})
	if err := w.do(engine.Accepted{Attempt: b.ID, Token: b.Token}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("accepting a withdrawn offer = %v, want ErrStale", err)
	}
	w.must(t, engine.Finished{Attempt: a.ID, Token: a.Token, Result: pipeline.Result{Outcome: pipeline.Success}})
	expect(t, w, map[string]pipeline.State{"run": "running", "a": "success", "b": "cancelled", "c": "cancelled", "clean": "ready"})
	w.end(t, "clean", pipeline.Success)
	expect(t, w, map[string]pipeline.State{"run": "cancelled", "a": "success", "b": "cancelled", "c": "cancelled", "clean": "success"})
}

func TestNotNeededEndsTheRunEarlyAsASuccessOfItsOwn(t *testing.T) {
	t.Parallel()
	clean := task("clean", "b")
	clean.When = pipeline.Always
	w := newWorld(task("a"), task("b", "a"), clean)
	w.must(t, engine.Created{})
	w.end(t, "a", pipeline.NotNeeded)
	w.end(t, "clean", pipeline.Success)
	expect(t, w, map[string]pipeline.State{"run": "not_needed", "a": "not_needed", "b": "not_needed", "clean": "success"})
}

func TestTaskMayAskToCancelItsRun(t *testing.T) {
	t.Parallel()
	w := newWorld(task("a"), task("b", "a"))
	w.must(t, engine.Created{})
	a := w.start(t, "a")
	w.must(t, engine.Finished{Attempt: a.ID, Token: a.Token, Result: pipeline.Result{Outcome: pipeline.Success, CancelRun: true, Reason: "nothing new"}})
	expect(t, w, map[string]pipeline.State{"run": "cancelled", "a": "success", "b": "cancelled"})
}

// TestNoPathBreaksTheContract plays random events, sensible or not, and holds the
// invariants after each.
func TestNoPathBreaksTheContract(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(drawTasks(t)...)
		if err := w.do(engine.Created{}); err != nil {
			t.Fatal(err)
		}
		var past []engine.Event
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			before := w.run
			snapshot := before.Clone()
			ev := drawEvent(t, w)
			err := w.do(ev)
			past = append(past, ev)
			if err != nil && !errors.Is(err, engine.ErrStale) {
				t.Fatal(err)
			}
			if d := cmp.Diff(snapshot, before); d != "" {
				t.Fatalf("Next changed the run it was given:\n%s", d)
			}
			checkInvariants(t, w, before)
			repeat(t, w, rapid.SampledFrom(past).Draw(t, "again"))
		}
		playOut(t, w)
		for _, ev := range past {
			repeat(t, w, ev)
		}
	})
}

// repeat plays an event once more: whatever came of it first, it has no effect now. It
// is passed over where it would be another event: one that had no effect before, and
// may have one, and those that carry no token.
func repeat(t *rapid.T, w *world, ev engine.Event) {
	switch e := ev.(type) {
	case engine.Offer:
		if k := w.run.Task(e.Attempt.Task); k.State == pipeline.Ready && e.Attempt.Token.Epoch == k.Epoch+1 {
			return
		}
	case engine.Unfit, engine.Cancel, engine.CancelTask, engine.Resolved:
		return
	default:
		if w.counts(ev) {
			return
		}
	}
	before := w.run
	if err := w.do(ev); !errors.Is(err, engine.ErrStale) {
		t.Fatalf("%+v, once more, is %v in\n%+v", ev, err, before)
	}
	if w.run != before {
		t.Fatalf("%+v, once more, changed the run", ev)
	}
}

// counts reports whether the event is about an attempt that it may still move.
func (w *world) counts(ev engine.Event) bool {
	var id pipeline.AttemptID
	states := []pipeline.AttemptState{pipeline.AttemptRunning}
	switch e := ev.(type) {
	case engine.Accepted:
		id, states = e.Attempt, []pipeline.AttemptState{pipeline.AttemptOffered}
	case engine.Declined:
		id, states = e.Attempt, []pipeline.AttemptState{pipeline.AttemptOffered}
	case engine.NotStarted:
		id, states = e.Attempt, []pipeline.AttemptState{pipeline.AttemptLost}
	case engine.Lost:
		id = e.Attempt
	case engine.Finished:
		id = e.Attempt
		if !e.Result.Lost {
			states = append(states, pipeline.AttemptLost) // while its task is in doubt
		}
	}
	a, open := w.open[id]
	return open && slices.Contains(states, a.State)
}

// playOut lets agents answer everything from here on: the run must come to its end.
func playOut(t *rapid.T, w *world) {
	do := func(ev engine.Event) {
		if err := w.do(ev); err != nil {
			t.Fatalf("%T: %v", ev, err)
		}
	}
	for range 10 * len(w.run.Tasks) {
		for i := range w.run.Tasks {
			k := w.run.Tasks[i]
			a := w.all[k.Attempt]
			switch k.State {
			case pipeline.Ready:
				do(engine.Offer{Attempt: w.offer(k.Name)})
			case pipeline.Offered:
				do(engine.Accepted{Attempt: a.ID, Token: a.Token})
			case pipeline.Running, pipeline.InDoubt:
				do(engine.Finished{Attempt: a.ID, Token: a.Token, Result: pipeline.Result{Outcome: pipeline.Success}})
			}
		}
		if w.run.State.Terminal() {
			return
		}
	}
	t.Fatalf("the run does not end: %v", w.states())
}

func checkInvariants(t *rapid.T, w *world, before *pipeline.Run) {
	for i, now := range w.run.Tasks {
		was := before.Tasks[i]
		if was.State != now.State && !reachable(was.State, now.State) {
			t.Fatalf("task %s went from %s to %s", now.Name, was.State, now.State)
		}
		if was.State.Terminal() && was.State != now.State {
			t.Fatalf("task %s left the outcome %s", now.Name, was.State)
		}
		if now.Epoch < was.Epoch {
			t.Fatalf("epoch of %s fell", now.Name)
		}
		if now.State.Terminal() == now.FinishedAt.IsZero() {
			t.Fatalf("task %s is %s, finished at %v", now.Name, now.State, now.FinishedAt)
		}
		if !now.State.Terminal() && now.Reason == "" {
			t.Fatalf("task %s is %s without a sentence", now.Name, now.State)
		}
	}
	perTask := map[pipeline.TaskName]int{}
	for _, a := range w.open {
		if a.State == pipeline.AttemptOffered || a.State == pipeline.AttemptRunning {
			perTask[a.Task]++
		}
	}
	for name, n := range perTask {
		if n > 1 {
			t.Fatalf("task %s has %d open attempts", name, n)
		}
		if s := w.run.Task(name).State; !s.Active() {
			t.Fatalf("task %s is %s with an open attempt", name, s)
		}
	}
	if got := pipeline.RunState(w.run.Tasks); got != w.run.State {
		t.Fatalf("run shows %s, its tasks say %s", w.run.State, got)
	}
}

// reachable allows the two moves that one event may cause together.
func reachable(from, to pipeline.State) bool {
	if from.CanBecome(to) {
		return true
	}
	return slices.ContainsFunc(from.Next(), func(mid pipeline.State) bool { return mid.CanBecome(to) && !mid.Terminal() })
}

func drawTasks(t *rapid.T) []pipeline.Task {
	var out []pipeline.Task
	for i := range rapid.IntRange(1, 6).Draw(t, "tasks") {
		k := task(fmt.Sprintf("t%d", i))
		for j := range i {
			if rapid.IntRange(0, 2).Draw(t, "need") == 0 {
				k.Needs = append(k.Needs, pipeline.TaskName(fmt.Sprintf("t%d", j)))
			}
		}
		k.When = rapid.SampledFrom([]pipeline.RunWhen{"", pipeline.OnSuccess, pipeline.Always, pipeline.OnFailure}).Draw(t, "when")
		k.Effect = rapid.SampledFrom([]pipeline.Effect{pipeline.Idempotent, pipeline.Once}).Draw(t, "effect")
		k.Continue = rapid.Bool().Draw(t, "continue")
		k.Retries.Max = rapid.IntRange(0, 2).Draw(t, "retries")
		out = append(out, k)
	}
	return out
}

func drawEvent(t *rapid.T, w *world) engine.Event {
	name := w.run.Tasks[rapid.IntRange(0, len(w.run.Tasks)-1).Draw(t, "task")].Name
	ids := slices.Sorted(maps.Keys(w.all))
	var a pipeline.Attempt
	if len(ids) > 0 {
		a = w.all[rapid.SampledFrom(ids).Draw(t, "attempt")]
	}
	outcome := rapid.SampledFrom([]pipeline.State{
		pipeline.Success, pipeline.Failure, pipeline.Error, pipeline.Timeout, pipeline.Cancelled, pipeline.NotNeeded,
	}).Draw(t, "outcome")
	switch rapid.IntRange(0, 14).Draw(t, "event") {
	case 12:
		if rapid.IntRange(0, 2).Draw(t, "seldom") == 0 {
			return engine.CancelTask{Task: name, Reason: "stop it"}
		}
	case 13:
		to := rapid.SampledFrom([]pipeline.State{pipeline.Success, pipeline.Failure, pipeline.Ready}).Draw(t, "to")
		return engine.Resolved{Task: name, To: to, Reason: "I looked"}
	case 0, 1, 2, 3:
		return engine.Offer{Attempt: w.offer(name)}
	case 4, 5, 6:
		return engine.Accepted{Attempt: a.ID, Token: a.Token}
	case 7:
		return engine.Declined{Attempt: a.ID, Token: a.Token, Reason: "no"}
	case 8:
		return engine.Lost{Attempt: a.ID, Reason: "silent"}
	case 9:
		return engine.Unfit{Task: name, Reason: "does not fit"}
	case 10:
		if rapid.IntRange(0, 4).Draw(t, "rarely") == 0 {
			return engine.Cancel{Reason: "stop"}
		}
	case 14:
		return engine.NotStarted{Attempt: a.ID, Token: a.Token}
	}
	return engine.Finished{Attempt: a.ID, Token: a.Token, Result: pipeline.Result{
		Outcome: outcome, Reason: "r", CancelRun: rapid.IntRange(0, 9).Draw(t, "cancel run") == 0,
		Lost: outcome == pipeline.Error && rapid.Bool().Draw(t, "lost"),
	}}
}
