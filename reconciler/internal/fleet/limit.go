package fleet

import (
	"sync"
	"time"
)

const (
	// An authenticated handshake takes milliseconds, so these are only ever full
	// of connections that do not answer.
	mostHandshakes           = 256
	mostHandshakesPerAddress = 64
	// enrolRate and enrolBurst are per address: fifty machines started at once
	// behind one address get in, guessing tokens does not.
	enrolRate  = 5
	enrolBurst = 60
	// mostAddresses bounds the limiter's memory.
	mostAddresses = 4096
)

// bucket is a token bucket in which one may run into debt. Safe for concurrent use.
type bucket struct {
	rate, burst float64

	mu     sync.Mutex
	tokens float64
	last   time.Time
}

func newBucket(rate, burst float64) *bucket {
	return &bucket{rate: rate, burst: burst, tokens: burst, last: time.Now()}
}

// wait takes n and returns how long the caller has to wait for them, 0 when they
// were there.
func (b *bucket) wait(n float64) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fillLocked()
	b.tokens -= n
	if b.tokens >= 0 {
		return 0
	}
	return time.Duration(-b.tokens / b.rate * float64(time.Second))
}

// take takes one if it is there.
func (b *bucket) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fillLocked()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

func (b *bucket) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fillLocked()
	return b.tokens >= b.burst
}

func (b *bucket) fillLocked() {
	now := time.Now()
	b.tokens = min(b.burst, b.tokens+now.Sub(b.last).Seconds()*b.rate)
	b.last = now
}

// limiter is a bucket for each address.
type limiter struct {
	rate, burst float64

	mu      sync.Mutex
	buckets map[string]*bucket
}

func newLimiter(rate, burst float64) *limiter {
	return &limiter{rate: rate, burst: burst, buckets: map[string]*bucket{}}
}

func (l *limiter) take(address string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[address]
	if b == nil {
		if len(l.buckets) >= mostAddresses {
			l.pruneLocked()
		}
		if len(l.buckets) >= mostAddresses {
			return false
		}
		b = newBucket(l.rate, l.burst)
		l.buckets[address] = b
	}
	return b.take()
}

func (l *limiter) pruneLocked() {
	for a, b := range l.buckets {
		if b.full() {
			delete(l.buckets, a)
		}
	}
}

// slots counts what is under way, in all and per address.
type slots struct {
	most, mostPer int

	mu  sync.Mutex
	all int
	per map[string]int
}

func newSlots(most, mostPer int) *slots {
	return &slots{most: most, mostPer: mostPer, per: map[string]int{}}
}

// take returns a function that gives the slot back, and nil when there is none.
// Giving back twice is harmless.
func (s *slots) take(address string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all >= s.most || s.per[address] >= s.mostPer {
		return nil
	}
	s.all++
	s.per[address]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.all--
		if s.per[address]--; s.per[address] == 0 {
			delete(s.per, address)
		}
	})
}
