package loop_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
)

// why is why the only task in the queue waits.
func (w *world) why() string {
	w.t.Helper()
	m, err := w.runs.Moment(w.t.Context(), "", 10)
	if err != nil || len(m.Queue) != 1 {
		w.t.Fatalf("moment = %+v, %v", m, err)
	}
	return m.Queue[0].Sentence
}

func TestPausedAgentGetsNothingNewOverARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	if err := w.runs.Pause(t.Context(), a.ID, &pipeline.Pause{Reason: "new disk", At: time.Now().UTC()}); err != nil {
		t.Fatal(err)
	}
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	const want = "no free agent: 1 paused (new disk); first in line"
	if got := w.why(); got != want {
		t.Errorf("it waits: %s", got)
	}
	w.restart()
	w.agent("one")
	if got := w.why(); got != want {
		t.Errorf("after a restart it waits: %s", got)
	}
	if err := w.runs.Pause(t.Context(), a.ID, nil); err != nil {
		t.Fatal(err)
	}
	o := w.accept(a)
	if err := w.runs.Pause(t.Context(), a.ID, &pipeline.Pause{At: time.Now().UTC()}); err != nil {
		t.Fatal(err)
	}
	w.runs.Message(a.ID, success(o, `{}`)) // what runs is let run
	w.await(pipeline.Success)
	if err := w.runs.Pause(t.Context(), "a-nobody", nil); !fault.Is(err, fault.NotFound) {
		t.Errorf("an agent that is not there: %v", err)
	}
}

func TestPauseEndsByItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	now := time.Now().UTC()
	if err := w.runs.Pause(t.Context(), a.ID, &pipeline.Pause{At: now, Until: now.Add(100 * time.Millisecond)}); err != nil {
		t.Fatal(err)
	}
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	w.accept(a)
	if known, err := w.db.Agent(t.Context(), a.ID); err != nil || known.Pause != nil {
		t.Errorf("the record has %+v, %v", known.Pause, err)
	}
}

func TestDrainingAgentEndsItsRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}, pipeline.Task{Name: "b", Needs: []pipeline.TaskName{"a"}}))
	o := w.accept(a)
	if err := w.runs.Pause(t.Context(), a.ID, &pipeline.Pause{Drain: true, Reason: "upgrade", At: time.Now().UTC()}); err != nil {
		t.Fatal(err)
	}
	w.push(w.commit("c2", pipeline.Task{Name: "a"}))
	w.runs.Message(a.ID, success(o, `{}`))
	o = w.accept(a)
	if o.Spec.Task != "b" || o.Spec.Number != 1 {
		t.Errorf("it was given %s of #%d", o.Spec.Task, o.Spec.Number)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	w.await(pipeline.Success)
	if got := w.why(); got != "no free agent: 1 drained (upgrade); first in line" {
		t.Errorf("the next run waits: %s", got)
	}
}

func TestWarmWorkspacesAreKnownAfterARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.agent("cold")
	warm := w.agent("warm")
	warm.Warm = []pipeline.CompositionName{"c"}
	w.runs.Connected(warm, nil) // as it says hello to a program that has just started
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	expect[*wire.Offer](w, warm.ID)
}

func TestTaskLongerInLineIsToldItsPlaceAndTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	o := w.accept(a)
	w.runs.Message(a.ID, success(o, `{}`))
	w.await(pipeline.Success)
	w.push(w.commit("c2", pipeline.Task{Name: "a"}))
	w.accept(a)
	w.push(w.commit("c3", pipeline.Task{Name: "a"}))
	if got := w.why(); !strings.HasPrefix(got, "no free agent: 1 busy; first in line, about ") {
		t.Errorf("it waits: %s", got)
	}
}

func TestStalledAgentKeepsWhatItHasAndGetsNothingNew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.push("")
		a := w.agent("one")
		w.push(w.commit("c1", pipeline.Task{Name: "a"}))
		w.accept(a)
		time.Sleep(loop.StalledAfter + 2*time.Second) // of the false clock
		w.push(w.commit("c2", pipeline.Task{Name: "a"}))
		if got := w.why(); got != "no free agent: 1 silent; first in line" {
			t.Errorf("it waits: %s", got)
		}
		if r := w.await(pipeline.Running); r.Task("a").State != pipeline.Running {
			t.Errorf("what runs on it is %s", r.Task("a").State)
		}
		w.runs.Renewed(a.ID)
		time.Sleep(2 * time.Second)
		if got := w.why(); got != "no free agent: 1 busy; first in line" {
			t.Errorf("after a heartbeat it waits: %s", got)
		}
		time.Sleep(pipeline.DefaultLostAfter - 10*time.Second)
		if r := w.await(pipeline.Running); r.Task("a").State != pipeline.Running {
			t.Errorf("before its time it is %s", r.Task("a").State)
		}
		time.Sleep(10 * time.Second)
		w.awaitRun("c", 1, func(r *pipeline.Run) bool {
			return r.Task("a").State == pipeline.Ready && strings.Contains(r.Task("a").Reason, "agent one was silent for 10m0s")
		})
	})
}
