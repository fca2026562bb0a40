package forge_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
)

// wire carries requests to a GitHub in memory, which answers after a second.
type wire struct {
	mu    sync.Mutex
	asked int
	under int // that are not answered
	most  int // that were so at a time
	fate  func(path string) (code int, err error)
}

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.asked++
	w.under++
	w.most = max(w.most, w.under)
	fate := w.fate
	w.mu.Unlock()
	time.Sleep(time.Second)
	w.mu.Lock()
	w.under--
	w.mu.Unlock()
	code, err := fate(req.URL.Path)
	if err != nil {
		return nil, err
	}
	body := `{"id": 7}`
	if req.Method == http.MethodPost && !strings.HasSuffix(req.URL.Path, "/comments") {
		text, _ := io.ReadAll(req.Body)
		body = string(text)
	}
	header := http.Header{"Content-Type": {"application/json"}}
	return &http.Response{StatusCode: code, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
}

// becomes decides what becomes of requests from now on, and forgets those before.
func (w *wire) becomes(fate func(path string) (int, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fate, w.asked, w.most = fate, 0, 0
}

func (w *wire) so() (asked, most int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked, w.most
}

func fine(string) (int, error) { return http.StatusCreated, nil }

func over(t *testing.T, w *wire, h *forge.Host) *forge.GitHub {
	t.Helper()
	g, err := forge.NewGitHub(forge.GitHubConfig{Owner: "octo", Repo: "ops", HTTP: w, Host: h, Token: func() string { return token }})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// inFalseTime runs f in a bubble, and waits there for the timers of requests.
func inFalseTime(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f(t)
		time.Sleep(time.Minute)
	})
}

// TestHostThatDoesNotAnswerIsAskedByOneRequest lets twenty ask again and again.
func TestHostThatDoesNotAnswerIsAskedByOneRequest(t *testing.T) {
	t.Parallel()
	for name, fate := range map[string]func(string) (int, error){
		"gone":        func(string) (int, error) { return 0, errors.New("connection refused") },
		"bad gateway": func(string) (int, error) { return http.StatusBadGateway, nil },
		"slow down":   func(string) (int, error) { return http.StatusTooManyRequests, nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inFalseTime(t, func(t *testing.T) {
				w := &wire{}
				w.becomes(fate)
				h := forge.NewHost(time.Time{}, nil)
				one, other := over(t, w, h), over(t, w, h)
				for n := range 10 { // each fails without a name for the end, until that is plain
					if err := one.Post(t.Context(), status("maestro", "success")); !fault.Is(err, fault.Unavailable) {
						t.Fatalf("request %d: %v", n, err)
					}
				}
				if asked, _ := w.so(); asked != 5 {
					t.Errorf("%d requests left, one after the other", asked)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
				var all sync.WaitGroup
				for i := range 20 {
					g := one
					if i%2 == 0 {
						g = other
					}
					all.Go(func() {
						for ctx.Err() == nil {
							err := g.Post(ctx, status("maestro", "success"))
							if at, ok := forge.NextAt(err); ctx.Err() == nil && (!ok || time.Until(at) > 30*time.Second || !fault.Is(err, fault.Unavailable)) {
								t.Errorf("%v, until %v", err, at)
							}
							time.Sleep(time.Second)
						}
					})
				}
				all.Wait()
				cancel()
				if asked, most := w.so(); asked > 75 || asked < 50 || most > 1 {
					t.Errorf("%d requests left in half an hour, %d at a time", asked, most)
				}
				// The first that gets an answer opens the way for all.
				w.becomes(fine)
				time.Sleep(30 * time.Second)
				for range 20 {
					all.Go(func() {
						if err := one.Post(t.Context(), status("maestro", "success")); err != nil {
							t.Error(err)
						}
					})
				}
				all.Wait()
				if asked, most := w.so(); asked != 20 || most != 19 {
					t.Errorf("%d requests left after it was back, %d at a time", asked, most)
				}
			})
		})
	}
}

