// Package place decides which agent takes which ready task, and says of each task
// that waits why it does. It is pure: it gets the unfinished runs and the agents,
// and returns assignments; the control loop offers them.
//
// The queue is by priority, and a share of it (the tasks of one composition with one
// priority) that is not served rises in it, so that none waits for ever. Among equals
// repositories take turns, and so do the compositions of each.
//
// A run takes an agent for itself (a seat) when its first task is placed there,
// and its ready tasks run in parallel on it. A task that this agent cannot take
// opens a seat on another. A seat is kept while a task of the run is offered or
// running on it, or while the run's next task waits for nothing but tasks that run
// now. So nothing holds an agent while it waits for one, and no set of runs can
// block each other.
package place

import (
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Agent is an agent as placement sees it.
type Agent struct {
	ID        pipeline.AgentID
	Pool      pipeline.PoolName
	Untrusted bool
	// Facts is the decoded JSON object that the agent reported.
	Facts any
	// Closed reports whether the policy keeps its pool from a run, whether a task names
	// the pool or none; nil where it keeps it from nobody. The answer depends on the
	// run's composition and ref alone.
	Closed func(*pipeline.Run) bool
	// Usable: connected, renewing and not paused.
	Usable bool
	// Drains: runs that have worked on it go on there, and no other begins.
	Drains bool
	// Away is why it takes no new work, in a word or a few: "not connected", "paused
	// (new disk)". It is for people.
	Away string
	// Warm are the compositions that have a workspace on it.
	Warm map[pipeline.CompositionName]bool
	// Load orders equals: the agent that got work least recently has the lowest.
	Load int64
}

// Assignment gives a ready task to an agent.
type Assignment struct {
	Run   pipeline.RunID
	Task  pipeline.TaskName
	Agent pipeline.AgentID
	// Slot numbers the workspace among the unfinished runs of the composition on
	// that agent; a run keeps its slot, and the lowest free one is warm most often.
	Slot int
}

// Board is one look at the queue. Build it with New; it is used by one goroutine.
type Board struct {
	// Line may be set before the first question; without it everybody has just come.
	Line Line

	agents []Agent
	index  map[pipeline.AgentID]int // of agents
	runs   []*pipeline.Run
	now    time.Time
	// holder is the run that holds each agent, "" for none; seats are the agents that
	// each run holds.
	holder []pipeline.RunID
	seats  map[pipeline.RunID][]int
	// worked has the runs with a workspace on each agent.
	worked  [][]workspace
	classes classes
	queue   []Item // nil before it is asked for
	rested  []int  // see byRest, likewise
	// refused says why an agent is not asked again for now, "" when it is.
	refused Refused
}

// workspace is what an unfinished run has on an agent.
type workspace struct {
	run  *pipeline.Run
	slot int
}

// Refused tells why an agent must not be asked to take a task for now, because it
// has just declined it; "" when it may be. With no agent it tells why nobody is to be
// asked, because the task cannot be offered yet.
type Refused func(pipeline.RunID, pipeline.TaskName, pipeline.AgentID) string

// New makes a board of the unfinished runs and the agents at the instant now. It
// keeps but does not change what it is given. A nil refused means that nobody has
// declined anything.
func New(runs []*pipeline.Run, agents []Agent, now time.Time, refused Refused) *Board {
	if refused == nil {
		refused = func(pipeline.RunID, pipeline.TaskName, pipeline.AgentID) string { return "" }
	}
	b := &Board{
		agents: agents, runs: runs, now: now, refused: refused,
		index:  make(map[pipeline.AgentID]int, len(agents)),
		holder: make([]pipeline.RunID, len(agents)),
		seats:  map[pipeline.RunID][]int{},
		worked: make([][]workspace, len(agents)),
	}
	for i := range agents {
		b.index[agents[i].ID] = i
	}
	b.classes = classes{board: b, byPointer: map[pointers]*class{}, byKey: map[string]*class{}}
	// What is under way comes first: a run that could go on at an agent must not be
	// given one that another run has taken since.
	for _, r := range runs {
		b.seatsOfWork(r)
	}
	for _, r := range runs {
		b.seatsKept(r)
	}
	return b
}

// Seats returns which run holds each agent that is held.
func (b *Board) Seats() map[pipeline.AgentID]pipeline.RunID {
	out := map[pipeline.AgentID]pipeline.RunID{}
	for i, run := range b.holder {
		if run != "" {
			out[b.agents[i].ID] = run
		}
	}
	return out
}

// seatsOfWork takes the agents that work for r, and notes those that have.
func (b *Board) seatsOfWork(r *pipeline.Run) {
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.Agent == "" || t.Spec.BuiltIn() {
			continue
		}
		at, known := b.index[t.Agent]
		if !known {
			continue
		}
		if t.Epoch > 0 && !b.workedOn(r, at) {
			b.worked[at] = append(b.worked[at], workspace{r, t.Slot})
		}
		if t.State == pipeline.Offered || t.State == pipeline.Running {
			b.take(at, r.ID)
		}
	}
}

