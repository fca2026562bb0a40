package forge_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
)

const (
	token  = "ghs_t0ken"
	commit = pipeline.CommitID("6dcb09b5b57875f334f61aebed695e2e4193db5e")
)

// description is GitHub's own description of its API, trimmed to what Maestro
// calls.
var description = sync.OnceValues(func() (routers.Router, error) {
	f, err := os.Open("testdata/github-openapi-trimmed.json.gz")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(z)
	if err != nil {
		return nil, err
	}
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return nil, err
	}
	doc.Servers = nil
	return gorillamux.NewRouter(doc)
})

// described sends requests on and fails the test when one, or the answer to it,
// is not as described.
type described struct {
	t    testing.TB
	base string
	next http.RoundTripper
	// lies says that this server is meant to answer off the description.
	lies bool
}

func (d described) RoundTrip(req *http.Request) (*http.Response, error) {
	router, err := description()
	if err != nil {
		d.t.Error(err)
		return nil, err
	}
	body := []byte(nil)
	if req.Body != nil {
		if body, err = io.ReadAll(req.Body); err != nil {
			return nil, err
		}
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	check := req.Clone(req.Context())
	check.Body = io.NopCloser(bytes.NewReader(body))
	check.URL.Path = strings.TrimPrefix(check.URL.Path, strings.TrimPrefix(d.base, "http://"+check.URL.Host))
	route, params, err := router.FindRoute(check)
	if err != nil {
		d.t.Errorf("%s %s is not described: %v", req.Method, check.URL.Path, err)
		return nil, err
	}
	in := &openapi3filter.RequestValidationInput{
		Request: check, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, MultiError: true, IncludeResponseStatus: true},
	}
	if err := openapi3filter.ValidateRequest(req.Context(), in); err != nil {
		d.t.Errorf("request %s %s is not as described: %v", req.Method, check.URL.Path, err)
	}
	res, err := d.next.RoundTrip(req)
	if err != nil || d.lies {
		return res, err
	}
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	_ = res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(answer))
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: res.StatusCode, Header: res.Header, Options: in.Options}
	out.SetBodyBytes(answer)
	if err := openapi3filter.ValidateResponse(req.Context(), out); err != nil {
		d.t.Errorf("answer to %s %s is not as described: %v", req.Method, check.URL.Path, err)
	}
	return res, err
}

// fakeGitHub keeps statuses of one repository.
type fakeGitHub struct {
	*httptest.Server
	t testing.TB

	mu     sync.Mutex
	posts  []map[string]any
	answer func(http.ResponseWriter, *http.Request) bool // nil, or returns false to let the fake answer
}

func newFake(t testing.TB) *fakeGitHub {
	f := &fakeGitHub{t: t}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeGitHub) say(answer func(http.ResponseWriter, *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

func (f *fakeGitHub) posted() []map[string]any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.posts)
}

func (f *fakeGitHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answer != nil && f.answer(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	path := strings.TrimPrefix(r.URL.Path, "/api/v3")
	switch {
	case r.Header.Get("Authorization") != "Bearer "+token:
		problem(w, http.StatusUnauthorized, "Bad credentials")
	case r.Method == http.MethodPost && path == "/repos/octo/ops/statuses/"+string(commit):
		var s map[string]any
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			f.t.Error(err)
		}
		f.posts = append(f.posts, s)
		w.Header().Set("Location", f.URL+path)
		w.WriteHeader(http.StatusCreated)
		f.write(w, f.status(len(f.posts), s))
	case r.Method == http.MethodGet && path == "/repos/octo/ops/commits/"+string(commit)+"/status":
		f.combined(w, r)
	default:
		problem(w, http.StatusNotFound, "Not Found")
	}
}

func (f *fakeGitHub) write(w io.Writer, v any) {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		f.t.Error(err)
	}
}

func problem(w http.ResponseWriter, code int, message string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": message, "documentation_url": "https://docs.github.com/rest", "status": fmt.Sprint(code)})
}

func (f *fakeGitHub) status(id int, s map[string]any) map[string]any {
	at := "2024-01-02T03:04:05Z"
	return map[string]any{
		"url": f.URL + "/s", "avatar_url": nil, "id": id, "node_id": "n", "created_at": at, "updated_at": at, "creator": nil,
		"state": s["state"], "context": s["context"], "description": s["description"], "target_url": s["target_url"],
	}
}

