package loop_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
)

// looking plays looks at pull requests.
type looking struct {
	turns loop.Turns
	now   time.Time
	list  []*loop.Discussed
	last  map[*loop.Discussed]time.Time // when each was read last
	reads []time.Time
}

func newLooking(n int) *looking {
	l := &looking{now: time.Unix(1_800_000_000, 0), last: map[*loop.Discussed]time.Time{}}
	for i := range n {
		l.list = append(l.list, &loop.Discussed{Pull: pipeline.Pull{Number: i + 1}})
	}
	return l
}

// look reads, after some rest, when those have changed. It returns how many were read.
func (l *looking) look(rest time.Duration, changed ...*loop.Discussed) int {
	l.now = l.now.Add(rest)
	for _, d := range changed {
		d.UpdatedAt = l.now
	}
	var soon, others []*loop.Discussed
	for _, d := range l.list {
		if at, ok := l.last[d]; ok && !d.UpdatedAt.After(at) {
			others = append(others, d)
		} else {
			soon = append(soon, d)
		}
	}
	read := l.turns.Look(l.now, soon, others)
	for _, d := range read {
		l.last[d] = l.now
		l.reads = append(l.reads, l.now)
	}
	return len(read)
}

// oldest is how long ago any was read, for ever when one never was.
func (l *looking) oldest() time.Duration {
	old := time.Duration(0)
	for _, d := range l.list {
		old = max(old, l.now.Sub(l.last[d]))
	}
	return old
}

func TestPullRequestsAreReadOneAfterTheOther(t *testing.T) {
	t.Parallel()
	// A few are read at once.
	if n := newLooking(50).look(0); n != 50 {
		t.Errorf("%d of 50 were read at the first look", n)
	}
	// Of many some, and the rest in five minutes.
	l := newLooking(500)
	for range 30 {
		l.look(10 * time.Second)
	}
	if l.oldest() > 5*time.Minute {
		t.Errorf("after five minutes one was last read %s ago", l.oldest())
	}
	// From then on they are read evenly, and in five minutes again.
	for _, count := range []int{1, 7, 50, 120, 500} {
		l := newLooking(count)
		for range 60 {
			l.look(10 * time.Second)
		}
		most, share := 0, count*30/300+2
		for range 120 {
			most = max(most, l.look(30*time.Second))
			if l.oldest() > 330*time.Second {
				t.Fatalf("%d: one was read %s ago", count, l.oldest())
			}
		}
		if most > share {
			t.Errorf("%d: %d were read at one look, and %d are enough", count, most, share)
		}
	}
}

// TestNoPullRequestStarves lets looks come when they like and anything change: never are
// more read in a minute than the forge gives, and each has its turn.
func TestNoPullRequestStarves(t *testing.T) {
	t.Parallel()
	l := newLooking(200) // and hints come all the time, half of them about the same ones
	for range 4000 {
		l.look(300*time.Millisecond, l.list[:100]...)
	}
	if l.oldest() > 10*time.Minute {
		t.Errorf("one was read %s ago", l.oldest())
	}
	rapid.Check(t, func(rt *rapid.T) {
		l := newLooking(rapid.IntRange(1, 300).Draw(rt, "pull requests"))
		busy := rapid.IntRange(0, len(l.list)).Draw(rt, "that change all the time")
		for end := l.now.Add(time.Hour); l.now.Before(end); {
			l.look(time.Duration(rapid.IntRange(100, 30_000).Draw(rt, "rest"))*time.Millisecond, l.list[:busy]...)
		}
		// The quarter that the others have is 25 a minute.
		if l.oldest() > 15*time.Minute {
			rt.Errorf("%d of which %d change: one was read %s ago", len(l.list), busy, l.oldest())
		}
		for i, from := range l.reads {
			if i+150 < len(l.reads) && l.reads[i+150].Sub(from) < time.Minute {
				rt.Fatalf("151 are read from %s to %s", from, l.reads[i+150])
			}
		}
	})
}
