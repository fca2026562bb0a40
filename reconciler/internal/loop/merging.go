package loop

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// merged records that the default branch contains the head: what was predicted, what
// the push that brought it started, and whether the policy was kept to.
func (p *Proposals) merged(ctx context.Context, m *moment, known *store.StoredProposal) error {
	return p.mergedBy(ctx, m, known, m.tip, p.cfg.Default)
}

// mergedBy is merged for a branch, by what it was pushed to.
func (p *Proposals) mergedBy(ctx context.Context, m *moment, known *store.StoredProposal, by pipeline.CommitID, ref pipeline.Ref) error {
	if at, ok := p.settled[known.Branch]; ok && at.head == known.Head {
		// A review may have come with the merge.
		if err := p.judge(ctx, m, known, at); err != nil {
			return err
		}
	}
	runs, err := p.cfg.DB.Runs(ctx, store.Filter{Commit: by, Ref: ref, Limit: mostOfCommit})
	if err != nil {
		return err
	}
	next := known.Proposal
	next.State = pipeline.ProposalMerged
	next.Merge = &pipeline.Merge{Commit: by, Approval: next.Approval, Predicted: next.Predicted, At: m.now}
	for _, r := range runs {
		if r.Event.Kind == pipeline.EventPush {
			next.Merge.Started = append(next.Merge.Started, r.Composition)
		}
	}
	slices.Sort(next.Merge.Started)
	next.Merge.Sentence = outcome(&next)
	next.Sentence = next.Merge.Sentence
	delete(p.settled, next.Branch)
	if err := p.save(ctx, m, &next); err != nil {
		return err
	}
	p.cfg.Log.Info("change merged", "branch", next.Branch, "head", next.Head, "commit", by, "outcome", next.Merge.Sentence)
	if by == next.Head {
		return nil
	}
	return p.restate(ctx, by)
}

// outcome compares what was predicted with what started.
func outcome(c *pipeline.Proposal) string {
	g := c.Merge
	s := fmt.Sprintf("predicted %s, started %d", c.Runs(), len(g.Started))
	if c.Digest == "" {
		s = "merged before it was planned, started " + pipeline.CountRuns(len(g.Started), 0)
	}
	if missing := lacks(g.Predicted, g.Started); c.Digest != "" && len(missing) > 0 {
		s += "; did not start: " + strings.Join(missing, ", ")
	}
	if more := lacks(g.Started, g.Predicted); c.Digest != "" && len(more) > 0 {
		s += "; not predicted: " + strings.Join(more, ", ")
	}
	switch g.Approval {
	case pipeline.ApprovalWaiting:
		s += "; merged without approval: " + c.Sentence
	case pipeline.ApprovalRefused:
		s += "; merged although it was " + c.Sentence
	}
	return s
}

// lacks returns what is in a and not in b.
func lacks(a, b []pipeline.CompositionName) []string {
	var out []string
	for _, name := range a {
		if !slices.Contains(b, name) {
			out = append(out, string(name))
		}
	}
	return out
}
