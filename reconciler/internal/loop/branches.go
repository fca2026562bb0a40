package loop

import (
	"context"
	"errors"
	"fmt"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// branches brings every proposed change up to date.
func (p *Proposals) branches(ctx context.Context, m *moment, open []store.StoredProposal) error {
	known := make(map[string]*store.StoredProposal, len(open))
	for i := range open {
		known[open[i].Branch] = &open[i]
	}
	looked, err := p.cfg.DB.LookedAt(ctx, p.cfg.Name)
	if err != nil {
		return err
	}
	// What is there at the first look is planned, and starts nothing.
	_, before := looked[inForce]
	first := !before
	if !first {
		came := make([]pipeline.Proposal, len(open))
		for i := range open {
			came[i] = open[i].Proposal
		}
		if err := p.landed(ctx, m, came, looked); err != nil {
			return err // what is merged is found once this is known
		}
	}
	var errs []error
	n := 0
	for _, ref := range order(m.Tips, p.cfg.Default) {
		branch := ref.Branch()
		if ref == p.cfg.Default || branch == "" { // a tag proposes nothing
			continue
		}
		if n++; n > mostOpenProposals && known[branch] == nil {
			continue
		}
		if err := p.branch(ctx, m, known[branch], branch, m.Tips[ref], first); err != nil {
			errs = append(errs, fmt.Errorf("change %s: %w", branch, err))
		}
		delete(known, branch)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if n > mostOpenProposals {
		p.cfg.Log.Warn("there are more branches than are planned", "branches", n, "planned", mostOpenProposals)
	}
	for _, gone := range known {
		errs = append(errs, p.gone(ctx, m, gone))
	}
	for branch := range looked {
		if _, there := m.Tips[pipeline.Ref("refs/heads/"+branch)]; branch != inForce && !there {
			errs = append(errs, p.lookAt(ctx, branch, ""))
		}
	}
	if err := errors.Join(errs...); err != nil || !first {
		return err
	}
	return p.cfg.DB.Write(ctx, func(tx *store.Tx) error { return p.lookAtMain(tx, m) })
}

func (p *Proposals) lookAt(ctx context.Context, branch string, head pipeline.CommitID) error {
	return p.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.LookAt(p.cfg.Name, branch, head) })
}

// branch brings one change up to date: it is merged, planned anew, or judged by its
// reviews.
func (p *Proposals) branch(ctx context.Context, m *moment, known *store.StoredProposal, branch string, head pipeline.CommitID, first bool) error {
	if known != nil && known.Head != head {
		contained, err := p.contained(ctx, m, known.Head)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if contained {
			if err := p.merged(ctx, m, known); err != nil {
				return err
			}
			known = nil
		}
	}
	at := p.settled[branch]
	if at.head != head || at.tip != m.tip || at.live != m.live.Commit {
		span, err := p.cfg.Discussion.Between(ctx, m.tip, head)
		if err != nil {
			return err
		}
		if span.Commits == 0 && !span.Truncated {
			return p.nothing(ctx, m, known, branch, head)
		}
		at = settled{head: head, tip: m.tip, live: m.live.Commit, people: span.People, unknown: span.Truncated}
		if known == nil || known.Head != head || known.Base != m.live.Commit || span.movedFrom(known.Fork) || known.Digest == "" {
			o := offer{
				name: branch, ref: pipeline.Ref("refs/heads/" + branch), head: head, target: p.cfg.Default.Branch(), tip: m.tip, first: first,
			}
			if known, err = p.plan(ctx, m, known, o, span); err != nil {
				return err
			}
		}
		p.settled[branch] = at
	}
	if known == nil {
		return nil // it proposes nothing
	}
	if err := p.judge(ctx, m, known, at); err != nil {
		return err
	}
	return p.note(ctx, known)
}

// nothing is for a branch that the default one contains.
func (p *Proposals) nothing(ctx context.Context, m *moment, known *store.StoredProposal, branch string, head pipeline.CommitID) error {
	if err := p.lookAt(ctx, branch, head); err != nil {
		return err
	}
	if known != nil {
		if err := p.merged(ctx, m, known); err != nil {
			return err
		}
	} else if err := p.restate(ctx, head); err != nil {
		return err
	}
	p.settled[branch] = settled{head: head, tip: m.tip, live: m.live.Commit}
	return nil
}

// gone is for an open change whose branch was deleted.
func (p *Proposals) gone(ctx context.Context, m *moment, known *store.StoredProposal) error {
	contained, err := p.contained(ctx, m, known.Head)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("change %s: %w", known.Branch, err)
	}
	if contained {
		return p.merged(ctx, m, known)
	}
	next := known.Proposal
	next.State, next.Sentence = pipeline.ProposalClosed, "its branch was deleted before it was merged"
	delete(p.settled, next.Branch)
	return p.save(ctx, m, &next)
}

func (p *Proposals) contained(ctx context.Context, m *moment, head pipeline.CommitID) (bool, error) {
	span, err := p.cfg.Discussion.Between(ctx, m.tip, head)
	return err == nil && span.Commits == 0 && !span.Truncated, err
}
