package testkit

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// gateRoute answers what only pull requests that Maestro opens itself need. Called with mu.
func (g *GitHub) gateRoute(r *http.Request, path string, body []byte) (reply, bool) {
	if path == repoPath+"/pulls" {
		return g.pullsRoute(r, body), true
	}
	if m := issueRE.FindStringSubmatch(path); m != nil {
		n, _ := strconv.Atoi(m[1])
		if n < 1 || n > len(g.pulls) {
			return reply{http.StatusNotFound, nil}, true
		}
		p := g.pulls[n-1]
		out := obj{"number": n, "state": "open", "title": p.title}
		if p.closed {
			out["state"], out["closed_at"] = "closed", stamp(p.updated)
			if p.closedBy != "" {
				out["closed_by"] = g.user(p.closedBy)
			}
		}
		return reply{http.StatusOK, out}, true
	}
	if m := compareRE.FindStringSubmatch(path); m != nil {
		all := g.commits(m[1] + ".." + m[2])
		// Its lists are paged inside of the object.
		per, _ := strconv.Atoi(r.URL.Query().Get("per_page"))
		n, _ := strconv.Atoi(r.URL.Query().Get("page"))
		from, to := min((n-1)*per, len(all)), min(n*per, len(all))
		return reply{http.StatusOK, obj{"total_commits": len(all), "commits": orNone(all[from:to])}}, true
	}
	if m := pullsOfRE.FindStringSubmatch(path); m != nil {
		var out []obj
		for _, p := range g.pulls {
			if slices.Contains(p.brought, m[1]) {
				out = append(out, g.pull(p))
			}
		}
		return reply{http.StatusOK, orNone(out)}, true
	}
	if m := commitRE.FindStringSubmatch(path); m != nil {
		return reply{http.StatusOK, g.commits("-1", m[1])[0]}, true
	}
	return reply{}, false
}

func (g *GitHub) pullsRoute(r *http.Request, body []byte) reply {
	if r.Method == http.MethodPost {
		return g.openByMaestro(body)
	}
	q := r.URL.Query()
	_, branch, _ := strings.Cut(q.Get("head"), ":")
	var out []obj
	for _, p := range g.pulls {
		g.follow(p)
		if (!p.closed || q.Get("state") == "all") && (branch == "" || p.branch == branch) && time.Since(p.opened) >= g.lag {
			out = append(out, g.pull(p))
		}
	}
	if q.Get("direction") == "desc" {
		slices.Reverse(out)
	}
	return reply{http.StatusOK, orNone(out)}
}

