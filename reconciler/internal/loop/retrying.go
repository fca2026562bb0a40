package loop

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
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

// pressed returns the buttons that are not answered, as what a comment would ask.
func (w *Pulls) pressed(ctx context.Context) ([]Asked, error) {
	w.mu.Lock()
	list := slices.Clone(w.reruns)
	w.mu.Unlock()
	var out []Asked
	for _, r := range list {
		object := pressSpace + string(r.Body)
		_, err := w.cfg.DB.Request(ctx, w.cfg.Name, object)
		number := w.numberOf(r.Head)
		if err == nil || time.Since(r.at) > rerunAfter || number == 0 || r.By.Bot || r.By.ID == 0 {
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
