package web

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

type compositionView struct {
	page
	Name pipeline.CompositionName
	// Live is nil when the live commit does not declare the composition.
	Live     *pipeline.Composition
	Picture  *picture
	Triggers []triggerRow
	Runs     []runRow
	Grid     grid
	Older    string // address of the next page of runs
	Paged    bool
	Median   time.Duration
}

type triggerRow struct {
	Text string
	Pos  pipeline.Position
}

type runRow struct {
	pipeline.Run
	URL      string
	Shown    pipeline.State // as people see it
	Sentence string
	Took     time.Duration
}

// grid is the last runs by task. Omitted counts the tasks left out.
type grid struct {
	Runs    []runRow // oldest first
	Rows    []gridRow
	Omitted int
}

type gridRow struct {
	Task  pipeline.TaskName
	Cells []gridCell
}

// gridCell is a task in a run; State is "" when the run did not have it.
type gridCell struct {
	State pipeline.State
	URL   string
	Title string
}

const (
	runsPerPage = 30
	// mostGridRows keeps the page small; tasks that ended badly come first.
	mostGridRows = 40
)

func (s *server) composition(r *http.Request) (view, error) {
	name, err := composition(r)
	if err != nil {
		return nil, err
	}
	f, err := s.runFilter(r, runsPerPage)
	if err != nil {
		return nil, err
	}
	f.Composition, f.Limit, f.Tasks = name, runsPerPage, true
	runs, err := s.src.Runs(r.Context(), f)
	if err != nil {
		return nil, err
	}
	live, err := s.src.Composition(r.Context(), name)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	v := &compositionView{page: s.plainPage(string(name), "board"), Name: name, Paged: f.Before != ""}
	if err == nil {
		v.Live = &live
		v.Picture = declared(&live)
		v.Triggers = triggersOf(&live)
	} else if len(runs) == 0 && f.Before == "" && f.State == "" {
		return nil, fault.New(fault.NotFound, "there is no composition %q: the live commit does not declare it, and it never ran", name)
	}
	v.Crumbs = []crumb{{"Board", "/"}, {string(name), ""}}
	v.Topics = []string{topicRuns, topicCommits}
	v.Median = medianOf(runs)
	say, err := s.tellerFor(r, runs, false)
	if err != nil {
		return nil, err
	}
	for i := range runs {
		run := &runs[i]
		row := runRow{Run: *run, URL: runURL(name, run.Number), Took: took(run, v.Now)}
		row.Shown, row.Sentence = say.shownRun(run)
		v.Runs = append(v.Runs, row)
		if !run.State.Terminal() {
			v.Topics = append(v.Topics, topicRun(run.ID))
			v.Refresh = true
		}
	}
	if len(runs) > 0 {
		v.Mood = moodOf(runs[0].State)
	}
	if len(runs) == runsPerPage {
		v.Older = compositionURL(name) + "?before=" + string(runs[len(runs)-1].ID)
	}
	v.Grid = gridOf(name, v.Live, v.Runs)
	return v, nil
}

// triggersOf says in words what starts the composition.
func triggersOf(c *pipeline.Composition) []triggerRow {
	var rows []triggerRow
	for i := range c.Triggers {
		t := &c.Triggers[i]
		text := starts(t)
		if repo := t.Repo(); repo != "" {
			text += " of " + repo
		}
		if paths := t.Paths(); len(paths) > 0 {
			text += " that changes " + strings.Join(paths, ", ")
		}
		if p := string(t.Params.Value); p != "" && p != "{}" && p != "null" {
			text += ", with " + p
		}
		rows = append(rows, triggerRow{text, t.Pos})
	}
	return rows
}

// starts is the event of a trigger.
func starts(t *pipeline.Trigger) string {
	switch {
	case t.Push != nil:
		return "a push to " + strings.Join(t.Push.Branches, ", ")
	case t.PullRequest != nil:
		return "a change that is proposed for " + strings.Join(t.PullRequest.Branches, ", ")
	case t.Tag != nil:
		return "a tag like " + strings.Join(t.Tag.Tags, ", ")
	case t.Cron != nil:
		return "the clock, " + t.Cron.Schedule + " " + t.Cron.Zone
	case t.After != nil:
		return "the end of a run of " + string(t.After.Composition) + ", " + t.After.Result
	case t.Webhook != nil:
		return "a post to /hooks/" + t.Webhook.ID
	}
	return "a request"
}

// gridOf lines runs up by task, in the order of the live file; tasks that are
// only in older runs follow.
func gridOf(name pipeline.CompositionName, live *pipeline.Composition, newestFirst []runRow) grid {
	g := grid{Runs: slices.Clone(newestFirst)}
	slices.Reverse(g.Runs)
	var order []pipeline.TaskName
	trouble := map[pipeline.TaskName]bool{}
	seen := map[pipeline.TaskName]bool{}
	add := func(t pipeline.TaskName) {
		if !seen[t] {
			seen[t] = true
			order = append(order, t)
		}
	}
	if live != nil {
		for i := range live.Tasks {
			add(live.Tasks[i].Name)
		}
	}
	for _, run := range newestFirst {
		for i := range run.Tasks {
			add(run.Tasks[i].Name)
			trouble[run.Tasks[i].Name] = trouble[run.Tasks[i].Name] || bad(run.Tasks[i].State)
		}
	}
	if len(order) > mostGridRows {
		slices.SortStableFunc(order, func(a, b pipeline.TaskName) int {
			switch {
			case trouble[a] == trouble[b]:
				return 0
			case trouble[a]:
				return -1
			}
			return 1
		})
		g.Omitted = len(order) - mostGridRows
		order = order[:mostGridRows]
	}
	if len(g.Runs) == 0 {
		return grid{}
	}
	columns := make([]map[pipeline.TaskName]pipeline.State, len(g.Runs))
	for c, run := range g.Runs {
		columns[c] = make(map[pipeline.TaskName]pipeline.State, len(run.Tasks))
		for i := range run.Tasks {
			columns[c][run.Tasks[i].Name] = run.Tasks[i].State
		}
	}
	for _, t := range order {
		row := gridRow{Task: t}
		for c, run := range g.Runs {
			state := columns[c][t]
			row.Cells = append(row.Cells, gridCell{
				State: state, URL: taskURL(name, run.Number, t),
				Title: "#" + itoa(run.Number) + " " + string(t) + ": " + string(state),
			})
		}
		g.Rows = append(g.Rows, row)
	}
	return g
}
