package sources_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/sources"
)

// fakeRepo is a repository without a file system: its clock can be false.
type fakeRepo struct {
	mu      sync.Mutex
	tip     int
	err     error
	fetches []time.Duration // since start
	start   time.Time
}

func (f *fakeRepo) Fetch(context.Context) (gitrepo.Refs, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fetches = append(f.fetches, time.Since(f.start))
	id := pipeline.CommitID(fmt.Sprintf("%040d", f.tip))
	return gitrepo.Refs{Head: "refs/heads/main", Tips: map[pipeline.Ref]pipeline.CommitID{"refs/heads/main": id}}, f.err
}
func (f *fakeRepo) WatchDirs() []string { return nil }
func (f *fakeRepo) String() string      { return "fake" }

func (f *fakeRepo) set(tip int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tip, f.err = tip, err
}

func (f *fakeRepo) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.fetches)
}

// bench runs a Source over a fakeRepo inside a synctest bubble.
type bench struct {
	repo     *fakeRepo
	src      *sources.Source
	observed []gitrepo.Refs
	problems []string
	answer   error // of Observe
}

func inBubble(t *testing.T, first error, f func(t *testing.T, b *bench)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{repo: &fakeRepo{start: time.Now(), err: first}}
		b.src = sources.New(sources.Config{
			Repo:    b.repo,
			Observe: func(_ context.Context, r gitrepo.Refs) error { b.observed = append(b.observed, r); return b.answer },
			Problem: func(_ context.Context, err error) { b.problems = append(b.problems, fmt.Sprint(err)) },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.src.Run(ctx) }()
		synctest.Wait()
		f(t, b)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func after(d time.Duration) { time.Sleep(d); synctest.Wait() } // false time, inside a bubble

func TestRefsAreObservedOnceUntilTheyDiffer(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bench) {
		after(5 * time.Minute)
		if len(b.observed) != 1 || b.repo.count() != 11 {
			t.Errorf("observed %d times in %d passes, want 1 in 11", len(b.observed), b.repo.count())
		}
		b.repo.set(1, nil)
		after(30 * time.Second)
		if len(b.observed) != 2 || b.observed[1].Tip() != pipeline.CommitID(fmt.Sprintf("%040d", 1)) {
			t.Errorf("the poll did not bring the new tip: %v", b.observed)
		}
	})
}

func TestUnchangedRefsAreObservedAgainAfterALongTime(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bench) {
		after(31 * time.Minute)
		if len(b.observed) != 4 {
			t.Errorf("observed %d times in half an hour, want 4", len(b.observed))
		}
	})
}

func TestHintBringsAPassAtOnce(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bench) {
		for range 10_000 {
			b.src.Hint()
		}
		synctest.Wait()
		if n := b.repo.count(); n > 3 {
			t.Errorf("10,000 hints made %d passes", n)
		}
		b.repo.set(1, nil)
		b.src.Hint()
		synctest.Wait()
		if len(b.observed) != 2 {
			t.Errorf("observed %d times, want 2", len(b.observed))
		}
	})
}

func TestUnreachableRepositoryIsAskedLessOftenAndReportedOnce(t *testing.T) {
	inBubble(t, fault.New(fault.Unavailable, "no answer; check the network"), func(t *testing.T, b *bench) {
		after(time.Hour)
		if len(b.problems) != 1 || b.problems[0] != "no answer; check the network" {
			t.Errorf("problems = %q, want the sentence once", b.problems)
		}
		gaps := b.repo.fetches
		for i := 1; i < len(gaps); i++ {
			want := min(time.Second<<(i-1), 5*time.Minute)
			if got := gaps[i] - gaps[i-1]; got > want || got < want*3/4 {
				t.Errorf("pause %d is %v, want up to %v", i, got, want)
			}
		}
		b.repo.set(0, fault.New(fault.Unavailable, "other"))
		after(5 * time.Minute)
		b.repo.set(0, nil)
		b.src.Hint()
		synctest.Wait()
		if want := []string{"no answer; check the network", "other", "<nil>"}; fmt.Sprint(b.problems) != fmt.Sprint(want) {
			t.Errorf("problems = %q, want %q", b.problems, want)
		}
		if len(b.observed) != 1 {
			t.Errorf("observed %d times after recovery, want 1 at once", len(b.observed))
		}
		n := b.repo.count()
		after(30 * time.Second)
		if b.repo.count() != n+1 {
			t.Error("polling did not resume")
		}
	})
}

func TestRefsThatCouldNotBeTakenInComeAgain(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bench) {
		b.answer = errors.New("disk full")
		b.repo.set(1, nil)
		b.src.Hint()
		synctest.Wait()
		after(10 * time.Second)
		n := len(b.observed)
		if n < 4 || n > 7 {
			t.Errorf("observed %d times in 10 s, want a few with growing pauses", n)
		}
		b.answer = nil
		after(time.Minute)
		if len(b.observed) != n+1 || len(b.problems) != 0 {
			t.Errorf("observed %d times, problems %q; want %d and none", len(b.observed), b.problems, n+1)
		}
	})
}

func TestConflictIsTriedAgainAtOnceButNotForEver(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bench) {
		b.answer = fault.New(fault.Conflict, "moved")
		b.repo.set(1, nil)
		b.src.Hint()
		synctest.Wait()
		if n := len(b.observed); n != 1+4 {
			t.Errorf("observed %d times without time passing, want 5", n)
		}
	})
}
