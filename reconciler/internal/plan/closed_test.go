package plan_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

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
