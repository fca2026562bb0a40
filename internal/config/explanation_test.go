package config_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// unseen are codes that no short text gives, and why.
var unseen = map[string]string{
	"RC0004": "a symbolic link is no text",
	"RC0005": "it takes seconds by its nature",
	"RC0006": "it takes minutes by its nature",
	"RC0009": "it takes very much by its nature",
}

// codes reads from the source which codes there are, and which of them are given.
func codes(t *testing.T) (all, given []string) {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	values, uses := map[string]string{}, map[string]bool{}
	isCode := regexp.MustCompile(`^"RC[0-9]{4}"$`)
	for _, name := range names {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				if len(n.Values) == 1 {
					if lit, ok := n.Values[0].(*ast.BasicLit); ok && isCode.MatchString(lit.Value) {
						values[n.Names[0].Name] = strings.Trim(lit.Value, `"`)
						return false
					}
				}
			case *ast.Ident:
				uses[n.Name] = true
			}
			return true
		})
	}
	for name, code := range values {
		all = append(all, code)
		if uses[name] {
			given = append(given, code)
		}
	}
	if len(given) == 0 {
		t.Fatal("no codes found")
	}
	slices.Sort(all)
	slices.Sort(given)
	return all, given
}

func TestEveryCodeIsExplainedOnce(t *testing.T) {
	t.Parallel()
	all, given := codes(t)
	if dup := slices.Compact(slices.Clone(all)); len(dup) != len(all) {
		t.Errorf("a code is used twice: %v", all)
	}
	var explained []string
	for _, e := range config.Explanations() {
		explained = append(explained, e.Code)
		if e.Title == "" || len(e.Title) > 80 {
			t.Errorf("%s: title %q", e.Code, e.Title)
		}
	}
	for _, code := range given {
		if !slices.Contains(explained, code) {
			t.Errorf("%s has no entry in a file of codes/: say what it means, with an example wrong and right", code)
		}
	}
	for _, code := range explained {
		if !slices.Contains(all, code) {
			t.Errorf("%s is explained, and there is no such code", code)
		}
	}
}

func TestExamplesOfExplanationsAreWhatTheySay(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	_, given := codes(t)
	for _, x := range config.Explanations() {
		if !slices.Contains(given, x.Code) {
			continue // nothing gives it
		}
		t.Run(x.Code, func(t *testing.T) {
			t.Parallel()
			if why := unseen[x.Code]; why != "" {
				if len(x.Wrong)+len(x.Right) > 0 {
					t.Errorf("has examples after all: %s", why)
				}
				return
			}
			gives := func(d pipeline.Diagnostic) bool { return d.Code == x.Code }
			if ds := evaluate(t, e, example(x.Wrong)).Diagnostics; !slices.ContainsFunc(ds, gives) {
				t.Errorf("the wrong example gives %v", ds)
			}
			if ds := evaluate(t, e, example(x.Right)).Diagnostics; len(ds) > 0 || len(x.Right) == 0 {
				t.Errorf("the right example gives %v", ds)
			}
		})
	}
}

func example(files []config.ExampleFile) fstest.MapFS {
	tree := mapFS(config.InitFiles())
	for _, f := range files {
		delete(tree, f.Name)
		if f.Text != "" {
			tree[f.Name] = &fstest.MapFile{Data: []byte(f.Text), Mode: 0o644}
		}
		if strings.HasPrefix(f.Text, "#!") {
			tree[f.Name].Mode = 0o755
		}
	}
	return tree
}

func TestACodeIsFoundHoweverItIsTyped(t *testing.T) {
	t.Parallel()
	e, ok := config.Explain("rc0212")
	if !ok || e.Code != "RC0212" || !strings.HasPrefix(e.Text, "CUE finds a task") || !strings.HasPrefix(e.Wrong[0].Text, "package ops\n") {
		t.Errorf("got %+v, %v", e, ok)
	}
	if _, ok := config.Explain("RC9999"); ok {
		t.Error("RC9999 is explained")
	}
}
