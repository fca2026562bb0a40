package web

import (
	"fmt"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// blocked is shown for a ready task that no agent can ever take as things are.
// It is never stored.
const blocked pipeline.State = "blocked"

// teller puts states into words. The zero teller knows of no queue and calls
// agents by their ids.
type teller struct {
	queue map[taskKey]Waiting
	names map[pipeline.AgentID]string
}

type taskKey struct {
	run  pipeline.RunID
	task pipeline.TaskName
}

func tellerOf(queue []Waiting) teller {
	t := teller{queue: make(map[taskKey]Waiting, len(queue)), names: map[pipeline.AgentID]string{}}
	for _, w := range queue {
		t.queue[taskKey{w.Run, w.Task}] = w
	}
	return t
}

func (say teller) agent(id pipeline.AgentID) string {
	if name := say.names[id]; name != "" {
		return name
	}
	return string(id)
}

func refOf(run *pipeline.Run, t *pipeline.RunTask) TaskRef {
	return TaskRef{Run: run.ID, Composition: run.Composition, Number: run.Number, Task: t.Name}
}

// shown returns the state that people see, and a sentence: why the task is in
// it, and what ends it. Only an outcome may have none.
func (say teller) shown(run *pipeline.Run, t *pipeline.RunTask) (pipeline.State, string) {
	if t.State == pipeline.Ready {
		if w, ok := say.queue[taskKey{run.ID, t.Name}]; ok && w.Sentence != "" {
			if w.Blocked {
				return blocked, w.Sentence
			}
			return t.State, w.Sentence
		}
	}
	if t.Reason != "" {
		return t.State, t.Reason
	}
	return t.State, say.byState(run, t)
}

func (say teller) byState(run *pipeline.Run, t *pipeline.RunTask) string {
	switch t.State {
	case pipeline.Pending:
		var open []string
		for _, name := range t.Spec.Needs {
			if n := run.Task(name); n != nil && !n.State.Terminal() {
				open = append(open, string(name))
			}
		}
		if len(open) == 0 {
			return "waits to be queued"
		}
		return "waits for " + list(open, 4)
	case pipeline.Ready:
		return "is queued for an agent"
	case pipeline.Offered:
		return fmt.Sprintf("was offered to agent %s, which has not answered yet", say.agent(t.Agent))
	case pipeline.Running:
		return fmt.Sprintf("runs on agent %s", say.agent(t.Agent))
	case pipeline.InDoubt:
		return fmt.Sprintf("agent %s was lost while it ran, and it may be started only once; a late result or a person decides", say.agent(t.Agent))
	case pipeline.Failure:
		if t.Exit != nil {
			return fmt.Sprintf("exit %d", *t.Exit)
		}
	}
	return ""
}

// why returns the sentence of a whole run.
func (say teller) why(run *pipeline.Run) string {
	if run.Reason != "" {
		return run.Reason
	}
	by := map[pipeline.State][]string{}
	done := 0
	for i := range run.Tasks {
		t := &run.Tasks[i]
		by[t.State] = append(by[t.State], string(t.Name))
		if t.State.Terminal() {
			done++
		}
	}
	switch {
	case run.State.Terminal():
		return outcome(run, by)
	case len(by[pipeline.Running]) > 0:
		return fmt.Sprintf("%s · %d of %d tasks done", verb(by[pipeline.Running], "is running", "are running"), done, len(run.Tasks))
	case len(by[pipeline.InDoubt]) > 0:
		return verb(by[pipeline.InDoubt], "is", "are") + " in doubt: a late result or a person decides"
	case len(by[pipeline.Offered]) > 0:
		return verb(by[pipeline.Offered], "was", "were") + " offered to an agent, which has not answered yet"
	case len(by[pipeline.Ready]) > 0:
		t := run.Task(pipeline.TaskName(by[pipeline.Ready][0]))
		_, sentence := say.shown(run, t)
		return string(t.Name) + ": " + sentence
	}
	return "nothing has been queued yet"
}

func outcome(run *pipeline.Run, by map[pipeline.State][]string) string {
	for _, s := range []pipeline.State{pipeline.Error, pipeline.Timeout, pipeline.Failure} {
		if names := by[s]; len(names) > 0 && s == run.State {
			if t := run.Task(pipeline.TaskName(names[0])); t.Reason != "" && len(names) == 1 {
				return names[0] + ": " + t.Reason
			}
			return list(names, 4) + " ended in " + string(s)
		}
	}
	if run.State == pipeline.Success {
		return fmt.Sprintf("all %d tasks have ended well", len(run.Tasks))
	}
	return ""
}

func verb(names []string, one, many string) string {
	if len(names) == 1 {
		return names[0] + " " + one
	}
	return list(names, 4) + " " + many
}

// list joins names for a sentence, the first few of them.
func list(names []string, most int) string {
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}
