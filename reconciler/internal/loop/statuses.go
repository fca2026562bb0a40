package loop

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// commitFacts are kept while a commit has unfinished runs, for its roll-up status.
type commitFacts struct {
	record   pipeline.CommitRecord
	verdicts []pipeline.Verdict
	runs     map[pipeline.RunID]*pipeline.Run
}

func (l *Runs) loadCommit(ctx context.Context, id pipeline.CommitID) error {
	if l.commits[id] != nil {
		return nil
	}
	f := &commitFacts{runs: map[pipeline.RunID]*pipeline.Run{}}
	rec, err := l.cfg.DB.Commit(ctx, id)
	if err == nil {
		f.record = rec
	} else if !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("read commit %s: %w", id, err)
	}
	if f.verdicts, err = l.cfg.DB.Verdicts(ctx, id); err != nil {
		return fmt.Errorf("read verdicts of %s: %w", id, err)
	}
	runs, err := l.cfg.DB.Runs(ctx, store.Filter{Commit: id, Limit: 1 << 20})
	if err != nil {
		return fmt.Errorf("read runs of %s: %w", id, err)
	}
	for _, r := range runs {
		f.runs[r.ID] = r
	}
	l.commits[id] = f
	return nil
}

// statuses returns what the forge should show now of the runs that the pass
// changed, and of their commit as a whole.
func (l *Runs) statuses(id pipeline.CommitID, p *pass) []pipeline.Status {
	f := l.commits[id]
	if f == nil {
		return nil
	}
	changed := map[pipeline.RunID]*pipeline.Run{}
	for _, s := range p.steps {
		if s.Run.Commit == id && (s.before.State != s.Run.State || s.Run.State.Terminal()) {
			changed[s.Run.ID] = s.Run
		}
	}
	var out []pipeline.Status
	for _, rid := range slices.Sorted(maps.Keys(changed)) {
		if f.newest(changed[rid]) {
			out = append(out, plan.OfRun(changed[rid], l.cfg.URL))
		}
	}
	runs := slices.Collect(maps.Values(f.runs))
	out = append(out, plan.RollUp(plan.Facts{
		Commit: id, Diagnostics: f.record.Diagnostics, Verdicts: f.verdicts, Runs: runs, URL: l.cfg.URL,
	}))
	if !slices.ContainsFunc(runs, func(r *pipeline.Run) bool { return !r.State.Terminal() }) {
		delete(l.commits, id)
	}
	return out
}

// newest reports whether r is the commit's latest run of its composition: only
// that one speaks for it.
func (f *commitFacts) newest(r *pipeline.Run) bool {
	for _, o := range f.runs {
		if o.Composition == r.Composition && o.ID > r.ID {
			return false
		}
	}
	return true
}
