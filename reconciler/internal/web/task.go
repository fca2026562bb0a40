package web

import (
	"html/template"
	"net/http"
	"net/url"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/web/ansi"
)

type taskView struct {
	page
	Run      pipeline.Run
	Task     *pipeline.RunTask
	URL      string
	RunURL   string
	State    pipeline.State
	Sentence string
	Waited   time.Duration
	Ran      time.Duration
	Attempts []attemptRow
	Attempt  *attemptRow // the one whose log is shown; nil before the first
	Agent    *AgentView
	Machine  string
	Facts    []factNode
	Fields   []valueRow
	Bindings []bindingRow
	Outputs  []outputRow
	Links    []crumb
	Log      logView
}

type attemptRow struct {
	pipeline.Attempt
	Number  int
	URL     string
	Current bool
	Shown   pipeline.State
	Took    time.Duration
}

type bindingRow struct {
	pipeline.Binding
	URL   string
	Value string
	Set   bool
}

// logView is a window of a log as it is rendered without scripts.
type logView struct {
	LogInfo
	Attempt pipeline.AttemptID
	// Base is the address of the task's page with the attempt chosen; From the
	// number of the first line.
	Base, RangeURL, RawURL string
	From                   int64
	Lines                  []shownLine
	Query                  string
	Matches                []shownLine
	Total                  int64
	Earlier, Later         string
	First, Last            string
}

// shownLine is a line as a browser gets it.
type shownLine struct {
	N    int64         `json:"n"`
	HTML template.HTML `json:"html"`
	URL  string        `json:"-"`
}

const (
	// linesPerPage is the window without scripts.
	linesPerPage = 500
	// linesBefore are shown above a line that was linked to.
	linesBefore = 20
	// mostLines of one request by a script.
	mostLines   = 2000
	mostMatches = 200
	// mostQuery bounds what is searched for.
	mostQueryText = 200
)

// findTask returns the run, the task in it, its attempts, and the one that the
// request chose: by number, or the latest.
func (s *server) findTask(r *http.Request) (run pipeline.Run, t *pipeline.RunTask, attempts []attemptRow, chosen *attemptRow, err error) {
	if run, err = s.findRun(r); err != nil {
		return run, nil, nil, nil, err
	}
	name, err := task(r)
	if err != nil {
		return run, nil, nil, nil, err
	}
	if t = run.Task(name); t == nil {
		return run, nil, nil, nil, fault.New(fault.NotFound, "run %s #%d has no task %q", run.Composition, run.Number, name)
	}
	all, err := s.src.Attempts(r.Context(), run.ID)
	if err != nil {
		return run, nil, nil, nil, err
	}
	for _, a := range all {
		if a.Task == name {
			attempts = append(attempts, s.attemptRowOf(run, a, len(attempts)+1))
		}
	}
	n, err := number(r, "attempt", int64(len(attempts)), 1, 1<<31)
	if err != nil {
		return run, nil, nil, nil, err
	}
	if n > int64(len(attempts)) {
		return run, nil, nil, nil, fault.New(fault.NotFound, "task %s has %d attempts, not %d", name, len(attempts), n)
	}
	if n > 0 {
		chosen = &attempts[n-1]
		chosen.Current = true
	}
	return run, t, attempts, chosen, nil
}

func (s *server) attemptRowOf(run pipeline.Run, a pipeline.Attempt, n int) attemptRow {
	row := attemptRow{Attempt: a, Number: n, URL: taskURL(run.Composition, run.Number, a.Task) + "?attempt=" + itoa(n)}
	switch {
	case a.Outcome != "":
		row.Shown = a.Outcome
	case a.State == pipeline.AttemptRunning:
		row.Shown = pipeline.Running
	case a.State == pipeline.AttemptOffered:
		row.Shown = pipeline.Offered
	case a.State == pipeline.AttemptLost:
		row.Shown = pipeline.Error
	default:
		row.Shown = pipeline.Skipped
	}
	switch {
	case a.StartedAt.IsZero():
	case a.FinishedAt.IsZero():
		row.Took = s.now().Sub(a.StartedAt)
	default:
		row.Took = a.FinishedAt.Sub(a.StartedAt)
	}
	return row
}

