package store_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// noon is the time at which tests happen; nanoseconds must survive.
var noon = time.Date(2031, 5, 17, 12, 0, 0, 123456789, time.UTC)

// composition has the tasks t0, t1, …; equal arguments make equal compositions.
func composition(name string, tasks int) *pipeline.Composition {
	c := &pipeline.Composition{Name: pipeline.CompositionName(name), Unit: name, Digest: pipeline.DigestOf(fmt.Appendf(nil, "%s %d", name, tasks))}
	for i := range tasks {
		c.Tasks = append(c.Tasks, pipeline.Task{
			Name: pipeline.TaskName(fmt.Sprintf("t%d", i)), Plugin: "shell", Uses: "shell/run",
			Fields: json.RawMessage(`{"script":"make <all>"}`), Timeout: pipeline.Duration(time.Minute), Priority: -1,
			Outputs: pipeline.Type{Kind: pipeline.KindStruct},
		})
	}
	return c
}

// newRun is the nth run of c, all tasks ready.
func newRun(c *pipeline.Composition, n int) *pipeline.Run {
	r := &pipeline.Run{
		ID: pipeline.RunID(fmt.Sprintf("%s-%06d", c.Name, n)), Key: pipeline.RunKey(fmt.Sprintf("key %s %d", c.Name, n)),
		Composition: c.Name, Digest: c.Digest, Commit: "c0ffee", Ref: "refs/heads/main",
		Event:  pipeline.Event{Kind: "push", Ref: "refs/heads/main", Head: "c0ffee", Subject: "mend \"it\" \x00 \u202e"},
		Params: json.RawMessage(`{"n":1}`), Priority: 50, State: pipeline.Ready, Reason: "waits for an agent",
		CreatedAt: noon.Add(time.Duration(n) * time.Second),
		Depth:     1, Group: "prod", Behind: []pipeline.RunID{"earlier"},
	}
	for i, t := range c.Tasks {
		r.Tasks = append(r.Tasks, pipeline.RunTask{Name: t.Name, Index: i, Spec: t, State: pipeline.Ready, ReadyAt: noon})
	}
	return r
}

func create(t testing.TB, db *store.DB, r *pipeline.Run, c *pipeline.Composition) {
	t.Helper()
	if err := db.Write(t.Context(), func(tx *store.Tx) error { return tx.CreateRun(r, c) }); err != nil {
		t.Fatal(err)
	}
}

func save(t testing.TB, db *store.DB, before, after *pipeline.Run) error {
	t.Helper()
	return db.Write(t.Context(), func(tx *store.Tx) error { return tx.SaveRun(before, after) })
}

// move returns r with one task in another state, as the engine would leave it.
func move(r *pipeline.Run, name pipeline.TaskName, to pipeline.State) *pipeline.Run {
	a := r.Clone()
	t := a.Task(name)
	switch {
	case to == pipeline.Offered && t.State != pipeline.Offered:
		t.Epoch++
		t.Attempt, t.Agent = pipeline.AttemptID(fmt.Sprintf("%s/%s/%d", r.ID, name, t.Epoch)), "a-1"
	case to == pipeline.Running:
		t.StartedAt = noon
	case to.Terminal():
		t.FinishedAt = noon
		t.Records = json.RawMessage(`{"seen":3}`)
	}
	if t.Spec.BuiltIn() {
		t.Child, t.Message, t.Reviews = "child", "Go on?", []pipeline.Review{{By: "ana", Approve: true, Comment: "go", At: noon}}
	}
	t.State, t.Reason = to, "moved to "+string(to)
	a.Behind, a.Outputs = nil, json.RawMessage(`{"url":"http://x"}`)
	a.State = pipeline.RunState(a.Tasks)
	if a.State.Terminal() {
		a.FinishedAt = noon
	}
	if a.State == pipeline.Running && a.StartedAt.IsZero() {
		a.StartedAt = noon
	}
	return a
}

// path leads from ready to each state.
var path = map[pipeline.State][]pipeline.State{
	pipeline.Pending: nil, pipeline.Ready: {},
	pipeline.Held:      {pipeline.Held},
	pipeline.Offered:   {pipeline.Offered},
	pipeline.Running:   {pipeline.Offered, pipeline.Running},
	pipeline.InDoubt:   {pipeline.Offered, pipeline.Running, pipeline.InDoubt},
	pipeline.Success:   {pipeline.Offered, pipeline.Running, pipeline.Success},
	pipeline.Failure:   {pipeline.Offered, pipeline.Running, pipeline.Failure},
	pipeline.Error:     {pipeline.Error},
	pipeline.Timeout:   {pipeline.Timeout},
	pipeline.Cancelled: {pipeline.Cancelled},
	pipeline.Skipped:   {pipeline.Skipped},
	pipeline.NotNeeded: {pipeline.NotNeeded},
}

// bring moves task t0 of a fresh run along the path to a state.
func bring(t testing.TB, db *store.DB, r *pipeline.Run, to pipeline.State) *pipeline.Run {
	t.Helper()
	for _, s := range path[to] {
		next := move(r, "t0", s)
		if err := save(t, db, r, next); err != nil {
			t.Fatalf("%s -> %s: %v", r.Tasks[0].State, s, err)
		}
		r = next
	}
	return r
}

func want(t testing.TB, err error, kind fault.Kind) {
	t.Helper()
	if got := fault.KindOf(err); got != kind {
		t.Errorf("got %q error %v, want %q", got, err, kind)
	}
}

// enrol makes an agent with a key of its own and returns it.
func enrol(t testing.TB, db *store.DB, key string) pipeline.Agent {
	t.Helper()
	hash := [32]byte([]byte(fmt.Sprintf("%-32s", key)))
	if err := db.CreateJoinToken(t.Context(), hash, "linux", false, noon.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	a, err := db.Enrol(t.Context(), hash, pipeline.Agent{PublicKey: []byte(key), Name: key}, noon)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
