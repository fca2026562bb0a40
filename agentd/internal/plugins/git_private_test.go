//go:build unix

package plugins_test

import (
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// private serves the repository over https to one user, and tells what it was asked with.
type private struct {
	url, ca string
	mu      sync.Mutex
	logins  []string
}

func servePrivate(t *testing.T, u *upstream, user, password string) *private {
	t.Helper()
	exe, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{
		Path:   filepath.Join(strings.TrimSpace(string(exe)), "git-http-backend"),
		Env:    []string{"GIT_PROJECT_ROOT=" + filepath.Dir(u.bare), "GIT_HTTP_EXPORT_ALL=1", "GIT_PROTOCOL=version=2"},
		Stderr: io.Discard,
		Logger: log.New(io.Discard, "", 0),
	}
	p := &private{}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gotUser, gotPassword, given := r.BasicAuth()
		if given {
			p.mu.Lock()
			p.logins = append(p.logins, gotUser+":"+gotPassword)
			p.mu.Unlock()
		}
		if gotUser != user || gotPassword != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="acme"`)
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	p.url = s.URL + "/" + filepath.Base(u.bare)
	p.ca = filepath.Join(t.TempDir(), "ca.pem")
	write(t, p.ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	return p
}

func secret(value string) map[string]any {
	return map[string]any{"secret": "git-login", "value": value}
}

func TestPrivateRepositoryWithGoodAndBadCredentials(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	tip := u.git(u.work, "rev-parse", "HEAD")
	for _, c := range []struct{ user, password, credentials, inURL string }{
		{"x-access-token", "CANARY-token", "CANARY-token\n", ""},
		{"bob@acme.example", "CANARY:p@ss/w", "bob@acme.example:CANARY:p@ss/w", ""},
		{"carol", "CANARY-token", "CANARY-token", "carol@"},
	} {
		p := servePrivate(t, u, c.user, c.password)
		s := newSeat(t)
		url := strings.Replace(p.url, "https://", "https://"+c.inURL, 1)
		for _, depth := range []map[string]any{{"dir": "full"}, {"dir": "shallow", "depth": 1}} {
			fields := map[string]any{"url": url, "ref": "main", "credentials": secret(c.credentials), "dir": depth["dir"]}
			if d, ok := depth["depth"]; ok {
				fields["depth"] = d
			}
			e := checkout(t, s, fields, "GIT_SSL_CAINFO="+p.ca)
			e.good(t, depth["dir"].(string), tip)
			noCanary(t, e, s)
		}

		if c.inURL == "" {
			continue
		}
		s = newSeat(t)
		e := checkout(t, s, map[string]any{"url": url, "ref": "main", "credentials": secret("CANARY-wrong\n")}, "GIT_SSL_CAINFO="+p.ca)
		e.bad(t, "does not accept the credentials")
		noCanary(t, e, s)
		e = checkout(t, s, map[string]any{"url": url, "ref": "main"}, "GIT_SSL_CAINFO="+p.ca)
		e.bad(t, "wants a login; set the field credentials")
	}
}

// noCanary looks for the secret in what was said, and in every file that is left.
func noCanary(t *testing.T, e ended, s seat) {
	t.Helper()
	if strings.Contains(e.log, "CANARY") {
		t.Errorf("the log tells the secret:\n%s", e.log)
	}
	for _, dir := range []string{s.workspace, s.cache} {
		err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.Contains(read(t, name), "CANARY") {
				t.Errorf("%s holds the secret", name)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// A redirect to another host gets no credentials.
func TestCredentialsGoToTheNamedHostOnly(t *testing.T) {
	t.Parallel()
	u := newUpstream(t)
	evil := servePrivate(t, u, "nobody", "nothing")
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, strings.TrimSuffix(evil.url, "/"+filepath.Base(u.bare))+r.URL.String(), http.StatusFound)
	}))
	t.Cleanup(front.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, read(t, evil.ca)+string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw})))
	e := checkout(t, newSeat(t), map[string]any{"url": front.URL + "/acme.git", "ref": "main", "credentials": secret("CANARY-token")}, "GIT_SSL_CAINFO="+ca)
	if e.exit == 0 {
		t.Error("the checkout went through")
	}
	evil.mu.Lock()
	defer evil.mu.Unlock()
	if len(evil.logins) > 0 {
		t.Errorf("the other host was sent %v", evil.logins)
	}
}

// While Git waits for the server, no process shows the secret in its arguments.
func TestCredentialsAreNotInTheProcessList(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 1)
	release := make(chan struct{})
	var once sync.Once
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, _, given := r.BasicAuth(); !given {
			w.Header().Set("WWW-Authenticate", `Basic realm="acme"`)
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		once.Do(func() {
			out, err := exec.Command("ps", "axww", "-o", "pid,args").CombinedOutput()
			if err != nil {
				t.Errorf("ps: %v", err)
			}
			seen <- string(out)
			close(release)
		})
		<-release
		http.Error(w, "gone", http.StatusGone)
	}))
	t.Cleanup(s.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	checkout(t, newSeat(t), map[string]any{"url": s.URL + "/x.git", "ref": "main", "credentials": secret("CANARYps-token")}, "GIT_SSL_CAINFO="+ca).
		bad(t, "could not be checked out")
	if list := <-seen; strings.Contains(list, "CANARYps") || !strings.Contains(list, "git/checkout") {
		t.Errorf("the process list:\n%s", list)
	}
}

func TestKilledCheckoutLeavesNothingInTheWay(t *testing.T) {
	t.Parallel()
	u, s := newUpstream(t), newSeat(t)
	tip := u.git(u.work, "rev-parse", "HEAD")
	asked := make(chan struct{}, 8)
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })
	url := server.URL + "/x.git"
	cmd, _ := s.command(t, standard(t, "git/checkout"), map[string]any{"url": url, "ref": "main"}, nil)
	cmd.Stdin = nil
	setGroup(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-asked // the locks are held, and the mirror is there
	killGroup(t, cmd)
	_ = cmd.Wait() // killed
	// The same folder and the same mirror are free for the next.
	checkout(t, s, map[string]any{"url": u.bare, "ref": "main"}).good(t, "src", tip)
}
