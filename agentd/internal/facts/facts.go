// Package facts tells what kind of machine an agent runs on: nested, typed data
// in the manner of Puppet's Facter, for requirements such as
// memory: total_mb: >=4096. There are three sources, of which a later one wins
// fact by fact:
//
//   - built-in facts, from the standard library and gopsutil;
//   - external facts: the files of a folder, by name; see external.go;
//   - what Facter says, under the key "facter", when it is installed.
//
// Facts are meant to stay the same for as long as the machine does: they are sent
// again when they change, and a page shows them. So there is no uptime and no load,
// and free memory and disk are rounded. Facts are claims of the agent, not proof:
// they can narrow what it is offered, never widen it.
package facts

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Collector gathers the facts of this machine. Its methods may be called from any
// goroutine.
type Collector struct {
	dir string
	log *slog.Logger

	mu     sync.Mutex
	facter map[string]any // what Facter said last; never changed, only replaced
}

// New returns a Collector that reads external facts from dir, a folder that may be
// missing. It does no I/O.
func New(dir string, log *slog.Logger) *Collector {
	return &Collector{dir: dir, log: log}
}

// Collect is New(dir, log).Collect(ctx): the facts without Facter's, which takes
// seconds.
func Collect(ctx context.Context, dir string, log *slog.Logger) json.RawMessage {
	return New(dir, log).Collect(ctx)
}

// Collect returns the facts as a JSON object, with what Facter said at the last
// Refresh. It takes as long as the slowest external program, at most ten seconds.
// A source that does not work is logged and left out, and so is what exceeds the
// limits: a missing fact only keeps work away. Equal facts give equal bytes.
func (c *Collector) Collect(ctx context.Context) json.RawMessage {
	all := builtin(ctx, c.dir, c.log)
	for _, f := range external(ctx, c.dir, c.log) {
		merge(all, f)
	}
	c.mu.Lock()
	if c.facter != nil {
		all["facter"] = c.facter
	}
	c.mu.Unlock()
	return prune(ctx, all, c.log)
}

// Refresh runs Facter, if it is installed, and keeps what it says for Collect. It
// takes ten seconds at most. When Facter does not work its last answer stays.
func (c *Collector) Refresh(ctx context.Context) {
	said := runFacter(ctx, c.log)
	if said == nil {
		return
	}
	c.mu.Lock()
	c.facter = said
	c.mu.Unlock()
}

// Watch calls changed with the facts whenever they are not what it was called with
// before; the first time with Facter's included, soon after the start, and then at
// intervals of every. It blocks until ctx ends.
func (c *Collector) Watch(ctx context.Context, every time.Duration, changed func(json.RawMessage)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last json.RawMessage
	for {
		c.Refresh(ctx)
		now := c.Collect(ctx)
		if ctx.Err() != nil {
			return // what was collected meanwhile may lack what was cut short
		}
		if !slices.Equal(last, now) {
			last = now
			changed(now)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// merge puts from into to. Maps are merged, anything else is replaced.
func merge(to, from map[string]any) {
	for k, v := range from {
		old, okOld := to[k].(map[string]any)
		sub, okNew := v.(map[string]any)
		if okOld && okNew {
			merge(old, sub)
			continue
		}
		to[k] = v
	}
}
