package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// Repository reads the commits of the ops repository. What cannot be read now is
// fault.Unavailable.
type Repository interface {
	History
	// Evaluate returns what the commit declares, mistakes included.
	Evaluate(ctx context.Context, id pipeline.CommitID) (pipeline.Config, error)
}

// History says of commits what any repository can.
type History interface {
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
	Filler     Filler
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

// baselineTags is baseline for tags.
const baselineTags pipeline.Ref = "maestro:baseline-tags"

// Commits turns refs that moved into evaluated commits, verdicts and runs.
type Commits struct {
	cfg CommitsConfig

	mu   sync.Mutex
	live *pipeline.Config // of the default branch; nil before the first
	none bool             // the record was asked, and nothing was ever in force

	seenTo     atomic.Int64  // see Followed
	woken      chan struct{} // receives when another configuration is in force
	delivering chan struct{} // is full while a delivery is carried out

	// Owned by who calls Observe.
	slice  time.Duration // how long Observe goes on with branches
	behind bool          // see Behind

	// Owned by Run.
	following         bool
	followed, savedTo pipeline.Seq // see followRuns
	configs           map[pipeline.CommitID]pipeline.Config
}

// NewCommits returns Commits; nothing happens before Observe.
func NewCommits(cfg CommitsConfig) *Commits {
	return &Commits{cfg: cfg, woken: make(chan struct{}, 1), delivering: make(chan struct{}, 1), slice: time.Second}
}

// Live returns the configuration in force, or nil before the first. The caller
// must not change it.
func (c *Commits) Live() *pipeline.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live
}

// Behind reports whether the last Observe left branches or tags to another one, because
// these took long: who calls it at once, with how the refs are then, does not let the
// default branch wait for all of them.
func (c *Commits) Behind() bool { return c.behind }

// Observe compares the refs, as they are now, with what the record has seen, and
// carries out every difference. It is called by one goroutine at a time. What it
// could not do it returns, and does at the next call; the branches after it are
// looked at all the same, as many as there is time for: see Behind.
func (c *Commits) Observe(ctx context.Context, refs map[pipeline.Ref]pipeline.CommitID) error {
	live := c.ensureLive(ctx)
	behind, err := c.observe(ctx, watched{key: c.cfg.Name, main: c.cfg.Default, moved: c.moved}, refs)
	c.behind = behind
	return errors.Join(live, err)
}

// watched is a repository whose refs are compared with the record.
type watched struct {
	// key is its name in the record.
	key string
	// main goes before the other branches, and is carried out at the first look too;
	// "" for none.
	main pipeline.Ref
	// moved carries out a branch or a tag that is at head now and was at base, "" when
	// it is new. first: it is the first look at the repository.
	moved func(ctx context.Context, ref pipeline.Ref, base, head pipeline.CommitID, first bool) error
}

// observe is Observe for any repository. It reports whether it left branches or tags
// to another call.
func (c *Commits) observe(ctx context.Context, w watched, refs map[pipeline.Ref]pipeline.CommitID) (behind bool, err error) {
	seen, err := c.cfg.DB.ObservedRefs(ctx, w.key)
	if err != nil {
		return false, fmt.Errorf("read observed refs: %w", err)
	}
	var errs []error
	_, known := seen[baseline]
	_, tagsKnown := seen[baselineTags]
	delete(seen, baseline)
	delete(seen, baselineTags)
	old := map[pipeline.Ref]pipeline.CommitID{}
	began, done := time.Now(), 0 // what fails does not keep the others from their turn
	for _, ref := range order(refs, w.main) {
		switch {
		case refs[ref] == seen[ref]:
		case isTag(ref) && !tagsKnown, ref.Branch() != "" && !known && ref != w.main:
			old[ref] = refs[ref]
		case done > 0 && time.Since(began) >= c.slice:
			behind = true
		default:
			if err := w.moved(ctx, ref, seen[ref], refs[ref], !known); err != nil {
				errs = append(errs, fmt.Errorf("%s at %s: %w", ref, refs[ref].Short(), err))
			} else if ref != w.main {
				done++
			}
		}
	}
	for _, ref := range slices.Sorted(maps.Keys(seen)) {
		if _, there := refs[ref]; !there {
			errs = append(errs, c.deleted(ctx, w.key, ref))
		}
	}
	if err := errors.Join(errs...); err != nil || known && tagsKnown || behind {
		return behind, err
	}
	old[baseline], old[baselineTags] = "seen", "seen"
	return false, c.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		for _, ref := range slices.Sorted(maps.Keys(old)) {
			if err := tx.ObserveRef(w.key, ref, old[ref]); err != nil {
				return err
			}
		}
		return nil
	})
}

func isTag(ref pipeline.Ref) bool { return strings.HasPrefix(string(ref), "refs/tags/") }

// order puts the main branch first: the others use its pools.
func order(refs map[pipeline.Ref]pipeline.CommitID, main pipeline.Ref) []pipeline.Ref {
	var out []pipeline.Ref
	for _, ref := range slices.Sorted(maps.Keys(refs)) {
		if (ref.Branch() != "" || isTag(ref)) && ref != main {
			out = append(out, ref)
		}
	}
	if _, ok := refs[main]; ok {
		out = slices.Insert(out, 0, main)
	}
	return out
}

