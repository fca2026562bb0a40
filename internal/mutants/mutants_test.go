// Package mutants breaks the protocol in each way that is known to matter, one line at
// a time, and sees that the tests notice. A mutant is a file in testdata: what it breaks,
// the file and the text that it replaces, and the tests each of which, alone, must fail.
// Where one layer hides what another would find, each is named on a line of its own.
package mutants_test

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var which = flag.String("mutants", "", `which are to be killed: "all", a name, or "" for one that a test kills each time`)

// mutant is one change of the sources.
type mutant struct {
	name, what, file string
	tests            []string
	before, after    string
}

func mutants(t *testing.T) []mutant {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	var all []mutant
	for _, f := range files {
		a, err := txtar.ParseFile(f)
		if err != nil || len(a.Files) != 2 {
			t.Fatalf("%s: %d files, %v", f, len(a.Files), err)
		}
		m := mutant{
			name:   strings.TrimSuffix(filepath.Base(f), ".txtar"),
			before: strings.TrimSuffix(string(a.Files[0].Data), "\n"), after: strings.TrimSuffix(string(a.Files[1].Data), "\n"),
		}
		for line := range strings.Lines(string(a.Comment)) {
			line = strings.TrimSpace(line)
			if file, ok := strings.CutPrefix(line, "file: "); ok {
				m.file = file
			} else if test, ok := strings.CutPrefix(line, "test: "); ok {
				m.tests = append(m.tests, test)
			} else if m.what == "" {
				m.what = line
			}
		}
		all = append(all, m)
	}
	return all
}

const root = "../.."

// mutated returns the file as the mutant has it.
func (m *mutant) mutated(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(m.file)))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), m.before); n != 1 || m.before == m.after {
		t.Fatalf("the text that it replaces is %d times in %s: bring internal/mutants/testdata/%s.txtar up to date", n, m.file, m.name)
	}
	return strings.Replace(string(b), m.before, m.after, 1)
}

func TestEveryMutantFitsTheSources(t *testing.T) {
	t.Parallel()
	all := mutants(t)
	if len(all) < 30 {
		t.Errorf("%d mutants, want at least 30", len(all))
	}
	for _, m := range all {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			m.mutated(t)
			if m.what == "" || len(m.tests) == 0 {
				t.Errorf("it says %q and names the tests %q", m.what, m.tests)
			}
		})
	}
}

func TestEveryMutantIsKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs other tests; the quick part leaves that out")
	}
	all := mutants(t)
	switch *which {
	case "":
		// Nearly always is not enough for every change; -mutants=all runs them.
		all = slices.DeleteFunc(all, func(m mutant) bool { return slices.ContainsFunc(m.tests, drawn) })
		all = all[rand.IntN(len(all)):][:1]
	case "all":
	default:
		all = slices.DeleteFunc(all, func(m mutant) bool { return m.name != *which })
	}
	if len(all) == 0 {
		t.Fatalf("no mutant %q", *which)
	}
	for _, m := range all {
		for _, test := range m.tests {
			t.Run(m.name, func(t *testing.T) { m.kill(t, test) })
		}
	}
}

// drawn reports whether a test is of the simulation, where the order in which goroutines
// run is not drawn with the schedule: it kills nearly always.
func drawn(test string) bool { return strings.Contains(test, "/sim ") }

// kill runs a test on the mutated sources, which must fail it.
func (m *mutant) kill(t *testing.T, test string) {
	dir := t.TempDir()
	file := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(file, []byte(m.mutated(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	at, err := filepath.Abs(filepath.Join(root, filepath.FromSlash(m.file)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": {at: file}})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"test", "-overlay", overlay, "-count=1", "-vet=off", "-timeout=5m", "-failfast"}, strings.Fields(test)...)
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = root
	// What rapid keeps of a failure is of the mutant.
	kept := filepath.Join(root, strings.Fields(test)[0], "testdata", "rapid")
	if _, err := os.Stat(kept); errors.Is(err, fs.ErrNotExist) {
		defer os.RemoveAll(kept)
	}
	out, err := cmd.CombinedOutput()
	switch said := string(out); {
	case err == nil:
		t.Errorf("%s: survives: go test %s\n%s", m.what, test, said)
	case !strings.Contains(said, "--- FAIL") && !strings.Contains(said, "panic: "):
		t.Errorf("it is no mutant, or its test no test: go test %s: %v\n%s", test, err, said)
	default:
		t.Logf("%s: killed by %s", m.what, test)
	}
}