// seatsKept keeps for r the free agents at which it goes on.
func (b *Board) seatsKept(r *pipeline.Run) {
	if len(b.seats[r.ID]) == 0 && !anyIn(r, pipeline.Ready) {
		return
	}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.Agent == "" || !t.State.Terminal() && t.State != pipeline.Ready {
			continue
		}
		if at, known := b.index[t.Agent]; known && b.holder[at] == "" && b.goesOnAt(r, at) {
			b.take(at, r.ID)
		}
	}
}

func (b *Board) take(at int, run pipeline.RunID) {
	if b.holder[at] == "" {
		b.holder[at] = run
		b.seats[run] = append(b.seats[run], at)
	}
}

// goesOnAt reports whether r, which has worked on the agent, has a task that can
// be placed there now or as soon as what runs now has ended.
func (b *Board) goesOnAt(r *pipeline.Run, at int) bool {
	id := b.agents[at].ID
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.Spec.BuiltIn() {
			continue
		}
		soon := t.State == pipeline.Ready && !t.NotBefore.After(b.now) ||
			t.State == pipeline.Pending && needsOnlyRunning(r, t)
		if soon && b.classes.of(r, t).fits[at] && pinned(r, t, id) && !b.turnedDown(r, t, id) {
			return true
		}
	}
	return false
}

// turnedDown reports whether the agent is not to be asked for now. Neither a decline
// nor what keeps a task from being offered may hold an agent back from other runs.
func (b *Board) turnedDown(r *pipeline.Run, t *pipeline.RunTask, agent pipeline.AgentID) bool {
	return b.refused(r.ID, t.Name, "") != "" || b.refused(r.ID, t.Name, agent) != ""
}

func needsOnlyRunning(r *pipeline.Run, t *pipeline.RunTask) bool {
	for _, name := range t.Spec.Needs {
		n := r.Task(name)
		if n == nil || !n.State.Terminal() && n.State != pipeline.Running && n.State != pipeline.Offered {
			return false
		}
		if n.Spec.BuiltIn() && !n.State.Terminal() {
			return false // what it waits for may need the agent itself
		}
	}
	return true
}

func anyIn(r *pipeline.Run, s pipeline.State) bool {
	return slices.ContainsFunc(r.Tasks, func(t pipeline.RunTask) bool { return t.State == s })
}

// pinned reports whether the agent is one that t may use, given the paths it reads.
func pinned(r *pipeline.Run, t *pipeline.RunTask, agent pipeline.AgentID) bool {
	for _, name := range t.Spec.Pins {
		if p := r.Task(name); p != nil && p.Agent != "" && p.Agent != agent {
			return false
		}
	}
	return true
}

// workedOn reports whether r has a workspace on the agent.
func (b *Board) workedOn(r *pipeline.Run, at int) bool {
	return slices.ContainsFunc(b.worked[at], func(w workspace) bool { return w.run.ID == r.ID })
}

