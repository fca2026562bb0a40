package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/codeowners"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// proposing is a change of paths under one rule that asks for owners.
func proposing(owners string, rule pipeline.ChangeRule, paths ...string) plan.Input {
	in := push("main", paths...)
	rule.Name, rule.Codeowners = "owners", true
	base := &pipeline.Config{Commit: "base", Policy: pipeline.Policy{Changes: []pipeline.ChangeRule{rule}}}
	base.Owners.File = "CODEOWNERS"
	base.Owners.Rules, _ = codeowners.Parse(owners)
	head := *base
	head.Commit = "head"
	in.Base, in.Head = base, &head
	return in
}

// asked are the owners that a plan asks, with what for.
func asked(in plan.Input) []string {
	p := plan.Of(in)
	var out []string
	for _, a := range p.Approvals {
		if n := a.Need(); len(a.Owners) > 0 {
			out = append(out, n.Asked())
		}
	}
	return out
}

const someOwners = "* @ana\n/web/ @octo/web @bo\n/web/free/\n/db/ @cy\n"

func TestEachSetOfOwnersIsAskedOnce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   plan.Input
		want []string
	}{
		"one path":            {proposing(someOwners, pipeline.ChangeRule{}, "README"), []string{"ana for README"}},
		"several of one set":  {proposing(someOwners, pipeline.ChangeRule{}, "web/a", "web/b", "web/c", "web/d", "web/e"), []string{"@octo/web or bo for web/a, web/b, web/c and 2 more"}},
		"several sets":        {proposing(someOwners, pipeline.ChangeRule{}, "web/a", "README", "db/x"), []string{"@octo/web or bo for web/a", "ana for README", "cy for db/x"}},
		"what nobody owns":    {proposing(someOwners, pipeline.ChangeRule{}, "web/free/a"), nil},
		"both of a rename":    {proposing(someOwners, pipeline.ChangeRule{}, "db/x", "web/x"), []string{"@octo/web or bo for web/x", "cy for db/x"}},
		"paths of the rule":   {proposing(someOwners, pipeline.ChangeRule{Paths: []string{"db/**"}}, "web/a", "db/x"), []string{"cy for db/x"}},
		"no path of the rule": {proposing(someOwners, pipeline.ChangeRule{Paths: []string{"pools/**"}}, "web/a"), nil},
		"order of the names":  {proposing("/a @bo @ana\n/b @ana @bo @bo\n", pipeline.ChangeRule{}, "a", "b"), []string{"ana or bo for a, b"}},
		"an odd name":         {proposing(someOwners, pipeline.ChangeRule{}, "a\n\u202eb"), []string{"ana for a b"}},
	} {
		if d := cmp.Diff(c.want, asked(c.in)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	unknown := proposing(someOwners, pipeline.ChangeRule{})
	unknown.PathsUnknown = true
	if d := cmp.Diff([]string{"@octo/web or bo for /web/", "ana for *", "cy for /db/"}, asked(unknown)); d != "" {
		t.Errorf("unknown paths (-want +got):\n%s", d)
	}
	touched := proposing(someOwners, pipeline.ChangeRule{Paths: []string{"pools/**"}, Compositions: []string{"a"}}, "web/x", "lib/y")
	head := *touched.Head
	head.Compositions = []pipeline.Composition{comp("a")}
	touched.Head = &head
	if d := cmp.Diff([]string{"@octo/web or bo for web/x", "ana for lib/y"}, asked(touched)); d != "" {
		t.Errorf("a composition of the rule (-want +got):\n%s", d)
	}
}

func TestApprovalOfAnybodyIsThatOfAnOwner(t *testing.T) {
	t.Parallel()
	for want, in := range map[string]plan.Input{
		"2 approvals needed": proposing(someOwners, pipeline.ChangeRule{}, "web/a", "db/x"),
		"1 approval needed":  proposing(someOwners, pipeline.ChangeRule{}, "web/free/a"),
		"3 approvals needed": proposing(someOwners, pipeline.ChangeRule{Approvers: []string{"ops"}}, "web/a", "db/x"),
	} {
		p := plan.Of(in)
		said := p.Text(plan.TextOptions{})
		if !strings.Contains(said, want) || fmt.Sprint(strings.Count(said, "Approval needed:")) != want[:1] || !strings.Contains(p.Markdown(plan.MarkdownOptions{}), want) {
			t.Errorf("not %s:\n%s", want, said)
		}
	}
}

func TestOwnersAreThoseOfTheBaseAlone(t *testing.T) {
	t.Parallel()
	in := proposing(someOwners, pipeline.ChangeRule{}, "web/a")
	want := asked(in)
	head := *in.Head
	head.Owners = pipeline.Owners{File: ".github/CODEOWNERS", Rules: []pipeline.OwnerRule{{Pattern: "*", Owners: []string{"eve"}}}}
	head.Policy = pipeline.Policy{}
	in.Head = &head
	if d := cmp.Diff(want, asked(in)); d != "" {
		t.Error(d)
	}
}

func TestWithoutTheFileNobodyCanApprove(t *testing.T) {
	t.Parallel()
	for _, own := range []pipeline.Owners{{}, {Problem: "the repository has no CODEOWNERS"}, {File: "CODEOWNERS", Problem: "CODEOWNERS cannot be read: it is a link"}} {
		in := proposing(someOwners, pipeline.ChangeRule{Count: 1}, "web/a")
		in.Base.Owners = own
		p := plan.Of(in)
		if len(p.Approvals) != 2 || p.Approvals[0].Nobody != "" || p.Approvals[1].Nobody == "" {
			t.Errorf("%+v: %+v", own, p.Approvals)
		}
		for _, said := range []string{p.Text(plan.TextOptions{}), p.Markdown(plan.MarkdownOptions{})} {
			if !strings.Contains(said, p.Approvals[1].Nobody) {
				t.Errorf("not said why in\n%s", said)
			}
		}
	}
}

func TestDigestChangesWithOwnersOfWhatIsChangedAlone(t *testing.T) {
	t.Parallel()
	digest := func(owners string, paths ...string) pipeline.Digest {
		return plan.Of(proposing(owners, pipeline.ChangeRule{}, paths...)).Digest
	}
	was := digest(someOwners, "web/a", "db/x")
	for name, owners := range map[string]string{
		"somebody more":      strings.Replace(someOwners, "@octo/web", "@octo/web @eve", 1),
		"somebody less":      strings.Replace(someOwners, " @bo", "", 1),
		"nobody":             someOwners + "/web/\n",
		"exchanged":          "/web/ @cy\n/db/ @octo/web @bo\n",
		"everybody the same": "* @ana\n",
	} {
		if digest(owners, "web/a", "db/x") == was {
			t.Errorf("%s: the digest is the same", name)
		}
	}
	for name, owners := range map[string]string{
		"others' paths":      strings.Replace(someOwners, "* @ana", "* @eve", 1),
		"another order":      strings.Replace(someOwners, "@octo/web @bo", "@bo  @octo/web # both", 1),
		"lines that say it":  "\n# so\n" + someOwners + "/web/ @bo @octo/web\n",
		"what is skipped":    someOwners + "!/web @eve\n",
		"an owner elsewhere": someOwners + "/other/ @eve\n",
	} {
		if digest(owners, "web/a", "db/x") != was {
			t.Errorf("%s: the digest is another one", name)
		}
	}
}

// TestEveryOwnedPathHasItsOwnersAsked compares with what the file says path by path.
func TestEveryOwnedPathHasItsOwnersAsked(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var text strings.Builder
		for range rapid.IntRange(0, 5).Draw(t, "lines") {
			who := rapid.SliceOfN(rapid.SampledFrom([]string{"@ana", "@bo", "@octo/web"}), 0, 3).Draw(t, "owners")
			fmt.Fprintln(&text, rapid.SampledFrom([]string{"*", "/a/", "b/", "*.go", "/a/b/"}).Draw(t, "pattern"), strings.Join(who, " "))
		}
		paths := rapid.SliceOfN(rapid.SampledFrom([]string{"a/x", "a/b/x.go", "b/c", "x.go", "y"}), 0, 5).Draw(t, "paths")
		p := plan.Of(proposing(text.String(), pipeline.ChangeRule{}, paths...))
		rules, _ := codeowners.Parse(text.String())
		file := codeowners.New(rules)
		want := map[string]bool{}
		for _, path := range paths {
			owners := slices.Compact(slices.Sorted(slices.Values(file.Of(path))))
			if len(owners) > 0 {
				want[strings.Join(owners, " ")] = true
			}
		}
		for _, a := range p.Approvals {
			if key := strings.Join(a.Owners, " "); len(a.Owners) > 0 && !want[key] {
				t.Fatalf("%s asked, or asked twice", key)
			} else {
				delete(want, key)
			}
		}
		if len(want) > 0 {
			t.Fatalf("not asked: %v", want)
		}
	})
}

func TestCommentStrikesOutOwnersWhoHaveApproved(t *testing.T) {
	t.Parallel()
	c := talk(pipeline.ProposalOpen)
	c.Proposal.Needs = []pipeline.Need{
		{Rule: "owners", Want: 1},
		{Rule: "owners", Owners: []string{"ana"}, Paths: []string{"a_b"}, Want: 1, Have: 1},
		{Rule: "owners", Owners: []string{"@octo/web", "bo"}, Paths: []string{"web/<x>"}, More: 4, Want: 1},
	}
	got := c.Markdown()
	for _, want := range []string{"**Owners:**\n\n- ~~ana for a\\_b~~\n- @\u200bocto/web or bo for web/&lt;x&gt; and 4 more\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}
