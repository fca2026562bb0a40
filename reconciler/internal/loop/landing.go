package loop

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// inForce is the key under which the record keeps which configuration was in force
// when the default branch was last looked at. No branch has that name.
const inForce = ""

// landed judges what came to the default branch since the last look. A change that was
// proposed is judged by its reviews; what no change accounts for, such as a commit more
// than the approved head or a push of its own, is held against the policy like a change
// that nobody has reviewed. It is called before changes are found to be merged, so that
// a crash in between leaves them to be found again.
func (p *Proposals) landed(ctx context.Context, m *moment, open []pipeline.Proposal, looked map[string]pipeline.CommitID) error {
	main := p.cfg.Default.Branch()
	from := looked[main]
	if from == m.tip {
		return nil
	}
	var stray *pipeline.Proposal
	if from != "" {
		var err error
		if stray, err = p.stray(ctx, m, open, from, looked[inForce]); err != nil {
			return fmt.Errorf("judge what came to %s: %w", main, err)
		}
	}
	err := p.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		if stray != nil {
			if err := tx.SaveProposal(p.cfg.Name, stray); err != nil {
				return err
			}
		}
		return p.lookAtMain(tx, m)
	})
	if err != nil || stray == nil {
		return err
	}
	p.cfg.Log.Warn("the default branch moved without approval", "from", from, "commit", m.tip, "outcome", stray.Sentence)
	return p.restate(ctx, m.tip)
}

func (p *Proposals) lookAtMain(tx *store.Tx, m *moment) error {
	if err := tx.LookAt(p.cfg.Name, p.cfg.Default.Branch(), m.tip); err != nil {
		return err
	}
	return tx.LookAt(p.cfg.Name, inForce, m.live.Commit)
}

// arrival is a move of the default branch.
type arrival struct {
	from, tip pipeline.CommitID
	// changes are those that came with it. expected is what is in force when nothing
	// but them has come.
	changes  []*pipeline.Proposal
	expected *pipeline.Config
	// own are the commits, newest first, that no change has and that merge nothing.
	own []pipeline.CommitID
}

// stray is what came to the default branch with no change and needs approval, as a
// change that was merged without it; nil when there is nothing of the kind. law is the
// commit that was in force.
func (p *Proposals) stray(ctx context.Context, m *moment, open []pipeline.Proposal, from, law pipeline.CommitID) (*pipeline.Proposal, error) {
	before, err := p.cfg.Commits.evaluate(ctx, law)
	if fault.Is(err, fault.NotFound) {
		before, err = *m.live, nil // a rewritten history may have lost it
	}
	if err != nil || len(before.Policy.Changes) == 0 {
		return nil, err
	}
	a := arrival{from: from, tip: m.tip, expected: &before}
	if err := p.arrived(ctx, &a, open); err != nil {
		return nil, err
	}
	head, err := p.cfg.Commits.evaluate(ctx, m.tip)
	if err != nil {
		return nil, err
	}
	paths, known, err := p.unexplained(ctx, &a)
	if err != nil {
		return nil, err
	}
	asked := plan.Of(plan.Input{
		Default: p.cfg.Default, Base: a.expected, Head: &head, Paths: paths, PathsUnknown: !known, Now: m.now,
		Event: pipeline.Event{Kind: pipeline.EventPush, Ref: p.cfg.Default, Head: m.tip, Base: from},
	})
	if len(asked.Approvals) == 0 {
		return nil, nil
	}
	author, subject, err := p.cfg.Discussion.Describe(ctx, m.tip)
	if err != nil {
		return nil, err
	}
	in := review.Input{Head: m.tip, Plan: asked.Digest, Groups: a.expected.Policy.Groups, AtForge: p.cfg.Pulls, Now: m.now}
	var because []string
	for i := range asked.Approvals {
		r := &asked.Approvals[i]
		in.Rules = append(in.Rules, review.RuleOf(r.Need()))
		if len(r.Owners) == 0 { // whom owners are asked for is said with them
			because = append(because, r.Because...)
		}
	}
	d := review.Approved(in)
	main := p.cfg.Default.Branch()
	sentence := a.what(main) + "; merged without approval: " + d.Sentence
	if slices.Sort(because); len(because) > 0 {
		sentence += " for " + strings.Join(slices.Compact(because), ", ")
	}
	return &pipeline.Proposal{
		// git lets no branch be called so.
		Branch: main + "@{" + m.tip.Short() + "}", Target: main, Head: m.tip, Base: from, Author: author, Subject: subject,
		State: pipeline.ProposalMerged, Approval: d.Approval, Sentence: sentence, Needs: d.Needs,
		Merge:    &pipeline.Merge{Commit: m.tip, Approval: d.Approval, Sentence: sentence, At: m.now},
		OpenedAt: m.now, HeadAt: m.now, ChangedAt: m.now,
	}, nil
}

// what says what came, in words.
func (a *arrival) what(main string) string {
	const most = 3
	var ids []string
	for _, id := range a.own[:min(most, len(a.own))] {
		ids = append(ids, id.Short())
	}
	if more := len(a.own) - most; more > 0 {
		ids = append(ids, fmt.Sprintf("%d more", more))
	}
	switch len(a.own) {
	case 0:
		return "what came to " + main + " is not what its changes held"
	case 1:
		return "1 commit came to " + main + " that no change held (" + ids[0] + ")"
	}
	return fmt.Sprintf("%d commits came to %s that no change held (%s)", len(a.own), main, strings.Join(ids, ", "))
}

