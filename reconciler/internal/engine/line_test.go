package engine_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
)

// queue is a set of unfinished runs, kept in line as the control loop does.
type queue struct {
	t         rapid.TB
	all       []engine.Entrant
	n         int
	cancelled map[pipeline.RunID]string
}

// branchRef is not in force.
const branchRef pipeline.Ref = "refs/heads/x"

// enter adds a run and returns it.
func (q *queue) enter(of *pipeline.Composition, group string, event pipeline.Event) *pipeline.Run {
	q.n++
	r := &pipeline.Run{
		ID: pipeline.RunID(fmt.Sprintf("%04d", q.n)), Number: q.n, Composition: of.Name, Group: group, Draft: true, Event: event,
		State: pipeline.Pending,
	}
	q.all = append(q.all, engine.Entrant{Run: r, Of: of, Enters: true, Live: event.Ref != branchRef})
	q.settle()
	return r
}

// settle applies the line until it stands still.
func (q *queue) settle() {
	for range 100 {
		places := engine.Line(q.all)
		moved := false
		for _, p := range places {
			i := slices.IndexFunc(q.all, func(e engine.Entrant) bool { return e.Run.ID == p.Run })
			if i < 0 {
				continue
			}
			e := &q.all[i]
			waits := e.Enters || len(e.Run.Behind) > 0
			if p.Cancel != "" && !e.Run.Cancel {
				moved = true
				e.Run.Cancel = true
				q.cancelled[p.Run] = p.Cancel
				if waits { // nothing of it has started
					q.all = slices.Delete(q.all, i, i+1)
				}
				continue
			}
			moved = moved || e.Enters || !slices.Equal(e.Run.Behind, p.Behind)
			if len(p.Behind) > 0 && p.Why == "" {
				q.t.Fatalf("%s waits without a sentence", p.Run)
			}
			e.Run.Behind, e.Run.Draft, e.Enters = p.Behind, false, false
		}
		if !moved {
			return
		}
	}
	q.t.Fatalf("the line does not stand still: %s", q)
}

func (q *queue) end(id pipeline.RunID) {
	q.all = slices.DeleteFunc(q.all, func(e engine.Entrant) bool { return e.Run.ID == id })
	q.settle()
}

func (q *queue) String() string {
	s := ""
	for _, e := range q.all {
		s += fmt.Sprintf("%s#%d group %q behind %v cancel %v\n", e.Run.Composition, e.Run.Number, e.Run.Group, e.Run.Behind, e.Run.Cancel)
	}
	return s
}

func (q *queue) going() (out []int) {
	for _, e := range q.all {
		if len(e.Run.Behind) == 0 {
			out = append(out, e.Run.Number)
		}
	}
	return out
}

func newQueue(t rapid.TB) *queue { return &queue{t: t, cancelled: map[pipeline.RunID]string{}} }

func grouped(name string, p pipeline.Overtake) *pipeline.Composition {
	return &pipeline.Composition{Name: pipeline.CompositionName(name), Concurrency: &pipeline.Concurrency{Policy: p}}
}

func TestRunsOfAGroupTakeTurns(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	for range 3 {
		q.enter(grouped("a", pipeline.Queue), "prod", pipeline.Event{})
	}
	q.enter(grouped("b", pipeline.Queue), "other", pipeline.Event{})
	if d := cmp.Diff([]int{1, 4}, q.going()); d != "" {
		t.Error(d)
	}
	places := engine.Line(q.all)
	if places[1].Why != "behind a#2 in group prod" {
		t.Errorf("why = %q", places[1].Why)
	}
	q.end("0002") // cancelled in the queue
	q.end("0001")
	if d := cmp.Diff([]int{3, 4}, q.going()); d != "" {
		t.Error(d)
	}
}

