package loop

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

// origin is the pull request that brought a run about, 0 for none: the one that it
// checks, or the one whose merge started it or the run that led to it.
func (p *Proposals) origin(ctx context.Context, r *pipeline.Run) (int, error) {
	if !p.cfg.Pulls {
		return 0, nil
	}
	if n := p.origins[r.ID]; n != 0 {
		return n, nil
	}
	e, err := p.causeOf(ctx, r)
	if err != nil {
		return 0, err
	}
	n := pipeline.PullNumber(e.Proposal)
	if n == 0 && e.Kind == pipeline.EventPush && e.Repo == "" {
		list, err := p.cfg.DB.ProposalsOf(ctx, e.Head)
		if err != nil {
			return 0, err
		}
		for i := range list {
			if g := list[i].Merge; g != nil && g.Commit == e.Head {
				n = pipeline.PullNumber(list[i].Branch)
			}
		}
	}
	if n != 0 {
		p.origins[r.ID] = n
	}
	return n, nil
}

// causeOf is the event that began it all: of a run that another one caused, that of the
// first.
func (p *Proposals) causeOf(ctx context.Context, r *pipeline.Run) (pipeline.Event, error) {
	all, err := p.ledTo(ctx, r)
	return all[len(all)-1].Event, err
}

// ledTo are a run, the one that caused it, and so on to the first.
func (p *Proposals) ledTo(ctx context.Context, r *pipeline.Run) ([]*pipeline.Run, error) {
	const deepest = 64 // more than calls may nest
	all := []*pipeline.Run{r}
	for range deepest {
		if r.Event.Cause == nil {
			break
		}
		var err error
		if r, err = p.cfg.DB.Run(ctx, r.Event.Cause.Run); err != nil {
			return all, err
		}
		all = append(all, r)
	}
	return all, nil
}

// awaited says why a pull request is read. Gates wait for it; cause is what began the
// run whose gate it is the door of, nil when it is none.
type awaited struct {
	gates int
	cause *pipeline.Event
}

// await notes which pull requests have gates to be reviewed, so that they are read
// although they are merged.
func (p *Proposals) await(gates map[int]awaited) {
	p.mu.Lock()
	before := p.awaited
	p.awaited = gates
	p.mu.Unlock()
	for n := range gates {
		if _, ok := before[n]; !ok && p.cfg.Look != nil {
			p.cfg.Look()
			return
		}
	}
}

// awaitedPulls are the pull requests whose reviews gates wait for.
func (p *Proposals) awaitedPulls() map[int]awaited {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.awaited
}

var gateNameRE = regexp.MustCompile(`\b([a-z][a-z0-9-]*#[0-9]+)(/[a-z][a-z0-9-]*)?`)

// means reports whether a review is about a gate: it names it or its run, or there is
// no other gate that it could be about.
func means(body string, r *pipeline.Run, t *pipeline.RunTask, only bool) bool {
	all := gateNameRE.FindAllStringSubmatch(body, -1)
	run := fmt.Sprintf("%s#%d", r.Composition, r.Number)
	return len(all) == 0 && only || slices.ContainsFunc(all, func(m []string) bool {
		return m[1] == run && (m[2] == "" || m[2] == "/"+string(t.Name))
	})
}

// gateAt makes the reviews of the pull request that a run comes from the input of the
// decision on one of its gates. A review counts for a gate when it was given after the
// gate was reached: an earlier one was about the change, not about going on. At a door
// all of them are about the gate. heard is false while there may be a pull request that
// has not been read.
func (p *Proposals) gateAt(ctx context.Context, m *moment, r *pipeline.Run, t *pipeline.RunTask, in *review.Input) (heard bool, err error) {
	n, err := p.origin(ctx, r)
	if err != nil {
		return false, err
	}
	own := n == 0
	if own {
		door := p.doorOf(DoorBranch(r.Composition, r.Number, t.Name))
		if n = door.number; n == 0 {
			return !p.cfg.Pulls || door.problem != "", nil
		}
	}
	d := m.pulledOf(n)
	if d == nil || t.StartedAt.IsZero() || d.readAt.Before(t.StartedAt) {
		return false, nil
	}
	in.Groups = review.Members(in.Groups, d.Standing)
	in.Authors = append(slices.Clone(in.Authors), review.Behind(d.People)...)
	if d.People.Unknown != "" && !in.AuthorsUnknown {
		in.AuthorsUnknown, in.Nobody = true, d.People.Unknown
	}
	if d.Unread != "" {
		in.Truncated, in.Unread = true, d.Unread
	}
	for _, given := range review.Latest(d.Reviews) {
		if own {
			in.Reviews = append(in.Reviews, review.OfPull(given, in.Head, d.Standing[given.By]))
			continue
		}
		early := !given.At.After(t.StartedAt)
		if !means(given.Body, r, t, m.awaited[n].gates == 1) || early && !meantAsWell(&given, r, t) {
			continue
		}
		one := review.OfPull(given, d.Head, d.Standing[given.By])
		if one.Head == d.Head {
			one.Head = in.Head
		}
		if early && one.Void == "" {
			one.Void = "it was given before the gate was reached, or in the same second; review again"
		}
		in.Reviews = append(in.Reviews, one)
	}
	return true, nil
}

// meantAsWell reports whether a review that came too early to count may have been about
// the gate all the same, so that whoever gave it has to be told: it names the gate, or it
// was given in the second in which the gate was reached. The forge cuts its times to
// seconds, so that nobody can tell which of the two came first.
func meantAsWell(given *pipeline.PullReview, r *pipeline.Run, t *pipeline.RunTask) bool {
	return means(given.Body, r, t, false) || !given.At.Before(t.StartedAt.Truncate(time.Second))
}

// originsOf counts the gates of each pull request, and forgets runs that have ended.
func (p *Proposals) originsOf(ctx context.Context, active []*pipeline.Run) (map[int]awaited, error) {
	gates, still := map[int]awaited{}, map[pipeline.RunID]int{}
	for _, r := range active {
		held := 0
		for i := range r.Tasks {
			if isHeld(&r.Tasks[i]) {
				held++
			}
		}
		if held == 0 {
			continue
		}
		n, err := p.origin(ctx, r)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		if n != 0 {
			gates[n] = awaited{gates: gates[n].gates + held}
			still[r.ID] = n
			continue
		}
		cause, err := p.causeOf(ctx, r)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		for i := range r.Tasks {
			if at := p.doorOf(DoorBranch(r.Composition, r.Number, r.Tasks[i].Name)).number; at > 0 && isHeld(&r.Tasks[i]) {
				gates[at] = awaited{gates: 1, cause: &cause}
			}
		}
	}
	p.origins = still
	return gates, nil
}

// isHeld reports whether a task is a gate that can be reviewed.
func isHeld(t *pipeline.RunTask) bool {
	return t.State == pipeline.Held && t.Spec.Gate != nil && (t.Message != "" || !t.Spec.Deferred)
}