// combined shows the latest of each context, two on a page.
func (f *fakeGitHub) combined(w http.ResponseWriter, r *http.Request) {
	latest := map[string]map[string]any{}
	var order []string
	for i, s := range f.posts {
		c := s["context"].(string)
		if latest[c] == nil {
			order = append(order, c)
		}
		latest[c] = f.status(i+1, s)
		delete(latest[c], "creator")
	}
	page := 1
	_, _ = fmt.Sscan(r.URL.Query().Get("page"), &page)
	list := []any{}
	for i := (page - 1) * 2; i < min(page*2, len(order)); i++ {
		list = append(list, latest[order[i]])
	}
	if page*2 < len(order) {
		// A lying server would lead elsewhere; only the number may be taken.
		w.Header().Set("Link", fmt.Sprintf(`<https://evil.example/x?page=%d>; rel="next"`, page+1))
	}
	api := "https://api.github.com/repos/octo/ops"
	repo := map[string]any{
		"id": 1, "node_id": "n", "name": "ops", "full_name": "octo/ops", "private": false, "description": nil, "fork": false, "html_url": api, "url": api,
		"owner": map[string]any{"login": "octo", "id": 1, "node_id": "n", "type": "User", "site_admin": false, "gravatar_id": ""},
	}
	for _, k := range []string{"avatar_url", "events_url", "followers_url", "following_url", "gists_url", "html_url", "organizations_url", "received_events_url", "repos_url", "starred_url", "subscriptions_url", "url"} {
		repo["owner"].(map[string]any)[k] = api
	}
	for _, k := range []string{"archive", "assignees", "blobs", "branches", "collaborators", "comments", "commits", "compare", "contents", "contributors", "deployments", "downloads", "events", "forks", "git_commits", "git_refs", "git_tags", "hooks", "issue_comment", "issue_events", "issues", "keys", "labels", "languages", "merges", "milestones", "notifications", "pulls", "releases", "stargazers", "statuses", "subscribers", "subscription", "tags", "teams", "trees"} {
		repo[k+"_url"] = api
	}
	f.write(w, map[string]any{"state": "pending", "statuses": list, "sha": commit, "total_count": len(order), "repository": repo, "commit_url": api, "url": api})
}

