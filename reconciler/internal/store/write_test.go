package store_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func TestWatchersAreWokenAfterTheCommit(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	signal, stop := db.Watch()
	other, stopOther := db.Watch()
	defer stopOther()
	for i := range 3 { // nobody listens meanwhile: the writer is not held up
		create(t, db, newRun(c, i), c)
	}
	<-signal
	if seq, err := db.LastSeq(t.Context()); seq != 3 || err != nil {
		t.Errorf("woken at seq %d, %v", seq, err)
	}
	select {
	case <-signal:
		t.Error("three commits before anyone looked are one signal")
	default:
	}
	<-other
	boom := errors.New("boom")
	err := db.Write(t.Context(), func(tx *store.Tx) error { return errors.Join(tx.CreateRun(newRun(c, 9), c), boom) })
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	write(t, db, func(*store.Tx) error { return nil })
	stop()
	stop()
	select {
	case <-other:
		t.Error("woken although nothing was committed")
	default:
	}
}

func TestCancelledWriterDoesNotWaitForItsTurn(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	inside, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		done <- db.Write(context.Background(), func(*store.Tx) error {
			close(inside)
			<-leave
			return nil
		})
	}()
	<-inside
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error)
	go func() {
		waiting <- db.Write(ctx, func(*store.Tx) error { return errors.New("must not run") })
	}()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTransactionOnceBegunIsFinished(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	ctx, cancel := context.WithCancel(t.Context())
	err := db.Write(ctx, func(tx *store.Tx) error {
		cancel()
		return tx.CreateRun(newRun(c, 1), c)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Run(t.Context(), "build-000001"); err != nil {
		t.Error(err)
	}
}

func TestPanicRollsBackAndFreesTheTurn(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	func() {
		defer func() { recover() }()
		db.Write(t.Context(), func(tx *store.Tx) error {
			_ = tx.CreateRun(newRun(c, 1), c)
			panic("boom")
		})
	}()
	r := newRun(c, 2)
	create(t, db, r, c)
	if r.Number != 1 {
		t.Errorf("got number %d, want 1", r.Number)
	}
}

// onError is a log that signals each error.
func onError(t testing.TB, signal chan<- struct{}) *slog.Logger {
	return slog.New(errorSignal{testLog(t).Handler(), signal})
}

type errorSignal struct {
	slog.Handler
	signal chan<- struct{}
}

func (h errorSignal) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		h.signal <- struct{}{}
	}
	return h.Handler.Handle(ctx, r)
}
