package store_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func TestEndedRunsAreFollowedOnce(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	enrol(t, db, "one")
	c := composition("build", 1)
	for i := range 3 {
		r := newRun(c, i)
		create(t, db, r, c)
		if i != 1 {
			bring(t, db, r, pipeline.Success)
		}
	}
	if _, err := db.Followed(t.Context(), "ops"); !fault.Is(err, fault.NotFound) {
		t.Errorf("followed before the first time: %v", err)
	}
	var found []pipeline.RunID
	var seq pipeline.Seq
	for {
		runs, seen, err := db.Ended(t.Context(), seq, 2) // smaller than what there is
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range runs {
			found = append(found, r.ID)
		}
		if seen == seq {
			break
		}
		seq = seen
	}
	if len(found) != 2 || found[0] != "build-000000" || found[1] != "build-000002" {
		t.Errorf("ended: %v", found)
	}
	if last, err := db.LastSeq(t.Context()); err != nil || last != seq {
		t.Errorf("followed to %d of %d, %v", seq, last, err)
	}
	write(t, db, func(tx *store.Tx) error { return tx.Follow("ops", seq) })
	write(t, db, func(tx *store.Tx) error { return tx.Follow("ops", 1) })
	if got, err := db.Followed(t.Context(), "ops"); err != nil || got != seq {
		t.Errorf("followed = %d, %v, want %d", got, err, seq)
	}
}

func TestFiringsAreKeptByTrigger(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	a := store.Firing{Composition: "a", Schedule: "0 2 * * *", Zone: "Europe/Paris", SeenTo: noon}
	b := store.Firing{Composition: "a", Schedule: "0 3 * * *", Zone: "Europe/Paris", SeenTo: noon}
	write(t, db, func(tx *store.Tx) error {
		for _, f := range []store.Firing{a, b} {
			if err := tx.SaveFiring("ops", f); err != nil {
				return err
			}
		}
		return tx.SaveFiring("other", a)
	})
	a.SeenTo = noon.Add(time.Hour)
	write(t, db, func(tx *store.Tx) error { return tx.SaveFiring("ops", a) })
	write(t, db, func(tx *store.Tx) error { return tx.DropFiring("ops", b) })
	if got, err := db.Firings(t.Context(), "ops"); err != nil || len(got) != 1 || got[0] != a {
		t.Errorf("firings = %+v, %v", got, err)
	}
}

func TestDraftGetsItsParamsOnce(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c, called := composition("build", 1), composition("called", 1)
	r := newRun(c, 1)
	r.Draft, r.Params, r.Group, r.Behind = true, nil, "", nil
	if err := db.Write(t.Context(), func(tx *store.Tx) error { return tx.CreateRun(r, c, called) }); err != nil {
		t.Fatal(err)
	}
	if kept, err := db.Composition(t.Context(), called.Digest); err != nil || kept.Name != "called" {
		t.Errorf("what it may call is not kept: %+v, %v", kept, err)
	}
	ready := r.Clone()
	ready.Draft, ready.Params, ready.Group, ready.Behind = false, json.RawMessage(`{"n":2}`), "prod", []pipeline.RunID{"x"}
	if err := save(t, db, r, ready); err != nil {
		t.Fatal(err)
	}
	got, err := db.Run(t.Context(), r.ID)
	if err != nil || got.Draft || string(got.Params) != `{"n":2}` || got.Group != "prod" || len(got.Behind) != 1 {
		t.Errorf("run = %+v, %v", got, err)
	}
	for name, change := range map[string]func(*pipeline.Run){
		"params": func(r *pipeline.Run) { r.Params = json.RawMessage(`{}`) },
		"group":  func(r *pipeline.Run) { r.Group = "other" },
		"draft":  func(r *pipeline.Run) { r.Draft = true },
	} {
		after := got.Clone()
		change(after)
		if err := save(t, db, got, after); !fault.Is(err, fault.Internal) {
			t.Errorf("%s changed afterwards: %v", name, err)
		}
	}
}