func github(t testing.TB, f *fakeGitHub, lies bool, log *slog.Logger) *forge.GitHub {
	t.Helper()
	g, err := forge.NewGitHub(forge.GitHubConfig{
		Owner: "octo", Repo: "ops", BaseURL: f.URL + "/api/v3", Token: func() string { return token }, Log: log,
		HTTP: described{t: t, base: f.URL + "/api/v3", next: http.DefaultTransport, lies: lies},
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func status(context, state string) pipeline.Status {
	return pipeline.Status{Commit: commit, Context: context, State: state, Description: "what and why", URL: "https://ci.example/c/1"}
}

func TestStatusesArePostedAndReadBackAsDescribed(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	g := github(t, f, false, nil)
	var want []pipeline.Status
	for i, state := range []string{"pending", "success", "failure", "error", "pending"} {
		s := status(fmt.Sprint("maestro/run/c", i), state)
		if i == 3 {
			s.URL, s.Description = "", ""
		}
		want = append(want, s)
	}
	posts := append([]pipeline.Status{status("maestro/run/c0", "failure")}, want...)
	for _, s := range posts {
		if err := g.Post(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	got, err := g.Statuses(t.Context(), commit)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("statuses differ (-want +got):\n%s", diff)
	}
}

func TestTextsAreCutToWhatGitHubTakes(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	g := github(t, f, false, nil)
	for _, c := range []struct{ text, want string }{
		{strings.Repeat("ü", 140), strings.Repeat("ü", 140)},
		{strings.Repeat("ü", 141), strings.Repeat("ü", 139) + "…"},
		{"two\nlines\x1b[31m \u202ered\xff", "two lines[31m red\uFFFD"},
	} {
		s := status("maestro", "success")
		s.Description = c.text
		if err := g.Post(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		posts := f.posted()
		if got := posts[len(posts)-1]["description"]; got != c.want {
			t.Errorf("description = %q, want %q", got, c.want)
		}
	}
	seen := map[string]bool{}
	for _, end := range []string{"x", "y"} {
		if err := g.Post(t.Context(), status("maestro/run/"+strings.Repeat("é", 300)+end, "success")); err != nil {
			t.Fatal(err)
		}
		posts := f.posted()
		c := posts[len(posts)-1]["context"].(string)
		if len(c) > 255 || !utf8.ValidString(c) || seen[c] {
			t.Errorf("context %q has %d bytes, or is that of another", c, len(c))
		}
		seen[c] = true
	}
}

func TestStatusThatMakesNoSenseIsNotSent(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	g := github(t, f, false, nil)
	for name, change := range map[string]func(*pipeline.Status){
		"state": func(s *pipeline.Status) { s.State = "running" }, "context": func(s *pipeline.Status) { s.Context = "" },
		"link": func(s *pipeline.Status) { s.URL = "javascript:alert(1)" }, "link login": func(s *pipeline.Status) { s.URL = "https://u:p@h/" },
		"commit": func(s *pipeline.Status) { s.Commit = "../../user" }, "short commit": func(s *pipeline.Status) { s.Commit = commit[:12] },
	} {
		s := status("maestro", "success")
		change(&s)
		if err := g.Post(t.Context(), s); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: Post = %v, want invalid", name, err)
		}
	}
	if n := len(f.posted()); n != 0 {
		t.Errorf("%d were sent", n)
	}
}

func TestRefusalsSayWhatToGrant(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		answer func(http.ResponseWriter)
		kind   fault.Kind
		says   string
	}{
		{"401", func(w http.ResponseWriter) { problem(w, 401, "Bad credentials "+token) }, fault.Invalid, "token"},
		{"403", func(w http.ResponseWriter) { problem(w, 403, "Resource not accessible by integration") }, fault.Invalid, "write access to commit statuses"},
		{"404", func(w http.ResponseWriter) { problem(w, 404, "Not Found") }, fault.Invalid, "check owner and name"},
		{"422", func(w http.ResponseWriter) { problem(w, 422, "No commit found for SHA") }, fault.Invalid, "No commit found"},
		{"500", func(w http.ResponseWriter) { w.WriteHeader(500) }, fault.Unavailable, "500"},
		{"502 page", func(w http.ResponseWriter) { page(w, 502, "text/html", "<html>unicorn") }, fault.Unavailable, "502"},
		{"200 page", func(w http.ResponseWriter) { page(w, 201, "text/html", "<html>log in") }, fault.Unavailable, "login page"},
		{"302 page", func(w http.ResponseWriter) {
			w.Header().Set("Location", "/login")
			page(w, 302, "text/html", "<html>log in")
		}, fault.Unavailable, "login page"},
		{"404 page", func(w http.ResponseWriter) { page(w, 404, "text/html", "<html>nothing here") }, fault.Unavailable, "not the address of the API"},
		{"no type", func(w http.ResponseWriter) { page(w, 201, "", "{}") }, fault.Unavailable, "not JSON"},
		{"cut short", func(w http.ResponseWriter) { page(w, 201, "application/json", `{"state": "succ`) }, fault.Unavailable, ""},
		{"another status", func(w http.ResponseWriter) {
			page(w, 201, "application/json", `{"state": "failure", "context": "maestro"}`)
		}, fault.Unavailable, "another status"},
		{"endless", func(w http.ResponseWriter) { page(w, 201, "application/json", `{"x":"`+strings.Repeat("x", 9<<20)) }, fault.Unavailable, "too large"},
		{"accepted", func(w http.ResponseWriter) { page(w, 202, "application/json", `{}`) }, fault.Unavailable, ""},
		{"closed", func(w http.ResponseWriter) { panic(http.ErrAbortHandler) }, fault.Unavailable, "network"},
	} {
		var log bytes.Buffer
		f := newFake(t)
		f.say(func(w http.ResponseWriter, _ *http.Request) bool { c.answer(w); return true })
		g := github(t, f, true, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
		err := g.Post(t.Context(), status("maestro", "success"))
		if fault.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: Post = %v (%s), want %s that says %q", c.name, err, fault.KindOf(err), c.kind, c.says)
		}
		if at, ok := forge.NextAt(err); ok {
			t.Errorf("%s: carries a time, %v", c.name, at)
		}
		if strings.Contains(fmt.Sprint(err)+log.String(), token) {
			t.Errorf("%s: the token shows: %v %s", c.name, err, log.String())
		}
	}
}

func page(w http.ResponseWriter, code int, kind, body string) {
	w.Header().Set("Content-Type", kind)
	w.WriteHeader(code)
	_, _ = io.WriteString(w, body)
}

func TestRateLimitsAreHonouredToTheSecond(t *testing.T) {
	t.Parallel()
	reset := time.Now().Add(37 * time.Minute).Truncate(time.Second)
	for _, c := range []struct {
		name   string
		answer func(http.ResponseWriter)
		want   time.Time
	}{
		{"primary", func(w http.ResponseWriter) {
			w.Header().Set("X-RateLimit-Remaining", "0")
			w.Header().Set("X-RateLimit-Reset", fmt.Sprint(reset.Unix()))
			problem(w, 403, "API rate limit exceeded")
		}, reset},
		{"primary as 429", func(w http.ResponseWriter) {
			w.Header().Set("X-RateLimit-Remaining", "0")
			w.Header().Set("X-RateLimit-Reset", fmt.Sprint(reset.Unix()))
			problem(w, 429, "API rate limit exceeded")
		}, reset},
		{"retry after", func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "77")
			problem(w, 429, "slow down")
		}, time.Now().Add(77 * time.Second)},
		{"retry after, secondary", func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "77")
			page(w, 403, "application/json", `{"message":"You have exceeded a secondary rate limit","documentation_url":"https://docs.github.com/x#secondary-rate-limits"}`)
		}, time.Now().Add(77 * time.Second)},
		{"secondary without a time", func(w http.ResponseWriter) {
			page(w, 403, "application/json", `{"message":"You have exceeded a secondary rate limit","documentation_url":"https://docs.github.com/x#secondary-rate-limits"}`)
		}, time.Now().Add(time.Minute)},
		{"maintenance", func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", reset.UTC().Format(http.TimeFormat))
			w.WriteHeader(503)
		}, reset},
	} {
		f := newFake(t)
		f.say(func(w http.ResponseWriter, _ *http.Request) bool { c.answer(w); return true })
		err := github(t, f, true, nil).Post(t.Context(), status("maestro", "success"))
		at, ok := forge.NextAt(err)
		if !fault.Is(err, fault.Unavailable) || !ok || at.Sub(c.want).Abs() > 5*time.Second || c.want.Equal(reset) && !at.Equal(reset) {
			t.Errorf("%s: Post = %v, until %v; want unavailable until %v", c.name, err, at, c.want)
		}
	}
}