func (s *server) task(r *http.Request) (view, error) {
	run, t, attempts, chosen, err := s.findTask(r)
	if err != nil {
		return nil, err
	}
	moment, err := s.src.Moment(r.Context(), run.ID)
	if err != nil {
		return nil, err
	}
	v := &taskView{
		page: s.plainPage(string(run.Composition)+" #"+itoa(run.Number)+" "+string(t.Name), "board"),
		Run:  run, Task: t, URL: taskURL(run.Composition, run.Number, t.Name), RunURL: runURL(run.Composition, run.Number),
		Attempts: attempts, Attempt: chosen,
	}
	v.Crumbs = []crumb{
		{"Board", "/"},
		{string(run.Composition), compositionURL(run.Composition)},
		{"#" + itoa(run.Number), v.RunURL},
		{string(t.Name), ""},
	}
	v.Waited, v.Ran = durationsOf(t, v.Now)
	v.Topics = []string{topicRun(run.ID)}
	if t.State == pipeline.Ready {
		v.Topics = append(v.Topics, topicAgents)
	}
	v.Mood, v.Refresh = moodOf(t.State), !t.State.Terminal()
	v.Fields = valuesOf(t.Spec.Fields)
	v.Bindings = bindingsOf(&run, t)
	for _, o := range outputsOf(&run) {
		if o.Task == t.Name {
			v.Outputs = append(v.Outputs, o)
		}
	}
	say := tellerOf(moment)
	v.Links = linksOf(t, say.note(t))
	if chosen != nil {
		if v.Agent, err = s.agentByID(r, chosen.Agent); err != nil {
			return nil, err
		}
	}
	if v.Agent != nil {
		v.Machine, v.Facts = machineOf(v.Agent.Facts), factsOf(v.Agent.Facts)
	}
	v.State, v.Sentence = say.shown(&run, t)
	if chosen == nil {
		return v, nil
	}
	if r.URL.Query().Has("fragment") {
		return v, nil
	}
	return v, s.addLog(r, v)
}

// linksOf returns the pages that a task wants people to find: those of its result,
// or those it has told of while it runs.
func linksOf(t *pipeline.RunTask, now *pipeline.Note) []crumb {
	links := t.Links
	if now != nil {
		links = now.Links
	}
	var out []crumb
	for _, l := range links {
		if u := ansi.SafeURL(l.URL); u != "" {
			out = append(out, crumb{l.Name, u})
		}
	}
	return out
}

