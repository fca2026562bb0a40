package loop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// pullsKey is how the record calls the pull requests of a source repository.
func pullsKey(r *pipeline.Repository) string { return SourceKey(r) + " pulls" }

// AsksForPulls reports whether a trigger is about pull requests of the source repository
// of that name. No others need to be looked at.
func AsksForPulls(cfg *pipeline.Config, repo string) bool {
	return slices.ContainsFunc(cfg.Compositions, func(c pipeline.Composition) bool {
		return slices.ContainsFunc(c.Triggers, func(t pipeline.Trigger) bool { return t.PullRequest != nil && t.Repo() == repo })
	})
}

// mostClosedPulls bounds what is remembered of pull requests that are not open: one that
// is opened again, or that a list left out, is not taken for another one.
const mostClosedPulls = 1000

// ObservePulls is ObserveSource for all the open pull requests of a source repository:
// one that was opened, or whose head or target is another one than was ever seen, starts
// runs of what is in force. The first look is a baseline. What could not be done it
// returns, and does at the next call; a *LeftError is of single pull requests, each of
// which is tried at the first call that comes after a pause of its own.
func (c *Commits) ObservePulls(ctx context.Context, s *Source, open []pipeline.Pull) error {
	key := pullsKey(&s.Repository)
	seen, err := c.cfg.DB.ObservedRefs(ctx, key)
	if err != nil {
		return fmt.Errorf("read observed pull requests: %w", err)
	}
	_, known := seen[baseline]
	delete(seen, baseline)
	if !known {
		return c.cfg.DB.Write(ctx, func(tx *store.Tx) error {
			for i := range open {
				if err := tx.ObserveRef(key, pullSeen(&open[i]), open[i].Head); err != nil {
					return err
				}
			}
			return tx.ObserveRef(key, baseline, "seen")
		})
	}
	if err := c.forgetPulls(ctx, key, seen, open); err != nil {
		return err
	}
	alone := map[pulled]trouble{}
	for i := range open {
		if p := &open[i]; seen[pullSeen(p)] != p.Head && ctx.Err() == nil {
			k := pulled{pullSeen(p), p.Head}
			t := s.alone[k]
			if !time.Now().Before(t.due) {
				t.became(c.pulled(ctx, s, p))
				if t.err != nil && ctx.Err() == nil {
					c.cfg.Log.Warn("pull request of a source not taken in", "source", s.Name, "pull", p.Number, "head", p.Head, "err", t.err, "tries", t.tries)
				}
			}
			if t.err != nil {
				alone[k] = t
			}
		}
	}
	s.alone = alone
	return leftOf(alone)
}

// pulled is a pull request of a source repository at a head.
type pulled struct {
	seen pipeline.Ref
	head pipeline.CommitID
}

// LeftError is of some pull requests that could not be taken in while the others were.
type LeftError struct {
	err error
	due time.Time
}

func (e *LeftError) Error() string { return e.err.Error() }

// Unwrap returns why they could not.
func (e *LeftError) Unwrap() error { return e.err }

// RetryAt is when the first of them is due.
func (e *LeftError) RetryAt() time.Time { return e.due }

func leftOf(alone map[pulled]trouble) error {
	var out *LeftError
	var errs []error
	inOrder := func(a, b pulled) int {
		return cmp.Or(cmp.Compare(a.seen, b.seen), cmp.Compare(a.head, b.head))
	}
	for _, k := range slices.SortedFunc(maps.Keys(alone), inOrder) {
		t := alone[k]
		errs = append(errs, fmt.Errorf("%s at %s: %w", k.seen, k.head.Short(), t.err))
		if out == nil || t.due.Before(out.due) {
			out = &LeftError{due: t.due}
		}
	}
	if out == nil {
		return nil
	}
	out.err = errors.Join(errs...)
	return out
}

// pullSeen is what a pull request is kept as: with another target it is another event.
// The names are in the order of the numbers.
func pullSeen(p *pipeline.Pull) pipeline.Ref {
	return pipeline.Ref(fmt.Sprintf("%s/%s", pullSpace(p), p.Target))
}

func pullSpace(p *pipeline.Pull) string { return fmt.Sprintf("refs/pull/%010d", p.Number) }

// forgetPulls forgets the oldest pull requests that are not open, when there are many.
func (c *Commits) forgetPulls(ctx context.Context, key string, seen map[pipeline.Ref]pipeline.CommitID, open []pipeline.Pull) error {
	if len(seen) <= mostClosedPulls {
		return nil
	}
	there := map[string]bool{}
	for i := range open {
		there[pullSpace(&open[i])] = true
	}
	closed := slices.DeleteFunc(slices.Sorted(maps.Keys(seen)), func(ref pipeline.Ref) bool {
		space := strings.SplitN(string(ref), "/", 4)
		return there[strings.Join(space[:min(3, len(space))], "/")]
	})
	if len(closed) <= mostClosedPulls {
		return nil
	}
	return c.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		for _, ref := range closed[:len(closed)-mostClosedPulls] {
			if err := tx.ObserveRef(key, ref, ""); err != nil {
				return err
			}
		}
		return nil
	})
}

// pulled carries out a pull request that was opened or has moved. Of a fork nothing is
// fetched, because nothing of it runs.
func (c *Commits) pulled(ctx context.Context, s *Source, p *pipeline.Pull) error {
	in := plan.Input{Event: pipeline.Event{
		Kind: pipeline.EventPullRequest, Ref: p.Ref(), Head: p.Head,
		Proposal: s.Name + "/" + pipeline.PullName(p.Number), Target: p.Target, Pull: p.OfEvent(),
	}}
	var fork pipeline.CommitID
	if p.Fork {
		in.PathsUnknown = true
		in.Event.Author, in.Event.Subject = p.Author.Login, fmt.Sprintf("pull request %d, which comes from a fork", p.Number)
	} else {
		target := pipeline.Ref("refs/heads/" + p.Target)
		at, err := s.Bring(ctx, []pipeline.Ref{p.Ref(), target})
		if err != nil {
			return err
		}
		if at[p.Ref()] != p.Head || at[target] == "" {
			// What runs is what somebody pushed to the branch, whatever the forge says.
			return fault.New(fault.Unavailable, "git and the forge do not agree on where its branches are; it is looked at again")
		}
		span, err := s.Between(ctx, at[target], p.Head)
		if err != nil {
			return err
		}
		in.Event.Base = at[target]
		if len(span.Others) == 0 { // else all that there is may have changed
			fork = span.Fork
		}
	}
	return c.ofSource(ctx, s, in, fork, func(tx *store.Tx) error {
		return tx.ObserveRef(pullsKey(&s.Repository), pullSeen(p), p.Head)
	})
}
