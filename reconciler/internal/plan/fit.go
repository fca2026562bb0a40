package plan

import (
	"cmp"
	"math/bits"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// hosts is a set of agents, one bit for each.
type hosts []uint64

func (h hosts) count() int {
	n := 0
	for _, w := range h {
		n += bits.OnesCount64(w)
	}
	return n
}

func (h hosts) and(o hosts) hosts {
	out := slices.Clone(h)
	for i := range out {
		out[i] &= o[i]
	}
	return out
}

// matcher matches tasks with agents. Each demand is put to each agent once, and
// demands that are equal are one.
type matcher struct {
	agents  []pipeline.Host
	law     *pipeline.Policy
	ref     pipeline.Ref // of the runs
	free    hosts
	met     map[string]*met
	plugins map[pipeline.PluginName][]pipeline.Program
}

// met is a demand with the agents that meet it.
type met struct {
	text   string
	hosts  hosts
	lacked int
}

func newMatcher(agents []Agent, plugins []pipeline.Plugin, law *pipeline.Policy, ref pipeline.Ref) *matcher {
	m := &matcher{law: law, ref: ref, met: map[string]*met{}, plugins: map[pipeline.PluginName][]pipeline.Program{}, free: make(hosts, (len(agents)+63)/64)}
	for i, a := range agents {
		m.agents = append(m.agents, pipeline.Host{Pool: a.Pool, Untrusted: a.Untrusted, Facts: a.Facts})
		if a.Online && !a.Busy {
			m.free[i/64] |= 1 << (i % 64)
		}
	}
	for i := range plugins {
		m.plugins[plugins[i].Name] = plugins[i].Programs
	}
	return m
}

// ask returns the agents that meet a demand.
func (m *matcher) ask(d *pipeline.Demand) (key string, found *met) {
	key = d.Key()
	found = m.met[key]
	if found == nil {
		found = &met{text: d.String(), hosts: make(hosts, len(m.free))}
		for i := range m.agents {
			if d.Met(&m.agents[i]) {
				found.hosts[i/64] |= 1 << (i % 64)
			} else {
				found.lacked++
			}
		}
		m.met[key] = found
	}
	return key, found
}

// open returns the agents whose pools the policy does not keep from c.
func (m *matcher) open(c pipeline.CompositionName) *met {
	o := &met{text: "leave of the policy to run " + string(c), hosts: make(hosts, len(m.free))}
	for i := range m.agents {
		if Closed(m.law, m.agents[i].Pool, c, m.ref) {
			o.lacked++
		} else {
			o.hosts[i/64] |= 1 << (i % 64)
		}
	}
	return o
}

// fits returns how many agents can take the tasks of c, those that require the same
// together, in the order of the first of them.
func (m *matcher) fits(c *pipeline.Composition) []Fit {
	var out []Fit
	at := map[string]int{}
	open := m.open(c.Name)
	for i := range c.Tasks {
		t := &c.Tasks[i]
		if t.BuiltIn() {
			continue
		}
		keys, all := m.demands(t)
		if n, ok := at[keys]; ok {
			out[n].Tasks = append(out[n].Tasks, t.Name)
			continue
		}
		at[keys] = len(out)
		if t.Requirement.Pool == "" { // one that names a pool was judged by its name
			all = append(all, open)
		}
		out = append(out, m.fit(t, all))
	}
	for i := range out {
		slices.Sort(out[i].Tasks)
	}
	slices.SortFunc(out, func(a, b Fit) int { return cmp.Compare(a.Tasks[0], b.Tasks[0]) })
	return out
}

// demands returns what a task demands, and a key for all of it.
func (m *matcher) demands(t *pipeline.Task) (string, []*met) {
	asks := *t
	if len(asks.Programs) == 0 {
		asks.Programs = m.plugins[t.Plugin]
	}
	demands := asks.Demands()
	keys, all := make([]string, len(demands)), make([]*met, len(demands))
	for i := range demands {
		keys[i], all[i] = m.ask(&demands[i])
	}
	slices.Sort(keys)
	return strings.Join(keys, "\n"), all
}

func (m *matcher) fit(t *pipeline.Task, all []*met) Fit {
	f := Fit{Tasks: []pipeline.TaskName{t.Name}, Pool: t.Requirement.Pool}
	var who hosts
	for _, d := range all {
		if who == nil {
			who = d.hosts
		}
		who = who.and(d.hosts)
		if d.lacked > 0 {
			f.Excluded = append(f.Excluded, Exclusion{d.text, d.lacked})
		}
	}
	f.Agents, f.Free = who.count(), who.and(m.free).count()
	slices.SortFunc(f.Excluded, func(a, b Exclusion) int {
		return cmp.Or(-cmp.Compare(a.Agents, b.Agents), cmp.Compare(a.Clause, b.Clause))
	})
	return f
}

// place says which agents can take the tasks of every composition that starts or
// changes.
func (p *Plan) place(in *Input) {
	if in.Fleet == nil {
		return
	}
	p.FleetAt, p.Agents = in.Fleet.At, len(in.Fleet.Agents)
	wanted := map[pipeline.CompositionName]bool{}
	for i := range p.Runs {
		wanted[p.Runs[i].Name] = true
		for _, name := range p.Runs[i].Calls {
			wanted[name] = true
		}
	}
	for i := range p.Changes {
		if c := &p.Changes[i]; c.Kind == KindComposition {
			wanted[pipeline.CompositionName(c.Name)] = true
		}
	}
	m := newMatcher(in.Fleet.Agents, in.Head.Plugins, in.law(), in.Event.Ref)
	for _, c := range byName(in.Head.Compositions) {
		if wanted[c.Name] {
			if fits := m.fits(c); len(fits) > 0 {
				p.Placements = append(p.Placements, Placement{c.Name, fits})
			}
		}
	}
}

// placement returns where the tasks of a composition fit, or nil.
func (p *Plan) placement(c pipeline.CompositionName) *Placement {
	i, ok := slices.BinarySearchFunc(p.Placements, c, func(x Placement, c pipeline.CompositionName) int {
		return cmp.Compare(x.Composition, c)
	})
	if !ok {
		return nil
	}
	return &p.Placements[i]
}
