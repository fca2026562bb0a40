package loop

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

const (
	// lookAgain bounds the pause between two looks at the clock: it may be set.
	lookAgain = time.Minute
	// followBatch bounds the changes that are read at once.
	followBatch = 1000
	// followSaved is how many changes may be looked at again after a restart. To note
	// each would be a write for every write.
	followSaved = 500
	// mostEvaluated bounds the configurations kept in memory for runs that end.
	mostEvaluated = 16
)

// Run fires what no ref does: the triggers that follow runs which have ended, and
// those of the clock. It blocks until ctx ends, and returns nil then.
func (c *Commits) Run(ctx context.Context) error {
	changed, stop := c.cfg.DB.Watch()
	defer stop()
	for {
		next := lookAgain
		if err := c.followRuns(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Log.Error("ended runs not followed", "err", err)
			next = retryTriggers
		}
		at, err := c.fireSchedules(ctx, time.Now())
		if err != nil && ctx.Err() == nil {
			c.cfg.Log.Error("schedules not fired", "err", err)
			next = retryTriggers
		}
		if !at.IsZero() {
			next = max(0, min(next, time.Until(at)))
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
			timer.Stop()
		case <-c.woken:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// retryTriggers is the pause after what could not be done.
const retryTriggers = 5 * time.Second

// followRuns looks at the runs that have ended since it last did. What it has done
// before is not done again: the same run gives the same event.
func (c *Commits) followRuns(ctx context.Context) error {
	live := c.Live()
	if live == nil {
		return nil
	}
	if !c.following {
		if err := c.beginFollowing(ctx); err != nil {
			return err
		}
	}
	for {
		runs, seen, err := c.cfg.DB.Ended(ctx, c.followed, followBatch)
		if err != nil {
			return err
		}
		fired := false
		for _, r := range runs {
			n, err := c.after(ctx, live, r)
			if err != nil {
				return fmt.Errorf("after %s#%d: %w", r.Composition, r.Number, err)
			}
			fired = fired || n > 0
		}
		done := seen == c.followed
		c.followed = seen
		c.seenTo.Store(int64(seen))
		if fired || seen-c.savedTo > followSaved {
			if err := c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.Follow(c.cfg.Name, seen) }); err != nil {
				return err
			}
			c.savedTo = seen
		}
		if done {
			return nil
		}
	}
}

// Followed returns the change up to which it is done what follows from runs that have
// ended: nothing looks at them again. It does not wait, and is 0 before the first look.
func (c *Commits) Followed() pipeline.Seq { return pipeline.Seq(c.seenTo.Load()) }

// beginFollowing finds where the last program stopped. The first time it begins here:
// runs of the past start nothing.
func (c *Commits) beginFollowing(ctx context.Context) error {
	seq, err := c.cfg.DB.Followed(ctx, c.cfg.Name)
	if fault.Is(err, fault.NotFound) {
		if seq, err = c.cfg.DB.LastSeq(ctx); err == nil {
			err = c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.Follow(c.cfg.Name, seq) })
		}
	}
	if err != nil {
		return err
	}
	c.followed, c.savedTo, c.following = seq, seq, true
	return nil
}

