package config_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
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

// codesInUse reads them from the source, so that none can be forgotten.
func codesInUse(t *testing.T) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	isCode := regexp.MustCompile(`^RC[0-9]{4}$`)
	ast.Inspect(f, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok {
			if s, err := strconv.Unquote(lit.Value); err == nil && isCode.MatchString(s) {
				codes = append(codes, s)
			}
		}
		return true
	})
	if len(codes) == 0 {
		t.Fatal("no codes in codes.go")
	}
	slices.Sort(codes)
	return codes
}

func TestEveryCodeIsExplainedOnce(t *testing.T) {
	t.Parallel()
	codes := codesInUse(t)
	if dup := slices.Compact(slices.Clone(codes)); len(dup) != len(codes) {
		t.Errorf("a code is used twice: %v", codes)
	}
	var explained []string
	for _, e := range config.Explanations() {
		explained = append(explained, e.Code)
		if e.Title == "" || len(e.Title) > 80 {
			t.Errorf("%s: title %q", e.Code, e.Title)
		}
	}
	for _, code := range codes {
		if !slices.Contains(explained, code) {
			t.Errorf("%s has no entry in a file of codes/: say what it means, with an example wrong and right", code)
		}
	}
	for _, code := range explained {
		if !slices.Contains(codes, code) {
			t.Errorf("%s is explained and not used", code)
		}
	}
}

func TestExamplesOfExplanationsAreWhatTheySay(t *testing.T) {
	t.Parallel()
	e := newEvaluator(t, nil)
	for _, x := range config.Explanations() {
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

func TestAnExplanationIsReadable(t *testing.T) {
	t.Parallel()
	e, ok := config.Explain("rc0212")
	if !ok {
		t.Fatal("no RC0212")
	}
	const want = `RC0212: A task is named without "tasks."

CUE finds a task by its bare name, because it stands in the struct around. Here
a reference to a task always begins with tasks, so that a reader can tell it
from a field.

wrong: compositions/example/example.cue

    package ops
`
	if got := e.String(); !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant it to begin with\n%s", got, want)
	}
	if _, ok := config.Explain("RC9999"); ok {
		t.Error("RC9999 is explained")
	}
}
