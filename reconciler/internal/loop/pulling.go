package loop

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// observePulls takes in how pull requests are. It does not wait.
// at is when the look began.
func (p *Proposals) observePulls(list []*Discussed, asked []Asked, at time.Time) {
	p.mu.Lock()
	p.pulled, p.asked, p.pulledAt = list, asked, at
	if p.pulled == nil {
		p.pulled = []*Discussed{}
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// pulledSpace holds the reviews of pull requests among those that are refs. Nothing
// there is read from git.
const pulledSpace = "refs/pull/"

func pulledRef(number int, id int64) pipeline.Ref {
	return pipeline.Ref(fmt.Sprintf("%s%d/reviews/%d", pulledSpace, number, id))
}

// pulledObject tells a review from the same one while the pull request was for another
// branch.
func pulledObject(id int64, target string) string { return fmt.Sprintf("%d:%s", id, target) }

// pull takes what is known of pull requests into a moment.
func (m *moment) pull(list []*Discussed) {
	o := *m.Observed
	o.Own = maps.Clone(o.Own)
	if o.Own == nil {
		o.Own = map[pipeline.Ref]string{}
	}
	m.Observed, m.pulled, m.unheard = &o, list, map[int]bool{}
	for _, d := range list {
		if d.Closed && d.Merge == "" || isDoor(&d.Pull) {
			continue // opened again, it needs other reviews; gates remember none
		}
		m.heads[d.Head] = true
		if !d.heard {
			m.unheard[d.Number] = true
		}
		for _, r := range review.Latest(d.Reviews) {
			o.Own[pulledRef(d.Number, r.ID)] = pulledObject(r.ID, d.Target)
		}
	}
}

// firstOfPulls is kept like a branch once pull requests have been looked at.
const firstOfPulls = "pull/"

// pulls brings every pull request up to date.
func (p *Proposals) pulls(ctx context.Context, m *moment, open []store.StoredProposal) error {
	if m.pulled == nil {
		return nil
	}
	known := make(map[string]*store.StoredProposal, len(open))
	for i := range open {
		known[open[i].Branch] = &open[i]
	}
	looked, err := p.cfg.DB.LookedAt(ctx, p.cfg.Name)
	if err != nil {
		return err
	}
	consents, err := p.cfg.DB.Consents(ctx, p.cfg.Name)
	if err != nil {
		return err
	}
	_, before := looked[firstOfPulls]
	var errs []error
	for _, d := range m.pulled {
		if isDoor(&d.Pull) {
			continue
		}
		o := offer{name: pipeline.PullName(d.Number), ref: d.Ref(), pull: d.OfEvent(), head: d.Head, target: d.Target, draft: d.Draft, first: !before}
		o.tip = m.Tips[pipeline.Ref("refs/heads/"+d.Target)]
		o.consent(consents, d.Fork)
		if err := p.pull(ctx, m, known[o.name], d, o); err != nil {
			errs = append(errs, fmt.Errorf("pull request %d: %w", d.Number, err))
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	p.proposedAt = m.pulledAt
	errs = append(errs, p.unproposed(ctx, m, looked))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if before {
		return p.landedPulls(ctx, m, looked)
	}
	return p.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		if err := p.lookAtMain(tx, m); err != nil {
			return err
		}
		return tx.LookAt(p.cfg.Name, firstOfPulls, m.tip)
	})
}

// offer is what somebody proposes, before it is planned.
type offer struct {
	// name of the change, and ref that its checks are of.
	name string
	ref  pipeline.Ref
	pull *pipeline.EventPull // nil when it is a branch
	head pipeline.CommitID
	// target branch, and where it is.
	target string
	tip    pipeline.CommitID
	draft  bool
	// first: it was there at the first look, and starts nothing. closed: nobody has
	// said yet that its head may run. opened: somebody has.
	first, closed, opened bool
	// held by somebody, "" for nobody.
	held string
}

// consent takes in what people said of the change.
func (o *offer) consent(all []store.Consent, fork bool) {
	o.closed = fork
	for _, c := range all {
		switch {
		case c.Branch != o.name:
		case c.Verb == store.ConsentHold:
			o.held = c.By
		case c.Verb == store.ConsentRun && fork && c.Head == o.head:
			o.closed, o.opened = false, true
		}
	}
}

// moved is where a branch is that pull requests are for, and since when.
type moved struct {
	tip pipeline.CommitID
	at  time.Time
}

// movedAt is when it was first seen that a branch is where it is.
func (p *Proposals) movedAt(m *moment, branch string) time.Time {
	tip := m.Tips[pipeline.Ref(headsOf+branch)]
	if p.moved[branch].tip != tip {
		p.moved[branch] = moved{tip, m.now}
		if p.cfg.Look != nil && m.pulledAt.Before(m.now) {
			p.cfg.Look()
		}
	}
	return p.moved[branch].at
}

// pull brings one pull request up to date: it is over, planned anew, or judged by its
// reviews. Its branch may have moved because it was merged, squashed perhaps, and against
// what it became itself its plan would be another one: it waits for a look that began
// later.
func (p *Proposals) pull(ctx context.Context, m *moment, known *store.StoredProposal, d *Discussed, o offer) error {
	if d.Closed {
		return p.over(ctx, m, known, d, o)
	}
	if o.tip == "" {
		return nil // its branch is not seen yet, or gone
	}
	if since := p.movedAt(m, o.target); known != nil && p.settled[o.name].tip != o.tip && m.pulledAt.Before(since) {
		return nil
	}
	at, planned := p.settled[o.name], false
	if at.head != o.head || at.tip != o.tip || at.live != m.live.Commit || at.opened != o.opened || at.target != o.target {
		span, err := p.cfg.Discussion.Between(ctx, o.tip, o.head)
		if err != nil {
			return err
		}
		again := known == nil || known.Head != o.head || known.Base != m.live.Commit || known.Target != o.target || known.Digest == "" ||
			span.movedFrom(known.Fork) // the branch may be looked at later than what is in force
		if again || p.replan[o.name] || o.opened && !at.opened {
			if known, err = p.plan(ctx, m, known, o, span); err != nil {
				return err
			}
			delete(p.replan, o.name)
			planned = true
			if p.cfg.Look != nil && len(review.OwningTeams(known.Needs)) > 0 {
				p.cfg.Look() // who reviewed it already may be in one
			}
		}
		at = settled{head: o.head, tip: o.tip, live: m.live.Commit, people: span.People, unknown: span.Truncated, opened: o.opened, target: o.target}
		p.settled[o.name] = at
	}
	if known.Draft != o.draft {
		known.Draft = o.draft
		if err := p.save(ctx, m, &known.Proposal); err != nil {
			return err
		}
	}
	if !d.heard && d.Unread == notYet && !planned && o.held == "" {
		return nil // what was decided before the start stands until it is read
	}
	at.held, at.closed = o.held, o.closed
	return p.judge(ctx, m, known, at)
}

// over is for a pull request that was merged or closed.
func (p *Proposals) over(ctx context.Context, m *moment, known *store.StoredProposal, d *Discussed, o offer) error {
	if known == nil {
		return nil
	}
	if d.Merge == "" {
		next := known.Proposal
		next.State, next.Sentence = pipeline.ProposalClosed, "it was closed before it was merged"
		delete(p.settled, next.Branch)
		return p.save(ctx, m, &next)
	}
	span, err := p.cfg.Discussion.Between(ctx, o.tip, d.Merge)
	if fault.Is(err, fault.NotFound) {
		return nil // the branch has not been looked at since
	}
	if err != nil || span.Commits > 0 {
		return err
	}
	by := d.Merge
	if _, err := p.cfg.DB.Commit(ctx, by); fault.Is(err, fault.NotFound) {
		by = o.tip // it came with others
	} else if err != nil {
		return err
	}
	return p.mergedBy(ctx, m, known, by, pipeline.Ref("refs/heads/"+o.target))
}

// unproposed notes that branches which the default one contains propose nothing.
func (p *Proposals) unproposed(ctx context.Context, m *moment, looked map[string]pipeline.CommitID) error {
	var errs []error
	for _, ref := range order(m.Tips, p.cfg.Default) {
		branch, head := ref.Branch(), m.Tips[ref]
		if branch == "" || ref == p.cfg.Default || looked[branch] == head || m.tip == "" {
			continue
		}
		at := settled{head: head, tip: m.tip}
		if old := p.settled[string(ref)]; old.head == at.head && old.tip == at.tip {
			continue
		}
		contained, err := p.contained(ctx, m, head)
		if err == nil && contained {
			if err = p.lookAt(ctx, branch, head); err == nil {
				err = p.restate(ctx, head)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("branch %s: %w", branch, err))
			continue
		}
		p.settled[string(ref)] = at
	}
	for branch := range looked {
		_, there := m.Tips[pipeline.Ref("refs/heads/"+branch)]
		if branch != "" && branch != firstOfPulls && !there && pipeline.PullNumber(branch) == 0 {
			errs = append(errs, p.lookAt(ctx, branch, ""))
			delete(p.settled, "refs/heads/"+branch)
		}
	}
	return errors.Join(errs...)
}

// heard returns the reviews of a pull request, each as it was when it was first seen.
func (p *Proposals) heard(ctx context.Context, m *moment, d *Discussed, digest pipeline.Digest) ([]review.Review, error) {
	var list []review.Review
	var news []store.SeenReview
	for _, given := range review.Latest(d.Reviews) {
		ref := pulledRef(d.Number, given.ID)
		object := pulledObject(given.ID, d.Target)
		r := review.OfPull(given, d.Head, d.Standing[given.By])
		seen, known := m.seen[seenKey{ref, object}]
		if !known {
			seen = store.SeenReview{Ref: ref, Object: object, Head: given.Commit, Plan: m.shown[d.Head], At: m.now}
			for k := range m.seen {
				if k.ref == ref {
					seen.Void = "it was for another branch when it was given; review again"
				}
			}
		}
		news = append(news, p.remember(m, seenKey{ref, object}, seen, known, digest, &r)...)
		list = append(list, r)
	}
	return list, p.keepSeen(ctx, news)
}

// remember applies what is kept of a review to it, and returns what is to be kept anew.
func (p *Proposals) remember(m *moment, k seenKey, seen store.SeenReview, known bool, digest pipeline.Digest, r *review.Review) []store.SeenReview {
	void := seen.Void
	if void == "" && digest != "" && !review.SamePlan(seen.Plan, digest) && seen.Plan != "" {
		void = "the plan is another one since; review again"
	}
	var news []store.SeenReview
	if !known || void != seen.Void {
		seen.Void = void
		news = append(news, seen)
		m.seen[k] = seen
	}
	r.Plan = seen.Plan
	if r.At.IsZero() || r.At.After(seen.At) {
		r.At = seen.At
	}
	if r.Void == "" && r.Approve {
		r.Void = seen.Void
	}
	return news
}

func (p *Proposals) keepSeen(ctx context.Context, news []store.SeenReview) error {
	if len(news) == 0 {
		return nil
	}
	return p.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		for _, s := range news {
			if err := tx.SeeReview(p.cfg.Name, s); err != nil {
				return err
			}
		}
		return nil
	})
}

