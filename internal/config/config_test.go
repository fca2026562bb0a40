package config_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"cuelang.org/go/cue/cuecontext"
	"cuelang.org/go/cue/load"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/plugins"
)

// TestMain makes the test binary its own evaluator child.
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

func mapFS(m map[string][]byte) fstest.MapFS {
	out := fstest.MapFS{}
	for name, text := range m {
		out[name] = &fstest.MapFile{Data: text, Mode: 0o644}
	}
	return out
}

func TestTheExampleAndTheTemplateAreClean(t *testing.T) {
	t.Parallel()
	for name, fsys := range map[string]fs.FS{
		"compositions": os.DirFS("../../compositions"),
		"init":         mapFS(config.InitFiles()),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, err := newEvaluator(t, nil).Evaluate(context.Background(), "c0ffee", config.FSTree(fsys))
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range cfg.Diagnostics {
				t.Errorf("%s\n  note: %s\n  help: %s", d, d.Note, d.Help)
			}
			if cfg.Composition("hello") == nil || len(cfg.Pools) == 0 || cfg.Plugin("shell") == nil || cfg.Plugin("git") == nil {
				t.Errorf("something is missing: %d compositions, %d pools, %d plugins", len(cfg.Compositions), len(cfg.Pools), len(cfg.Plugins))
			}
		})
	}
}

// What init and vendor write must be enough for "cue vet -c=false ./..." without
// any network, and for editors.
func TestAVendoredCheckoutLoadsWithPlainCUE(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range config.InitFiles() {
		write(t, filepath.Join(dir, name), text)
	}
	stale := filepath.Join(dir, "cue.mod/pkg/github.com/maestro-cd/maestro/plugins/old/plugin.cue")
	write(t, stale, []byte("package old\n"))
	if err := config.Vendor(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what an earlier version vendored is still there: %v", err)
	}
	insts := load.Instances([]string{"./..."}, &load.Config{Dir: dir, Env: []string{"CUE_REGISTRY=none", "HOME=" + dir, "CUE_CACHE_DIR=" + dir}})
	if len(insts) < 3 {
		t.Errorf("%d packages, want the root, hello and the pool", len(insts))
	}
	for _, inst := range insts {
		if inst.Err != nil {
			t.Errorf("%s: %v", inst.Dir, inst.Err)
			continue
		}
		if err := cuecontext.New().BuildInstance(inst).Validate(); err != nil {
			t.Errorf("%s: %v", inst.Dir, err)
		}
	}
}