func TestARunOfABranchNeitherEndsNorCrowdsOutOneThatIsInForce(t *testing.T) {
	t.Parallel()
	for _, policy := range []pipeline.Overtake{pipeline.CancelRunning, pipeline.LatestOnly} {
		q := newQueue(t)
		q.enter(grouped("a", pipeline.Queue), "prod", pipeline.Event{})
		q.enter(grouped("a", pipeline.Queue), "prod", pipeline.Event{})
		q.enter(grouped("a", policy), "prod", pipeline.Event{Ref: branchRef})
		if len(q.cancelled) > 0 || q.all[2].Run.Behind == nil {
			t.Errorf("%s of a branch: cancelled %v\n%s", policy, q.cancelled, q)
		}
		q.enter(grouped("a", pipeline.LatestOnly), "prod", pipeline.Event{})
		if q.cancelled["0002"] == "" || q.cancelled["0003"] == "" || len(q.cancelled) != 2 {
			t.Errorf("what is in force overtakes both that wait: cancelled %v", q.cancelled)
		}
	}
	limited := &pipeline.Composition{Name: "a", MaxRunning: 1, MaxQueued: 1}
	q := newQueue(t)
	q.enter(limited, "", pipeline.Event{})
	q.enter(limited, "", pipeline.Event{Ref: branchRef})
	q.enter(limited, "", pipeline.Event{})
	if len(q.cancelled) > 0 {
		t.Errorf("a branch fills the queue: cancelled %v", q.cancelled)
	}
	q.enter(limited, "", pipeline.Event{Ref: branchRef})
	if q.cancelled["0004"] == "" {
		t.Errorf("the queue has no end:\n%s", q)
	}
}

func TestPolicySaysWhomARunOvertakes(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	for range 3 {
		q.enter(grouped("a", pipeline.LatestOnly), "prod", pipeline.Event{})
	}
	if q.cancelled["0002"] != "overtaken by a#3" || len(q.cancelled) != 1 {
		t.Errorf("latest-only cancels %v", q.cancelled)
	}
	q = newQueue(t)
	for range 2 {
		q.enter(grouped("a", pipeline.CancelRunning), "prod", pipeline.Event{})
	}
	if q.cancelled["0001"] != "overtaken by a#2" || len(q.cancelled) != 1 {
		t.Errorf("cancel-running cancels %v", q.cancelled)
	}
	if d := cmp.Diff([]int{1}, q.going()); d != "" {
		t.Errorf("before the first has ended: %s", d)
	}
	q.end("0001")
	if d := cmp.Diff([]int{2}, q.going()); d != "" {
		t.Error(d)
	}
}

func TestLimitsBoundWhatRunsAndWhatWaits(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	of := &pipeline.Composition{Name: "a", MaxRunning: 2, MaxQueued: 1}
	for range 4 {
		q.enter(of, "", pipeline.Event{})
	}
	if d := cmp.Diff([]int{1, 2}, q.going()); d != "" {
		t.Error(d)
	}
	if q.cancelled["0004"] != "1 run of a wait already, and no more may" || len(q.cancelled) != 1 {
		t.Errorf("cancelled: %v", q.cancelled)
	}
	if got := engine.Line(q.all)[0].Why; got != "behind a#1, a#2: at most 2 runs of a at a time" {
		t.Errorf("why = %q", got)
	}
}

// caller makes a running call of the entrant's run and returns the event of the
// called one.
func (q *queue) caller(r *pipeline.Run) pipeline.Event {
	child := pipeline.RunID(fmt.Sprintf("%04d", q.n+1))
	name := pipeline.TaskName(fmt.Sprintf("call-%d", len(r.Tasks)))
	r.Tasks = append(r.Tasks, pipeline.RunTask{
		Name: name, State: pipeline.Running, Child: child, Spec: pipeline.Task{Plugin: pipeline.CorePlugin, Call: &pipeline.Call{Join: true}},
	})
	return pipeline.Event{Kind: pipeline.EventCall, Cause: &pipeline.Cause{Run: r.ID, Task: name}}
}

func TestCalledRunDoesNotWaitForItsCaller(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	of := grouped("a", pipeline.Queue)
	of.MaxRunning = 1
	caller := q.enter(of, "prod", pipeline.Event{})
	q.enter(of, "prod", pipeline.Event{})
	called := q.enter(of, "prod", q.caller(caller))
	if len(called.Behind) > 0 {
		t.Errorf("waits for %v, which wait for it", called.Behind)
	}
}

func TestRunsThatWouldWaitForEachOtherForEverEnd(t *testing.T) {
	t.Parallel()
	q := newQueue(t)
	a, b := q.enter(grouped("a", pipeline.Queue), "one", pipeline.Event{}), q.enter(grouped("b", pipeline.Queue), "two", pipeline.Event{})
	q.enter(grouped("c", pipeline.Queue), "two", q.caller(a))
	q.enter(grouped("d", pipeline.Queue), "one", q.caller(b))
	if got := q.cancelled["0004"]; got != "would never begin: it waits for a#1, which waits for it" || len(q.cancelled) != 1 {
		t.Errorf("cancelled: %v\n%s", q.cancelled, q)
	}
}

