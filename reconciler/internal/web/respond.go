package web

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
)

// handlerFunc answers a request or says why not. It has written nothing when it
// returns an error.
type handlerFunc func(w http.ResponseWriter, r *http.Request) error

// Problem is an error as programs get it (RFC 9457).
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// handle adapts a handler that returns an error. This is the one place where a
// kind becomes a status, and where it is decided what a stranger may read.
func (s *server) handle(h handlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := h(w, r)
		if err == nil || errors.Is(err, context.Canceled) {
			return
		}
		switch fault.KindOf(err) {
		case fault.Invalid:
			s.fail(w, r, http.StatusBadRequest, err.Error())
		case fault.NotFound:
			s.fail(w, r, http.StatusNotFound, err.Error())
		case fault.Conflict:
			s.fail(w, r, http.StatusConflict, err.Error())
		case fault.Unavailable:
			s.log.Warn("request not answered", "path", r.URL.Path, "err", err)
			w.Header().Set("Retry-After", "2")
			s.fail(w, r, http.StatusServiceUnavailable, "The record does not answer just now. Try again in a moment.")
		default:
			id := strconv.FormatInt(s.now().UnixNano(), 36)
			s.log.Error("request failed", "path", r.URL.Path, "request_id", id, "err", err)
			s.fail(w, r, http.StatusInternalServerError, "Internal error; the log of the reconciler has it under request_id "+id+".")
		}
	})
}

// fail answers with an error, as a problem document to a program and as a page
// to a browser.
func (s *server) fail(w http.ResponseWriter, r *http.Request, status int, detail string) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Del("ETag")
	if strings.HasPrefix(r.URL.Path, "/api/") {
		b, err := json.Marshal(Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail})
		if err != nil {
			s.log.Error("problem not encoded", "err", err)
		}
		s.send(w, r, status, "application/problem+json", b)
		return
	}
	view := errorView{page: s.plainPage(http.StatusText(status), ""), Status: status, Detail: detail}
	var b bytes.Buffer
	if err := s.ui.Render(&b, "error", view); err != nil {
		s.log.Error("error page not rendered", "err", err)
		http.Error(w, detail, status)
		return
	}
	s.send(w, r, status, "text/html; charset=utf-8", b.Bytes())
}

type errorView struct {
	page
	Status int
	Detail string
}

func (s *server) notFound(w http.ResponseWriter, r *http.Request) {
	s.fail(w, r, http.StatusNotFound, "There is nothing at this address.")
}

// worthPacking is the size from which compressing pays.
const worthPacking = 2 << 10

// send writes a whole response. A client that went away is nobody's fault.
func (s *server) send(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Vary", "Accept-Encoding")
	if len(body) >= worthPacking && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		_, writeErr := z.Write(body)
		if err := errors.Join(writeErr, z.Close()); err == nil {
			h.Set("Content-Encoding", "gzip")
			body = b.Bytes()
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return
	}
	if _, err := w.Write(body); err != nil {
		s.log.Debug("client went away", "path", r.URL.Path, "err", err)
	}
}

func (s *server) sendJSON(w http.ResponseWriter, r *http.Request, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	s.send(w, r, http.StatusOK, "application/json", append(b, '\n'))
	return nil
}

// freshFor is how long a page counts as unchanged when no change was recorded:
// it shows ages, and sentences about agents that come and go.
const freshFor = 10 * time.Second

// unchanged gives the response a tag made of the address, the newest change and
// the time, and reports whether the client has that version already. It costs
// one small read, and saves building the page.
func (s *server) unchanged(w http.ResponseWriter, r *http.Request) (bool, error) {
	seq, err := s.src.LastSeq(r.Context())
	if err != nil {
		return false, err
	}
	_, noted := s.src.Noted(math.MaxInt64)
	tag := fmt.Sprintf(`W/"%x-%x-%x-%x"`, s.bootedAt.UnixNano(), seq, noted, s.now().UnixNano()/int64(freshFor))
	w.Header().Set("ETag", tag)
	w.Header().Set("Cache-Control", "private, no-cache")
	w.Header().Set("Vary", "Accept-Encoding")
	if r.Header.Get("If-None-Match") != tag {
		return false, nil
	}
	w.WriteHeader(http.StatusNotModified)
	return true, nil
}