// after fires the triggers of the run's own commit that wait for it, with the policy
// in force. It returns how many runs they started.
func (c *Commits) after(ctx context.Context, live *pipeline.Config, ended *pipeline.Run) (int, error) {
	cfg, err := c.evaluated(ctx, ended.Commit)
	if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
		c.cfg.Log.Warn("commit of an ended run not read", "run_id", ended.ID, "commit", ended.Commit, "err", err)
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if !slices.ContainsFunc(cfg.Compositions, func(o pipeline.Composition) bool {
		return slices.ContainsFunc(o.Triggers, func(t pipeline.Trigger) bool {
			return t.After != nil && t.After.Composition == ended.Composition
		})
	}) {
		return 0, nil
	}
	cfg.Policy, cfg.Pools, cfg.Secrets = live.Policy, live.Pools, live.Secrets
	whole, err := c.cfg.DB.Run(ctx, ended.ID) // its tasks have the outputs
	if err != nil {
		return 0, err
	}
	e := pipeline.Event{
		Kind: pipeline.EventAfter, Ref: ended.Ref, Head: ended.Commit,
		Author: ended.Event.Author, Subject: ended.Event.Subject, Proposal: ended.Event.Proposal, Target: ended.Event.Target, Pull: ended.Event.Pull,
		Cause: &pipeline.Cause{
			Run: ended.ID, Composition: ended.Composition, Number: ended.Number, State: ended.State, Reason: ended.Reason,
			Outputs: engine.Reported(whole),
		},
	}
	if of := &ended.Event; of.Repo != "" {
		e.Repo, e.Config, e.Ref, e.Head = of.Repo, of.Config, of.Ref, of.Head
	}
	in := plan.Input{Default: c.cfg.Default, Base: live, Head: &cfg, Event: e, Now: time.Now()}
	runs, verdicts, err := c.decide(ctx, in)
	if err != nil || len(verdicts) == 0 {
		return 0, err
	}
	if ended.Depth >= engine.MaxDepth {
		runs = nil
		for i := range verdicts {
			verdicts[i].Outcome = pipeline.VerdictRejected
			verdicts[i].Sentence = fmt.Sprintf("%d runs lead to this one already, so they may never end", engine.MaxDepth)
		}
	}
	rec, err := c.recordOf(ctx, &cfg, e)
	if err != nil {
		return 0, err
	}
	made, err := c.enact(ctx, deed{
		cfg: &cfg, rec: rec, runs: runs, verdicts: verdicts, depth: ended.Depth + 1, partly: true,
		also: func(*store.Tx) error { return nil },
	})
	if err != nil {
		return 0, err
	}
	c.announce(&cfg, ended.Head(), made)
	for _, r := range made {
		c.cfg.Log.Info("run follows another", "run_id", r.ID, "composition", r.Composition, "number", r.Number, "cause", ended.ID)
	}
	return len(made), nil
}

// recordOf is what the record has of the commit of an event, as seen on its ref.
func (c *Commits) recordOf(ctx context.Context, cfg *pipeline.Config, e pipeline.Event) (pipeline.CommitRecord, error) {
	if e.Repo != "" {
		return pipeline.CommitRecord{Repo: e.Repo, Commit: e.Head, Ref: e.Ref}, nil
	}
	rec, err := c.cfg.DB.Commit(ctx, cfg.Commit)
	if fault.Is(err, fault.NotFound) {
		rec, err = pipeline.CommitRecord{Commit: cfg.Commit, Diagnostics: cfg.Diagnostics}, nil
	}
	rec.Ref = e.Ref
	return rec, err
}

// evaluated is evaluate for a commit of which several runs may end one after the
// other. The caller may change the fields of the result, and nothing that they hold.
func (c *Commits) evaluated(ctx context.Context, id pipeline.CommitID) (pipeline.Config, error) {
	if cfg, ok := c.configs[id]; ok {
		return cfg, nil
	}
	cfg, err := c.evaluate(ctx, id)
	if err != nil {
		return cfg, err
	}
	if c.configs == nil || len(c.configs) >= mostEvaluated {
		c.configs = map[pipeline.CommitID]pipeline.Config{}
	}
	c.configs[id] = cfg
	return cfg, nil
}

// fireSchedules makes the runs of the cron triggers in force that are due at now, and
// returns when the next one is. Of the firings that nobody was there for, the latest
// is made up for: a trigger is due once, however long it was due. When the clock was set
// back it goes on from there, and what has fired by the time that it comes to again does
// not fire twice.
func (c *Commits) fireSchedules(ctx context.Context, now time.Time) (next time.Time, err error) {
	live := c.Live()
	if live == nil {
		return time.Time{}, nil
	}
	kept, err := c.firings(ctx, live, now)
	if err != nil {
		return time.Time{}, err
	}
	for i := range kept {
		f := &kept[i]
		s, err := pipeline.ParseSchedule(f.Schedule, f.Zone)
		if err != nil {
			continue // its composition has the diagnostic
		}
		if f.SeenTo.After(now) {
			f.SeenTo = now.UTC()
			if err := c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.SaveFiring(c.cfg.Name, *f) }); err != nil {
				return time.Time{}, err
			}
			c.cfg.Log.Warn("the clock was set back", "composition", f.Composition, "schedule", f.Schedule, "now", now)
		}
		if due := latestFiring(s, f.SeenTo, now); !due.IsZero() {
			if err := c.fire(ctx, live, *f, due); err != nil {
				return time.Time{}, fmt.Errorf("cron %q of %s: %w", f.Schedule, f.Composition, err)
			}
		}
		if at := s.Next(now); next.IsZero() || !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	return next, nil
}

