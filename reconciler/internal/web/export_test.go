package web

import (
	"net/http"
	"time"
)

// Patterns returns the patterns of all routes, for the tests that walk them.
func Patterns() []string {
	s := &server{}
	var list []string
	for _, r := range s.routes() {
		list = append(list, r.pattern)
	}
	return list
}

// MostStreams is the bound that a test reaches.
const MostStreams = mostStreams

// NewImpatient is New with less patience for clients that do not read.
func NewImpatient(c Config, patience time.Duration) (http.Handler, error) {
	s, err := newServer(c)
	if err != nil {
		return nil, err
	}
	s.patience = patience
	mux := http.NewServeMux()
	for _, r := range s.routes() {
		mux.Handle(r.pattern, r.handler)
	}
	return mux, nil
}
