package web

import (
	_ "embed"
	"encoding/json"
	"net/http"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

//go:embed openapi.json
var openapi []byte

// The answers of the API that are not one value of the vocabulary.
type (
	healthAnswer struct {
		Status  string       `json:"status"`
		Version string       `json:"version"`
		Seq     pipeline.Seq `json:"seq"`
		Now     time.Time    `json:"now"`
	}
	// A run, and a task of it, with what people see of them just now.
	runAnswer struct {
		pipeline.Run
		Shown    pipeline.State `json:"shown"`
		Sentence string         `json:"sentence,omitempty"`
		Tasks    []taskAnswer   `json:"tasks"`
	}
	taskAnswer struct {
		pipeline.RunTask
		Shown     pipeline.State `json:"shown"`
		Sentence  string         `json:"sentence,omitempty"`
		AgentName string         `json:"agent_name,omitempty"`
		// SilentSince is when the agent on which it runs last answered, if it does not.
		SilentSince time.Time      `json:"silent_since,omitzero"`
		Now         *pipeline.Note `json:"now,omitempty"`
	}
	boardAnswer struct {
		Board
		Unfinished []runAnswer `json:"unfinished"`
		// More counts the unfinished runs that are not listed; the runs have them.
		More int `json:"unfinished_more,omitempty"`
	}
	runsAnswer struct {
		Runs []runAnswer `json:"runs"`
		// Next is the cursor of the following page, absent on the last.
		Next pipeline.RunID `json:"next,omitempty"`
	}
	attemptsAnswer struct {
		Attempts []pipeline.Attempt `json:"attempts"`
	}
	agentsAnswer struct {
		Agents []AgentView `json:"agents"`
	}
	commitsAnswer struct {
		Commits []pipeline.CommitRecord `json:"commits"`
	}
	commitAnswer struct {
		pipeline.CommitRecord
		Verdicts []pipeline.Verdict `json:"verdicts"`
	}
	pluginsAnswer struct {
		Plugins []pipeline.Plugin `json:"plugins"`
	}
	poolsAnswer struct {
		Pools []pipeline.Pool `json:"pools"`
	}
	queueAnswer struct {
		Queue []Waiting `json:"queue"`
	}
	whyAnswer struct {
		TaskRef
		State    pipeline.State `json:"state"`
		Blocked  bool           `json:"blocked,omitempty"`
		Sentence string         `json:"sentence"`
		Now      *pipeline.Note `json:"now,omitempty"`
	}
)

// list is never null in an answer.
func filled[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (s *server) apiHealth(w http.ResponseWriter, r *http.Request) error {
	seq, err := s.src.LastSeq(r.Context())
	if err != nil {
		return err
	}
	return s.sendJSON(w, r, healthAnswer{"ok", s.version, seq, s.now().UTC()})
}

func (s *server) apiBoard(w http.ResponseWriter, r *http.Request) error {
	b, err := s.src.Board(r.Context())
	if err != nil {
		return err
	}
	b.Compositions, b.Queue = filled(b.Compositions), filled(b.Queue)
	for i := range b.Compositions {
		b.Compositions[i].Recent = filled(b.Compositions[i].Recent)
	}
	out, say := boardAnswer{Board: b, Unfinished: []runAnswer{}}, tellerOf(b.Moment)
	for i := range b.Unfinished[:min(mostListed, len(b.Unfinished))] {
		out.Unfinished = append(out.Unfinished, say.answer(&b.Unfinished[i]))
	}
	out.More = len(b.Unfinished) - len(out.Unfinished)
	return s.sendJSON(w, r, out)
}

// answer adds to a run what people see of it.
func (say teller) answer(run *pipeline.Run) runAnswer {
	out := runAnswer{Run: *run, Tasks: make([]taskAnswer, len(run.Tasks))}
	out.Shown, out.Sentence = say.shownRun(run)
	for i := range run.Tasks {
		t := &run.Tasks[i]
		a := taskAnswer{RunTask: *t, AgentName: say.moment.Names[t.Agent], Now: say.note(t)}
		a.Shown, a.Sentence = say.shown(run, t)
		if t.State == pipeline.Running {
			a.SilentSince = say.moment.Silent[t.Agent]
		}
		out.Tasks[i] = a
	}
	return out
}

func (s *server) apiRuns(w http.ResponseWriter, r *http.Request) error {
	f, err := s.runFilter(r, 50)
	if err != nil {
		return err
	}
	if f.Tasks, err = flag(r, "tasks"); err != nil {
		return err
	}
	runs, err := s.src.Runs(r.Context(), f)
	if err != nil {
		return err
	}
	out := runsAnswer{Runs: make([]runAnswer, len(runs))}
	say, err := s.tellerFor(r, runs, f.Tasks)
	if err != nil {
		return err
	}
	for i := range runs {
		run := &runs[i]
		if !run.State.Terminal() && !f.Tasks {
			// What it waits for is told by its tasks.
			whole, err := s.src.Run(r.Context(), run.ID)
			if err != nil {
				return err
			}
			run = &whole
		}
		if out.Runs[i] = say.answer(run); !f.Tasks {
			out.Runs[i].Tasks = []taskAnswer{}
		}
	}
	if len(runs) == f.Limit {
		out.Next = runs[len(runs)-1].ID
	}
	return s.sendJSON(w, r, out)
}

func (s *server) apiRun(w http.ResponseWriter, r *http.Request) error {
	id, err := identifier(r, "run")
	if err != nil {
		return err
	}
	run, err := s.src.Run(r.Context(), pipeline.RunID(id))
	if err != nil {
		return err
	}
	return s.sendRun(w, r, &run)
}

func (s *server) sendRun(w http.ResponseWriter, r *http.Request, run *pipeline.Run) error {
	moment, err := s.src.Moment(r.Context(), run.ID)
	if err != nil {
		return err
	}
	return s.sendJSON(w, r, tellerOf(moment).answer(run))
}

func (s *server) apiRunByNumber(w http.ResponseWriter, r *http.Request) error {
	run, err := s.findRun(r)
	if err != nil {
		return err
	}
	return s.sendRun(w, r, &run)
}

func (s *server) apiComposition(w http.ResponseWriter, r *http.Request) error {
	name, err := composition(r)
	if err != nil {
		return err
	}
	c, err := s.src.Composition(r.Context(), name)
	if err != nil {
		return err
	}
	c.Tasks = filled(c.Tasks)
	return s.sendJSON(w, r, c)
}

func (s *server) apiAttempts(w http.ResponseWriter, r *http.Request) error {
	id, err := identifier(r, "run")
	if err != nil {
		return err
	}
	if _, err := s.src.Run(r.Context(), pipeline.RunID(id)); err != nil {
		return err
	}
	attempts, err := s.src.Attempts(r.Context(), pipeline.RunID(id))
	if err != nil {
		return err
	}
	return s.sendJSON(w, r, attemptsAnswer{filled(attempts)})
}

func (s *server) apiLog(w http.ResponseWriter, r *http.Request) error {
	id, err := identifier(r, "attempt")
	if err != nil {
		return err
	}
	off, err := number(r, "off", 0, 0, 1<<50)
	if err != nil {
		return err
	}
	follow, err := flag(r, "follow")
	if err != nil {
		return err
	}
	return s.copyLog(w, r, pipeline.AttemptID(id), off, follow)
}

func (s *server) apiLines(w http.ResponseWriter, r *http.Request) error {
	id, err := identifier(r, "attempt")
	if err != nil {
		return err
	}
	out, err := s.readRange(r, pipeline.AttemptID(id))
	if err != nil {
		return err
	}
	return s.sendJSON(w, r, out)
}

func (s *server) apiAgents(w http.ResponseWriter, r *http.Request) error {
	agents, err := s.src.Agents(r.Context())
	if err != nil {
		return err
	}
	agents = filled(agents)
	for i := range agents {
		agents[i].Running = filled(agents[i].Running)
	}
	return s.sendJSON(w, r, agentsAnswer{agents})
}

func (s *server) apiAgent(w http.ResponseWriter, r *http.Request) error {
	id, err := identifier(r, "agent")
	if err != nil {
		return err
	}
	a, err := s.src.Agent(r.Context(), pipeline.AgentID(id))
	if err != nil {
		return err
	}
	a.Running = filled(a.Running)
	return s.sendJSON(w, r, a)
}

func (s *server) apiCommits(w http.ResponseWriter, r *http.Request) error {
	limit, err := number(r, "limit", 50, 1, 200)
	if err != nil {
		return err
	}
	commits, err := s.src.Commits(r.Context(), int(limit))
	if err != nil {
		return err
	}
	return s.sendJSON(w, r, commitsAnswer{filled(commits)})
}

func (s *server) apiCommit(w http.ResponseWriter, r *http.Request) error {
	c, err := s.commitOf(r, r.PathValue("sha"))
	if err != nil {
		return err
	}
	verdicts, err := s.src.Verdicts(r.Context(), c.Commit)
	if err != nil {
		return err
	}
	return s.sendJSON(w, r, commitAnswer{c, filled(verdicts)})
}

func (s *server) apiPlugins(w http.ResponseWriter, r *http.Request) error {
	plugins, err := s.src.Plugins(r.Context())
	if err != nil {
		return err
	}
	return s.sendJSON(w, r, pluginsAnswer{filled(plugins)})
}

func (s *server) apiPools(w http.ResponseWriter, r *http.Request) error {
	pools, err := s.src.Pools(r.Context())
	if err != nil {
		return err
	}
	return s.sendJSON(w, r, poolsAnswer{filled(pools)})
}

func (s *server) apiQueue(w http.ResponseWriter, r *http.Request) error {
	run := r.URL.Query().Get("run")
	if run != "" && !idRE.MatchString(run) {
		return fault.New(fault.Invalid, "run=%.80q is not a run", run)
	}
	moment, err := s.src.Moment(r.Context(), pipeline.RunID(run))
	if err != nil {
		return err
	}
	return s.sendJSON(w, r, queueAnswer{filled(moment.Queue)})
}

// apiWhy says of one task why it is in its state, in the words of the pages.
func (s *server) apiWhy(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	id, name := q.Get("run"), q.Get("task")
	if !idRE.MatchString(id) || !pipeline.ValidName(name) {
		return fault.New(fault.Invalid, "want run=ID and task=NAME, got run=%.80q and task=%.80q", id, name)
	}
	run, err := s.src.Run(r.Context(), pipeline.RunID(id))
	if err != nil {
		return err
	}
	t := run.Task(pipeline.TaskName(name))
	if t == nil {
		return fault.New(fault.NotFound, "run %s has no task %q", id, name)
	}
	moment, err := s.src.Moment(r.Context(), run.ID)
	if err != nil {
		return err
	}
	say := tellerOf(moment)
	state, sentence := say.shown(&run, t)
	return s.sendJSON(w, r, whyAnswer{refOf(&run, t), t.State, state == blocked, sentence, say.note(t)})
}

// changeNote is a line among the changes for who asks with notes=1: a task of the
// run has said something of itself. It is not recorded; its number is that of the
// change before it.
const changeNote = "note"

// apiEvents sends changes as one JSON object a line; with follow it goes on
// until the client leaves. An empty line is a sign of life.
func (s *server) apiEvents(w http.ResponseWriter, r *http.Request) error {
	after, err := number(r, "after", 0, 0, 1<<62)
	if err != nil {
		return err
	}
	limit, err := number(r, "limit", mostChanges, 1, mostChanges)
	if err != nil {
		return err
	}
	follow, err := flag(r, "follow")
	if err != nil {
		return err
	}
	notes, err := flag(r, "notes")
	if err != nil {
		return err
	}
	changes, err := s.src.Changes(r.Context(), pipeline.Seq(after), int(limit))
	if err != nil {
		return err
	}
	st, release, err := s.openStream(w)
	if err != nil {
		return err
	}
	defer release()
	w.Header().Set("Content-Type", "application/x-ndjson")
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	if !follow {
		return s.writeChanges(r, st, changes)
	}
	var noted <-chan struct{}
	if notes {
		var stop func()
		noted, stop = s.src.WatchNotes()
		defer stop()
	}
	return s.followChanges(r, st, pipeline.Seq(after), noted)
}

// followChanges sends what is recorded, and what tasks say when noted is not nil.
func (s *server) followChanges(r *http.Request, st *stream, after pipeline.Seq, noted <-chan struct{}) error {
	signal, stop := s.src.Watch()
	defer stop()
	_, told := s.src.Noted(0)
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	isBeat := false
	for {
		changes, err := s.src.Changes(r.Context(), after, mostChanges)
		if err != nil {
			return s.broken(r, err)
		}
		if len(changes) > 0 {
			after = changes[len(changes)-1].Seq
		} else if isBeat {
			if _, err := st.Write([]byte("\n")); err != nil {
				return s.broken(r, err)
			}
		}
		var runs []pipeline.RunID
		if noted != nil {
			runs, told = s.src.Noted(told)
		}
		for _, id := range runs {
			changes = append(changes, pipeline.Change{Seq: after, At: s.now().UTC(), Kind: changeNote, Run: id})
		}
		if err := s.writeChanges(r, st, changes); err != nil {
			return err
		}
		if len(changes) == mostChanges {
			continue
		}
		if len(runs) > 0 && !rest(r.Context()) {
			return nil
		}
		var ok bool
		if isBeat, ok = wait(r.Context(), beat, signal, noted); !ok {
			return nil
		}
	}
}

func (s *server) writeChanges(r *http.Request, st *stream, changes []pipeline.Change) error {
	enc := json.NewEncoder(st)
	for i := range changes {
		if err := enc.Encode(changes[i]); err != nil {
			return s.broken(r, err)
		}
	}
	if err := st.flush(); err != nil {
		return s.broken(r, err)
	}
	return nil
}

func (s *server) apiDocument(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "private, max-age=300")
	s.send(w, r, http.StatusOK, "application/json", openapi)
	return nil
}
