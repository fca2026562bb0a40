package web

import (
	"net/http"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

type commitsView struct {
	page
	Commits []commitRow
}

type commitRow struct {
	pipeline.CommitRecord
	URL      string
	Errors   int
	Warnings int
}

// mostCommits is how many commits the list shows.
const mostCommits = 100

func commitRowOf(c pipeline.CommitRecord) commitRow {
	errors := countErrors(c.Diagnostics)
	return commitRow{c, commitURL(c.Commit), errors, len(c.Diagnostics) - errors}
}

func (s *server) commits(r *http.Request) (view, error) {
	commits, err := s.src.Commits(r.Context(), mostCommits)
	if err != nil {
		return nil, err
	}
	v := &commitsView{page: s.plainPage("Commits", "commits")}
	v.Topics = []string{topicCommits}
	for _, c := range commits {
		v.Commits = append(v.Commits, commitRowOf(c))
	}
	return v, nil
}

type commitView struct {
	page
	Commit      commitRow
	Verdicts    []verdictRow
	Diagnostics []pipeline.Diagnostic
	Omitted     int
}

type verdictRow struct {
	pipeline.Verdict
	// URL is the composition's page, "" when there is none.
	URL string
	// RunURL is the permanent address of the run, if one was started.
	RunURL string
}

// mostDiagnostics bounds a page; a broken generator can yield many thousands.
const mostDiagnostics = 500

func (s *server) commit(r *http.Request) (view, error) {
	c, err := s.commitOf(r, r.PathValue("sha"))
	if err != nil {
		return nil, err
	}
	verdicts, err := s.src.Verdicts(r.Context(), c.Commit)
	if err != nil {
		return nil, err
	}
	v := &commitView{page: s.plainPage("Commit "+c.Commit.Short(), "commits"), Commit: commitRowOf(c)}
	v.Crumbs = []crumb{{"Commits", "/commits"}, {c.Commit.Short(), ""}}
	v.Topics = []string{topicCommits, topicRuns}
	v.Diagnostics, v.Omitted = firstDiagnostics(c.Diagnostics)
	if pipeline.HasErrors(c.Diagnostics) {
		v.Mood = "bad"
	}
	for _, d := range verdicts {
		row := verdictRow{Verdict: d}
		known, err := s.hasPage(r, d)
		if err != nil {
			return nil, err
		}
		if known {
			row.URL = compositionURL(d.Composition)
		}
		if d.Run != "" {
			row.RunURL = permanentURL(d.Run)
		}
		v.Verdicts = append(v.Verdicts, row)
	}
	return v, nil
}

// hasPage reports whether the composition of a verdict has a page. It may be named by
// its folder, never have run, and be declared by that commit alone.
func (s *server) hasPage(r *http.Request, d pipeline.Verdict) (bool, error) {
	if d.Run != "" || !pipeline.ValidName(string(d.Composition)) {
		return d.Run != "", nil
	}
	_, err := s.src.Composition(r.Context(), d.Composition)
	if !fault.Is(err, fault.NotFound) {
		return err == nil, err
	}
	runs, err := s.src.Runs(r.Context(), RunFilter{Composition: d.Composition, Limit: 1})
	return len(runs) > 0, err
}

func firstDiagnostics(ds []pipeline.Diagnostic) ([]pipeline.Diagnostic, int) {
	if len(ds) > mostDiagnostics {
		return ds[:mostDiagnostics], len(ds) - mostDiagnostics
	}
	return ds, 0
}

type problemsView struct {
	page
	Repository  Repository
	Notices     []string
	Newest      *commitRow
	Diagnostics []pipeline.Diagnostic
	Omitted     int
	Needs       []need
	// Silent agents have tasks and do not answer.
	Silent []agentRow
	Clean  bool
}

func (s *server) problems(r *http.Request) (view, error) {
	b, err := s.src.Board(r.Context())
	if err != nil {
		return nil, err
	}
	agents, err := s.src.Agents(r.Context())
	if err != nil {
		return nil, err
	}
	v := &problemsView{page: s.plainPage("Problems", "problems"), Repository: b.Repository, Notices: b.Notices, Needs: needsOf(&b)}
	v.Topics = []string{topicBoard, topicAgents, topicCommits}
	if b.Newest != nil && len(b.Newest.Diagnostics) > 0 {
		row := commitRowOf(*b.Newest)
		v.Newest = &row
		v.Diagnostics, v.Omitted = firstDiagnostics(b.Newest.Diagnostics)
	}
	for _, a := range agents {
		if !a.Online && len(a.Running) > 0 {
			v.Silent = append(v.Silent, agentRow{a, agentURL(a.ID), machineOf(a.Facts)})
		}
	}
	v.Clean = v.Newest == nil && len(v.Needs) == 0 && len(v.Silent) == 0 && b.Repository.Problem == "" &&
		len(b.Repository.Unread()) == 0 && len(b.Notices) == 0
	if !v.Clean {
		v.Mood = "bad"
	}
	return v, nil
}

type queueView struct {
	page
	Queue   []Waiting
	Omitted int
	Oldest  time.Time
}

// mostQueue is how many waiting tasks the page shows.
const mostQueue = 500

func (s *server) queue(r *http.Request) (view, error) {
	moment, err := s.src.Moment(r.Context(), "")
	if err != nil {
		return nil, err
	}
	queue := moment.Queue
	v := &queueView{page: s.plainPage("Queue", "queue")}
	v.Topics = []string{topicTasks, topicRuns, topicAgents}
	for _, w := range queue {
		if v.Oldest.IsZero() || w.Since.Before(v.Oldest) {
			v.Oldest = w.Since
		}
	}
	if len(queue) > mostQueue {
		queue, v.Omitted = queue[:mostQueue], len(queue)-mostQueue
	}
	v.Queue, v.Refresh = queue, len(queue) > 0
	return v, nil
}
