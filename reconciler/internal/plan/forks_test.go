package plan_test

import (
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

func TestTasksOfAForkThatNameNoPoolGoToTheOneForUntrustedWork(t *testing.T) {
	t.Parallel()
	asked := func(tasks ...pipeline.Task) pipeline.Composition {
		return pipeline.Composition{Name: "check", Digest: "sha256:1", Tasks: tasks, Triggers: []pipeline.Trigger{{PullRequest: &pipeline.PullRequestTrigger{Branches: []string{"main"}}}}}
	}
	free, named := pipeline.Task{Name: "free", Plugin: "shell"}, pipeline.Task{Name: "named", Plugin: "shell"}
	named.Requirement.Pool = "elsewhere"
	call := pipeline.Task{Name: "call", Plugin: pipeline.CorePlugin, Call: &pipeline.Call{Composition: "other"}}
	other := pipeline.Composition{Name: "other", Digest: "sha256:2", Tasks: []pipeline.Task{free}}
	pools := func(names ...pipeline.PoolName) (out []pipeline.Pool) {
		for _, n := range append(names, "default") {
			out = append(out, pipeline.Pool{Name: n, Untrusted: n != "default"})
		}
		return out
	}
	for name, c := range map[string]struct {
		pools []pipeline.Pool
		head  []pipeline.Composition
		pool  pipeline.PoolName // of the first task
		why   string
	}{
		"one pool":      {pools("sandbox"), []pipeline.Composition{asked(free)}, "sandbox", ""},
		"a named one":   {pools("sandbox"), []pipeline.Composition{asked(named)}, "elsewhere", ""},
		"named, of two": {pools("a", "b"), []pipeline.Composition{asked(named)}, "elsewhere", ""},
		"none":          {pools(), []pipeline.Composition{asked(free)}, "", "task free: what comes from a fork runs in a pool for untrusted work, and there is none; declare one"},
		"two":           {pools("b", "a"), []pipeline.Composition{asked(free)}, "", `write agent: pool: "a" or "b"`},
		"of a call":     {pools(), []pipeline.Composition{asked(call), other}, "", "task free of other: what comes from a fork"},
		"no agent":      {pools(), []pipeline.Composition{asked(pipeline.Task{Name: "gate", Plugin: pipeline.CorePlugin})}, "", ""},
	} {
		base, before := &pipeline.Config{Pools: c.pools}, &pipeline.Config{Compositions: c.head}
		in := plan.Input{Default: "refs/heads/main", Base: base, Head: plan.Outside(before, base.Pools), Event: pipeline.Event{
			Kind: pipeline.EventPullRequest, Ref: pipeline.PullRef(7), Head: "1", Proposal: "pull/7", Target: "main",
		}}
		runs, verdicts, _ := plan.Decide(in)
		if c.why != "" {
			if len(runs) != 0 || verdicts[0].Outcome != pipeline.VerdictRejected || !strings.Contains(verdicts[0].Sentence, c.why) {
				t.Errorf("%s: %d runs, %+v", name, len(runs), verdicts)
			}
			continue
		}
		if len(runs) != 1 || runs[0].Composition.Tasks[0].Requirement.Pool != c.pool {
			t.Errorf("%s: %+v %+v", name, runs, verdicts)
			continue
		}
		// What is kept under a digest is one thing.
		moved := c.head[0].Tasks[0].Requirement.Pool != c.pool
		if same := runs[0].Composition.Digest == c.head[0].Digest; same == moved {
			t.Errorf("%s: the digest is the same: %v, and the composition is another: %v", name, same, moved)
		}
	}
}
