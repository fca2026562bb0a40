package config_test

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"testing"

	"github.com/maestro-cd/maestro/internal/config"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "internal-evaluate" {
		if err := config.ServeChild(os.Stdin, os.Stdout); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newEvaluator(t testing.TB, change func(*config.Options)) *config.Evaluator {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	opts := config.Options{Child: []string{exe, "internal-evaluate"}}
	if change != nil {
		change(&opts)
	}
	e := config.New(opts)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

func TestTheExampleIsClean(t *testing.T) {
	t.Parallel()
	for name, fsys := range map[string]fs.FS{"compositions": os.DirFS("../../compositions")} {
		cfg, err := newEvaluator(t, nil).Evaluate(context.Background(), "c0ffee", config.FSTree(fsys))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range cfg.Diagnostics {
			t.Errorf("%s: %s\n  note: %s\n  help: %s", name, d, d.Note, d.Help)
		}
		if len(cfg.Compositions) == 0 {
			t.Errorf("%s: no compositions", name)
		}
		b, _ := json.MarshalIndent(cfg, "", " ")
		t.Log(string(b))
	}
}
