package store_test

import (
	"log/slog"
	"testing"

	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// open opens the record in dir; it is closed with the test.
func open(t testing.TB, dir string) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestIdentityStays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	id := db.ID()
	if len(id) != 32 || db.Incarnation() != 1 {
		t.Errorf("got id %q, incarnation %d", id, db.Incarnation())
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if got := open(t, dir).ID(); got != id {
		t.Errorf("reopened: got id %s, want %s", got, id)
	}
}
