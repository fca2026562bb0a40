package hooks_test

import (
	"compress/gzip"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/maestro-cd/maestro/reconciler/internal/hooks"
)

const githubSecret = "a secret of GitHub's webhook"

type hints struct {
	*hooks.GitHub
	mu  sync.Mutex
	got []hooks.Hint
}

func newHints(repository string) *hints {
	h := &hints{}
	h.GitHub = hooks.NewGitHub(hooks.GitHubConfig{
		Secret: func() (string, error) { return githubSecret, nil }, Repository: repository, Log: slog.New(slog.DiscardHandler),
		Elsewhere: func(name string) bool { return name == "octo/source" },
		Hint: func(one hooks.Hint) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.got = append(h.got, one)
		},
	})
	return h
}

func signedByGitHub(body string) string {
	mac := hmac.New(sha256.New, []byte(githubSecret))
	mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// post sends a body; signatures are sent each in a header of its own.
func (h *hints) post(event, delivery, body string, signatures ...string) int {
	r := httptest.NewRequest(http.MethodPost, hooks.GitHubPath, strings.NewReader(body))
	r.Header.Set("X-GitHub-Event", event)
	r.Header.Set("X-GitHub-Delivery", delivery)
	for _, s := range signatures {
		r.Header.Add("X-Hub-Signature-256", s)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code
}

// TestRealPayloadsAreHints delivers what GitHub has sent: @octokit/webhooks-examples
// 7.6.1, MIT, the events that matter whole and one of each other.
func TestRealPayloadsAreHints(t *testing.T) {
	t.Parallel()
	f, err := os.Open("testdata/octokit-webhooks-examples-7.6.1.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var examples []struct {
		Event   string
		Payload json.RawMessage
	}
	if err := json.NewDecoder(z).Decode(&examples); err != nil || len(examples) < 100 {
		t.Fatal(len(examples), err)
	}
	h := newHints("codertocat/hello-world")
	pulls := map[string]int{}
	for i, e := range examples {
		before := len(h.got)
		body := string(e.Payload)
		if code := h.post(e.Event, fmt.Sprint("d-", i), body, signedByGitHub(body)); code != http.StatusAccepted {
			t.Errorf("%s is answered with %d", e.Event, code)
		}
		if len(h.got) > before && h.got[before].Pull > 0 {
			pulls[e.Event]++
		}
	}
	for _, event := range []string{"pull_request", "pull_request_review", "issue_comment"} {
		if pulls[event] == 0 {
			t.Errorf("no %s tells of a pull request: %v", event, pulls)
		}
	}
	if n := len(h.got); n < 30 {
		t.Errorf("%d hints", n)
	}
}

func TestForgedPostsOfGitHubAreNoHints(t *testing.T) {
	t.Parallel()
	h := newHints("octo/ops")
	body := `{"repository": {"full_name": "octo/ops"}, "pull_request": {"number": 7}}`
	good := signedByGitHub(body)
	for name, s := range map[string][]string{
		"missing": {}, "empty": {""}, "prefix": {"sha256="}, "sha1": {"sha1=" + good[7:]}, "cut": {good[:len(good)-2]},
		"upper": {"sha256=" + strings.ToUpper(good[7:])}, "bare": {good[7:]}, "twice": {good, good}, "other": {signedByGitHub(body + " ")},
	} {
		if code := h.post("pull_request", name, body, s...); code != http.StatusUnauthorized {
			t.Errorf("%s: %d", name, code)
		}
	}
	if code := h.post("pull_request", "altered", strings.Replace(body, "7", "8", 1), good); code != http.StatusUnauthorized {
		t.Errorf("altered: %d", code)
	}
	if len(h.got) != 0 {
		t.Errorf("%+v", h.got)
	}
	for range 10_000 {
		h.post("pull_request", "the-same", body, good)
	}
	if len(h.got) != 1 || h.got[0] != (hooks.Hint{Event: "pull_request", Pull: 7}) {
		t.Errorf("%d hints", len(h.got))
	}
	for i := range 1000 { // the name of a delivery is not signed
		h.post("pull_request", fmt.Sprint("another-", i), body, good)
	}
	if len(h.got) != 1 {
		t.Errorf("%d hints of one post under many names", len(h.got))
	}
	other := `{"repository": {"full_name": "evil/ops"}}`
	if code := h.post("push", "x", other, signedByGitHub(other)); code != http.StatusAccepted || len(h.got) != 1 {
		t.Errorf("of another repository: %d, %d hints", code, len(h.got))
	}
	for name, told := range map[string]bool{"octo/source": true, "evil/ops": false, "": false} {
		body := fmt.Sprintf(`{"repository": {"full_name": %q}}`, name)
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, hooks.GitHubPath, strings.NewReader(body))
		r.Header.Set("X-Hub-Signature-256", signedByGitHub(body))
		h.ServeHTTP(w, r)
		if w.Code != http.StatusAccepted || strings.Contains(w.Body.String(), "true") != told || len(h.got) != 1 {
			t.Errorf("of %q: %d %s, %d hints", name, w.Code, w.Body, len(h.got))
		}
	}
}

func TestMalformedPostsOfGitHubDoNotHurt(t *testing.T) {
	t.Parallel()
	h := newHints("octo/ops")
	for body, want := range map[string]int{
		`null`: 400, `[]`: 400, `{}`: 202, ``: 400, `{"repository":null}`: 202, `{"repository":"x"}`: 400, `payload=%7B%7D`: 400,
		strings.Repeat("[", 100_000): 400, `{"a":` + strings.Repeat("[", 100_000): 400, "{\"a\":\"\xff\"}": 202,
		`{"repository":{"full_name":"octo/ops"},"issue":{"number":-5}}`: 202, `{"issue":{"number":1e99}}`: 400, `{"a":1,"a":2}`: 202,
	} {
		if code := h.post("push", "", body, signedByGitHub(body)); code != want {
			t.Errorf("%.40q: %d, want %d", body, code, want)
		}
	}
	for _, one := range h.got {
		if one.Pull < 0 {
			t.Errorf("%+v", one)
		}
	}
	big := strings.Repeat(" ", 26<<20)
	if code := h.post("push", "", big, signedByGitHub(big)); code != http.StatusRequestEntityTooLarge {
		t.Errorf("26 MiB: %d", code)
	}
	r := httptest.NewRequest(http.MethodGet, hooks.GitHubPath, nil)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", w.Code)
	}
}

