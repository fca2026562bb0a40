package store_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func saveAttempt(t testing.TB, db *store.DB, before, after *pipeline.Attempt) error {
	t.Helper()
	return db.Write(t.Context(), func(tx *store.Tx) error { return tx.SaveAttempt(before, after) })
}

// in returns a as it is in another state.
func in(a pipeline.Attempt, s pipeline.AttemptState) *pipeline.Attempt {
	a.State, a.Outcome = s, ""
	a.StartedAt, a.FinishedAt = noon, noon
	exit := 1
	switch s {
	case pipeline.AttemptDone:
		a.Outcome, a.Exit, a.LogBytes = pipeline.Failure, &exit, 77
	case pipeline.AttemptOffered, pipeline.AttemptRunning:
		a.FinishedAt = pipeline.Attempt{}.FinishedAt
	}
	a.Reason = "because"
	return &a
}

func TestEveryMoveOfAnAttemptFromEveryState(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	agent := enrol(t, db, "one").ID
	all := []pipeline.AttemptState{pipeline.AttemptOffered, pipeline.AttemptRunning, pipeline.AttemptDone, pipeline.AttemptDeclined, pipeline.AttemptLost}
	path := map[pipeline.AttemptState][]pipeline.AttemptState{
		pipeline.AttemptRunning:  {pipeline.AttemptRunning},
		pipeline.AttemptDone:     {pipeline.AttemptRunning, pipeline.AttemptDone},
		pipeline.AttemptDeclined: {pipeline.AttemptDeclined},
		pipeline.AttemptLost:     {pipeline.AttemptRunning, pipeline.AttemptLost},
	}
	legal := map[string]bool{
		"offered offered": true, "running running": true, // a sentence may change
		"offered running": true, "offered declined": true,
		"running done": true, "running lost": true,
		"lost done": true,
	}
	n := 0
	for _, from := range all {
		for _, to := range all {
			n++
			r := newRun(c, n)
			create(t, db, r, c)
			a := &pipeline.Attempt{
				ID: pipeline.AttemptID(r.ID), Run: r.ID, Task: "t0", Agent: agent,
				Token: pipeline.Token{Incarnation: 1, Epoch: 1}, State: pipeline.AttemptOffered, OfferedAt: noon,
			}
			if err := saveAttempt(t, db, nil, a); err != nil {
				t.Fatal(err)
			}
			for _, s := range path[from] {
				next := in(*a, s)
				if err := saveAttempt(t, db, a, next); err != nil {
					t.Fatalf("%s -> %s: %v", a.State, s, err)
				}
				a = next
			}
			after := in(*a, to)
			err := saveAttempt(t, db, a, after)
			kept := a
			if legal[string(from+" "+to)] {
				kept = after
				if err != nil {
					t.Errorf("%s -> %s: %v", from, to, err)
				}
			} else {
				want(t, err, fault.Internal)
			}
			got, err := db.Attempt(t.Context(), a.ID)
			if d := cmp.Diff(*kept, got); d != "" || err != nil {
				t.Errorf("%s -> %s: %v, want - got +\n%s", from, to, err, d)
			}
			if from != to && legal[string(from+" "+to)] {
				want(t, saveAttempt(t, db, a, after), fault.Conflict) // from a state that it left
			}
		}
	}
}

func TestAttemptsOfATaskDoNotOverlap(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	agent := enrol(t, db, "one").ID
	r := newRun(c, 1)
	create(t, db, r, c)
	attempt := func(id string, epoch int64) *pipeline.Attempt {
		return &pipeline.Attempt{
			ID: pipeline.AttemptID(id), Run: r.ID, Task: "t0", Agent: agent,
			Token: pipeline.Token{Incarnation: 1, Epoch: epoch}, State: pipeline.AttemptOffered, OfferedAt: noon,
		}
	}
	first := attempt("x1", 2)
	if err := saveAttempt(t, db, nil, first); err != nil {
		t.Fatal(err)
	}
	want(t, saveAttempt(t, db, nil, attempt("x2", 3)), fault.Internal)
	if err := saveAttempt(t, db, first, in(*first, pipeline.AttemptDeclined)); err != nil {
		t.Fatal(err)
	}
	want(t, saveAttempt(t, db, nil, attempt("x2", 2)), fault.Internal)
	want(t, saveAttempt(t, db, nil, attempt("x2", 1)), fault.Internal)
	if err := saveAttempt(t, db, nil, attempt("x2", 3)); err != nil {
		t.Fatal(err)
	}
	got, err := db.Attempts(t.Context(), r.ID)
	if err != nil || len(got) != 2 || got[0].ID != "x1" || got[1].ID != "x2" {
		t.Errorf("got %v, %v", got, err)
	}
	stray := attempt("x3", 1)
	stray.Agent = "a-nobody"
	stray.Run = r.ID
	stray.Token.Epoch = 9
	if err := saveAttempt(t, db, got2(got[1]), in(got[1], pipeline.AttemptDeclined)); err != nil {
		t.Fatal(err)
	}
	want(t, saveAttempt(t, db, nil, stray), fault.NotFound)
	_, err = db.Attempt(t.Context(), "x9")
	want(t, err, fault.NotFound)
}

func got2(a pipeline.Attempt) *pipeline.Attempt { return &a }

func TestUnfinishedAttemptsAreThoseWhoseWordCounts(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	agent := enrol(t, db, "one").ID
	var wantIDs []pipeline.AttemptID
	for i, s := range []pipeline.State{pipeline.Offered, pipeline.Running, pipeline.InDoubt, pipeline.Error, pipeline.Success} {
		r := newRun(c, i)
		create(t, db, r, c)
		a := &pipeline.Attempt{
			ID: pipeline.AttemptID(string(r.ID) + "/t0/1"), Run: r.ID, Task: "t0", Agent: agent,
			Token: pipeline.Token{Incarnation: 1, Epoch: 1}, State: pipeline.AttemptOffered, OfferedAt: noon,
		}
		if err := saveAttempt(t, db, nil, a); err != nil {
			t.Fatal(err)
		}
		steps := map[pipeline.State][]pipeline.AttemptState{
			pipeline.Running: {pipeline.AttemptRunning}, pipeline.InDoubt: {pipeline.AttemptRunning, pipeline.AttemptLost},
			pipeline.Error: {pipeline.AttemptRunning, pipeline.AttemptLost}, pipeline.Success: {pipeline.AttemptRunning, pipeline.AttemptDone},
		}
		for _, to := range steps[s] {
			next := in(*a, to)
			if err := saveAttempt(t, db, a, next); err != nil {
				t.Fatal(err)
			}
			a = next
		}
		bring(t, db, r, s)
		if !s.Terminal() {
			wantIDs = append(wantIDs, a.ID)
		}
	}
	list, err := db.UnfinishedAttempts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []pipeline.AttemptID
	for _, a := range list {
		got = append(got, a.ID)
	}
	if d := cmp.Diff(wantIDs, got); d != "" {
		t.Errorf("want - got +\n%s", d)
	}
}
