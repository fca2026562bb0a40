package loop

import (
	"context"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

// Describes counts how often the words of a run that moves all the time are brought
// up to date within so long.
func Describes(within time.Duration) int {
	start := time.Unix(0, 0)
	r := &pipeline.Run{CreatedAt: start}
	d := &description{}
	n := 0
	for now := start; now.Sub(start) < within; now = now.Add(tickEvery) {
		if d.due(r, now) {
			d.saidAt, d.lookedAt = now, now
			n++
		}
	}
	return n
}

// Hurry makes Observe carry out one branch at a time.
func (c *Commits) Hurry() { c.slice = 0 }

// LatestFiring is latestFiring.
var LatestFiring = latestFiring

// FireSchedules is fireSchedules.
func (c *Commits) FireSchedules(ctx context.Context, now time.Time) (time.Time, error) {
	return c.fireSchedules(ctx, now)
}

// ReviewsAtGate are those of a pull request that the decision on a gate of a run gets
// which came of its merge, where n gates wait for it.
func ReviewsAtGate(d *Discussed, read time.Time, n int, r *pipeline.Run, t *pipeline.RunTask) ([]review.Review, error) {
	one := *d
	one.readAt = read
	p := &Proposals{cfg: ProposalsConfig{Pulls: true}, origins: map[pipeline.RunID]int{r.ID: d.Number}}
	m := &moment{pulled: []*Discussed{&one}, awaited: map[int]awaited{d.Number: {gates: n}}}
	in := review.Input{Head: "gate"}
	_, err := p.gateAt(context.Background(), m, r, t, &in)
	return in.Reviews, err
}

// ToGive is toGive.
var ToGive = toGive

// Turns are those of pull requests to be read.
type Turns struct{ turns turns }

// Look reads those whose turn it is, and returns them.
func (t *Turns) Look(now time.Time, soon, others []*Discussed) []*Discussed {
	slices.SortFunc(soon, inTurn)
	slices.SortFunc(others, inTurn)
	first, then, _ := t.turns.take(now, soon, others)
	list := slices.Concat(soon[:first], others[:then])
	for _, d := range list {
		d.readAt, d.triedAt = now, now
	}
	return list
}

// Pulled are the pull requests as they were told last.
func (p *Proposals) Pulled() []*Discussed {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pulled
}

// Asked are the comments as they were told last.
func (p *Proposals) Asked() []Asked {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// Denied is what has to be granted before a pull request can be read.
func (d *Discussed) Denied() string { return d.denied }
