package loop

import (
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
