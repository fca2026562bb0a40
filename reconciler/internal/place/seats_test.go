package place_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/place"
)

// shop is runs that go on at agents, from board to board, until all have ended.
type shop struct {
	t      *rapid.T
	agents []place.Agent
	runs   []*pipeline.Run
}

// TestNoAgentWorksForTwoRunsAndEveryRunEnds plays whole lives: tasks are given out,
// end in any order, are declined now and then, and pin what follows them.
func TestNoAgentWorksForTwoRunsAndEveryRunEnds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := drawShop(t)
		for range 200 {
			refused := map[string]bool{}
			if rapid.IntRange(0, 3).Draw(t, "some decline") == 0 {
				for _, r := range s.runs {
					for _, k := range r.Tasks {
						if rapid.Bool().Draw(t, "declined") {
							refused[string(r.ID)+string(k.Name)] = true
						}
					}
				}
			}
			given := s.assign(refused)
			s.check()
			if len(s.runs) == 0 {
				return
			}
			if !s.end() && given == 0 && len(refused) == 0 {
				t.Fatalf("nothing moves: %+v", s.runs[0])
			}
		}
		t.Fatal("the runs do not end")
	})
}

func drawShop(t *rapid.T) *shop {
	s := &shop{t: t}
	for i := range rapid.IntRange(1, 4).Draw(t, "agents") {
		s.agents = append(s.agents, agent(fmt.Sprintf("x%d", i), "Linux"))
	}
	s.agents = append(s.agents, agent("w", "Windows"))
	for i := range rapid.IntRange(1, 5).Draw(t, "runs") {
		r := run(fmt.Sprintf("r%d", i))
		r.Composition = pipeline.CompositionName(rapid.SampledFrom([]string{"c", "d"}).Draw(t, "composition"))
		for j := range rapid.IntRange(1, 5).Draw(t, "tasks") {
			k := ready(fmt.Sprintf("t%d", j))
			k.Index = j
			if rapid.Bool().Draw(t, "linux") {
				k.Spec.Requirement = linux()
			}
			for _, n := range r.Tasks {
				if rapid.IntRange(0, 2).Draw(t, "needs") > 0 {
					continue
				}
				k.State = pipeline.Pending
				k.Spec.Needs = append(k.Spec.Needs, n.Name)
				// A checker refuses pins that no agent meets.
				if len(k.Spec.Pins) == 0 && rapid.Bool().Draw(t, "pinned") {
					k.Spec.Pins, k.Spec.Requirement = []pipeline.TaskName{n.Name}, n.Spec.Requirement
				}
			}
			r.Tasks = append(r.Tasks, k)
		}
		s.runs = append(s.runs, r)
	}
	return s
}

// assign gives out what it can, and returns how much that was.
func (s *shop) assign(refused map[string]bool) int {
	b := place.New(s.runs, s.agents, now, func(r pipeline.RunID, t pipeline.TaskName, _ pipeline.AgentID) string {
		if refused[string(r)+string(t)] {
			return "no room"
		}
		return ""
	})
	given := b.Assign()
	for _, g := range given {
		for i, r := range s.runs {
			if r.ID != g.Run {
				continue
			}
			r = r.Clone() // boards share runs, which never change
			k := r.Task(g.Task)
			if k.State != pipeline.Ready {
				s.t.Fatalf("%s/%s is %s and was given out", g.Run, g.Task, k.State)
			}
			k.State, k.Agent, k.Slot, k.Epoch = pipeline.Running, g.Agent, g.Slot, k.Epoch+1
			s.runs[i] = r
		}
	}
	return len(given)
}

// check holds what must be true at every moment.
func (s *shop) check() {
	works := map[pipeline.AgentID]pipeline.RunID{}
	slots := map[string]pipeline.RunID{}
	for _, r := range s.runs {
		for _, k := range r.Tasks {
			if k.State == pipeline.Running {
				if other, taken := works[k.Agent]; taken && other != r.ID {
					s.t.Fatalf("agent %s works for %s and %s", k.Agent, other, r.ID)
				}
				works[k.Agent] = r.ID
			}
			if k.Agent == "" {
				continue
			}
			slot := fmt.Sprint(k.Agent, r.Composition, k.Slot)
			if other, taken := slots[slot]; taken && other != r.ID {
				s.t.Fatalf("%s and %s have one workspace: %s", other, r.ID, slot)
			}
			slots[slot] = r.ID
			for _, p := range k.Spec.Pins {
				if from := r.Task(p); from.Agent != k.Agent {
					s.t.Fatalf("%s of %s reads files of %s, on another agent", k.Name, r.ID, p)
				}
			}
		}
	}
}

// end ends one of the tasks that run and reports whether there was one.
func (s *shop) end() bool {
	type at struct{ run, task int }
	var running []at
	for i, r := range s.runs {
		for j, k := range r.Tasks {
			if k.State == pipeline.Running {
				running = append(running, at{i, j})
			}
		}
	}
	if len(running) == 0 {
		return false
	}
	a := rapid.SampledFrom(running).Draw(s.t, "ends")
	r := s.runs[a.run].Clone()
	r.Tasks[a.task].State = pipeline.Success
	left := 0
	for i := range r.Tasks {
		k := &r.Tasks[i]
		waits := false
		for _, n := range k.Spec.Needs {
			waits = waits || r.Task(n).State != pipeline.Success
		}
		if k.State == pipeline.Pending && !waits {
			k.State = pipeline.Ready
		}
		if k.State != pipeline.Success {
			left++
		}
	}
	s.runs[a.run] = r
	if left == 0 {
		s.runs = append(s.runs[:a.run:a.run], s.runs[a.run+1:]...)
	}
	return true
}
