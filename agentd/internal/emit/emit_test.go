package emit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/agentd/internal/emit"
)

// vars is an environment of one variable.
func vars(name, value string) func(string) string {
	return func(n string) string {
		if n == name {
			return value
		}
		return ""
	}
}

func TestEveryVerbAppendsItsLine(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "events")
	var want string
	for _, c := range []struct {
		args []string
		line string
	}{
		{[]string{"output", "version", "1.2"}, `{"output":{"name":"version","value":"1.2"}}`},
		{[]string{"output", "text", "-rf \"x\"\n<>"}, `{"output":{"name":"text","value":"-rf \"x\"\n\u003c\u003e"}}`},
		{[]string{"output-json", "ids", `["a", 1e3]`}, `{"output":{"name":"ids","value":["a",1e3]}}`},
		{[]string{"link", "Report", "https://ci.example/r?a=1"}, `{"link":{"name":"Report","url":"https://ci.example/r?a=1"}}`},
		{[]string{"record", "cost", `{"eur":3}`}, `{"record":{"name":"cost","value":{"eur":3}}}`},
		{[]string{"progress", "0.25"}, `{"progress":0.25}`},
		{[]string{"progress", "0"}, `{"progress":0}`},
		{[]string{"waiting", "for quota"}, `{"waiting":"for quota"}`},
		{[]string{"waiting", ""}, `{"waiting":""}`},
		{[]string{"text", "compiling"}, `{"text":"compiling"}`},
		{[]string{"not-needed"}, `{"not_needed":true}`},
		{[]string{"not-needed", "same commit"}, `{"not_needed":"same commit"}`},
		{[]string{"cancel"}, `{"cancel":true}`},
		{[]string{"cancel", "wrong branch"}, `{"cancel":"wrong branch"}`},
	} {
		var log strings.Builder
		if code := emit.Run(c.args, vars("MAESTRO_EVENTS", file), &log); code != 0 || log.Len() > 0 {
			t.Errorf("emit %q = %d, said %q", c.args, code, &log)
		}
		want += strings.ReplaceAll(c.line, "\n", `\n`) + "\n"
		got, err := os.ReadFile(file)
		if err != nil || string(got) != want {
			t.Fatalf("emit %q: the file is\n%s, %v, want\n%s", c.args, got, err, want)
		}
	}
}

func TestMistakesAreToldAndWriteNothing(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{},
		{"dance"},
		{"output"},
		{"output", "a"},
		{"output", "a", "b", "c"},
		{"output", "", "x"},
		{"output-json", "a", "{"},
		{"output-json", "a", "1 2"},
		{"record", "cost", "three"},
		{"record", "", "3"},
		{"link", "x", "javascript:alert(1)"},
		{"link", "x", "file:///etc/passwd"},
		{"progress", "2"},
		{"progress", "NaN"},
		{"progress", "-1"},
		{"progress", "half"},
		{"text"},
		{"text", "a\xff"},
		{"not-needed", "a", "b"},
	} {
		file := filepath.Join(t.TempDir(), "events")
		var log strings.Builder
		if code := emit.Run(args, vars("MAESTRO_EVENTS", file), &log); code != 2 || log.Len() == 0 {
			t.Errorf("emit %q = %d, said %q; want 2 and a reason", args, code, &log)
		}
		if _, err := os.Stat(file); err == nil {
			t.Errorf("emit %q wrote something", args)
		}
	}
}

func TestItFailsWhenTheAgentCannotBeTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "target"), link); err != nil {
		t.Fatal(err)
	}
	for what, file := range map[string]string{"no variable": "", "a folder": dir, "a link": link} {
		var log strings.Builder
		if code := emit.Run([]string{"text", "x"}, vars("MAESTRO_EVENTS", file), &log); code != 1 || log.Len() == 0 {
			t.Errorf("%s: exit %d, said %q; want 1 and a reason", what, code, &log)
		}
	}
	var log strings.Builder
	if code := emit.Run([]string{"text", strings.Repeat("x", 1<<20)}, vars("MAESTRO_EVENTS", filepath.Join(dir, "f")), &log); code != 1 {
		t.Errorf("a huge line: exit %d", code)
	}
}

