package loop_test

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// hooked waits for a webhook whose payload has a version, and a push of no branch.
func hooked(name, hook string) pipeline.Composition {
	text := pipeline.Type{Kind: pipeline.KindString}
	c := triggered(composed(name, shellTask("x")), pipeline.Trigger{
		Webhook: &pipeline.WebhookTrigger{ID: hook, Secret: "s", Payload: &pipeline.Type{
			Kind: pipeline.KindStruct, Fields: []pipeline.Field{{Name: "version", Type: text}},
		}},
		Params: pipeline.Expr{Deferred: true},
	})
	c.Params = []pipeline.Field{{Name: "version", Type: text}}
	return c
}

func TestADeliveryStartsItsRunsOnceWhateverIsInForce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	if _, _, err := w.c.Deliver(t.Context(), "deploy", "d1", nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("before a configuration is in force: %v", err)
	}
	w.blanks = map[string]string{"a: trigger": `{"version":"1.4"}`, "b: trigger": `{"version":"1.4"}`}
	w.push(w.config("c1", hooked("a", "deploy"), hooked("b", "deploy"), hooked("other", "other"), pushed("c", shellTask("x"))))
	told := w.rollUp("c1")
	payload := json.RawMessage(`{"version":"1.4"}`)
	var mu sync.Mutex
	first, answers := 0, map[string]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			runs, repeated, err := w.c.Deliver(t.Context(), "deploy", "d1", payload)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || len(runs) != 2 {
				t.Errorf("runs = %v, %v", runs, err)
				return
			}
			if !repeated {
				first++
			}
			answers[string(runs[0]+" "+runs[1])] = true
		})
	}
	wg.Wait()
	if first != 1 || len(answers) != 1 {
		t.Errorf("%d were the first, answers %v", first, answers)
	}
	r := w.awaitRun("a", 1, func(*pipeline.Run) bool { return true })
	if e := r.Event; e.Kind != pipeline.EventWebhook || e.Name != "deploy" || e.ID != "d1" || string(e.Payload) != string(payload) ||
		r.Commit != "c1" || r.Ref != mainRef || string(r.Params) != `{"version":"1.4"}` {
		t.Errorf("run = %+v", r)
	}
	w.restart()
	w.push("c1")
	next := hooked("a", "deploy")
	next.Digest = "sha256:changed"
	w.push(w.config("c2", next))
	runs, repeated, err := w.c.Deliver(t.Context(), "deploy", "d1", payload)
	if err != nil || !repeated || len(runs) != 1 || runs[0] != r.ID {
		t.Errorf("on another commit: %v, %t, %v", runs, repeated, err)
	}
	if _, repeated, err := w.c.Deliver(t.Context(), "deploy", "d2", payload); repeated || err != nil {
		t.Errorf("another delivery: %t, %v", repeated, err)
	}
	if got := strings.Join(w.allRuns(), ", "); got != "a#1 ready, a#2 ready, b#1 ready, c#1 ready" {
		t.Errorf("runs: %s", got)
	}
	if r := w.awaitRun("a", 2, func(*pipeline.Run) bool { return true }); r.Commit != "c2" {
		t.Errorf("commit %s", r.Commit)
	}
	verdicts, err := w.db.Verdicts(t.Context(), "c1")
	if err != nil || len(verdicts) != 6 || !strings.Contains(told.Description, "1 run") {
		t.Errorf("%+v, %v; status %+v", verdicts, err, told)
	}
	for _, v := range verdicts {
		if v.Kind == pipeline.EventWebhook && (v.Sentence != "webhook deploy" || v.Run == "") {
			t.Errorf("verdict %+v", v)
		}
	}
}

func TestADeliveryThatDoesNotFitStartsNothingAndSaysWhy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	asleep := hooked("asleep", "night")
	asleep.Suspend = true
	w.push(w.config("c1", hooked("a", "deploy"), asleep))
	for _, c := range []struct {
		hook, payload string
		kind          fault.Kind
		says          string
	}{
		{"deploy", `{"version":3}`, fault.Invalid, "a: webhook deploy: payload: version: 3 is not a string"},
		{"deploy", `{}`, fault.Invalid, "version: is missing"},
		{"deploy", `{"version":"1","x":1}`, fault.Invalid, `"x": is not declared`},
		{"deploy", `{"version":"1"}`, fault.Invalid, "params of a"}, // what is filled in does not fit
		{"night", `{"version":"1"}`, fault.Conflict, "asleep: suspended"},
		{"nobody", `{}`, fault.NotFound, "nothing waits for webhook nobody"},
	} {
		runs, _, err := w.c.Deliver(t.Context(), c.hook, "d "+c.payload, json.RawMessage(c.payload))
		if len(runs) > 0 || !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %s: %v, %v", c.hook, c.payload, runs, err)
		}
	}
	if got := w.allRuns(); len(got) > 0 {
		t.Errorf("runs: %v", got)
	}
	verdicts, err := w.db.Verdicts(t.Context(), "c1")
	if err != nil || len(verdicts) != 4 {
		t.Errorf("%+v, %v", verdicts, err)
	}
}