func bindingsOf(run *pipeline.Run, t *pipeline.RunTask) []bindingRow {
	var rows []bindingRow
	for _, b := range t.Spec.Bindings {
		row := bindingRow{Binding: b, URL: taskURL(run.Composition, run.Number, b.From)}
		if from := run.Task(b.From); from != nil {
			for _, value := range valuesOf(from.Outputs) {
				if value.Name == b.Output {
					row.Value, row.Set = value.Value, true
				}
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// addLog reads the window of the log that the page shows: the lines asked for,
// or the last ones.
func (s *server) addLog(r *http.Request, v *taskView) error {
	id, base := v.Attempt.ID, v.Attempt.URL
	info, err := s.src.LogInfo(r.Context(), id)
	if err != nil {
		return err
	}
	query, err := searchText(r)
	if err != nil {
		return err
	}
	// The last window, unless a line is asked for; that one then shows what led to it.
	newest := max(1, info.Lines-linesPerPage+1)
	line, err := number(r, "line", newest+linesBefore, 1, 1<<40)
	if err != nil {
		return err
	}
	from := max(1, min(line-linesBefore, newest))
	lines, err := s.src.LogLines(r.Context(), id, from, linesPerPage)
	if err != nil {
		return err
	}
	n := "attempt=" + itoa(v.Attempt.Number)
	v.Log = logView{
		LogInfo: info, Attempt: id, Base: base, RangeURL: v.URL + "/log?" + n, RawURL: v.URL + "/log.txt?" + n,
		From: from, Lines: shownLines(lines, base), Query: query,
	}
	at := func(line int64) string { return base + "&line=" + i64toa(line) + "#L" + i64toa(line) }
	if from > 1 {
		v.Log.First, v.Log.Earlier = at(1), at(max(1, from-linesPerPage+linesBefore))
	}
	if last := from + int64(len(lines)) - 1; last < info.Lines {
		v.Log.Later, v.Log.Last = at(min(last+linesBefore+1, info.Lines)), base+"#log-end"
	}
	if query == "" {
		return nil
	}
	found, err := s.src.LogSearch(r.Context(), id, query, mostMatches)
	if err != nil {
		return err
	}
	v.Log.Matches, v.Log.Total = shownLines(found.Lines, base), found.Total
	return nil
}

func shownLines(lines []LogLine, base string) []shownLine {
	out := make([]shownLine, len(lines))
	for i, l := range lines {
		n := i64toa(l.N)
		// The one place where markup does not come from a template: package ansi
		// escapes, and its fuzz test holds it to that.
		out[i] = shownLine{N: l.N, HTML: template.HTML(ansi.HTML(l.Text)), URL: base + "&line=" + n + "#L" + n} //nolint:gosec
	}
	return out
}

func searchText(r *http.Request) (string, error) {
	q := r.URL.Query().Get("q")
	if len(q) > mostQueryText {
		return "", fault.New(fault.Invalid, "q: at most %d bytes can be searched for", mostQueryText)
	}
	return q, nil
}

// logRange is what a script fetches: a window of lines, or matches.
type logRange struct {
	LogInfo
	Attempt pipeline.AttemptID `json:"attempt"`
	Rows    []shownLine        `json:"rows"`
	// Total counts all matches of a search.
	Total int64 `json:"total,omitempty"`
}

func (s *server) logLines(w http.ResponseWriter, r *http.Request) error {
	_, t, _, chosen, err := s.findTask(r)
	if err != nil {
		return err
	}
	if chosen == nil {
		return fault.New(fault.NotFound, "task %s has not been given to an agent, so it has no log", t.Name)
	}
	w.Header().Set("Cache-Control", "private, no-cache")
	out, err := s.readRange(r, chosen.ID)
	if err != nil {
		return err
	}
	return s.sendJSON(w, r, out)
}

// readRange answers ?q= with matches and ?from=&n= with lines.
func (s *server) readRange(r *http.Request, id pipeline.AttemptID) (logRange, error) {
	out := logRange{Attempt: id}
	query, err := searchText(r)
	if err != nil {
		return out, err
	}
	from, err := number(r, "from", 1, 1, 1<<40)
	if err != nil {
		return out, err
	}
	n, err := number(r, "n", linesPerPage, 1, mostLines)
	if err != nil {
		return out, err
	}
	// The length is read first, so that it never promises less than the lines show.
	if out.LogInfo, err = s.src.LogInfo(r.Context(), id); err != nil {
		return out, err
	}
	if query != "" {
		found, err := s.src.LogSearch(r.Context(), id, query, mostMatches)
		if err != nil {
			return out, err
		}
		out.Rows, out.Total = shownLines(found.Lines, ""), found.Total
		return out, nil
	}
	lines, err := s.src.LogLines(r.Context(), id, from, int(n))
	if err != nil {
		return out, err
	}
	out.Rows = shownLines(lines, "")
	if len(lines) > 0 {
		out.Lines = max(out.Lines, lines[len(lines)-1].N)
	}
	return out, nil
}

// logRaw sends the bytes as they were written. It is a download: a terminal's
// commands in it are for a terminal, and no browser should guess at its type.
func (s *server) logRaw(w http.ResponseWriter, r *http.Request) error {
	run, t, _, chosen, err := s.findTask(r)
	if err != nil {
		return err
	}
	if chosen == nil {
		return fault.New(fault.NotFound, "task %s has not been given to an agent, so it has no log", t.Name)
	}
	name := string(run.Composition) + "-" + itoa(run.Number) + "-" + string(t.Name) + "-" + itoa(chosen.Number) + ".log"
	w.Header().Set("Content-Disposition", `attachment; filename="`+url.PathEscape(name)+`"`)
	return s.copyLog(w, r, chosen.ID, 0, false)
}
