package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// Repository reads commits. What cannot be read now is fault.Unavailable.
type Repository interface {
	// Evaluate returns what the commit declares, mistakes included.
	Evaluate(ctx context.Context, id pipeline.CommitID) (pipeline.Config, error)
	// Describe returns author and subject, safe to show.
	Describe(ctx context.Context, id pipeline.CommitID) (author, subject string, err error)
	// ChangedPaths lists what differs; complete is false when that is too much, or
	// when base is not there any more.
	ChangedPaths(ctx context.Context, base, head pipeline.CommitID) (paths []string, complete bool, err error)
}

// CommitsConfig configures Commits. All fields but URL and the hooks are required.
type CommitsConfig struct {
	DB         *store.DB
	Repository Repository
	Runs       *Runs
	Log        *slog.Logger
	// Name of the repository in the record.
	Name string
	// Default is the branch that holds the desired state.
	Default pipeline.Ref
	// RunTip: a repository seen for the first time runs its newest commit. Without
	// it the first look is a baseline and nothing of the past runs.
	RunTip bool
	// Proposals as in Config.
	Proposals bool
	URL       string
	// StatusesChanged is called when the forge should show something else.
	StatusesChanged func()
	// Live is called with each configuration that comes into force, the first one
	// after a start included.
	Live func(pipeline.Config)
}

// baseline is recorded like a ref once a repository has been looked at: what is
// there at the first look is not news, and what comes later is, even when the
// repository was empty then. It is no valid Git ref, so none can be named like it.
const baseline pipeline.Ref = "maestro:baseline"

// Commits turns refs that moved into evaluated commits, verdicts and runs.
type Commits struct {
	cfg CommitsConfig

	mu   sync.Mutex
	live *pipeline.Config // of the default branch; nil before the first
}

// NewCommits returns Commits; nothing happens before Observe.
func NewCommits(cfg CommitsConfig) *Commits { return &Commits{cfg: cfg} }

// Live returns the configuration in force, or nil before the first. The caller
// must not change it.
func (c *Commits) Live() *pipeline.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live
}

// Observe compares the refs, as they are now, with what the record has seen, and
// carries out every difference. It is called by one goroutine at a time. What it
// could not do it returns, and does at the next call; the branches after it are
// looked at all the same.
func (c *Commits) Observe(ctx context.Context, refs map[pipeline.Ref]pipeline.CommitID) error {
	seen, err := c.cfg.DB.ObservedRefs(ctx, c.cfg.Name)
	if err != nil {
		return fmt.Errorf("read observed refs: %w", err)
	}
	var errs []error
	errs = append(errs, c.ensureLive(ctx))
	_, known := seen[baseline]
	first := !known
	delete(seen, baseline)
	for _, ref := range c.order(refs) {
		if refs[ref] == seen[ref] {
			continue
		}
		if err := c.moved(ctx, ref, seen[ref], refs[ref], first); err != nil {
			errs = append(errs, fmt.Errorf("%s at %s: %w", ref, refs[ref].Short(), err))
		}
	}
	for _, ref := range slices.Sorted(maps.Keys(seen)) {
		if _, there := refs[ref]; !there {
			errs = append(errs, c.deleted(ctx, ref))
		}
	}
	if err := errors.Join(errs...); err != nil || known {
		return err
	}
	return c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.ObserveRef(c.cfg.Name, baseline, "seen") })
}

// order puts the default branch first: the others use its pools.
func (c *Commits) order(refs map[pipeline.Ref]pipeline.CommitID) []pipeline.Ref {
	var out []pipeline.Ref
	for _, ref := range slices.Sorted(maps.Keys(refs)) {
		if ref.Branch() != "" && ref != c.cfg.Default {
			out = append(out, ref)
		}
	}
	if _, ok := refs[c.cfg.Default]; ok {
		out = slices.Insert(out, 0, c.cfg.Default)
	}
	return out
}

// ensureLive evaluates the live commit again after a start.
func (c *Commits) ensureLive(ctx context.Context) error {
	if c.Live() != nil {
		return nil
	}
	live, err := c.cfg.DB.LiveCommit(ctx, c.cfg.Name)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read live commit: %w", err)
	}
	cfg, err := c.evaluate(ctx, live.Commit)
	if err != nil {
		return fmt.Errorf("evaluate live commit %s: %w", live.Commit.Short(), err)
	}
	c.goLive(cfg)
	return nil
}

func (c *Commits) goLive(cfg pipeline.Config) {
	c.mu.Lock()
	c.live = &cfg
	c.mu.Unlock()
	if c.cfg.Live != nil {
		c.cfg.Live(cfg)
	}
}

// evaluate returns what a commit declares, pinned.
func (c *Commits) evaluate(ctx context.Context, id pipeline.CommitID) (pipeline.Config, error) {
	cfg, err := c.cfg.Repository.Evaluate(ctx, id)
	if err != nil {
		return cfg, err
	}
	return pin(cfg)
}

func (c *Commits) deleted(ctx context.Context, ref pipeline.Ref) error {
	c.cfg.Log.Info("ref deleted", "repo", c.cfg.Name, "ref", ref)
	return c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.ObserveRef(c.cfg.Name, ref, "") })
}

