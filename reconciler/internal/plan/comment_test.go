package plan_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// nasty is text that would be markup, mention somebody, or close an issue.
const nasty = "``` @octo/all ![x](http://track.example/x) <details></details> Fixes #1 [a](javascript:b) | x\n# title\u202e"

func talk(state pipeline.ProposalState, runs ...*pipeline.Run) *plan.Talk {
	return &plan.Talk{URL: "https://ci.example", Runs: runs, Proposal: &pipeline.Proposal{
		Branch: "pull/7", Target: "main", Head: "1111111111111111111111111111111111111111", State: state, Digest: "sha256:1",
		Markdown: "**maestro plan: 1 run**\n\n", Sentence: "needs 1 approval of ops", Approval: pipeline.ApprovalWaiting,
	}}
}

func ended(name string, state pipeline.State, reason string) *pipeline.Run {
	return &pipeline.Run{ID: pipeline.RunID("r-" + name), Composition: pipeline.CompositionName(name), Number: 3, State: state, Reason: reason, Commit: "2222222222222222222222222222222222222222"}
}

func TestNothingInACommentIsMarkupFromOutside(t *testing.T) {
	t.Parallel()
	c := talk(pipeline.ProposalOpen, ended("check", pipeline.Failure, nasty))
	c.Answers = []string{"ana: " + nasty}
	c.Proposal.Sentence = nasty
	c.Proposal.Reviews = []pipeline.Opinion{{Review: pipeline.Review{By: nasty, Approve: true}, Why: nasty}}
	for _, state := range []pipeline.ProposalState{pipeline.ProposalOpen, pipeline.ProposalMerged, pipeline.ProposalClosed} {
		c.Proposal.State = state
		for line := range strings.Lines(c.Markdown()) {
			// What is between backquotes is literal.
			parts := strings.Split(line, "````")
			outside := ""
			for i := 0; i < len(parts); i += 2 {
				outside += parts[i]
			}
			for _, bad := range []string{"@octo", "![", "<details", "x](", "a](", "Fixes #1", "\u202e"} {
				if strings.Contains(outside, bad) {
					t.Errorf("%s: %q has %q", state, outside, bad)
				}
			}
			if strings.HasPrefix(line, "# title") || strings.HasPrefix(line, "```") {
				t.Errorf("%s: %q", state, line)
			}
		}
	}
}

func TestCommentIsNeverTooLong(t *testing.T) {
	t.Parallel()
	c := talk(pipeline.ProposalOpen)
	for i := range 500 {
		c.Runs = append(c.Runs, ended(fmt.Sprintf("check-%d", i), pipeline.Failure, strings.Repeat("é", 5000)))
		c.Proposal.Reviews = append(c.Proposal.Reviews, pipeline.Opinion{Why: strings.Repeat("x", 5000)})
	}
	c.Answers = []string{strings.Repeat("y", 50_000)}
	c.Proposal.Markdown = strings.Repeat("z", plan.MaxMarkdown)
	if n := len(c.Markdown()); n > plan.MaxMarkdown {
		t.Errorf("%d bytes", n)
	}
	if !strings.Contains(c.Markdown(), "too large") {
		t.Error("nothing says that the plan is left out")
	}
}

func TestCommentAfterTheMergeHoldsThePredictionAgainstWhatCame(t *testing.T) {
	t.Parallel()
	c := talk(pipeline.ProposalMerged, ended("build", pipeline.Success, ""), ended("deploy", pipeline.Success, ""))
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	c.Proposal.Merge = &pipeline.Merge{Commit: "3333333333333333333333333333333333333333", Sentence: "predicted 2 runs, started 2", At: at}
	for _, r := range c.Runs {
		r.FinishedAt = at.Add(90 * time.Second)
	}
	first, _, _ := strings.Cut(c.Markdown(), "\n")
	if first != "**maestro: merged as `333333333333`: predicted 2 runs, started 2; all green, 1m30s**" || c.Rank() != plan.RankFine {
		t.Errorf("%q, rank %d", first, c.Rank())
	}
	c.Runs[0].State = pipeline.Failure
	if got := c.Markdown(); !strings.Contains(got, "1 of 2 runs failed") || c.Rank() != plan.RankAfter {
		t.Errorf("%q, rank %d", got, c.Rank())
	}
}

