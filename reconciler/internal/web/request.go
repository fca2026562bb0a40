package web

import (
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Path and query values are checked here before anything is asked of the source.

var (
	idRE     = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)
	commitRE = regexp.MustCompile(`^[0-9a-f]{7,64}$`)
)

func composition(r *http.Request) (pipeline.CompositionName, error) {
	name := r.PathValue("composition")
	if !pipeline.ValidName(name) {
		return "", fault.New(fault.NotFound, "there is no composition %.80q", name)
	}
	return pipeline.CompositionName(name), nil
}

func task(r *http.Request) (pipeline.TaskName, error) {
	name := r.PathValue("task")
	if !pipeline.ValidName(name) {
		return "", fault.New(fault.NotFound, "there is no task %.80q", name)
	}
	return pipeline.TaskName(name), nil
}

func runNumber(r *http.Request) (int, error) {
	text := r.PathValue("number")
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || strconv.Itoa(n) != text {
		return 0, fault.New(fault.NotFound, "there is no run %.40q", text)
	}
	return n, nil
}

// identifier returns a path value that has the form of an id.
func identifier(r *http.Request, what string) (string, error) {
	id := r.PathValue("id")
	if !idRE.MatchString(id) {
		return "", fault.New(fault.NotFound, "there is no %s %.80q", what, id)
	}
	return id, nil
}

// commitOf returns the evaluated commit that a person means by id, which is whole or
// its first digits.
func (s *server) commitOf(r *http.Request, id string) (pipeline.CommitRecord, error) {
	id = strings.ToLower(id)
	if !commitRE.MatchString(id) {
		return pipeline.CommitRecord{}, fault.New(fault.Invalid, "%.80q is not a commit: give at least 7 of its hex digits", id)
	}
	return s.src.Commit(r.Context(), pipeline.CommitID(id))
}

// number reads a query parameter between least and most; absent is otherwise.
func number(r *http.Request, name string, otherwise, least, most int64) (int64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least || n > most {
		return 0, fault.New(fault.Invalid, "%s=%.40q: want a number from %d to %d", name, text, least, most)
	}
	return n, nil
}

// flag reads a query parameter that is 1 or absent.
func flag(r *http.Request, name string) (bool, error) {
	switch text := r.URL.Query().Get(name); text {
	case "", "0":
		return false, nil
	case "1":
		return true, nil
	default:
		return false, fault.New(fault.Invalid, "%s=%.40q: want 1 or 0", name, text)
	}
}

// runFilter reads the filter of a list of runs.
func (s *server) runFilter(r *http.Request, limit int64) (RunFilter, error) {
	q := r.URL.Query()
	f := RunFilter{
		Composition: pipeline.CompositionName(q.Get("composition")),
		State:       pipeline.State(q.Get("state")),
		Ref:         pipeline.Ref(q.Get("ref")),
		Agent:       pipeline.AgentID(q.Get("agent")),
		Before:      pipeline.RunID(q.Get("before")),
	}
	switch {
	case f.Composition != "" && !pipeline.ValidName(string(f.Composition)):
		return f, fault.New(fault.Invalid, "composition=%.80q is not a name", f.Composition)
	case f.State != "" && !f.State.Valid():
		return f, fault.New(fault.Invalid, "state=%.40q is not one of %v", f.State, pipeline.States())
	case f.Agent != "" && !idRE.MatchString(string(f.Agent)):
		return f, fault.New(fault.Invalid, "agent=%.80q is not an agent", f.Agent)
	case f.Before != "" && !idRE.MatchString(string(f.Before)):
		return f, fault.New(fault.Invalid, "before=%.80q is not a run", f.Before)
	}
	if id := q.Get("commit"); id != "" {
		c, err := s.commitOf(r, id)
		if err != nil {
			return f, err
		}
		f.Commit = c.Commit
	}
	n, err := number(r, "limit", limit, 1, 200)
	f.Limit = int(n)
	return f, err
}
