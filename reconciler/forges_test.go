package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/reconciler/internal/forge"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
)

// TestForgesDoWhatTheirTableSays derives the table of docs/forges.md from the types
// and options that do the work.
func TestForgesDoWhatTheirTableSays(t *testing.T) {
	t.Parallel()
	kinds := map[string]any{"local": &forge.Local{}, "github": &forge.GitHub{}, "none": nil}
	either := func(yes bool, a, b string) string {
		if yes {
			return a
		}
		return b
	}
	rows := []struct {
		name string
		of   func(kind string) string
	}{
		{"commit statuses", func(kind string) string {
			_, ok := kinds[kind].(forge.Forge)
			return either(ok, "yes", "no")
		}},
		{"changes are", func(kind string) string {
			return either((&options{forge: kind}).proposals(), "branches", "pull requests")
		}},
		{"the plan is", func(kind string) string {
			_, pulls := kinds[kind].(loop.Forge)
			return either(pulls, "a comment", either(kind == "local", "a Git note", "on the page of the change"))
		}},
		{"mistakes are shown on their lines", func(kind string) string {
			_, checks := kinds[kind].(interface{ Checks() bool })
			return either(checks, "as an App", "no")
		}},
		{"reviews are", func(kind string) string {
			_, pulls := kinds[kind].(loop.Forge)
			return either(pulls, "reviews", "signed tags")
		}},
		{"gates are reviewed by", func(kind string) string {
			_, pulls := kinds[kind].(loop.Forge)
			return "signed tags" + either(pulls, ", reviews", "")
		}},
		{"gates have pull requests", func(kind string) string {
			_, opens := kinds[kind].(interface {
				OpenPull(ctx context.Context, branch, target, title, body string) (int, error)
			})
			return either(opens, "yes", "no")
		}},
		{"requests are", func(kind string) string {
			_, pulls := kinds[kind].(loop.Forge)
			return "signed tags" + either(pulls, ", comments", "")
		}},
		{"pull requests of source repositories", func(kind string) string {
			return either(seesPulls(kinds[kind]) != nil, "yes", "no")
		}},
		{"webhooks", func(kind string) string {
			s := &server{opt: options{forge: kind, githubHookFile: "x"}}
			if _, pulls := kinds[kind].(loop.Forge); pulls {
				s.pulls = &loop.Pulls{}
			}
			return either(s.gitHubPosts() != nil, "yes", "no")
		}},
	}
	want := "| | local | github | none |\n|---|---|---|---|\n"
	for _, r := range rows {
		want += fmt.Sprintf("| %s | %s | %s | %s |\n", r.name, r.of("local"), r.of("github"), r.of("none"))
	}
	text, err := os.ReadFile("../docs/forges.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), want) {
		t.Errorf("docs/forges.md has another table than\n%s", want)
	}
}