func write(t testing.TB, name string, text []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestTreeHashesAreThoseOfGit(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "plugins/a/plugin.cue"), []byte("package a\n"))
	write(t, filepath.Join(dir, "plugins/a/sub/data.txt"), []byte("x"))
	write(t, filepath.Join(dir, "plugins/a/sub.txt"), nil)
	write(t, filepath.Join(dir, "plugins/a/sub-z"), []byte("y"))
	script := filepath.Join(dir, "plugins/a/run")
	write(t, script, []byte("#!/bin/sh\n"))
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub.txt", filepath.Join(dir, "plugins/a/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "plugins/a/empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	git := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q")
	git("add", ".")
	root := git("write-tree")
	tree := config.FSTree(os.DirFS(dir))
	for name, want := range map[string]string{
		".": root, "plugins/a": git("rev-parse", root+":plugins/a"), "plugins/a/sub": git("rev-parse", root+":plugins/a/sub"),
		"plugins/none": "", "plugins/a/empty": "",
	} {
		if got, err := tree.Hash(name); err != nil || got != want {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestAStandardPluginIsPinnedByItsTree(t *testing.T) {
	t.Parallel()
	cfg := evaluate(t, newEvaluator(t, nil), files(t, base))
	for _, name := range []pipeline.PluginName{"git", "shell"} {
		fsys, digest, err := config.BuiltinPlugin(name)
		if err != nil {
			t.Fatal(err)
		}
		p := cfg.Plugin(name)
		if p == nil || p.Tree != digest || p.Dir != "builtin:"+string(name) || len(p.Tasks) == 0 || p.For("linux", "amd64") == nil {
			t.Errorf("%s: got %+v, want tree %s", name, p, digest)
		}
		if _, err := fs.Stat(fsys, "plugin.cue"); err != nil {
			t.Error(err)
		}
		// Every file that argv names is there, and is known to be a program.
		prog := strings.TrimPrefix(p.For("linux", "amd64").Argv[0], "./")
		text, err := fs.ReadFile(plugins.Files, string(name)+"/"+prog)
		if err != nil || !config.Executable(prog, text) {
			t.Errorf("%s: program %s: %v", name, prog, err)
		}
	}
	if _, _, err := config.BuiltinPlugin("fog"); !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v, want fault.NotFound", err)
	}
}

func TestARepositoryPluginIsPinnedByItsTree(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	tree := files(t, base)
	tree["plugins/fog/run"] = &fstest.MapFile{Data: []byte("#!/bin/sh\n"), Mode: 0o755}
	cfg := evaluate(t, e, tree)
	before := cfg.Plugin("fog").Tree
	want, err := config.FSTree(tree).Hash("plugins/fog")
	if err != nil || string(before) != "git:"+want {
		t.Errorf("got %s, want git:%s (%v)", before, want, err)
	}
	tree["plugins/fog/run"] = &fstest.MapFile{Data: []byte("#!/bin/sh\nexit 1\n"), Mode: 0o755}
	cfg = evaluate(t, e, tree)
	if after := cfg.Plugin("fog").Tree; after == before {
		t.Error("a changed program leaves the pin as it was")
	}
}

func TestADigestIsOfTheMeaningAndNotOfThePlace(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	digest := func(change func(string) string) pipeline.Digest {
		tree := files(t, base, harmless)
		name := "compositions/good/good.cue"
		tree[name] = &fstest.MapFile{Data: []byte(change(string(tree[name].Data)))}
		cfg := evaluate(t, e, tree)
		c := cfg.Composition("good")
		if c == nil {
			t.Fatal("no composition")
		}
		return c.Digest
	}
	same := digest(func(s string) string { return s })
	if got := digest(func(s string) string {
		return strings.Replace(s, "compositions:", "\n// a remark\ncompositions:", 1)
	}); got != same {
		t.Error("a comment and an empty line change the digest")
	}
	if got := digest(func(s string) string { return strings.Replace(s, `"aws"`, `"google"`, 1) }); got == same {
		t.Error("another value leaves the digest as it was")
	}
}

// records counts what the evaluator says it evaluated.
type records struct {
	slog.Handler
	units []int64
}

func (r *records) Enabled(context.Context, slog.Level) bool { return true }
func (r *records) Handle(_ context.Context, rec slog.Record) error {
	rec.Attrs(func(a slog.Attr) bool {
		if a.Key == "evaluated" {
			r.units = append(r.units, a.Value.Int64())
		}
		return true
	})
	return nil
}

func TestOnlyWhatChangedIsEvaluated(t *testing.T) {
	t.Parallel()
	r := &records{}
	cache := t.TempDir()
	with := func(o *config.Options) { o.Log, o.CacheDir = slog.New(r), cache }
	e := newEvaluator(t, with)
	tree := files(t, base, harmless, `
-- plugins/other/plugin.cue --
package other

import "github.com/maestro-cd/maestro"

manifest: maestro.#Plugin & {description: "x", programs: [{argv: ["run"]}]}

#T: maestro.#Task & {
	uses: "other/t"
	fields: {}
	outputs: {}
}
-- lib/names/names.cue --
package names

x: "x"
-- compositions/second/second.cue --
package ops

import (
	"acme.example/ops/lib/names"
	"acme.example/ops/plugins/other"
)

compositions: second: {
	description: names.x
	triggers: []
	tasks: a: other.#T
}
`)
	edit := func(name, more string) {
		tree[name] = &fstest.MapFile{Data: append(slices.Clone(tree[name].Data), more...)}
	}
	steps := []struct {
		what string
		do   func()
		want int64
	}{
		{"the first time, all", func() {}, 8}, // git, shell, fog, other, lib, root, two compositions
		{"nothing changed", func() {}, 0},
		{"one composition", func() { edit("compositions/good/good.cue", "// x\n") }, 1},
		{"a plugin and its importer", func() { edit("plugins/other/plugin.cue", "// x\n") }, 2},
		{"a program changes no CUE", func() { tree["plugins/other/run"] = &fstest.MapFile{Data: []byte("x")} }, 0},
		{"a library and its importer", func() { edit("lib/names/names.cue", "// x\n") }, 2},
		{"the root and all below", func() { edit("ops.cue", "// x\n") }, 3},
		{"a file that is no configuration", func() { tree["README.md"] = &fstest.MapFile{Data: []byte("x")} }, 0},
	}
	for _, s := range steps {
		s.do()
		r.units = nil
		if cfg := evaluate(t, e, tree); len(cfg.Diagnostics) > 0 || len(cfg.Compositions) != 2 {
			t.Fatalf("%s: %v", s.what, cfg.Diagnostics)
		}
		if len(r.units) != 1 || r.units[0] != s.want {
			t.Errorf("%s: evaluated %v, want %d", s.what, r.units, s.want)
		}
	}
	// Another process finds the results on disk: it needs no child at all.
	e2 := newEvaluator(t, func(o *config.Options) { with(o); o.Child = []string{"/nonexistent"} })
	if cfg := evaluate(t, e2, tree); len(cfg.Compositions) != 2 {
		t.Errorf("from disk: %v", cfg.Diagnostics)
	}
	// What a crash cut short is not believed.
	cut := 0
	err := filepath.WalkDir(cache, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			cut++
			return os.WriteFile(p, []byte(`{"dir":`), 0o600)
		}
		return err
	})
	if err != nil || cut == 0 {
		t.Fatal(cut, err)
	}
	e3 := newEvaluator(t, with)
	if cfg := evaluate(t, e3, tree); len(cfg.Compositions) != 2 {
		t.Errorf("after a crash: %v", cfg.Diagnostics)
	}
}