// at is where a branch points, "" when there is none.
func (g *GitHub) at(branch string) string {
	out, err := exec.Command("git", "-C", g.Repo.Bare, "rev-parse", "--verify", "--quiet", "refs/heads/"+branch).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// follow does to a pull request what became of the branch that Maestro has pushed.
func (g *GitHub) follow(p *githubPull) {
	if p.author != MaestroLogin || p.closed {
		return
	}
	switch head := g.at(p.branch); head {
	case p.head:
	case "":
		p.closed, p.closedBy = true, MaestroLogin
		g.touch(p)
	default:
		p.head = head
		g.touch(p)
	}
}

func (g *GitHub) openByMaestro(body []byte) reply {
	var ask struct{ Title, Head, Base, Body string }
	if err := json.Unmarshal(body, &ask); err != nil {
		g.t.Error(err)
	}
	head, base := g.at(ask.Head), g.at(ask.Base)
	open := slices.ContainsFunc(g.pulls, func(p *githubPull) bool { return p.branch == ask.Head && p.base == ask.Base && !p.closed })
	switch {
	case head == "" || base == "", open:
		return reply{http.StatusUnprocessableEntity, nil}
	case exec.Command("git", "-C", g.Repo.Bare, "merge-base", base, head).Run() != nil:
		g.t.Errorf("%s has no history in common with %s", ask.Head, ask.Base)
		return reply{http.StatusUnprocessableEntity, nil}
	}
	g.open(&githubPull{title: ask.Title, body: ask.Body, author: MaestroLogin, branch: ask.Head, base: ask.Base, head: head})
	return reply{http.StatusCreated, g.pull(g.pulls[len(g.pulls)-1])}
}

func (g *GitHub) editPull(p *githubPull, body []byte) reply {
	var ask struct{ Title, Body, State string }
	if err := json.Unmarshal(body, &ask); err != nil {
		g.t.Error(err)
	}
	reopens := p.closed && ask.State == "open"
	if p.author != MaestroLogin || reopens && (p.merge != "" || g.at(p.branch) == "") {
		return reply{http.StatusUnprocessableEntity, nil}
	}
	if ask.State == "closed" && !p.closed {
		p.closedBy = MaestroLogin
	}
	p.title, p.body = ask.Title, ask.Body
	if ask.State != "" {
		p.closed = ask.State == "closed"
	}
	g.touch(p)
	return reply{http.StatusOK, g.pull(p)}
}

// Rebase merges a pull request by rebasing its commits, and returns the last.
func (g *GitHub) Rebase(by string, number int) pipeline.CommitID {
	g.t.Helper()
	g.mu.Lock()
	p := *g.pulls[number-1]
	g.mu.Unlock()
	r := g.Repo
	base := r.Git(r.Bare, "rev-parse", "refs/heads/"+p.base)
	r.Git(r.Work, "fetch", "--quiet", r.Bare, base, p.head)
	r.Git(r.Work, "checkout", "--quiet", "--force", "--detach", p.head)
	r.Git(r.Work, "-c", "user.name="+by, "rebase", "--quiet", "--force-rebase", base)
	tip := r.Git(r.Work, "rev-parse", "HEAD")
	r.Git(r.Work, "push", "--quiet", r.Remote, "HEAD:refs/heads/"+p.base)
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.pulls[number-1]
	q.closed, q.merge, q.brought = true, tip, strings.Fields(r.Git(r.Bare, "rev-list", base+".."+tip))
	g.touch(q)
	g.moved(p.base, by)
	return pipeline.CommitID(tip)
}

// ClosePull closes a pull request as somebody.
func (g *GitHub) ClosePull(by string, number int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pulls[number-1]
	p.closed, p.closedBy = true, by
	g.touch(p)
}

// Body returns the text of a pull request, and whether it is open.
func (g *GitHub) Body(number int) (text string, open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pulls[number-1].body, !g.pulls[number-1].closed
}

// AwaitGate waits until Maestro has exactly one open pull request of a branch, with all
// the texts in it, and returns its number.
func (g *GitHub) AwaitGate(branch string, texts ...string) int {
	g.t.Helper()
	number := 0
	Eventually(g.t, fmt.Sprintf("one pull request of %s with %q", branch, texts), func() (bool, string) {
		g.mu.Lock()
		defer g.mu.Unlock()
		var open []*githubPull
		for _, p := range g.pulls {
			if p.branch == branch && !p.closed {
				open = append(open, p)
			}
		}
		if len(open) != 1 {
			return false, fmt.Sprintf("there are %d", len(open))
		}
		number = open[0].number
		for _, want := range texts {
			if !strings.Contains(open[0].body, want) {
				return false, "without " + want + ":\n" + open[0].body
			}
		}
		return true, ""
	})
	return number
}

// AwaitSettled waits until a pull request of Maestro is closed with all the texts in it
// and its branch is gone.
func (g *GitHub) AwaitSettled(number int, texts ...string) {
	g.t.Helper()
	Eventually(g.t, fmt.Sprintf("pull request %d is settled with %q", number, texts), func() (bool, string) {
		g.mu.Lock()
		defer g.mu.Unlock()
		p := g.pulls[number-1]
		for _, want := range texts {
			if !strings.Contains(p.body, want) {
				return false, "without " + want + ":\n" + p.body
			}
		}
		return p.closed && g.at(p.branch) == "", fmt.Sprintf("closed %v, branch at %q", p.closed, g.at(p.branch))
	})
}

// Pulls returns how many pull requests were ever opened.
func (g *GitHub) Pulls() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.pulls)
}
