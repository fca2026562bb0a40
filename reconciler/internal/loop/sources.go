package loop

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// sourceKeys is how the keys of source repositories begin in the record. The ops
// repository is there under its path or URL, which does not.
const sourceKeys = "source:"

// SourceKey is how the record calls a source repository. Under another address it is
// another one: what it has is not compared with what the first had.
func SourceKey(r *pipeline.Repository) string { return sourceKeys + r.Name + " " + r.URL }

// Source is a source repository that is watched.
type Source struct {
	pipeline.Repository
	History History
	// Bring returns where refs point, those that are there, and makes them readable;
	// Between tells what head has that base has not. Only ObservePulls uses them.
	Bring   func(ctx context.Context, refs []pipeline.Ref) (map[pipeline.Ref]pipeline.CommitID, error)
	Between func(ctx context.Context, base, head pipeline.CommitID) (Span, error)

	// Owned by ObservePulls.
	alone map[pulled]trouble
}

// ObserveSource is Observe for a source repository: what moved there starts runs of
// what is in force. The first look is a baseline. more: it has left branches or tags
// to another call. It may be called for several repositories at a time.
func (c *Commits) ObserveSource(ctx context.Context, s *Source, refs map[pipeline.Ref]pipeline.CommitID) (more bool, err error) {
	moved := func(ctx context.Context, ref pipeline.Ref, base, head pipeline.CommitID, _ bool) error {
		return c.sourceMoved(ctx, s, pipeline.Event{Repo: s.Name, Ref: ref, Head: head, Base: base}, refs)
	}
	return c.observe(ctx, watched{key: SourceKey(&s.Repository), moved: moved}, refs)
}

// KeepSources forgets all that was seen of source repositories but what is declared, and
// of pull requests but those that a trigger asks for: what comes back later is seen for
// the first time.
func (c *Commits) KeepSources(ctx context.Context, cfg *pipeline.Config) error {
	var keys []string
	for i := range cfg.Repositories {
		r := &cfg.Repositories[i]
		keys = append(keys, SourceKey(r))
		if AsksForPulls(cfg, r.Name) {
			keys = append(keys, pullsKey(r))
		}
	}
	return c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.KeepSources(keys) })
}

// unread are the source repositories that cannot be read, for the status of a commit
// of the ops repository: they are the business of the one in force alone.
func unread(ctx context.Context, db *store.DB, ops string, id pipeline.CommitID) ([]string, error) {
	problems, err := db.RepositoryProblems(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for key := range problems {
		if rest, ok := strings.CutPrefix(key, sourceKeys); ok {
			name, _, _ := strings.Cut(rest, " ")
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	live, err := db.LiveCommit(ctx, ops)
	if fault.Is(err, fault.NotFound) || err == nil && live.Commit != id {
		return nil, nil
	}
	slices.Sort(out)
	return out, err
}

// RestateLive makes the status of the commit in force say what the record says now,
// as when a source repository cannot be read any more.
func (p *Proposals) RestateLive(ctx context.Context) error {
	live := p.cfg.Commits.Live()
	if live == nil {
		return nil
	}
	return p.restate(ctx, live.Commit)
}

// sourceMoved carries out a branch or a tag of a source repository that has moved.
func (c *Commits) sourceMoved(ctx context.Context, s *Source, e pipeline.Event, refs map[pipeline.Ref]pipeline.CommitID) error {
	e.Kind = pipeline.EventPush
	base := s.baseOf(&e, refs)
	if isTag(e.Ref) {
		e.Kind = pipeline.EventTag
	}
	return c.ofSource(ctx, s, plan.Input{Event: e}, base, func(tx *store.Tx) error {
		return tx.ObserveRef(SourceKey(&s.Repository), e.Ref, e.Head)
	})
}

// ofSource carries out what an event of a source repository causes, by what is in force.
// Changed paths, where they matter, are those between base and its head. seen notes that
// it has been, with it.
func (c *Commits) ofSource(ctx context.Context, s *Source, in plan.Input, base pipeline.CommitID, seen func(*store.Tx) error) error {
	live, e := c.Live(), &in.Event
	if live == nil {
		return fault.New(fault.Unavailable, "no configuration is in force yet")
	}
	in.Default, in.Base, in.Head, in.Now = c.cfg.Default, live, live, time.Now()
	e.Repo, e.Config = s.Name, live.Commit
	if !e.Ref.Fork() { // else nothing of it is here
		var err error
		if e.Author, e.Subject, err = s.History.Describe(ctx, e.Head); err != nil {
			return err
		}
		if err = changed(ctx, s.History, &in, base); err != nil {
			return err
		}
	}
	rec := pipeline.CommitRecord{
		Repo: s.Name, Commit: e.Head, Ref: e.Ref, Base: e.Base, Author: e.Author, Subject: e.Subject, SeenAt: in.Now.UTC(),
	}
	d := deed{cfg: live, rec: rec, partly: e.Proposal != "", also: func(tx *store.Tx) error {
		if err := tx.RecordCommit(SourceKey(&s.Repository), rec); err != nil {
			return err
		}
		return seen(tx)
	}}
	var err error
	if d.runs, d.verdicts, err = c.decide(ctx, in); err != nil {
		return err
	}
	runs, err := c.enact(ctx, d)
	if err != nil {
		return err
	}
	c.announce(live, pipeline.Head{Repo: s.Name, Commit: e.Head}, runs)
	c.cfg.Log.Info("source commit seen", "repo", s.Name, "ref", e.Ref, "change", e.Proposal, "commit", e.Head, "config", live.Commit,
		"runs", len(runs), "took", time.Since(in.Now))
	return nil
}

// baseOf is what a push is compared with: where the branch was, and of a new branch
// the first of the trusted ones that there is.
func (s *Source) baseOf(e *pipeline.Event, refs map[pipeline.Ref]pipeline.CommitID) pipeline.CommitID {
	if e.Base != "" {
		return e.Base
	}
	for _, branch := range s.Trusted {
		ref := pipeline.Ref("refs/heads/" + branch)
		if id, there := refs[ref]; there && ref != e.Ref {
			return id
		}
	}
	return ""
}
