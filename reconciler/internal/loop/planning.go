package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// plan says what merging a head will do, and starts what is triggered by proposing
// it, once for each head.
func (p *Proposals) plan(ctx context.Context, m *moment, known *store.StoredProposal, o offer, span Span) (*store.StoredProposal, error) {
	head := o.head
	cfg, err := p.cfg.Commits.evaluate(ctx, head)
	if err != nil {
		return nil, err
	}
	author, subject, err := p.cfg.Discussion.Describe(ctx, head)
	if err != nil {
		return nil, err
	}
	paths, complete, err := p.changed(ctx, head, span)
	if err != nil {
		return nil, err
	}
	fleet, err := p.fleet(ctx, m)
	if err != nil {
		return nil, err
	}
	merged := &cfg
	if span.Fork != "" && span.Fork != m.live.Commit && len(span.Others) == 0 {
		fork, err := p.cfg.Commits.evaluate(ctx, span.Fork)
		if err != nil {
			return nil, err
		}
		merged = plan.Merged(m.live, &fork, &cfg)
	}
	in := plan.Input{
		Default: p.cfg.Default, Base: m.live, Head: merged, Paths: paths, PathsUnknown: !complete, Fleet: fleet, Now: m.now,
		Event: pipeline.Event{
			Kind: pipeline.EventPush, Ref: pipeline.Ref("refs/heads/" + o.target), Head: head, Base: o.tip, Author: author, Subject: subject,
		},
	}
	onMerge, err := p.filled(ctx, in)
	if err != nil {
		return nil, err
	}
	next := &store.StoredProposal{Proposal: pipeline.Proposal{
		Branch: o.name, Target: o.target, Draft: o.draft, Head: head, Base: m.live.Commit, Fork: span.Fork,
		Author: author, Subject: subject, State: pipeline.ProposalOpen, Digest: onMerge.Digest,
		Diagnostics: onMerge.Diagnostics, OpenedAt: m.now, HeadAt: m.now, PlannedAt: m.now,
	}}
	sameHead := known != nil && known.Head == head
	if known != nil {
		next.OpenedAt, next.Decisions = known.OpenedAt, known.Decisions
	}
	if sameHead {
		next.HeadAt, next.Noted = known.HeadAt, known.Noted
		if known.Digest == next.Digest {
			next.PlannedAt = known.PlannedAt
		}
	}
	var checks plan.Plan
	in.Event.Kind, in.Event.Ref = pipeline.EventPullRequest, o.ref
	in.Event.Proposal, in.Event.Target, in.Event.Pull = o.name, o.target, o.pull
	proposed := &cfg // it runs as it stands
	if o.ref.Fork() {
		proposed = plan.Outside(&cfg, m.live.Pools)
	}
	in.Head = proposed
	if checks, err = p.filled(ctx, in); err != nil {
		return nil, err
	}
	for i := range onMerge.Approvals { // for people; the digest does not depend on it
		onMerge.Approvals[i].People = review.Others(onMerge.Approvals[i].People, span.People)
	}
	if err := describe(next, &onMerge, &checks, o.closed, p.cfg.URL); err != nil {
		return nil, err
	}
	if o.first && !o.opened || sameHead && !o.opened || o.closed {
		checks = plan.Plan{}
	}
	runs, err := p.start(ctx, m, &o, proposed, &next.Proposal, checks)
	if err != nil {
		return nil, err
	}
	p.cfg.Log.Info("change planned", "branch", o.name, "head", head, "base", m.live.Commit, "digest", next.Digest,
		"on_merge", len(next.Predicted), "started", runs)
	return next, p.restate(ctx, head)
}

// changed lists the paths that merging head may change: those in which it differs from
// any commit that it comes from. What is as in one of them alone is not what a merge
// leaves alone.
func (p *Proposals) changed(ctx context.Context, head pipeline.CommitID, span Span) (paths []string, complete bool, err error) {
	complete = !span.Truncated
	for _, fork := range append([]pipeline.CommitID{span.Fork}, span.Others...) {
		some, all, err := p.cfg.Discussion.ChangedPaths(ctx, fork, head)
		if err != nil {
			return nil, false, err
		}
		paths, complete = append(paths, some...), complete && all
	}
	slices.Sort(paths)
	return slices.Compact(paths), complete, nil
}