func TestProgramsSideBySideDoNotMixLines(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "events")
	var wg sync.WaitGroup
	const writers, each = 8, 20
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				emit.Run([]string{"output", fmt.Sprintf("w%d-%d", w, i), strings.Repeat("x", 5000)}, vars("MAESTRO_EVENTS", file), os.Stderr)
			}
		})
	}
	wg.Wait()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	if len(lines) != writers*each {
		t.Errorf("%d lines, want %d", len(lines), writers*each)
	}
	for _, l := range lines {
		if !json.Valid(l) {
			t.Fatalf("a mixed line: %.100s", l)
		}
	}
}

// What Env prints, a real shell reads back as the same values.
func TestEnvSurvivesTheShell(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.StringOf(rapid.RuneFrom([]rune("a'\"$`\\ \n;&|*?~#\tü"))).Draw(t, "value")
		task, err := json.Marshal(map[string]any{"fields": map[string]any{"env": map[string]any{"X": value}}})
		if err != nil {
			t.Fatal(err)
		}
		var out, log strings.Builder
		if code := emit.Env(bytes.NewReader(task), &out, &log); code != 0 {
			t.Fatalf("exit %d: %s", code, &log)
		}
		cmd := exec.Command("sh", "-c", `eval "$1"; printf %s "$X"`, "sh", out.String())
		got, err := cmd.CombinedOutput()
		if err != nil || string(got) != value {
			t.Fatalf("the shell read %q, %v, want %q", got, err, value)
		}
	})
}

func TestEnvTakesScalarsAndSecrets(t *testing.T) {
	t.Parallel()
	const task = `{"fields":{"env":{"N":3.0,"B":true,"S":{"secret":"key","value":"CANARY-1"},"http_proxy":"p"}}}`
	const want = "export B='true'\nexport N='3.0'\nexport S='CANARY-1'\nexport http_proxy='p'\n"
	var out, log strings.Builder
	if code := emit.Env(strings.NewReader(task), &out, &log); code != 0 || out.String() != want {
		t.Errorf("exit %d, %s; got\n%swant\n%s", code, &log, &out, want)
	}
}

func TestEnvRefusesWhatDecidesWhichCodeRuns(t *testing.T) {
	t.Parallel()
	bad := []string{`{`, ``, `[]`, `{"fields":{"env":[]}}`, `{"fields":{"env":{"A":{"secret":"k"}}}}`, `{"fields":{"env":{"A":[1]}}}`, `{"fields":{"env":{"A":null}}}`, `{"fields":{"env":{"A":"a\u0000b"}}}`}
	for _, name := range []string{
		"", "A=B", "A B", "1A", "A-B", "A\\u0000", "A;id", "x\\ny", "LD_PRELOAD", "ld_preload", "PATH", "BASH_ENV", "ENV", "GIT_SSH_COMMAND",
		"NODE_OPTIONS", "MAESTRO_EVENTS", "FIELD_X", "AGENTD_TOKEN", "IFS", "DYLD_INSERT_LIBRARIES", strings.Repeat("A", 65),
	} {
		bad = append(bad, `{"fields":{"env":{"`+name+`":"/evil"}}}`)
	}
	for _, task := range bad {
		var out, log strings.Builder
		if code := emit.Env(strings.NewReader(task), &out, &log); code == 0 || out.Len() > 0 || log.Len() == 0 {
			t.Errorf("%s: exit %d, printed %q, said %q", task, code, &out, &log)
		}
	}
	var out, log strings.Builder
	if code := emit.Env(strings.NewReader(`{"fields":{}}`), &out, &log); code != 0 || out.Len() > 0 {
		t.Errorf("no env field: exit %d, %q", code, &log)
	}
}

func FuzzEnv(f *testing.F) {
	f.Add(`{"fields":{"env":{"A":"b'c"}}}`)
	f.Add(`{"fields":{"env":{"A":{"secret":"x","value":1}}}}`)
	f.Fuzz(func(t *testing.T, task string) {
		var out, log strings.Builder
		code := emit.Env(strings.NewReader(task), &out, &log)
		if (code == 0) == (log.Len() > 0) || code != 0 && out.Len() > 0 {
			t.Errorf("exit %d, printed %q, said %q", code, &out, &log)
		}
	})
}
