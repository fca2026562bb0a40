package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// TestSoundCompositionsAreClean holds the checker to silence: each composition here
// does what its author means, so nothing may be said of it, not even a warning.
func TestSoundCompositionsAreClean(t *testing.T) {
	t.Parallel()
	const shared = "testdata/sound/plugins.txtar"
	common, err := os.ReadFile(shared)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("testdata/sound/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	e := newEvaluator(t, nil)
	n := 0
	for _, p := range paths {
		if p == shared {
			continue
		}
		raw, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		ar := txtar.Parse(raw)
		input := &txtar.Archive{}
		for _, f := range ar.Files {
			if !strings.HasPrefix(f.Name, "want/") {
				input.Files = append(input.Files, f)
			}
		}
		tree := files(t, base, string(common), string(txtar.Format(input)))
		cfg := evaluate(t, e, tree)
		if got := rendered(t, cfg, tree); got != "" {
			t.Errorf("%s:\n%s", p, got)
		}
		n += len(cfg.Compositions)
	}
	const least = 40
	if n < least {
		t.Errorf("%d sound compositions; want at least %d", n, least)
	}
}
