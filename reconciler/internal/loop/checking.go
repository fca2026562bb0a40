package loop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// checked is the check that a head was last made to show.
type checked struct {
	head   pipeline.CommitID
	digest pipeline.Digest
	tries  int
	due    time.Time // not to be shown earlier
}

// check makes the head of an open pull request show what it comes to, with remarks on
// the lines. What the forge shows is asked of it after a restart. wait is when to look
// again, 0 for never.
func (c *Commenter) check(ctx context.Context, p *pipeline.Proposal, t *plan.Talk) (wait time.Duration, err error) {
	if p.State != pipeline.ProposalOpen {
		delete(c.checks, p.Branch)
		return 0, nil
	}
	if !c.cfg.Forge.Checks() || p.Digest == "" && len(p.Diagnostics) == 0 {
		return 0, nil // it is not planned yet
	}
	want := t.Check()
	raw, err := json.Marshal(want)
	if err != nil {
		return 0, fmt.Errorf("check of %s: %w", p.Branch, err)
	}
	k := c.checks[p.Branch]
	if k.head == p.Head && k.digest == pipeline.DigestOf(raw) {
		return 0, nil
	}
	if wait := time.Until(k.due); wait > 0 {
		return wait, nil
	}
	if !want.Done {
		if err := c.goOn(ctx, p.Head, p.Branch); err != nil {
			return 0, err
		}
	}
	if err := c.cfg.Forge.ShowCheck(ctx, p.Head, want); err != nil {
		k.tries, k.due = again(err, k.tries, longestUnwritten)
		c.checks[p.Branch] = k
		return time.Until(k.due), err
	}
	c.checks[p.Branch] = checked{head: p.Head, digest: pipeline.DigestOf(raw), due: time.Now().Add(restOfComment)}
	if want.Done {
		return 0, c.goOn(ctx, p.Head, "")
	}
	return 0, nil
}

// checksGoing is where it is kept which heads show a check that is under way.
const checksGoing = "checks-going"

// goOn keeps that a head of a change shows a check that is under way, or none of ours for
// "". It is kept before that is shown: a crash leaves no check that nobody ends.
func (c *Commenter) goOn(ctx context.Context, head pipeline.CommitID, change string) error {
	if err := c.readGoing(ctx); err != nil || c.going[head] == change {
		return err
	}
	next := maps.Clone(c.going)
	if next[head] = change; change == "" {
		delete(next, head)
	}
	raw, err := json.Marshal(next)
	if err == nil {
		err = c.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.SetForgeFact(checksGoing, string(raw)) })
	}
	if err == nil {
		c.going = next
	}
	return err
}

func (c *Commenter) readGoing(ctx context.Context) error {
	if c.going != nil {
		return nil
	}
	text, err := c.cfg.DB.ForgeFact(ctx, checksGoing)
	if err != nil {
		return err
	}
	going := map[pipeline.CommitID]string{}
	if text != "" {
		if err := json.Unmarshal([]byte(text), &going); err != nil {
			return fault.New(fault.Internal, "%s in the record: %w", checksGoing, err)
		}
	}
	c.going = going
	return nil
}

// endChecks ends the checks of heads that no open change has any more: nobody looks after
// them. wait is until the first has to be tried again, 0 for never.
func (c *Commenter) endChecks(ctx context.Context, open []store.StoredProposal) (wait time.Duration, err error) {
	if !c.cfg.Forge.Checks() {
		return 0, nil
	}
	if err := c.readGoing(ctx); err != nil {
		return 0, err
	}
	var errs []error
	for _, head := range slices.Sorted(maps.Keys(c.going)) {
		if slices.ContainsFunc(open, func(p store.StoredProposal) bool { return p.Head == head }) {
			continue
		}
		t := c.ending[head]
		if !time.Now().Before(t.due) {
			if err := c.endCheck(ctx, head); err != nil {
				errs = append(errs, err)
				t.became(err)
				c.ending[head] = t
			} else {
				delete(c.ending, head)
				continue
			}
		}
		if left := max(time.Until(t.due), time.Millisecond); wait == 0 || left < wait {
			wait = left
		}
	}
	return wait, errors.Join(errs...)
}

func (c *Commenter) endCheck(ctx context.Context, head pipeline.CommitID) error {
	p, err := c.cfg.DB.Proposal(ctx, c.cfg.Name, c.going[head])
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	title := "its pull request was closed"
	switch {
	case err == nil && p.State == pipeline.ProposalOpen, p.Head != head && p.Head != "":
		title = "another head took its place: " + p.Head.Short()
	case p.Merge != nil:
		title = "its pull request was merged"
	}
	err = c.cfg.Forge.EndCheck(ctx, head, title, "This was under way when "+title+", and is not followed any further here.")
	if err != nil && fault.Is(err, fault.Unavailable) {
		return err
	}
	if err != nil { // the commit may be gone
		c.cfg.Log.Warn("check left as it is", "head", head, "err", err)
	}
	if change := c.going[head]; c.checks[change].head == head {
		delete(c.checks, change) // should the head come back, it shows another one
	}
	return c.goOn(ctx, head, "")
}
