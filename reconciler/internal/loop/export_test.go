package loop

import (
	"context"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
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

// ToGive is toGive.
var ToGive = toGive
