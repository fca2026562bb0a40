package config_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const harmless = `
-- compositions/good/good.cue --
package ops

import "acme.example/ops/plugins/fog"

compositions: good: tasks: a: fog.#Deprovision & {fields: {instance_ids: [], provider: "aws"}}
compositions: good: triggers: []
`

// bombs are texts that use up time, memory or stack. Each is one unit among others.
func bombs() map[string]string {
	var doubling strings.Builder
	doubling.WriteString("_s0: \"0123456789\"\n")
	for i := 1; i < 40; i++ {
		fmt.Fprintf(&doubling, "_s%d: _s%d + _s%d\n", i, i-1, i-1)
	}
	const task = "\ncompositions: bomb: tasks: a: fog.#Deprovision & {fields: {instance_ids: [%s], provider: \"aws\"}}\n"
	return map[string]string{
		"comprehensions in comprehensions": "_l: list.Range(0, 1000, 1)\n" + fmt.Sprintf(task, "for a in _l for b in _l for c in _l for d in _l {\"\\(a)\"}"),
		"texts that double":                doubling.String() + fmt.Sprintf(task, "_s39"),
		"a long list":                      "_l: list.Range(0, 1000000000, 1)\n" + fmt.Sprintf(task, "\"\\(len(_l))\""),
		"a deep sum":                       "_n: 1" + strings.Repeat("+1", 400_000) + fmt.Sprintf(task, "\"\\(_n)\""),
	}
}

func bomb(text string) *fstest.MapFile {
	head := "package ops\n\nimport \"acme.example/ops/plugins/fog\"\n"
	if strings.Contains(text, "list.Range") {
		head = "package ops\n\nimport (\n\t\"list\"\n\n\t\"acme.example/ops/plugins/fog\"\n)\n"
	}
	return &fstest.MapFile{Data: []byte(head + text)}
}

func TestAHostileUnitIsBlamedAndTheOthersGetResults(t *testing.T) {
	if testing.Short() {
		t.Skip("uses seconds of CPU time")
	}
	t.Parallel()
	e := newEvaluator(t, func(o *config.Options) {
		o.Limits.UnitCPU, o.Limits.UnitWall = time.Second, 30*time.Second
	})
	tree := files(t, base, harmless)
	n := 0
	for _, text := range bombs() {
		tree[fmt.Sprintf("compositions/bomb%d/x.cue", n)] = bomb(strings.ReplaceAll(text, "compositions: bomb:", fmt.Sprintf("compositions: bomb%d:", n)))
		n++
	}
	cfg := evaluate(t, e, tree)
	if cfg.Composition("good") == nil {
		t.Error("the harmless composition has no result")
	}
	blamed := map[string]bool{}
	for _, d := range cfg.Diagnostics {
		if d.Code != "RC0005" {
			t.Errorf("unexpected: %s", d)
		}
		blamed[d.Unit] = true
		t.Log(d)
	}
	for i := range n {
		if unit := fmt.Sprintf("compositions/bomb%d", i); !blamed[unit] {
			t.Errorf("%s is not blamed: %s", unit, tree[unit+"/x.cue"].Data[:120])
		}
	}
}

func TestAHostilePluginIsBlamedOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("uses seconds of CPU time")
	}
	t.Parallel()
	e := newEvaluator(t, func(o *config.Options) { o.Limits.UnitCPU = time.Second })
	tree := files(t, base, harmless)
	tree["plugins/bad/plugin.cue"] = &fstest.MapFile{Data: []byte("package bad\nx: 1" + strings.Repeat("+1", 400_000) + "\n")}
	for i := range 40 {
		tree[fmt.Sprintf("compositions/c%d/c.cue", i)] = &fstest.MapFile{Data: []byte(
			"package ops\nimport \"acme.example/ops/plugins/bad\"\n" + fmt.Sprintf("compositions: c%d: tasks: a: bad.x\n", i),
		)}
	}
	began := time.Now()
	cfg := evaluate(t, e, tree)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %s: each importer was tried", took)
	}
	if cfg.Composition("good") == nil {
		t.Error("the harmless composition has no result")
	}
	limits := 0
	for _, d := range cfg.Diagnostics {
		if d.Code == "RC0005" {
			limits++
		}
	}
	if limits != 1 || len(cfg.Diagnostics) != 41 {
		t.Errorf("%d diagnostics, %d of them limits; want 41 and 1", len(cfg.Diagnostics), limits)
	}
}

func TestNestingIsRefusedAndNotFatal(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	for name, text := range map[string]string{
		"lists":    "_x: " + strings.Repeat("[", 200_000),
		"structs":  "_x: " + strings.Repeat("{a:", 200_000),
		"brackets": "_x: " + strings.Repeat("(", 200_000) + "1",
		"minus":    "_x: " + strings.Repeat("-", 200_000) + "1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tree := files(t, base, harmless)
			tree["compositions/deep/x.cue"] = &fstest.MapFile{Data: []byte("package ops\n" + text + "\n")}
			cfg := evaluate(t, e, tree)
			if cfg.Composition("good") == nil || len(cfg.Diagnostics) == 0 {
				t.Errorf("good: %v, diagnostics: %v", cfg.Composition("good") != nil, cfg.Diagnostics)
			}
		})
	}
}

