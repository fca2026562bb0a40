package sources_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	repo *fakeRepo
	src  *sources.Source[gitrepo.Refs]

	mu       sync.Mutex
	observed []gitrepo.Refs
	problems []string
	answer   error // of Observe
	more     int   // how often it answers so, 0 for always
}

func (b *bench) observe(_ context.Context, r gitrepo.Refs) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.observed = append(b.observed, r)
	if b.more > 0 {
		if b.more--; b.more == 0 {
			defer func() { b.answer = nil }()
		}
	}
	return b.answer
}

func (b *bench) problem(_ context.Context, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = append(b.problems, fmt.Sprint(err))
}

func (b *bench) seen() []gitrepo.Refs {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.observed)
}

func (b *bench) told() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.problems)
}

func (b *bench) answering(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = err
}

func inBubble(t *testing.T, first error, f func(t *testing.T, b *bench)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{repo: &fakeRepo{start: time.Now(), err: first}}
		b.src = sources.New(sources.Config[gitrepo.Refs]{
			Repo: b.repo, Observe: b.observe, Problem: b.problem,
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
		if len(b.seen()) != 1 || b.repo.count() != 11 {
			t.Errorf("observed %d times in %d passes, want 1 in 11", len(b.seen()), b.repo.count())
		}
		b.repo.set(1, nil)
		after(30 * time.Second)
		if len(b.seen()) != 2 || b.seen()[1].Tip() != pipeline.CommitID(fmt.Sprintf("%040d", 1)) {
			t.Errorf("the poll did not bring the new tip: %v", b.seen())
		}
	})
}

func TestUnchangedRefsAreObservedAgainAfterALongTime(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bench) {
		after(31 * time.Minute)
		if len(b.seen()) != 4 {
			t.Errorf("observed %d times in half an hour, want 4", len(b.seen()))
		}
	})
}

func TestHintBringsAPassAtOnce(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bench) {
		for range 10_000 {
			b.src.Hint()
		}
		synctest.Wait()
		// A few while they came, for nobody waits for the last of them.
		if n := b.repo.count(); n > 100 {
			t.Errorf("10,000 hints made %d passes", n)
		}
		b.repo.set(1, nil)
		b.src.Hint()
		synctest.Wait()
		if len(b.seen()) != 2 {
			t.Errorf("observed %d times, want 2", len(b.seen()))
		}
	})
}

func TestUnreachableRepositoryIsAskedLessOftenAndReportedOnce(t *testing.T) {
	inBubble(t, fault.New(fault.Unavailable, "no answer; check the network"), func(t *testing.T, b *bench) {
		after(time.Hour)
		if len(b.told()) != 1 || b.told()[0] != "no answer; check the network" {
			t.Errorf("problems = %q, want the sentence once", b.told())
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
		if want := []string{"no answer; check the network", "other", "<nil>"}; fmt.Sprint(b.told()) != fmt.Sprint(want) {
			t.Errorf("problems = %q, want %q", b.told(), want)
		}
		if len(b.seen()) != 1 {
			t.Errorf("observed %d times after recovery, want 1 at once", len(b.seen()))
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
		b.answering(errors.New("disk full"))
		b.repo.set(1, nil)
		b.src.Hint()
		synctest.Wait()
		after(10 * time.Second)
		n := len(b.seen())
		if n < 4 || n > 7 {
			t.Errorf("observed %d times in 10 s, want a few with growing pauses", n)
		}
		b.answering(nil)
		after(time.Minute)
		if len(b.seen()) != n+1 || len(b.told()) != 0 {
			t.Errorf("observed %d times, problems %q; want %d and none", len(b.seen()), b.told(), n+1)
		}
	})
}

// part is an error about a part of what was observed.
type part struct{ at time.Time }

func (p part) Error() string      { return "one of them is odd" }
func (p part) RetryAt() time.Time { return p.at }

func TestAPartThatIsLeftSlowsNoLooks(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bench) {
		b.answering(fmt.Errorf("wrapped: %w", part{time.Now().Add(time.Hour)}))
		b.repo.set(1, nil)
		b.src.Hint()
		after(10*time.Minute + time.Second)
		if n := len(b.seen()); n != 1+21 {
			t.Errorf("observed %d times in 10 minutes, want each poll", n-1)
		}
		b.answering(fmt.Errorf("wrapped: %w", part{time.Now().Add(35 * time.Second)}))
		after(30 * time.Second)
		n := len(b.seen())
		after(6 * time.Second)
		if len(b.seen()) <= n {
			t.Error("it was not observed when the part was due")
		}
	})
}

func TestConflictIsTriedAgainAtOnceButNotForEver(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bench) {
		b.answering(fault.New(fault.Conflict, "moved"))
		b.repo.set(1, nil)
		b.src.Hint()
		synctest.Wait()
		if n := len(b.seen()); n != 1+4 {
			t.Errorf("observed %d times without time passing, want 5", n)
		}
	})
}

func TestRefsThatAreTakenInByPartsAreReadAgainAtOnce(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, b *bench) {
		b.answering(sources.ErrMore)
		b.more = 20
		b.repo.set(1, nil)
		b.src.Hint()
		synctest.Wait()
		if n := len(b.seen()); n != 1+21 || b.repo.count() < n {
			t.Errorf("observed %d times and read %d times without time passing, want 22", n, b.repo.count())
		}
	})
}
