package loop_test

import (
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

func TestAPoolIsKeptFromACompositionThatDoesNotNameItEither(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	id := w.config("c1", pushed("c", shellTask("a")), pushed("release", shellTask("b")))
	w.repo.mu.Lock()
	cfg := w.repo.configs[id]
	cfg.Policy.Pools = []pipeline.PoolRule{{Pool: "default", Compositions: []string{"rel*"}}}
	w.repo.configs[id] = cfg
	w.repo.mu.Unlock()
	w.push(id)
	o := w.accept(a)
	if o.Spec.Composition != "release" {
		t.Fatalf("offered %s", o.Spec.Composition)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	w.awaitRun("release", 1, in(pipeline.Success))
	m, err := w.runs.Moment(t.Context(), "", 10)
	if err != nil || len(m.Queue) != 1 || !m.Queue[0].Blocked || m.Queue[0].Sentence != "no agent fits: 1 of 1 lack leave of the policy to run c" {
		t.Errorf("queue %+v, %v", m.Queue, err)
	}
	w.push(w.config("c2", pushed("release", shellTask("b")))) // a policy without the rule
	if o = w.accept(a); o.Spec.Composition != "c" {
		t.Errorf("offered %s, and the older run waits", o.Spec.Composition)
	}
}

func TestTearDownOfAFailedTaskGetsWhatItReportedAndNoMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.commit("c1", pipeline.Task{Name: "make"}, pipeline.Task{
		Name: "clean", When: pipeline.Always, Needs: []pipeline.TaskName{"make"}, Bindings: []pipeline.Binding{
			{Field: "id", From: "make", Output: "id"}, {Field: "address", From: "make", Output: "address", Optional: true},
		},
	}))
	o := w.accept(a)
	w.runs.Message(a.ID, &wire.Result{Attempt: o.Attempt, Token: o.Token, Result: pipeline.Result{
		Outcome: pipeline.Failure, Reason: "half-way", Outputs: []byte(`{"id":"i-1"}`), Records: []byte(`{"cost":3}`),
	}})
	o = w.accept(a)
	if string(o.Spec.Fields) != `{"id":"i-1"}` {
		t.Errorf("fields of the tear-down = %s", o.Spec.Fields)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	if r := w.await(pipeline.Failure); string(r.Task("make").Records) != `{"cost":3}` {
		t.Errorf("records = %s", r.Task("make").Records)
	}
}

func TestTaskWhoseFilesAreGoneIsAnError(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		lostAfter time.Duration
		revoke    bool
		reason    string
	}{
		"silent":  {time.Millisecond, false, "which has them, was silent for 1ms"},
		"revoked": {time.Hour, true, "which has them, was revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.push("")
			a := w.agent("one")
			w.push(w.commit("c1", pipeline.Task{Name: "a"}, pipeline.Task{
				Name: "b", Needs: []pipeline.TaskName{"a"}, Pins: []pipeline.TaskName{"a"}, LostAfter: pipeline.Duration(c.lostAfter),
			}))
			o := w.accept(a)
			w.runs.Disconnected(a.ID)
			w.agent("two")
			if c.revoke {
				if err := w.db.RevokeAgent(t.Context(), a.ID); err != nil {
					t.Fatal(err)
				}
			}
			w.agent("one", wire.Held{Attempt: o.Attempt, Token: o.Token, Phase: wire.HeldEnded})
			w.runs.Message(a.ID, success(o, `{}`))
			w.runs.Disconnected(a.ID)
			if r := w.await(pipeline.Error); !strings.Contains(r.Task("b").Reason, c.reason) {
				t.Errorf("b is %s: %s", r.Task("b").State, r.Task("b").Reason)
			}
		})
	}
}
