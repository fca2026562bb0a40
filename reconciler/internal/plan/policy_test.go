package plan_test

import (
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

func TestRequestsAreForThoseWhomARuleNames(t *testing.T) {
	t.Parallel()
	law := &pipeline.Policy{
		Groups: []pipeline.Group{{Name: "ops", Members: []string{"ana"}}, {Name: "night", Members: []string{"bo"}}, {Name: "nobody"}},
		Requests: []pipeline.RequestRule{
			{Name: "releases", Verbs: []string{"cancel", "retry"}, Compositions: []string{"release-*"}, By: []string{"ops"}},
			{Name: "at night", Verbs: []string{"retry"}, By: []string{"night"}},
			{Name: "never", Verbs: []string{"run"}, Compositions: []string{"old"}, By: []string{"nobody"}},
		},
	}
	for asked, want := range map[[3]string]string{
		{"run", "release-1", "eve"}:         "",
		{"cancel", "build", "eve"}:          "",
		{"cancel", "release-1", "ana"}:      "",
		{"cancel-tree", "release-1", "ana"}: "",
		{"cancel", "release-1", "eve"}:      `the policy lets only ops cancel release-1, by its rule "releases", and eve is not among them`,
		{"cancel-tree", "release-1", "bo"}:  `the policy lets only ops cancel release-1, by its rule "releases", and bo is not among them`,
		{"retry", "release-1", "bo"}:        "",
		{"retry", "release-1", "eve"}:       `the policy lets only night or ops retry release-1, by its rules "releases" and "at night", and eve is not among them`,
		{"retry", "build", "ana"}:           `the policy lets only night retry build, by its rule "at night", and ana is not among them`,
		{"run", "old", "ana"}:               `the policy lets only nobody run old, by its rule "never", and ana is not among them`,
	} {
		if got := plan.MayNotAsk(law, asked[0], pipeline.CompositionName(asked[1]), asked[2]); got != want {
			t.Errorf("%v: %q, want %q", asked, got, want)
		}
	}
}
