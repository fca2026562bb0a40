package loop

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// mostReviews bounds the reviews of one head that are read.
const mostReviews = 200

// recall reads how the reviews were when they were first seen.
func (p *Proposals) recall(ctx context.Context, m *moment) error {
	list, err := p.cfg.DB.SeenReviews(ctx, p.cfg.Name)
	if err != nil {
		return err
	}
	m.seen = make(map[seenKey]store.SeenReview, len(list))
	for _, r := range list {
		m.seen[seenKey{r.Ref, r.Object}] = r
	}
	return nil
}

// forget drops what is known of objects that no ref points at, and voids reviews for
// good: those whose head is not proposed, which need another one when it comes back,
// and those that were taken back or replaced. Whoever may push can push an old tag
// again, so such a one is remembered for as long as it would count; a commit that is
// pointed at again is a new review, because it cannot be told from one.
func (p *Proposals) forget(ctx context.Context, m *moment) error {
	kept := make(map[string]statement, len(p.said))
	for _, object := range m.Own {
		if s, ok := p.said[object]; ok {
			kept[object] = s
		}
	}
	p.said = kept
	var gone, void []store.SeenReview
	for k, r := range m.seen {
		switch there := m.Own[k.ref] == k.object; {
		case isPulled(k.ref) && m.pulled == nil:
		case !there && (m.Truncated || m.unheard[pullOf(k.ref)]):
		case !there && (k.object == string(r.Head) || m.now.Sub(r.At) > review.Lifetime):
			gone = append(gone, r)
		case !there && r.Void == "":
			r.Void = "it was taken back or replaced meanwhile; review again"
			void = append(void, r)
		case r.Void == "" && !m.heads[r.Head]:
			r.Void = "the head was another one meanwhile; review again"
			void = append(void, r)
		}
	}
	if len(gone)+len(void) == 0 {
		return nil
	}
	return p.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		for _, r := range gone {
			if err := tx.ForgetReview(p.cfg.Name, r.Ref, r.Object); err != nil {
				return err
			}
		}
		for _, r := range void {
			if err := tx.SeeReview(p.cfg.Name, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// judge decides what the reviews of a change come to, and records what is new.
func (p *Proposals) judge(ctx context.Context, m *moment, c *store.StoredProposal, at settled) error {
	in := review.Input{
		Head: c.Head, Plan: c.Digest, Groups: m.live.Policy.Groups, Authors: at.people, AuthorsUnknown: at.unknown, Now: m.now,
	}
	for _, n := range c.Needs {
		in.Rules = append(in.Rules, review.RuleOf(n))
	}
	var err error
	if n := pipeline.PullNumber(c.Branch); n > 0 && p.cfg.Pulls {
		err = p.listen(ctx, m, n, &in)
	} else {
		in.Unsigned = p.cfg.Unsigned
		in.Reviews, in.Truncated, err = p.reviews(ctx, m, c.Head, c.Digest)
	}
	if err != nil {
		return err
	}
	d := review.Approved(in)
	for i := range d.Needs {
		d.Needs[i].People = c.Needs[i].People // as the policy names them
	}
	if at.held != "" && d.Approval != pipeline.ApprovalRefused {
		d.Approval, d.Sentence = pipeline.ApprovalWaiting, "held by "+at.held+" until: /maestro hold off"
	}
	m.before(d.Until)
	next := c.Proposal
	next.Approval, next.Sentence, next.Needs, next.Reviews = d.Approval, d.Sentence, d.Needs, d.Opinions
	made := in.Made(&d)
	if next.Decided(&made) && next.Approval == c.Approval && next.Sentence == c.Sentence &&
		reflect.DeepEqual(next.Needs, c.Needs) && slices.Equal(next.Reviews, c.Reviews) {
		return nil
	}
	if !next.Decided(&made) {
		if made.Inputs, err = in.Digest(); err != nil {
			return fmt.Errorf("decide about %s: %w", c.Branch, err)
		}
		next.Decide(made)
	}
	p.cfg.Log.Info("change reviewed", "branch", c.Branch, "head", c.Head, "approval", d.Approval, "reviews", len(d.Opinions), "sentence", d.Sentence)
	c.Proposal = next
	return p.save(ctx, m, &c.Proposal)
}

// before notes when something will be too old.
func (m *moment) before(t time.Time) {
	if !t.IsZero() && (m.next.IsZero() || t.Before(m.next)) {
		m.next = t
	}
}

// reviews reads those of one head. digest is that of its plan now; a review that was
// of another one, or of none, is void for as long as its ref stays.
func (p *Proposals) reviews(ctx context.Context, m *moment, head pipeline.CommitID, digest pipeline.Digest) (list []review.Review, truncated bool, err error) {
	var refs []pipeline.Ref
	for ref := range m.Own {
		if of, _, ok := review.OfReview(ref); ok && of == head {
			refs = append(refs, ref)
		}
	}
	slices.Sort(refs)
	truncated = m.Truncated
	if len(refs) > mostReviews {
		refs, truncated = refs[:mostReviews], true
	}
	var news []store.SeenReview
	for _, ref := range refs {
		_, user, _ := review.OfReview(ref)
		r, named, err := p.read(ctx, m, head, user, m.Own[ref])
		if err != nil {
			return nil, false, err
		}
		seen, known := m.seen[seenKey{ref, m.Own[ref]}]
		if !known {
			seen = store.SeenReview{Ref: ref, Object: m.Own[ref], Head: head, Plan: m.shown[head], At: m.now}
			if named != "" {
				seen.Plan = named
			}
		}
		news = append(news, p.remember(m, seenKey{ref, seen.Object}, seen, known, digest, &r)...)
		if r.Void == "" {
			r.Void = m.voided(seenKey{ref, seen.Object}) // a refusal that was replaced is none
		}
		list = append(list, r)
	}
	return list, truncated, p.keepSeen(ctx, news)
}

// voided says why a review counts for nothing for good, "" when it may.
func (m *moment) voided(k seenKey) string { return m.seen[k].Void }

// read makes a review of what a ref points at. named is the plan that it names.
func (p *Proposals) read(ctx context.Context, m *moment, head pipeline.CommitID, user, object string) (r review.Review, named pipeline.Digest, err error) {
	r = review.Review{Review: pipeline.Review{By: user}, Names: []string{user}, Head: head}
	s, err := p.statement(ctx, m, object)
	if fault.Is(err, fault.Invalid) || fault.Is(err, fault.NotFound) {
		r.Void = "it cannot be read: " + err.Error()
		return r, "", nil
	}
	if err != nil {
		return r, "", err
	}
	said, named, err := review.Parse(s.Message)
	if err != nil {
		r.Void = err.Error()
	}
	said.By, said.At = user, s.At
	r.Review = said
	switch {
	case s.Target != head:
		r.Void = "it is a tag of " + s.Target.Short() + ", and its ref is of " + head.Short()
	case s.Forged != "":
		r.Void = s.Forged
	case len(s.Signers) > 0 && !slices.Contains(s.Signers, user):
		r.Void = fmt.Sprintf("it is signed by %s, and its ref is of %s", s.Signers[0], user)
	case len(s.Signers) > 0:
		r.Signed, r.Names = true, s.Signers
	}
	return r, named, nil
}

// statement reads an object once, by the keys that are allowed now.
func (p *Proposals) statement(ctx context.Context, m *moment, object string) (Statement, error) {
	if s, ok := p.said[object]; ok && s.base == m.live.Commit {
		return s.Statement, s.err
	}
	s, err := p.cfg.Discussion.Statement(ctx, object, m.live.Commit)
	if err == nil || fault.Is(err, fault.Invalid) || fault.Is(err, fault.NotFound) {
		p.said[object] = statement{s, m.live.Commit, err}
	}
	return s, err
}

// statement is one that was read by the keys of a base.
type statement struct {
	Statement
	base pipeline.CommitID
	err  error
}
