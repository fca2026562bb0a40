package hooks

import (
	"sync"
	"time"
)

const (
	// rate and burst are those of one webhook: a system that tells of each of its
	// commits stays below, and what it missed can be sent at once.
	rate  = 1.0 // per second
	burst = 30.0
	// mostBuckets bounds the memory; only webhooks in force have one.
	mostBuckets = 4096
)

// buckets is a token bucket for each name.
type buckets struct {
	mu     sync.Mutex
	byName map[string]bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newBuckets() *buckets { return &buckets{byName: map[string]bucket{}} }

// take takes one token if it is there.
func (b *buckets) take(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	one, ok := b.byName[name]
	if !ok {
		if len(b.byName) >= mostBuckets {
			clear(b.byName)
		}
		one = bucket{burst, now}
	}
	one.tokens = min(burst, one.tokens+now.Sub(one.at).Seconds()*rate)
	one.at = now
	has := one.tokens >= 1
	if has {
		one.tokens--
	}
	b.byName[name] = one
	return has
}