// TestLineExcludesAndNeverStops plays runs that enter, call others and end. Runs that
// exclude each other never go together, and somebody always goes.
func TestLineExcludesAndNeverStops(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		q := newQueue(t)
		var compositions []*pipeline.Composition
		for i := range 3 {
			c := grouped(fmt.Sprintf("c%d", i), rapid.SampledFrom([]pipeline.Overtake{pipeline.Queue, pipeline.CancelRunning, pipeline.LatestOnly}).Draw(t, "policy"))
			c.MaxRunning = rapid.IntRange(0, 2).Draw(t, "running")
			c.MaxQueued = rapid.IntRange(0, 3).Draw(t, "queued")
			compositions = append(compositions, c)
		}
		for range rapid.IntRange(1, 25).Draw(t, "events") {
			if len(q.all) == 0 || rapid.IntRange(0, 2).Draw(t, "event") > 0 {
				event := pipeline.Event{}
				if going := q.ready(); len(going) > 0 && rapid.IntRange(0, 2).Draw(t, "called") == 0 {
					event = q.caller(rapid.SampledFrom(going).Draw(t, "caller"))
				}
				q.enter(rapid.SampledFrom(compositions).Draw(t, "of"), rapid.SampledFrom([]string{"", "g", "h"}).Draw(t, "group"), event)
			} else if ending := q.canEnd(); len(ending) > 0 {
				q.end(rapid.SampledFrom(ending).Draw(t, "end").ID)
			}
			q.check()
			shuffled := rapid.Permutation(q.all).Draw(t, "order")
			if d := cmp.Diff(engine.Line(q.all), engine.Line(shuffled)); d != "" {
				t.Fatalf("the order of the runs matters:\n%s", d)
			}
		}
		for len(q.all) > 0 {
			ending := q.canEnd()
			if len(ending) == 0 {
				t.Fatalf("nobody goes:\n%s", q)
			}
			q.end(ending[0].ID)
			q.check()
		}
	})
}

// ready are the runs that may do something.
func (q *queue) ready() (out []*pipeline.Run) {
	for _, e := range q.all {
		if len(e.Run.Behind) == 0 && !e.Run.Cancel {
			out = append(out, e.Run)
		}
	}
	return out
}

// canEnd are the runs that go, and whose called runs have all ended.
func (q *queue) canEnd() (out []*pipeline.Run) {
	for _, e := range q.all {
		waits := slices.ContainsFunc(e.Run.Tasks, func(k pipeline.RunTask) bool {
			return slices.ContainsFunc(q.all, func(o engine.Entrant) bool { return o.Run.ID == k.Child })
		})
		if len(e.Run.Behind) == 0 && !waits {
			out = append(out, e.Run)
		}
	}
	return out
}

func (q *queue) check() {
	goes := map[pipeline.RunID]*pipeline.Run{}
	for _, e := range q.all {
		if len(e.Run.Behind) == 0 {
			goes[e.Run.ID] = e.Run
		}
	}
	// kin reports whether b waits for a to end, as its caller.
	kin := func(a, b *pipeline.Run) bool {
		for a.Event.Cause != nil {
			i := slices.IndexFunc(q.all, func(e engine.Entrant) bool { return e.Run.ID == a.Event.Cause.Run })
			if i < 0 {
				return false
			}
			if a = q.all[i].Run; a.ID == b.ID {
				return true
			}
		}
		return false
	}
	running := map[pipeline.CompositionName]int{}
	for _, a := range goes {
		called := false
		for _, b := range goes {
			called = called || a != b && kin(a, b)
			if a.ID < b.ID && a.Group != "" && a.Group == b.Group && !kin(b, a) && !kin(a, b) && !sameCaller(q, a, b, kin) {
				q.t.Fatalf("%s#%d and %s#%d go together in group %s:\n%s", a.Composition, a.Number, b.Composition, b.Number, a.Group, q)
			}
		}
		if !called {
			running[a.Composition]++
		}
	}
	for _, e := range q.all {
		if most := e.Of.MaxRunning; most > 0 && running[e.Run.Composition] > most {
			q.t.Fatalf("%d runs of %s go, and %d may:\n%s", running[e.Run.Composition], e.Run.Composition, most, q)
		}
	}
}

// sameCaller reports whether a caller of both holds their group for them.
func sameCaller(q *queue, a, b *pipeline.Run, kin func(a, b *pipeline.Run) bool) bool {
	return slices.ContainsFunc(q.all, func(e engine.Entrant) bool {
		return e.Run.Group == a.Group && (kin(a, e.Run) || a == e.Run) && (kin(b, e.Run) || b == e.Run)
	})
}
