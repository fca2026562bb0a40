package engine_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
)

// doubtful brings a task that may be started once into doubt.
func doubtful(t *testing.T) (*world, pipeline.Attempt) {
	t.Helper()
	once := task("deploy")
	once.Effect = pipeline.Once
	w := newWorld(once, task("tell", "deploy"))
	w.run.Number = 7
	w.must(t, engine.Created{})
	a := w.start(t, "deploy")
	w.must(t, engine.Lost{Attempt: a.ID, Reason: "agent x was silent"})
	if k := w.run.Task("deploy"); k.State != pipeline.InDoubt || !strings.Contains(k.Reason, "reconciler request resolve c#7/deploy success, failure or rerun") {
		t.Fatalf("%s: %s", k.State, k.Reason)
	}
	return w, a
}

func TestAPersonSettlesWhatIsInDoubtOnce(t *testing.T) {
	t.Parallel()
	for to, then := range map[pipeline.State][2]pipeline.State{
		pipeline.Success: {pipeline.Ready, pipeline.Running},
		pipeline.Failure: {pipeline.Skipped, pipeline.Failure},
		pipeline.Ready:   {pipeline.Pending, pipeline.Running},
	} {
		w, a := doubtful(t)
		w.must(t, engine.Resolved{Task: "deploy", To: to, Reason: "settled by ana"})
		expect(t, w, map[string]pipeline.State{"deploy": to, "tell": then[0], "run": then[1]})
		for _, late := range []engine.Event{
			engine.Finished{Attempt: a.ID, Token: a.Token, Result: pipeline.Result{Outcome: pipeline.Failure}},
			engine.Resolved{Task: "deploy", To: pipeline.Failure},
			engine.Resolved{Task: "tell", To: pipeline.Failure},
			engine.Resolved{Task: "nothing", To: pipeline.Failure},
		} {
			if err := w.do(late); !errors.Is(err, engine.ErrStale) {
				t.Errorf("after %s, %T is %v", to, late, err)
			}
		}
	}
}

func TestAgentOfATaskInDoubtIsSaidToBeBack(t *testing.T) {
	t.Parallel()
	w, a := doubtful(t)
	w.must(t, engine.Back{Attempt: a.ID, Token: a.Token, Agent: "x"})
	if k := w.run.Task("deploy"); k.State != pipeline.InDoubt || !strings.HasPrefix(k.Reason, "agent x is back and has it still: its report settles it, or a person") {
		t.Errorf("%s: %s", k.State, k.Reason)
	}
	if err := w.do(engine.Back{Attempt: a.ID, Token: a.Token, Agent: "x"}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("a second time: %v", err)
	}
	w.must(t, engine.Finished{Attempt: a.ID, Token: a.Token, Result: pipeline.Result{Outcome: pipeline.Success}})
	if err := w.do(engine.Back{Attempt: a.ID, Token: a.Token, Agent: "x"}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("after its end: %v", err)
	}
}

func TestRerunOfWhatIsInDoubtDoesNotOutliveACancel(t *testing.T) {
	t.Parallel()
	w, _ := doubtful(t)
	w.must(t, engine.Cancel{Reason: "stop"})
	w.must(t, engine.Resolved{Task: "deploy", To: pipeline.Ready, Reason: "again"})
	expect(t, w, map[string]pipeline.State{"deploy": pipeline.Cancelled, "tell": pipeline.Cancelled, "run": pipeline.Cancelled})
}

func TestCancelOfATaskLeavesTheOthersAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(task("a"), task("b"), task("after-a", "a"), task("always", "a"))
	w.run.Tasks[3].Spec.When = pipeline.Always
	w.run.Tasks[0].Spec.Retries = pipeline.Retries{Max: 3, On: []pipeline.State{pipeline.Failure}}
	w.must(t, engine.Created{})
	a := w.start(t, "a")
	w.must(t, engine.CancelTask{Task: "a", Reason: "cancelled by ana"})
	if len(w.stop) != 1 || w.stop[0].Attempt != a.ID {
		t.Fatalf("told to stop: %+v", w.stop)
	}
	if err := w.do(engine.CancelTask{Task: "a", Reason: "again"}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("a second cancel is %v", err)
	}
	w.must(t, engine.Lost{Attempt: a.ID, Reason: "silent"}) // it is not started again
	w.must(t, engine.CancelTask{Task: "b", Reason: "cancelled by ana"})
	expect(t, w, map[string]pipeline.State{
		"a": pipeline.Cancelled, "b": pipeline.Cancelled, "after-a": pipeline.Skipped, "always": pipeline.Ready,
		"run": pipeline.Running,
	})
	w.end(t, "always", pipeline.Success)
	if w.run.State != pipeline.Cancelled || !strings.Contains(w.run.Reason, "b: cancelled by ana") {
		t.Errorf("run is %s: %s", w.run.State, w.run.Reason)
	}
}

func ended(name string, s pipeline.State, needs ...pipeline.TaskName) pipeline.RunTask {
	return pipeline.RunTask{Name: pipeline.TaskName(name), State: s, Spec: task(name, needs...)}
}

func reusable(tasks ...pipeline.RunTask) string {
	keep := engine.Reusable(&pipeline.Run{Tasks: tasks})
	var names []string
	for i := range tasks {
		if keep[tasks[i].Name] {
			names = append(names, string(tasks[i].Name))
		}
	}
	return strings.Join(names, " ")
}

