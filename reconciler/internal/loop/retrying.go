package loop

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// Rerun is the button of a check that somebody pressed. Body tells it from another time
// that it was.
type Rerun struct {
	Head pipeline.CommitID
	By   pipeline.Account
	Body pipeline.Digest
	at   time.Time
}

const (
	// mostReruns are kept until they are answered, and no longer than rerunAfter: a
	// button that did nothing for so long is pressed again.
	mostReruns = 100
	rerunAfter = 10 * time.Minute
)

// pressSpace begins what a button that was pressed is kept as. What was done by it follows,
// each with a slash more.
const pressSpace = "rerun/"

func isPress(object string) bool {
	body, ok := strings.CutPrefix(object, pressSpace)
	return ok && !strings.Contains(body, "/")
}

// Rerun takes in that a button was pressed. It never blocks.
func (w *Pulls) Rerun(r Rerun) {
	w.mu.Lock()
	if r.at = time.Now(); len(w.reruns) < mostReruns {
		w.reruns = append(w.reruns, r)
	}
	w.mu.Unlock()
	w.Hint(0)
}

// pressed returns the buttons that are not answered, as what a comment would ask. Those of
// pull requests that are over it answers: their comments and checks nobody follows.
func (w *Pulls) pressed(ctx context.Context) ([]Asked, error) {
	w.mu.Lock()
	list := slices.Clone(w.reruns)
	w.mu.Unlock()
	var out []Asked
	for _, r := range list {
		object := pressSpace + string(r.Body)
		_, err := w.cfg.DB.Request(ctx, w.cfg.Name, object)
		number := w.numberOf(r.Head)
		done := err == nil || time.Since(r.at) > rerunAfter || r.By.Bot || r.By.ID == 0
		if !done && number == 0 {
			err := w.pressedLate(ctx, object, &r)
			if err != nil {
				w.cfg.Log.Warn("button of a pull request that is over not answered", "head", r.Head, "err", err)
			}
			done = !fault.Is(err, fault.Unavailable)
			if !done {
				continue // until a look to come
			}
		}
		if done {
			w.mu.Lock()
			w.reruns = slices.DeleteFunc(w.reruns, func(o Rerun) bool { return o == r })
			w.mu.Unlock()
			continue
		}
		if !fault.Is(err, fault.NotFound) {
			return out, err
		}
		standing, err := w.standing(ctx, r.By)
		if err != nil {
			return out, err
		}
		out = append(out, Asked{
			PullComment: pipeline.PullComment{Pull: number, By: r.By}, Command: review.Command{Verb: string(review.VerbRetry)},
			Object: object, Standing: standing, May: standing.Writes && standing.Known == r.By.ID,
		})
	}
	return out, nil
}

// pressedLate answers the button of a head whose pull request is over by another check, if
// there was one.
func (w *Pulls) pressedLate(ctx context.Context, object string, r *Rerun) error {
	list, err := w.cfg.DB.ProposalsOf(ctx, r.Head)
	i := slices.IndexFunc(list, func(p pipeline.Proposal) bool { return p.Head == r.Head && pipeline.PullNumber(p.Branch) > 0 })
	if err != nil || i < 0 || !w.cfg.Forge.Checks() {
		return err
	}
	p, err := w.cfg.DB.Proposal(ctx, w.cfg.Name, list[i].Branch)
	if err != nil {
		return err
	}
	if p.State == pipeline.ProposalOpen {
		return fault.New(fault.Unavailable, "%s is not listed, and not known to be over", p.Branch)
	}
	t := &plan.Talk{Proposal: &p, Again: object, AgainAnswer: r.By.Login + refusing + "the pull request is not open"}
	asProposed := p
	asProposed.Merge = nil // the runs of its head, whatever came of the merge
	if t.Runs, err = runsOf(ctx, w.cfg.DB, &asProposed); err != nil {
		return err
	}
	c := t.Check()
	w.cfg.Log.Info("button of a pull request that is over answered", "pull", p.Branch, "head", p.Head, "user", r.By.Login)
	if err := w.cfg.Forge.ShowCheck(ctx, p.Head, c); err != nil || c.Done {
		return err
	}
	return w.cfg.Forge.EndCheck(ctx, p.Head, c.Title, c.Summary)
}

// numberOf is an open pull request with the head, 0 for none.
func (w *Pulls) numberOf(head pipeline.CommitID) int {
	for n, d := range w.known {
		if d.Head == head && !d.Closed {
			return n
		}
	}
	return 0
}

// retryAll goes on from all that failed of a change, or plans it anew when nothing did.
// Each run is a request of its own, so that a crash in between makes none of them twice.
func (p *Proposals) retryAll(ctx context.Context, m *moment, r store.AnsweredRequest, a *Asked, c *pipeline.Proposal) error {
	runs, err := runsOf(ctx, p.cfg.DB, c)
	if err != nil {
		return err
	}
	newest := map[pipeline.CompositionName]*pipeline.Run{}
	for _, run := range runs {
		if old := newest[run.Composition]; old == nil || run.Number > old.Number {
			newest[run.Composition] = run
		}
	}
	var did, not []string
	for _, run := range runs {
		if newest[run.Composition] != run {
			continue
		}
		sub := r
		sub.Object = r.Object + "/" + string(run.Composition)
		done, err := p.cfg.DB.Request(ctx, p.cfg.Name, sub.Object)
		if fault.Is(err, fault.NotFound) {
			if !run.State.Terminal() || run.State.Good() {
				continue
			}
			done, err = p.obey(ctx, m.askedBy(a), sub, a.By.Login, review.Request{
				Verb: review.VerbRetry, Of: review.RunName{Composition: run.Composition, Number: run.Number},
			})
		}
		if err != nil {
			return err
		}
		if _, why, no := strings.Cut(done.Answer, refusing); no {
			not = append(not, why)
		} else {
			did = append(did, string(run.Composition))
		}
	}
	slices.Sort(did)
	switch {
	case len(did) > 0:
		return p.answer(ctx, r, a, fmt.Sprintf(": retries %s", strings.Join(did, ", ")), nil)
	case len(not) > 0:
		return p.answer(ctx, r, a, refusing+not[0], nil)
	case c.State != pipeline.ProposalOpen:
		return p.answer(ctx, r, a, refusing+"nothing of it failed", nil)
	}
	delete(p.settled, c.Branch)
	p.replan[c.Branch] = true
	return p.answer(ctx, r, a, ": nothing of it failed; the plan is made anew", nil)
}