// Resume puts in force what was in force when the program stopped, whether the
// repository can be reached or not. It is not called at the same time as Observe,
// which does the same where this has failed.
func (c *Commits) Resume(ctx context.Context) error { return c.ensureLive(ctx) }

// ensureLive evaluates the live commit again after a start.
func (c *Commits) ensureLive(ctx context.Context) error {
	if c.Live() != nil {
		return nil
	}
	live, err := c.cfg.DB.LiveCommit(ctx, c.cfg.Name)
	if fault.Is(err, fault.NotFound) {
		c.mu.Lock()
		c.none = true
		c.mu.Unlock()
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

// Law returns the policy in force: one without rules where nothing ever was, because
// the sound compositions of a commit run beside its broken ones. It is
// fault.Unavailable while that is not known.
func (c *Commits) Law() (*pipeline.Policy, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.live != nil:
		return &c.live.Policy, nil
	case c.none:
		return &pipeline.Policy{}, nil
	}
	return nil, fault.New(fault.Unavailable, "what is in force is not known yet")
}

func (c *Commits) goLive(cfg pipeline.Config) {
	c.mu.Lock()
	c.live = &cfg
	c.mu.Unlock()
	select {
	case c.woken <- struct{}{}:
	default: // one is waiting already
	}
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

func (c *Commits) deleted(ctx context.Context, key string, ref pipeline.Ref) error {
	c.cfg.Log.Info("ref deleted", "repo", key, "ref", ref)
	return c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.ObserveRef(key, ref, "") })
}

// moved carries out one branch or tag that is at head now and was at base.
func (c *Commits) moved(ctx context.Context, ref pipeline.Ref, base, head pipeline.CommitID, first bool) error {
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
	d := deed{cfg: &cfg, rec: rec, quiet: first && !c.cfg.RunTip, also: func(tx *store.Tx) error {
		if err := tx.RecordCommit(c.cfg.Name, rec); err != nil {
			return err
		}
		return tx.ObserveRef(c.cfg.Name, rec.Ref, rec.Commit)
	}}
	if !d.quiet {
		in, err := c.input(ctx, &cfg, rec, first)
		if err != nil {
			return err
		}
		if d.runs, d.verdicts, err = c.decide(ctx, in); err != nil {
			return err
		}
	}
	runs, err := c.enact(ctx, d)
	if err != nil {
		return err
	}
	if rec.Live {
		c.goLive(cfg)
	}
	c.announce(&cfg, pipeline.Head{Commit: head}, runs)
	c.cfg.Log.Info("commit evaluated", "ref", ref, "commit", head, "runs", len(runs),
		"compositions", len(cfg.Compositions), "diagnostics", len(cfg.Diagnostics), "live", rec.Live, "took", time.Since(started))
	return nil
}

// input is the question of what a moved ref causes.
func (c *Commits) input(ctx context.Context, cfg *pipeline.Config, rec pipeline.CommitRecord, first bool) (plan.Input, error) {
	p := plan.Input{Default: c.cfg.Default, Base: c.Live(), Head: cfg, Now: rec.SeenAt, Event: pipeline.Event{
		Kind: pipeline.EventPush, Ref: rec.Ref, Head: rec.Commit, Base: rec.Base, Author: rec.Author, Subject: rec.Subject,
	}}
	if isTag(rec.Ref) {
		p.Event.Kind = pipeline.EventTag
		return p, nil
	}
	base := rec.Base
	if live := c.Live(); base == "" && live != nil {
		base = live.Commit // a new branch is compared with what is in force
	}
	if first {
		p.PathsUnknown = true
		return p, nil
	}
	err := changed(ctx, c.cfg.Repository, &p, base)
	return p, err
}

// changed tells a plan which paths differ from base, where a trigger of the event's kind
// and repository asks. Without a base it is all that there is.
func changed(ctx context.Context, h History, p *plan.Input, base pipeline.CommitID) (err error) {
	wanted := slices.ContainsFunc(p.Head.Compositions, func(c pipeline.Composition) bool {
		return slices.ContainsFunc(c.Triggers, func(t pipeline.Trigger) bool {
			return t.Kind() == p.Event.Kind && t.Repo() == p.Event.Repo && len(t.Paths()) > 0
		})
	})
	if !wanted {
		return nil
	}
	var complete bool
	p.Paths, complete, err = h.ChangedPaths(ctx, base, p.Event.Head)
	p.PathsUnknown = !complete
	return err
}

// known returns what the record has of the commit: what came of it on other branches
// and by other events speaks for it at the forge too.
func (c *Commits) known(ctx context.Context, rec pipeline.CommitRecord) (plan.Facts, error) {
	f := plan.Facts{Repo: rec.Repo, Commit: rec.Commit, Diagnostics: rec.Diagnostics, URL: c.cfg.URL}
	var err error
	f.Verdicts, f.Runs, err = historyOfHead(ctx, c.cfg.DB, pipeline.Head{Repo: rec.Repo, Commit: rec.Commit})
	if err != nil || rec.Repo != "" {
		return f, err
	}
	if f.Unread, err = unread(ctx, c.cfg.DB, c.cfg.Name, rec.Commit); err != nil {
		return f, err
	}
	f.Proposals, f.Planning, err = proposalsOf(ctx, c.cfg.DB, rec.Commit, c.cfg.Default, c.cfg.Proposals)
	if err == nil && c.cfg.Proposals && rec.Ref.Branch() != "" && rec.Ref != c.cfg.Default && !f.Planning {
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
