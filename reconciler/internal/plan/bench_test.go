package plan_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// large is a change of n compositions that all start, and n agents.
func large(n int) plan.Input {
	base, head := &pipeline.Config{Commit: "a"}, &pipeline.Config{Commit: "b"}
	for i := range n {
		for _, cfg := range []*pipeline.Config{base, head} {
			c := pipeline.Composition{
				Name: pipeline.CompositionName(fmt.Sprintf("c%04d", i)), Priority: 50,
				Triggers: []pipeline.Trigger{{Push: &pipeline.PushTrigger{Branches: []string{"main", "release/*"}, Paths: []string{"src/**"}}}},
			}
			for j := range 5 {
				t := pipeline.Task{
					Name: pipeline.TaskName(fmt.Sprintf("t%d", j)), Plugin: "shell", Uses: "shell/run",
					Fields: json.RawMessage(fmt.Sprintf(`{"script":"make t%d of %s","shell":"sh","workdir":"src"}`, j, cfg.Commit)),
					Outputs: pipeline.Type{Kind: pipeline.KindStruct, Fields: []pipeline.Field{
						{Name: "workdir", Type: pipeline.Type{Kind: pipeline.KindPath}}, {Name: "version", Type: pipeline.Type{Kind: pipeline.KindString}},
					}},
					Requirement: pipeline.Requirement{Facts: []pipeline.Clause{
						{Path: []string{"kernel"}, Type: pipeline.Type{Kind: pipeline.KindString, Enum: []json.RawMessage{json.RawMessage(`"Linux"`)}}},
						{Path: []string{"memory", "total_mb"}, Type: pipeline.Type{Kind: pipeline.KindInt, Min: fmt.Sprint(1024 * (i%20 + j))}},
					}},
				}
				if j > 0 {
					t.Needs = []pipeline.TaskName{pipeline.TaskName(fmt.Sprintf("t%d", j-1))}
				}
				c.Tasks = append(c.Tasks, t)
			}
			cfg.Compositions = append(cfg.Compositions, c)
		}
	}
	f := &plan.Fleet{At: time.Unix(1, 0)}
	for i := range n {
		f.Agents = append(f.Agents, plan.Agent{ID: pipeline.AgentID(fmt.Sprint(i)), Online: true, Facts: map[string]any{
			"kernel": "Linux", "architecture": "amd64", "hostname": fmt.Sprint(i),
			"memory": map[string]any{"total_mb": json.Number(fmt.Sprint(1000 * (i % 30)))},
		}})
	}
	return plan.Input{
		Default: "refs/heads/main", Base: base, Head: head, Fleet: f, Paths: []string{"src/a/b.go"}, Now: time.Unix(1, 0),
		Event: pipeline.Event{Kind: pipeline.EventPush, Ref: "refs/heads/main", Head: "b", Base: "a"},
	}
}

func BenchmarkPlan(b *testing.B) {
	in := large(1000)
	for b.Loop() {
		if p := plan.Of(in); len(p.Runs) != 1000 || len(p.Changes) != 1000 {
			b.Fatalf("%d runs, %d changes", len(p.Runs), len(p.Changes))
		}
	}
}
