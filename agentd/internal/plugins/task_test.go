package plugins_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/agentd/internal/emit"
)

// The test binary is also the agentd that programs call back.
func TestMain(m *testing.M) {
	if os.Getenv("MAESTRO_AGENTD") != "" && len(os.Args) > 1 {
		switch os.Args[1] {
		case "emit":
			os.Exit(emit.Run(os.Args[2:], os.Getenv, os.Stderr))
		case "env":
			os.Exit(emit.Env(os.Stdin, os.Stdout, os.Stderr))
		}
	}
	if dir := os.Getenv("FETCH_CHILD"); dir != "" {
		os.Exit(fetchChild(dir))
	}
	os.Exit(m.Run())
}

// seat is what an agent keeps for the tasks of a composition.
type seat struct{ workspace, cache string }

func newSeat(t testing.TB) seat {
	t.Helper()
	s := seat{filepath.Join(t.TempDir(), "work space"), filepath.Join(t.TempDir(), "cache")}
	for _, d := range []string{s.workspace, s.cache} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// ended is what is left of a task.
type ended struct {
	exit    int
	log     string
	outputs map[string]any
	events  []map[string]json.RawMessage
}

// run starts a program as an agent would: the task on standard input, scalar
// fields and secrets as FIELD_ variables, nothing else of the environment.
func (s seat) run(t testing.TB, argv []string, fields map[string]any, env ...string) ended {
	t.Helper()
	return s.runAfter(t, argv, fields, nil, env...)
}

// runAfter is run with the outputs of the last successful run.
func (s seat) runAfter(t testing.TB, argv []string, fields, previous map[string]any, env ...string) ended {
	t.Helper()
	cmd, events := s.command(t, argv, fields, previous, env...)
	out, err := cmd.CombinedOutput()
	if _, failed := err.(*exec.ExitError); err != nil && !failed {
		t.Fatalf("start %q: %v", argv, err)
	}
	return finish(t, cmd.ProcessState.ExitCode(), string(out), events)
}

func (s seat) command(t testing.TB, argv []string, fields, previous map[string]any, env ...string) (*exec.Cmd, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	scratch := t.TempDir()
	events := filepath.Join(scratch, "events")
	task, err := json.Marshal(map[string]any{
		"task": "t", "composition": "c", "run": "01JDXXXXXXXXXXXXXXXXXXXXXX", "number": 7, "try": 1,
		"fields": fields, "previous": previous, "workspace": s.workspace, "scratch": scratch, "cache": s.cache,
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = s.workspace
	cmd.Stdin = bytes.NewReader(task)
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "HOME=" + os.Getenv("HOME"), "TMPDIR=" + scratch,
		"MAESTRO_AGENTD=" + self, "MAESTRO_EVENTS=" + events, "MAESTRO_WORKSPACE=" + s.workspace,
		"MAESTRO_SCRATCH=" + scratch, "MAESTRO_CACHE=" + s.cache, "MAESTRO_TASK=t", "MAESTRO_RUN=01JDXXXXXXXXXXXXXXXXXXXXXX",
		"MAESTRO_PLUGIN_DIR=" + filepath.Dir(argv[0]),
		// The race detector would make each call of agentd last a second.
		"GORACE=atexit_sleep_ms=0",
	}, scalars(fields)...)
	cmd.Env = append(cmd.Env, env...)
	return cmd, events
}

func scalars(fields map[string]any) []string {
	var out []string
	for name, v := range fields {
		if m, ok := v.(map[string]any); ok && m["secret"] != nil {
			v = m["value"]
		}
		switch v.(type) {
		case string, int, float64, bool:
			out = append(out, "FIELD_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"="+fmt.Sprint(v))
		}
	}
	return out
}

func finish(t testing.TB, exit int, log, events string) ended {
	t.Helper()
	e := ended{exit: exit, log: log, outputs: map[string]any{}}
	f, err := os.Open(events)
	if os.IsNotExist(err) {
		return e
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := json.NewDecoder(f); ; {
		var event map[string]json.RawMessage
		if err := d.Decode(&event); err == io.EOF {
			return e
		} else if err != nil {
			t.Fatalf("events: %v", err)
		}
		e.events = append(e.events, event)
		if raw, ok := event["output"]; ok {
			var o struct {
				Name  string
				Value any
			}
			if err := json.Unmarshal(raw, &o); err != nil {
				t.Fatal(err)
			}
			e.outputs[o.Name] = o.Value
		}
	}
}

// standard is a program of a standard plugin.
func standard(t testing.TB, path string) []string {
	t.Helper()
	abs, err := filepath.Abs(filepath.Join("..", "..", "..", "plugins", filepath.FromSlash(path)))
	if err != nil {
		t.Fatal(err)
	}
	return []string{abs}
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
