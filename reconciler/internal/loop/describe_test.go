package loop_test

import (
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
)

func TestStatusesOfALongRunStayFarBelowWhatAForgeTakes(t *testing.T) {
	t.Parallel()
	for within, most := range map[time.Duration]int{time.Second: 1, time.Minute: 4, time.Hour: 50, 24 * time.Hour: 740} {
		if n := loop.Describes(within); n > most || n == 0 {
			t.Errorf("%d times within %s, want at most %d", n, within, most)
		}
	}
}

func TestStatusTellsOfABlockedTaskAndOfTheOneThatRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.commit("c1", pipeline.Task{Name: "a"}))
	described := func(want string) {
		t.Helper()
		signal, stop := w.db.Watch()
		defer stop()
		slow := time.NewTicker(50 * time.Millisecond) // a status alone is no change of the record
		defer slow.Stop()
		deadline := time.After(patience)
		for {
			statuses, err := w.db.StatusesOf(t.Context(), "c1")
			ok := err == nil && len(statuses) == 2
			for _, s := range statuses {
				ok = ok && s.State == "pending" && strings.Contains(s.Description, want)
			}
			if ok {
				return
			}
			select {
			case <-signal:
			case <-slow.C:
			case <-deadline:
				t.Fatalf("statuses = %+v, %v; want %q", statuses, err, want)
			}
		}
	}
	described("blocked: a: no agent is enrolled")
	a := w.agent("one")
	w.accept(a)
	described("running: 0 of 1 task, running a")
}
