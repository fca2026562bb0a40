package loop_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// force brings a configuration into force that starts nothing.
func (w *world) force(id pipeline.CommitID, compositions ...pipeline.Composition) {
	w.t.Helper()
	for i := range compositions {
		compositions[i].Triggers = nil
		compositions[i].Digest = pipeline.DigestOf([]byte(string(id) + string(compositions[i].Name)))
	}
	w.push(w.config(id, compositions...))
}

func TestAChangedPriorityAppliesToWhatIsQueued(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	c, d := pushed("c", shellTask("a")), pushed("d", shellTask("a"))
	c.Priority, d.Priority = 50, 40
	w.push(w.config("c1", c, d))
	w.awaitRun("d", 1, in(pipeline.Ready))
	d.Priority = 60
	w.force("c2", c, d)
	tick := time.NewTicker(20 * time.Millisecond) // no event tells
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		m, err := w.runs.Moment(t.Context(), "", 10)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%+v, %v", m.Queue, err)
		}
		if m.Queue[0].Run.Composition == "d" {
			break
		}
	}
	a := w.agent("one")
	if o := expect[*wire.Offer](w, a.ID); o.Spec.Composition != "d" {
		t.Errorf("%s goes first", o.Spec.Composition)
	}
}

func TestAChangedLimitAppliesToWhatIsQueued(t *testing.T) {
	t.Parallel()
	for name, most := range map[string]int{"raised": 3, "taken away": 0} {
		w := newWorld(t)
		w.push("")
		c := pushed("c", shellTask("a"))
		c.MaxRunning = 1
		waits := func(r *pipeline.Run) bool { return len(r.Behind) > 0 }
		w.push(w.config("c1", c))
		w.awaitRun("c", 1, in(pipeline.Ready))
		w.push(w.config("c2", c))
		w.awaitRun("c", 2, waits)
		w.push(w.config("c3", c))
		w.awaitRun("c", 3, waits)
		c.MaxRunning = most
		w.force("c4", c)
		for n := 2; n <= 3; n++ {
			if r := w.awaitRun("c", n, in(pipeline.Ready)); len(r.Behind) > 0 {
				t.Errorf("%s: #%d waits behind %v", name, n, r.Behind)
			}
		}
	}
}

func TestAChangedRequirementAppliesToWhatIsQueued(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	c := pushed("c", shellTask("a"))
	c.Tasks[0].Requirement.Pool = "gone"
	w.push(w.config("c1", c))
	w.awaitRun("c", 1, in(pipeline.Ready))
	if got := w.why(); got != "no agent fits: 1 of 1 lack pool gone" {
		t.Errorf("it waits: %s", got)
	}
	other := pushed("c", shellTask("a"))
	other.Tasks[0].Requirement.Pool, other.Tasks[0].Fields = "default", json.RawMessage(`{"script":"another"}`)
	w.force("c2", other)
	if o := expect[*wire.Offer](w, a.ID); string(o.Spec.Fields) != "{}" {
		t.Errorf("it does %s, want what it was planned with", o.Spec.Fields)
	}
}
