package engine

import (
	"slices"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Reusable returns the tasks of old whose results a run that resumes it may take over:
// a run of the same composition text, commit, event and params. A result is taken over
// only where the task would certainly get the same inputs again:
//
//   - it succeeded, and so did all that it needs, all taken over themselves;
//   - it is no gate: an approval is of the run that people looked at;
//   - no task that is to run reads a path of it: files stay on their agent, and the
//     workspace may hold another run's by now;
//   - no clean-up of the old run came after it, which may have undone what it did.
func Reusable(old *pipeline.Run) map[pipeline.TaskName]bool {
	keep := make(map[pipeline.TaskName]bool, len(old.Tasks))
	for i := range old.Tasks {
		t := &old.Tasks[i]
		keep[t.Name] = t.State == pipeline.Success && t.Spec.Gate == nil
	}
	for i := range old.Tasks {
		if t := &old.Tasks[i]; t.Ran() && (t.Spec.When == pipeline.Always || t.Spec.When == pipeline.OnFailure) {
			dropNeeds(old, t, keep, map[pipeline.TaskName]bool{})
		}
	}
	for again := true; again; {
		again = false
		for i := range old.Tasks {
			t := &old.Tasks[i]
			if keep[t.Name] && slices.ContainsFunc(t.Spec.Needs, func(n pipeline.TaskName) bool { return !keep[n] }) {
				keep[t.Name], again = false, true
			}
			if keep[t.Name] {
				continue
			}
			for _, from := range t.Spec.Pins {
				again = again || keep[from]
				keep[from] = false
			}
		}
	}
	return keep
}

// dropNeeds takes out all that t needs, whatever lies between.
func dropNeeds(r *pipeline.Run, t *pipeline.RunTask, keep, seen map[pipeline.TaskName]bool) {
	for _, name := range t.Spec.Needs {
		if n := r.Task(name); n != nil && !seen[name] {
			seen[name], keep[name] = true, false
			dropNeeds(r, n, keep, seen)
		}
	}
}
