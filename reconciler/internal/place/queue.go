package place

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// aPoint is how long a share of the queue waits, and is not served, until it counts
	// for one point of priority more: the lowest priority comes up to the highest within
	// 20 minutes.
	aPoint = 12 * time.Second
	// mostPoints is the whole range of priorities.
	mostPoints = 100
)

// Line is what the order of the queue depends on besides the runs themselves.
type Line struct {
	// Served is when each share last had a task offered. One that is not in it has
	// waited as long as its tasks have.
	Served map[Share]time.Time
	// Usual tells how long a task holds its agent as a rule, 0 when that is not known;
	// nil knows nothing.
	Usual func(pipeline.CompositionName, pipeline.TaskName) time.Duration
}

// Share is a part of the queue that is served in order.
type Share struct {
	Repo        string
	Composition pipeline.CompositionName
	Priority    int
}

// ShareOf returns the share of the queue that a task of r is of.
func ShareOf(r *pipeline.Run, t *pipeline.RunTask) Share {
	return Share{r.Event.Repo, r.Composition, r.PriorityOf(t)}
}

// Item is a ready task with its run.
type Item struct {
	Run  *pipeline.Run
	Task *pipeline.RunTask
}

// queued is an item with all that its place depends on.
type queued struct {
	Item
	// level is its priority, and the points for having waited.
	level int
	// turnOfRepo and turn count who comes before it, of the same repository and of the
	// same composition: seats that are held, and runs in the queue.
	turnOfRepo, turn int
}

// Queue lists the ready tasks whose time has come, first in line first: by priority,
// then in turn by repository and composition, then by how long the run has been
// waiting, then by the order of tasks. The caller must not change it.
func (b *Board) Queue() []Item {
	if b.queue != nil {
		return b.queue
	}
	var q []queued
	for _, r := range b.runs {
		for i := range r.Tasks {
			if t := &r.Tasks[i]; t.State == pipeline.Ready && !t.NotBefore.After(b.now) {
				q = append(q, queued{Item: Item{r, t}, level: b.level(r, t)})
			}
		}
	}
	b.takeTurns(q)
	b.queue = make([]Item, len(q))
	for i := range q {
		b.queue[i] = q[i].Item
	}
	return b.queue
}

// level is the priority of a task, and what it has gained by waiting since its share
// was last served.
func (b *Board) level(r *pipeline.Run, t *pipeline.RunTask) int {
	if t.ReadyAt.IsZero() {
		return r.PriorityOf(t)
	}
	since := t.ReadyAt
	if served := b.Line.Served[ShareOf(r, t)]; served.After(since) {
		since = served
	}
	return r.PriorityOf(t) + int(min(mostPoints, max(0, b.now.Sub(since)/aPoint)))
}

func older(x, y *queued) int {
	return cmp.Or(
		strings.Compare(string(x.Run.ID), string(y.Run.ID)),
		cmp.Compare(x.Task.Index, y.Task.Index),
	)
}

// takeTurns sorts the queue. Who has less at work or in line before it goes first, so
// that a thousand runs of one composition do not hold up the one run of another.
func (b *Board) takeTurns(q []queued) {
	type lane struct {
		repo        string
		composition pipeline.CompositionName
	}
	ofRepo, of := map[string]int{}, map[lane]int{}
	for _, r := range b.runs {
		n := len(b.seats[r.ID])
		ofRepo[r.Event.Repo] += n
		of[lane{r.Event.Repo, r.Composition}] += n
	}
	slices.SortFunc(q, func(x, y queued) int { return cmp.Or(-cmp.Compare(x.level, y.level), older(&x, &y)) })
	for i := range q {
		l := lane{q[i].Run.Event.Repo, q[i].Run.Composition}
		if i == 0 || q[i].Run != q[i-1].Run { // the tasks of a run share its agent
			of[l]++
		}
		q[i].turn = of[l]
	}
	slices.SortFunc(q, func(x, y queued) int {
		return cmp.Or(-cmp.Compare(x.level, y.level), cmp.Compare(x.turn, y.turn), older(&x, &y))
	})
	for i := range q {
		repo := q[i].Run.Event.Repo
		if i == 0 || q[i].Run != q[i-1].Run {
			ofRepo[repo]++
		}
		q[i].turnOfRepo = ofRepo[repo]
	}
	slices.SortFunc(q, func(x, y queued) int {
		return cmp.Or(-cmp.Compare(x.level, y.level), cmp.Compare(x.turnOfRepo, y.turnOfRepo), cmp.Compare(x.turn, y.turn), older(&x, &y))
	})
}
