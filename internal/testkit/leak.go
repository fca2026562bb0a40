package testkit

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// CheckNoLeak fails the test when a secret is found, plain or in a usual encoding,
// in what the server shows or says, in its data folder, or in what the agents say
// and keep.
func (s *Server) CheckNoLeak(t testing.TB, secret string, agents ...*Agent) {
	t.Helper()
	places := s.shown(t)
	places["output of the reconciler"] = s.Said()
	folders := []string{s.Data}
	for _, a := range agents {
		places["output of agent "+a.Name] = a.Said()
		folders = append(folders, a.Dir)
	}
	for place, text := range places {
		if form := leaked([]byte(text), secret); form != "" {
			t.Errorf("the secret is in %s, %s", place, form)
		}
	}
	for _, dir := range folders {
		checkFolder(t, dir, secret)
	}
}

func checkFolder(t testing.TB, dir, secret string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // it went while we looked, or holds nothing
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		files++
		if form := leaked(b, secret); form != "" {
			t.Errorf("the secret is in %s, %s", path, form)
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("looked at %d files of %s: %v", files, dir, err)
	}
}

// leaked returns how the secret is written in b, or "" when it is not.
func leaked(b []byte, secret string) string {
	forms := map[string]string{"plain": secret, "as hex": hex.EncodeToString([]byte(secret)), "escaped for a URL": url.QueryEscape(secret)}
	// Base64 of a longer text, in which the secret begins at any of three offsets;
	// the characters at both ends depend on its neighbours.
	for off := range 3 {
		enc := base64.RawStdEncoding.EncodeToString(append(make([]byte, off), secret...))
		forms[fmt.Sprintf("as base64 at offset %d", off)] = enc[[]int{0, 2, 3}[off] : len(enc)-2]
	}
	for name, form := range forms {
		if bytes.Contains(b, []byte(form)) {
			return name
		}
	}
	return ""
}

var hrefRE = regexp.MustCompile(`href="(/[^"#]*)`)

// shown fetches every page of the web view that a link leads to, and every answer
// of the API about what is there, logs included.
func (s *Server) shown(t testing.TB) map[string]string {
	t.Helper()
	out := map[string]string{}
	todo := []string{
		"/", "/queue", "/agents", "/commits", "/problems", "/plugins", "/api/v1/board", "/api/v1/agents", "/api/v1/commits",
		"/api/v1/events?after=0", "/api/v1/changes", "/api/v1/plugins", "/api/v1/pools", "/api/v1/queue", "/api/v1/runs?tasks=1&limit=200",
	}
	var list struct{ Runs []pipeline.Run }
	if err := s.Get("/runs?tasks=1&limit=200", &list); err != nil {
		t.Fatal(err)
	}
	for _, r := range list.Runs {
		todo = append(todo, "/api/v1/runs/"+string(r.ID), "/api/v1/runs/"+string(r.ID)+"/attempts", "/api/v1/commits/"+string(r.Commit),
			"/api/v1/compositions/"+string(r.Composition))
		for _, k := range r.Tasks {
			if k.Attempt != "" {
				todo = append(todo, "/api/v1/attempts/"+string(k.Attempt)+"/log", "/api/v1/attempts/"+string(k.Attempt)+"/lines")
			}
		}
	}
	for len(todo) > 0 {
		path := todo[0]
		todo = todo[1:]
		if _, seen := out[path]; seen || strings.HasPrefix(path, "/assets/") || len(out) > 300 {
			continue
		}
		resp, err := http.Get(s.Web + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[path] = string(b)
		for _, m := range hrefRE.FindAllStringSubmatch(string(b), -1) {
			todo = append(todo, strings.ReplaceAll(m[1], "&amp;", "&"))
		}
	}
	return out
}