// listen makes what a forge says of a pull request the input of the decision.
func (p *Proposals) listen(ctx context.Context, m *moment, number int, in *review.Input) error {
	in.AtForge = true
	i := slices.IndexFunc(m.pulled, func(d *Discussed) bool { return d.Number == number })
	if i < 0 {
		in.Truncated, in.Unread = true, "the pull request has not been read yet"
		return nil
	}
	d := m.pulled[i]
	var err error
	if in.Reviews, err = p.heard(ctx, m, d, in.Plan); err != nil {
		return err
	}
	in.Groups, in.Standing = review.Members(in.Groups, d.Standing), d.Standing
	in.Authors = append(slices.Clone(in.Authors), review.Behind(d.People)...)
	if d.People.Unknown != "" && !in.AuthorsUnknown {
		in.AuthorsUnknown, in.Nobody = true, d.People.Unknown
	}
	if d.Unread != "" {
		in.Truncated, in.Unread, in.Denied = true, d.Unread, d.denied
	}
	return nil
}

// pullOf is the pull request of a review at a forge, 0 when the ref stands for none.
func pullOf(ref pipeline.Ref) (number int) {
	rest, _ := strings.CutPrefix(string(ref), pulledSpace)
	text, _, _ := strings.Cut(rest, "/")
	number, _ = strconv.Atoi(text)
	return number
}

// isPulled reports whether a ref stands for a review at a forge.
func isPulled(ref pipeline.Ref) bool { return strings.HasPrefix(string(ref), pulledSpace) }