// describe puts into the change what people read of its plan. closed: nobody has said yet
// that its checks may run.
func describe(c *store.StoredProposal, on, checks *plan.Plan, closed bool, url string) error {
	for _, r := range on.Runs {
		c.Predicted = append(c.Predicted, r.Name)
	}
	slices.Sort(c.Predicted)
	c.Called = on.Called()
	raw, err := json.Marshal(on)
	if err != nil {
		return fmt.Errorf("plan of %s: %w", c.Branch, err)
	}
	c.Plan = raw
	c.Text = on.Text(plan.TextOptions{})
	o := plan.MarkdownOptions{Onto: c.Target, Checks: checks.Runs, Closed: closed}
	for _, v := range checks.Verdicts {
		// A mistake in a file is told already.
		if v.Outcome == pipeline.VerdictRejected && v.Repo == "" && !pipeline.HasErrors(c.Diagnostics) {
			o.Refused = append(o.Refused, v)
		}
	}
	if url != "" {
		o.URL = url + plan.ProposalPath(c.Branch)
	}
	c.Markdown = on.Markdown(o)
	for i := range on.Approvals {
		c.Needs = append(c.Needs, on.Approvals[i].Need())
	}
	c.Approval, c.Sentence = pipeline.ApprovalWaiting, "its reviews have not been read"
	return nil
}

// start makes the runs of a proposed head and records the change with them.
func (p *Proposals) start(ctx context.Context, m *moment, o *offer, cfg *pipeline.Config, c *pipeline.Proposal, checks plan.Plan) (started int, err error) {
	var made []*pipeline.Run
	var of []*pipeline.Composition
	c.ChangedAt = m.now
	err = p.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		made, of = nil, nil
		var verdicts []pipeline.Verdict
		for _, v := range checks.Verdicts {
			// Of what has no such trigger, what the push was answered says all.
			if v.Outcome == pipeline.VerdictRun || hasPullRequest(cfg.Composition(v.Composition)) {
				verdicts = append(verdicts, v)
			}
		}
		for i := range checks.Runs {
			r, err := newRun(&checks.Runs[i])
			if err != nil {
				return err
			}
			err = tx.CreateRun(r, checks.Runs[i].Composition, calledBy(cfg, checks.Runs[i].Composition)...)
			if fault.Is(err, fault.Conflict) {
				continue // a crash came between; it is there already
			}
			if err != nil {
				return err
			}
			made, of = append(made, r), append(of, checks.Runs[i].Composition)
			for j := range verdicts {
				if verdicts[j].Composition == r.Composition {
					verdicts[j].Run = r.ID
				}
			}
		}
		if err := tx.RecordVerdicts(verdicts); err != nil {
			return err
		}
		if err := tx.LookAt(p.cfg.Name, c.Branch, c.Head); err != nil {
			return err
		}
		if o.ref.Fork() { // no branch of the repository brings it into the record
			rec := pipeline.CommitRecord{
				Commit: c.Head, Ref: o.ref, Base: c.Fork, Author: c.Author, Subject: c.Subject, Diagnostics: cfg.Diagnostics, SeenAt: m.now,
			}
			if err := tx.RecordCommit(p.cfg.Name, rec); err != nil {
				return err
			}
		}
		return tx.SaveProposal(p.cfg.Name, c)
	})
	if err != nil {
		return 0, fmt.Errorf("record change %s: %w", c.Branch, err)
	}
	p.cfg.Runs.Add(pipeline.Head{Commit: c.Head}, made, of)
	return len(made), nil
}

func hasPullRequest(c *pipeline.Composition) bool {
	return c != nil && slices.ContainsFunc(c.Triggers, func(t pipeline.Trigger) bool { return t.PullRequest != nil && t.Repo() == "" })
}

// filled plans, and plans again with what only an evaluation knows.
func (p *Proposals) filled(ctx context.Context, in plan.Input) (plan.Plan, error) {
	const rounds = 3 // the params of a trigger, then the group that reads them
	out := plan.Of(in)
	for range rounds {
		if len(out.Blanks) == 0 {
			break
		}
		for _, b := range out.Blanks {
			c := in.Head.Composition(b.Composition)
			if c == nil {
				continue
			}
			f := plan.Filled{Blank: b}
			v, err := p.cfg.Discussion.FillPlanned(ctx, in.Head.Commit, c, b, in.Event)
			switch {
			case fault.Is(err, fault.Invalid):
				f.Problem = err.Error()
			case err != nil:
				return out, err
			default:
				f.Value = v
			}
			in.Filled = append(in.Filled, f)
		}
		out = plan.Of(in)
	}
	return out, nil
}

// fleet is what a plan is told of agents, queues and earlier runs.
func (p *Proposals) fleet(ctx context.Context, m *moment) (*plan.Fleet, error) {
	f, err := p.cfg.Runs.Fleet(ctx)
	if err != nil {
		return nil, err
	}
	took, err := p.cfg.DB.History(ctx, historyOf)
	if err != nil {
		return nil, err
	}
	for _, t := range took {
		f.History = append(f.History, plan.History(t))
	}
	f.At = m.now
	return f, nil
}
