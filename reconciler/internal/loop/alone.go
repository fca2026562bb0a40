package loop

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// trouble is that one pull request cannot be read although others may.
type trouble struct {
	err   error
	tries int
	due   time.Time // not to be asked about earlier, unless a hint is about it
	// missing: it is not even known how it is, let alone what is said of it.
	missing bool
}

// became takes in what became of a try. The pause before the next one grows.
func (t *trouble) became(err error) {
	t.err = err
	t.tries, t.due = again(err, t.tries, longestAlone)
}

// again is when to try again what failed after so many tries before, and how many are to
// be counted: the pause grows, but not by tries that a forge let nobody make.
func again(err error, tries int, longest time.Duration) (counted int, due time.Time) {
	now := time.Now()
	if at, ok := later(err); ok {
		if tries < 2 {
			tries++ // enough to be told of
		}
		if first := now.Add(time.Second); at.Before(first) {
			at = first
		}
		return tries, at
	}
	return tries + 1, now.Add(min(time.Second<<min(tries, 8), longest))
}

// longestAlone is how long at most a pull request that cannot be read is left alone: what
// is granted or mended there shows within that time.
const longestAlone = time.Minute

// later is when a forge may be asked again that nobody may ask before, because it does not
// answer or its rate limit is used up; not ok for an error of another kind.
func later(err error) (at time.Time, ok bool) {
	var l interface{ Later() time.Time }
	if !errors.As(err, &l) {
		return time.Time{}, false
	}
	return l.Later(), true
}

// became takes in what became of asking about one pull request. What is about that one
// alone holds it up and no other; the rest is returned.
func (w *Pulls) became(number int, err error) error {
	if err == nil {
		delete(w.alone, number)
		return nil
	}
	if _, all := later(err); all || errors.Is(err, context.Canceled) {
		return err
	}
	t := w.alone[number]
	t.missing = false
	t.became(err)
	w.alone[number] = t
	w.cfg.Log.Warn("pull request cannot be read", "pull", number, "err", err, "tries", t.tries)
	return nil
}

// waits reports whether a pull request could not be read and is not to be asked about yet.
func (w *Pulls) waits(number int, now time.Time, hinted map[int]bool) bool {
	t := w.alone[number]
	return t.missing || now.Before(t.due) && !hinted[number]
}

// one asks how one pull request is that the list does not have, or returns what was known
// of it while that cannot be said, nil for nothing.
func (w *Pulls) one(ctx context.Context, number int) (*pipeline.Pull, error) {
	w.mu.Lock()
	hinted := w.hinted[number]
	w.mu.Unlock()
	t := w.alone[number]
	if !t.missing || hinted || !time.Now().Before(t.due) {
		p, err := w.cfg.Forge.Pull(ctx, number)
		if err == nil || fault.Is(err, fault.NotFound) {
			if t.missing {
				delete(w.alone, number)
			}
			return &p, err
		}
		if err := w.became(number, err); err != nil {
			return nil, err
		}
		t = w.alone[number]
		t.missing = true
		w.alone[number] = t
	}
	if old := w.known[number]; old != nil {
		return &old.Pull, nil
	}
	return nil, nil
}

// troubles is why pull requests cannot be read, nil when all can.
func (w *Pulls) troubles() error {
	numbers := slices.Sorted(maps.Keys(w.alone))
	if len(numbers) == 0 {
		return nil
	}
	err := fmt.Errorf("pull request %d: %w", numbers[0], w.alone[numbers[0]].err)
	if more := len(numbers) - 1; more > 0 {
		err = fmt.Errorf("%w; and %d more cannot be read", err, more)
	}
	return err
}
