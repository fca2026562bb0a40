package pipeline

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Host is an agent as a requirement sees it.
type Host struct {
	Pool      PoolName
	Untrusted bool
	// Facts is the decoded JSON object that the agent reported.
	Facts any
}

// Demand is one thing that a task asks of the agent that is to run it.
type Demand struct {
	pool     PoolName
	clause   *Clause
	plugin   PluginName
	programs []Program
}

// Demands lists what the task asks of an agent: the pool, or else that the agent is
// trusted, which one that gets a secret has to be in any case; a platform that its plugin
// has programs for; and each fact.
func (t *Task) Demands() []Demand {
	req := &t.Requirement
	out := make([]Demand, 1, len(req.Facts)+3)
	out[0].pool = req.Pool
	if req.Pool != "" && len(t.Secrets) > 0 {
		out = append(out, Demand{})
	}
	if len(t.Programs) > 0 {
		out = append(out, Demand{plugin: t.Plugin, programs: t.Programs})
	}
	for i := range req.Facts {
		out = append(out, Demand{clause: &req.Facts[i]})
	}
	return out
}

// String completes the sentence "it lacks …".
func (d *Demand) String() string {
	switch {
	case d.clause != nil:
		return strings.Join(d.clause.Path, ".") + ": " + d.clause.Type.String()
	case d.programs != nil:
		return fmt.Sprintf("what plugin %s has programs for (%s)", d.plugin, platforms(d.programs))
	case d.pool != "":
		return "pool " + string(d.pool)
	}
	return "a trusted agent"
}

// Met reports whether the host meets the demand. A fact that it lacks is never met.
func (d *Demand) Met(h *Host) bool {
	switch {
	case d.clause != nil:
		v, ok := fact(h.Facts, d.clause.Path)
		return ok && d.clause.Type.Fits(v)
	case d.programs != nil:
		return runsOn(d.programs, h.Facts)
	case d.pool != "":
		return d.pool == h.Pool
	}
	return !h.Untrusted
}

// Test returns Met for many hosts: it remembers what it found out about the value of a
// fact, which most of them share. It is for one goroutine.
func (d *Demand) Test() func(*Host) bool {
	if d.clause == nil {
		return d.Met
	}
	known := map[any]bool{}
	return func(h *Host) bool {
		v, ok := fact(h.Facts, d.clause.Path)
		if !ok {
			return false
		}
		switch v.(type) {
		case string, json.Number, bool:
			fits, seen := known[v]
			if !seen {
				fits = d.clause.Type.Fits(v)
				known[v] = fits
			}
			return fits
		}
		return d.clause.Type.Fits(v)
	}
}

// Key is equal for demands that the same hosts meet.
func (d *Demand) Key() string {
	b := appendString(nil, string(d.pool))
	if d.clause != nil {
		b = d.clause.Type.AppendKey(appendStrings(b, 'c', d.clause.Path))
	}
	for i := range d.programs {
		b = appendString(appendString(append(b, 'p'), d.programs[i].OS), d.programs[i].Arch)
	}
	if d.programs != nil {
		b = appendString(b, string(d.plugin)) // which is named in the words
	}
	return string(b)
}

// Lacks returns what keeps the host from running the task, in words; nothing when
// it may.
func (t *Task) Lacks(h *Host) []string {
	var out []string
	for _, d := range t.Demands() {
		if !d.Met(h) {
			out = append(out, d.String())
		}
	}
	return out
}

// runsOn reports whether one of the programs is for the host's platform. While the
// host has not said what it is, that is not known here, and the agent decides.
func runsOn(programs []Program, facts any) bool {
	kernel, ok := fact(facts, []string{"kernel"})
	arch, ok2 := fact(facts, []string{"architecture"})
	goos, isText := kernel.(string)
	if !ok || !ok2 || !isText {
		return true
	}
	return slices.ContainsFunc(programs, func(p Program) bool {
		return (p.OS == "" || p.OS == strings.ToLower(goos)) && (p.Arch == "" || p.Arch == arch)
	})
}

func platforms(programs []Program) string {
	var out []string
	for _, p := range programs {
		out = append(out, strings.Trim(p.OS+"/"+p.Arch, "/"))
	}
	return strings.Join(out, ", ")
}

func fact(facts any, path []string) (any, bool) {
	for _, p := range path {
		m, ok := facts.(map[string]any)
		if !ok {
			return nil, false
		}
		if facts, ok = m[p]; !ok {
			return nil, false
		}
	}
	return facts, true
}
