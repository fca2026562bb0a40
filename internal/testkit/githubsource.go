package testkit

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// GitHubSource is octo/app, another repository of the fake, for compositions to name. Of
// its pull requests the fake knows their list.
type GitHubSource struct {
	*Repo
	// Login is USER:PASSWORD for its Git.
	Login string

	g     *GitHub
	git   *GitServer
	pulls []*githubPull // guarded by g.mu
}

// Source makes octo/app, with a commit on main. A server may read it that is told to
// --allow-source the fake's URL.
func (g *GitHub) Source() *GitHubSource {
	g.t.Helper()
	s := &GitHubSource{Repo: NewRepo(g.t), Login: "robot:password-of-robot", g: g}
	if err := os.Symlink(s.Bare, filepath.Join(filepath.Dir(s.Bare), "app.git")); err != nil {
		g.t.Fatal(err)
	}
	user, password, _ := strings.Cut(s.Login, ":")
	s.git = ServeGit(g.t, s.Bare, user, password)
	s.Repo.Push("main", map[string]string{"README": "app\n"})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.source = s
	return s
}

// Address is where Git has it.
func (s *GitHubSource) Address() string { return s.g.URL + "/octo/app.git" }

// serveGit answers what is asked of its Git, and reports whether it was.
func (s *GitHubSource) serveGit(w http.ResponseWriter, r *http.Request) bool {
	if s == nil || !strings.HasPrefix(r.URL.Path, "/octo/app.git/") {
		return false
	}
	http.StripPrefix("/octo", s.git).ServeHTTP(w, r)
	return true
}

// Push pushes files to a branch, and its pull requests move.
func (s *GitHubSource) Push(branch string, files map[string]string) pipeline.CommitID {
	s.g.t.Helper()
	head := s.Repo.Push(branch, files)
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	for _, p := range s.pulls {
		if p.branch == branch && !p.fork {
			p.head = string(head)
		}
	}
	s.tell("push")
	return head
}

// Open opens a pull request of a branch, or of a fork whose head is a commit of the
// working copy, and returns its number.
func (s *GitHubSource) Open(by, branch, base string, fork bool) int {
	s.g.t.Helper()
	head := s.Git(s.Work, "rev-parse", "HEAD")
	if !fork {
		head = s.Git(s.Bare, "rev-parse", "refs/heads/"+branch)
	}
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	p := &githubPull{number: len(s.pulls) + 1, title: "change " + branch, author: by, branch: branch, base: base, head: head, fork: fork, updated: time.Now()}
	if fork {
		s.Git(s.Work, "push", "--quiet", s.Bare, fmt.Sprintf("HEAD:refs/pull/%d/head", p.number))
	}
	s.pulls = append(s.pulls, p)
	s.tell("pull_request")
	return p.number
}

// Close closes a pull request.
func (s *GitHubSource) Close(number int) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.pulls[number-1].closed = true
	s.tell("pull_request")
}

func (s *GitHubSource) tell(event string) {
	s.g.post(event, map[string]any{"repository": map[string]any{"id": sourceID, "full_name": "octo/app"}})
}

const sourceID = 9

// pullsRoute is the list of its open pull requests. Called with g.mu.
func (s *GitHubSource) pullsRoute() reply {
	var out []obj
	for _, p := range s.pulls {
		if p.closed {
			continue
		}
		out = append(out, s.g.pullAt(p, sourceID, s.Git(s.Bare, "rev-parse", "refs/heads/"+p.base)))
	}
	return reply{http.StatusOK, orNone(out)}
}
