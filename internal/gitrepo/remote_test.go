package gitrepo_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// server is git's own HTTP server with basic auth in front.
type server struct {
	*httptest.Server
	requests atomic.Int64
	// answer, when set, is asked instead of git; it returns false to let git answer.
	answer atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
}

const (
	user   = "ana"
	secret = "s3cret-t0ken"
)

func serve(t testing.TB, bare git) *server {
	t.Helper()
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	bare.run("config", "http.receivepack", "true")
	backend := &cgi.Handler{
		Path:   filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Stderr: io.Discard,
		Env:    []string{"GIT_PROJECT_ROOT=" + filepath.Dir(bare.dir), "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + bare.dir},
	}
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		if f := s.answer.Load(); f != nil && (*f)(w, r) {
			return
		}
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != secret {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "who are you, "+p+"?", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) say(f func(http.ResponseWriter, *http.Request) bool) {
	if f == nil {
		s.answer.Store(nil)
		return
	}
	s.answer.Store(&f)
}

func login() (string, string) { return user, secret }

// over opens the bare repository through the server.
func over(t testing.TB, s *server, bare git, o gitrepo.Options) *gitrepo.Repo {
	t.Helper()
	o.URL = s.URL + "/" + filepath.Base(bare.dir)
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "mirror")
	}
	if o.Credentials == nil {
		o.Credentials = login
	}
	return open(t, o)
}

func TestRemoteIsFollowedThroughPushesForcesAndDeletions(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.write("f", "one")
	one := g.commit("one")
	g.run("tag", "-a", "-m", "x", "heavy")
	bare := g.bare()
	s := serve(t, bare)
	dir := filepath.Join(t.TempDir(), "mirror")
	r := over(t, s, bare, gitrepo.Options{Dir: dir})
	local := open(t, gitrepo.Options{URL: bare.dir})
	same := func(what string) {
		t.Helper()
		if diff := cmp.Diff(fetch(t, local), fetch(t, r)); diff != "" {
			t.Errorf("%s: remote differs from local (-local +remote):\n%s", what, diff)
		}
	}
	read := func(id pipeline.CommitID, want string) {
		t.Helper()
		if got, err := tree(t, r, id).ReadFile("f"); err != nil || string(got) != want {
			t.Errorf("f = %q, %v, want %q", got, err, want)
		}
	}
	same("first")
	read(one, "one")

	g.write("f", "two")
	two := g.commit("two")
	g.run("push", "-q", "origin", "main", "HEAD:refs/heads/topic")
	same("push")
	read(two, "two")
	if ch, err := r.ChangedPaths(t.Context(), one, two); err != nil || fmt.Sprint(ch.Paths) != "[f]" {
		t.Errorf("ChangedPaths = %v, %v", ch, err)
	}

	g.run("reset", "-q", "--hard", string(one))
	g.write("f", "other two")
	forced := g.commit("other two")
	g.run("push", "-q", "--force", "origin", "main", ":topic", ":heavy")
	bare.run("gc", "-q", "--prune=now")
	same("force-push and deletion")
	read(forced, "other two")
	read(two, "two") // the mirror keeps what it has

	before := s.requests.Load()
	same("nothing new")
	if n := s.requests.Load() - before; n != 1 {
		t.Errorf("a fetch of nothing took %d requests, want 1", n)
	}

	again := over(t, s, bare, gitrepo.Options{Dir: dir})
	before = s.requests.Load()
	if got := fetch(t, again).Tip(); got != forced {
		t.Errorf("after reopening the tip is %s, want %s", got, forced)
	}
	if n := s.requests.Load() - before; n != 1 {
		t.Errorf("a fetch after reopening took %d requests, want 1: the mirror is kept", n)
	}
	git{t, dir}.run("fsck", "--full")
}

func TestOnlyNewObjectsTravel(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	for i := range 50 {
		g.write(fmt.Sprint("f", i), fmt.Sprint(i))
	}
	g.commit("many")
	bare := g.bare()
	dir := filepath.Join(t.TempDir(), "mirror")
	r := over(t, serve(t, bare), bare, gitrepo.Options{Dir: dir})
	count := func() (n int) {
		for line := range strings.Lines((git{t, dir}).run("count-objects", "-v")) {
			_, _ = fmt.Sscanf(line, "in-pack: %d", &n)
		}
		return n
	}
	fetch(t, r)
	before := count()
	g.write("f1", "changed")
	g.commit("one file")
	g.run("push", "-q", "origin", "main")
	fetch(t, r)
	if n := count() - before; n != 3 {
		t.Errorf("%d objects came for one changed file, want 3", n)
	}
	g.run("commit", "-q", "--amend", "-m", "forced")
	g.run("push", "-q", "--force", "origin", "main")
	bare.run("gc", "-q", "--prune=now")
	before = count()
	fetch(t, r)
	if n := count() - before; n > 3 {
		t.Errorf("%d objects came for a forced commit, want at most 3", n)
	}
}

