package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maestro-cd/maestro/reconciler/internal/forge"
	"github.com/maestro-cd/maestro/reconciler/internal/sources"
)

// listed is a GitHub in memory that lists pull requests, all of them at a commit that
// counts their changes.
type listed struct {
	mu          sync.Mutex
	changes     []int
	asked, paid int
}

func (l *listed) RoundTrip(req *http.Request) (*http.Response, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	type m = map[string]any
	page, _ := strconv.Atoi(req.URL.Query().Get("page"))
	page = max(page, 1)
	list, header := []m{}, http.Header{"Content-Type": {"application/json"}}
	for n := (page - 1) * 100; n < min(page*100, len(l.changes)); n++ {
		repo := m{"id": 9}
		list = append(list, m{
			"number": n + 1, "state": "open", "user": m{"id": 2, "login": "eve", "type": "User"},
			"head": m{"ref": "b", "sha": fmt.Sprintf("%040x", l.changes[n]), "repo": repo}, "base": m{"ref": "main", "repo": repo},
		})
	}
	if page*100 < len(l.changes) {
		header.Set("Link", fmt.Sprintf(`<https://api.github.com/x?page=%d>; rel="next"`, page+1))
	}
	body, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	header.Set("ETag", fmt.Sprintf(`"%x"`, sha256.Sum256(body)))
	l.asked++
	code := http.StatusNotModified
	if req.Header.Get("If-None-Match") != header.Get("ETag") {
		code = http.StatusOK
		l.paid++
	} else {
		body = nil
	}
	return &http.Response{StatusCode: code, Status: http.StatusText(code), Header: header, Body: io.NopCloser(bytes.NewReader(body)), Request: req}, nil
}

// TestLooksAtPullRequestsOfASourceCostWhatChanged counts an hour of 200 open ones, of
// which a hundred get another head.
func TestLooksAtPullRequestsOfASourceCostWhatChanged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &listed{changes: make([]int, 200)}
		g, err := forge.NewGitHub(forge.GitHubConfig{Owner: "octo", Repo: "app", HTTP: l})
		if err != nil {
			t.Fatal(err)
		}
		observed := 0
		src := sources.New(sources.Config[openPulls]{
			Repo: pullsOf{g}, Poll: 30 * time.Second, Resync: 2 * time.Hour,
			Observe: func(context.Context, openPulls) error { observed++; return nil },
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = src.Run(ctx) })
		for n := range 100 {
			time.Sleep(36 * time.Second)
			l.mu.Lock()
			l.changes[2*n]++
			l.mu.Unlock()
		}
		time.Sleep(31 * time.Second) // the look at 30 has ended
		cancel()
		wg.Wait()
		// Two pages a look, and a page for each change: docs/forges.md says so.
		if l.asked != 2*122 || l.paid != 2+100 || observed != 1+100 {
			t.Errorf("%d requests, of which %d count, and %d observations", l.asked, l.paid, observed)
		}
	})
}
