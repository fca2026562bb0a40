// Package archtest holds the rules that the shape of the tree must keep: who may
// import whom, where each outside module lives, that every package says what it is
// for. It reads the sources itself instead of asking the go command, because the
// result of a test that runs a program is cached by the test's own files only.
package archtest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/maestro-cd/maestro"

// rooms lists every package with the rooms of ours that it may import. A new
// package, or a new arrow, is a line here and hence a decision.
var rooms = map[string][]string{
	"internal/pipeline": {},
	"internal/fault":    {},
	"internal/durable":  {},
	"internal/redact":   {"internal/fault"},
	"internal/bundle":   {"internal/pipeline", "internal/fault"},
	"internal/wire":     {"internal/pipeline", "internal/fault"},
	"internal/wsconn":   {"internal/wire", "internal/fault", "internal/pipeline"},
	"internal/gitrepo":  {"internal/pipeline", "internal/fault"},
	"internal/sshsig":   {"internal/fault"},
	"internal/sops":     {"internal/fault"},

	"internal/codeowners": {"internal/pipeline"},

	"internal/wsconn/wsconntest": {},

	"internal/config": {"internal/pipeline", "internal/fault", "internal/bundle", "internal/codeowners", "internal/sops", "schema", "plugins"},
	"schema":          {},
	"plugins":         {},
	"ui":              {},
	"compositions":    {},
	"docs":            {},

	"reconciler/internal/plan":    {"internal/pipeline", "internal/codeowners"},
	"reconciler/internal/review":  {"internal/pipeline"},
	"reconciler/internal/engine":  {"internal/pipeline"},
	"reconciler/internal/place":   {"internal/pipeline"},
	"reconciler/internal/store":   {"internal/pipeline", "internal/fault", "internal/durable"},
	"reconciler/internal/sources": {"internal/pipeline", "internal/fault", "internal/gitrepo"},
	"reconciler/internal/forge":   {"internal/pipeline", "internal/fault", "internal/gitrepo"},
	"reconciler/internal/fleet":   {"internal/pipeline", "internal/fault", "internal/wire", "internal/wsconn"},
	"reconciler/internal/hooks":   {"internal/pipeline", "internal/fault"},
	"reconciler/internal/web": {
		"internal/pipeline", "internal/fault", "ui",
		"reconciler/internal/web/ansi", "reconciler/internal/web/graph",
	},
	"reconciler/internal/web/ansi":  {},
	"reconciler/internal/web/graph": {"internal/pipeline"},
	"reconciler/internal/loop": {
		"internal/pipeline", "internal/fault", "internal/wire",
		"reconciler/internal/plan", "reconciler/internal/review", "reconciler/internal/engine", "reconciler/internal/place",
		"reconciler/internal/store",
	},

	"agentd/internal/journal":   {"internal/pipeline", "internal/fault", "internal/wire", "internal/durable"},
	"agentd/internal/shim":      {"internal/pipeline", "internal/fault", "internal/durable", "internal/redact"},
	"agentd/internal/workspace": {"internal/pipeline", "internal/fault"},
	"agentd/internal/plugins":   {"internal/pipeline", "internal/fault", "internal/wire", "internal/bundle", "internal/durable"},
	"agentd/internal/facts":     {"internal/fault"},
	"agentd/internal/emit":      {},
	"agentd/internal/session":   {"internal/pipeline", "internal/fault", "internal/wire", "internal/wsconn", "internal/durable"},
	"agentd/internal/runner": {
		"internal/pipeline", "internal/fault", "internal/wire", "internal/durable", "internal/redact",
		"agentd/internal/journal", "agentd/internal/shim", "agentd/internal/workspace",
	},
	// An agent for tests of the control plane, whose rooms may not see an agent's; and
	// the simulation of both, which is tests only.
	"agentd/agenttest": {
		"internal/pipeline", "internal/fault", "internal/wire",
		"agentd/internal/journal", "agentd/internal/runner", "agentd/internal/session", "agentd/internal/shim",
	},
	"reconciler/internal/sim": {},
	// The two programs introduce the rooms to each other.
	"reconciler": {"*"},
	"agentd":     {"*"},

	"internal/archtest": {},
	"internal/mutants":  {},
	"internal/testkit":  {"*"},
}

