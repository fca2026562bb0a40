package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
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
	if err := c.cfg.Forge.ShowCheck(ctx, p.Head, want); err != nil {
		k.tries++
		k.due = time.Now().Add(min(time.Second<<min(k.tries-1, 8), 5*time.Minute))
		c.checks[p.Branch] = k
		return time.Until(k.due), err
	}
	c.checks[p.Branch] = checked{head: p.Head, digest: pipeline.DigestOf(raw), due: time.Now().Add(restOfComment)}
	return 0, nil
}
