package testkit_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

const githubToken = "ghs_canary5d2f8b1c7e"

// githubAPI is GitHub's own description of its API, trimmed to what Maestro calls.
var githubAPI = sync.OnceValues(func() (routers.Router, error) {
	f, err := os.Open(filepath.Join("..", "..", "reconciler", "internal", "forge", "testdata", "github-openapi-trimmed.json.gz"))
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

// fakeGitHub takes statuses of octo/ops and fails the test for a request that is
// not as GitHub describes it.
type fakeGitHub struct {
	*httptest.Server
	t      testing.TB
	router routers.Router

	mu      sync.Mutex
	taken   []pipeline.Status
	refused int
	// refuse answers instead of the fake, when it is set and returns true.
	refuse func(http.ResponseWriter, pipeline.Status) bool
}

func newFakeGitHub(t testing.TB) *fakeGitHub {
	t.Helper()
	router, err := githubAPI()
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeGitHub{t: t, router: router}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// serve starts a server that reports to the fake.
func (f *fakeGitHub) serve(t *testing.T, repo *testkit.Repo) *testkit.Server {
	t.Helper()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(githubToken), 0o600); err != nil {
		t.Fatal(err)
	}
	return testkit.Serve(t, repo.Bare, nil, "--forge", "github", "--github-repo", "octo/ops",
		"--github-api", f.URL+"/api/v3/", "--github-token-file", token, "--public-url", "https://maestro.example")
}

func (f *fakeGitHub) say(refuse func(http.ResponseWriter, pipeline.Status) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = refuse
}

func (f *fakeGitHub) refusals() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refused
}

// states returns what was taken for a commit and context, oldest first.
func (f *fakeGitHub) states(commit pipeline.CommitID, context string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, s := range f.taken {
		if s.Commit == commit && s.Context == context {
			out = append(out, s.State)
		}
	}
	return out
}

func (f *fakeGitHub) await(commit pipeline.CommitID, context, state string) {
	f.t.Helper()
	testkit.Eventually(f.t, fmt.Sprintf("GitHub has %s %s", context, state), func() (bool, string) {
		got := f.states(commit, context)
		return len(got) > 0 && got[len(got)-1] == state, fmt.Sprint(got)
	})
}

func (f *fakeGitHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the reconciler was stopped
	}
	f.check(r, body)
	var ask struct {
		State, Context, Description string
		TargetURL                   string `json:"target_url"`
	}
	commit, ok := strings.CutPrefix(r.URL.Path, "/api/v3/repos/octo/ops/statuses/")
	if !ok || r.Method != http.MethodPost || json.Unmarshal(body, &ask) != nil {
		f.t.Errorf("%s %s %s", r.Method, r.URL, body)
		http.NotFound(w, r)
		return
	}
	s := pipeline.Status{Commit: pipeline.CommitID(commit), Context: ask.Context, State: ask.State, Description: ask.Description, URL: ask.TargetURL}
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if f.refuse != nil && f.refuse(w, s) {
		f.refused++
		return
	}
	f.taken = append(f.taken, s)
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"url": f.URL, "avatar_url": nil, "id": len(f.taken), "node_id": "n", "creator": nil,
		"created_at": "2024-01-02T03:04:05Z", "updated_at": "2024-01-02T03:04:05Z",
		"state": s.State, "context": s.Context, "description": s.Description, "target_url": s.URL,
	})
}

// check holds a request to the description.
func (f *fakeGitHub) check(r *http.Request, body []byte) {
	if got := r.Header.Get("Authorization"); got != "Bearer "+githubToken {
		f.t.Errorf("authorization is %q", got)
	}
	ask := r.Clone(r.Context())
	ask.URL.Path = strings.TrimPrefix(ask.URL.Path, "/api/v3")
	ask.Body = io.NopCloser(bytes.NewReader(body))
	route, params, err := f.router.FindRoute(ask)
	if err != nil {
		f.t.Errorf("%s %s is not described: %v", r.Method, r.URL, err)
		return
	}
	err = openapi3filter.ValidateRequest(r.Context(), &openapi3filter.RequestValidationInput{
		Request: ask, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, MultiError: true},
	})
	if err != nil {
		f.t.Errorf("%s %s %s is not as described: %v", r.Method, r.URL, body, err)
	}
}

func TestStatusesReachGitHubInOrder(t *testing.T) {
	real(t)
	f, repo := newFakeGitHub(t), testkit.NewRepo(t)
	s := f.serve(t, repo)
	a := s.StartAgent(t, "one", "default", "")
	gate := filepath.Join(t.TempDir(), "gate")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("bad", "exit 3", ""),
		testkit.Shell("good", fmt.Sprintf("while [ ! -e %s ]; do sleep 0.1; done", gate), "")))
	f.await(commit, "maestro/run/good", "pending")
	f.await(commit, "maestro/run/bad", "failure")
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.await(commit, "maestro/run/good", "success")
	f.await(commit, "maestro", "failure")
	for _, context := range []string{"maestro/run/good", "maestro/run/bad"} {
		got := f.states(commit, context)
		if i := slices.IndexFunc(got, func(s string) bool { return s != "pending" }); slices.Contains(got[i:], "pending") {
			t.Errorf("%s went %v", context, got)
		}
	}
	if notes := repo.Statuses(commit); notes != nil {
		t.Errorf("notes were written besides: %v", notes)
	}
	f.mu.Lock()
	for _, got := range f.taken {
		if !strings.HasPrefix(got.URL, "https://maestro.example/") {
			t.Errorf("%s leads to %s", got.Context, got.URL)
		}
	}
	f.mu.Unlock()
	s.CheckNoLeak(t, githubToken, a)
}

func TestBadDaysOfGitHubAreSurvived(t *testing.T) {
	real(t)
	for name, refuse := range map[string]func(http.ResponseWriter){
		"bad gateway": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write([]byte("<html>unicorn</html>"))
		},
		"rate limit": func(w http.ResponseWriter) {
			w.Header().Set("X-RateLimit-Limit", "5000")
			w.Header().Set("X-RateLimit-Remaining", "0")
			w.Header().Set("X-RateLimit-Reset", strconv.FormatInt(time.Now().Add(2*time.Second).Unix(), 10))
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(`{"message": "API rate limit exceeded"}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, repo := newFakeGitHub(t), testkit.NewRepo(t)
			f.say(func(w http.ResponseWriter, _ pipeline.Status) bool { refuse(w); return true })
			s := f.serve(t, repo)
			s.StartAgent(t, "one", "default", "")
			commit := repo.Push("main", testkit.Files(testkit.Ops(), good()))
			if r := s.AwaitRuns(t, commit, 1)[0]; r.State != pipeline.Success {
				t.Errorf("the run is %s: %s", r.State, r.Reason)
			}
			testkit.Eventually(t, "a few refusals", func() (bool, string) {
				n := f.refusals()
				return n >= 3, fmt.Sprint(n)
			})
			f.say(nil)
			for _, context := range []string{"maestro", "maestro/run/good"} {
				f.await(commit, context, "success")
				if got := f.states(commit, context); !slices.Equal(got, []string{"success"}) {
					t.Errorf("%s went %v, want the last state only", context, got)
				}
			}
			// Rows back off, and none is sent in a tight loop.
			if n := f.refusals(); n > 40 {
				t.Errorf("%d requests were made in vain", n)
			}
		})
	}
}