// homes names the one package that may import an outside module.
var homes = map[string][]string{
	"cuelang.org/go":                   {"internal/config"},
	"github.com/go-git/go-git/v5":      {"internal/gitrepo"},
	"golang.org/x/crypto":              {"internal/sshsig"},
	"github.com/fsnotify/fsnotify":     {"reconciler/internal/sources", "agentd/internal/runner"},
	"github.com/mattn/go-sqlite3":      {"reconciler/internal/store"},
	"github.com/pressly/goose/v3":      {"reconciler/internal/store"},
	"github.com/klauspost/compress":    {"reconciler/internal/store"},
	"database/sql":                     {"reconciler/internal/store"},
	"github.com/gorilla/websocket":     {"internal/wsconn"},
	"github.com/google/go-github/v62":  {"reconciler/internal/forge"},
	"github.com/bmatcuk/doublestar/v4": {"reconciler/internal/plan"},
	"github.com/spf13/cobra":           {"reconciler", "agentd"},
	"github.com/shirou/gopsutil/v4":    {"agentd/internal/facts"},
	"gopkg.in/yaml.v3":                 {"agentd/internal/facts", "internal/sops"},
	"filippo.io/age":                   {"internal/sops"},
	"github.com/oklog/ulid/v2":         {"reconciler/internal/loop"},
}

// pure packages decide; these would let the world in.
var pure = []string{
	"internal/pipeline", "reconciler/internal/plan", "reconciler/internal/review", "reconciler/internal/engine",
	"reconciler/internal/place", "internal/codeowners",
}

var worldly = []string{"context", "os", "net", "net/http", "log", "log/slog", "database/sql", "io/fs", "os/exec", "math/rand", "math/rand/v2"}

type source struct {
	pkg, file string
	ast       *ast.File
}

func sources(t *testing.T) []source {
	t.Helper()
	root := filepath.Join("..", "..")
	var out []source
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && p != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || name == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		out = append(out, source{path.Dir(rel), rel, f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("found only %d files below %s: the test looks in the wrong place", len(out), root)
	}
	return out
}

func imports(f *ast.File) []string {
	var out []string
	for _, s := range f.Imports {
		if p, err := strconv.Unquote(s.Path.Value); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func TestArrowsPointAtTheVocabulary(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		may, known := rooms[s.pkg]
		if !known {
			t.Errorf("%s: package %s is in no room: give it a line in archtest", s.file, s.pkg)
			continue
		}
		if strings.HasSuffix(s.file, "_test.go") || slices.Contains(may, "*") {
			continue
		}
		for _, p := range imports(s.ast) {
			ours, ok := strings.CutPrefix(p, module+"/")
			if ok && ours != s.pkg && !slices.Contains(may, ours) {
				t.Errorf("%s: %s must not import %s", s.file, s.pkg, ours)
			}
		}
	}
}

func TestOutsideModulesStayInTheirHome(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if strings.HasSuffix(s.file, "_test.go") {
			continue
		}
		for _, p := range imports(s.ast) {
			for mod, home := range homes {
				if (p == mod || strings.HasPrefix(p, mod+"/")) && !slices.Contains(home, s.pkg) {
					t.Errorf("%s: imports %s, whose home is %s", s.file, p, strings.Join(home, " and "))
				}
			}
		}
	}
}

func TestPurePackagesStayPure(t *testing.T) {
	t.Parallel()
	for _, s := range sources(t) {
		if !slices.Contains(pure, s.pkg) || strings.HasSuffix(s.file, "_test.go") {
			continue
		}
		for _, p := range imports(s.ast) {
			if slices.Contains(worldly, p) {
				t.Errorf("%s: a pure package imports %s", s.file, p)
			}
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if ok && sel.Sel.Name == "Now" {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" {
					t.Errorf("%s: a pure package reads the clock", s.file)
				}
			}
			return true
		})
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	t.Parallel()
	said := map[string]bool{}
	for _, s := range sources(t) {
		if _, ok := said[s.pkg]; !ok {
			said[s.pkg] = false
		}
		if s.ast.Doc != nil && len(s.ast.Doc.Text()) > 60 {
			said[s.pkg] = true
		}
	}
	for pkg, ok := range said {
		if !ok {
			t.Errorf("package %s has no comment that says what it is for", pkg)
		}
	}
}

func TestNoPackageIsNamedAfterNothing(t *testing.T) {
	t.Parallel()
	banned := []string{"util", "utils", "common", "helpers", "types", "models", "pkg", "manager", "service", "misc", "mocks"}
	for _, s := range sources(t) {
		if slices.Contains(banned, s.ast.Name.Name) || slices.Contains(banned, path.Base(s.pkg)) {
			t.Errorf("%s: a package named %s could hold anything", s.file, s.ast.Name.Name)
		}
	}
}

func TestTopLevelIsTheMap(t *testing.T) {
	t.Parallel()
	want := []string{"agentd", "compositions", "docs", "internal", "plugins", "reconciler", "schema", "ui"}
	entries, err := os.ReadDir(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		hidden := strings.HasPrefix(e.Name(), ".") || e.Name() == "bin"
		if e.IsDir() && !hidden && !slices.Contains(want, e.Name()) {
			t.Errorf("top-level folder %s is not on the map", e.Name())
		}
	}
}
