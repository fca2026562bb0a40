package loop

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

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
	// proposals are the changes whose head it is or that it merged; planning as in
	// plan.Facts.
	proposals []pipeline.Proposal
	planning  bool
	unread    []string // as in plan.Facts
}

// mostOfCommit bounds the runs that are read of one commit: more than there are.
const mostOfCommit = 1 << 20

// loadCommit is readCommit, and does not keep a commit of which nothing is unfinished.
func (l *Runs) loadCommit(ctx context.Context, id pipeline.Head) error {
	if err := l.readCommit(ctx, id); err != nil {
		return err
	}
	l.dropCommit(id)
	return nil
}

// readCommit brings what is kept of a commit up to date with the record, and with
// what this pass has changed and not written yet.
func (l *Runs) readCommit(ctx context.Context, id pipeline.Head) error {
	f := &commitFacts{runs: map[pipeline.RunID]*pipeline.Run{}}
	var runs []*pipeline.Run
	var err error
	if f.verdicts, runs, err = historyOfHead(ctx, l.cfg.DB, id); err != nil {
		return err
	}
	if id.Repo == "" {
		rec, err := l.cfg.DB.Commit(ctx, id.Commit)
		if err == nil {
			f.record = rec
		} else if !fault.Is(err, fault.NotFound) {
			return fmt.Errorf("read commit %s: %w", id.Commit, err)
		}
		if f.proposals, f.planning, err = proposalsOf(ctx, l.cfg.DB, id.Commit, l.cfg.Default, l.cfg.Proposals); err != nil {
			return err
		}
		if f.record.Commit == "" && len(f.proposals) > 0 {
			f.record.Diagnostics = f.proposals[0].Diagnostics // it was there before the first look
		}
		if f.unread, err = unread(ctx, l.cfg.DB, l.cfg.Repo, id.Commit); err != nil {
			return err
		}
	}
	before := l.commits[id]
	for _, r := range runs {
		if before != nil && before.runs[r.ID] != nil && before.runs[r.ID].Version > r.Version {
			r = before.runs[r.ID]
		}
		f.runs[r.ID] = r
	}
	l.commits[id] = f
	return nil
}

// historyOfHead reads the verdicts on a commit of one repository, and its runs.
func historyOfHead(ctx context.Context, db *store.DB, id pipeline.Head) (verdicts []pipeline.Verdict, runs []*pipeline.Run, err error) {
	if verdicts, err = db.Verdicts(ctx, id.Commit); err != nil {
		return nil, nil, fmt.Errorf("read verdicts of %s: %w", id.Commit, err)
	}
	if runs, err = db.Runs(ctx, store.Filter{Commit: id.Commit, Limit: mostOfCommit}); err != nil {
		return nil, nil, fmt.Errorf("read runs of %s: %w", id.Commit, err)
	}
	verdicts = slices.DeleteFunc(verdicts, func(v pipeline.Verdict) bool { return v.Repo != id.Repo })
	runs = slices.DeleteFunc(runs, func(r *pipeline.Run) bool { return r.Head() != id })
	return verdicts, runs, nil
}

// dropCommit forgets a commit of which nothing is unfinished.
func (l *Runs) dropCommit(id pipeline.Head) {
	for _, r := range l.commits[id].runs {
		if !r.State.Terminal() {
			return
		}
	}
	delete(l.commits, id)
}

