// Package place decides which agent takes which ready task, and says of each task
// that waits why it does. It is pure: it gets the unfinished runs and the agents,
// and returns assignments; the control loop offers them.
//
// A run takes an agent for itself (a seat) when its first task is placed there,
// and its ready tasks run in parallel on it. A task that this agent cannot take
// opens a seat on another. A seat is kept while a task of the run is offered or
// running on it, or while the run's next task waits for nothing but tasks that run
// now. So nothing holds an agent while it waits for one, and no set of runs can
// block each other.
package place

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
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
	// the pool or none; nil where it keeps it from nobody.
	Closed func(*pipeline.Run) bool
	// Usable: connected, renewing and not draining.
	Usable bool
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
	agents []Agent
	byID   map[pipeline.AgentID]*Agent
	runs   []*pipeline.Run
	now    time.Time
	seats  map[pipeline.AgentID]pipeline.RunID
	held   map[pipeline.RunID]int // how many seats a run has
	fits   map[fitKey]bool
	// refused says why an agent is not asked again for now, "" when it is.
	refused Refused
}

// Refused tells why an agent must not be asked to take a task for now, because it
// has just declined it; "" when it may be. With no agent it tells why nobody is to be
// asked, because the task cannot be offered yet.
type Refused func(pipeline.RunID, pipeline.TaskName, pipeline.AgentID) string

type fitKey struct {
	agent   pipeline.AgentID
	clause  *pipeline.Clause
	program *pipeline.Program
	pool    pipeline.PoolName
	clauses int
}

// New makes a board of the unfinished runs and the agents at the instant now. It
// keeps but does not change what it is given. A nil refused means that nobody has
// declined anything.
func New(runs []*pipeline.Run, agents []Agent, now time.Time, refused Refused) *Board {
	if refused == nil {
		refused = func(pipeline.RunID, pipeline.TaskName, pipeline.AgentID) string { return "" }
	}
	b := &Board{
		agents: agents, runs: runs, now: now, refused: refused,
		byID:  make(map[pipeline.AgentID]*Agent, len(agents)),
		seats: map[pipeline.AgentID]pipeline.RunID{},
		held:  map[pipeline.RunID]int{},
		fits:  map[fitKey]bool{},
	}
	for i := range agents {
		b.byID[agents[i].ID] = &agents[i]
	}
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
func (b *Board) Seats() map[pipeline.AgentID]pipeline.RunID { return b.seats }

// seatsOfWork takes the agents that work for r.
func (b *Board) seatsOfWork(r *pipeline.Run) {
	for i := range r.Tasks {
		if t := &r.Tasks[i]; !t.Spec.BuiltIn() && (t.State == pipeline.Offered || t.State == pipeline.Running) {
			b.take(t.Agent, r.ID)
		}
	}
}

// seatsKept keeps for r the free agents at which it goes on.
func (b *Board) seatsKept(r *pipeline.Run) {
	if b.held[r.ID] == 0 && !anyIn(r, pipeline.Ready) {
		return
	}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.Agent == "" || !t.State.Terminal() && t.State != pipeline.Ready {
			continue
		}
		if _, taken := b.seats[t.Agent]; !taken && b.goesOnAt(r, t.Agent) {
			b.take(t.Agent, r.ID)
		}
	}
}

func (b *Board) take(agent pipeline.AgentID, run pipeline.RunID) {
	if _, held := b.seats[agent]; !held {
		b.seats[agent] = run
		b.held[run]++
	}
}

