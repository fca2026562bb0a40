package testkit

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cgi"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// GitServer serves a bare repository by git's own HTTP backend on loopback, behind
// a login. It can go away and come back at the same address.
type GitServer struct {
	// URL of the repository, without a login in it.
	URL string

	t       testing.TB
	addr    string
	handler http.Handler

	mu             sync.Mutex
	server         *http.Server
	user, password string
	refused        int
}

// ServeGit serves the repository to those who know user and password.
func ServeGit(t testing.TB, bare, user, password string) *GitServer {
	t.Helper()
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatalf("find git's programs: %v", err)
	}
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, err := exec.LookPath(backend); err != nil {
		t.Fatalf("git's HTTP backend is missing (%v); it comes with the package git", err)
	}
	g := &GitServer{t: t, addr: "127.0.0.1:0", user: user, password: password}
	g.handler = &cgi.Handler{
		Path: backend,
		// A user name is what makes the backend accept pushes.
		Env: []string{"GIT_PROJECT_ROOT=" + filepath.Dir(bare), "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=" + user},
		// The backend complains of clients that go away, which tests do.
		Stderr: io.Discard, Logger: log.New(io.Discard, "", 0),
	}
	g.Start()
	g.URL = "http://" + g.addr + "/" + filepath.Base(bare)
	t.Cleanup(g.Stop)
	return g
}

// ServeHTTP implements http.Handler.
func (g *GitServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	user, password, given := r.BasicAuth()
	welcome := given && user == g.user && password == g.password
	if given && !welcome {
		g.refused++
	}
	g.mu.Unlock()
	if !welcome {
		w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
		http.Error(w, "log in", http.StatusUnauthorized)
		return
	}
	g.handler.ServeHTTP(w, r)
}

// Login returns the URL with the login in it, for git's own command line.
func (g *GitServer) Login() string {
	return strings.Replace(g.URL, "://", "://"+url.UserPassword(g.user, g.password).String()+"@", 1)
}

// Refused returns how many requests came with a login that is not the right one.
func (g *GitServer) Refused() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refused
}

// Stop makes the server go away, open connections included.
func (g *GitServer) Stop() {
	g.mu.Lock()
	server := g.server
	g.server = nil
	g.mu.Unlock()
	if server != nil {
		_ = server.Close()
	}
}

// Start makes the server be there again, at the same address.
func (g *GitServer) Start() {
	g.t.Helper()
	var ln net.Listener
	Eventually(g.t, "listen at "+g.addr, func() (bool, string) {
		var err error
		if ln, err = new(net.ListenConfig).Listen(context.Background(), "tcp", g.addr); err != nil {
			return false, err.Error()
		}
		return true, ""
	})
	server := &http.Server{Handler: g, ReadHeaderTimeout: time.Minute}
	g.mu.Lock()
	g.addr, g.server = ln.Addr().String(), server
	g.mu.Unlock()
	go func() {
		// Ended by Stop, which the test's cleanup calls.
		if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			g.t.Errorf("serve git: %v", err)
		}
	}()
}
