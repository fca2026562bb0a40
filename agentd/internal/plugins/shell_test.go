//go:build unix

package plugins_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func shell(t *testing.T, s seat, fields map[string]any) ended {
	t.Helper()
	return s.run(t, standard(t, "shell/run"), fields)
}

func TestShellRunsTheScriptAndReportsOutputs(t *testing.T) {
	t.Parallel()
	e := shell(t, newSeat(t), map[string]any{"script": `
		echo "it's here: $PWD"
		"$MAESTRO_AGENTD" emit output version "1.2 $NAME"
		"$MAESTRO_AGENTD" emit output-json ids '["a","b"]'
	`, "env": map[string]any{"NAME": "it's \"x\" $HOME `id`\nend"}})
	if e.exit != 0 || !strings.Contains(e.log, "it's here: ") {
		t.Fatalf("exit %d, log %s", e.exit, e.log)
	}
	if got, want := e.outputs["version"], "1.2 it's \"x\" $HOME `id`\nend"; got != want {
		t.Errorf("version = %q, want %q", got, want)
	}
	if ids, ok := e.outputs["ids"].([]any); !ok || len(ids) != 2 {
		t.Errorf("ids = %v", e.outputs["ids"])
	}
}

func TestShellStopsAtTheFirstFailureAndKeepsItsExitCode(t *testing.T) {
	t.Parallel()
	e := shell(t, newSeat(t), map[string]any{"script": "echo one\n(exit 7)\necho two"})
	if e.exit != 7 || strings.Contains(e.log, "two") {
		t.Errorf("exit %d, log %q", e.exit, e.log)
	}
}

func TestShellWorksInTheCheckout(t *testing.T) {
	t.Parallel()
	s := newSeat(t)
	for _, dir := range []string{"src/app", "-", "-P", "a b"} {
		if err := os.MkdirAll(filepath.Join(s.workspace, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		e := shell(t, s, map[string]any{"script": "pwd -P; echo \"[$CDPATH]\" >&2", "workdir": dir})
		want, err := filepath.EvalSymlinks(filepath.Join(s.workspace, dir))
		if err != nil {
			t.Fatal(err)
		}
		if e.exit != 0 || !strings.HasPrefix(e.log, want+"\n") {
			t.Errorf("workdir %q: exit %d, log %q, want %q", dir, e.exit, e.log, want)
		}
	}
	if e := shell(t, s, map[string]any{"script": "echo ran", "workdir": "missing"}); e.exit == 0 || !strings.Contains(e.log, "missing is not in the workspace") {
		t.Errorf("missing workdir: exit %d, log %q", e.exit, e.log)
	}
}

func TestShellUsesBashWhenAsked(t *testing.T) {
	t.Parallel()
	e := shell(t, newSeat(t), map[string]any{"script": `a=(x y); echo "${a[1]} $BASH_VERSION"`, "shell": "bash"})
	if e.exit != 0 || !strings.HasPrefix(e.log, "y ") {
		t.Errorf("exit %d, log %q", e.exit, e.log)
	}
	e = shell(t, newSeat(t), map[string]any{"script": "true", "shell": "zsh; id"})
	if e.exit != 2 || strings.Contains(e.log, "uid=") {
		t.Errorf("zsh; id: exit %d, log %q", e.exit, e.log)
	}
}

// The values of a field are data: nothing but the script itself is run as code.
func TestFieldsAreNeverCode(t *testing.T) {
	t.Parallel()
	for _, fields := range []map[string]any{
		{"script": "true", "workdir": "$(touch hacked)"},
		{"script": "true", "env": map[string]any{"X": "'; touch hacked; '"}},
		{"script": "true", "env": map[string]any{"X; touch hacked": "1"}},
		{"script": "true", "env": map[string]any{"LD_PRELOAD": "/evil.so"}},
		{"script": "true", "env": map[string]any{"PATH": "/evil"}},
		{"script": "true", "env": map[string]any{"script": "touch hacked", "shell": "touch", "exports": "touch hacked", "1": "x"}},
	} {
		s := newSeat(t)
		e := shell(t, s, fields)
		if _, err := os.Stat(filepath.Join(s.workspace, "hacked")); err == nil {
			t.Errorf("%v was run as code: %s", fields, e.log)
		}
	}
}

func TestNamesOfVariablesDoNotReachTheRunner(t *testing.T) {
	t.Parallel()
	e := shell(t, newSeat(t), map[string]any{
		"script": `echo "$script $shell $exports ${FIELD_SCRIPT-unset}"`,
		"env":    map[string]any{"script": "a", "shell": "b", "exports": "c"},
	})
	if e.exit != 0 || e.log != "a b c unset\n" {
		t.Errorf("exit %d, log %q", e.exit, e.log)
	}
}

func TestShellSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	if e := shell(t, newSeat(t), map[string]any{}); e.exit != 2 || !strings.Contains(e.log, "script is empty or larger") {
		t.Errorf("exit %d, log %q", e.exit, e.log)
	}
	// A script near the limit of a variable works.
	if e := shell(t, newSeat(t), map[string]any{"script": strings.Repeat("# filler\n", 7000) + "echo done"}); e.exit != 0 || e.log != "done\n" {
		t.Errorf("a long script: exit %d, log %.200q", e.exit, e.log)
	}
}
