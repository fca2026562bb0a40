package testkit

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// reply is what a route answers: a status and the parts that matter, nil for no body.
type reply struct {
	status int
	parts  any
}

type obj = map[string]any

// ServeHTTP implements http.Handler.
func (g *GitHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	source := g.source
	g.mu.Unlock()
	if source.serveGit(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the reconciler was stopped
	}
	if r.URL.Path == "/octo/ops/pulls" {
		g.page(w)
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/api/v3")
	if !ok {
		g.t.Errorf("%s %s is not the API", r.Method, r.URL)
		http.NotFound(w, r)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, r.Method+" "+path)
	if !g.known(r, path) {
		g.problem(w, http.StatusUnauthorized, "Bad credentials")
		return
	}
	d, err := describe(r, path, body)
	if err != nil {
		g.t.Error(err)
		g.problem(w, http.StatusBadRequest, err.Error())
		return
	}
	var fault Fault
	if g.fault != nil {
		fault = g.fault(r.Method, path)
	}
	if fault.Status != 0 {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		for k, v := range fault.Header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(fault.Status)
		_, _ = io.WriteString(w, fault.Body)
		return
	}
	out := g.route(r, path, body)
	if fault.Lost {
		panic(http.ErrAbortHandler)
	}
	g.write(w, r, d, out)
}

func (g *GitHub) problem(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write(marshal(g.t, obj{"message": message, "documentation_url": "https://docs.github.com/rest", "status": strconv.Itoa(code)}))
}

// write sends an answer: lists by pages, and nothing when the asker has it already.
func (g *GitHub) write(w http.ResponseWriter, r *http.Request, d *described, out reply) {
	if out.status >= http.StatusBadRequest {
		g.problem(w, out.status, "Not Found")
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if list, ok := out.parts.([]obj); ok {
		out.parts = page(w, r, list)
	}
	body, err := d.answer(out.status, w.Header(), out.parts)
	if err != nil {
		g.t.Error(err)
	}
	tag := fmt.Sprintf(`W/"%x"`, sha256.Sum256(body))
	if r.Method == http.MethodGet {
		w.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	g.paid++
	if body == nil {
		w.Header().Del("Content-Type")
	}
	w.WriteHeader(out.status)
	_, _ = w.Write(body)
}

func page(w http.ResponseWriter, r *http.Request, list []obj) []obj {
	per, n := 30, 1
	if v, err := strconv.Atoi(r.URL.Query().Get("per_page")); err == nil {
		per = v
	}
	if v, err := strconv.Atoi(r.URL.Query().Get("page")); err == nil {
		n = v
	}
	from, to := min((n-1)*per, len(list)), min(n*per, len(list))
	if to < len(list) {
		next := *r.URL
		q := next.Query()
		q.Set("page", strconv.Itoa(n+1))
		next.RawQuery = q.Encode()
		// A lying server would lead elsewhere; only the number may be taken.
		w.Header().Set("Link", fmt.Sprintf(`<https://evil.example%s>; rel="next"`, next.RequestURI()))
	}
	return list[from:to]
}

const repoPath = "/repos/octo/ops"

var (
	pullRE     = regexp.MustCompile(`^` + repoPath + `/pulls/(\d+)(/reviews|/commits)?$`)
	issueRE    = regexp.MustCompile(`^` + repoPath + `/issues/(\d+)$`)
	compareRE  = regexp.MustCompile(`^` + repoPath + `/compare/([0-9a-f]{40})\.\.\.([0-9a-f]{40})$`)
	pullsOfRE  = regexp.MustCompile(`^` + repoPath + `/commits/([0-9a-f]{40})/pulls$`)
	commitRE   = regexp.MustCompile(`^` + repoPath + `/commits/([0-9a-f]{40})$`)
	commentsRE = regexp.MustCompile(`^` + repoPath + `/issues/(\d+)/comments$`)
	commentRE  = regexp.MustCompile(`^` + repoPath + `/issues/comments/(\d+)(/reactions)?$`)
	statusRE   = regexp.MustCompile(`^/repos/octo/(ops|app)/statuses/([0-9a-f]{40})$`)
	mayRE      = regexp.MustCompile(`^` + repoPath + `/collaborators/([^/]+)/permission$`)
	memberRE   = regexp.MustCompile(`^/orgs/([^/]+)/teams/([^/]+)/memberships/([^/]+)$`)
	teamRE     = regexp.MustCompile(`^/orgs/([^/]+)/teams/([^/]+)$`)
)

// route carries out one request. Called with mu.
func (g *GitHub) route(r *http.Request, path string, body []byte) reply {
	if m := pullRE.FindStringSubmatch(path); m != nil {
		return g.pullRoute(r, m, body)
	}
	if out, ok := g.gateRoute(r, path, body); ok {
		return out
	}
	if m := commentsRE.FindStringSubmatch(path); m != nil {
		return g.commentsRoute(r, m, body)
	}
	if m := commentRE.FindStringSubmatch(path); m != nil {
		return g.commentRoute(r, m, body)
	}
	if m := statusRE.FindStringSubmatch(path); m != nil {
		return g.statusRoute(m[1], m[2], body)
	}
	if m := mayRE.FindStringSubmatch(path); m != nil {
		p := g.people[m[1]]
		if p == nil {
			return reply{http.StatusNotFound, nil}
		}
		return reply{http.StatusOK, obj{"permission": p.permission, "role_name": p.permission, "user": g.user(p.login)}}
	}
	if m := memberRE.FindStringSubmatch(path); m != nil {
		if !slices.Contains(g.teams[m[1]+"/"+m[2]], m[3]) {
			return reply{http.StatusNotFound, nil}
		}
		return reply{http.StatusOK, obj{"state": "active", "role": "member"}}
	}
	if m := teamRE.FindStringSubmatch(path); m != nil {
		if _, there := g.teams[m[1]+"/"+m[2]]; !there {
			return reply{http.StatusNotFound, nil}
		}
		return reply{http.StatusOK, obj{"slug": m[2], "name": m[2]}}
	}
	if g.app != nil {
		if out, ok := g.checkRoute(r, path, body); ok {
			return out
		}
		if out, ok := g.appRoute(path, body); ok {
			return out
		}
	}
	switch path {
	case "/repos/octo/app/pulls":
		return g.source.pullsRoute()
	case repoPath:
		return reply{http.StatusOK, obj{"id": g.id, "permissions": obj{"push": g.people[MaestroLogin].permission == "write", "pull": true, "admin": false}}}
	case "/user":
		self := g.user(MaestroLogin)
		self["user_view_type"] = "private"
		return reply{http.StatusOK, self}
	case repoPath + "/issues/comments":
		return g.commentsSince(r.URL.Query().Get("since"))
	case repoPath + "/activity":
		var out []obj
		for _, p := range slices.Backward(g.pushes) {
			if "refs/heads/"+p.branch == r.URL.Query().Get("ref") {
				out = append(out, obj{"after": p.after, "before": strings.Repeat("0", 40), "ref": "refs/heads/" + p.branch, "activity_type": "push", "actor": g.user(p.by)})
			}
		}
		return reply{http.StatusOK, orNone(out)}
	}
	g.t.Errorf("the fake does not know %s %s", r.Method, path)
	return reply{http.StatusNotFound, nil}
}

func orNone(list []obj) []obj {
	if list == nil {
		return []obj{}
	}
	return list
}

func (g *GitHub) pullRoute(r *http.Request, m []string, body []byte) reply {
	n, _ := strconv.Atoi(m[1])
	if n < 1 || n > len(g.pulls) {
		return reply{http.StatusNotFound, nil}
	}
	p := g.pulls[n-1]
	var out []obj
	switch m[2] {
	case "":
		if r.Method == http.MethodPatch {
			return g.editPull(p, body)
		}
		return reply{http.StatusOK, g.pull(p)}
	case "/reviews":
		for _, r := range g.reviews {
			if r.pull == n {
				out = append(out, obj{
					"id": r.id, "user": g.user(r.by), "body": r.body, "state": r.state, "commit_id": r.commit, "submitted_at": stamp(r.at),
				})
			}
		}
	case "/commits":
		base := g.Repo.Git(g.Repo.Bare, "merge-base", "refs/heads/"+p.base, p.head)
		out = g.commits(base + ".." + p.head)
	}
	return reply{http.StatusOK, orNone(out)}
}

// commits lists a range, the oldest first.
func (g *GitHub) commits(span ...string) []obj {
	var out []obj
	log := g.Repo.Git(g.Repo.Bare, append([]string{"log", "--reverse", "--format=%H%x00%ae%x00%ce%x00%B%x01"}, span...)...)
	for one := range strings.SplitSeq(log, "\x01") {
		f := strings.SplitN(strings.TrimSpace(one), "\x00", 4)
		if len(f) == 4 {
			out = append(out, obj{
				"sha": f[0], "author": g.byEmail(f[1]), "committer": g.byEmail(f[2]),
				"commit": obj{"message": f[3]},
			})
		}
	}
	return out
}

// byEmail is the account that GitHub resolves an address to, nobody for most.
func (g *GitHub) byEmail(email string) any {
	login, _, _ := strings.Cut(email, "@")
	if g.people[login] == nil {
		return nil
	}
	return g.user(login)
}

func (g *GitHub) user(login string) obj {
	p := g.people[login]
	if p == nil {
		g.t.Errorf("there is no account %s", login)
		return nil
	}
	kind := "User"
	if p.bot || g.app != nil && login == MaestroLogin {
		kind = "Bot"
	}
	return obj{"login": p.login, "id": p.id, "type": kind}
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func (g *GitHub) pull(p *githubPull) obj {
	return g.pullAt(p, g.id, g.Repo.Git(g.Repo.Bare, "rev-parse", "refs/heads/"+p.base))
}

// pullAt shows a pull request of the repository of that number, whose target is at base.
func (g *GitHub) pullAt(p *githubPull, repo int, base string) obj {
	state, merged, merge := "open", any(nil), any(strings.Repeat("e", 40))
	if p.closed {
		state = "closed"
	}
	if p.merge != "" {
		merged, merge = stamp(p.updated), p.merge
	}
	from := repo
	if p.fork {
		from = 8000
	}
	end := func(ref, sha string, repo int) obj {
		return obj{"ref": ref, "sha": sha, "label": ref, "repo": obj{"id": repo}}
	}
	return obj{
		"number": p.number, "title": p.title, "user": g.user(p.author), "state": state, "draft": p.draft, "merged_at": merged,
		"merge_commit_sha": merge, "updated_at": stamp(p.updated), "body": p.body, "head": end(p.branch, p.head, from),
		"base": end(p.base, base, repo),
	}
}

func (g *GitHub) commentOf(c *githubComment) obj {
	return obj{
		"id": c.id, "user": g.user(c.by), "body": c.body, "created_at": stamp(c.at), "updated_at": stamp(c.mod),
		"issue_url": fmt.Sprintf("https://api.github.com%s/issues/%d", repoPath, c.pull),
	}
}

func (g *GitHub) commentsSince(since string) reply {
	at, err := time.Parse(time.RFC3339, since)
	if err != nil {
		g.t.Errorf("since is %q: %v", since, err)
	}
	var out []obj
	for _, c := range g.comments {
		if !c.mod.Before(at) {
			out = append(out, g.commentOf(c))
		}
	}
	return reply{http.StatusOK, orNone(out)}
}

func (g *GitHub) commentsRoute(r *http.Request, m []string, body []byte) reply {
	n, _ := strconv.Atoi(m[1])
	if n < 1 || n > len(g.pulls) {
		return reply{http.StatusNotFound, nil}
	}
	if r.Method == http.MethodPost {
		var ask struct{ Body string }
		if err := json.Unmarshal(body, &ask); err != nil || len(ask.Body) > 65536 {
			g.t.Errorf("a comment of %d bytes: %v", len(ask.Body), err)
		}
		g.comment(MaestroLogin, n, ask.Body)
		return reply{http.StatusCreated, g.commentOf(g.comments[len(g.comments)-1])}
	}
	var out []obj
	for _, c := range g.comments {
		if c.pull == n && time.Since(c.at) >= g.lag {
			out = append(out, g.commentOf(c))
		}
	}
	return reply{http.StatusOK, orNone(out)}
}

func (g *GitHub) commentRoute(r *http.Request, m []string, body []byte) reply {
	id, _ := strconv.ParseInt(m[1], 10, 64)
	i := slices.IndexFunc(g.comments, func(c *githubComment) bool { return c.id == id })
	if i < 0 {
		return reply{http.StatusNotFound, nil}
	}
	c := g.comments[i]
	var ask struct{ Body, Content string }
	if len(body) > 0 {
		if err := json.Unmarshal(body, &ask); err != nil {
			g.t.Error(err)
		}
	}
	switch {
	case m[2] != "":
		g.reactions = append(g.reactions, fmt.Sprintf("%d %s", id, ask.Content))
		return reply{http.StatusCreated, obj{"id": 1, "user": g.user(MaestroLogin), "content": ask.Content}}
	case c.by != MaestroLogin:
		g.t.Errorf("%s of a comment by %s", r.Method, c.by)
		return reply{http.StatusForbidden, nil}
	case r.Method == http.MethodDelete:
		g.comments = slices.Delete(g.comments, i, i+1)
		return reply{http.StatusNoContent, nil}
	}
	c.body, c.mod = ask.Body, time.Now().UTC()
	return reply{http.StatusOK, g.commentOf(c)}
}

func (g *GitHub) statusRoute(repo, commit string, body []byte) reply {
	var ask struct {
		State, Context, Description string
		TargetURL                   string `json:"target_url"`
	}
	if err := json.Unmarshal(body, &ask); err != nil {
		g.t.Error(err)
	}
	g.statuses = append(g.statuses, pipeline.Status{
		Repo: repo, Commit: pipeline.CommitID(commit), Context: ask.Context, State: ask.State, Description: ask.Description, URL: ask.TargetURL,
	})
	return reply{http.StatusCreated, obj{"state": ask.State, "context": ask.Context, "description": ask.Description, "target_url": ask.TargetURL}}
}
