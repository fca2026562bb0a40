// Package sources watches one repository and says where its refs are, or how its pull
// requests are, whenever that changed. Looking is the truth: every pass reads all of it.
// Notices of the file system and hints from webhooks only make the next pass come at
// once, so that a lost, doubled or forged one does no harm.
//
// The package decides nothing about what it reads and keeps nothing on disk; whoever
// observes it records what was observed.
package sources

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
)

// State is what there is to see of a repository at one moment, as gitrepo.Refs.
type State[T any] interface {
	Equal(other T) bool
}

// Repository is what a Source looks at; *gitrepo.Repo is one of gitrepo.Refs.
type Repository[T State[T]] interface {
	// Fetch returns all of it as it is.
	Fetch(ctx context.Context) (T, error)
	// WatchDirs are folders whose files change when it does, if there are any.
	WatchDirs() []string
	String() string
}

// Config says what to watch and whom to tell.
type Config[T State[T]] struct {
	Repo Repository[T]
	// Poll is how often to look when nothing seems to happen; 30 s.
	Poll time.Duration
	// Resync is how often what is unchanged is observed all the same; 10 min.
	Resync time.Duration
	Log    *slog.Logger
	// Observe is called with all that there is: first of all, whenever it differs from
	// what it last took without an error, and every Resync. It is never called
	// twice at a time. After an error it is called again: at once for
	// ErrMore and fault.Conflict, otherwise after a pause that grows from 1 s to 5 min, or
	// when something moves. An error that has a method RetryAt() time.Time is of a part
	// alone: it is called again then, and every Poll until it takes all.
	Observe func(ctx context.Context, now T) error
	// Problem is called when the repository cannot be read, with an error whose
	// text is for people, again when the text changes, and with nil as soon as
	// it can be read again. It may be nil.
	Problem func(ctx context.Context, err error)
}

// ErrMore is returned by an Observe that has taken in a part of it and wants to
// see how it is before it goes on.
var ErrMore = errors.New("there is more to take in")

const (
	firstPause = time.Second
	lastPause  = 5 * time.Minute
	// conflicts in a row that are tried at once, before it looks like a quarrel.
	conflicts = 3
)

// Source watches one repository.
type Source[T State[T]] struct {
	cfg  Config[T]
	hint chan struct{}

	// Owned by Run.
	last       T
	observed   bool
	observedAt time.Time
	problem    string // "" while the repository can be read
	failures   int    // in a row, of reading or observing
}

// New returns a Source that does nothing until Run.
func New[T State[T]](cfg Config[T]) *Source[T] {
	if cfg.Poll <= 0 {
		cfg.Poll = 30 * time.Second
	}
	if cfg.Resync <= 0 {
		cfg.Resync = 10 * time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Problem == nil {
		cfg.Problem = func(context.Context, error) {}
	}
	cfg.Log = cfg.Log.With("repository", cfg.Repo.String())
	return &Source[T]{cfg: cfg, hint: make(chan struct{}, 1)}
}

// Hint makes a pass come at once. It never blocks; hints during a pass become
// one pass after it.
func (s *Source[T]) Hint() {
	select {
	case s.hint <- struct{}{}:
	default:
	}
}

// Run watches until ctx ends, and returns nil then. It calls Observe and Problem
// from its own goroutine.
func (s *Source[T]) Run(ctx context.Context) error {
	w := newWatch(s.cfg.Repo.WatchDirs(), s.cfg.Log)
	defer w.close()
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.hint:
		case ev := <-w.events():
			if !w.matters(ev) {
				continue
			}
		case err := <-w.errors():
			// Notices were lost; the pass that follows looks at everything.
			s.cfg.Log.Warn("notices of the file system were lost", "err", err)
			w.stale = true
		case <-next.C:
			w.stale = true
		}
		w.drain()
		w.sync()
		next.Reset(s.pass(ctx))
	}
}

// pass looks once and returns how long to wait for the next look.
func (s *Source[T]) pass(ctx context.Context) time.Duration {
	now, err := s.cfg.Repo.Fetch(ctx)
	if ctx.Err() != nil {
		return lastPause
	}
	if err != nil {
		s.failures++
		if text := err.Error(); text != s.problem {
			s.problem = text
			s.cfg.Log.Warn("repository cannot be read", "err", err, "failures", s.failures)
			s.cfg.Problem(ctx, err)
		}
		return pause(s.failures)
	}
	if s.problem != "" {
		s.problem, s.failures = "", 0
		s.cfg.Log.Info("repository can be read again")
		s.cfg.Problem(ctx, nil)
	}
	if s.observed && now.Equal(s.last) && time.Since(s.observedAt) < s.cfg.Resync {
		s.failures = 0
		return s.cfg.Poll
	}
	if err := s.cfg.Observe(ctx, now); err != nil {
		s.observed = false
		if ctx.Err() != nil {
			return lastPause
		}
		if errors.Is(err, ErrMore) {
			s.failures = 0
			return 0
		}
		var part interface{ RetryAt() time.Time }
		if errors.As(err, &part) {
			s.failures = 0
			return min(s.cfg.Poll, max(time.Until(part.RetryAt()), firstPause))
		}
		s.failures++
		if fault.Is(err, fault.Conflict) && s.failures <= conflicts {
			return 0
		}
		s.cfg.Log.Error("what was read could not be taken in", "err", err, "failures", s.failures)
		return pause(s.failures)
	}
	s.last, s.observed, s.observedAt, s.failures = now, true, time.Now(), 0
	return s.cfg.Poll
}

// pause doubles from firstPause to lastPause; up to a quarter is taken off at
// random, so that many sources do not ask a recovering server in step.
func pause(failures int) time.Duration {
	d := lastPause
	if failures < 10 {
		d = min(firstPause<<(failures-1), lastPause)
	}
	return max(d-time.Duration(rand.Int64N(int64(d/4))), firstPause)
}
