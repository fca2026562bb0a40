package config_test

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const asksOwners = `
-- policy/policy.cue --
package ops

policy: changes: "owners approve": codeowners: true
`

func TestCodeownersIsTheFirstFileThatIsThere(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text), Mode: 0o644} }
	for name, c := range map[string]struct {
		with    fstest.MapFS
		file    string
		problem string
	}{
		"all three":         {fstest.MapFS{".github/CODEOWNERS": file("* @a"), "CODEOWNERS": file("* @b"), "docs/CODEOWNERS": file("* @c")}, ".github/CODEOWNERS", ""},
		"the root's":        {fstest.MapFS{"CODEOWNERS": file("* @b"), "docs/CODEOWNERS": file("* @c")}, "CODEOWNERS", ""},
		"the guide's":       {fstest.MapFS{"docs/CODEOWNERS": file("* @c")}, "docs/CODEOWNERS", ""},
		"folders of a name": {fstest.MapFS{".github": file("no folder"), "CODEOWNERS/x": file(""), "docs/CODEOWNERS": file("* @c")}, "docs/CODEOWNERS", ""},
		"none":              {fstest.MapFS{"docs": file("no folder")}, "", "the repository has no CODEOWNERS"},
		"another's case":    {fstest.MapFS{"codeowners": file("* @a")}, "", "the repository has no CODEOWNERS"},
		"too large":         {fstest.MapFS{"CODEOWNERS": file(strings.Repeat("# x\n", 1<<19)), "docs/CODEOWNERS": file("* @c")}, "CODEOWNERS", "CODEOWNERS cannot be read: it is larger than 1024 KiB"},
		"empty":             {fstest.MapFS{"CODEOWNERS": file("")}, "CODEOWNERS", ""},
	} {
		tree := files(t, base, asksOwners)
		maps.Copy(tree, c.with)
		cfg := evaluate(t, e, tree)
		if o := cfg.Owners; o.File != c.file || o.Problem != c.problem || pipeline.HasErrors(cfg.Diagnostics) != (c.problem != "") {
			t.Errorf("%s: %+v, %v", name, o, cfg.Diagnostics)
		}
	}
}

func TestCodeownersIsNoLink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, f := range files(t, base, asksOwners) {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(t.TempDir(), "owners")
	if err := os.WriteFile(outside, []byte("* @eve"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "CODEOWNERS")); err != nil {
		t.Fatal(err)
	}
	cfg, err := newEvaluator(t, nil).Evaluate(t.Context(), "c0ffee", config.FSTree(os.DirFS(dir)))
	if err != nil || len(cfg.Owners.Rules) > 0 || !strings.Contains(cfg.Owners.Problem, "CODEOWNERS cannot be read") || !pipeline.HasErrors(cfg.Diagnostics) {
		t.Errorf("%+v, %v", cfg.Owners, err)
	}
}

func TestCodeownersIsReadWhenSomethingAsksAlone(t *testing.T) {
	t.Parallel()
	tree := files(t, base)
	tree["CODEOWNERS"] = &fstest.MapFile{Data: []byte("!wrong"), Mode: 0o644}
	if cfg := evaluate(t, newEvaluator(t, nil), tree); cfg.Owners.File != "" || len(cfg.Diagnostics) > 0 {
		t.Errorf("%+v, %v", cfg.Owners, cfg.Diagnostics)
	}
}
