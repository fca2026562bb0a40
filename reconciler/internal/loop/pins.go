package loop

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// pin makes a configuration say all that its runs will do: each task has its plugin's
// programs and each call the digest of what it calls, and the digest of a composition
// covers those too, and whatever those call in turn. A run goes on with what it was
// planned with, whatever later commits say.
func pin(cfg pipeline.Config) (pipeline.Config, error) {
	// The evaluator may keep what it returned, so change a copy.
	cfg.Compositions = slices.Clone(cfg.Compositions)
	own := make(map[pipeline.CompositionName][]byte, len(cfg.Compositions))
	for i := range cfg.Compositions {
		c := &cfg.Compositions[i]
		c.Tasks = slices.Clone(c.Tasks)
		text := []byte(c.Digest)
		for j := range c.Tasks {
			t := &c.Tasks[j]
			p := cfg.Plugin(t.Plugin)
			if p == nil {
				continue
			}
			t.Tree, t.Programs = p.Tree, p.Programs
			programs, err := json.Marshal(p.Programs)
			if err != nil {
				return cfg, fmt.Errorf("programs of plugin %s: %w", p.Name, err)
			}
			text = fmt.Appendf(text, "\x00%s\x00%s\x00%s", t.Name, p.Tree, programs)
		}
		own[c.Name] = text
	}
	// Compositions may call each other in circles, which their depth ends; so each
	// digest is made of the texts of all that can be reached, and not of their digests.
	for i := range cfg.Compositions {
		c := &cfg.Compositions[i]
		pinned := own[c.Name]
		for _, called := range calledBy(&cfg, c) {
			pinned = fmt.Appendf(slices.Clone(pinned), "\x00\x00%s\x00%s", called.Name, own[called.Name])
		}
		c.Digest = pipeline.DigestOf(pinned)
	}
	for i := range cfg.Compositions {
		pinCalls(&cfg, &cfg.Compositions[i])
	}
	return cfg, nil
}

// pinCalls sets the digests of what c calls itself. What is not there keeps none.
func pinCalls(cfg *pipeline.Config, c *pipeline.Composition) {
	digest := func(name pipeline.CompositionName) pipeline.Digest {
		if called := cfg.Composition(name); called != nil {
			return called.Digest
		}
		return ""
	}
	hook := func(h *pipeline.Hook) *pipeline.Hook {
		if h == nil {
			return nil
		}
		pinned := *h
		pinned.Digest = digest(h.Composition)
		return &pinned
	}
	c.OnFailure = hook(c.OnFailure)
	for i := range c.Tasks {
		t := &c.Tasks[i]
		t.OnFailure = hook(t.OnFailure)
		if t.Call != nil {
			call := *t.Call
			call.Digest = digest(call.Composition)
			t.Call = &call
		}
	}
}

// calledBy returns the compositions that a run of c may lead to by calls and hooks,
// by name; c itself only when it leads back to it.
func calledBy(cfg *pipeline.Config, c *pipeline.Composition) []*pipeline.Composition {
	found := map[pipeline.CompositionName]*pipeline.Composition{}
	for todo := calls(c); len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if called := cfg.Composition(name); called != nil && found[name] == nil {
			found[name] = called
			todo = append(todo, calls(called)...)
		}
	}
	out := make([]*pipeline.Composition, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		out = append(out, found[name])
	}
	return out
}

// calls are the names of what c calls itself.
func calls(c *pipeline.Composition) []pipeline.CompositionName {
	var out []pipeline.CompositionName
	hook := func(h *pipeline.Hook) {
		if h != nil {
			out = append(out, h.Composition)
		}
	}
	hook(c.OnFailure)
	for i := range c.Tasks {
		t := &c.Tasks[i]
		hook(t.OnFailure)
		if t.Call != nil {
			out = append(out, t.Call.Composition)
		}
	}
	return out
}