// Assign gives out as many ready tasks as the agents can take, in queue order.
// The result is a function of the board alone.
func (b *Board) Assign() []Assignment {
	free := 0
	for i := range b.agents {
		if b.holder[i] == "" && b.agents[i].Usable {
			free++
		}
	}
	if free == 0 && !b.goesOn() {
		return nil // nobody has to know who is first in line
	}
	type place struct {
		run pipeline.RunID
		at  int
	}
	var out []Assignment
	slots := map[place]int{}
	for _, it := range b.Queue() {
		if free == 0 && len(b.seats[it.Run.ID]) == 0 {
			continue
		}
		at := b.choose(it)
		if at < 0 {
			continue
		}
		if b.holder[at] == "" {
			free--
		}
		b.take(at, it.Run.ID)
		p := place{it.Run.ID, at}
		if _, known := slots[p]; !known {
			slots[p] = b.slot(it.Run, at)
		}
		out = append(out, Assignment{it.Run.ID, it.Task.Name, b.agents[at].ID, slots[p]})
	}
	return out
}

// goesOn reports whether a run that holds an agent has a task that is ready.
func (b *Board) goesOn() bool {
	return slices.ContainsFunc(b.runs, func(r *pipeline.Run) bool {
		return len(b.seats[r.ID]) > 0 && anyIn(r, pipeline.Ready)
	})
}

// choose returns the best agent for the task now, or -1: a seat that its run has,
// then one that has worked for this run, then one that has the workspace, then the
// one that rested longest.
func (b *Board) choose(it Item) int {
	c := b.classes.of(it.Run, it.Task)
	best := -1
	consider := func(at int) {
		if b.mayHave(c, it, at) && (best < 0 || b.better(it.Run, at, best)) {
			best = at
		}
	}
	for _, at := range b.seats[it.Run.ID] {
		consider(at)
	}
	if best >= 0 {
		return best
	}
	for i := range it.Run.Tasks {
		if at, known := b.index[it.Run.Tasks[i].Agent]; known && it.Run.Tasks[i].Agent != "" {
			consider(at)
		}
	}
	if best >= 0 {
		return best
	}
	for _, rested := range []*rested{c.warmFor(it.Run.Composition), c.all()} {
		if at := rested.first(func(at int) bool { return b.mayHave(c, it, at) }); at >= 0 {
			return at
		}
	}
	return -1
}

// mayHave reports whether the agent can take the task now.
func (b *Board) mayHave(c *class, it Item, at int) bool {
	a := &b.agents[at]
	if !a.Usable || !c.fits[at] || b.holder[at] != "" && b.holder[at] != it.Run.ID {
		return false
	}
	return (!a.Drains || b.workedOn(it.Run, at)) && pinned(it.Run, it.Task, a.ID) && !b.turnedDown(it.Run, it.Task, a.ID)
}

// better reports whether the run prefers the first of two agents that it holds or has
// worked on.
func (b *Board) better(r *pipeline.Run, at, than int) bool {
	rank := func(i int) [3]int64 {
		return [3]int64{flag(!b.workedOn(r, i)), flag(!b.agents[i].Warm[r.Composition]), b.agents[i].Load}
	}
	x, y := rank(at), rank(than)
	return slices.Compare(x[:], y[:]) < 0
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// slot returns the workspace number of run on an agent: the one it has, else the
// lowest that no other unfinished run of the composition has there.
func (b *Board) slot(run *pipeline.Run, at int) int {
	used := map[int]bool{}
	for _, w := range b.worked[at] {
		if w.run.ID == run.ID {
			return w.slot
		}
		if w.run.Composition == run.Composition {
			used[w.slot] = true
		}
	}
	slot := 0
	for used[slot] {
		slot++
	}
	return slot
}

// Excluded returns what keeps the agent from running the task, clause by clause;
// nothing when it may.
func Excluded(a *Agent, t *pipeline.Task) []string {
	return t.Lacks(&pipeline.Host{Pool: a.Pool, Untrusted: a.Untrusted, Facts: a.Facts})
}