func TestOnlyResultsOfTheSameInputsAreTakenOver(t *testing.T) {
	t.Parallel()
	good, bad := pipeline.Success, pipeline.Failure
	pinned := ended("test", bad, "checkout")
	pinned.Spec.Pins = []pipeline.TaskName{"checkout"}
	gate := ended("gate", good)
	gate.Spec.Gate = &pipeline.Gate{}
	clean := ended("clean", good, "deploy")
	clean.Spec.When = pipeline.Always
	idle := clean
	idle.State = pipeline.Skipped
	tolerated := ended("lint", bad)
	tolerated.Spec.Continue = true
	for claim, c := range map[string]struct {
		want  string
		tasks []pipeline.RunTask
	}{
		"what came before the failure":                   {"build lint", []pipeline.RunTask{ended("build", good), ended("lint", good), ended("deploy", bad, "build"), ended("tell", pipeline.Skipped, "deploy")}},
		"nothing behind what runs again":                 {"", []pipeline.RunTask{ended("a", bad), ended("b", good, "a")}},
		"nothing behind a failure that was tolerated":    {"", []pipeline.RunTask{tolerated, ended("b", good, "lint")}},
		"no gate, and nothing behind it":                 {"build", []pipeline.RunTask{ended("build", good), gate, ended("deploy", good, "gate"), ended("tell", bad, "deploy")}},
		"no files, and nothing that read them":           {"other", []pipeline.RunTask{ended("checkout", good), ended("lint", good, "checkout"), ended("other", good), pinned}},
		"nothing that a clean-up came after":             {"other", []pipeline.RunTask{ended("make", good), ended("other", good), ended("deploy", bad, "make"), clean}},
		"what a clean-up that did not run left as it is": {"make", []pipeline.RunTask{ended("make", good), ended("deploy", bad, "make"), idle}},
		"no not_needed":                                  {"", []pipeline.RunTask{ended("a", pipeline.NotNeeded)}},
	} {
		if got := reusable(c.tasks...); got != c.want {
			t.Errorf("%s: takes over %q, want %q", claim, got, c.want)
		}
	}
}

// TestWhatIsTakenOverIsClosed draws graphs at random and holds the rules to be true
// of the answer as a whole.
func TestWhatIsTakenOverIsClosed(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		specs := drawTasks(t)
		r := &pipeline.Run{}
		for i, s := range specs {
			for _, n := range s.Needs {
				if rapid.IntRange(0, 3).Draw(t, "pin") == 0 {
					s.Pins = append(s.Pins, n)
				}
			}
			if rapid.IntRange(0, 5).Draw(t, "gate") == 0 {
				s.Gate, s.Plugin = &pipeline.Gate{}, pipeline.CorePlugin
			}
			state := rapid.SampledFrom([]pipeline.State{pipeline.Success, pipeline.Success, pipeline.Failure, pipeline.Skipped}).Draw(t, fmt.Sprint(i))
			r.Tasks = append(r.Tasks, pipeline.RunTask{Name: s.Name, Spec: s, State: state})
		}
		keep := engine.Reusable(r)
		for i := range r.Tasks {
			k := &r.Tasks[i]
			if !keep[k.Name] {
				for _, p := range k.Spec.Pins {
					if keep[p] {
						t.Fatalf("%s runs again and reads files of %s, which is taken over", k.Name, p)
					}
				}
				continue
			}
			if k.State != pipeline.Success || k.Spec.Gate != nil {
				t.Fatalf("%s is taken over as %s", k.Name, k.State)
			}
			if i := slices.IndexFunc(k.Spec.Needs, func(n pipeline.TaskName) bool { return !keep[n] }); i >= 0 {
				t.Fatalf("%s is taken over and needs %s, which runs again", k.Name, k.Spec.Needs[i])
			}
		}
	})
}

func TestTaskThatNoAgentTakesEndsInTime(t *testing.T) {
	t.Parallel()
	k := task("a")
	k.StartTimeout = pipeline.Duration(time.Minute)
	k.Retries = pipeline.Retries{Max: 2, On: []pipeline.State{pipeline.Failure}, Backoff: pipeline.Duration(time.Hour)}
	w := newWorld(k, task("b", "a"))
	w.must(t, engine.Created{})
	due := engine.Due(w.run.Task("a"))
	a := w.offer("a")
	w.must(t, engine.Offer{Attempt: a})
	if at := engine.Due(w.run.Task("a")); !at.IsZero() {
		t.Errorf("while it is offered it is due at %s", at)
	}
	w.must(t, engine.Declined{Attempt: a.ID, Token: a.Token, Reason: "no"}) // which is no new beginning
	if at := engine.Due(w.run.Task("a")); !at.Equal(due) {
		t.Errorf("due at %s, then %s", due, at)
	}
	if err := w.do(engine.Expired{Task: "a"}); !errors.Is(err, engine.ErrStale) {
		t.Errorf("too early: %v", err)
	}
	w.end(t, "a", pipeline.Failure) // and what waits for its retry has its own time
	if got := engine.Due(w.run.Task("a")).Sub(w.run.Task("a").NotBefore); got != time.Minute {
		t.Errorf("due %s after its retry may begin", got)
	}
	w.now = w.now.Add(2 * time.Hour)
	w.must(t, engine.Expired{Task: "a"})
	expect(t, w, map[string]pipeline.State{"a": pipeline.Timeout, "b": pipeline.Skipped, "run": pipeline.Timeout})
	if got := w.run.Task("a").Reason; got != "no agent took it within 1m0s" {
		t.Errorf("reason: %s", got)
	}
}
