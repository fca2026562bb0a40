package main_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// cloud is a GitHub in memory with many pull requests, for simulated time. It carries
// requests itself: there is no socket that a bubble would have to wait for.
type cloud struct {
	mu       sync.Mutex
	pulls    int
	updated  map[int]time.Time      // of the pull requests that changed
	comments map[int]map[int]string // by pull request and number
	statuses map[string]string      // last description by commit and context
	asked    []string               // METHOD PATH
	at       []time.Time            // when each of them came
	under    int                    // that are not answered
	most     int                    // that were so at a time
	paid     int                    // of them, those that count of the hourly budget
	ids      int
	// away says what becomes of a request: "" it is answered, "refused" it is not
	// carried out, "lost" it is and the answer never comes.
	away func() string
}

func headOf(n int) string { return fmt.Sprintf("%040x", n) }

func (c *cloud) RoundTrip(req *http.Request) (*http.Response, error) {
	c.mu.Lock()
	c.under++
	c.most = max(c.most, c.under)
	c.mu.Unlock()
	time.Sleep(40 * time.Millisecond) // of false time: what an answer takes
	var body []byte
	if req.Body != nil {
		body, _ = io.ReadAll(req.Body)
		_ = req.Body.Close()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.under--
	path := strings.TrimPrefix(req.URL.Path, "/repos/octo/ops")
	c.asked, c.at = append(c.asked, req.Method+" "+path), append(c.at, time.Now())
	fate := ""
	if c.away != nil {
		fate = c.away()
	}
	if fate == "refused" {
		return answered(req, http.StatusBadGateway, nil, nil), nil
	}
	code, header, parts := c.answer(req, path, body)
	if fate == "lost" {
		return nil, errors.New("connection reset by peer")
	}
	text, err := json.Marshal(parts)
	if err != nil {
		return nil, err
	}
	tag := fmt.Sprintf(`"%x"`, sha256.Sum256(text))
	header.Set("ETag", tag)
	if req.Method == http.MethodGet && req.Header.Get("If-None-Match") == tag {
		return answered(req, http.StatusNotModified, header, nil), nil
	}
	c.paid++
	return answered(req, code, header, text), nil
}

func answered(req *http.Request, code int, header http.Header, body []byte) *http.Response {
	if header == nil {
		header = http.Header{}
	}
	header.Set("Content-Type", "application/json")
	return &http.Response{StatusCode: code, Status: http.StatusText(code), Header: header, Body: io.NopCloser(bytes.NewReader(body)), Request: req}
}

// answer carries out a request. Called with mu.
func (c *cloud) answer(req *http.Request, path string, body []byte) (int, http.Header, any) {
	type m = map[string]any
	user := func(id int) m { return m{"id": id, "login": fmt.Sprint("user-", id), "type": "User"} }
	parts := strings.Split(strings.Trim(path, "/"), "/")
	header := http.Header{}
	var ask struct{ Body, Context, Description, State string }
	_ = json.Unmarshal(body, &ask)
	number := func(i int) int { n, _ := strconv.Atoi(parts[i]); return n }
	switch {
	case path == "":
		return http.StatusOK, header, m{"id": 7, "full_name": "octo/ops"}
	case path == "/user":
		return http.StatusOK, header, user(1)
	case path == "/pulls":
		page, _ := strconv.Atoi(req.URL.Query().Get("page"))
		page = max(page, 1)
		list := []m{}
		for n := (page-1)*100 + 1; n <= min(page*100, c.pulls); n++ {
			list = append(list, m{
				"number": n, "title": "a change", "user": user(2), "state": "open", "updated_at": c.updated[n].UTC().Format(time.RFC3339),
				"head": m{"ref": fmt.Sprint("b", n), "sha": headOf(n), "repo": m{"id": 7}}, "base": m{"ref": "main", "sha": headOf(0), "repo": m{"id": 7}},
			})
		}
		if page*100 < c.pulls {
			header.Set("Link", fmt.Sprintf(`<https://api.github.com/x?page=%d>; rel="next"`, page+1))
		}
		return http.StatusOK, header, list
	case strings.HasSuffix(path, "/reviews"):
		n := number(1)
		return http.StatusOK, header, []m{{"id": n, "user": user(100 + n%20), "state": "APPROVED", "commit_id": headOf(n), "submitted_at": c.updated[n].UTC().Format(time.RFC3339)}}
	case strings.HasSuffix(path, "/commits"):
		return http.StatusOK, header, []m{{"sha": headOf(number(1)), "author": user(2), "committer": user(2), "commit": m{"message": "a change"}}}
	case path == "/activity":
		n, _ := strconv.Atoi(strings.TrimPrefix(req.URL.Query().Get("ref"), "refs/heads/b"))
		return http.StatusOK, header, []m{{"after": headOf(n), "actor": user(2)}}
	case strings.HasPrefix(path, "/collaborators/"):
		id, _ := strconv.Atoi(strings.TrimPrefix(parts[1], "user-"))
		return http.StatusOK, header, m{"permission": "write", "user": user(id)}
	case path == "/issues/comments":
		return http.StatusOK, header, []m{}
	case strings.HasPrefix(path, "/statuses/"):
		c.statuses[parts[1]+" "+ask.Context] = ask.Description
		return http.StatusCreated, header, m{"state": ask.State, "context": ask.Context}
	case strings.HasPrefix(path, "/issues/comments/"):
		return c.comment(req.Method, number(2), ask.Body, header)
	case req.Method == http.MethodPost:
		n := number(1)
		if c.comments[n] == nil {
			c.comments[n] = map[int]string{}
		}
		c.ids++
		c.comments[n][c.ids] = ask.Body
		return http.StatusCreated, header, m{"id": c.ids, "user": user(1), "body": ask.Body}
	case strings.HasPrefix(path, "/issues/"):
		list := []m{}
		for id := range c.ids + 1 {
			if text, ok := c.comments[number(1)][id]; ok {
				list = append(list, m{"id": id, "user": user(1), "body": text})
			}
		}
		return http.StatusOK, header, list
	}
	return http.StatusNotFound, header, m{"message": "Not Found"}
}

// comment edits or deletes one.
func (c *cloud) comment(method string, id int, text string, header http.Header) (int, http.Header, any) {
	for _, all := range c.comments {
		if _, ok := all[id]; !ok {
			continue
		}
		if method == http.MethodDelete {
			delete(all, id)
			return http.StatusNoContent, header, nil
		}
		all[id] = text
		return http.StatusOK, header, map[string]any{"id": id, "body": text}
	}
	return http.StatusNotFound, header, map[string]any{"message": "Not Found"}
}

// count returns how many requests were made since the first of them, of a kind.
func (c *cloud) count(from int, begin string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, asked := range c.asked[from:] {
		if strings.HasPrefix(asked, begin) {
			n++
		}
	}
	return n
}

func (c *cloud) so() (asked, paid int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.asked), c.paid
}

