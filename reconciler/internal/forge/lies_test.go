package forge_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
)

// questions are all that is asked of GitHub, each by a client of its own.
var questions = map[string]func(*testing.T, *forge.GitHub) error{
	"repository": func(t *testing.T, g *forge.GitHub) error { _, err := g.RepositoryID(t.Context()); return err },
	"self":       func(t *testing.T, g *forge.GitHub) error { _, err := g.Self(t.Context()); return err },
	"pulls":      func(t *testing.T, g *forge.GitHub) error { _, err := g.Pulls(t.Context()); return err },
	"pull":       func(t *testing.T, g *forge.GitHub) error { _, err := g.Pull(t.Context(), 1); return err },
	"pulls of":   func(t *testing.T, g *forge.GitHub) error { _, err := g.PullsOf(t.Context(), "x"); return err },
	"reviews":    func(t *testing.T, g *forge.GitHub) error { _, err := g.Reviews(t.Context(), 1); return err },
	"comments":   func(t *testing.T, g *forge.GitHub) error { _, err := g.Comments(t.Context(), 1); return err },
	"introduced": func(t *testing.T, g *forge.GitHub) error { _, err := g.Introduced(t.Context(), commit); return err },
	"closed by":  func(t *testing.T, g *forge.GitHub) error { _, _, err := g.ClosedBy(t.Context(), 1); return err },
	"behind": func(t *testing.T, g *forge.GitHub) error {
		_, err := g.Behind(t.Context(), "", commit, commit)
		return err
	},
	"statuses": func(t *testing.T, g *forge.GitHub) error { _, err := g.Statuses(t.Context(), commit); return err },
	"status":   func(t *testing.T, g *forge.GitHub) error { return g.Post(t.Context(), status("maestro", "success")) },
	"open pull": func(t *testing.T, g *forge.GitHub) error {
		_, err := g.OpenPull(t.Context(), "x", "main", "x", "y")
		return err
	},
	"edit pull":   func(t *testing.T, g *forge.GitHub) error { return g.EditPull(t.Context(), 1, "x", "y", "") },
	"add comment": func(t *testing.T, g *forge.GitHub) error { _, err := g.AddComment(t.Context(), 1, "x"); return err },
	"comments since": func(t *testing.T, g *forge.GitHub) error {
		_, err := g.CommentsSince(t.Context(), time.Now())
		return err
	},
	"people": func(t *testing.T, g *forge.GitHub) error {
		_, err := g.People(t.Context(), &pipeline.Pull{Number: 1, Branch: "x", Head: commit})
		return err
	},
	"may write": func(t *testing.T, g *forge.GitHub) error {
		_, err := g.MayWrite(t.Context(), pipeline.Account{ID: 1, Login: "ana"})
		return err
	},
	"is member": func(t *testing.T, g *forge.GitHub) error {
		_, err := g.IsMember(t.Context(), "@octo/ops", pipeline.Account{ID: 1, Login: "ana"})
		return err
	},
}

// said asks one question of a server that answers everything in one way.
func said(t *testing.T, ask func(*testing.T, *forge.GitHub) error, answer http.HandlerFunc) error {
	t.Helper()
	s := httptest.NewServer(answer)
	defer s.Close()
	g, err := forge.NewGitHub(forge.GitHubConfig{Owner: "octo", Repo: "ops", BaseURL: s.URL + "/api/v3", Token: func() string { return token }})
	if err != nil {
		t.Fatal(err)
	}
	return ask(t, g)
}

func TestNoAnswerLeadsTheTokenElsewhere(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		page(w, http.StatusOK, "application/json", "[]")
	}))
	defer evil.Close()
	there, err := url.Parse(evil.URL)
	if err != nil {
		t.Fatal(err)
	}
	for name, ask := range questions {
		for _, code := range []int{301, 302, 303, 307, 308} {
			for _, to := range []string{evil.URL + "/x", "//" + there.Host + "/x", "https://api.github.com@" + there.Host + "/x", "file:///etc/passwd", "gopher://" + there.Host} {
				err := said(t, ask, func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Location", to)
					w.WriteHeader(code)
				})
				if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "moved") || strings.Contains(err.Error(), token) {
					t.Errorf("%s, %d to %s: %v", name, code, to, err)
				}
			}
		}
		// The next page is asked for where the first one was.
		for _, to := range []string{evil.URL + "/x?page=2", "//" + there.Host + "/x?page=2", "file:///etc/passwd?page=2"} {
			_ = said(t, ask, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Link", "<"+to+`>; rel="next", <`+to+`>; rel="last"`)
				page(w, http.StatusOK, "application/json", "[]")
			})
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("the other host was asked %d times", n)
	}
}

func TestAnswersOffTheDescriptionAreNone(t *testing.T) {
	t.Parallel()
	for name, ask := range questions {
		for what, answer := range map[string]http.HandlerFunc{
			"a page": func(w http.ResponseWriter, _ *http.Request) { page(w, http.StatusOK, "text/html", "<html>log in") },
			"a page as JSON": func(w http.ResponseWriter, _ *http.Request) {
				page(w, http.StatusOK, "application/json", "<html>log in")
			},
			"JSON of no type": func(w http.ResponseWriter, _ *http.Request) { page(w, http.StatusOK, "", "[]") },
			"JSON that is cut": func(w http.ResponseWriter, _ *http.Request) {
				page(w, http.StatusOK, "application/json", `[{"id": 1, "x`)
			},
			"a text":   func(w http.ResponseWriter, _ *http.Request) { page(w, http.StatusOK, "application/json", `"pull"`) },
			"a number": func(w http.ResponseWriter, _ *http.Request) { page(w, http.StatusOK, "application/json", `1e400`) },
			"an endless one": func(w http.ResponseWriter, _ *http.Request) {
				page(w, http.StatusOK, "application/json", `{"message":"`+strings.Repeat("x", 9<<20))
			},
			"a broken connection": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		} {
			if err := said(t, ask, answer); !fault.Is(err, fault.Unavailable) || strings.Contains(err.Error(), token) {
				t.Errorf("%s answers %s: %v, want unavailable", name, what, err)
			}
		}
	}
}

func TestTokenIsNotSentToWhomACertificateIsNotOf(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	s.Config.ErrorLog = nil
	s.StartTLS()
	defer s.Close()
	known := x509.NewCertPool()
	known.AddCert(s.Certificate())
	here, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		host string
		pool *x509.CertPool
	}{
		"of an authority that nobody trusts": {here.Hostname(), x509.NewCertPool()},
		"of another host":                    {"localhost", known},
	} {
		g, err := forge.NewGitHub(forge.GitHubConfig{
			Owner: "octo", Repo: "ops", BaseURL: fmt.Sprintf("https://%s:%s/api/v3", c.host, here.Port()), Token: func() string { return token },
			HTTP: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.pool}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Pulls(t.Context()); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("%d requests arrived", n)
	}
}
