package plan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Outside returns what a fork proposes as it may run: on agents for untrusted work alone.
// A task that names no pool goes to the one among pools, those in force, that is for such
// work; where there is none, or more than one, Decide refuses it.
func Outside(cfg *pipeline.Config, pools []pipeline.Pool) *pipeline.Config {
	open := untrusted(pools)
	if len(open) != 1 {
		return cfg
	}
	out := *cfg
	out.Compositions = slices.Clone(cfg.Compositions)
	for i := range out.Compositions {
		c := &out.Compositions[i]
		if anywhere(c) == nil {
			continue
		}
		c.Tasks = slices.Clone(c.Tasks)
		for t := anywhere(c); t != nil; t = anywhere(c) {
			t.Requirement.Pool = open[0]
		}
		c.Digest = pipeline.DigestOf([]byte(string(c.Digest) + " in pool " + string(open[0])))
	}
	return &out
}

// untrusted are the pools for untrusted work, by name.
func untrusted(pools []pipeline.Pool) []pipeline.PoolName {
	var out []pipeline.PoolName
	for i := range pools {
		if pools[i].Untrusted {
			out = append(out, pools[i].Name)
		}
	}
	slices.Sort(out)
	return out
}

// anywhere is the first task of c that needs an agent and names no pool, nil when there
// is none.
func anywhere(c *pipeline.Composition) *pipeline.Task {
	for i := range c.Tasks {
		if t := &c.Tasks[i]; !t.BuiltIn() && t.Requirement.Pool == "" {
			return t
		}
	}
	return nil
}

// homeless says why c cannot run for a fork although somebody let it: a task of it, or of
// what it calls, would be placed nowhere. "" when none would.
func (d *decision) homeless(c *pipeline.Composition) string {
	if !d.Event.Ref.Fork() {
		return ""
	}
	pools := d.Head.Pools
	if d.Base != nil {
		pools = d.Base.Pools
	}
	for _, name := range append([]pipeline.CompositionName{c.Name}, called(d.Head, c)...) {
		one := d.Head.Composition(name)
		if one == nil {
			continue
		}
		t := anywhere(one)
		if t == nil {
			continue
		}
		task := string(t.Name)
		if name != c.Name {
			task += " of " + string(name)
		}
		open := untrusted(pools)
		if len(open) == 0 {
			return fmt.Sprintf("task %s: what comes from a fork runs in a pool for untrusted work, and there is none; "+
				"declare one on the default branch, as pools: sandbox: untrusted: true", task)
		}
		var names []string
		for _, p := range open {
			names = append(names, strconv.Quote(string(p)))
		}
		return fmt.Sprintf("task %s: what comes from a fork runs in a pool for untrusted work, and there is more than one; "+
			"write agent: pool: %s", task, strings.Join(names, " or "))
	}
	return ""
}
