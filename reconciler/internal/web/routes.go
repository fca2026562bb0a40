package web

import (
	"net/http"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// mostStreams bounds open event streams and log transfers. Each costs a
// goroutine, a socket and a look at the record about twice a second at most.
const mostStreams = 512

type route struct {
	pattern string
	handler http.Handler
}

// routes is the whole surface. A pattern with GET answers HEAD as well.
func (s *server) routes() []route {
	const task = "GET /c/{composition}/{number}/t/{task}"
	return []route{
		{"GET /{$}", s.show("board", s.board)},
		{"GET /c/{composition}", s.show("composition", s.composition)},
		{"GET /c/{composition}/{number}", s.show("run", s.run)},
		{task, s.showFresh("task", s.task)},
		{task + "/log", s.handle(s.logLines)},
		{task + "/log.txt", s.handle(s.logRaw)},
		{"GET /run/{id}", s.handle(s.runByID)},
		{"GET /queue", s.show("queue", s.queue)},
		{"GET /agents", s.show("agents", s.agents)},
		{"GET /agents/{id}", s.show("agent", s.agent)},
		{"GET /commits", s.show("commits", s.commits)},
		{"GET /commits/{sha}", s.show("commit", s.commit)},
		{"GET /changes", s.proposalOrAll()},
		{"GET /changes/{branch...}", s.show("change", s.proposal)},
		{"GET /problems", s.show("problems", s.problems)},
		{"GET /plugins", s.show("plugins", s.plugins)},
		{"GET /plugins/{plugin}/icon", s.handle(s.icon)},
		{"GET /events", s.handle(s.events)},
		{"GET /assets/{digest}/{name}", s.handle(s.asset)},
		{"GET /favicon.ico", s.handle(s.favicon)},
		{"GET /robots.txt", s.handle(s.robots)},
		{"GET /healthz", s.handle(s.healthz)},
		{"GET /readyz", s.handle(s.readyz)},

		{"GET /api/v1/openapi.json", s.handle(s.apiDocument)},
		{"GET /api/v1/health", s.handle(s.apiHealth)},
		{"GET /api/v1/board", s.handle(s.apiBoard)},
		{"GET /api/v1/runs", s.handle(s.apiRuns)},
		{"GET /api/v1/runs/{id}", s.handle(s.apiRun)},
		{"GET /api/v1/runs/{id}/attempts", s.handle(s.apiAttempts)},
		{"GET /api/v1/compositions/{composition}", s.handle(s.apiComposition)},
		{"GET /api/v1/compositions/{composition}/runs/{number}", s.handle(s.apiRunByNumber)},
		{"GET /api/v1/attempts/{id}/log", s.handle(s.apiLog)},
		{"GET /api/v1/attempts/{id}/lines", s.handle(s.apiLines)},
		{"GET /api/v1/agents", s.handle(s.apiAgents)},
		{"GET /api/v1/agents/{id}", s.handle(s.apiAgent)},
		{"GET /api/v1/commits", s.handle(s.apiCommits)},
		{"GET /api/v1/commits/{sha}", s.handle(s.apiCommit)},
		{"GET /api/v1/events", s.handle(s.apiEvents)},
		{"GET /api/v1/changes", s.handle(s.apiProposals)},
		{"GET /api/v1/plugins", s.handle(s.apiPlugins)},
		{"GET /api/v1/pools", s.handle(s.apiPools)},
		{"GET /api/v1/queue", s.handle(s.apiQueue)},
		{"GET /api/v1/why", s.handle(s.apiWhy)},
	}
}

// runByID leads from the permanent id of a run to its page.
func (s *server) runByID(w http.ResponseWriter, r *http.Request) error {
	id, err := identifier(r, "run")
	if err != nil {
		return err
	}
	run, err := s.src.Run(r.Context(), pipeline.RunID(id))
	if err != nil {
		return err
	}
	http.Redirect(w, r, runURL(run.Composition, run.Number), http.StatusPermanentRedirect)
	return nil
}

func (s *server) asset(w http.ResponseWriter, r *http.Request) error {
	a, ok := s.ui.Asset(r.URL.Path)
	if !ok {
		return fault.New(fault.NotFound, "this version of the pages has no such file; load the page again")
	}
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	s.send(w, r, http.StatusOK, a.ContentType, a.Body)
	return nil
}

// favicon answers browsers that ask for it unbidden.
func (s *server) favicon(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "public, max-age=86400")
	http.Redirect(w, r, s.ui.URL("icon.svg"), http.StatusFound)
	return nil
}

func (s *server) robots(w http.ResponseWriter, r *http.Request) error {
	s.send(w, r, http.StatusOK, "text/plain; charset=utf-8", []byte("User-agent: *\nDisallow: /\n"))
	return nil
}

// healthz says that the process answers.
func (s *server) healthz(w http.ResponseWriter, r *http.Request) error {
	s.send(w, r, http.StatusOK, "text/plain; charset=utf-8", []byte("ok "+s.version+"\n"))
	return nil
}

// readyz says that the record answers as well.
func (s *server) readyz(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.src.LastSeq(r.Context()); err != nil {
		return fault.New(fault.Unavailable, "read the record: %w", err)
	}
	s.send(w, r, http.StatusOK, "text/plain; charset=utf-8", []byte("ready\n"))
	return nil
}
