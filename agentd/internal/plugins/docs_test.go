//go:build unix

package plugins_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/agentd/internal/emit"
)

// manual is docs/plugins.md, taken apart: the blocks of code that have a name.
type manual struct {
	text   string
	blocks map[string]string
	dir    string // the blocks as files, programs executable
}

func openManual(t *testing.T) manual {
	t.Helper()
	m := manual{text: read(t, filepath.Join("..", "..", "..", "docs", "plugins.md")), blocks: map[string]string{}, dir: t.TempDir()}
	for _, found := range regexp.MustCompile("(?ms)^```\\w+ (\\S+)\n(.*?)^```$").FindAllStringSubmatch(m.text, -1) {
		m.blocks[found[1]] = found[2]
		if !strings.HasPrefix(found[1], "plugins/") {
			continue
		}
		path := filepath.Join(m.dir, filepath.FromSlash(found[1]))
		write(t, path, found[2])
		if strings.HasPrefix(found[2], "#!") {
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return m
}

func (m manual) program(name string) []string {
	return []string{filepath.Join(m.dir, "plugins", filepath.FromSlash(name))}
}

func TestManualIsComplete(t *testing.T) {
	t.Parallel()
	m := openManual(t)
	for _, name := range []string{"plugins/http/plugin.cue", "plugins/http/ping", "plugins/changelog/plugin.cue", "plugins/changelog/write", "try-by-hand"} {
		if m.blocks[name] == "" {
			t.Errorf("no block named %s", name)
		}
		if strings.HasPrefix(m.blocks[name], "#!") && strings.Count(m.blocks[name], "\n") >= 40 {
			t.Errorf("%s has 40 lines or more", name)
		}
	}
	for _, verb := range regexp.MustCompile(`(?m)^  (agentd emit \S+)`).FindAllStringSubmatch(emit.Usage, -1) {
		if !strings.Contains(m.text, verb[1]) {
			t.Errorf("the manual does not tell %q", verb[1])
		}
	}
	variable := regexp.MustCompile(`MAESTRO_[A-Z_]+`)
	given := names(regexp.MustCompile(`"MAESTRO_[A-Z_]+=`), variable, read(t, filepath.Join("..", "runner", "task.go")))
	told := names(regexp.MustCompile("(?m)^\\| `MAESTRO_.*"), variable, m.text)
	if d := cmp.Diff(given, told); d != "" {
		t.Errorf("variables that the agent gives, and those that the manual lists:\n%s", d)
	}
}

// names are the matches of word in the matches of in, sorted.
func names(in, word *regexp.Regexp, text string) []string {
	var out []string
	for _, part := range in.FindAllString(text, -1) {
		out = append(out, word.FindAllString(part, -1)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func TestShellExampleWorks(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip(err)
	}
	m := openManual(t)
	var asked atomic.Int32
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer CANARY-token" || r.URL.Path == "/never" || asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(page.Close)
	fields := map[string]any{"url": page.URL + "/ok", "tries": 5, "wait": 0, "token": secret("CANARY-token")}
	e := newSeat(t).run(t, m.program("http/ping"), fields)
	if e.exit != 0 || e.outputs["status"] != 200.0 || e.outputs["seconds"] == nil {
		t.Errorf("exit %d, outputs %v, log %s", e.exit, e.outputs, e.log)
	}
	waited := 0
	for _, event := range e.events {
		if _, ok := event["waiting"]; ok {
			waited++
		}
	}
	if waited != 4 || e.events[0]["link"] == nil {
		t.Errorf("events: %s", e.events)
	}
	fields["url"], fields["tries"] = page.URL+"/never", 2
	if e := newSeat(t).run(t, m.program("http/ping"), fields); e.exit != 1 || len(e.outputs) > 0 || !strings.Contains(e.log, "try 2 of 2: status 503") {
		t.Errorf("a page that never answers: exit %d, outputs %v, log %s", e.exit, e.outputs, e.log)
	}
}

func TestPythonExampleWorks(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip(err)
	}
	m, u, s := openManual(t), newUpstream(t), newSeat(t)
	first := u.git(u.work, "rev-parse", "HEAD")
	u.commit("fix the pump [ACME-7]", "file", "2\n")
	head := u.commit("grow [ACME-12] [ACME-7]", "file", "3\n")
	checkout(t, s, map[string]any{"url": u.bare, "ref": "main"}).good(t, "src", head)
	fields := map[string]any{"workdir": "src", "file": "CHANGES.txt"}
	e := s.runAfter(t, m.program("changelog/write"), fields, map[string]any{"commit": first})
	want := map[string]any{"file": "src/CHANGES.txt", "commit": head, "changes": 2.0, "tickets": []any{"ACME-12", "ACME-7"}}
	if d := cmp.Diff(want, e.outputs); e.exit != 0 || d != "" {
		t.Fatalf("exit %d, log %s\n%s", e.exit, e.log, d)
	}
	if got := read(t, filepath.Join(s.workspace, "src", "CHANGES.txt")); got != "* grow [ACME-12] [ACME-7]\n* fix the pump [ACME-7]\n" {
		t.Errorf("CHANGES.txt = %q", got)
	}
	e = s.runAfter(t, m.program("changelog/write"), fields, e.outputs)
	if e.exit != 0 || len(e.outputs) > 0 || len(e.events) != 1 || !strings.Contains(string(e.events[0]["not_needed"]), head[:12]) {
		t.Errorf("nothing new: exit %d, events %s, log %s", e.exit, e.events, e.log)
	}
	if e := s.runAfter(t, m.program("changelog/write"), fields, nil); e.outputs["changes"] != 3.0 {
		t.Errorf("the first run: outputs %v, log %s", e.outputs, e.log)
	}
}

func TestTryingByHandWorksAsWritten(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip(err)
	}
	m := openManual(t)
	page := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(page.Close)
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	agentd := filepath.Join(bin, "agentd")
	write(t, agentd, "#!/bin/sh\nGORACE=atexit_sleep_ms=0 exec '"+self+"' \"$@\"\n")
	if err := os.Chmod(agentd, 0o755); err != nil {
		t.Fatal(err)
	}
	script := strings.NewReplacer("/tmp/try", filepath.Join(t.TempDir(), "try"), "https://acme.example", page.URL).Replace(m.blocks["try-by-hand"])
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = m.dir
	cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "try 2 of 2: status 404") || !strings.Contains(string(out), `{"waiting":"for `+page.URL) {
		t.Errorf("%v:\n%s", err, out)
	}
}