// moved carries out one branch that is at head now and was at base.
func (c *Commits) moved(ctx context.Context, ref pipeline.Ref, base, head pipeline.CommitID, first bool) error {
	if first && ref != c.cfg.Default {
		return c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.ObserveRef(c.cfg.Name, ref, head) })
	}
	started := time.Now()
	cfg, err := c.evaluate(ctx, head)
	if err != nil {
		return err
	}
	if live := c.Live(); ref != c.cfg.Default && live != nil {
		cfg.Pools, cfg.Secrets = live.Pools, live.Secrets // policy is the base's
	}
	author, subject, err := c.cfg.Repository.Describe(ctx, head)
	if err != nil {
		return err
	}
	rec := pipeline.CommitRecord{
		Commit: head, Ref: ref, Base: base, Author: author, Subject: subject, Diagnostics: cfg.Diagnostics,
		Live: ref == c.cfg.Default && !pipeline.HasErrors(cfg.Diagnostics), SeenAt: started.UTC(),
	}
	var p plan.Plan
	if !first || c.cfg.RunTip {
		push, err := c.push(ctx, &cfg, rec, first)
		if err != nil {
			return err
		}
		p = plan.OfPush(&cfg, push)
	}
	runs, err := c.record(ctx, &cfg, rec, p, first && !c.cfg.RunTip)
	if err != nil {
		return err
	}
	if rec.Live {
		c.goLive(cfg)
	}
	of := make([]*pipeline.Composition, 0, len(runs))
	for _, r := range runs {
		of = append(of, cfg.Composition(r.Composition))
	}
	c.cfg.Runs.Add(head, runs, of)
	if c.cfg.StatusesChanged != nil {
		c.cfg.StatusesChanged()
	}
	c.cfg.Log.Info("commit evaluated", "ref", ref, "commit", head, "runs", len(runs),
		"compositions", len(cfg.Compositions), "diagnostics", len(cfg.Diagnostics), "live", rec.Live, "took", time.Since(started))
	return nil
}

func (c *Commits) push(ctx context.Context, cfg *pipeline.Config, rec pipeline.CommitRecord, first bool) (plan.Push, error) {
	p := plan.Push{Event: pipeline.Event{
		Kind: "push", Ref: rec.Ref, Head: rec.Commit, Base: rec.Base, Author: rec.Author, Subject: rec.Subject,
	}}
	wanted := slices.ContainsFunc(cfg.Compositions, func(c pipeline.Composition) bool {
		return slices.ContainsFunc(c.Triggers, func(t pipeline.Trigger) bool { return t.Push != nil && len(t.Push.Paths) > 0 })
	})
	switch {
	case !wanted:
	case first:
		p.PathsUnknown = true
	default:
		base := rec.Base
		if live := c.Live(); base == "" && live != nil {
			base = live.Commit // a new branch is compared with what is in force
		}
		paths, complete, err := c.cfg.Repository.ChangedPaths(ctx, base, rec.Commit)
		if err != nil {
			return p, err
		}
		p.Paths, p.PathsUnknown = paths, !complete
	}
	return p, nil
}

// record writes the commit, its verdicts, its runs and what the forge should show,
// and that the ref was seen there: all of it or nothing. A run that is there
// already, because this event was seen before, is not made again. quiet leaves the
// forge alone: the commit is the past.
func (c *Commits) record(ctx context.Context, cfg *pipeline.Config, rec pipeline.CommitRecord, p plan.Plan, quiet bool) ([]*pipeline.Run, error) {
	var made []*pipeline.Run
	err := c.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		made = nil
		// The commit may have been seen on another branch. Nothing is written while
		// this is read, because this transaction is under way.
		facts, err := c.known(ctx, rec)
		if err != nil {
			return err
		}
		verdicts := slices.Clone(p.Verdicts)
		for i := range p.Runs {
			r, err := newRun(&p.Runs[i])
			if err != nil {
				return err
			}
			err = tx.CreateRun(r, p.Runs[i].Composition, calledBy(cfg, p.Runs[i].Composition)...)
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
		if err := tx.RecordCommit(c.cfg.Name, rec); err != nil {
			return err
		}
		if err := tx.RecordVerdicts(verdicts); err != nil {
			return err
		}
		if !quiet {
			facts.Verdicts = append(verdicts, facts.Verdicts...)
			for _, s := range plan.Statuses(facts) {
				if err := tx.Desire(s); err != nil {
					return err
				}
			}
		}
		return tx.ObserveRef(c.cfg.Name, rec.Ref, rec.Commit)
	})
	if err != nil {
		return nil, fmt.Errorf("record commit %s: %w", rec.Commit.Short(), err)
	}
	return made, nil
}

// known returns what the record has of the commit on other branches: all of it
// speaks for the one commit at the forge.
func (c *Commits) known(ctx context.Context, rec pipeline.CommitRecord) (plan.Facts, error) {
	f := plan.Facts{Commit: rec.Commit, Diagnostics: rec.Diagnostics, URL: c.cfg.URL}
	verdicts, err := c.cfg.DB.Verdicts(ctx, rec.Commit)
	if err != nil {
		return f, err
	}
	f.Verdicts = slices.DeleteFunc(verdicts, func(v pipeline.Verdict) bool { return v.Ref == rec.Ref })
	if f.Runs, err = c.cfg.DB.Runs(ctx, store.Filter{Commit: rec.Commit, Limit: mostOfCommit}); err != nil {
		return f, err
	}
	f.Proposals, f.Planning, err = proposalsOf(ctx, c.cfg.DB, rec.Commit, c.cfg.Default, c.cfg.Proposals)
	if err == nil && c.cfg.Proposals && rec.Ref != c.cfg.Default && !f.Planning {
		// The reference is observed with this record, so it cannot be found by it yet.
		looked, err := c.cfg.DB.LookedAt(ctx, c.cfg.Name)
		f.Planning = looked[rec.Ref.Branch()] != rec.Commit
		return f, err
	}
	return f, err
}

func withKey(runs []*pipeline.Run, key pipeline.RunKey) *pipeline.Run {
	i := slices.IndexFunc(runs, func(r *pipeline.Run) bool { return r.Key == key })
	if i < 0 {
		return nil
	}
	return runs[i]
}
