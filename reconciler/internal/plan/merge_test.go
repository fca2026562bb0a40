package plan_test

import (
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// declares makes a configuration out of words such as "a1 b2": composition a in its
// version 1.
func declares(commit, words string) *pipeline.Config {
	c := &pipeline.Config{Commit: pipeline.CommitID(commit)}
	for i, w := range strings.Fields(words) {
		name := pipeline.CompositionName(w[:1])
		c.Compositions = append(c.Compositions, pipeline.Composition{
			Name: name, Description: w[1:], Digest: pipeline.Digest(w), Pos: pipeline.Position{File: commit, Line: i},
		})
		c.Pools = append(c.Pools, pipeline.Pool{Name: pipeline.PoolName(name), Untrusted: w[1:] == "2", Pos: pipeline.Position{File: commit}})
	}
	return c
}

func said(c *pipeline.Config) string {
	var out []string
	for _, x := range c.Compositions {
		out = append(out, string(x.Name)+x.Description)
	}
	return strings.Join(out, " ")
}

func TestMergedTakesEachDeclarationFromTheSideThatChangedIt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ base, fork, head, want string }{
		"nothing on either side":           {"a1 b1", "a1 b1", "a1 b1", "a1 b1"},
		"the change changed one":           {"a1 b1", "a1 b1", "a2 b1", "a2 b1"},
		"the base moved on":                {"a1 b2", "a1 b1", "a1 b1", "a1 b2"},
		"each changed another":             {"a1 b2", "a1 b1", "a2 b1", "a2 b2"},
		"both changed one":                 {"a3", "a1", "a2", "a2"},
		"added by either":                  {"a1 b1 d1", "a1 b1", "a1 b1 c1", "a1 b1 c1 d1"},
		"removed by the change":            {"a1 b1", "a1 b1", "a1", "a1"},
		"removed by the base":              {"a1", "a1 b1", "a1 b1", "a1"},
		"changed here, removed there":      {"a1", "a1 b1", "a1 b2", "a1 b2"},
		"removed here, changed there":      {"a1 b2", "a1 b1", "a1", "a1"},
		"added by both":                    {"a1 b1", "a1", "a1 b2", "a1 b2"},
		"removed by both, and a new order": {"c1 a1", "a1 b1 c1", "c1 a1", "a1 c1"},
	} {
		got := plan.Merged(declares("base", c.base), declares("fork", c.fork), declares("head", c.head))
		if said(got) != c.want || got.Commit != "head" || len(got.Pools) != len(got.Compositions) {
			t.Errorf("%s: %s, want %s", name, said(got), c.want)
		}
	}
	head := declares("head", "a2")
	if plan.Merged(declares("x", "a1"), declares("x", "a1"), head) != head {
		t.Error("a change that is up to date is merged as it is")
	}
}

func TestMergedKeepsThePolicyThatTheChangeLeavesAlone(t *testing.T) {
	t.Parallel()
	with := func(c *pipeline.Config, people string, line int) *pipeline.Config {
		c.Policy.Groups = []pipeline.Group{{Name: "ops", Members: strings.Fields(people), Pos: pipeline.Position{Line: line}}}
		return c
	}
	base, fork := with(declares("base", "a1"), "ana bo", 1), with(declares("fork", "a1"), "ana", 1)
	if got := plan.Merged(base, fork, with(declares("head", "a1"), "ana", 9)); len(got.Policy.Groups[0].Members) != 2 {
		t.Errorf("%+v", got.Policy)
	}
	if got := plan.Merged(base, fork, with(declares("head", "a1"), "eve", 1)); got.Policy.Groups[0].Members[0] != "eve" {
		t.Errorf("%+v", got.Policy)
	}
}
