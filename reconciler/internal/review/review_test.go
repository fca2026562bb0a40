package review_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

const (
	head  pipeline.CommitID = "1111111111111111111111111111111111111111"
	other pipeline.CommitID = "2222222222222222222222222222222222222222"
	plan  pipeline.Digest   = "sha256:aaaaaaaaaaaaaaaaaaaa"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// by is a review that counts wherever its person is asked.
func by(name string) review.Review {
	return review.Review{
		Review: pipeline.Review{By: name, Approve: true, At: now.Add(-time.Minute)},
		Names:  []string{name}, Signed: true, Head: head, Plan: plan,
	}
}

func but(r review.Review, change func(*review.Review)) review.Review {
	change(&r)
	return r
}

// ask is a change by eve that one of ana and bo must approve.
func ask(reviews ...review.Review) review.Input {
	return review.Input{
		Head: head, Plan: plan, Now: now, Reviews: reviews,
		Rules:   []review.Rule{{Name: "ops", Approvers: []string{"ops"}, Count: 1}},
		Groups:  []pipeline.Group{{Name: "ops", Members: []string{"ana", "bo", "eve", "cy@example.com"}}, {Name: "web", Members: []string{"zoe"}}},
		Authors: []review.Person{{Name: "Eve Evil", Email: "eve@example.com"}},
	}
}

func TestOneApprovalByWhoIsAskedIsEnough(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]review.Review{
		"ana":                  by("ana"),
		"a day old":            but(by("ana"), func(r *review.Review) { r.At = now.Add(-review.Lifetime) }),
		"the plan by its head": but(by("ana"), func(r *review.Review) { r.Plan = plan[:20] }),
		"another name of hers": but(by("cyd"), func(r *review.Review) { r.Names = []string{"cyd", "cy@example.com"} }),
	} {
		d := review.Approved(ask(r))
		if d.Approval != pipeline.ApprovalGiven || !d.Opinions[0].Counts || d.Sentence != "approved by "+r.By || d.Until != r.At.Add(review.Lifetime) {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestApprovalsThatDoNotCountSayWhy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		r   review.Review
		why string
	}{
		"by the author":               {by("eve"), "who wrote"},
		"by the author's address":     {but(by("bo"), func(r *review.Review) { r.Names = []string{"EVE@example.com"} }), "who wrote"},
		"by an outsider":              {by("mallory"), "in none of the groups"},
		"by another group":            {by("zoe"), "in none of the groups"},
		"by a look-alike":             {by("аna"), "in none of the groups"},
		"by a name in other case":     {by("Ana"), "in none of the groups"},
		"of an earlier head":          {but(by("ana"), func(r *review.Review) { r.Head = other }), "another head"},
		"of an earlier plan":          {but(by("ana"), func(r *review.Review) { r.Plan = "sha256:bbbbbbbbbbbbbbbbbbbb" }), "another one"},
		"of too little of the plan":   {but(by("ana"), func(r *review.Review) { r.Plan = plan[:10] }), "another one"},
		"before there was a plan":     {but(by("ana"), func(r *review.Review) { r.Plan = "" }), "before there was a plan"},
		"a second too old":            {but(by("ana"), func(r *review.Review) { r.At = now.Add(-review.Lifetime - time.Second) }), "older than 24 hours"},
		"unsigned":                    {but(by("ana"), func(r *review.Review) { r.Signed = false }), "not signed"},
		"with a forged signature":     {but(by("ana"), func(r *review.Review) { r.Void = "forged" }), "forged"},
		"void, and of an older head":  {but(by("ana"), func(r *review.Review) { r.Void, r.Head = "voided", other }), "voided"},
		"a refusal by nobody asked":   {but(by("mallory"), func(r *review.Review) { r.Approve = false }), "in none of the groups"},
		"a refusal by the author":     {but(by("eve"), func(r *review.Review) { r.Approve = false }), "who wrote"},
		"a refusal with a forged key": {but(by("ana"), func(r *review.Review) { r.Approve, r.Void = false, "forged" }), "forged"},
	} {
		d := review.Approved(ask(c.r))
		if d.Approval != pipeline.ApprovalWaiting || d.Opinions[0].Counts || !strings.Contains(d.Opinions[0].Why, c.why) || d.Sentence != "needs 1 approval of ops" {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestWhoMayApproveIsNobodyWhoWroteIt(t *testing.T) {
	t.Parallel()
	in := ask()
	if d := review.Approved(in); !slices.Equal(d.Needs[0].People, []string{"ana", "bo", "cy@example.com"}) {
		t.Errorf("%+v", d.Needs)
	}
	in.Groups = []pipeline.Group{{Name: "ops", Members: []string{"eve"}}}
	if d := review.Approved(in); d.Sentence != "needs 1 approval of ops (nobody is in it but who wrote it, and their word does not count)" {
		t.Errorf("%q", d.Sentence)
	}
	in.Groups = []pipeline.Group{{Name: "web", Members: []string{"zoe"}}}
	if d := review.Approved(in); d.Sentence != "needs 1 approval of ops (the policy of the default branch has no group ops, so nobody can give it)" {
		t.Errorf("%q", d.Sentence)
	}
}

func TestWhatIsNotKnownCountsAgainst(t *testing.T) {
	t.Parallel()
	in := ask(by("ana"))
	in.Truncated = true
	if d := review.Approved(in); d.Approval != pipeline.ApprovalWaiting {
		t.Errorf("a list that was cut: %+v", d)
	}
	in = ask(by("ana"))
	in.AuthorsUnknown = true
	if d := review.Approved(in); d.Approval != pipeline.ApprovalWaiting {
		t.Errorf("authors that are not known: %+v", d)
	}
	in.Reviews[0].Approve = false
	if d := review.Approved(in); d.Approval != pipeline.ApprovalRefused {
		t.Errorf("a refusal needs no list of authors: %+v", d)
	}
}

func TestRefusalClosesWhateverOthersSay(t *testing.T) {
	t.Parallel()
	no := but(by("bo"), func(r *review.Review) { r.Approve, r.Comment, r.At = false, "too early", now.Add(-48*time.Hour) })
	d := review.Approved(ask(by("ana"), no))
	if d.Approval != pipeline.ApprovalRefused || d.Sentence != "refused by bo: too early" {
		t.Errorf("%+v", d)
	}
	no.Plan = "" // it holds for the head, whatever the plan
	if d := review.Approved(ask(by("ana"), no)); d.Approval != pipeline.ApprovalRefused {
		t.Errorf("%+v", d)
	}
}

func TestDifferentPeopleAreCountedForEachRule(t *testing.T) {
	t.Parallel()
	in := ask(by("ana"), but(by("ana@home"), func(r *review.Review) { r.Names = []string{"ana", "ana@home"} }), by("ana"))
	in.Groups[0].Members = append(in.Groups[0].Members, "ana@home")
	in.Rules = []review.Rule{{Name: "two", Approvers: []string{"ops"}, Count: 2}, {Name: "web", Approvers: []string{"web"}}, {Name: "all", Count: 1}}
	d := review.Approved(in)
	if d.Approval != pipeline.ApprovalWaiting || d.Sentence != "needs 1 approval of ops and 1 approval of web" || d.Needs[0].Have != 1 || d.Needs[2].Have != 1 {
		t.Errorf("%+v", d)
	}
	in.Reviews = append(in.Reviews, by("bo"), by("zoe"))
	if d := review.Approved(in); d.Approval != pipeline.ApprovalGiven {
		t.Errorf("%+v", d)
	}
	in.Rules = nil
	if d := review.Approved(in); d.Approval != pipeline.ApprovalNone {
		t.Errorf("no rule: %+v", d)
	}
}

func TestUnsignedReviewsCountWhereThatIsSaid(t *testing.T) {
	t.Parallel()
	in := ask(but(by("ana"), func(r *review.Review) { r.Signed = false }))
	in.Unsigned = true
	if d := review.Approved(in); d.Approval != pipeline.ApprovalGiven || d.Opinions[0].Signed {
		t.Errorf("%+v", d)
	}
}

// TestNothingButARealApprovalApproves draws reviews that are each wrong in some way,
// and whatever else happens to a change: no label, order or repetition makes an
// approval of them.
func TestNothingButARealApprovalApproves(t *testing.T) {
	t.Parallel()
	wrong := []func(*review.Review){
		func(r *review.Review) { r.Head = other },
		func(r *review.Review) { r.Plan = "sha256:bbbbbbbbbbbbbbbbbbbb" },
		func(r *review.Review) { r.Plan = "" },
		func(r *review.Review) { r.At = now.Add(-25 * time.Hour) },
		func(r *review.Review) { r.Signed = false },
		func(r *review.Review) { r.Void = "void" },
		func(r *review.Review) { r.By, r.Names = "eve", nil },
		func(r *review.Review) { r.By, r.Names = "mallory", nil },
	}
	rapid.Check(t, func(rt *rapid.T) {
		in := ask()
		for i := range rapid.IntRange(0, 8).Draw(rt, "reviews") {
			r := by(rapid.SampledFrom([]string{"ana", "bo", "eve", "zoe"}).Draw(rt, fmt.Sprint("by", i)))
			for _, w := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(wrong)-1), 1, 3, rapid.ID[int]).Draw(rt, fmt.Sprint("wrong", i)) {
				wrong[w](&r)
			}
			in.Reviews = append(in.Reviews, r)
		}
		d := review.Approved(in)
		if d.Approval != pipeline.ApprovalWaiting || slices.ContainsFunc(d.Opinions, func(o pipeline.Opinion) bool { return o.Counts }) {
			rt.Fatalf("%+v", d)
		}
		in.Reviews = append(in.Reviews, by("ana"))
		if d := review.Approved(in); d.Approval != pipeline.ApprovalGiven {
			rt.Fatalf("those that do not count keep one that does from counting: %+v", d)
		}
	})
}

func TestReviewMessages(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]string{
		"":                                    "true||",
		"  \n":                                "true||",
		"approve":                             "true||",
		"Approve\n":                           "true||",
		"approve looks good\nto me\n":         "true|looks good to me|",
		"refuse: not on a\tFriday":            "false|not on a Friday|",
		"approve\n\nplan: sha256:abc\n":       "true||sha256:abc",
		"refuse\n\nno\nplan: sha256:abc\nnew": "false|no new|sha256:abc",
		"approve \x1b[2J\u202egnp.exe":        "true|[2Jgnp.exe|",
	} {
		r, digest, err := review.Parse(message)
		if got := fmt.Sprintf("%v|%s|%s", r.Approve, r.Comment, digest); err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", message, got, err, want)
		}
	}
	for _, message := range []string{"approved", "I approve", "> approve", "disapprove", "LGTM", "plan: sha256:abc", "ap\u200bprove"} {
		if r, _, err := review.Parse(message); err == nil {
			t.Errorf("%q was taken for %+v", message, r)
		}
	}
	if r, _, err := review.Parse("refuse " + strings.Repeat("ж", 10_000)); err != nil || len([]rune(r.Comment)) != 400 {
		t.Errorf("a long comment: %d characters, %v", len([]rune(r.Comment)), err)
	}
}

