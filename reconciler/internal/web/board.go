package web

import (
	"math"
	"net/http"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

type boardView struct {
	page
	Repository   Repository
	Notices      []string
	Agents       AgentCounts
	Queued       int
	OldestQueued time.Time
	Counts       boardCounts
	Needs        []need
	Running      []runningRow
	More         int // unfinished runs that are counted and not listed
	Compositions []compositionRow
	// Rejected is the newest commit when its configuration has errors.
	Rejected *pipeline.CommitRecord
	Errors   int
}

type boardCounts struct{ Needs, Failing, Running, Waiting int }

// need is one thing that a person should look at.
type need struct {
	State    pipeline.State
	Name     string
	URL      string
	Sentence string
	Since    time.Time
	Links    []crumb
}

type runningRow struct {
	Run      pipeline.Run
	State    pipeline.State
	URL      string
	Sentence string
	Done     int
	Total    int
	Usual    time.Duration
	// Part of 100 that is done.
	Part int
}

type compositionRow struct {
	CompositionSummary
	URL   string
	State pipeline.State // of the latest run, as people see it
	Strip []bar
	Took  time.Duration
	Good  int // successes of 100 finished runs
	Known bool
}

// bar is one run in a strip; Y and H are in a picture 24 high.
type bar struct {
	RunPoint
	URL        string
	X, Y, W, H int
	Bad, Open  bool
}

// mostListed bounds the unfinished runs that the board lists, in the page and in the
// API. All of them are counted, and what needs a person is looked for in all of them.
const mostListed = 200

func (s *server) board(r *http.Request) (view, error) {
	b, err := s.src.Board(r.Context())
	if err != nil {
		return nil, err
	}
	v := &boardView{page: s.plainPage("Board", "board"), Repository: b.Repository, Notices: b.Notices, Agents: b.Agents, Queued: len(b.Queue)}
	v.Topics = []string{topicBoard}
	for _, w := range b.Queue {
		if v.OldestQueued.IsZero() || w.Since.Before(v.OldestQueued) {
			v.OldestQueued = w.Since
		}
	}
	say := tellerOf(b.Moment)
	usual := map[pipeline.CompositionName]time.Duration{}
	for _, c := range b.Compositions {
		usual[c.Name] = time.Duration(c.Median)
		v.Compositions = append(v.Compositions, rowOf(c, say, v.Now))
	}
	for i := range b.Unfinished[:min(mostListed, len(b.Unfinished))] {
		v.Running = append(v.Running, runningOf(&b.Unfinished[i], say, usual))
	}
	v.More = len(b.Unfinished) - len(v.Running)
	if b.Newest != nil && pipeline.HasErrors(b.Newest.Diagnostics) {
		v.Rejected, v.Errors = b.Newest, countErrors(b.Newest.Diagnostics)
	}
	v.Needs = needsOf(&b)
	v.count(&b)
	return v, nil
}

func (v *boardView) count(b *Board) {
	v.Counts.Needs = len(v.Needs)
	for _, c := range b.Compositions {
		if c.Latest != nil && bad(c.Latest.State) {
			v.Counts.Failing++
		}
	}
	for _, run := range b.Unfinished {
		if run.State == pipeline.Running {
			v.Counts.Running++
		} else {
			v.Counts.Waiting++
		}
	}
	switch {
	case v.Counts.Failing > 0 || slices.ContainsFunc(v.Needs, func(n need) bool { return n.State != pipeline.Held }) || v.Rejected != nil:
		v.Mood = "bad"
	case len(b.Unfinished) > 0:
		v.Mood, v.Refresh = "busy", true
	default:
		v.Mood = "good"
	}
	v.Refresh = len(b.Unfinished) > 0
}

// needsOf collects what will not go on by itself: gates, tasks in doubt, tasks that
// no agent can take, and compositions whose latest run ended badly.
func needsOf(b *Board) []need {
	var out []need
	for i := range b.Unfinished {
		run := &b.Unfinished[i]
		for k := range run.Tasks {
			if t := &run.Tasks[k]; t.State == pipeline.InDoubt || t.State == pipeline.Held {
				_, sentence := tellerOf(b.Moment).shown(run, t)
				out = append(out, need{State: t.State, Name: nameOf(refOf(run, t)), URL: refOf(run, t).URL(), Sentence: sentence, Since: t.StartedAt})
			}
		}
	}
	for _, w := range b.Queue {
		if w.Blocked {
			out = append(out, need{State: blocked, Name: nameOf(w.TaskRef), URL: w.URL(), Sentence: w.Sentence, Since: w.Since})
		}
	}
	for _, c := range b.Compositions {
		if c.Latest == nil || !c.Latest.State.Terminal() || !bad(c.Latest.State) || c.Removed {
			continue
		}
		run := c.Latest
		n := need{
			State: run.State, Name: string(c.Name) + " #" + itoa(run.Number), URL: runURL(c.Name, run.Number),
			Sentence: why(run), Since: run.FinishedAt,
		}
		if t := firstBad(run); t != nil {
			n.Links = append(n.Links, crumb{"log of " + string(t.Name), refOf(run, t).URL()})
		}
		out = append(out, n)
	}
	return out
}

func nameOf(t TaskRef) string {
	return string(t.Composition) + " #" + itoa(t.Number) + " " + string(t.Task)
}

// firstBad returns the first task in file order that ended badly and was not
// tolerated, or nil.
func firstBad(run *pipeline.Run) *pipeline.RunTask {
	for i := range run.Tasks {
		if t := &run.Tasks[i]; bad(t.State) && !t.Tolerated() {
			return t
		}
	}
	return nil
}

func runningOf(run *pipeline.Run, say teller, usual map[pipeline.CompositionName]time.Duration) runningRow {
	row := runningRow{Run: *run, URL: runURL(run.Composition, run.Number), Total: len(run.Tasks), Usual: usual[run.Composition]}
	row.State, row.Sentence = say.shownRun(run)
	for i := range run.Tasks {
		if run.Tasks[i].State.Terminal() {
			row.Done++
		}
	}
	if row.Total > 0 {
		row.Part = row.Done * 100 / row.Total
	}
	return row
}

const (
	stripHeight = 24
	stripSlot   = 7 // a bar and the gap after it
	stripRuns   = 30
)

func rowOf(c CompositionSummary, say teller, now time.Time) compositionRow {
	row := compositionRow{CompositionSummary: c, URL: compositionURL(c.Name)}
	if c.Latest != nil {
		row.Took = took(c.Latest, now)
		row.State, _ = say.shownRun(c.Latest)
	}
	row.Strip = stripOf(c)
	good, ended := 0, 0
	for _, p := range c.Recent {
		if p.State.Terminal() {
			ended++
		}
		if p.State.Good() {
			good++
		}
	}
	if ended > 0 {
		row.Good, row.Known = good*100/ended, true
	}
	return row
}

// stripOf draws the last runs: height grows with the root of the duration, so
// that one slow run does not flatten all others.
func stripOf(c CompositionSummary) []bar {
	recent := c.Recent[max(0, len(c.Recent)-stripRuns):]
	longest := 1.0
	for _, p := range recent {
		longest = max(longest, float64(p.Duration))
	}
	bars := make([]bar, 0, len(recent))
	for i, p := range recent {
		h := 4 + int(math.Round(math.Sqrt(float64(max(p.Duration, 0))/longest)*(stripHeight-8)))
		bars = append(bars, bar{
			RunPoint: p, URL: runURL(c.Name, p.Number), X: (stripRuns - len(recent) + i) * stripSlot,
			Y: stripHeight - h, W: stripSlot - 2, H: h, Bad: bad(p.State), Open: !p.State.Terminal(),
		})
	}
	return bars
}

// took is how long a run has taken from its start, so far or in all.
func took(run *pipeline.Run, now time.Time) time.Duration {
	switch {
	case run.StartedAt.IsZero():
		return 0
	case run.FinishedAt.IsZero():
		return now.Sub(run.StartedAt)
	}
	return run.FinishedAt.Sub(run.StartedAt)
}

func countErrors(ds []pipeline.Diagnostic) int {
	n := 0
	for _, d := range ds {
		if d.Severity == pipeline.SeverityError {
			n++
		}
	}
	return n
}

// medianOf returns the middle of the durations of successful runs, 0 of none.
func medianOf(runs []pipeline.Run) time.Duration {
	var all []time.Duration
	for i := range runs {
		if run := &runs[i]; run.State == pipeline.Success && !run.FinishedAt.IsZero() {
			all = append(all, run.FinishedAt.Sub(run.StartedAt))
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)/2]
}
