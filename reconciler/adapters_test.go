package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
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

func TestProgramsAreFetchedFromNoPlaceOfCredentials(t *testing.T) {
	t.Parallel()
	var strays atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/hop" && r.URL.Path != "/" {
			strays.Add(1)
		}
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound)
	}))
	defer server.Close()
	b, err := openBundles(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	forms := []string{
		"http://169.254.169.254/latest", "https://169.254.169.254/latest", "https://[::ffff:169.254.169.254]/", "https://[::ffff:a9fe:a9fe]/", "https://[fe80::1]/",
		"https://[fd00:ec2::254]/", "https://100.100.100.200/", "https://0.0.0.0/", "https://[::]/", "https://224.0.0.1/", "https://[ff02::1]/",
		"http://[::ffff:127.0.0.1]/", "http://127.1/", "http://0/", "http://localhost.evil/", "http://10.0.0.1:6379/", "http://127.0.0.1@10.0.0.1/",
		"file:///etc/passwd", "gopher://127.0.0.1/x", "ftp://127.0.0.1/x", "//", "",
	}
	for i, form := range forms {
		for how, from := range map[string]string{"itself": form, "by a redirect": server.URL + "/hop?to=" + url.QueryEscape(form)} {
			sum := fmt.Sprintf("%064x", 2*i+len(how)%2)
			p := pipeline.Plugin{Name: "p", Dir: "p", Tree: pipeline.Digest(fmt.Sprint("git:", i, how)), Programs: []pipeline.Program{{URL: from, SHA256: sum}}}
			if err := b.keep(&p, fstest.MapFS{"p/manifest.cue": {}}); err != nil {
				t.Fatal(err)
			}
			f, err := b.Archive(t.Context(), sum)
			if err == nil {
				_ = f.Close()
				t.Errorf("%q %s was fetched", form, how)
			} else if strings.Contains(form, "169.254") && strings.HasPrefix(form, "https") && !strings.Contains(err.Error(), "no address of a program") {
				t.Errorf("%q %s: %v", form, how, err)
			}
		}
	}
	if n := strays.Load(); n != 0 {
		t.Errorf("%d requests for something else arrived", n)
	}
}
