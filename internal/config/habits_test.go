package config_test

import (
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/maestro-cd/maestro/internal/config"
)

// FuzzHabits runs in the process that must not fall over: module.cue is read there.
func FuzzHabits(f *testing.F) {
	for _, name := range []string{"testdata/habits.txtar", "testdata/syntax.txtar"} {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range txtar.Parse(raw).Files {
			if strings.HasSuffix(file.Name, ".cue") {
				f.Add(string(file.Data))
			}
		}
	}
	f.Add("a: {\r\n\tb: \"x\r\n}")
	f.Add("}}}{{{\n\"\"\"")
	f.Add("-- é\x00: {")
	f.Fuzz(func(t *testing.T, text string) {
		lines := strings.Count(text, "\n") + 1
		for _, d := range config.SyntaxOf("x.cue", text) {
			if d.Message == "" || d.Pos.File != "x.cue" || d.Pos.Line < 0 || d.Pos.Line > lines+1 || d.Pos.Column < 0 {
				t.Errorf("%+v of a file with %d lines", d, lines)
			}
			if strings.ContainsAny(d.Message+d.Note+d.Help, "\n\x1b\x00") {
				t.Errorf("not fit for one line: %q", d)
			}
		}
	})
}