func TestManyFetchesDoNotPileUpPacks(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.commit("zero")
	bare := g.bare()
	dir := filepath.Join(t.TempDir(), "mirror")
	r := over(t, serve(t, bare), bare, gitrepo.Options{Dir: dir})
	var ids []pipeline.CommitID
	for i := range 34 {
		g.write("f", fmt.Sprint(i))
		ids = append(ids, g.commit(fmt.Sprint(i)))
		g.run("push", "-q", bare.dir, "main")
		fetch(t, r)
	}
	packs, err := filepath.Glob(filepath.Join(dir, "objects", "pack", "*.pack"))
	if err != nil || len(packs) > 32 {
		t.Errorf("%d packs after 34 fetches, %v", len(packs), err)
	}
	for i, id := range ids {
		if got, err := tree(t, r, id).ReadFile("f"); err != nil || string(got) != fmt.Sprint(i) {
			t.Fatalf("commit %d: %q, %v", i, got, err)
		}
	}
	git{t, dir}.run("fsck", "--full")
	if left, _ := filepath.Glob(filepath.Join(dir, "tmp", "*")); len(left) > 0 {
		t.Errorf("spooled files are left: %v", left)
	}
}

func TestEmptyRemoteHasNoRefs(t *testing.T) {
	t.Parallel()
	bare := newGit(t).bare()
	r := over(t, serve(t, bare), bare, gitrepo.Options{})
	if got := fetch(t, r); len(got.Tips) != 0 {
		t.Errorf("Fetch = %v", got)
	}
}

func TestServerDownIsUnavailableUntilItIsBack(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	bare := g.bare()
	s := serve(t, bare)
	down := true
	r := over(t, s, bare, gitrepo.Options{Transport: roundTrip(func(req *http.Request) (*http.Response, error) {
		if down {
			req = req.Clone(req.Context())
			req.URL.Host = "127.0.0.1:1" // nobody listens there
		}
		return http.DefaultTransport.RoundTrip(req)
	})})
	if _, err := r.Fetch(t.Context()); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "network") {
		t.Errorf("Fetch = %v, want unavailable with the next step", err)
	}
	down = false
	if got := fetch(t, r).Tip(); got != id {
		t.Errorf("tip = %s, want %s", got, id)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestBadAnswersAreToldApartWithoutTheSecret(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.commit("one")
	bare := g.bare()
	s := serve(t, bare)
	var log bytes.Buffer
	for _, c := range []struct {
		name        string
		credentials func() (string, string)
		answer      func(http.ResponseWriter, *http.Request) bool
		kind        fault.Kind
		says        string
	}{
		{"wrong password", func() (string, string) { return user, secret + "x" }, nil, fault.Invalid, "credentials"},
		{"no login", func() (string, string) { return "", "" }, nil, fault.Invalid, "wants a login"},
		{"forbidden", nil, status(403), fault.Invalid, "access"},
		{"no repository", nil, status(404), fault.NotFound, "address"},
		{"overloaded", nil, status(503), fault.Unavailable, "503"},
		{"too many", nil, status(429), fault.Unavailable, "429"},
		{"teapot", nil, status(418), fault.Invalid, "418"},
		{"login page", nil, page("text/html", "<html>log in as "+secret), fault.Unavailable, "login page"},
		{"no type", nil, page("", ""), fault.Unavailable, "not Git"},
		{"nonsense", nil, page("application/x-git-upload-pack-advertisement", "zzzz\x1b[31m"+secret), fault.Unavailable, ""},
		{"cut short", nil, page("application/x-git-upload-pack-advertisement", "001e# service=git-upload-pack\n0000"), fault.Unavailable, ""},
		{"redirect elsewhere", nil, redirect("http://127.0.0.1:9/x.git/info/refs?service=git-upload-pack"), fault.Invalid, "redirects"},
		{"redirect to a file", nil, redirect("file:///etc/passwd"), fault.Unavailable, "redirect"},
	} {
		s.say(c.answer)
		o := gitrepo.Options{Credentials: c.credentials, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
		_, err := over(t, s, bare, o).Fetch(t.Context())
		if fault.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: Fetch = %v (%s), want %s that says %q", c.name, err, fault.KindOf(err), c.kind, c.says)
		}
		if text := fmt.Sprintf("%v %+v %s", err, err, log.String()); strings.Contains(text, secret) || strings.Contains(text, "\x1b") {
			t.Errorf("%s: the secret or a control character shows: %q", c.name, text)
		}
	}
}

func status(code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
}

func page(kind, body string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", kind)
		_, _ = io.WriteString(w, body)
		return true
	}
}

