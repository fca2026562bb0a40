package plan_test

import (
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

func TestStatusOfAProposedHeadSaysWhoseTurnItIs(t *testing.T) {
	t.Parallel()
	const head, main = "1111111111111111111111111111111111111111", "2222222222222222222222222222222222222222"
	open := func(a pipeline.Approval, sentence string) pipeline.Proposal {
		return pipeline.Proposal{
			Branch: "feature/a b", Head: head, State: pipeline.ProposalOpen, Approval: a, Sentence: sentence,
			Predicted: []pipeline.CompositionName{"a", "b", "c"},
		}
	}
	merged := func(commit pipeline.CommitID, a pipeline.Approval) pipeline.Proposal {
		p := open(a, "")
		p.State, p.Merge = pipeline.ProposalMerged, &pipeline.Merge{Commit: commit, Approval: a, Sentence: "predicted 3 runs, started 3"}
		return p
	}
	calling := func(p pipeline.Proposal) pipeline.Proposal {
		p.Predicted, p.Called = p.Predicted[:1], p.Predicted[1:]
		return p
	}
	run := func(s pipeline.State) []*pipeline.Run {
		return []*pipeline.Run{{ID: "1", Number: 7, Composition: "lint", State: s, Reason: "exit code 1"}}
	}
	mistake := []pipeline.Diagnostic{{Severity: pipeline.SeverityError, Message: "no", Pos: pipeline.Position{File: "a.cue"}}}
	for name, c := range map[string]struct {
		facts       plan.Facts
		state, text string
	}{
		"planning":               {plan.Facts{Commit: head, Planning: true}, "pending", "there is no plan yet"},
		"planning, wrong":        {plan.Facts{Commit: head, Planning: true, Diagnostics: mistake}, "failure", "there is no plan yet; a.cue: no"},
		"no policy":              {plan.Facts{Commit: head, Proposals: []pipeline.Proposal{open(pipeline.ApprovalNone, "no approval is needed")}}, "success", "plan: 3 runs on merge; no approval is needed"},
		"waiting":                {plan.Facts{Commit: head, Planning: true, Proposals: []pipeline.Proposal{open(pipeline.ApprovalWaiting, "needs 1 approval of ops")}}, "pending", "plan: 3 runs on merge; needs 1 approval of ops"},
		"calls":                  {plan.Facts{Commit: head, Proposals: []pipeline.Proposal{calling(open(pipeline.ApprovalGiven, "approved by ana"))}}, "success", "plan: 1 run and what it calls on merge; approved by ana"},
		"approved":               {plan.Facts{Commit: head, Proposals: []pipeline.Proposal{open(pipeline.ApprovalGiven, "approved by ana")}}, "success", "plan: 3 runs on merge; approved by ana"},
		"refused":                {plan.Facts{Commit: head, Proposals: []pipeline.Proposal{open(pipeline.ApprovalRefused, "refused by ana")}}, "failure", "plan: 3 runs on merge; refused by ana"},
		"a mistake":              {plan.Facts{Commit: head, Diagnostics: mistake, Proposals: []pipeline.Proposal{open(pipeline.ApprovalGiven, "approved by ana")}}, "failure", "a.cue: no"},
		"a run failed":           {plan.Facts{Commit: head, Runs: run(pipeline.Failure), Proposals: []pipeline.Proposal{open(pipeline.ApprovalGiven, "approved by ana")}}, "failure", "plan: 3 runs on merge; approved by ana; 1 of 1 run done: lint #7 failure: exit code 1"},
		"a run goes on":          {plan.Facts{Commit: head, Runs: run(pipeline.Running), Proposals: []pipeline.Proposal{open(pipeline.ApprovalGiven, "approved by ana")}}, "pending", ""},
		"merged":                 {plan.Facts{Commit: head, Runs: run(pipeline.Success), Proposals: []pipeline.Proposal{merged(head, pipeline.ApprovalGiven)}}, "success", "1 run succeeded"},
		"not approved":           {plan.Facts{Commit: head, Runs: run(pipeline.Success), Proposals: []pipeline.Proposal{merged(head, pipeline.ApprovalWaiting)}}, "failure", "merged without the approval it needed; 1 run succeeded"},
		"merge commit":           {plan.Facts{Commit: main, Runs: run(pipeline.Success), Proposals: []pipeline.Proposal{merged(main, pipeline.ApprovalRefused)}}, "failure", "merged although it was refused; 1 run succeeded"},
		"two of them":            {plan.Facts{Commit: main, Runs: run(pipeline.Running), Proposals: []pipeline.Proposal{merged(main, pipeline.ApprovalWaiting), merged(main, pipeline.ApprovalRefused)}}, "failure", "merged although it was refused; 0 of 1 run done: lint #7 running: exit code 1"},
		"its head":               {plan.Facts{Commit: head, Proposals: []pipeline.Proposal{merged(main, pipeline.ApprovalWaiting)}}, "failure", "merged as 222222222222: predicted 3 runs, started 3"},
		"merged head":            {plan.Facts{Commit: head, Proposals: []pipeline.Proposal{merged(main, pipeline.ApprovalGiven)}}, "success", "merged as 222222222222: predicted 3 runs, started 3"},
		"still a branch":         {plan.Facts{Commit: head, Planning: true, Proposals: []pipeline.Proposal{merged(main, pipeline.ApprovalGiven)}}, "pending", "pending until its branch is deleted; merged as 222222222222: predicted 3 runs, started 3"},
		"not approved, a branch": {plan.Facts{Commit: head, Planning: true, Proposals: []pipeline.Proposal{merged(main, pipeline.ApprovalWaiting)}}, "failure", "merged as 222222222222: predicted 3 runs, started 3"},
		"proposed again":         {plan.Facts{Commit: head, Planning: true, Proposals: []pipeline.Proposal{merged(main, pipeline.ApprovalGiven), open(pipeline.ApprovalWaiting, "needs 1 approval of ops")}}, "pending", "plan: 3 runs on merge; needs 1 approval of ops"},
	} {
		c.facts.URL = "http://x"
		s := plan.RollUp(c.facts)
		if s.State != c.state || c.text != "" && s.Description != c.text || s.Context != "maestro" {
			t.Errorf("%s: %s %q, want %s %q", name, s.State, s.Description, c.state, c.text)
		}
		if strings.HasPrefix(s.Description, "plan:") && s.URL != "http://x/changes?branch=feature%2Fa+b" {
			t.Errorf("%s: leads to %s", name, s.URL)
		}
	}
}
