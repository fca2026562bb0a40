package store_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func TestOfFiftyThatUseATokenOneWins(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	hash := [32]byte{1}
	if err := db.CreateJoinToken(t.Context(), hash, "gpu", true, noon.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	want(t, db.CreateJoinToken(t.Context(), hash, "linux", false, noon.Add(time.Hour)), fault.Conflict)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won []pipeline.Agent
	begin := make(chan struct{})
	for i := range 50 {
		wg.Go(func() {
			<-begin
			a, err := db.Enrol(t.Context(), hash, pipeline.Agent{PublicKey: fmt.Appendf(nil, "key %d", i), Name: "x"}, noon)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, a)
			} else if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "used already") {
				t.Errorf("got %v", err)
			}
		})
	}
	close(begin)
	wg.Wait()
	all, err := db.Agents(t.Context())
	if err != nil || len(won) != 1 || len(all) != 1 || won[0].Pool != "gpu" || !won[0].Untrusted {
		t.Fatalf("got %d winners %v, %d agents, %v", len(won), won, len(all), err)
	}
	if d := cmp.Diff(won[0], all[0]); d != "" {
		t.Error(d)
	}
}

func TestTokenThatIsNoGoodSaysWhy(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	if err := db.CreateJoinToken(t.Context(), [32]byte{1}, "linux", false, noon); err != nil {
		t.Fatal(err)
	}
	a := pipeline.Agent{PublicKey: []byte("key")}
	_, err := db.Enrol(t.Context(), [32]byte{1}, a, noon)
	want(t, err, fault.Invalid)
	if !strings.Contains(err.Error(), "has expired") {
		t.Error(err)
	}
	_, err = db.Enrol(t.Context(), [32]byte{2}, a, noon)
	want(t, err, fault.Invalid)
	if !strings.Contains(err.Error(), "not known here") {
		t.Error(err)
	}
	// One nanosecond earlier it is good: no refusal used it up.
	if _, err := db.Enrol(t.Context(), [32]byte{1}, a, noon.Add(-1)); err != nil {
		t.Error(err)
	}
}

