package forge

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// etags asks only for what changed: an answer that is the same costs nothing of
// GitHub's hourly budget.
type etags struct {
	next http.RoundTripper

	mu    sync.Mutex
	kept  map[string]*keptAnswer // by URL
	order []string               // the one asked for longest ago first
	size  int
}

type keptAnswer struct {
	tag    string
	header http.Header
	body   []byte
}

const (
	// mostKept and mostKeptBytes bound what is kept: the lists of 500 pull requests
	// with their reviews and commits fit.
	mostKept      = 4000
	mostKeptBytes = 64 << 20
	mostKeptOne   = 4 << 20
)

func newEtags(next http.RoundTripper) *etags {
	return &etags{next: next, kept: map[string]*keptAnswer{}}
}

func (e *etags) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet {
		return e.next.RoundTrip(req)
	}
	key := req.URL.String()
	e.mu.Lock()
	k := e.kept[key]
	e.mu.Unlock()
	if k != nil {
		req = req.Clone(req.Context())
		req.Header.Set("If-None-Match", k.tag)
	}
	res, err := e.next.RoundTrip(req)
	switch {
	case err != nil:
		return nil, err
	case res.StatusCode == http.StatusNotModified && k != nil:
		_ = res.Body.Close()
		header := k.header.Clone()
		for name, v := range res.Header { // how much of the budget is left
			if strings.HasPrefix(name, "X-Ratelimit-") {
				header[name] = v
			}
		}
		res.StatusCode, res.Status, res.Header = http.StatusOK, "200 OK", header
		res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(k.body)), int64(len(k.body))
		return res, nil
	case res.StatusCode != http.StatusOK || res.Header.Get("ETag") == "":
		return res, nil
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, mostKeptOne+1))
	if err != nil {
		_ = res.Body.Close()
		return nil, err
	}
	if len(body) > mostKeptOne {
		res.Body = &joined{io.MultiReader(bytes.NewReader(body), res.Body), res.Body}
		return res, nil
	}
	_ = res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(body))
	e.keep(key, &keptAnswer{tag: res.Header.Get("ETag"), header: res.Header.Clone(), body: body})
	return res, nil
}

type joined struct {
	io.Reader
	io.Closer
}

func (e *etags) keep(key string, k *keptAnswer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.drop(key)
	e.kept[key] = k
	e.order = append(e.order, key)
	e.size += len(k.body)
	for len(e.order) > mostKept || e.size > mostKeptBytes {
		e.drop(e.order[0])
	}
}

func (e *etags) drop(key string) {
	k := e.kept[key]
	if k == nil {
		return
	}
	delete(e.kept, key)
	e.size -= len(k.body)
	e.order = slices.DeleteFunc(e.order, func(o string) bool { return o == key })
}