func TestCommentAsksForAReviewWhereOneWouldCount(t *testing.T) {
	t.Parallel()
	const asks = "review this pull request again"
	for kind, want := range map[string]bool{
		pipeline.EventPush: true, pipeline.EventManual: false, pipeline.EventCron: false, pipeline.EventWebhook: false,
	} {
		first := ended("release", pipeline.Held, "confirm waits")
		first.Event.Kind = kind
		c := talk(pipeline.ProposalMerged, first)
		if got := c.Markdown(); strings.Contains(got, asks) != want || (c.Rank() == plan.RankAsked) != want {
			t.Errorf("%s: rank %d, %q", kind, c.Rank(), got)
		}
		first.State = pipeline.Success
		next := ended("next", pipeline.Held, "confirm waits")
		next.Event = pipeline.Event{Kind: pipeline.EventAfter, Cause: &pipeline.Cause{Run: first.ID}}
		c = talk(pipeline.ProposalMerged, next, first)
		if got := c.Markdown(); strings.Contains(got, asks) != want {
			t.Errorf("after a run by %s: %q", kind, got)
		}
	}
}

func TestCommentSaysThatAGateBeforeTheMergeWaitsForAReview(t *testing.T) {
	t.Parallel()
	const says = "A gate of its runs waits too"
	held := ended("check", pipeline.Held, "ok waits")
	held.Event.Kind = pipeline.EventPullRequest
	if got := talk(pipeline.ProposalOpen, held).Markdown(); !strings.Contains(got, says) {
		t.Errorf("%q", got)
	}
	held.State = pipeline.Running
	if got := talk(pipeline.ProposalOpen, held).Markdown(); strings.Contains(got, says) {
		t.Errorf("without a gate: %q", got)
	}
}

func TestChangeWithoutEffectIsSilent(t *testing.T) {
	t.Parallel()
	c := talk(pipeline.ProposalOpen)
	c.Proposal.Plan = []byte(`{"unchanged": 3}`)
	if !c.Silent() {
		t.Error("it has something to say")
	}
	for name, change := range map[string]func(){
		"a run on merge": func() { c.Proposal.Predicted = []pipeline.CompositionName{"build"} },
		"an answer":      func() { c.Answers = []string{"x"} },
		"a need":         func() { c.Proposal.Needs = []pipeline.Need{{}} },
		"a mistake":      func() { c.Proposal.Diagnostics = []pipeline.Diagnostic{{}} },
		"a change":       func() { c.Proposal.Plan = []byte(`{"changes": [{}]}`) },
	} {
		c = talk(pipeline.ProposalOpen)
		c.Proposal.Plan = []byte(`{"unchanged": 3}`)
		if change(); c.Silent() {
			t.Errorf("%s: it is silent", name)
		}
	}
}

func TestCommentSaysWhatRunsBeforeTheMergeAndWhatForksWaitFor(t *testing.T) {
	t.Parallel()
	p := plan.Plan{Head: "1111111111111111111111111111111111111111"}
	o := plan.MarkdownOptions{
		Checks:  []plan.Run{{Name: "check"}, {Name: "lint"}},
		Refused: []pipeline.Verdict{{Composition: "deploy", Sentence: "there is no pool for untrusted work"}},
	}
	const but, waits = "nothing runs on the change itself but", "/maestro ok-to-test 111111111111"
	got := p.Markdown(o)
	if !strings.Contains(got, but) || strings.Contains(got, waits) || !strings.Contains(got, "does not run on the change itself: there is no pool for untrusted work.") {
		t.Errorf("%q", got)
	}
	o.Closed = true
	if got := p.Markdown(o); !strings.Contains(got, but) || !strings.Contains(got, waits) {
		t.Errorf("of a fork: %q", got)
	}
	o.Checks = nil
	if got := p.Markdown(o); strings.Contains(got, waits) {
		t.Errorf("where nothing would run: %q", got)
	}
}