// arrived finds the changes that came, and what else did.
func (p *Proposals) arrived(ctx context.Context, a *arrival, open []pipeline.Proposal) error {
	span, err := p.cfg.Discussion.Between(ctx, a.from, a.tip)
	if err != nil {
		return err
	}
	came, held := map[pipeline.CommitID]bool{}, map[pipeline.CommitID]bool{}
	for _, c := range span.List {
		came[c.ID] = true
	}
	for i := range open {
		c := &open[i]
		if !came[c.Head] && (c.Merge == nil || !came[c.Merge.Commit]) {
			continue
		}
		theirs, err := p.cfg.Discussion.Between(ctx, a.from, c.Head)
		if err != nil {
			return err
		}
		for _, made := range theirs.List {
			held[made.ID] = true
		}
		if a.expected, err = p.with(ctx, a.expected, c); err != nil {
			return err
		}
		a.changes = append(a.changes, c)
	}
	for _, c := range span.List {
		if held[c.ID] || c.Merges {
			continue
		}
		brought, err := p.brought(ctx, a, c.ID)
		if err != nil {
			return err
		}
		if !brought {
			a.own = append(a.own, c.ID)
		}
	}
	return nil
}

// mostAsked bounds the commits that a forge is asked about.
const mostAsked = 50

// brought reports whether the forge says that one of the changes brought a commit that
// it does not have: the one that it was squashed into, or one that was rebased.
func (p *Proposals) brought(ctx context.Context, a *arrival, id pipeline.CommitID) (bool, error) {
	if p.cfg.Introduced == nil || len(a.own) >= mostAsked {
		return false, nil
	}
	numbers, err := p.cfg.Introduced(ctx, id)
	return slices.ContainsFunc(a.changes, func(c *pipeline.Proposal) bool {
		return slices.Contains(numbers, pipeline.PullNumber(c.Branch))
	}), err
}

// landedPulls is landed where pull requests are what is proposed. It is called when what
// became of them was taken in, and judges what a look tells that began some time after
// the branch moved: until then one that was merged may look as if it was not.
func (p *Proposals) landedPulls(ctx context.Context, m *moment, looked map[string]pipeline.CommitID) error {
	main := p.cfg.Default.Branch()
	from := looked[main]
	ready := p.movedAt(m, main).Add(justNow)
	switch {
	case from == m.tip:
		return nil
	case from == "":
		return p.landed(ctx, m, nil, looked)
	case m.now.Before(ready):
		m.before(ready)
		return nil
	case m.pulledAt.Before(ready):
		if p.mayTry("look after a move", m.now) && p.cfg.Look != nil {
			p.cfg.Look()
		}
		return nil
	}
	span, err := p.cfg.Discussion.Between(ctx, from, m.tip)
	if err != nil {
		return fmt.Errorf("judge what came to %s: %w", main, err)
	}
	var came []pipeline.Proposal
	for _, c := range span.List {
		list, err := p.cfg.DB.ProposalsOf(ctx, c.ID)
		if err != nil {
			return err
		}
		for _, one := range list {
			known := slices.ContainsFunc(came, func(o pipeline.Proposal) bool { return o.Branch == one.Branch && o.Head == one.Head })
			if !known && one.Target == main && pipeline.PullNumber(one.Branch) > 0 && one.State != pipeline.ProposalClosed {
				came = append(came, one)
			}
		}
	}
	return p.landed(ctx, m, came, looked)
}

// with is what is in force once the change is merged too.
func (p *Proposals) with(ctx context.Context, base *pipeline.Config, c *pipeline.Proposal) (*pipeline.Config, error) {
	head, err := p.cfg.Commits.evaluate(ctx, c.Head)
	if err != nil {
		return nil, err
	}
	fork := pipeline.Config{}
	if c.Fork != "" {
		if fork, err = p.cfg.Commits.evaluate(ctx, c.Fork); err != nil {
			return nil, err
		}
	}
	return plan.Merged(base, &fork, &head), nil
}

// unexplained are the paths that are at the tip as neither the default branch nor a
// change had them. known is false when that cannot be told.
func (p *Proposals) unexplained(ctx context.Context, a *arrival) (paths []string, known bool, err error) {
	sides := []pipeline.CommitID{a.from}
	for _, c := range a.changes {
		sides = append(sides, c.Head)
	}
	for _, side := range sides {
		differ, complete, err := p.cfg.Discussion.ChangedPaths(ctx, side, a.tip)
		switch {
		case err != nil:
			return nil, false, err
		case !complete:
		case !known:
			paths, known = differ, true
		default:
			paths = slices.DeleteFunc(paths, func(f string) bool { return !slices.Contains(differ, f) })
		}
	}
	if len(paths) == 0 || len(a.own) > 0 {
		return paths, known, nil
	}
	// Nothing but merges: a file that two sides have changed comes out as a third one.
	for _, c := range a.changes {
		theirs, _, err := p.cfg.Discussion.ChangedPaths(ctx, c.Fork, c.Head)
		if err != nil {
			return nil, false, err
		}
		for _, side := range sides {
			ours, _, err := p.cfg.Discussion.ChangedPaths(ctx, c.Fork, side)
			if err != nil {
				return nil, false, err
			}
			if side == c.Head {
				continue
			}
			paths = slices.DeleteFunc(paths, func(f string) bool { return slices.Contains(theirs, f) && slices.Contains(ours, f) })
		}
	}
	return paths, known, nil
}
