package main

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/fstest"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestNoAddressOfAnArchiveTakesThePlaceOfAnotherOrHoldsUpCommits(t *testing.T) {
	t.Parallel()
	const text = "a program"
	asked, answer := make(chan bool, 1), make(chan bool)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good":
			_, _ = io.WriteString(w, text)
		case "/slow":
			asked <- true
			<-answer
		}
	}))
	defer server.Close()
	b, err := openBundles(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256([]byte(text))
	sum := hex.EncodeToString(hash[:])
	keep := func(tree pipeline.Digest, path string) {
		t.Helper()
		p := pipeline.Plugin{Name: "p", Dir: "p", Tree: tree, Programs: []pipeline.Program{{URL: server.URL + path, SHA256: sum}}}
		if err := b.keep(&p, fstest.MapFS{"p/manifest.cue": {}}); err != nil {
			t.Fatal(err)
		}
	}
	keep("git:1", "/good")
	keep("git:2", "/slow") // a branch gives another address
	got := make(chan string, 1)
	go func() {
		f, err := b.Archive(t.Context(), sum)
		if err != nil {
			got <- err.Error()
			return
		}
		defer f.Close()
		raw, _ := io.ReadAll(f)
		got <- string(raw)
	}()
	<-asked
	keep("git:3", "/good") // while it is asked for
	close(answer)
	if s := <-got; s != text {
		t.Errorf("got %q", s)
	}
}