// TestRequestThatAlwaysFailsHoldsUpNoOther asks for something that GitHub cannot give,
// as often as not.
func TestRequestThatAlwaysFailsHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	inFalseTime(t, func(t *testing.T) {
		w := &wire{}
		w.becomes(func(path string) (int, error) {
			if strings.Contains(path, "/pulls/") {
				return http.StatusBadGateway, nil
			}
			return http.StatusCreated, nil
		})
		g := over(t, w, nil)
		for range 50 {
			if _, err := g.Pull(t.Context(), 7); !fault.Is(err, fault.Unavailable) {
				t.Fatal(err)
			}
			if err := g.Post(t.Context(), status("maestro", "success")); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestWhoeverGivesUpDoesNotBlameTheHost stops the one request that finds out.
func TestWhoeverGivesUpDoesNotBlameTheHost(t *testing.T) {
	t.Parallel()
	inFalseTime(t, func(t *testing.T) {
		w := &wire{}
		w.becomes(func(string) (int, error) { return http.StatusBadGateway, nil })
		g := over(t, w, nil)
		for range 5 {
			_ = g.Post(t.Context(), status("maestro", "success"))
		}
		time.Sleep(time.Second)
		w.becomes(func(string) (int, error) { return 0, context.Canceled })
		_ = g.Post(t.Context(), status("maestro", "success"))
		w.becomes(fine)
		if err := g.Post(t.Context(), status("maestro", "success")); err != nil {
			t.Errorf("after one that gave up: %v", err)
		}
	})
}

// TestNoMoreCommentsAreMadeThanGitHubTakes lets two make comments as fast as they can,
// beside statuses.
func TestNoMoreCommentsAreMadeThanGitHubTakes(t *testing.T) {
	t.Parallel()
	inFalseTime(t, func(t *testing.T) {
		w := &wire{}
		w.becomes(fine)
		h := forge.NewHost(time.Time{}, nil)
		var all sync.WaitGroup
		for i := range 4 {
			g := over(t, w, h)
			all.Go(func() {
				for range 20 {
					if _, err := g.AddComment(t.Context(), i+1, "hm"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		time.Sleep(59*time.Second + 500*time.Millisecond)
		if asked, _ := w.so(); asked < 76 || asked > 80 {
			t.Errorf("%d comments in a minute", asked)
		}
		all.Wait()
		began := time.Now()
		g := over(t, w, h)
		for range 10 {
			if err := g.Post(t.Context(), status("maestro", "success")); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took > 11*time.Second {
			t.Errorf("ten statuses of a second each took %s", took)
		}
		time.Sleep(20 * time.Second)
		began = time.Now()
		if _, err := g.AddComment(t.Context(), 1, "hm"); err != nil || time.Since(began) > 2*time.Second {
			t.Errorf("a comment after some rest took %s: %v", time.Since(began), err)
		}
	})
}

// TestSilenceIsKeptByAllRepositories lets one of two be told to be silent.
func TestSilenceIsKeptByAllRepositories(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	var told time.Time
	h := forge.NewHost(time.Time{}, func(until time.Time) { told = until })
	of := func(name string) *forge.GitHub {
		g, err := forge.NewGitHub(forge.GitHubConfig{Owner: "octo", Repo: name, BaseURL: f.URL + "/api/v3", Host: h, Token: func() string { return token }})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	f.say(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "77")
		problem(w, http.StatusTooManyRequests, "slow down")
		return true
	})
	if err := of("ops").Post(t.Context(), status("maestro", "success")); !fault.Is(err, fault.Unavailable) {
		t.Fatal(err)
	}
	f.say(func(w http.ResponseWriter, r *http.Request) bool {
		t.Error("it is asked for " + r.URL.Path)
		return false
	})
	if _, err := of("web").RepositoryID(t.Context()); !fault.Is(err, fault.Unavailable) || told.IsZero() {
		t.Errorf("another repository: %v, told %v", err, told)
	}
}

// TestStatusesFollowAnOutageWithinAMinute lets statuses change all the time while nothing
// can be posted.
func TestStatusesFollowAnOutageWithinAMinute(t *testing.T) {
	t.Parallel()
	inFalseTime(t, func(t *testing.T) {
		w, r := &wire{}, newRegister()
		w.becomes(func(string) (int, error) { return http.StatusServiceUnavailable, nil })
		c := forge.NewConverger(forge.Config{Forge: over(t, w, nil), Register: r})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		for n := range 300 {
			for i := range 20 {
				r.desire(pipeline.Status{Commit: commit, Context: fmt.Sprint("c", i), State: "pending", Description: fmt.Sprint(n)})
			}
			c.Wake()
			wait(6 * time.Second)
		}
		if asked, _ := w.so(); asked > 90 {
			t.Errorf("%d requests in vain in half an hour", asked)
		}
		w.becomes(fine)
		wait(time.Minute)
		if asked, _ := w.so(); !r.settled() || asked != 20 {
			t.Errorf("a minute after its return %d statuses were posted, settled %v", asked, r.settled())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestNobodyIsSilencedForLongerThanAnHour(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	soon := func() time.Time { return time.Now().Add(time.Hour + time.Second) }
	for name, header := range map[string][2]string{
		"seconds":           {"Retry-After", "2000000000"},
		"too many seconds":  {"Retry-After", "9000000000"},
		"a date":            {"Retry-After", "Fri, 31 Dec 2199 23:59:59 GMT"},
		"a limit that ends": {"X-RateLimit-Reset", "7258118399"},
	} {
		for _, code := range []int{http.StatusForbidden, http.StatusTooManyRequests} {
			var told time.Time
			h := forge.NewHost(time.Time{}, func(until time.Time) { told = until })
			g, err := forge.NewGitHub(forge.GitHubConfig{Owner: "octo", Repo: "ops", BaseURL: f.URL + "/api/v3", Host: h, Token: func() string { return token }})
			if err != nil {
				t.Fatal(err)
			}
			f.say(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("X-RateLimit-Limit", "5000")
				w.Header().Set("X-RateLimit-Remaining", "0")
				w.Header().Set(header[0], header[1])
				problem(w, code, "You have exceeded a secondary rate limit.")
				return true
			})
			for range 2 { // the second is held back
				err = g.Post(t.Context(), status("maestro", "success"))
				if at, ok := forge.NextAt(err); !fault.Is(err, fault.Unavailable) || ok && at.After(soon()) || told.After(soon()) {
					t.Errorf("%s, HTTP %d: silent until %s, told until %s: %v", name, code, at, told, err)
				}
			}
		}
	}
	f.say(nil)
	g, err := forge.NewGitHub(forge.GitHubConfig{
		Owner: "octo", Repo: "ops", BaseURL: f.URL + "/api/v3", Host: forge.NewHost(time.Now().AddDate(70, 0, 0), nil), Token: func() string { return token },
	})
	if err == nil {
		err = g.Post(t.Context(), status("maestro", "success"))
	}
	if err != nil {
		t.Errorf("what a clock that was wrong left: %v", err)
	}
}
