package web

import "net/http"

// mostStreams bounds open event streams and followed logs. Each costs a
// goroutine, a socket and a look at the record twice a second at most.
const mostStreams = 512

type route struct {
	pattern string
	handler http.Handler
}

func (s *server) routes() []route {
	return []route{
		{"GET /healthz", http.HandlerFunc(s.healthz)},
	}
}

func (s *server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok " + s.version + "\n"))
}
