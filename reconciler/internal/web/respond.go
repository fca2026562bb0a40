package web

import (
	"encoding/json"
	"net/http"
	"strings"
)

// Problem is an error as programs get it (RFC 9457).
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// fail answers with an error in the form that the client asked for.
func (s *server) fail(w http.ResponseWriter, r *http.Request, status int, detail string) {
	if strings.HasPrefix(r.URL.Path, "/api/") {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		p := Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
		if err := json.NewEncoder(w).Encode(p); err != nil {
			s.log.Debug("client went away", "err", err)
		}
		return
	}
	http.Error(w, detail, status)
}

func (s *server) notFound(w http.ResponseWriter, r *http.Request) {
	s.fail(w, r, http.StatusNotFound, "There is nothing at this address.")
}
