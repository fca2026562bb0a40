package review_test

import (
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

func TestApprovalNamesTheCommitWhereARuleWantsThat(t *testing.T) {
	t.Parallel()
	const source = pipeline.CommitID("fedcba9876543210fedcba9876543210fedcba98")
	const reviewed = pipeline.CommitID("0123456789abcdef0123456789abcdef01234567")
	echo := func(text string) review.Input {
		r := by("ana")
		r.Head, r.Comment = reviewed, text
		in := ask(r)
		in.Head, in.Rules[0].Echo = reviewed, true
		return in
	}
	for text, want := range map[string]bool{
		"":                                     false,
		"fine":                                 false,
		"0123456":                              true,
		"go, 0123456789AB.":                    true,
		"/approve " + string(reviewed):         true,
		"012345":                               false, // too few digits
		"0123457":                              false, // another commit
		"x0123456":                             false, // part of a word
		"1234567":                              false, // from its middle
		string(reviewed) + "0":                 false,
		string(source[:12]):                    false, // of a change, no source
		"not 7777777, but " + "0123456 please": true,
	} {
		d := review.Approved(echo(text))
		if got := d.Approval == pipeline.ApprovalGiven; got != want || d.Opinions[0].Counts != want {
			t.Errorf("%q: %+v", text, d)
		}
		if !want && (!strings.Contains(d.Sentence, "needs 1 approval of ops with 0123456789ab in its text") || !strings.Contains(d.Opinions[0].Why, "does not name the commit")) {
			t.Errorf("%q: %q, %q", text, d.Sentence, d.Opinions[0].Why)
		}
	}

	// A gate is of a commit that people know; its own head they may name too.
	gate := echo("ship fedcba9")
	gate.Commit = source
	if d := review.Approved(gate); d.Approval != pipeline.ApprovalGiven {
		t.Errorf("%+v", d)
	}
	// Another rule that asks the same person does not want it; the first still does.
	both := echo("fine")
	both.Rules = append(both.Rules, review.Rule{Name: "anybody", Count: 1})
	if d := review.Approved(both); d.Approval != pipeline.ApprovalWaiting || d.Needs[0].Have != 0 || d.Needs[1].Have != 1 || !d.Opinions[0].Counts {
		t.Errorf("%+v", d)
	}
	// To refuse takes no more than before.
	no := echo("no")
	no.Reviews[0].Approve = false
	if d := review.Approved(no); d.Approval != pipeline.ApprovalRefused {
		t.Errorf("%+v", d)
	}
}