// peak is the most that a minute of requests costs as GitHub counts by the minute: what
// changes something is five points, and what only asks is one whatever the answer.
func (c *cloud) peak() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	points := func(i int) int {
		if strings.HasPrefix(c.asked[i], "GET ") {
			return 1
		}
		return 5
	}
	most, sum, from := 0, 0, 0
	for i, at := range c.at {
		for sum += points(i); at.Sub(c.at[from]) >= time.Minute; from++ {
			sum -= points(from)
		}
		most = max(most, sum)
	}
	return most
}

// speaks runs what speaks to GitHub on an empty record, in simulated time.
func speaks(t *testing.T, c *cloud, f func(db *store.DB)) {
	c.updated, c.comments, c.statuses = map[int]time.Time{}, map[int]map[int]string{}, map[string]string{}
	dir, err := os.MkdirTemp("/dev/shm", "forgeload") // nothing here is about the disk
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		db, err := store.Open(context.Background(), dir, log)
		if err != nil {
			t.Fatal(err)
		}
		g, err := forge.NewGitHub(forge.GitHubConfig{Owner: "octo", Repo: "ops", HTTP: c, Token: func() string { return "canary" }})
		if err != nil {
			t.Fatal(err)
		}
		runs := loop.New(loop.Config{DB: db, Log: log, Default: "refs/heads/main", Repo: "ops"})
		commits := loop.NewCommits(loop.CommitsConfig{DB: db, Runs: runs, Log: log, Name: "ops", Default: "refs/heads/main"})
		pulls := loop.NewPulls(loop.PullsConfig{
			DB: db, Forge: g, Commits: commits, Log: log, Name: "ops", Poll: 30 * time.Second,
			Proposals: loop.NewProposals(loop.ProposalsConfig{DB: db, Commits: commits, Runs: runs, Log: log, Name: "ops", Default: "refs/heads/main", Pulls: true}),
			Bring:     func(context.Context, []pipeline.Ref) (map[pipeline.Ref]pipeline.CommitID, error) { return nil, nil },
		})
		commenter := loop.NewCommenter(loop.CommenterConfig{DB: db, Forge: g, Log: log, Name: "ops"})
		converger := forge.NewConverger(forge.Config{Forge: g, Register: db.Register(""), Log: log})
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for _, run := range []func(context.Context) error{pulls.Run, commenter.Run, converger.Run} {
			wg.Go(func() { _ = run(ctx) })
		}
		f(db)
		cancel()
		wg.Wait()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestFiveHundredPullRequestsFitIntoGitHubsBudget counts what an hour of looking costs
// that GitHub counts, from the first look on, while a hundred of them change, and what is
// asked at a time and in a minute.
func TestFiveHundredPullRequestsFitIntoGitHubsBudget(t *testing.T) {
	if testing.Short() {
		t.Skip("25,000 requests; the quick part leaves that out")
	}
	t.Parallel()
	c := &cloud{pulls: 500}
	speaks(t, c, func(*store.DB) {
		time.Sleep(time.Minute)
		_, early := c.so()
		time.Sleep(4 * time.Minute)
		_, first := c.so()
		for n := range 100 {
			time.Sleep(33 * time.Second)
			c.mu.Lock()
			c.updated[5*n+1] = time.Now()
			c.mu.Unlock()
		}
		asked, paid := c.so()
		t.Logf("of %d requests in an hour %d count, %d of them in the first five minutes, %d in the first; %d points in a minute and %d at a time at most",
			asked, paid, first, early, c.peak(), c.most)
		if first < 1500 || first > 1600 || paid > 2500 {
			t.Errorf("%d of %d requests count, %d of them at the start; docs/forges.md says something else", paid, asked, first)
		}
		// GitHub allows 900 points in a minute, and 100 requests at a time.
		if early > 700 || c.peak() > 800 || c.most > 20 {
			t.Errorf("%d points in a minute, %d requests at a time, %d in the first minute", c.peak(), c.most, early)
		}
	})
}

// TestHalfAnHourWithoutGitHubLeavesTheLatestOnce lets statuses and comments change all
// through an outage in which requests are refused, and some are carried out unheard.
func TestHalfAnHourWithoutGitHubLeavesTheLatestOnce(t *testing.T) {
	t.Parallel()
	const pulls = 10
	c := &cloud{pulls: pulls}
	speaks(t, c, func(db *store.DB) {
		state := 0
		change := func() {
			t.Helper()
			state++
			err := db.Write(context.Background(), func(tx *store.Tx) error {
				for n := 1; n <= pulls; n++ {
					p := &pipeline.Proposal{
						Branch: pipeline.PullName(n), Target: "main", Head: pipeline.CommitID(headOf(n)), State: pipeline.ProposalOpen,
						Approval: pipeline.ApprovalWaiting, Sentence: fmt.Sprintf("needs state %d", state), Digest: "sha256:1",
						Predicted: []pipeline.CompositionName{"build"}, Markdown: fmt.Sprintf("state %d", state), ChangedAt: time.Now(),
					}
					if err := tx.SaveProposal("ops", p); err != nil {
						return err
					}
					for _, context := range []string{"maestro", "maestro/run/build"} {
						if err := tx.Desire(pipeline.Status{Commit: p.Head, Context: context, State: "pending", Description: fmt.Sprintf("state %d", state)}); err != nil {
							return err
						}
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		change()
		time.Sleep(time.Minute)
		before, _ := c.so()
		requests := 0
		c.mu.Lock()
		c.away = func() string {
			if requests++; requests%10 == 0 {
				return "lost"
			}
			return "refused"
		}
		c.mu.Unlock()
		for range 60 {
			time.Sleep(30 * time.Second)
			change()
		}
		c.mu.Lock()
		c.away = nil
		c.mu.Unlock()
		from, _ := c.so()
		time.Sleep(15 * time.Minute)

		want := fmt.Sprintf("state %d", state)
		c.mu.Lock()
		for n := 1; n <= pulls; n++ {
			if len(c.comments[n]) != 1 {
				t.Errorf("pull request %d has %d comments", n, len(c.comments[n]))
			}
			for _, text := range c.comments[n] {
				if !strings.Contains(text, want) {
					t.Errorf("pull request %d says %q", n, text)
				}
			}
			for _, context := range []string{"maestro", "maestro/run/build"} {
				if got := c.statuses[headOf(n)+" "+context]; got != want {
					t.Errorf("%s of %d says %q", context, n, got)
				}
			}
		}
		c.mu.Unlock()
		statuses := c.count(from, "POST /statuses/")
		comments := c.count(from, "PATCH ") + c.count(from, "POST /issues/")
		t.Logf("afterwards %d statuses and %d comments were written; %d requests during the outage", statuses, comments, from-before)
		if from-before > 120 {
			t.Errorf("%d requests were made in vain; docs/forges.md says one every 30 seconds", from-before)
		}
		if statuses > 2*pulls || comments > pulls {
			t.Errorf("%d statuses and %d comments were written for %d and %d that were wanted", statuses, comments, 2*pulls, pulls)
		}
	})
}
