package review_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

var (
	ana   = pipeline.Account{ID: 7, Login: "ana"}
	write = review.Standing{Writes: true, Known: 7}
)

// given is a review by ana that counts.
func given(state string) pipeline.PullReview {
	return pipeline.PullReview{ID: 1, By: ana, State: state, Commit: head, At: now}
}

// heard decides on reviews at a forge of a change by eve, who is 9.
func heard(standing review.Standing, members []string, people pipeline.PullPeople, list ...pipeline.PullReview) review.Decision {
	in := ask()
	in.Reviews, in.Authors = nil, review.Behind(people)
	who := map[pipeline.Account]review.Standing{}
	for _, r := range review.Latest(list) {
		who[r.By] = standing
		one := review.OfPull(r, head, standing)
		one.Plan = plan
		in.Reviews = append(in.Reviews, one)
	}
	in.Groups = review.Members([]pipeline.Group{{Name: "ops", Members: members}}, who)
	return review.Approved(in)
}

func TestReviewAtAForgeCountsForWhomThePolicyNames(t *testing.T) {
	t.Parallel()
	eve := pipeline.PullPeople{Accounts: []pipeline.Account{{ID: 9, Login: "eve"}}}
	team := review.Standing{Writes: true, Known: 7, Teams: []string{"@octo/ops"}}
	for name, c := range map[string]struct {
		standing review.Standing
		members  []string
		people   pipeline.PullPeople
		list     []pipeline.PullReview
		want     pipeline.Approval
	}{
		"by login":               {write, []string{"ana"}, eve, []pipeline.PullReview{given("APPROVED")}, pipeline.ApprovalGiven},
		"by login in other case": {write, []string{"Ana"}, eve, []pipeline.PullReview{given("APPROVED")}, pipeline.ApprovalGiven},
		"by number":              {write, []string{"id:7"}, eve, []pipeline.PullReview{given("APPROVED")}, pipeline.ApprovalGiven},
		"by team":                {team, []string{"@octo/ops"}, eve, []pipeline.PullReview{given("APPROVED")}, pipeline.ApprovalGiven},
		"approved, then a word":  {write, []string{"ana"}, eve, []pipeline.PullReview{given("APPROVED"), given("COMMENTED")}, pipeline.ApprovalGiven},
		"refused":                {write, []string{"ana"}, eve, []pipeline.PullReview{given("APPROVED"), given("CHANGES_REQUESTED")}, pipeline.ApprovalRefused},
		"refused an older head": {
			write,
			[]string{"ana"},
			eve,
			[]pipeline.PullReview{{ID: 1, By: ana, State: "CHANGES_REQUESTED", Commit: other, At: now}},
			pipeline.ApprovalRefused,
		},
		"refused, then approved": {write, []string{"ana"}, eve, []pipeline.PullReview{given("CHANGES_REQUESTED"), given("APPROVED")}, pipeline.ApprovalGiven},
		"dismissed":              {write, []string{"ana"}, eve, []pipeline.PullReview{given("APPROVED"), given("DISMISSED")}, pipeline.ApprovalWaiting},
		"only a comment":         {write, []string{"ana"}, eve, []pipeline.PullReview{given("COMMENTED")}, pipeline.ApprovalWaiting},
		"not submitted":          {write, []string{"ana"}, eve, []pipeline.PullReview{given("PENDING")}, pipeline.ApprovalWaiting},
		"in no team":             {write, []string{"@octo/ops"}, eve, []pipeline.PullReview{given("APPROVED")}, pipeline.ApprovalWaiting},
		"a look-alike":           {write, []string{"аna"}, eve, []pipeline.PullReview{given("APPROVED")}, pipeline.ApprovalWaiting},
		"a login taken over":     {review.Standing{Writes: true, Known: 6}, []string{"ana"}, eve, []pipeline.PullReview{given("APPROVED")}, pipeline.ApprovalWaiting},
		"may not write":          {review.Standing{Known: 7}, []string{"ana"}, eve, []pipeline.PullReview{given("APPROVED")}, pipeline.ApprovalWaiting},
		"another number":         {write, []string{"id:70"}, eve, []pipeline.PullReview{given("APPROVED")}, pipeline.ApprovalWaiting},
		"a bot": {
			write,
			[]string{"ana"},
			eve,
			[]pipeline.PullReview{{ID: 1, By: pipeline.Account{ID: 7, Login: "ana", Bot: true}, State: "APPROVED", Commit: head, At: now}},
			pipeline.ApprovalWaiting,
		},
		"a ghost": {
			write,
			[]string{"ana"},
			eve,
			[]pipeline.PullReview{{ID: 1, By: pipeline.Account{Login: "ana"}, State: "APPROVED", Commit: head, At: now}},
			pipeline.ApprovalWaiting,
		},
		"the author": {write, []string{"ana"}, pipeline.PullPeople{Accounts: []pipeline.Account{ana}}, []pipeline.PullReview{given("APPROVED")}, pipeline.ApprovalWaiting},
		"a co-author": {
			write,
			[]string{"ana"},
			pipeline.PullPeople{Named: []string{"A. B. <ana@example.com>"}},
			[]pipeline.PullReview{given("APPROVED")},
			pipeline.ApprovalWaiting,
		},
	} {
		if d := heard(c.standing, c.members, c.people, c.list...); d.Approval != c.want {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestLoginsAreToldApartByEveryLetter(t *testing.T) {
	t.Parallel()
	kim := pipeline.Account{ID: 7, Login: "kims"}
	for member, want := range map[string]bool{
		"kims": true, "KIMS": true, "\u212aims": false, "kim\u017f": false, "k\u0456ms": false, "kims ": false, "": false, "id:7": true, "id:07": false, "7": false,
	} {
		got := review.Members([]pipeline.Group{{Name: "ops", Members: []string{member}}}, map[pipeline.Account]review.Standing{kim: {Writes: true, Known: 7}})
		if named := slices.Contains(slices.DeleteFunc(got[0].Members, func(m string) bool { return m == member }), "id:7") || member == "id:7"; named != want {
			t.Errorf("%q names kims: %v", member, got[0].Members)
		}
	}
}

func TestAnAccountThatIsGoneApprovesNothing(t *testing.T) {
	t.Parallel()
	for name, who := range map[string]pipeline.Account{"with its login": {Login: "ana"}, "without one": {}} {
		one := review.OfPull(pipeline.PullReview{ID: 1, By: who, State: "APPROVED", Commit: head, At: now}, head, write)
		one.Plan = plan
		in := ask(one)
		in.Rules = []review.Rule{{Name: "anybody", Count: 1}}
		if d := review.Approved(in); d.Approval != pipeline.ApprovalWaiting || !strings.Contains(d.Opinions[0].Why, "is gone") {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestUnreadReviewsApproveNothing(t *testing.T) {
	t.Parallel()
	in := ask(by("ana"))
	in.Truncated, in.Unread = true, "GitHub answers HTTP 502"
	if d := review.Approved(in); d.Approval != pipeline.ApprovalWaiting || !strings.Contains(d.Opinions[0].Why, "HTTP 502") {
		t.Errorf("%+v", d)
	}
	// What passes by itself is not told where nothing else is: every outage would.
	in.Reviews = nil
	if d := review.Approved(in); strings.Contains(d.Sentence, "HTTP 502") {
		t.Errorf("%+v", d)
	}
	in.Denied = "grant it read access"
	if d := review.Approved(in); d.Approval != pipeline.ApprovalWaiting || d.Sentence != "needs 1 approval of ops; no review counts until they can be read: grant it read access" {
		t.Errorf("%+v", d)
	}
	in = ask(by("ana"))
	in.AuthorsUnknown, in.Nobody = true, "it has 250 commits"
	if d := review.Approved(in); d.Approval != pipeline.ApprovalWaiting || !strings.Contains(d.Opinions[0].Why, "it has 250 commits") {
		t.Errorf("%+v", d)
	}
}

func TestOnlyTheFirstLineAsks(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]review.Command{
		"/maestro":                             {},
		"/maestro help":                        {Verb: "help"},
		"/maestro  run release a=b \r\nplease": {Verb: "run", Rest: "release a=b"},
		"/maestro\tplan":                       {Verb: "plan"},
	} {
		if got, ok := review.ParseCommand(text); !ok || got != want {
			t.Errorf("%q: %+v %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "> /maestro hold", " /maestro hold", "/maestrohold", "x\n/maestro hold", "```\n/maestro hold", "/Maestro hold", "\u200b/maestro hold"} {
		if got, ok := review.ParseCommand(text); ok {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func FuzzParseCommand(f *testing.F) {
	for _, s := range []string{"/maestro ok-to-test 111111111111", "/maestro \x1b]8;;x\x07", "/maestro \xff", "/maestro " + strings.Repeat("x", 5000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, ok := review.ParseCommand(s)
		if ok && (!strings.HasPrefix(s, "/maestro") || strings.Contains(c.Rest, "\n") || len([]rune(c.Verb)) > 40) {
			t.Errorf("%q: %+v", s, c)
		}
	})
}

func TestHeadIsNamedByTwelveDigitsAtLeast(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		string(head): true, string(head[:12]): true, string(head[:11]): false, "": false, string(other[:12]): false, string(head) + "1": false,
	} {
		if got := review.NamesHead(text, head); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