func TestTokenNeverLeavesForAnotherHost(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var asked []string
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.URL.Path+" "+r.Header.Get("Authorization"))
	}))
	defer other.Close()
	for _, code := range []int{301, 302, 303, 307, 308} {
		f := newFake(t)
		for _, to := range []string{other.URL, f.URL} { // not even on the same host: a POST might become a GET
			f.say(func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("Location", to+"/elsewhere")
				w.WriteHeader(code)
				return true
			})
			if err := github(t, f, true, nil).Post(t.Context(), status("maestro", "success")); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "moved") {
				t.Errorf("%d: Post = %v, want invalid", code, err)
			}
		}
	}
	if len(asked) > 0 {
		t.Errorf("the other host was asked: %q", asked)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestLaneCarriesNothingToAnotherAddress(t *testing.T) {
	t.Parallel()
	base := &url.URL{Scheme: "https", Host: "api.example.org", Path: "/api/v3/"}
	lane := forge.NewLane(base, token, roundTrip(func(r *http.Request) (*http.Response, error) {
		t.Errorf("%s was asked", r.URL)
		return nil, errors.New("asked")
	}))
	for _, to := range []string{
		"http://api.example.org/api/v3/x", "https://evil.example/api/v3/x", "https://api.example.org:444/api/v3/x", "https://api.example.org/x",
		"https://api.example.org.evil.example/api/v3/x",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, to, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lane.RoundTrip(req); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want invalid", to, err)
		}
	}
}

func TestCancelledPostIsUnavailable(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.say(func(http.ResponseWriter, *http.Request) bool { cancel(); return true })
	if err := github(t, f, true, nil).Post(ctx, status("maestro", "success")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Post = %v, want unavailable", err)
	}
}

func TestBadGitHubConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]forge.GitHubConfig{
		"plain http": {Owner: "o", Repo: "r", BaseURL: "http://github.example.org/api/v3"},
		"login":      {Owner: "o", Repo: "r", BaseURL: "https://u:hunter2@github.example.org/api/v3"},
		"query":      {Owner: "o", Repo: "r", BaseURL: "https://github.example.org/?x"},
		"no host":    {Owner: "o", Repo: "r", BaseURL: "https:///x"},
		"no owner":   {Repo: "r"}, "no repo": {Owner: "o"}, "dots": {Owner: "o", Repo: ".."}, "slash": {Owner: "o/p", Repo: "r"}, "query in repo": {Owner: "o", Repo: "r?x"},
	} {
		if _, err := forge.NewGitHub(cfg); !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: NewGitHub = %v, want invalid", name, err)
		}
	}
	for _, repo := range []string{"ops", ".github", "a_b.c-d"} {
		if _, err := forge.NewGitHub(forge.GitHubConfig{Owner: "octo", Repo: repo}); err != nil {
			t.Errorf("NewGitHub(%s) = %v", repo, err)
		}
	}
}