func FuzzGitHubPost(f *testing.F) {
	h := newHints("octo/ops")
	f.Add(`{"repository":{"full_name":"octo/ops"},"pull_request":{"number":1}}`)
	f.Add(`{"repository":[]}`)
	f.Fuzz(func(t *testing.T, body string) {
		if code := h.post("push", "", body, signedByGitHub(body)); code != http.StatusAccepted && code != http.StatusBadRequest {
			t.Errorf("%q: %d", body, code)
		}
	})
}

func TestTheButtonOfACheckRunIsOfOurAppAlone(t *testing.T) {
	t.Parallel()
	const head = "1111111111111111111111111111111111111111"
	body := func(app int, action string) string {
		return fmt.Sprintf(`{"action":%q,"repository":{"full_name":"octo/ops"},"check_run":{"head_sha":%q,"app":{"id":%d}},"sender":{"id":5,"login":"ana","type":"User"}}`, action, head, app)
	}
	for name, c := range map[string]struct {
		app         int64
		event, body string
		want        bool
	}{
		"pressed":           {42, "check_run", body(42, "rerequested"), true},
		"of another App":    {42, "check_run", body(43, "rerequested"), false},
		"without an App":    {0, "check_run", body(0, "rerequested"), false},
		"another action":    {42, "check_run", body(42, "completed"), false},
		"of another event":  {42, "issue_comment", body(42, "rerequested"), false},
		"of a whole bundle": {42, "check_suite", body(42, "rerequested"), false},
	} {
		h := newHints("octo/ops")
		for _, delivery := range []string{"one", "two"} { // of a start each
			h.GitHub = hooks.NewGitHub(hooks.GitHubConfig{
				Secret: func() (string, error) { return githubSecret, nil }, Repository: "octo/ops", App: c.app, Log: slog.New(slog.DiscardHandler),
				Hint: func(one hooks.Hint) { h.got = append(h.got, one) },
			})
			if code := h.post(c.event, delivery, c.body, signedByGitHub(c.body)); code != http.StatusAccepted || len(h.got) == 0 {
				t.Fatalf("%s: %d, %v", name, code, h.got)
			}
		}
		first, second := h.got[0].Rerun, h.got[1].Rerun
		if (first != nil) != c.want {
			t.Errorf("%s: %+v", name, first)
		} else if c.want && (string(first.Head) != head || first.By.ID != 5 || first.By.Login != "ana" || first.By.Bot || *first != *second) {
			t.Errorf("%s: %+v, and posted again as another delivery %+v", name, first, second)
		}
	}
}

func TestPostsAboutAnotherRepositoryOfTheSameNameAreRefused(t *testing.T) {
	t.Parallel()
	known := int64(0)
	h := newHints("octo/ops")
	h.GitHub = hooks.NewGitHub(hooks.GitHubConfig{
		Secret: func() (string, error) { return githubSecret, nil }, Repository: "octo/ops", ID: func() int64 { return known }, Log: slog.New(slog.DiscardHandler),
		Hint:      func(one hooks.Hint) { h.got = append(h.got, one) },
		Elsewhere: func(string) bool { return true },
	})
	for i, c := range []struct {
		known int64
		body  string
		want  int
	}{
		{0, `{"repository":{"id":9,"full_name":"octo/ops"}}`, http.StatusAccepted},
		{7, `{"repository":{"id":7,"full_name":"Octo/Ops"}}`, http.StatusAccepted},
		{7, `{"repository":{"id":9,"full_name":"octo/OPS"}}`, http.StatusForbidden},
		{7, `{"repository":{"full_name":"octo/ops"}}`, http.StatusForbidden},
		{7, `{"repository":{"id":9,"full_name":"octo/source"}}`, http.StatusAccepted},
	} {
		known = c.known
		if code := h.post("push", fmt.Sprint("d", i), c.body, signedByGitHub(c.body)); code != c.want {
			t.Errorf("%d knowing %d: %d, want %d", i, c.known, code, c.want)
		}
	}
	if len(h.got) != 2 {
		t.Errorf("%v", h.got)
	}
}
