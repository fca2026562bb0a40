package engine

import (
	"fmt"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Sentence says in a few words how the run stands and what it waits for.
func Sentence(r *pipeline.Run) string {
	count := map[pipeline.State]int{}
	var bad, running, held []string
	for i := range r.Tasks {
		t := &r.Tasks[i]
		count[t.State]++
		switch t.State {
		case pipeline.Running, pipeline.Offered:
			running = append(running, string(t.Name))
		case pipeline.Held:
			held = append(held, fmt.Sprintf("%s %s", t.Name, t.Reason))
		case pipeline.Failure, pipeline.Error, pipeline.Timeout, pipeline.InDoubt:
			if !t.Tolerated() {
				bad = append(bad, fmt.Sprintf("%s: %s", t.Name, orWord(t.Reason, t.State)))
			}
		case pipeline.Cancelled:
			if t.Cancel != "" {
				bad = append(bad, fmt.Sprintf("%s: %s", t.Name, t.Cancel))
			}
		}
	}
	done := 0
	for s, n := range count {
		if s.Terminal() {
			done += n
		}
	}
	progress := fmt.Sprintf("%d of %s", done, plural(len(r.Tasks), "task"))
	switch {
	case len(bad) > 0:
		return strings.Join(bad, "; ")
	case r.State == pipeline.Success:
		return progress
	case r.State.Terminal():
		return string(r.State)
	case len(running) > 0:
		return progress + ", running " + strings.Join(running, ", ")
	case count[pipeline.Ready] > 0:
		return progress + ", waits for an agent"
	case len(held) > 0:
		return progress + ", " + strings.Join(held, "; ")
	}
	return progress
}

func orWord(reason string, s pipeline.State) string {
	if reason == "" {
		return string(s)
	}
	return reason
}

// line says why the run waits in line.
func (m *machine) line(before *pipeline.Run) string {
	switch {
	case m.behind != "":
		return m.behind
	case m.stuck != nil:
		return m.stuck.Why
	case m.run.Draft:
		return "waits for its params and its place in line, which are being worked out"
	}
	return before.Reason
}

func (m *machine) waitsFor(before *pipeline.Run, t *pipeline.RunTask) string {
	if waitsInLine(m.run) {
		return m.line(before)
	}
	var names []string
	for _, n := range t.Spec.Needs {
		if nt := m.run.Task(n); nt != nil && !nt.State.Terminal() {
			names = append(names, string(n))
		}
	}
	if m.stuck != nil && m.stuck.Task == t.Name {
		return m.stuck.Why
	}
	if len(names) == 0 {
		return "waits for its condition, which is being computed"
	}
	return "waits for " + strings.Join(names, ", ")
}

// nameOf names a run as people do.
func nameOf(r *pipeline.Run) string { return fmt.Sprintf("%s#%d", r.Composition, r.Number) }
