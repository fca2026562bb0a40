package testkit_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/maestro-cd/maestro/internal/testkit"
)

// TestTokensOfTheServerGoToNoRepositoryThatACommitNames serves with a token for Git and
// GitHub, and a commit names a repository of somebody else's, which asks to log in and
// leads elsewhere.
func TestTokensOfTheServerGoToNoRepositoryThatACommitNames(t *testing.T) {
	real(t)
	var mu sync.Mutex
	var asked []string
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, fmt.Sprint(r.URL.Path, r.Header))
		mu.Unlock()
		if strings.HasPrefix(r.URL.Path, "/moved") {
			http.Redirect(w, r, "/login", http.StatusFound)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="evil"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer evil.Close()
	g := testkit.NewGitHub(t)
	people(g)
	g.Repo.Push("main", pullFiles())
	s := g.Serve(t, "--allow-source", evil.URL)
	g.Repo.Push("main", declare("", "asks", evil.URL+"/asks.git", "moved", evil.URL+"/moved.git"))
	awaitSource(t, s, "asks", "wants a login")
	awaitSource(t, s, "moved", "wants a login")
	mu.Lock()
	defer mu.Unlock()
	for _, path := range []string{"/asks", "/moved"} {
		if !slices.ContainsFunc(asked, func(a string) bool { return strings.HasPrefix(a, path) }) {
			t.Errorf("%s was not asked: %q", path, asked)
		}
	}
	for _, a := range asked {
		if strings.Contains(a, "Authorization") || strings.Contains(a, g.Token) {
			t.Errorf("it was told %s", a)
		}
	}
}
