package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// FuzzEvaluate holds that no text of a composition makes the checker panic, blame a
// place that is not there, or break a line of its messages. It runs in-process, so
// texts that may take long are left out: the child is for those.
func FuzzEvaluate(f *testing.F) {
	shared := map[string][]byte{}
	for _, file := range txtar.Parse([]byte(base)).Files {
		shared[file.Name] = file.Data
	}
	for _, pattern := range []string{"testdata/*.txtar", "testdata/sound/*.txtar"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			f.Fatalf("no seeds: %v", err)
		}
		for _, p := range paths {
			raw, err := os.ReadFile(p)
			if err != nil {
				f.Fatal(err)
			}
			for _, file := range txtar.Parse(raw).Files {
				if strings.HasPrefix(file.Name, "compositions/") && strings.HasSuffix(file.Name, ".cue") {
					f.Add(string(file.Data))
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		if dear(text) {
			t.Skip("may take long")
		}
		const name = "compositions/x/x.cue"
		files := map[string][]byte{name: []byte(text)}
		for n, b := range shared {
			if strings.HasSuffix(n, ".cue") && !strings.HasPrefix(n, "cue.mod/") {
				files[n] = b
			}
		}
		ds, compositions := config.CheckInProcess("acme.example/ops@v0", files, "compositions/x")
		lines := strings.Count(text, "\n") + 1
		for _, d := range ds {
			if strings.Contains(d.Message, "gave up") {
				t.Errorf("panic: %s: %s", d, d.Note)
			}
			if d.Pos.File == name && d.Pos.Line > lines {
				t.Errorf("%s is beyond the last line, %d", d, lines)
			}
			if strings.ContainsAny(d.Message+d.Help, "\n\r\x1b") {
				t.Errorf("a message of more than one line: %q", d)
			}
		}
		if pipeline.HasErrors(ds) {
			return
		}
		for _, c := range compositions {
			if c.Digest == "" || len(c.Tasks) == 0 {
				t.Errorf("composition %q has %d tasks and digest %q", c.Name, len(c.Tasks), c.Digest)
			}
			for i := range c.Tasks {
				for _, need := range c.Tasks[i].Needs {
					if c.Task(need) == nil {
						t.Errorf("task %q needs %q, which is not there", c.Tasks[i].Name, need)
					}
				}
			}
		}
	})
}

// dear reports whether a text may take more than a moment to evaluate.
func dear(text string) bool {
	const longest = 8 << 10
	return len(text) > longest || strings.Count(text, "for ") > 4 || strings.Count(text, "|") > 60 ||
		strings.Count(text, "*") > 200 || strings.Contains(text, "list.") || strings.Contains(text, "Repeat")
}
