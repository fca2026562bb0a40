package plan

import (
	"fmt"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

const contextGate = "maestro/gate/"

// OfGate is the status of a gate of a run: pending while it holds the run, and then
// whether it was opened.
func OfGate(r *pipeline.Run, t *pipeline.RunTask, url string) pipeline.Status {
	s := pipeline.Status{
		Repo: r.Head().Repo, Commit: r.Head().Commit, Context: contextGate + string(r.Composition) + "/" + string(t.Name), State: forgeState(t.State),
		Description: cut(fmt.Sprintf("#%d %s: %s", r.Number, t.State, t.Reason)),
	}
	if url != "" {
		s.URL = fmt.Sprintf("%s/c/%s/%d", url, r.Composition, r.Number)
	}
	return s
}
