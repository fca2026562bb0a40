package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/pipeline"
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
		askCUE(t, p, e, tree, cfg)
	}
	const least = 40
	if n < least {
		t.Errorf("%d sound compositions; want at least %d", n, least)
	}
}

// askCUE wants the same compositions when CUE is asked for the references, as it is
// for files that hold more than plain fields.
func askCUE(t *testing.T, name string, e *config.Evaluator, tree fstest.MapFS, want pipeline.Config) {
	t.Helper()
	for file, f := range tree {
		if strings.HasPrefix(file, "compositions/") && strings.HasSuffix(file, ".cue") {
			tree[file] = &fstest.MapFile{Data: append(slices.Clone(f.Data), "\n_asked: 1\n"...)}
		}
	}
	got := evaluate(t, e, tree)
	unread := slices.ContainsFunc(want.Diagnostics, func(d pipeline.Diagnostic) bool { return d.Code == "RC0100" })
	if a, b := len(want.Diagnostics), len(got.Diagnostics); a != b && !unread {
		t.Errorf("%s: %d diagnostics, and %d when CUE is asked:\n%v", name, a, b, got.Diagnostics)
	}
	if diff := cmp.Diff(want.Compositions, got.Compositions); diff != "" {
		t.Errorf("%s: CUE finds other references than the syntax shows (-syntax +CUE):\n%s", name, diff)
	}
}
