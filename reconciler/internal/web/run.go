package web

import (
	"net/http"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

type runView struct {
	page
	Run      pipeline.Run
	URL      string
	State    pipeline.State
	Sentence string
	Took     time.Duration
	Usual    time.Duration
	Counts   []stateCount
	Previous string
	Next     string
	// LastGood is the newest successful run before this one, when this one is bad.
	LastGood *runRow
	// First is the task to look at first, when one ended badly.
	First   *taskRow
	Picture *picture
	Tasks   []taskRow
	Axis    []tick
	Params  []valueRow
	Outputs []outputRow
	Agents  []agentRef
	Others  int // agents that are not listed
}

type stateCount struct {
	State pipeline.State
	N     int
}

type taskRow struct {
	Task      *pipeline.RunTask
	URL       string
	State     pipeline.State
	Sentence  string
	Waited    time.Duration
	Ran       time.Duration
	Live      bool
	Tries     int
	AgentName string
	Segments  []segment
	// Now is what it last said of itself, while it runs; Percent is how much of 100
	// it said is done, -1 when it did not.
	Now     *pipeline.Note
	Percent int
	Links   []crumb
	// Other is the run that a call started, that a wait found, or that the result is
	// from, "" when there is none.
	Other string
}

// segment is a part of a task's line in the timeline, in thousandths of the
// whole.
type segment struct {
	Kind  string // wait, dispatch, run
	State pipeline.State
	X, W  int
	Title string
}

type tick struct {
	Label string
	X     int // in thousandths
}

// outputRow is a value of the context: who set it, and who reads it.
type outputRow struct {
	valueRow
	Task   pipeline.TaskName
	URL    string
	Output string
	Users  []string
}

type agentRef struct {
	ID   pipeline.AgentID
	Name string
	URL  string
	Pool pipeline.PoolName
	Text string
}

// mostAgents bounds how many agents a run page looks up.
const mostAgents = 24

// nearby is how many runs before are read for the usual duration.
const nearby = 30

func (s *server) findRun(r *http.Request) (pipeline.Run, error) {
	name, err := composition(r)
	if err != nil {
		return pipeline.Run{}, err
	}
	n, err := runNumber(r)
	if err != nil {
		return pipeline.Run{}, err
	}
	return s.src.RunByNumber(r.Context(), name, n)
}

func (s *server) run(r *http.Request) (view, error) {
	run, err := s.findRun(r)
	if err != nil {
		return nil, err
	}
	ctx := r.Context()
	attempts, err := s.src.Attempts(ctx, run.ID)
	if err != nil {
		return nil, err
	}
	moment, err := s.src.Moment(ctx, run.ID)
	if err != nil {
		return nil, err
	}
	v := &runView{page: s.plainPage(string(run.Composition)+" #"+itoa(run.Number), "board"), Run: run}
	if v.Agents, v.Others, err = s.agentsOf(r, &run); err != nil {
		return nil, err
	}
	say := tellerOf(moment)
	v.URL = runURL(run.Composition, run.Number)
	v.State, v.Sentence = say.shownRun(&run)
	v.Took = took(&run, v.Now)
	v.Crumbs = []crumb{{"Board", "/"}, {string(run.Composition), compositionURL(run.Composition)}, {"#" + itoa(run.Number), ""}}
	v.Topics = []string{topicRun(run.ID)}
	if !run.State.Terminal() {
		v.Topics = append(v.Topics, topicAgents)
	}
	v.Mood, v.Refresh = moodOf(run.State), !run.State.Terminal()
	v.Counts = countsOf(&run)
	v.Params = valuesOf(run.Params)
	v.Outputs = outputsOf(&run)
	v.addTasks(say, attempts)
	v.Picture = v.pictureOfRun()
	return v, s.addNeighbours(r, v)
}

// addNeighbours looks at the runs around this one.
func (s *server) addNeighbours(r *http.Request, v *runView) error {
	newest, err := s.src.Runs(r.Context(), RunFilter{Composition: v.Run.Composition, Limit: 1})
	if err != nil {
		return err
	}
	before, err := s.src.Runs(r.Context(), RunFilter{Composition: v.Run.Composition, Before: v.Run.ID, Limit: nearby})
	if err != nil {
		return err
	}
	if len(newest) > 0 && newest[0].Number > v.Run.Number {
		v.Next = runURL(v.Run.Composition, v.Run.Number+1)
	}
	if v.Run.Number > 1 {
		v.Previous = runURL(v.Run.Composition, v.Run.Number-1)
	}
	v.Usual = medianOf(before)
	if !bad(v.Run.State) {
		return nil
	}
	for i := range before {
		if before[i].State == pipeline.Success {
			v.LastGood = &runRow{Run: before[i], URL: runURL(before[i].Composition, before[i].Number)}
			return nil
		}
	}
	return nil
}

// countsOf counts tasks by state, those that need a look first.
func countsOf(run *pipeline.Run) []stateCount {
	n := map[pipeline.State]int{}
	for i := range run.Tasks {
		n[run.Tasks[i].State]++
	}
	var out []stateCount
	for _, state := range []pipeline.State{
		pipeline.InDoubt, pipeline.Failure, pipeline.Error, pipeline.Timeout,
		pipeline.Running, pipeline.Offered, pipeline.Ready, pipeline.Pending, pipeline.Cancelled, pipeline.Skipped,
		pipeline.NotNeeded, pipeline.Success,
	} {
		if n[state] > 0 {
			out = append(out, stateCount{state, n[state]})
		}
	}
	return out
}

func (v *runView) addTasks(say teller, attempts []pipeline.Attempt) {
	run := &v.Run
	by := map[pipeline.TaskName][]pipeline.Attempt{}
	for _, a := range attempts {
		by[a.Task] = append(by[a.Task], a)
	}
	line := newTimeline(run, v.Now)
	v.Axis = line.axis()
	first := firstBad(run)
	v.Tasks = make([]taskRow, len(run.Tasks))
	for i := range run.Tasks {
		t := &run.Tasks[i]
		row := taskRow{Task: t, URL: taskURL(run.Composition, run.Number, t.Name), Tries: len(by[t.Name]), AgentName: say.agent(t.Agent)}
		row.State, row.Sentence = say.shown(run, t)
		row.Live, row.Now, row.Percent = t.State == pipeline.Running, say.note(t), -1
		if row.Now != nil && row.Now.Progress != nil {
			row.Percent = int(100 * *row.Now.Progress)
		}
		row.Links, row.Other = linksOf(t, row.Now), otherRun(t)
		row.Waited, row.Ran = durationsOf(t, v.Now)
		row.Segments = line.segments(t, by[t.Name])
		v.Tasks[i] = row
		if t == first {
			v.First = &v.Tasks[i]
		}
	}
}

// worthTelling is the least time in the queue that is shown.
const worthTelling = 100 * time.Millisecond

// durationsOf returns how long a task waited in the queue and how long it has run.
func durationsOf(t *pipeline.RunTask, now time.Time) (waited, ran time.Duration) {
	end := t.FinishedAt
	if end.IsZero() {
		end = now
	}
	started := t.StartedAt
	if !t.ReadyAt.IsZero() {
		until := started
		if until.IsZero() {
			until = end
		}
		if waited = until.Sub(t.ReadyAt); waited < worthTelling {
			waited = 0
		}
	}
	if !started.IsZero() {
		ran = max(end.Sub(started), 0)
	}
	return waited, ran
}

func (v *runView) pictureOfRun() *picture {
	names := make([]pipeline.TaskName, len(v.Run.Tasks))
	needs := make([][]pipeline.TaskName, len(v.Run.Tasks))
	for i := range v.Run.Tasks {
		names[i], needs[i] = v.Run.Tasks[i].Name, v.Run.Tasks[i].Spec.Needs
	}
	p := pictureOf(names, needs)
	for i := range p.Nodes {
		row := &v.Tasks[i]
		p.Nodes[i].State, p.Nodes[i].URL = row.State, row.URL
		p.Nodes[i].Title = string(row.Task.Name) + ": " + string(row.State)
		if row.Sentence != "" {
			p.Nodes[i].Title += ", " + row.Sentence
		}
	}
	for i, e := range p.Edges {
		p.Paths[i].State = v.Run.Tasks[e.From].State
	}
	return p
}

// outputsOf lists what tasks have set in the context, in file order.
func outputsOf(run *pipeline.Run) []outputRow {
	users := map[[2]string][]string{}
	for i := range run.Tasks {
		t := &run.Tasks[i]
		for _, b := range t.Spec.Bindings {
			key := [2]string{string(b.From), b.Output}
			users[key] = append(users[key], string(t.Name)+"."+b.Field)
		}
	}
	var rows []outputRow
	for i := range run.Tasks {
		t := &run.Tasks[i]
		for _, value := range valuesOf(t.Outputs) {
			rows = append(rows, outputRow{
				valueRow: value, Task: t.Name, Output: value.Name,
				URL: taskURL(run.Composition, run.Number, t.Name), Users: users[[2]string{string(t.Name), value.Name}],
			})
		}
	}
	return rows
}

// agentsOf looks up the agents that the run's tasks were given to.
func (s *server) agentsOf(r *http.Request, run *pipeline.Run) (refs []agentRef, others int, err error) {
	var ids []pipeline.AgentID
	for i := range run.Tasks {
		if id := run.Tasks[i].Agent; id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if len(ids) > mostAgents {
		ids, others = ids[:mostAgents], len(ids)-mostAgents
	}
	for _, id := range ids {
		a, err := s.src.Agent(r.Context(), id)
		if fault.Is(err, fault.NotFound) {
			refs = append(refs, agentRef{ID: id, Name: string(id), URL: agentURL(id), Text: "no longer enrolled"})
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		refs = append(refs, agentRef{ID: id, Name: a.Name, URL: agentURL(id), Pool: a.Pool, Text: machineOf(a.Facts)})
	}
	return refs, others, nil
}
