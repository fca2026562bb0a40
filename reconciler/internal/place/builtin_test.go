package place_test

import (
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// core is a built-in task, which no agent ever has.
func core(name string, s pipeline.State) pipeline.RunTask {
	return pipeline.RunTask{Name: pipeline.TaskName(name), State: s, Spec: pipeline.Task{Plugin: pipeline.CorePlugin}}
}

func TestRunThatWaitsForACallHoldsNoAgent(t *testing.T) {
	t.Parallel()
	for _, s := range []pipeline.State{pipeline.Running, pipeline.Held} {
		after := pipeline.RunTask{Name: "after", State: pipeline.Pending, Spec: pipeline.Task{Needs: []pipeline.TaskName{"core"}}}
		caller := run("1", on("before", pipeline.Success, "a"), core("core", s), after)
		expect(t, give([]*pipeline.Run{caller, run("2", ready("work"))}, agent("a", "Linux")), "2/work@a#1")
	}
	// The gate after it needs no agent either.
	gate := core("gate", pipeline.Pending)
	gate.Spec.Needs = []pipeline.TaskName{"work"}
	waits := run("1", on("done", pipeline.Success, "a"), on("work", pipeline.Running, "b"), gate)
	expect(t, give([]*pipeline.Run{waits, run("2", ready("work"))}, agent("a", "Linux"), agent("b", "Linux")), "2/work@a#1")
}
