package gitrepo

import (
	"container/heap"
	"context"
	"slices"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Span is what one commit has that another has not.
type Span struct {
	// Commits that are reachable from head and not from base, newest first; none
	// when base contains head. With clocks that are wrong by much, some that base
	// has may be among them.
	Commits []CommitInfo
	// Fork is a commit that both have and that no other such commit leads to, "" when
	// they have none in common. Others are all those besides: there are some where each
	// history was merged into the other.
	Fork   pipeline.CommitID
	Others []pipeline.CommitID
	// Truncated: the histories were too long to follow, and the rest is not
	// known.
	Truncated bool
}

const (
	// mostSpan bounds the commits that are read: a change has a few, and how far
	// its base has moved on is thousands at worst.
	mostSpan = 20_000
	// slop is how many commits of both are looked at once all others are known, for
	// dates that are not in order.
	slop = 64
)

// Between tells what head adds to base. fault.NotFound when one of them is not
// there. An empty base has nothing.
func (r *Repo) Between(ctx context.Context, base, head pipeline.CommitID) (Span, error) {
	w := spanWalk{repo: r, seen: map[pipeline.CommitID]*visit{}}
	if err := w.mark(head, fromHead); err != nil {
		return Span{}, err
	}
	if base != "" {
		if err := w.mark(base, fromBase); err != nil {
			return Span{}, err
		}
	}
	truncated, err := w.run(ctx)
	if err != nil {
		return Span{}, err
	}
	s := Span{Truncated: truncated}
	slices.SortStableFunc(w.order, func(a, b *visit) int { return b.info.When.Compare(a.info.When) })
	var shared []*visit
	older := map[pipeline.CommitID]bool{} // parents of what both have; dates may be invented
	for _, v := range w.order {
		switch v.marks {
		case fromHead:
			s.Commits = append(s.Commits, v.info)
		case fromHead | fromBase:
			shared = append(shared, v)
			for _, p := range v.info.Parents {
				older[p] = true
			}
		}
	}
	for _, v := range shared {
		switch {
		case older[v.info.ID]:
		case s.Fork == "":
			s.Fork = v.info.ID
		default:
			s.Others = append(s.Others, v.info.ID)
		}
	}
	return s, nil
}

const (
	fromHead = 1 << iota
	fromBase
)

type visit struct {
	info   CommitInfo
	marks  int
	queued bool
}

// spanWalk follows both histories by date, the newest commit first.
type spanWalk struct {
	repo  *Repo
	seen  map[pipeline.CommitID]*visit
	queue visits
	order []*visit // those in seen
	open  int      // queued commits that only head has
}

// mark notes that a commit is reachable, and queues it when that is news.
func (w *spanWalk) mark(id pipeline.CommitID, marks int) error {
	v := w.seen[id]
	if v == nil {
		c, err := w.repo.commit(id)
		if err != nil {
			return err
		}
		v = &visit{info: c.CommitInfo}
		w.seen[id] = v
		w.order = append(w.order, v)
	}
	if v.marks|marks == v.marks {
		return nil
	}
	if v.queued && v.marks == fromHead {
		w.open--
	}
	v.marks |= marks
	if v.marks == fromHead {
		w.open++
	}
	if !v.queued {
		v.queued = true
		heap.Push(&w.queue, v)
	}
	return nil
}

func (w *spanWalk) run(ctx context.Context) (truncated bool, err error) {
	rest := slop
	for len(w.queue) > 0 && (w.open > 0 || rest > 0) {
		if err := ctx.Err(); err != nil {
			return false, fault.New(fault.Unavailable, "follow the history: %w", err)
		}
		if len(w.seen) > mostSpan {
			return true, nil
		}
		if w.open == 0 {
			rest--
		}
		v := heap.Pop(&w.queue).(*visit)
		v.queued = false
		if v.marks == fromHead {
			w.open--
		}
		for _, p := range v.info.Parents {
			if err := w.mark(p, v.marks); err != nil {
				if fault.Is(err, fault.NotFound) {
					truncated = true // a shallow clone ends here
					continue
				}
				return truncated, err
			}
		}
	}
	return truncated, nil
}

// visits is a heap, the newest commit on top.
type visits []*visit

func (q visits) Len() int           { return len(q) }
func (q visits) Less(i, j int) bool { return q[i].info.When.After(q[j].info.When) }
func (q visits) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *visits) Push(x any) { *q = append(*q, x.(*visit)) }

// Pop implements heap.Interface.
func (q *visits) Pop() any {
	last := len(*q) - 1
	v := (*q)[last]
	*q = (*q)[:last]
	return v
}
