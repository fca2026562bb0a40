package review_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

// owning is a change by eve of what is owned, under a rule that asks for nobody else.
func owning(owners []string, reviews ...review.Review) review.Input {
	in := ask(reviews...)
	in.Rules = []review.Rule{{Name: "r", Count: 1}, {Name: "r", Owners: owners, Paths: []string{"web/a"}, Count: 1}}
	return in
}

func TestOneOwnerOfEachSetIsEnough(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   review.Input
		want pipeline.Approval
		says string
	}{
		"nobody yet":         {owning([]string{"ana", "bo"}), pipeline.ApprovalWaiting, "needs 1 approval of ana or bo for web/a"},
		"an owner":           {owning([]string{"ana", "bo"}, by("bo")), pipeline.ApprovalGiven, "approved by bo"},
		"somebody else":      {owning([]string{"ana", "bo"}, by("zoe")), pipeline.ApprovalWaiting, "needs 1 approval of ana or bo for web/a"},
		"the author owns it": {owning([]string{"eve"}, by("eve")), pipeline.ApprovalWaiting, "nobody owns it but who wrote it"},
		"and another one":    {owning([]string{"eve", "bo"}, by("bo")), pipeline.ApprovalGiven, "approved by bo"},
		"of another head":    {owning([]string{"bo"}, but(by("bo"), func(r *review.Review) { r.Head = other })), pipeline.ApprovalWaiting, "1 approval of bo"},
		"a group by a team":  {owning([]string{"@octo/web"}, by("zoe")), pipeline.ApprovalGiven, "approved by zoe"},
		"no such group":      {owning([]string{"@octo/db"}, by("zoe")), pipeline.ApprovalWaiting, "has no members of group db"},
		"a key's address":    {owning([]string{"z@example.com"}, but(by("zoe"), func(r *review.Review) { r.Names = []string{"zoe", "z@example.com"} })), pipeline.ApprovalGiven, "approved by zoe"},
		"a refusal by an owner": {
			owning([]string{"bo"}, but(by("bo"), func(r *review.Review) { r.Approve = false })), pipeline.ApprovalRefused, "refused by bo",
		},
		"who is not known": {
			review.Input{Head: head, Plan: plan, Now: now, Rules: []review.Rule{{Name: "r", Count: 1, Nobody: "the repository has no CODEOWNERS"}}, Reviews: []review.Review{by("bo")}},
			pipeline.ApprovalWaiting, "needs 1 approval of an owner (on the default branch the repository has no CODEOWNERS",
		},
	} {
		if d := review.Approved(c.in); d.Approval != c.want || !strings.Contains(d.Sentence, c.says) {
			t.Errorf("%s: %s, %q", name, d.Approval, d.Sentence)
		}
	}
}

func TestOwnersComeBesideGroups(t *testing.T) {
	t.Parallel()
	both := func(reviews ...review.Review) review.Decision {
		in := ask(reviews...)
		in.Rules = append(in.Rules, review.Rule{Name: "ops", Owners: []string{"zoe"}, Paths: []string{"x", "y"}, More: 2, Count: 1})
		return review.Approved(in)
	}
	if d := both(); d.Sentence != "needs 1 approval of ops and 1 approval of zoe for x, y and 2 more" {
		t.Error(d.Sentence)
	}
	if d := both(by("zoe")); d.Sentence != "needs 1 approval of ops" || !d.Opinions[0].Counts || d.Needs[1].Have != 1 || d.Needs[0].Have != 0 {
		t.Errorf("an owner who is in no group: %+v", d)
	}
	if d := both(by("ana")); d.Sentence != "needs 1 approval of zoe for x, y and 2 more" {
		t.Error(d.Sentence)
	}
	if d := both(by("ana"), by("zoe")); d.Approval != pipeline.ApprovalGiven {
		t.Errorf("both: %+v", d)
	}
	if d := both(by("mallory")); d.Opinions[0].Why != "mallory is in none of the groups that are asked, and owns nothing of it" {
		t.Error(d.Opinions[0].Why)
	}
}