// statuses returns what the forge should show now of the runs that the pass
// changed, and of their commit as a whole.
func (l *Runs) statuses(id pipeline.Head, p *pass) []pipeline.Status {
	f := l.commits[id]
	if f == nil {
		return nil
	}
	changed := map[pipeline.RunID]*pipeline.Run{}
	for _, s := range p.steps {
		if s.Run.Head() == id && (s.before.State != s.Run.State || s.Run.State.Terminal()) {
			changed[s.Run.ID] = s.Run
			if ar := l.active[s.Run.ID]; ar != nil {
				ar.description.said, ar.description.saidAt = s.Run, time.Now()
			}
		}
	}
	for rid, r := range p.said {
		if l.active[rid] != nil && r.Head() == id && changed[rid] == nil {
			changed[rid] = l.told(l.active[rid].run)
		}
	}
	out := f.gates(id, p, l.cfg.URL)
	if len(changed)+len(out) == 0 && !p.restate[id] {
		return nil
	}
	for _, rid := range slices.Sorted(maps.Keys(changed)) {
		if f.newest(changed[rid]) {
			out = append(out, plan.OfRun(changed[rid], l.cfg.URL))
		}
	}
	runs := make([]*pipeline.Run, 0, len(f.runs))
	for _, r := range f.runs {
		runs = append(runs, l.told(r))
	}
	out = append(out, plan.RollUp(plan.Facts{
		Repo: id.Repo, Commit: id.Commit, Diagnostics: f.record.Diagnostics, Verdicts: f.verdicts, Runs: runs, URL: l.cfg.URL,
		Proposals: f.proposals, Planning: f.planning, Unread: f.unread,
	}))
	l.dropCommit(id)
	return out
}

// newest reports whether r is the run of its composition that speaks for the commit.
// Runs that others have called speak through those.
func (f *commitFacts) newest(r *pipeline.Run) bool {
	return !r.Called() && !slices.ContainsFunc(slices.Collect(maps.Values(f.runs)), func(o *pipeline.Run) bool {
		return o.Composition == r.Composition && !o.Called() && plan.Before(o, r)
	})
}

// gates are the statuses of the gates that the pass has closed or opened, each as it
// stands last.
func (f *commitFacts) gates(id pipeline.Head, p *pass, url string) []pipeline.Status {
	byContext := map[string]pipeline.Status{}
	for _, s := range p.steps {
		if s.Run.Head() != id {
			continue
		}
		for i := range s.Run.Tasks {
			t := &s.Run.Tasks[i]
			if gateMoved(&s.before.Tasks[i], t) && f.latest(s.Run) {
				status := plan.OfGate(s.Run, t, url)
				byContext[status.Context] = status
			}
		}
	}
	out := make([]pipeline.Status, 0, len(byContext))
	for _, c := range slices.Sorted(maps.Keys(byContext)) {
		out = append(out, byContext[c])
	}
	return out
}

// gateMoved reports whether a gate holds its run otherwise than before.
func gateMoved(before, after *pipeline.RunTask) bool {
	return after.Spec.Gate != nil && (before.State == pipeline.Held || after.State == pipeline.Held) &&
		(before.State != after.State || before.Reason != after.Reason)
}

func anyGateMoved(before, after *pipeline.Run) bool {
	for i := range after.Tasks {
		if gateMoved(&before.Tasks[i], &after.Tasks[i]) {
			return true
		}
	}
	return false
}

// latest reports whether r, called or not, is the run of its composition that speaks for
// the commit.
func (f *commitFacts) latest(r *pipeline.Run) bool {
	return !slices.ContainsFunc(slices.Collect(maps.Values(f.runs)), func(o *pipeline.Run) bool {
		return o.Composition == r.Composition && plan.Before(o, r)
	})
}

// proposalsOf reads what a commit proposes and merged, and whether it is still to be
// looked at.
func proposalsOf(ctx context.Context, db *store.DB, id pipeline.CommitID, main pipeline.Ref, looked bool) (list []pipeline.Proposal, unplanned bool, err error) {
	if !looked {
		return nil, false, nil
	}
	if list, err = db.ProposalsOf(ctx, id); err != nil {
		return nil, false, err
	}
	unplanned, err = db.Unplanned(ctx, id, main)
	return list, unplanned, err
}

// Restate tells the status of a commit of the ops repository anew, from the record:
// what it proposes is another thing now. That a caller has written the status as well
// is not enough: a run that ended meanwhile may have written it over, by what was
// proposed before. Queues.
func (l *Runs) Restate(id pipeline.CommitID) {
	l.queue(message{restate: pipeline.Head{Commit: id}})
}

func (l *Runs) restated(ctx context.Context, p *pass, id pipeline.Head) {
	if err := l.readCommit(ctx, id); err != nil {
		p.failed = err
		return
	}
	if p.restate == nil {
		p.restate = map[pipeline.Head]bool{}
	}
	p.restate[id] = true
}
