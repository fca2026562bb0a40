package shim

import (
	"fmt"
	"time"
)

// Process identifies a process: a pid alone may belong to another one by now.
type Process struct {
	PID int `json:"pid"`
	// Start is its start time in the unit of the operating system.
	Start uint64 `json:"start"`
	// Boot names the boot of the machine, where Start counts from that.
	Boot string `json:"boot,omitempty"`
}

// Identify returns the identity of a living process.
func Identify(pid int) (Process, error) {
	began, err := identify(pid)
	if err != nil {
		return Process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return Process{PID: pid, Start: began, Boot: BootID()}, nil
}

// SameBoot reports whether the machine has been up since the process was identified.
func (p Process) SameBoot() bool { return p.Boot == BootID() }

// Alive reports whether that very process lives. When the system does not let us
// look, a process of that number counts as the one meant: to wait for a stranger
// costs time, to take a running task for dead may start it twice.
func (p Process) Alive() bool {
	if p.PID <= 0 || !p.SameBoot() {
		return false
	}
	began, err := identify(p.PID)
	if err != nil {
		return exists(p.PID) && !isDead(err)
	}
	return began == p.Start
}

// Contact converts the times at which the control plane was heard to the clock of
// BootNow. The zero value is ready; it is not safe for concurrent use.
type Contact struct {
	gap   time.Duration // suspended time, as known at the last call
	known bool
}

// At returns when at was, on the clock of BootNow. The time since then is measured
// on a clock that stops while the machine is suspended, so a suspension since the
// last call is taken to have come after it: a lease that ends too early is safe,
// one that ends too late is not.
func (c *Contact) At(at time.Time) time.Duration {
	now := BootNow()
	gap := now - awake()
	slept := time.Duration(0)
	if c.known {
		slept = max(0, gap-c.gap)
	}
	c.gap, c.known = gap, true
	return now - time.Since(at) - slept
}