// goesOnAt reports whether r, which has worked on the agent, has a task that can
// be placed there now or as soon as what runs now has ended.
func (b *Board) goesOnAt(r *pipeline.Run, agent pipeline.AgentID) bool {
	a := b.byID[agent]
	if a == nil {
		return false
	}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.Spec.BuiltIn() {
			continue
		}
		soon := t.State == pipeline.Ready && !t.NotBefore.After(b.now) ||
			t.State == pipeline.Pending && needsOnlyRunning(r, t)
		if soon && b.mayTake(a, r, t) && pinned(r, t, agent) && !b.turnedDown(r, t, agent) {
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

// Item is a ready task with its run.
type Item struct {
	Run  *pipeline.Run
	Task *pipeline.RunTask
}

// Queue lists the ready tasks whose time has come, first in line first: by
// priority, then by how long the run has been waiting, then by the order of tasks.
func (b *Board) Queue() []Item {
	var q []Item
	for _, r := range b.runs {
		for i := range r.Tasks {
			if t := &r.Tasks[i]; t.State == pipeline.Ready && !t.NotBefore.After(b.now) {
				q = append(q, Item{r, t})
			}
		}
	}
	slices.SortStableFunc(q, func(x, y Item) int {
		return cmp.Or(
			-cmp.Compare(x.Run.PriorityOf(x.Task), y.Run.PriorityOf(y.Task)),
			strings.Compare(string(x.Run.ID), string(y.Run.ID)),
			cmp.Compare(x.Task.Index, y.Task.Index),
		)
	})
	return q
}

// Assign gives out as many ready tasks as the agents can take, in queue order.
// The result is a function of the board alone.
func (b *Board) Assign() []Assignment {
	free := 0
	for i := range b.agents {
		if _, held := b.seats[b.agents[i].ID]; !held && b.agents[i].Usable {
			free++
		}
	}
	if free == 0 && len(b.seats) == 0 {
		return nil
	}
	var out []Assignment
	slots := map[pipeline.RunID]map[pipeline.AgentID]int{}
	for _, it := range b.Queue() {
		if free == 0 && b.held[it.Run.ID] == 0 {
			continue
		}
		a := b.choose(it)
		if a == nil {
			continue
		}
		if _, held := b.seats[a.ID]; !held {
			free--
		}
		b.take(a.ID, it.Run.ID)
		slot, ok := slots[it.Run.ID][a.ID]
		if !ok {
			slot = b.slot(it.Run, a.ID)
			if slots[it.Run.ID] == nil {
				slots[it.Run.ID] = map[pipeline.AgentID]int{}
			}
			slots[it.Run.ID][a.ID] = slot
		}
		out = append(out, Assignment{it.Run.ID, it.Task.Name, a.ID, slot})
	}
	return out
}

// choose returns the best agent for the task now, or nil: a seat that its run has,
// then one that has worked for this run, then one that has the workspace, then the
// one that rested longest.
func (b *Board) choose(it Item) *Agent {
	var best *Agent
	var bestRank [4]int64
	for i := range b.agents {
		a := &b.agents[i]
		holder, held := b.seats[a.ID]
		if !a.Usable || held && holder != it.Run.ID || !b.mayTake(a, it.Run, it.Task) || !pinned(it.Run, it.Task, a.ID) ||
			b.turnedDown(it.Run, it.Task, a.ID) {
			continue
		}
		rank := [4]int64{flag(!held), flag(!workedOn(it.Run, a.ID)), flag(!a.Warm[it.Run.Composition]), a.Load}
		if best == nil || slices.Compare(rank[:], bestRank[:]) < 0 {
			best, bestRank = a, rank
		}
	}
	return best
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func workedOn(r *pipeline.Run, agent pipeline.AgentID) bool {
	return slices.ContainsFunc(r.Tasks, func(t pipeline.RunTask) bool { return t.Agent == agent })
}

// slot returns the workspace number of run on agent: the one it has, else the
// lowest that no other unfinished run of the composition has there.
func (b *Board) slot(run *pipeline.Run, agent pipeline.AgentID) int {
	used := map[int]bool{}
	for _, r := range b.runs {
		if r.Composition != run.Composition {
			continue
		}
		for i := range r.Tasks {
			t := &r.Tasks[i]
			if t.Agent != agent || t.Epoch == 0 {
				continue
			}
			if r.ID == run.ID {
				return t.Slot
			}
			used[t.Slot] = true
		}
	}
	slot := 0
	for used[slot] {
		slot++
	}
	return slot
}

// mayTake reports whether the agent is one that the task may run on at all,
// remembering the answer for tasks with the same requirement.
func (b *Board) mayTake(a *Agent, r *pipeline.Run, t *pipeline.RunTask) bool {
	if a.closed(r) {
		return false
	}
	req := &t.Spec.Requirement
	k := fitKey{agent: a.ID, pool: req.Pool, clauses: len(req.Facts)}
	// Specs are shared by the runs of one composition, so equal pointers are equal specs.
	if len(req.Facts) > 0 {
		k.clause = &req.Facts[0]
	}
	if len(t.Spec.Programs) > 0 {
		k.program = &t.Spec.Programs[0]
	}
	ok, known := b.fits[k]
	if !known {
		ok = len(Excluded(a, &t.Spec)) == 0
		b.fits[k] = ok
	}
	return ok
}

func (a *Agent) closed(r *pipeline.Run) bool { return a.Closed != nil && a.Closed(r) }

// Excluded returns what keeps the agent from running the task, clause by clause;
// nothing when it may.
func Excluded(a *Agent, t *pipeline.Task) []string {
	return t.Lacks(&pipeline.Host{Pool: a.Pool, Untrusted: a.Untrusted, Facts: a.Facts})
}

// Wait is why a ready task has no agent.
type Wait struct {
	// Blocked: no agent that is known could ever take it as things are.
	Blocked bool
	// Sentence says why it waits and what ends that.
	Sentence string
}

// Why explains a ready task of run; call it on a board that Assign was not run on,
// or the seats it gave out count as taken.
func (b *Board) Why(run *pipeline.Run, t *pipeline.RunTask) Wait {
	if t.NotBefore.After(b.now) {
		return Wait{Sentence: fmt.Sprintf("%s (in %s)", t.Reason, t.NotBefore.Sub(b.now).Round(time.Second))}
	}
	if held := b.refused(run.ID, t.Name, ""); held != "" {
		return Wait{Sentence: held}
	}
	if len(b.agents) == 0 {
		return Wait{Blocked: true, Sentence: "no agent is enrolled: run `reconciler agents invite` and start agentd with the token"}
	}
	count := map[string]int{}
	var order []string
	fit, offline, busy, elsewhere := 0, 0, 0, 0
	var declined []string
	for i := range b.agents {
		a := &b.agents[i]
		why := Excluded(a, &t.Spec)
		if len(why) == 0 && a.closed(run) {
			why = append(why, "leave of the policy to run "+string(run.Composition))
		}
		if len(why) > 0 {
			for _, w := range why {
				if count[w] == 0 {
					order = append(order, w)
				}
				count[w]++
			}
			continue
		}
		fit++
		holder, held := b.seats[a.ID]
		refusal := b.refused(run.ID, t.Name, a.ID)
		switch {
		case refusal != "":
			declined = append(declined, refusal)
		case !pinned(run, t, a.ID):
			elsewhere++
		case !a.Usable:
			offline++
		case held && holder != run.ID:
			busy++
		}
	}
	if fit == 0 {
		return Wait{Blocked: true, Sentence: "no agent fits: " + clauses(order, count, len(b.agents))}
	}
	if len(declined) == fit {
		return Wait{Sentence: "every agent that fits declined and is asked again: " + strings.Join(declined, "; ")}
	}
	return Wait{Sentence: b.waiting(run, t, fit, offline, busy, elsewhere)}
}

func (b *Board) waiting(run *pipeline.Run, t *pipeline.RunTask, fit, offline, busy, elsewhere int) string {
	var parts []string
	if offline > 0 {
		parts = append(parts, fmt.Sprintf("%d not connected", offline))
	}
	if busy > 0 {
		parts = append(parts, fmt.Sprintf("%d busy", busy))
	}
	if elsewhere > 0 {
		parts = append(parts, fmt.Sprintf("%d without the files that it reads", elsewhere))
	}
	s := fmt.Sprintf("waits for an agent: %d of %d fit", fit, len(b.agents))
	if len(parts) > 0 {
		s += " (" + strings.Join(parts, ", ") + ")"
	}
	ahead := 0
	for _, it := range b.Queue() {
		if it.Run.ID == run.ID && it.Task.Name == t.Name {
			break
		}
		ahead++
	}
	if ahead > 0 {
		s += fmt.Sprintf("; %d ahead in the queue", ahead)
	}
	return s
}

func clauses(order []string, count map[string]int, agents int) string {
	slices.SortStableFunc(order, func(a, b string) int { return -cmp.Compare(count[a], count[b]) })
	const most = 5
	parts := make([]string, 0, most)
	for _, c := range order[:min(most, len(order))] {
		parts = append(parts, fmt.Sprintf("%d of %d lack %s", count[c], agents, c))
	}
	return strings.Join(parts, ", ")
}