// A short text can describe a value without end: reading it must stop as well.
func TestAValueThatIsLargerThanItsTextIsStopped(t *testing.T) {
	if testing.Short() {
		t.Skip("uses seconds of CPU time")
	}
	t.Parallel()
	e := newEvaluator(t, func(o *config.Options) { o.Limits.UnitCPU = time.Second })
	var b strings.Builder
	b.WriteString("package ops\nimport \"acme.example/ops/plugins/big\"\n_v0: {a: 1, b: 2, c: 3, d: 4}\n")
	for i := 1; i < 14; i++ {
		fmt.Fprintf(&b, "_v%d: {a: _v%d, b: _v%d, c: _v%d, d: _v%d}\n", i, i-1, i-1, i-1, i-1)
	}
	b.WriteString("compositions: huge: tasks: a: big.#Take & {fields: x: _v13}\npools: p: facts: _v13\n")
	tree := files(t, base, harmless)
	tree["compositions/big/x.cue"] = &fstest.MapFile{Data: []byte(b.String())}
	tree["plugins/big/plugin.cue"] = &fstest.MapFile{Data: []byte(`package big
import "github.com/maestro-cd/maestro"
manifest: maestro.#Plugin & {description: "x", programs: [{argv: ["run"]}]}
#Take: maestro.#Task & {uses: "big/take", fields: x!: {...}, outputs: {}}
`)}
	cfg := evaluate(t, e, tree)
	if cfg.Composition("good") == nil || cfg.Composition("huge") != nil || len(cfg.Diagnostics) != 1 || cfg.Diagnostics[0].Code != "RC0005" {
		t.Errorf("got %v", cfg.Diagnostics)
	}
}

func TestLinksOutOfTheTreeAreNotFollowed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, f := range files(t, base, harmless) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, f.Data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(t.TempDir(), "outside.cue")
	if err := os.WriteFile(outside, []byte("package ops\n\n_leak: \"canary\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "compositions/good/link.cue")); err != nil {
		t.Fatal(err)
	}
	cfg, err := newEvaluator(t, nil).Evaluate(context.Background(), "", config.FSTree(os.DirFS(dir)))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Composition("good") != nil {
		t.Error("a unit with an unreadable file counts as whole")
	}
	if len(cfg.Diagnostics) != 1 || cfg.Diagnostics[0].Code != "RC0004" || cfg.Diagnostics[0].Pos.File != "compositions/good/link.cue" {
		t.Errorf("got %v; want one RC0004 that names the link", cfg.Diagnostics)
	}
}

// troubled is a tree of which one directory cannot be read.
type troubled struct {
	config.Tree
	dir string
	err error
}

func (t troubled) Hash(dir string) (string, error) {
	if dir == t.dir {
		return "", t.err
	}
	return t.Tree.Hash(dir)
}

func TestATreeThatIsRefusedIsTheAuthorsAndADiskErrorIsOurs(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	tree := files(t, base, harmless)
	tree["compositions/bad/x.cue"] = &fstest.MapFile{Data: []byte("package ops\n")}
	refused := troubled{config.FSTree(tree), "compositions/bad", fault.New(fault.Invalid, "the name aux is refused")}
	cfg, err := e.Evaluate(context.Background(), "c", refused)
	if err != nil || cfg.Composition("good") == nil || len(cfg.Diagnostics) != 1 || !strings.Contains(cfg.Diagnostics[0].Message, "aux") {
		t.Errorf("got %v, %v; want one diagnostic and the rest", cfg.Diagnostics, err)
	}
	broken := troubled{config.FSTree(tree), "compositions/bad", fault.New(fault.Unavailable, "the disk is slow")}
	if _, err := e.Evaluate(context.Background(), "c", broken); !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v, want the tree's own kind", err)
	}
}

func TestSizesAreBounded(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, func(o *config.Options) { o.Limits.Tasks = 3 })
	t.Run("a blob", func(t *testing.T) {
		t.Parallel()
		tree := files(t, base, harmless)
		tree["compositions/large/x.cue"] = &fstest.MapFile{Data: []byte("package ops\n//" + strings.Repeat("x", 1<<20))}
		wantCode(t, evaluate(t, e, tree), "RC0004")
	})
	t.Run("files", func(t *testing.T) {
		t.Parallel()
		tree := files(t, base, harmless)
		for i := range 20_001 {
			tree[fmt.Sprintf("compositions/many/x%d.cue", i)] = &fstest.MapFile{Data: []byte("package ops\n")}
		}
		cfg := evaluate(t, e, tree)
		wantCode(t, cfg, "RC0009")
	})
	t.Run("tasks", func(t *testing.T) {
		t.Parallel()
		tree := files(t, base, harmless)
		tree["compositions/tasks/x.cue"] = &fstest.MapFile{Data: []byte(`package ops
import "acme.example/ops/plugins/fog"
compositions: many: tasks: {for i in [1, 2, 3, 4] {"t\(i)": fog.#Deprovision & {fields: {instance_ids: [], provider: "aws"}}}}
`)}
		wantCode(t, evaluate(t, e, tree), "RC0009")
	})
}

func wantCode(t *testing.T, cfg pipeline.Config, code string) {
	t.Helper()
	for _, d := range cfg.Diagnostics {
		if d.Code == code {
			return
		}
	}
	t.Errorf("no %s among %v", code, cfg.Diagnostics)
}

// One commit's time is bounded as a whole.
func TestACommitHasABudget(t *testing.T) {
	if testing.Short() {
		t.Skip("uses seconds of CPU time")
	}
	t.Parallel()
	e := newEvaluator(t, func(o *config.Options) {
		o.Limits.UnitWall, o.Limits.Total, o.Limits.Workers = 300*time.Millisecond, 500*time.Millisecond, 1
	})
	tree := files(t, base)
	text := bombs()["comprehensions in comprehensions"]
	for i := range 20 {
		tree[fmt.Sprintf("compositions/b%02d/x.cue", i)] = bomb(text)
	}
	began := time.Now()
	cfg := evaluate(t, e, tree)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	wantCode(t, cfg, "RC0006")
}
