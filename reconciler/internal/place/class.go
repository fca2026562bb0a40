package place

import (
	"cmp"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// classes sorts tasks by what they ask of an agent, so that this is found out once for
// all that ask the same.
type classes struct {
	board *Board
	// Specs are shared by the runs of one composition, so that equal pointers are equal
	// demands; equal keys are so as well, and cost more to make.
	byPointer map[pointers]*class
	byKey     map[string]*class
	// restricted: some agent is closed to some runs; nil while that is not known.
	restricted *bool
}

type pointers struct {
	clause      *pipeline.Clause
	program     *pipeline.Program
	pool        pipeline.PoolName
	clauses     int
	composition pipeline.CompositionName
	ref         pipeline.Ref
	// Of a source repository, whose code the run is about.
	source string
	code   pipeline.Ref
}

// class is the tasks that the same agents may take.
type class struct {
	board *Board
	// fits tells of each agent whether it may take them, free or not; count is how many
	// may.
	fits  []bool
	count int
	// order are those that fit, the best rested first; nil before it is asked for.
	order *rested
	warm  map[pipeline.CompositionName]*rested
}

// of returns the class of a task of r.
func (cs *classes) of(r *pipeline.Run, t *pipeline.RunTask) *class {
	req := &t.Spec.Requirement
	p := pointers{pool: req.Pool, clauses: len(req.Facts)}
	if len(req.Facts) > 0 {
		p.clause = &req.Facts[0]
	}
	if len(t.Spec.Programs) > 0 {
		p.program = &t.Spec.Programs[0]
	}
	if cs.isRestricted() {
		p.composition, p.ref = r.Composition, r.Ref
		if r.Event.Repo != "" {
			p.source, p.code = r.Event.Repo, r.Event.Ref
		}
	}
	if c := cs.byPointer[p]; c != nil {
		return c
	}
	demands := t.Spec.Demands()
	keys := []string{string(p.composition), string(p.ref), p.source, string(p.code)}
	for i := range demands {
		keys = append(keys, demands[i].Key())
	}
	key := strings.Join(keys, "\x00")
	c := cs.byKey[key]
	if c == nil {
		c = cs.board.classOf(r, demands)
		cs.byKey[key] = c
	}
	cs.byPointer[p] = c
	return c
}

func (cs *classes) isRestricted() bool {
	if cs.restricted == nil {
		any := slices.ContainsFunc(cs.board.agents, func(a Agent) bool { return a.Closed != nil })
		cs.restricted = &any
	}
	return *cs.restricted
}

func (b *Board) classOf(r *pipeline.Run, demands []pipeline.Demand) *class {
	c := &class{board: b, fits: make([]bool, len(b.agents)), warm: map[pipeline.CompositionName]*rested{}}
	met := make([]func(*pipeline.Host) bool, len(demands))
	for i := range demands {
		met[i] = demands[i].Test()
	}
	for i := range b.agents {
		a := &b.agents[i]
		if a.closed(r) {
			continue
		}
		host := pipeline.Host{Pool: a.Pool, Untrusted: a.Untrusted, Facts: a.Facts}
		if !slices.ContainsFunc(met, func(test func(*pipeline.Host) bool) bool { return !test(&host) }) {
			c.fits[i] = true
			c.count++
		}
	}
	return c
}

func (a *Agent) closed(r *pipeline.Run) bool { return a.Closed != nil && a.Closed(r) }

// all are the agents that fit, the best rested first.
func (c *class) all() *rested {
	if c.order == nil {
		c.order = c.restedWhere(func(*Agent) bool { return true })
	}
	return c.order
}

// warmFor are those of them that have a workspace of the composition.
func (c *class) warmFor(name pipeline.CompositionName) *rested {
	if c.warm[name] == nil {
		c.warm[name] = c.restedWhere(func(a *Agent) bool { return a.Warm[name] })
	}
	return c.warm[name]
}

func (c *class) restedWhere(ok func(*Agent) bool) *rested {
	r := &rested{board: c.board}
	for _, i := range c.board.byRest() {
		if a := &c.board.agents[i]; c.fits[i] && ok(a) {
			r.order = append(r.order, i)
		}
	}
	return r
}

// byRest lists the agents that any run may have, the best rested first.
func (b *Board) byRest() []int {
	if b.rested == nil {
		b.rested = make([]int, 0, len(b.agents))
		for i := range b.agents {
			if a := &b.agents[i]; a.Usable && !a.Drains {
				b.rested = append(b.rested, i)
			}
		}
		slices.SortStableFunc(b.rested, func(x, y int) int { return cmp.Compare(b.agents[x].Load, b.agents[y].Load) })
	}
	return b.rested
}

// rested is a list of agents of which the first ones are given out one after the other.
type rested struct {
	board *Board
	order []int
	// next: all before it are held, and stay so as long as there is this board.
	next int
}

// first returns the first free agent for which ok holds, or -1.
func (r *rested) first(ok func(at int) bool) int {
	for r.next < len(r.order) && r.board.holder[r.order[r.next]] != "" {
		r.next++
	}
	for _, at := range r.order[r.next:] {
		if r.board.holder[at] == "" && ok(at) {
			return at
		}
	}
	return -1
}
