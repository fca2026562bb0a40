package loop

import (
	"context"
	"fmt"
	"slices"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// deed is what an event causes, to be carried out.
type deed struct {
	cfg      *pipeline.Config
	rec      pipeline.CommitRecord // of the commit that the runs are of
	runs     []plan.Run
	verdicts []pipeline.Verdict
	// depth is how many calls lead to the runs.
	depth int
	// quiet leaves the forge alone: the commit is the past.
	quiet bool
	// partly: of several events of this kind at the commit, this is one. That it
	// starts nothing is no news where another has started something.
	partly bool
	// also is written with it.
	also func(*store.Tx) error
}

// decide plans an event, filling in what only an evaluation knows.
func (c *Commits) decide(ctx context.Context, in plan.Input) ([]plan.Run, []pipeline.Verdict, error) {
	const rounds = 3 // the params of a trigger, the group that reads them, and no more
	for range rounds {
		runs, verdicts, blanks := plan.Decide(in)
		if len(blanks) == 0 {
			return runs, verdicts, nil
		}
		for _, b := range blanks {
			f := plan.Filled{Blank: b}
			of := in.Head.Composition(b.Composition)
			run := &pipeline.Run{
				Composition: of.Name, Digest: of.Digest, Commit: in.Head.Commit, Ref: in.Event.Ref, Event: in.Event, Params: b.Params,
			}
			v, err := c.cfg.Filler.Fill(ctx, of, run, b.Blank, nil)
			switch {
			case fault.Is(err, fault.Invalid):
				f.Problem = err.Error()
			case err != nil:
				return nil, nil, err
			default:
				f.Value = v
			}
			in.Filled = append(in.Filled, f)
		}
	}
	return nil, nil, fault.New(fault.Internal, "plan of %s at %s needs ever more values", in.Event.Kind, in.Event.Head)
}

// enact writes the runs, the verdicts and what the forge should show: all of it or
// nothing; announce comes after it. A run that is there already, because this event was seen before, is not
// made again.
func (c *Commits) enact(ctx context.Context, d deed) ([]*pipeline.Run, error) {
	var made []*pipeline.Run
	err := c.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		made = nil
		// The commit may have been seen on another branch. Nothing is written while
		// this is read, because this transaction is under way.
		facts, err := c.known(ctx, d.rec)
		if err != nil {
			return err
		}
		verdicts := slices.Clone(d.verdicts)
		for i := range d.runs {
			of := d.runs[i].Composition
			r, err := makeRun(&d.runs[i], d.depth)
			if err != nil {
				return err
			}
			err = tx.CreateRun(r, of, calledBy(d.cfg, of)...)
			switch {
			case err == nil:
				made, facts.Runs = append(made, r), append(facts.Runs, r)
			case fault.Is(err, fault.Conflict):
				r = withKey(facts.Runs, r.Key)
			default:
				return err
			}
			for j := range verdicts {
				if r != nil && verdicts[j].Composition == r.Composition {
					verdicts[j].Run = r.ID
				}
			}
		}
		if d.partly {
			verdicts = slices.DeleteFunc(verdicts, func(v pipeline.Verdict) bool { return outshone(v, facts.Verdicts) })
		}
		if err := d.also(tx); err != nil {
			return err
		}
		if err := tx.RecordVerdicts(verdicts); err != nil {
			return err
		}
		if d.quiet {
			return nil
		}
		facts.Verdicts = merged(facts.Verdicts, verdicts)
		for _, s := range plan.Statuses(facts) {
			if err := tx.Desire(s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("record commit %s: %w", d.rec.Commit.Short(), err)
	}
	return made, nil
}

// announce tells those who drive runs and statuses of what was written.
func (c *Commits) announce(cfg *pipeline.Config, commit pipeline.Head, made []*pipeline.Run) {
	of := make([]*pipeline.Composition, 0, len(made))
	for _, r := range made {
		of = append(of, cfg.Composition(r.Composition))
	}
	c.cfg.Runs.Add(commit, made, of)
	if c.cfg.StatusesChanged != nil {
		c.cfg.StatusesChanged()
	}
}

// outshone reports whether v says that nothing ran where an event of its kind has
// started something.
func outshone(v pipeline.Verdict, old []pipeline.Verdict) bool {
	return v.Outcome == pipeline.VerdictSkipped && slices.ContainsFunc(old, func(o pipeline.Verdict) bool {
		return sameVerdict(o, v) && o.Outcome == pipeline.VerdictRun
	})
}

// merged is what the record has once the news are written.
func merged(old, news []pipeline.Verdict) []pipeline.Verdict {
	out := slices.DeleteFunc(slices.Clone(old), func(o pipeline.Verdict) bool {
		return slices.ContainsFunc(news, func(v pipeline.Verdict) bool { return sameVerdict(o, v) })
	})
	return append(out, news...)
}

// sameVerdict reports whether two verdicts on one commit answer the same question.
func sameVerdict(a, b pipeline.Verdict) bool {
	return a.Composition == b.Composition && a.Ref == b.Ref && a.Kind == b.Kind
}
