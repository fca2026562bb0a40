package plan_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

func TestAPoolMayBeForSomeBranches(t *testing.T) {
	t.Parallel()
	law := &pipeline.Policy{Pools: []pipeline.PoolRule{{Pool: "prod", Compositions: []string{"release"}, Branches: []string{"main", "release/*"}}}}
	release := &pipeline.Composition{Name: "release", Tasks: []pipeline.Task{{Name: "work", Requirement: pipeline.Requirement{Pool: "prod"}}}}
	for ref, want := range map[pipeline.Ref]string{
		"refs/heads/main": "", "refs/heads/release/1": "",
		"refs/heads/x":   "task work: pool prod is for branch main or release/*, not for x ()",
		"refs/tags/main": "task work: pool prod is for branch main or release/*, not for tag main ()",
	} {
		if got := plan.Forbidden(law, release, ref, "refs/heads/main"); got != want {
			t.Errorf("%s: %q, want %q", ref, got, want)
		}
		if plan.Closed(law, "prod", "release", ref) != (want != "") || plan.Closed(law, "default", "release", ref) {
			t.Errorf("%s: what no task names is judged otherwise", ref)
		}
	}
}

func TestAGateThatNobodyCouldOpenIsRefused(t *testing.T) {
	t.Parallel()
	law := &pipeline.Policy{Groups: []pipeline.Group{{Name: "ops", Members: []string{"ana"}}}}
	const want = "task ok: nobody could approve it: the policy of main has no group qa or web"
	for approvers, want := range map[string]string{"": "", "ops": "", "qa,ops": "", "qa,web": want} {
		var groups []string
		if approvers != "" {
			groups = strings.Split(approvers, ",")
		}
		c := &pipeline.Composition{Name: "release", Tasks: []pipeline.Task{{Name: "ok", Gate: &pipeline.Gate{Approvers: groups}}}}
		if got := plan.Forbidden(law, c, "refs/heads/x", "refs/heads/main"); got != want {
			t.Errorf("%s: %q, want %q", approvers, got, want)
		}
	}
}

func TestAPlanCountsNoAgentThatThePolicyKeepsFromAComposition(t *testing.T) {
	t.Parallel()
	work := []pipeline.Task{{Name: "work", Plugin: "shell"}}
	push := []pipeline.Trigger{{Push: &pipeline.PushTrigger{Branches: []string{"main"}}}}
	p := plan.Of(plan.Input{
		Default: "refs/heads/main", Event: pipeline.Event{Kind: pipeline.EventPush, Ref: "refs/heads/main"},
		Head: &pipeline.Config{
			Compositions: []pipeline.Composition{{Name: "lint", Tasks: work, Triggers: push}, {Name: "release", Tasks: work, Triggers: push}},
			Policy:       pipeline.Policy{Pools: []pipeline.PoolRule{{Pool: "prod", Compositions: []string{"release"}}}},
		},
		Fleet: &plan.Fleet{Agents: []plan.Agent{{ID: "a", Pool: "prod", Online: true}, {ID: "b", Pool: "default", Online: true}}},
	})
	want := []plan.Placement{
		{Composition: "lint", Fits: []plan.Fit{{
			Tasks: []pipeline.TaskName{"work"}, Agents: 1, Free: 1,
			Excluded: []plan.Exclusion{{Clause: "leave of the policy to run lint", Agents: 1}},
		}}},
		{Composition: "release", Fits: []plan.Fit{{Tasks: []pipeline.TaskName{"work"}, Agents: 2, Free: 2}}},
	}
	if d := cmp.Diff(want, p.Placements); d != "" {
		t.Error(d)
	}
}
