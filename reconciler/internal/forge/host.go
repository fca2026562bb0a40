package forge

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
)

// Host is what is known of a forge's machines by all that speak to them: until when they
// asked for silence, and whether they answer. While they do not, one request at a time
// finds out whether they do again, whatever else is waiting. It is safe for concurrent
// use.
type Host struct {
	hushed func(time.Time) // nil for nobody

	mu     sync.Mutex
	quiet  time.Time     // they asked for silence until then
	failed int           // requests in a row that had no proper answer
	down   time.Time     // no request leaves before, zero while they answer
	trial  chan struct{} // closed when the request has ended that finds out; nil for none
	made   time.Time     // until when what was made is paid for, makeEvery for each
}

const (
	// enoughFailures in a row are no accident of single requests: others are answered in
	// between.
	enoughFailures = 5
	// longestDown is how long at most they are not asked: what is shown there follows
	// within a minute of their return.
	longestDown = 30 * time.Second
	// longestQuiet is how long silence is kept at most: limits are by the hour, and what
	// asks for more, or a clock that was wrong, must not keep all waiting for ever.
	longestQuiet = time.Hour
	// makeEvery is how often on average something is made that people are told of, and
	// madeAtOnce how much at a time after a rest: 80 in any minute, which is what GitHub
	// allows. Few callers make something, so that none waits for long.
	makeEvery  = time.Second
	madeAtOnce = 20
)

// NewHost returns a Host that asked for silence until quiet, which may be long ago; what
// cannot be so late is not believed. hushed
// is told each time that it asks for more, from any goroutine; it may be nil.
func NewHost(quiet time.Time, hushed func(until time.Time)) *Host {
	if quiet.After(time.Now().Add(longestQuiet)) {
		quiet = time.Time{}
	}
	return &Host{quiet: quiet, hushed: hushed}
}

// hush keeps requests from leaving until then: asking earlier makes the wait longer.
func (h *Host) hush(until time.Time) {
	h.mu.Lock()
	more := until.After(h.quiet)
	if more {
		h.quiet = until
	}
	h.mu.Unlock()
	if more && h.hushed != nil {
		h.hushed(until)
	}
}

// turn waits until something may be made.
func (h *Host) turn(ctx context.Context) error {
	h.mu.Lock()
	now := time.Now()
	if rested := now.Add(-madeAtOnce * makeEvery); h.made.Before(rested) {
		h.made = rested
	}
	h.made = h.made.Add(makeEvery)
	wait := h.made.Sub(now)
	h.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// enter lets a request leave, or returns fault.Unavailable with the time at which it may.
// It waits while another one finds out. After a nil error leave has to be called, with
// trial.
func (h *Host) enter(ctx context.Context) (trial bool, err error) {
	for {
		h.mu.Lock()
		now, wait := time.Now(), h.trial
		switch {
		case now.Before(h.quiet):
			err = askLater(h.quiet, "its rate limit is used up until "+h.quiet.UTC().Format(time.RFC3339))
		case h.down.IsZero():
			wait = nil
		case now.Before(h.down):
			err = askLater(h.down, "it does not answer; it is asked again in "+max(h.down.Sub(now).Round(time.Second), time.Second).String())
		case wait == nil:
			h.trial, trial = make(chan struct{}), true
		}
		h.mu.Unlock()
		if err != nil || wait == nil {
			return trial, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// answer is what became of a request.
type answer int

const (
	notAsked answer = iota // it says nothing of them
	answered
	failed
)

// leave takes in what became of a request, and returns when the next may leave, zero when
// at once.
func (h *Host) leave(trial bool, a answer) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if trial {
		close(h.trial)
		h.trial = nil
	}
	switch {
	case a == answered:
		h.failed, h.down = 0, time.Time{}
	case a == failed && !time.Now().Before(h.down): // else it left before that was known
		if h.failed++; h.failed >= enoughFailures {
			h.down = time.Now().Add(min(time.Second<<min(h.failed-enoughFailures, 10), longestDown))
		}
	}
	return h.down
}

func askLater(at time.Time, why string) error {
	return fault.New(fault.Unavailable, "%w", &LaterError{At: at, Err: errors.New(why)})
}
