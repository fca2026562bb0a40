package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// Deliver starts what waits for a webhook, on the commit in force, and returns the
// runs. A delivery that has started runs before starts none: those are returned, and
// repeated is true. When nothing starts, the error says why: fault.Invalid when the
// payload does not fit or may not start it, fault.Conflict when it is suspended,
// fault.NotFound when nothing waits for the webhook, fault.Unavailable when that cannot
// be known now. It blocks while another delivery is carried out, and may be called by
// many goroutines at a time.
func (c *Commits) Deliver(ctx context.Context, hook, delivery string, payload json.RawMessage) (runs []pipeline.RunID, repeated bool, err error) {
	select { // one at a time: two of the same must not both be the first
	case c.delivering <- struct{}{}:
		defer func() { <-c.delivering }()
	case <-ctx.Done():
		return nil, false, fault.New(fault.Unavailable, "webhook %s: %w", hook, context.Cause(ctx))
	}
	live := c.Live()
	if live == nil {
		return nil, false, fault.New(fault.Unavailable, "webhook %s: no configuration is in force yet", hook)
	}
	e := pipeline.Event{
		Kind: pipeline.EventWebhook, Ref: c.cfg.Default, Head: live.Commit, Name: hook, ID: delivery, Payload: payload,
	}
	if runs, err = c.delivered(ctx, live, e); err != nil || len(runs) > 0 {
		return runs, true, err
	}
	if e.Author, e.Subject, err = c.cfg.Repository.Describe(ctx, live.Commit); err != nil {
		return nil, false, err
	}
	made, verdicts, err := c.answer(ctx, live, e)
	if err != nil {
		return nil, false, fmt.Errorf("webhook %s: %w", hook, err)
	}
	for _, r := range made {
		runs = append(runs, r.ID)
	}
	if len(runs) == 0 {
		return nil, false, unanswered(hook, verdicts)
	}
	return runs, false, nil
}

// delivered returns the runs that a delivery has started before. Their keys do not
// depend on the commit, so it does not matter what was in force then.
func (c *Commits) delivered(ctx context.Context, live *pipeline.Config, e pipeline.Event) ([]pipeline.RunID, error) {
	var runs []pipeline.RunID
	for i := range live.Compositions {
		o := &live.Compositions[i]
		if !slices.ContainsFunc(o.Triggers, func(t pipeline.Trigger) bool { return t.Webhook != nil && t.Webhook.ID == e.Name }) {
			continue
		}
		r, err := c.cfg.DB.RunByKey(ctx, plan.Key(e, o, nil, 0))
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		runs = append(runs, r.ID)
	}
	return runs, nil
}

// answer makes the runs of a delivery that is new, and the verdicts.
func (c *Commits) answer(ctx context.Context, live *pipeline.Config, e pipeline.Event) ([]*pipeline.Run, []pipeline.Verdict, error) {
	runs, verdicts, err := c.decide(ctx, plan.Input{Default: c.cfg.Default, Base: live, Head: live, Event: e, Now: time.Now()})
	if err != nil || len(verdicts) == 0 {
		return nil, nil, err
	}
	rec, err := c.recordOf(ctx, live, e)
	if err != nil {
		return nil, nil, err
	}
	made, err := c.enact(ctx, deed{
		cfg: live, rec: rec, runs: runs, verdicts: verdicts, partly: true,
		also: func(*store.Tx) error { return nil },
	})
	if err != nil {
		return nil, nil, err
	}
	c.announce(live, pipeline.Head{Commit: live.Commit}, made)
	return made, verdicts, nil
}

// unanswered says why a webhook started nothing.
func unanswered(hook string, verdicts []pipeline.Verdict) error {
	if len(verdicts) == 0 {
		return fault.New(fault.NotFound, "nothing waits for webhook %s", hook)
	}
	kind := fault.Conflict
	why := make([]string, len(verdicts))
	for i, v := range verdicts {
		why[i] = fmt.Sprintf("%s: %s", v.Composition, v.Sentence)
		if v.Outcome == pipeline.VerdictRejected {
			kind = fault.Invalid
		}
	}
	return fault.New(kind, "nothing starts: %s", strings.Join(why, "; "))
}