func TestAChildThatCannotStartIsOurFailure(t *testing.T) {
	t.Parallel()
	for name, argv := range map[string][]string{"no command": nil, "no such file": {"/nonexistent"}} {
		e := newEvaluator(t, func(o *config.Options) { o.Child = argv })
		if _, err := e.Evaluate(context.Background(), "c", config.FSTree(files(t, base, harmless))); !fault.Is(err, fault.Internal) {
			t.Errorf("%s: got %v, want fault.Internal", name, err)
		}
	}
}

func TestAChildThatTalksNonsenseHarmsNothing(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"it ends at once":       "exit 0",
		"it is no JSON":         "echo nonsense; cat > /dev/null",
		"it never ends a line":  "while :; do printf '%1000s' x; done",
		"it answers and leaves": `read -r line; echo '{"begin":0}'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEvaluator(t, func(o *config.Options) { o.Child = []string{"/bin/sh", "-c", script} })
			began := time.Now()
			cfg := evaluate(t, e, files(t, base, harmless))
			// Well before the clock: a line without end is cut off by its length.
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("took %s", took)
			}
			if len(cfg.Compositions) != 0 {
				t.Error("compositions out of nothing")
			}
			wantCode(t, cfg, "RC0005")
		})
	}
}

func TestCancellingEndsTheChild(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	tree := files(t, base)
	tree["compositions/b/x.cue"] = bomb(bombs()["comprehensions in comprehensions"])
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := e.Evaluate(ctx, "c", config.FSTree(tree)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestAnEvaluatorThatIsClosedSaysSo(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Evaluate(context.Background(), "c", config.FSTree(files(t, base))); !fault.Is(err, fault.Internal) {
		t.Errorf("got %v, want fault.Internal", err)
	}
}

func TestDiagnosticsAreSafeForATerminal(t *testing.T) {
	t.Parallel()
	evil := "package ops\n\tx: \"a\x1b[31m\u202e\"   // \x07\n"
	ds := []pipeline.Diagnostic{
		{Severity: pipeline.SeverityError, Code: "RC0001", Message: "m\x1b[2J", Note: "n\u202e", Pos: pipeline.Position{File: "f\x1b.cue", Line: 2, Column: 5}},
		{Severity: pipeline.SeverityWarning, Code: "RC0002", Message: "beyond the end", Pos: pipeline.Position{File: "f", Line: 99, Column: 99}},
		{Severity: pipeline.SeverityWarning, Code: "RC0002", Message: "beyond the line", Pos: pipeline.Position{File: "f", Line: 1, Column: 99}},
	}
	for _, color := range []bool{false, true} {
		var out bytes.Buffer
		if err := config.RenderDiagnostics(&out, ds, func(string) []byte { return []byte(evil) }, color); err != nil {
			t.Fatal(err)
		}
		text := out.String()
		for _, code := range []string{"\x1b[1;31m", "\x1b[1;33m", "\x1b[1;34m", "\x1b[1;32m", "\x1b[1m", "\x1b[0m"} {
			if color {
				text = strings.ReplaceAll(text, code, "")
			}
		}
		if strings.ContainsAny(text, "\x1b\x07\u202e") {
			t.Errorf("color %v: control characters pass: %q", color, text)
		}
		if !strings.Contains(text, "error[RC0001]: m") {
			t.Errorf("got %s", text)
		}
	}
}

func TestTheSameMistakeIsSaidOnce(t *testing.T) {
	t.Parallel()
	cfg := evaluate(t, newEvaluator(t, nil), files(t, base, harmless, `
-- compositions/ops.cue --
package ops

compositions: [_]: priority: "high"
`))
	if len(cfg.Diagnostics) != 1 {
		t.Errorf("got %v", cfg.Diagnostics)
	}
}

// FuzzUnit feeds any text to the child that serves the others, too.
func FuzzUnit(f *testing.F) {
	archives, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range archives {
		raw, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range txtar.Parse(raw).Files {
			if strings.HasPrefix(file.Name, "compositions/") && strings.HasSuffix(file.Name, ".cue") {
				f.Add(file.Data)
			}
		}
	}
	f.Add([]byte("package ops\ncompositions: x: tasks: a: needs: [\"a\", 1, null, [], {}]\n"))
	f.Add([]byte("package ops\ncompositions: x: {params: tasks, tasks: params}\n"))
	f.Add([]byte("package ops\nimport \"github.com/maestro-cd/maestro/plugins/shell\"\ncompositions: x: {let t = t, tasks: a: shell.#Run & {fields: script: t}}\n"))
	e := newEvaluator(f, func(o *config.Options) { o.Limits.UnitCPU, o.Limits.UnitWall = time.Second, 5*time.Second })
	f.Fuzz(func(t *testing.T, text []byte) {
		tree := files(t, base)
		tree["compositions/f/f.cue"] = &fstest.MapFile{Data: text}
		cfg, err := e.Evaluate(context.Background(), "c", config.FSTree(tree))
		if err != nil {
			t.Fatal(err)
		}
		if cfg.Plugin("fog") == nil {
			t.Error("a unit took the plugins with it")
		}
		for _, d := range cfg.Diagnostics {
			if d.Message == "" || d.Code == "" || d.Pos.File == "" {
				t.Errorf("incomplete: %+v", d)
			}
			if strings.Contains(d.Message, "gave up") {
				t.Errorf("an explanation fell over: %+v", d)
			}
		}
	})
}

func TestBundledFilesAreTheSchemaAndTheManifests(t *testing.T) {
	t.Parallel()
	got := slices.Sorted(maps.Keys(config.BundledFiles()))
	want := []string{"plugins/git/plugin.cue", "plugins/shell/plugin.cue", "schema.cue"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestEditorsGetTheRangeOfAMistake(t *testing.T) {
	t.Parallel()
	const text = "first\n\t\"déjà\" 🎼: wrong, \"two words\"\r\nlast"
	at := func(line, column int) pipeline.Diagnostic {
		return pipeline.Diagnostic{Pos: pipeline.Position{File: "a.cue", Line: line, Column: column}}
	}
	span := func(line, start, end int) config.Range {
		return config.Range{Start: config.EditorPosition{Line: line, Character: start}, End: config.EditorPosition{Line: line, Character: end}}
	}
	ds := []pipeline.Diagnostic{at(1, 1), at(2, 2), at(2, 17), at(2, 24), at(3, 99), at(9, 4), at(0, 0)}
	want := []config.Range{span(0, 0, 5), span(1, 1, 7), span(1, 12, 17), span(1, 19, 30), span(2, 4, 4), span(8, 0, 0)}
	got := config.ForEditors(ds, func(string) []byte { return []byte(text) })
	for i, w := range want {
		if got[i].Range == nil || *got[i].Range != w {
			t.Errorf("%v: range %+v, want %+v", ds[i].Pos, got[i].Range, w)
		}
	}
	if got[6].Range != nil {
		t.Errorf("without a line there is a range %+v", got[6].Range)
	}
}
