package codeowners_test

import (
	"path"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/codeowners"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// ownersOf parses a text without mistakes and asks whose a path is.
func ownersOf(t *testing.T, text, file string) string {
	t.Helper()
	rules, mistakes := codeowners.Parse(text)
	if len(mistakes) > 0 {
		t.Fatalf("%q has mistakes: %+v", text, mistakes)
	}
	return strings.Join(codeowners.New(rules).Of(file), " ")
}

// documented is the example of GitHub's documentation, line by line in its order.
const documented = `# owners of all that nothing below is about
*       @global-owner1 @global-owner2
*.js    @js-owner #a comment behind the owners
*.go docs@example.com
*.txt @octo-org/octocats
/build/logs/ @doctocat
docs/* docs@example.com
apps/ @octocat
/docs/ @doctocat
/scripts/ @doctocat @octocat
**/logs @octocat
/apps/ @octocat
/apps/github
`

func TestPathsAreOwnedAsGitHubDocumentsIt(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"README":                     "global-owner1 global-owner2",
		"deep/below/README":          "global-owner1 global-owner2",
		"src/index.js":               "js-owner",
		"main.go":                    "docs@example.com",
		"notes/a.txt":                "@octo-org/octocats",
		"docs/getting-started.md":    "doctocat", // /docs/ comes after docs/*
		"docs/build-app/trouble.md":  "doctocat",
		"web/apps/site/index.html":   "octocat",
		"scripts/run":                "doctocat octocat",
		"scripts/logs/run":           "octocat",
		"build/logs/today":           "octocat", // **/logs comes after /build/logs/
		"deeply/nested/logs/x/y":     "octocat",
		"apps/other/x.js":            "octocat",
		"apps/github/main.go":        "",
		"apps/github":                "",
		"apps/github-pages/index.js": "octocat",
	} {
		if got := ownersOf(t, documented, file); got != want {
			t.Errorf("%s is owned by %q, want %q", file, got, want)
		}
	}
}

func TestPatternsMatchWhatTheyAreDocumentedToMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ pattern, yes, no string }{
		{"*", "a b/c .hidden/x", ""},
		{"/*", "a .a", "a/b"},
		{"docs/*", "docs/a docs/.b", "docs docs/a/b x/docs/a"},
		{"docs/**", "docs/a docs/a/b", "docs x/docs/a"},
		{"/docs/", "docs/a docs/a/b", "docs x/docs/a docs2/a"},
		{"docs/", "docs/a x/docs/a/b", "docs x/docs"},
		{"docs", "docs docs/a x/docs x/docs/a/b", "docs2 mydocs/a"},
		{"/docs", "docs docs/a", "x/docs"},
		{"a/b", "a/b a/b/c", "x/a/b a/bc"},
		{"**/logs", "logs logs/x a/b/logs a/b/logs/x", "logs2 alogs"},
		{"a/**/b", "a/b a/x/b a/x/y/b a/b/c", "a/xb b x/a/b"},
		{"*.js", "a.js x/y/a.js .js a.js/inside", "a.jsx js"},
		{"/*.md", "a.md", "x/a.md"},
		{"a?c", "abc a-c x/aéc", "ac abbc"},
		{"a*c*e", "ace abcde xx/aXcYe", "acd eca"},
		{`/a\ b/`, "a b/c", "a/c"},
		{`\*`, "* x/*", "a"},
		{"Docs", "Docs", "docs"},
		{"**", "a a/b", ""},
		{"/é*", "éa é", "e"},
	} {
		rules, mistakes := codeowners.Parse(c.pattern + " @ana")
		if len(mistakes) > 0 {
			t.Errorf("%s: %+v", c.pattern, mistakes)
			continue
		}
		owned := codeowners.New(rules)
		for _, list := range []struct {
			files string
			want  bool
		}{{c.yes, true}, {c.no, false}} {
			files := strings.Fields(list.files)
			if strings.Contains(c.pattern, " ") {
				files = []string{list.files}
			}
			for _, f := range files {
				if got := len(owned.Of(f)) > 0; got != list.want {
					t.Errorf("%s matches %q: %v, want %v", c.pattern, f, got, list.want)
				}
			}
		}
	}
}