func TestIdentityComesFromTheKeyAndPoolFromTheToken(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	for i, pool := range []pipeline.PoolName{"linux", "gpu"} {
		if err := db.CreateJoinToken(t.Context(), [32]byte{byte(i)}, pool, i == 1, noon.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	claim := pipeline.Agent{ID: "a-other", Pool: "gpu", Untrusted: true, PublicKey: []byte("key"), Name: "box", Facts: []byte(`{"os":"linux"}`), Build: "1"}
	got, err := db.Enrol(t.Context(), [32]byte{0}, claim, noon)
	if err != nil {
		t.Fatal(err)
	}
	first := claim
	first.ID, first.Pool, first.Untrusted = pipeline.AgentIDOf([]byte("key")), "linux", false
	first.State, first.EnrolledAt, first.SeenAt = pipeline.AgentOffline, noon, noon
	if d := cmp.Diff(first, got); d != "" {
		t.Errorf("want - got +\n%s", d)
	}
	moved, err := db.Enrol(t.Context(), [32]byte{1}, pipeline.Agent{PublicKey: []byte("key"), Name: "box"}, noon.Add(time.Minute))
	if err != nil || moved.ID != first.ID || moved.Pool != "gpu" || !moved.Untrusted {
		t.Errorf("enrolled again: got %+v, %v", moved, err)
	}
}

func TestRevokedKeyStaysOut(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	a := enrol(t, db, "key")
	for range 2 {
		if err := db.RevokeAgent(t.Context(), a.ID); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := db.Agent(t.Context(), a.ID); !got.Revoked || err != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := db.CreateJoinToken(t.Context(), [32]byte{9}, "linux", false, noon.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	_, err := db.Enrol(t.Context(), [32]byte{9}, pipeline.Agent{PublicKey: []byte("key")}, noon)
	want(t, err, fault.Invalid)
	if _, err := db.Enrol(t.Context(), [32]byte{9}, pipeline.Agent{PublicKey: []byte("new key")}, noon); err != nil {
		t.Errorf("the refusal used the token up: %v", err)
	}
	want(t, db.RevokeAgent(t.Context(), "a-nobody"), fault.NotFound)
}

func saveAgent(t testing.TB, db *store.DB, a pipeline.Agent) error {
	return db.Write(t.Context(), func(tx *store.Tx) error { return tx.SaveAgent(a) })
}

func TestAgentIsSavedAndTouched(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	a := enrol(t, db, "key")
	seq := func() pipeline.Seq {
		n, err := db.LastSeq(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := seq()
	a.State, a.Facts, a.Name, a.Build, a.SeenAt = pipeline.AgentOnline, []byte(`{"cpu":{"count":8}}`), "box", "2", noon.Add(time.Minute)
	for range 2 {
		if err := saveAgent(t, db, a); err != nil {
			t.Fatal(err)
		}
	}
	if n := seq(); n != before+1 {
		t.Errorf("saved twice: seq %d -> %d, want one change", before, n)
	}
	signal, stop := db.Watch()
	defer stop()
	later := noon.Add(time.Hour)
	if err := db.TouchAgents(t.Context(), map[pipeline.AgentID]time.Time{a.ID: later, "a-nobody": later}); err != nil {
		t.Fatal(err)
	}
	if err := db.TouchAgents(t.Context(), map[pipeline.AgentID]time.Time{a.ID: noon}); err != nil {
		t.Fatal(err)
	}
	a.SeenAt = later
	got, err := db.Agent(t.Context(), a.ID)
	if d := cmp.Diff(a, got); d != "" || err != nil {
		t.Errorf("%v: want - got +\n%s", err, d)
	}
	if n := seq(); n != before+1 {
		t.Errorf("a touch is not a change: seq %d", n)
	}
	select {
	case <-signal:
		t.Error("a touch woke a watcher")
	default:
	}
	// Nobody is connected to a program that has just started.
	db.Close()
	db = open(t, dir)
	if got, err := db.Agent(t.Context(), a.ID); got.State != pipeline.AgentOffline || err != nil {
		t.Errorf("reopened: got %s, %v", got.State, err)
	}
	bad := a
	bad.Facts = []byte(`{`)
	want(t, saveAgent(t, db, bad), fault.Invalid)
	bad = pipeline.Agent{ID: "a-nobody", State: pipeline.AgentOnline, SeenAt: noon}
	want(t, saveAgent(t, db, bad), fault.NotFound)
	_, err = db.Agent(t.Context(), "a-nobody")
	want(t, err, fault.NotFound)
}

func TestAgentNamesTheRunsItHolds(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	a := enrol(t, db, "key")
	c := composition("build", 1)
	for i, s := range []pipeline.State{pipeline.Ready, pipeline.Running, pipeline.Success, pipeline.InDoubt} {
		r := newRun(c, i)
		create(t, db, r, c)
		for _, to := range path[s] {
			next := move(r, "t0", to)
			next.Tasks[0].Agent = a.ID
			if err := save(t, db, r, next); err != nil {
				t.Fatal(err)
			}
			r = next
		}
	}
	got, err := db.Agent(t.Context(), a.ID)
	if d := cmp.Diff([]pipeline.RunID{"build-000001", "build-000003"}, got.Runs); d != "" || err != nil {
		t.Errorf("%v: want - got +\n%s", err, d)
	}
}

func TestSetAgentStateTellsOnlyDifferences(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	a, b := enrol(t, db, "a"), enrol(t, db, "b")
	if err := db.SetAgentState(t.Context(), pipeline.AgentStalled, a.ID); err != nil {
		t.Fatal(err)
	}
	before, err := db.LastSeq(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := db.SetAgentState(t.Context(), pipeline.AgentStalled, a.ID, b.ID, "a-nobody"); err != nil {
		t.Fatal(err)
	}
	changes, err := db.Changes(t.Context(), before, 10)
	if err != nil || len(changes) != 1 || changes[0].Agent != b.ID || changes[0].Kind != pipeline.ChangeAgent {
		t.Errorf("got %+v, %v", changes, err)
	}
}