func TestOwnersAtAForgeAreItsAccountsAndTeams(t *testing.T) {
	t.Parallel()
	tim := pipeline.Account{ID: 7, Login: "Tim"}
	for name, c := range map[string]struct {
		owner    string
		standing review.Standing
		want     pipeline.Approval
	}{
		"a login in another case":  {"tim", review.Standing{Writes: true, Known: 7}, pipeline.ApprovalGiven},
		"a member of the team":     {"@octo/web", review.Standing{Writes: true, Known: 7, Teams: []string{"@octo/web"}}, pipeline.ApprovalGiven},
		"a member of another team": {"@octo/web", review.Standing{Writes: true, Known: 7, Teams: []string{"@octo/db"}}, pipeline.ApprovalWaiting},
		"a login that was taken":   {"tim", review.Standing{Writes: true, Known: 8}, pipeline.ApprovalWaiting},
		"who may not write":        {"tim", review.Standing{Known: 7}, pipeline.ApprovalWaiting},
		"an address":               {"tim@example.com", review.Standing{Writes: true, Known: 7}, pipeline.ApprovalWaiting},
		"a group of the policy":    {"@octo/ops", review.Standing{Writes: true, Known: 7}, pipeline.ApprovalWaiting},
	} {
		given := pipeline.PullReview{ID: 1, By: tim, State: "APPROVED", Commit: head, At: now.Add(-1)}
		in := owning([]string{c.owner}, but(review.OfPull(given, head, c.standing), func(r *review.Review) { r.Plan = plan }))
		in.AtForge, in.Standing = true, map[pipeline.Account]review.Standing{tim: c.standing}
		in.Groups = []pipeline.Group{{Name: "ops", Members: []string{"Tim", "id:7"}}}
		if d := review.Approved(in); d.Approval != c.want {
			t.Errorf("%s: %s, %q, %+v", name, d.Approval, d.Sentence, d.Opinions)
		}
	}
	in := owning([]string{"docs@example.com"})
	in.AtForge = true
	if d := review.Approved(in); !strings.Contains(d.Nobody, "CODEOWNERS has to name an account") {
		t.Error(d.Nobody)
	}
}

func TestManyOwnersAreCounted(t *testing.T) {
	t.Parallel()
	in := ask()
	in.Rules = nil
	for _, o := range []string{"a", "b", "c", "d", "e", "f"} {
		in.Rules = append(in.Rules, review.Rule{Name: "r", Owners: []string{o, "ana", "bo", "cy", "zoe", "tim", "kim"}, Count: 1})
	}
	got := review.Approved(in).Sentence
	if !strings.HasPrefix(got, "needs 1 approval of a, ana, bo, cy, zoe or one of 2 others and 1") || !strings.HasSuffix(got, " and 2 more") {
		t.Error(got)
	}
}

func TestOwningTeamsAreNamedOnce(t *testing.T) {
	t.Parallel()
	got := review.OwningTeams([]pipeline.Need{{Owners: []string{"@o/b", "ana"}}, {Approvers: []string{"ops"}}, {Owners: []string{"@o/a", "@o/b", "x@y.z"}}})
	if !slices.Equal(got, []string{"@o/a", "@o/b"}) {
		t.Error(got)
	}
}

// TestNothingIsApprovedThatAnOwnerOfEachHasNotApproved holds the decision against who
// approved and who owns.
func TestNothingIsApprovedThatAnOwnerOfEachHasNotApproved(t *testing.T) {
	t.Parallel()
	people := rapid.SampledFrom([]string{"ana", "bo", "eve", "zoe", "tim"})
	rapid.Check(t, func(t *rapid.T) {
		in := ask()
		in.Rules = []review.Rule{{Name: "r", Count: 1}}
		for range rapid.IntRange(0, 4).Draw(t, "sets") {
			in.Rules = append(in.Rules, review.Rule{Name: "r", Count: 1, Owners: rapid.SliceOfN(people, 1, 3).Draw(t, "owners")})
		}
		approved := rapid.SliceOfNDistinct(people, 0, 4, rapid.ID[string]).Draw(t, "approved")
		for _, p := range approved {
			in.Reviews = append(in.Reviews, by(p))
		}
		approved = slices.DeleteFunc(approved, func(p string) bool { return p == "eve" }) // who wrote it
		want := len(approved) > 0
		for _, r := range in.Rules[1:] {
			want = want && slices.ContainsFunc(r.Owners, func(o string) bool { return slices.Contains(approved, o) })
		}
		if d := review.Approved(in); (d.Approval == pipeline.ApprovalGiven) != want {
			t.Fatalf("%s (%s), want approved %v", d.Approval, d.Sentence, want)
		}
	})
}