func TestLinesThatMeanNothingAreSkippedAndSaid(t *testing.T) {
	t.Parallel()
	text := strings.Join([]string{
		"\uFEFF* @all\r",
		"  ",
		"!/free @ana",
		`\#file @ana`,
		"/a[0-9] @ana",
		"***/x @ana",
		"/ @ana",
		"a//b @ana",
		"/secret/ @ana bo",
		"/two\t@ana\t@bo   # and a comment",
		"/mail a.b+c@example.com",
		"/team @Octo-Org/Web_Team.x",
		"/nobody # is asked",
		`/end\`,
		"/ctl\x01 @ana",
		"/@ana",
		"/last @ana/",
	}, "\n")
	rules, mistakes := codeowners.Parse(text)
	var lines []int
	for _, m := range mistakes {
		lines = append(lines, m.Line)
		if m.Why == "" || m.Col < 1 {
			t.Errorf("line %d says nothing: %+v", m.Line, m)
		}
	}
	if want := []int{3, 4, 5, 6, 7, 8, 9, 14, 15, 17}; !slices.Equal(lines, want) {
		t.Errorf("mistakes are in lines %v, want %v: %+v", lines, want, mistakes)
	}
	if at := mistakes[6]; at.Col != len("/secret/ @ana ")+1 {
		t.Errorf("the mistake in line 9 is at column %d", at.Col)
	}
	owned := codeowners.New(rules)
	for file, want := range map[string]string{
		"secret/x": "all", "two": "ana bo", "mail": "a.b+c@example.com", "team": "@octo-org/web_team.x", "nobody": "", "@ana": "",
	} {
		if got := strings.Join(owned.Of(file), " "); got != want {
			t.Errorf("%s is owned by %q, want %q", file, got, want)
		}
	}
	if rules[0].Line != 1 || rules[1].Line != 10 {
		t.Errorf("rules have lines %d and %d", rules[0].Line, rules[1].Line)
	}
}

func TestPlacesAreLookedAtInGitHubsOrder(t *testing.T) {
	t.Parallel()
	if got := codeowners.Places(); !slices.Equal(got, []string{".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS"}) {
		t.Error(got)
	}
}

// naive says in the plainest way whether a pattern matches: from the front, trying all.
func naive(pattern, parts []string) bool {
	if len(pattern) == 0 {
		return len(parts) == 0
	}
	if pattern[0] == "**" {
		return naive(pattern[1:], parts) || len(parts) > 0 && naive(pattern, parts[1:])
	}
	if len(parts) == 0 {
		return false
	}
	ok, err := path.Match(pattern[0], parts[0])
	return err == nil && ok && naive(pattern[1:], parts[1:])
}

func TestMatchingIsThatOfEveryWayToReadThePattern(t *testing.T) {
	t.Parallel()
	part := rapid.StringMatching(`[ab]{1,3}`)
	rapid.Check(t, func(t *rapid.T) {
		segments := rapid.SliceOfN(rapid.OneOf(rapid.Just("**"), rapid.StringMatching(`[ab*?]{1,3}`).Filter(func(s string) bool {
			return !strings.Contains(s, "**")
		})), 1, 5).Draw(t, "segments")
		file := rapid.SliceOfN(part, 1, 6).Draw(t, "file")
		pattern := "/" + strings.Join(segments, "/")
		below := rapid.Bool().Draw(t, "below")
		want := slices.Clone(segments)
		switch last := segments[len(segments)-1]; {
		case below:
			pattern += "/"
			want = append(want, "*", "**")
		case last == "**":
			want = append(want, "*")
		case last != "*":
			want = append(want, "**")
		}
		got := len(codeowners.New([]pipeline.OwnerRule{{Pattern: pattern, Owners: []string{"ana"}}}).Of(strings.Join(file, "/"))) > 0
		if got != naive(want, file) {
			t.Fatalf("%s matches %s: %v", pattern, strings.Join(file, "/"), got)
		}
	})
}

func TestTheLastRuleThatMatchesSaysItAlone(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		patterns := rapid.SliceOfN(rapid.SampledFrom([]string{"*", "/a/", "/a/b", "*.go", "b/", "/a/*", "**/c"}), 1, 6).Draw(t, "patterns")
		file := rapid.SampledFrom([]string{"a/b", "a/b/c", "x.go", "a/x.go", "b/c", "z"}).Draw(t, "file")
		want := ""
		var rules []pipeline.OwnerRule
		for i, p := range patterns {
			one := pipeline.OwnerRule{Pattern: p, Owners: []string{string(rune('A' + i))}}
			if len(codeowners.New([]pipeline.OwnerRule{one}).Of(file)) > 0 {
				want = one.Owners[0]
			}
			rules = append(rules, one)
		}
		if got := strings.Join(codeowners.New(rules).Of(file), ""); got != want {
			t.Fatalf("%v give %s to %q, want %q", patterns, file, got, want)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		documented, "* @a\r\n", `\ a\ b @x`, "a\\", "# only\n", "\xff @a", "**/**/**/a @b\n", "* a@b#c", "!x", strings.Repeat("*a", 200) + " @a",
	} {
		f.Add(seed, "a/b/c.go")
	}
	f.Fuzz(func(t *testing.T, text, file string) {
		rules, mistakes := codeowners.Parse(text)
		lines := strings.Count(text, "\n") + 1
		for _, m := range mistakes {
			if m.Line < 1 || m.Line > lines || m.Col < 1 || m.Why == "" {
				t.Fatalf("mistake %+v in %d lines", m, lines)
			}
		}
		for _, r := range rules {
			if r.Line < 1 || r.Line > lines || r.Pattern == "" || strings.HasPrefix(r.Pattern, "!") {
				t.Fatalf("rule %+v in %d lines", r, lines)
			}
			for _, o := range r.Owners {
				if o == "" || strings.ContainsAny(o, " \t#\n") {
					t.Fatalf("owner %q", o)
				}
			}
		}
		codeowners.New(rules).Of(file)
	})
}

func BenchmarkTenThousandPaths(b *testing.B) {
	var text strings.Builder
	for i := range 1000 {
		text.WriteString("/services/s" + strings.Repeat("x", i%7) + "/" + string(rune('a'+i%26)) + "*/ @ana\n")
	}
	rules, _ := codeowners.Parse(text.String())
	for b.Loop() {
		owned := codeowners.New(rules)
		for range 10_000 {
			owned.Of("services/other/file.go")
		}
	}
}
