package loop

import (
	"cmp"
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// readEvery is how often on average a pull request is read, so that 500 of them are
	// read once in staleAfter. A forge counts requests by the minute: reading one takes
	// three and one or two for each reviewer.
	readEvery = 600 * time.Millisecond
	// mostAtOnce is how many are read at one look that comes after some rest.
	mostAtOnce = 50
	// readersOfPulls bounds the pull requests that are read at a time.
	readersOfPulls = 8
	// catchUp is until the next look when some are left to be read.
	catchUp = 10 * time.Second
)

// turns says which pull requests are read at a look, so that neither a start nor a busy
// day asks more of the forge than it gives, and each has its turn. Times are credits.
type turns struct {
	at   time.Time     // of the last look
	may  time.Duration // readEvery for each that may be read
	kept time.Duration // of that, for those that were not read for too long
	owed time.Duration // staleAfter for each whose turn has come
}

// take says how many are read now of soon, in which something may have changed, and how
// many of the others; in both the longest unread come first. So many of the others have
// their turn that all are read once in staleAfter, evenly, and besides those that were
// not: of what may be read a quarter is kept for these, however many are in soon. left:
// there are more that should be read.
func (t *turns) take(now time.Time, soon, others []*Discussed) (first, then int, left bool) {
	const most = mostAtOnce * readEvery
	if t.at.IsZero() {
		t.at, t.may = now, most
	}
	passed := now.Sub(t.at)
	t.at = now
	t.may, t.kept = min(t.may+passed, most), min(t.kept+passed/4, most/4)
	t.owed += passed * time.Duration(len(soon)+len(others))
	share := int(t.owed / staleAfter)
	t.owed %= staleAfter
	stale := unreadFor(others, now, staleAfter)
	turn := max(stale, min(share, unreadFor(others, now, staleAfter/2)))
	may := int(t.may / readEvery)
	kept := min(stale, may, int(t.kept/readEvery))
	first = min(len(soon), may-kept)
	then = min(turn, may-first)
	t.may -= time.Duration(first+then) * readEvery
	t.kept -= time.Duration(min(kept, then)) * readEvery
	return first, then, first < len(soon) || then < turn
}

// unreadFor is how many of list, the longest unread first, were not read for so long.
func unreadFor(list []*Discussed, now time.Time, long time.Duration) int {
	n := slices.IndexFunc(list, func(d *Discussed) bool { return now.Sub(d.readAt) < long })
	if n < 0 {
		return len(list)
	}
	return n
}

// inTurn sorts pull requests by when they were read last: one that never was before all
// others, and of those the one first in which something happened last.
func inTurn(a, b *Discussed) int {
	return cmp.Or(a.triedAt.Compare(b.triedAt), b.UpdatedAt.Compare(a.UpdatedAt), a.Number-b.Number)
}

// notYet is why a pull request is not read whose turn has not come.
const notYet = "its turn to be read has not come"

// readSome takes in the list, and reads those pull requests whose turn it is. The error
// is of a forge that could not be asked about any.
func (w *Pulls) readSome(ctx context.Context, list []pipeline.Pull) error {
	w.mu.Lock()
	hinted := w.hinted
	w.hinted = map[int]bool{}
	w.mu.Unlock()
	awaited, now := w.cfg.Proposals.awaitedPulls(), time.Now()
	next := make(map[int]*Discussed, len(list))
	var told, soon, others []*Discussed
	for _, p := range list {
		d := w.knownAs(&p, now)
		next[p.Number] = d
		why, isAwaited := awaited[p.Number]
		switch {
		case isDoor(&p) && why.cause == nil, p.Closed && !isAwaited:
		case w.waits(p.Number, now, hinted):
			d.Unread, d.doubted = w.alone[p.Number].err.Error(), false
		case hinted[p.Number]:
			told = append(told, d)
		case d.due(now, isAwaited), !slices.Equal(d.owning, w.owning[p.Number]):
			soon = append(soon, d)
		default:
			others = append(others, d)
		}
	}
	for _, l := range [][]*Discussed{told, soon, others} {
		slices.SortFunc(l, inTurn)
	}
	soon = append(told, soon...)
	var first, then int
	first, then, w.left = w.turns.take(now, soon, others)
	w.putOff(soon[first:], hinted)
	var g errgroup.Group
	g.SetLimit(readersOfPulls)
	read := slices.Concat(soon[:first], others[:then])
	became := make([]error, len(read))
	for i, d := range read {
		cause := awaited[d.Number].cause
		g.Go(func() error { became[i] = w.read(ctx, d, cause); return nil })
	}
	_ = g.Wait() // became has them all
	var err error
	for i, d := range read {
		err = cmp.Or(err, w.became(d.Number, became[i]))
	}
	w.known = next
	return err
}

// putOff leaves pull requests for another look. What was said before one of them changed
// counts no more until it is read.
func (w *Pulls) putOff(list []*Discussed, hinted map[int]bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range list {
		if hinted[d.Number] {
			w.hinted[d.Number] = true
		}
		if d.UpdatedAt.After(d.readAt) && d.Unread == "" {
			d.Unread = notYet
		}
	}
}

// knownAs is what is known of a pull request that is listed, before it is read again.
// Nothing that was said before its head moved counts until then, nor what was read too
// long ago while the forge could not be asked.
func (w *Pulls) knownAs(p *pipeline.Pull, now time.Time) *Discussed {
	d := &Discussed{Pull: *p}
	if old := w.known[p.Number]; old != nil {
		*d = *old
		d.Pull = *p
		if old.Head != p.Head {
			d.readAt = time.Time{}
		}
	}
	switch {
	case d.readAt.IsZero(), d.doubted && now.Sub(d.readAt) > staleAfter:
		d.Unread, d.doubted = notYet, false
	case d.doubted:
		d.Unread, d.doubted = "", false
	}
	return d
}
