// Package web is the read-only HTTP face of the control plane: pages for people,
// a JSON API for programs, and the stream of changes that keeps both current.
//
// It reads through Source and cannot write: every route answers GET and HEAD and
// nothing else. Whatever it shows that people or programs outside have written
// (names, commit subjects, logs, icons) is taken to be hostile; html/template
// escapes it, logs pass package ansi, and the content security policy lets
// nothing run that this binary does not carry.
//
// It is not for webhooks or agents, which have a listener of their own, and it
// knows no store, no Git and no engine.
package web

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/maestro-cd/maestro/ui"
)

// Config is what New needs.
type Config struct {
	// Source is read on every request. Required.
	Source Source
	// Version of the program, shown in the footer and in /healthz.
	Version string
	// Title names this installation; "" is "Maestro".
	Title string
	// Public is the address under which people reach the pages, "" when it is the
	// listener's own. Its host is then accepted on a loopback listener, which
	// otherwise answers only to the names of this machine.
	Public string
	// Intake is the address that agents connect to on the reconciler's machine. It is
	// told to agents that come here; "" when it is not known.
	Intake string
	// Log receives requests that failed for a reason of ours. Required.
	Log *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// New returns the handler of all pages and of the API. It starts nothing: a
// stream of changes lives as long as its request. The error is fault.Invalid
// for an address that is not one, and fault.Internal for broken templates.
//
// A stream ends with its request's context, so the server that carries the
// handler should have a BaseContext that ends when it is told to stop.
func New(c Config) (http.Handler, error) {
	s, err := newServer(c)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	for _, r := range s.routes() {
		mux.Handle(r.pattern, r.handler)
	}
	mux.HandleFunc("/", s.notFound)
	return s.guard(mux), nil
}

func newServer(c Config) (*server, error) {
	face, err := ui.Load()
	if err != nil {
		return nil, fmt.Errorf("load pages: %w", err)
	}
	s := &server{
		src: c.Source, log: c.Log, ui: face, now: c.Now,
		version: c.Version, title: c.Title, intake: c.Intake,
		streams: make(chan struct{}, mostStreams), patience: patience,
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.title == "" {
		s.title = "Maestro"
	}
	if c.Public != "" {
		u, err := url.Parse(c.Public)
		if err != nil || u.Host == "" {
			return nil, invalidPublic(c.Public)
		}
		s.publicHost = u.Hostname()
	}
	s.bootedAt = s.now()
	return s, nil
}

// server is immutable after New.
type server struct {
	src        Source
	log        *slog.Logger
	ui         *ui.UI
	now        func() time.Time
	version    string
	title      string
	publicHost string
	intake     string
	bootedAt   time.Time
	patience   time.Duration
	// streams holds one element for each open stream, so that their number is bounded.
	streams chan struct{}
}
