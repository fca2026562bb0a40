package web

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// blocked is shown for a ready task that no agent can ever take as things are.
// It is never stored.
const blocked pipeline.State = "blocked"

// teller puts states into words. The zero teller knows nothing of the moment and
// calls agents by their ids.
type teller struct {
	queue  map[taskKey]Waiting
	moment Moment
}

type taskKey struct {
	run  pipeline.RunID
	task pipeline.TaskName
}

func tellerOf(m Moment) teller {
	t := teller{queue: make(map[taskKey]Waiting, len(m.Queue)), moment: m}
	for _, w := range m.Queue {
		t.queue[taskKey{w.Run, w.Task}] = w
	}
	return t
}

// tellerFor asks for the moment only when one of the runs is under way, or when
// their tasks are told of.
func (s *server) tellerFor(r *http.Request, runs []pipeline.Run, tasks bool) (teller, error) {
	if !tasks && !slices.ContainsFunc(runs, func(run pipeline.Run) bool { return !run.State.Terminal() }) {
		return teller{}, nil
	}
	m, err := s.src.Moment(r.Context(), "")
	return tellerOf(m), err
}

func (say teller) agent(id pipeline.AgentID) string {
	if name := say.moment.Names[id]; name != "" {
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
	if t.State == pipeline.Running {
		return t.State, say.running(t)
	}
	if t.Reason != "" {
		return t.State, t.Reason
	}
	return t.State, say.byState(run, t)
}

// note returns what a running task last said of itself, nil when it said nothing.
func (say teller) note(t *pipeline.RunTask) *pipeline.Note {
	if n, ok := say.moment.Notes[t.Attempt]; ok && t.State == pipeline.Running && !n.Empty() {
		return &n
	}
	return nil
}

func (say teller) running(t *pipeline.RunTask) string {
	if t.Spec.BuiltIn() {
		return t.Reason
	}
	s := "runs on agent " + say.agent(t.Agent)
	if since, silent := say.moment.Silent[t.Agent]; silent {
		limit := time.Duration(t.Spec.LostAfter)
		if limit == 0 {
			limit = pipeline.DefaultLostAfter
		}
		then := "is then started on another agent"
		if t.Spec.Effect == pipeline.Once {
			then = "is then in doubt, because it may be started only once"
		}
		return fmt.Sprintf("%s, which is silent since %s; it goes on there if the agent does. It counts as lost at %s and %s",
			s, clock(since), clock(since.Add(limit)), then)
	}
	if n := say.note(t); n != nil && n.String() != "" {
		s += ": " + n.String()
	}
	return s
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05Z") }

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
	case pipeline.InDoubt:
		return fmt.Sprintf("agent %s was lost while it ran, and it may be started only once; its late report settles it, or a person: reconciler request resolve %s#%d/%s success, failure or rerun",
			say.agent(t.Agent), run.Composition, run.Number, t.Name)
	case pipeline.Failure:
		if t.Exit != nil {
			return fmt.Sprintf("exit %d", *t.Exit)
		}
	}
	return ""
}

// mostSaid is how many tasks' sentences make up that of a run.
const mostSaid = 3

// shownRun returns the state of a whole run that people see, and its sentence. A
// run is blocked when nothing of it can go on: no task runs, and no agent can ever
// take those that are ready.
func (say teller) shownRun(run *pipeline.Run) (pipeline.State, string) {
	if run.State.Terminal() || run.Cancel || len(run.Tasks) == 0 {
		return run.State, why(run)
	}
	var failed, quiet, said []string
	done, waits, going, stuck := 0, "", false, false
	for i := range run.Tasks {
		t := &run.Tasks[i]
		state, sentence := say.shown(run, t)
		_, silent := say.moment.Silent[t.Agent]
		going = going || state.Active() || state == pipeline.Ready
		switch {
		case state.Terminal():
			done++
			if bad(state) && !t.Tolerated() {
				failed = append(failed, string(t.Name))
			}
		case state == blocked:
			stuck = true
			said = append(said, string(t.Name)+" is blocked: "+sentence)
		case state == pipeline.InDoubt:
			said = append(said, string(t.Name)+" is in doubt")
		case state == pipeline.Running && (silent || say.note(t) != nil):
			said = append(said, string(t.Name)+" "+sentence)
		case state.Active():
			quiet = append(quiet, string(t.Name))
		case state == pipeline.Ready && waits == "":
			waits = string(t.Name) + " " + sentence
		}
	}
	parts := []string{fmt.Sprintf("%d of %s done", done, counted(len(run.Tasks), "task"))}
	if len(failed) > 0 {
		parts = append(parts, verb(failed, "failed", "failed"))
	}
	if len(quiet) > 0 {
		parts = append(parts, verb(quiet, "is running", "are running"))
	}
	if len(said)+len(quiet) == 0 && waits != "" {
		said = []string{waits}
	}
	parts = append(parts, said[:min(mostSaid, len(said))]...)
	state := run.State
	if stuck && !going {
		state = blocked
	}
	return state, strings.Join(parts, "; ")
}

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return itoa(n) + " " + noun + "s"
}

// why returns the sentence of a run that has ended, from the record alone.
func why(run *pipeline.Run) string {
	if run.Reason != "" || !run.State.Terminal() {
		return run.Reason
	}
	by := map[pipeline.State][]string{}
	for i := range run.Tasks {
		t := &run.Tasks[i]
		by[t.State] = append(by[t.State], string(t.Name))
	}
	return outcome(run, by)
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