func redirect(to string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Location", to)
		w.WriteHeader(http.StatusFound)
		return true
	}
}

func TestCredentialsDoNotFollowARedirect(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.commit("one")
	bare := g.bare()
	var seen atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { seen.Add(1) }))
	defer other.Close()
	s := serve(t, bare)
	s.say(func(w http.ResponseWriter, r *http.Request) bool {
		return redirect(other.URL+r.URL.String())(w, r)
	})
	if _, err := over(t, s, bare, gitrepo.Options{}).Fetch(t.Context()); !fault.Is(err, fault.Invalid) {
		t.Errorf("Fetch = %v, want invalid", err)
	}
	if seen.Load() != 0 {
		t.Error("the other server was asked")
	}
}

func TestSilentServerEndsWithTheContext(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.commit("one")
	bare := g.bare()
	s := serve(t, bare)
	reached, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	s.say(func(http.ResponseWriter, *http.Request) bool {
		close(reached)
		<-release
		return true
	})
	r := over(t, s, bare, gitrepo.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := r.Fetch(ctx); done <- err }()
	<-reached
	cancel()
	if err := <-done; !fault.Is(err, fault.Unavailable) {
		t.Errorf("Fetch = %v, want unavailable", err)
	}
}

func TestFetchTimeLimitHolds(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.commit("one")
	bare := g.bare()
	s := serve(t, bare)
	release := make(chan struct{})
	defer close(release)
	s.say(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-release // a byte now and then would be no better
		return true
	})
	r := over(t, s, bare, gitrepo.Options{Limits: gitrepo.Limits{Fetch: 300 * time.Millisecond}})
	if _, err := r.Fetch(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Fetch = %v, want unavailable", err)
	}
}

func TestTooManyRefsAreRefused(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	for i := range 20 {
		g.run("update-ref", fmt.Sprint("refs/heads/b", i), string(id))
	}
	bare := g.bare()
	limits := gitrepo.Limits{Refs: 20}
	for name, r := range map[string]*gitrepo.Repo{
		"local": open(t, gitrepo.Options{URL: bare.dir, Limits: limits}), "remote": over(t, serve(t, bare), bare, gitrepo.Options{Limits: limits}),
	} {
		if _, err := r.Fetch(t.Context()); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "more than 20") {
			t.Errorf("%s: Fetch = %v, want a refusal that names the limit", name, err)
		}
	}
}

func TestNotesArePushedToTheRemoteAndMergedWithOthers(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	one := g.commit("one")
	two := g.commit("two")
	bare := g.bare()
	s := serve(t, bare)
	r, other := over(t, s, bare, gitrepo.Options{}), over(t, s, bare, gitrepo.Options{})
	write := func(r *gitrepo.Repo, id pipeline.CommitID, text string) {
		t.Helper()
		if err := r.WriteNote(t.Context(), noteRef, id, text); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := r.Notes(t.Context(), noteRef, one); got != "" || err != nil {
		t.Errorf("Notes = %q, %v, want none", got, err)
	}
	write(r, one, "ours")
	write(other, two, "theirs")
	write(r, one, "ours again")
	for id, want := range map[pipeline.CommitID]string{one: "ours again", two: "theirs"} {
		if got := bare.run("notes", "--ref", "maestro/status", "show", string(id)); got != want {
			t.Errorf("git shows %q, want %q", got, want)
		}
		if got, err := other.Notes(t.Context(), noteRef, id); got != want || err != nil {
			t.Errorf("Notes = %q, %v, want %q", got, err, want)
		}
	}
	bare.run("fsck", "--strict")
	if refs := fetch(t, r); len(refs.Tips) != 1 {
		t.Errorf("notes show among the refs: %v", refs.Tips)
	}

	// Somebody moves the ref between our look and our push.
	var once atomic.Bool
	s.say(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.HasSuffix(req.URL.Path, "/git-receive-pack") && !once.Swap(true) {
			bare.run("notes", "--ref", "maestro/status", "add", "-f", "-m", "in between", string(two))
		}
		return false
	})
	write(r, one, "third")
	if got := bare.run("notes", "--ref", "maestro/status", "show", string(two)); got != "in between" || !once.Load() {
		t.Errorf("the note of the other is %q", got)
	}
	if got := bare.run("notes", "--ref", "maestro/status", "show", string(one)); got != "third" {
		t.Errorf("our note is %q", got)
	}

	bare.run("config", "http.receivepack", "false")
	if err := r.WriteNote(t.Context(), noteRef, one, "x"); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "write access") {
		t.Errorf("WriteNote without permission = %v, want invalid with what to grant", err)
	}
}
