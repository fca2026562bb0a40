package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
)

// retryFor is how long a server that went away is waited for: longer than an upgrade
// takes, and a script ends all the same.
const retryFor = 5 * time.Minute

// retry waits for a server that went away while something was followed. It says so
// once, and once when the server is back.
type retry struct {
	out   io.Writer // for people: standard error
	what  string
	since time.Time // when it went away; zero while it is there
}

// wait returns after a pause when cause is that the server does not answer. Any
// other cause, and a server that stays away, it returns.
func (r *retry) wait(ctx context.Context, cause error) error {
	if !fault.Is(cause, fault.Unavailable) {
		return cause
	}
	const first, most = 100 * time.Millisecond, 2 * time.Second
	if r.since.IsZero() {
		r.since = time.Now()
		fmt.Fprintf(r.out, "%s the connection to %s is lost; trying again\n", now(), r.what)
	}
	gone := time.Since(r.since)
	if gone > retryFor {
		return fault.New(fault.Unavailable, "%s has not come back within %s: %w", r.what, retryFor, cause)
	}
	pause := time.NewTimer(min(most, max(first, gone/2)))
	defer pause.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-pause.C:
		return nil
	}
}

// reached notes that the server answers.
func (r *retry) reached() {
	if !r.since.IsZero() {
		r.since = time.Time{}
		fmt.Fprintf(r.out, "%s connected again\n", now())
	}
}
