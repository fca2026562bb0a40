package web_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/reconciler/internal/web"
)

func handler(t *testing.T, src web.Source) http.Handler {
	t.Helper()
	h, err := web.New(web.Config{Source: src, Version: "v0.0.0-test", Title: "Maestro", Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)), Now: func() time.Time { return epoch }})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// testWriter sends the log to the test that caused it.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Helper()
	w.t.Logf("%s", b)
	return len(b), nil
}

func serve(t *testing.T, src web.Source) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(handler(t, src))
	t.Cleanup(s.Close)
	return s
}

// get returns status and body of a path, with no redirect followed.
func get(t *testing.T, h http.Handler, path string, headers ...string) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	res := w.Result()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}
