package config_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/config"
)

func TestConstraintsWithoutACounterpartAreRefused(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`strings.MinRunes(3)`, `[int, string]`, `bytes`, `float`, `{[=~"^a"]: int}`, `>"a"`,
		`[int, ...string]`, `strings.MaxRunes(3) & =~"x"`, `list.MaxItems(3)`,
		`[...int] & list.MaxItems(3)`, `{...} & struct.MinFields(1)`,
	} {
		if c, err := config.CompileType(text); err == nil {
			b, _ := json.Marshal(c.Type)
			t.Errorf("%s is compiled to %s", text, b)
		}
	}
}

func TestNotNullMatchesEverythingElse(t *testing.T) {
	t.Parallel()
	c, err := config.CompileType("!=null")
	if err != nil {
		t.Fatal(err)
	}
	for v, want := range map[string]bool{"null": false, "1": true, `{"a": 1}`: true, "[]": true} {
		if got := len(c.Type.CheckJSON([]byte(v))) == 0; got != want {
			t.Errorf("%s: got %v, want %v", v, got, want)
		}
	}
}

// scalar draws a constraint on a single value.
func scalar(t *rapid.T) string {
	return rapid.SampledFrom([]string{
		"string", "int", "number", "bool", "null", "_", `"Linux"`, `"a" | "b"`, `=~"^L"`, `!~"x$"`, `!="Linux"`,
		">=4", "<10", ">3 & <=8", "int & >=4", "int & !=5", "4 | 8", "uint8", "true", "string | null", `"a" | 4`,
		`=~"^L" & !="Lx"`, "int | string", "number & >2.5", `*"a" | string`, "int & (4 | 8 | >100)",
		"[...int]", `[string, ...string]`, "[...{a: int}]", "{a: int, ...}", "{...}", "{[string]: int}",
		`(string | int) & !="a"`, `#Path`, `#Path & =~"^/"`,
	}).Draw(t, "constraint")
}

// value draws a JSON value that such constraints can tell apart.
func value(t *rapid.T) string {
	return rapid.SampledFrom([]string{
		`"Linux"`, `"a"`, `"b"`, `"Lx"`, `"x"`, `""`, `"/tmp"`, "4", "8", "3", "10", "5", "2.6", "4.5", "-1", "101", "256", "true", "false", "null",
		"[]", "[1]", `["x"]`, `["x", "y"]`, `[1, "x"]`, `[{"a": 1}]`, `[{"a": "x"}]`, `{"a": 1}`, `{"a": "x"}`, `{"a": 1, "b": 2}`, "{}",
	}).Draw(t, "value")
}

func TestCompiledTypesAgreeWithCUE(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text, v := scalar(t), value(t)
		c, err := config.CompileType(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		bad := c.Type.CheckJSON([]byte(v))
		if want := c.MatchesByCUE(v); want != (len(bad) == 0) {
			b, _ := json.Marshal(c.Type)
			t.Fatalf("%s against %s: CUE says %v, %s says %v", v, text, want, b, bad)
		}
	})
}

func TestWhatCoversAcceptsAll(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want, got, v := scalar(t), scalar(t), value(t)
		a, errA := config.CompileType(want)
		b, errB := config.CompileType(got)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if config.Covers(a.Type, b.Type) && b.Type.CheckJSON([]byte(v)) == nil && a.Type.CheckJSON([]byte(v)) != nil {
			t.Fatalf("%s is said to cover %s, but %s fits only the latter", want, got, v)
		}
		if !config.Covers(a.Type, a.Type) {
			t.Fatalf("%s is said not to cover itself", want)
		}
	})
}

var factNames = []string{"kernel", "memory", "cpus", "gpu"}

func drawFacts(t *rapid.T, depth int, leaf func(*rapid.T) string, open string) string {
	var fields []string
	for _, name := range factNames {
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			fields = append(fields, fmt.Sprintf("%q: %s", name, leaf(t)))
		case 1:
			if depth > 0 {
				fields = append(fields, fmt.Sprintf("%q: %s", name, drawFacts(t, depth-1, leaf, open)))
			}
		}
	}
	return "{" + strings.Join(fields, ", ") + open + "}"
}

// A requirement in Go must match exactly the agents that it matches in CUE: those
// whose facts are an instance of it, so that a fact that is missing never matches.
func TestCompiledRequirementsAgreeWithCUE(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		req := drawFacts(t, 2, scalar, "")
		facts := drawFacts(t, 2, value, "")
		c, err := config.CompileFacts(req)
		if err != nil {
			t.Skip() // nesting makes some of them impossible to state
		}
		if got, want := c.MatchesByClauses(facts), c.MatchesByCUE(facts); got != want {
			t.Fatalf("facts %s, requirement %s: compiled says %v, CUE says %v", facts, req, got, want)
		}
	})
}

func TestSuggestionsAreNear(t *testing.T) {
	t.Parallel()
	known := []string{"provision", "deprovision", "test", "checkout"}
	for written, want := range map[string]string{
		"provison": `did you mean "provision"?`, "tset": `did you mean "test"?`, "chekout": `did you mean "checkout"?`,
		"deploy": "", "x": "", "": "",
	} {
		if got := config.DidYouMean(written, known); got != want {
			t.Errorf("%q: got %q, want %q", written, got, want)
		}
	}
}

func TestDistanceIsSymmetric(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.StringN(0, 20, 60).Draw(t, "a"), rapid.StringN(0, 20, 60).Draw(t, "b")
		if d, e := config.Distance(a, b), config.Distance(b, a); d != e || (d == 0) != (a == b) {
			t.Fatalf("%q %q: %d and %d", a, b, d, e)
		}
	})
}