func TestRefsOfReviewsAndRequests(t *testing.T) {
	t.Parallel()
	for ref, ok := range map[pipeline.Ref]bool{
		"refs/reviews/" + pipeline.Ref(head) + "/ana":             true,
		"refs/reviews/" + pipeline.Ref(head) + "/ana@example.com": true,
		"refs/reviews/" + pipeline.Ref(head) + "/ana/x":           false,
		"refs/reviews/" + pipeline.Ref(head) + "/-ana":            false,
		"refs/reviews/" + pipeline.Ref(head) + "/аna":             false,
		"refs/reviews/" + pipeline.Ref(head) + "/a<b>":            false,
		"refs/reviews/" + pipeline.Ref(head):                      false,
		"refs/heads/reviews/x/ana":                                false,
	} {
		if id, user, got := review.OfReview(ref); got != ok || ok && (id != head || !strings.HasPrefix(user, "ana")) {
			t.Errorf("%s: %s %s %v", ref, id, user, got)
		}
	}
	if user, ok := review.OfRequest("refs/maestro/requests/ana/a/b"); !ok || user != "ana" {
		t.Errorf("%s %v", user, ok)
	}
	if _, ok := review.OfRequest("refs/maestro/requests/ana"); ok {
		t.Error("a request without a name of its own")
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	got, err := review.ParseRequest("run release version=1.2 n=3\nnotes=two words = more\n\n")
	want := []review.Param{{Name: "version", Value: "1.2"}, {Name: "n", Value: "3"}, {Name: "notes", Value: "two words = more"}}
	if err != nil || got.Run == nil || got.Run.Composition != "release" || !slices.Equal(got.Run.Params, want) {
		t.Errorf("%+v, %v", got.Run, err)
	}
	got, err = review.ParseRequest("cancel release#12 wrong version\n")
	if err != nil || got.Verb != review.VerbCancel || got.Of != (review.RunName{Composition: "release", Number: 12}) || got.Task != "" || got.Reason != "wrong version" {
		t.Errorf("%+v, %v", got, err)
	}
	for message, want := range map[string]review.Request{
		"cancel release#12/deploy stop it":       {Verb: review.VerbCancel, Task: "deploy", Reason: "stop it"},
		"cancel-tree release#12":                 {Verb: review.VerbCancelTree},
		"retry release#12":                       {Verb: review.VerbRetry},
		"resolve release#12/deploy success done": {Verb: review.VerbResolve, Task: "deploy", To: pipeline.Success, Reason: "done"},
		"resolve release#12 deploy failure":      {Verb: review.VerbResolve, Task: "deploy", To: pipeline.Failure},
		"resolve release#12/deploy rerun":        {Verb: review.VerbResolve, Task: "deploy", To: pipeline.Ready},
	} {
		want.Of = review.RunName{Composition: "release", Number: 12}
		if got, err := review.ParseRequest(message); err != nil || got != want {
			t.Errorf("%q: %+v, %v", message, got, err)
		}
	}
	for _, message := range []string{
		"", "run", "cancel", "run ../x", "run a b", "run a b=1 b=2", "run a 1b=2", "cancel a", "cancel a#0", "cancel a#99999999999999999999",
		"retry a#1/b", "cancel-tree a#1/b", "resolve a#1", "resolve a#1 success", "resolve a#1/b", "resolve a#1/b ready", "resolve a#1/../b success", "cancel a#1/",
		"delete a", "run a " + strings.Repeat("x=1 ", 3), "Run a", "run a\nb", "run a\n=x",
	} {
		if got, err := review.ParseRequest(message); err == nil {
			t.Errorf("%q was taken for %+v", message, got)
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Add("approve\n\nplan: sha256:abc")
	f.Add("run a b=c\nd=e")
	f.Add("cancel a#1 x")
	f.Add("resolve a#1/b success x")
	f.Fuzz(func(t *testing.T, message string) {
		if r, _, err := review.Parse(message); err == nil && len([]rune(r.Comment)) > 400 {
			t.Errorf("a comment of %d characters", len([]rune(r.Comment)))
		}
		if r, err := review.ParseRequest(message); err == nil && (r.Run == nil) == (r.Of.Number == 0) {
			t.Errorf("%+v is about both or nothing", r)
		}
	})
}
