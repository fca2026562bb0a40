package store_test

import (
	"testing"
	"time"

	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func TestTalkWithAForgeGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	write := func(f func(*store.Tx) error) {
		t.Helper()
		if err := db.Write(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	c := store.Comment{Branch: "pull/1", Digest: "sha256:1", Number: 7, Rank: 1, Tries: 2, NextAt: noon, Problem: "no"}
	hold := store.Consent{Branch: "pull/1", Verb: store.ConsentHold, By: "ana", At: noon}
	write(func(tx *store.Tx) error { return tx.SaveComment("r", c) })
	write(func(tx *store.Tx) error {
		return tx.SaveComment("r", store.Comment{Branch: "pull/2", Done: true, NextAt: time.Time{}})
	})
	write(func(tx *store.Tx) error { return tx.Consent("r", hold) })
	write(func(tx *store.Tx) error {
		return tx.Consent("r", store.Consent{Branch: "pull/1", Verb: store.ConsentRun, Head: "h", By: "bo", At: noon})
	})
	write(func(tx *store.Tx) error { return tx.SetForgeFact("x", "1") })
	write(func(tx *store.Tx) error { return tx.SetForgeFact("x", "2") })
	if id, err := db.KnownAccount(t.Context(), "ana"); id != 0 || err != nil {
		t.Errorf("before anybody was met: %d %v", id, err)
	}
	if id, err := db.KnowAccount(t.Context(), "Ana", 7); id != 7 || err != nil {
		t.Error(id, err)
	}
	db.Close()
	db = open(t, dir)
	if list, err := db.Comments(t.Context(), "r"); err != nil || len(list) != 1 || list[0] != c {
		t.Errorf("%+v %v", list, err)
	}
	write(func(tx *store.Tx) error { return tx.Withdraw("r", "pull/1", store.ConsentRun) })
	if list, err := db.Consents(t.Context(), "r"); err != nil || len(list) != 1 || list[0] != hold {
		t.Errorf("%+v %v", list, err)
	}
	if v, err := db.ForgeFact(t.Context(), "x"); v != "2" || err != nil {
		t.Error(v, err)
	}
	if v, err := db.ForgeFact(t.Context(), "y"); v != "" || err != nil {
		t.Error(v, err)
	}
	// A login stays whose it was, in any case of letters.
	if id, err := db.KnownAccount(t.Context(), "ANA"); id != 7 || err != nil {
		t.Errorf("ANA is %d %v", id, err)
	}
	if id, err := db.KnowAccount(t.Context(), "aNA", 8); id != 7 || err != nil {
		t.Error(id, err)
	}
}