// firings returns the cron triggers in force. One that is new begins now; one that is
// gone is forgotten, so that it does not make up for the time without it.
func (c *Commits) firings(ctx context.Context, live *pipeline.Config, now time.Time) ([]store.Firing, error) {
	kept, err := c.cfg.DB.Firings(ctx, c.cfg.Name)
	if err != nil {
		return nil, err
	}
	same := func(a, b store.Firing) bool {
		return a.Composition == b.Composition && a.Schedule == b.Schedule && a.Zone == b.Zone
	}
	var wanted, fresh []store.Firing
	for i := range live.Compositions {
		for _, t := range live.Compositions[i].Triggers {
			if t.Cron == nil {
				continue
			}
			f := store.Firing{Composition: live.Compositions[i].Name, Schedule: t.Cron.Schedule, Zone: t.Cron.Zone, SeenTo: now.UTC()}
			if slices.ContainsFunc(wanted, func(o store.Firing) bool { return same(o, f) }) {
				continue
			}
			if j := slices.IndexFunc(kept, func(o store.Firing) bool { return same(o, f) }); j >= 0 {
				f = kept[j]
			} else {
				fresh = append(fresh, f)
			}
			wanted = append(wanted, f)
		}
	}
	gone := slices.DeleteFunc(kept, func(o store.Firing) bool {
		return slices.ContainsFunc(wanted, func(f store.Firing) bool { return same(o, f) })
	})
	if len(fresh)+len(gone) == 0 {
		return wanted, nil
	}
	return wanted, c.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		for _, f := range gone {
			if err := tx.DropFiring(c.cfg.Name, f); err != nil {
				return err
			}
		}
		for _, f := range fresh {
			if err := tx.SaveFiring(c.cfg.Name, f); err != nil {
				return err
			}
		}
		return nil
	})
}

// latestFiring returns the last firing after seen and not after now, the zero time
// when there is none. It looks back in growing steps: a schedule of every minute may
// have been missed for a year.
func latestFiring(s pipeline.Schedule, seen, now time.Time) time.Time {
	for back := time.Hour; ; back *= 24 {
		from := now.Add(-back)
		last := !from.After(seen)
		if last {
			from = seen
		}
		var latest time.Time
		for at := s.Next(from); !at.IsZero() && !at.After(now); at = s.Next(at) {
			latest = at
		}
		if !latest.IsZero() || last {
			return latest
		}
	}
}

// fire makes the run of one cron trigger, on what is in force, and notes that it was
// seen to: both or neither. The due time is in the run's key.
func (c *Commits) fire(ctx context.Context, live *pipeline.Config, f store.Firing, due time.Time) error {
	author, subject, err := c.cfg.Repository.Describe(ctx, live.Commit)
	if err != nil {
		return err
	}
	e := pipeline.Event{Kind: pipeline.EventCron, Ref: c.cfg.Default, Head: live.Commit, Author: author, Subject: subject, Time: due.UTC()}
	runs, verdicts, err := c.decide(ctx, plan.Input{Default: c.cfg.Default, Base: live, Head: live, Event: e, Now: due})
	if err != nil {
		return err
	}
	// Others may be due at the same minute; each has its own turn.
	runs = slices.DeleteFunc(runs, func(r plan.Run) bool { return r.Name != f.Composition })
	verdicts = slices.DeleteFunc(verdicts, func(v pipeline.Verdict) bool { return v.Composition != f.Composition })
	for _, r := range runs {
		switch _, err := c.cfg.DB.RunByKey(ctx, r.Key); {
		case err == nil: // on what was in force then
			f.SeenTo = due.UTC()
			return c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.SaveFiring(c.cfg.Name, f) })
		case !fault.Is(err, fault.NotFound):
			return err
		}
	}
	rec, err := c.recordOf(ctx, live, e)
	if err != nil {
		return err
	}
	f.SeenTo = due.UTC()
	made, err := c.enact(ctx, deed{
		cfg: live, rec: rec, runs: runs, verdicts: verdicts, partly: true,
		also: func(tx *store.Tx) error { return tx.SaveFiring(c.cfg.Name, f) },
	})
	if err != nil {
		return err
	}
	c.announce(live, pipeline.Head{Commit: live.Commit}, made)
	c.cfg.Log.Info("schedule fired", "composition", f.Composition, "schedule", f.Schedule, "zone", f.Zone, "due", due, "runs", len(made))
	return nil
}
