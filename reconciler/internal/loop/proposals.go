package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// Span is what one commit has that another has not.
type Span struct {
	// Commits of it; none when the other contains it. Truncated: there are more.
	Commits   int
	Truncated bool
	// Fork is the newest commit that both have, "" for none.
	Fork pipeline.CommitID
	// People wrote or committed them.
	People []review.Person
	// List are those that could be listed, newest first.
	List []Commit
}

// Commit is one of a Span. Merges: it has several parents.
type Commit struct {
	ID     pipeline.CommitID
	Merges bool
}

// Statement is what somebody's ref points at.
type Statement struct {
	// Target is the commit that it is about.
	Target  pipeline.CommitID
	Message string
	// At is when it says that it was made, zero when it does not.
	At time.Time
	// Signers are the names of whoever signed it, none when it is not signed. Forged
	// says why a signature that is there proves nothing.
	Signers []string
	Forged  string
}

// Draft is a file that is to be reviewed as a commit of its own. Equal drafts have
// the same head.
type Draft struct {
	// File may be "", for a commit that has none.
	File, Text, Message string
	At                  time.Time
	// Onto is the commit that it stands on, which is published with it; nil for none.
	Onto *Draft
}

// Discussion is the side of a repository where people and Maestro talk about its
// commits. What cannot be read or written now is fault.Unavailable.
type Discussion interface {
	Repository
	// Between tells what head has that base has not; an empty base has all but head
	// itself. BetweenIn is Between for a source repository, fault.NotFound when it is
	// not declared any more.
	Between(ctx context.Context, base, head pipeline.CommitID) (Span, error)
	BetweenIn(ctx context.Context, repo string, base, head pipeline.CommitID) (Span, error)
	// Statement reads the object of a ref, its signature by the keys that are allowed
	// at base. An object that says nothing to us is fault.Invalid or fault.NotFound.
	Statement(ctx context.Context, object string, base pipeline.CommitID) (Statement, error)
	// FillPlanned computes a deferred value of a composition before there is a run.
	FillPlanned(ctx context.Context, at pipeline.CommitID, c *pipeline.Composition, b plan.Blank, e pipeline.Event) ([]byte, error)
	// WritePlan attaches the text of a plan to a commit; TellRequester adds a line to
	// what a commit says of requests.
	WritePlan(ctx context.Context, head pipeline.CommitID, text string) error
	TellRequester(ctx context.Context, target pipeline.CommitID, line string) error
	// Head is the commit that a draft has; Publish makes a ref point at it. Remove
	// takes a ref away that points at the object.
	Head(d Draft) (pipeline.CommitID, error)
	Publish(ctx context.Context, ref pipeline.Ref, d Draft) error
	Remove(ctx context.Context, ref pipeline.Ref, object string) error
}

// ProposalsConfig configures Proposals. All fields but URL and the hooks are required.
type ProposalsConfig struct {
	DB         *store.DB
	Discussion Discussion
	Commits    *Commits
	Runs       *Runs
	Log        *slog.Logger
	Name       string
	Default    pipeline.Ref
	// Branches: each branch but the default one is a proposed change. Pulls: the pull
	// requests that Pulls tells of are. Without both, only gates and requests are looked
	// after.
	Branches, Pulls bool
	// Notes: plans are attached to the heads that they are of.
	Notes bool
	// Unsigned reviews and requests count.
	Unsigned        bool
	URL             string
	StatusesChanged func()
	// Introduced are the numbers of the merged pull requests that brought a commit to its
	// branch; nil where there are none.
	Introduced func(ctx context.Context, id pipeline.CommitID) ([]int, error)
	// Look is called when pull requests should be looked at soon; it may be nil.
	Look func()
}

// Observed is where the refs of a repository point at one moment.
type Observed struct {
	Tips map[pipeline.Ref]pipeline.CommitID
	// Own are reviews, requests and gates, with the objects that they point at.
	// Truncated: there are more.
	Own       map[pipeline.Ref]string
	Truncated bool
}

// Proposals looks after what people propose, review and ask for by pushing refs. It
// compares how things are with how they should be, again and again, so that nothing
// depends on seeing each change.
type Proposals struct {
	cfg  ProposalsConfig
	wake chan struct{}
	// doorsMoved has a value after doors was set.
	doorsMoved chan struct{}

	mu       sync.Mutex
	observed *Observed    // nil before the first
	pulled   []*Discussed // nil before the first
	asked    []Asked      // in comments
	pulledAt time.Time    // when the look began that told of them
	awaited  map[int]awaited
	doors    *doors            // nil before the first
	opened   map[string]opened // by the branch of the door

	// Owned by Run.
	settled   map[string]settled     // by branch
	replan    map[string]bool        // changes whose plan somebody wants anew
	origins   map[pipeline.RunID]int // see origin
	said      map[string]statement
	published map[pipeline.Ref]pipeline.CommitID // gates that were not seen yet
	// unpublished says why others are not there.
	unpublished map[pipeline.Ref]string
	proposedAt  time.Time            // of the look at pull requests that was taken in last
	early       bool                 // a gate waits for another such look
	tried       map[string]time.Time // when the ref of a gate was last written
	dismissed   map[string]bool      // what reviewers were told
	wrote       map[pipeline.RunID]writers
	moved       map[string]moved // by branch that pull requests are for
	failures    int
}

// settled is what a branch was last compared with.
type settled struct {
	head, tip, live pipeline.CommitID
	people          []review.Person
	unknown         bool

	// Of pull requests: the target, whether somebody let a head of a fork run, whether
	// that is still to come, and who holds the change.
	target         string
	opened, closed bool
	held           string
}

const (
	// restOfProposals is how often they are looked at when nothing seems to happen:
	// approvals grow old.
	restOfProposals = 30 * time.Second
	// gatherTime lets the record settle before it is looked at for gates.
	gatherTime = 50 * time.Millisecond
	// historyOf is how many earlier runs of a composition a plan looks back at.
	historyOf = 30
	// mostOpenProposals bounds the branches that are planned; the rest is said in the
	// log and waits until some are merged or deleted.
	mostOpenProposals = 1000
)

// NewProposals returns Proposals that do nothing until Run.
func NewProposals(cfg ProposalsConfig) *Proposals {
	return &Proposals{
		cfg: cfg, wake: make(chan struct{}, 1), settled: map[string]settled{}, replan: map[string]bool{}, origins: map[pipeline.RunID]int{}, said: map[string]statement{},
		published: map[pipeline.Ref]pipeline.CommitID{}, unpublished: map[pipeline.Ref]string{}, moved: map[string]moved{}, opened: map[string]opened{},
		doorsMoved: make(chan struct{}, 1), tried: map[string]time.Time{}, dismissed: map[string]bool{},
		wrote: map[pipeline.RunID]writers{},
	}
}

// Observe takes in where the refs point, once Commits has carried out what moved. It
// does not wait.
func (p *Proposals) Observe(o Observed) {
	p.mu.Lock()
	p.observed = &o
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run looks after proposals until ctx ends, and returns nil then.
func (p *Proposals) Run(ctx context.Context) error {
	changed, stop := p.cfg.DB.Watch()
	defer stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var settled <-chan time.Time // of the record, nil while nothing happens in it
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
			if settled == nil {
				settled = time.After(gatherTime)
			}
			continue
		case <-settled:
			// Runs move all the time, and of all that is looked after here only gates
			// follow from that.
			settled = nil
			if err := p.gatesAlone(ctx); err != nil && ctx.Err() == nil {
				p.cfg.Log.Warn("gates not looked after", "err", err)
			}
			continue
		case <-p.wake:
		case <-timer.C:
		}
		next := p.pass(ctx)
		if ctx.Err() != nil {
			return nil
		}
		timer.Reset(next)
	}
}

// moment is what one pass goes by.
type moment struct {
	*Observed
	live *pipeline.Config
	tip  pipeline.CommitID // of the default branch
	now  time.Time
	seen map[seenKey]store.SeenReview
	// shown are the digests of the plans that there were to see before this pass.
	shown map[pipeline.CommitID]pipeline.Digest
	// heads may be under review: those of branches, and of gates once gated.
	heads map[pipeline.CommitID]bool
	gated bool
	next  time.Time // when something becomes too old, zero for never
	// pulled are the pull requests, nil while they are not known.
	pulled   []*Discussed
	asked    []Asked
	pulledAt time.Time
	// awaited are the pull requests whose reviews gates wait for.
	awaited map[int]awaited
}

type seenKey struct {
	ref    pipeline.Ref
	object string
}

// pass looks at everything once and returns when to look again.
func (p *Proposals) pass(ctx context.Context) time.Duration {
	m := p.moment()
	if m == nil {
		return restOfProposals
	}
	if err := p.look(ctx, m); err != nil && ctx.Err() == nil {
		p.failures++
		p.cfg.Log.Warn("proposals not looked after", "err", err, "failures", p.failures)
		return min(time.Second<<min(p.failures-1, 6), time.Minute)
	}
	p.failures = 0
	if wait := m.next.Sub(m.now); !m.next.IsZero() && wait < restOfProposals {
		return max(wait, time.Second)
	}
	return restOfProposals
}

// moment is nil before there is anything to look at.
func (p *Proposals) moment() *moment {
	p.mu.Lock()
	o, pulled, asked, pulledAt := p.observed, p.pulled, p.asked, p.pulledAt
	p.mu.Unlock()
	live := p.cfg.Commits.Live()
	if o == nil || live == nil {
		return nil
	}
	m := &moment{
		Observed: o, live: live, tip: o.Tips[p.cfg.Default], now: time.Now().UTC(),
		shown: map[pipeline.CommitID]pipeline.Digest{}, heads: map[pipeline.CommitID]bool{},
	}
	for ref, id := range o.Tips {
		if ref.Branch() != "" && ref != p.cfg.Default {
			m.heads[id] = true
		}
	}
	if pulled != nil {
		m.asked, m.pulledAt = asked, pulledAt
		m.pull(pulled)
	}
	return m
}

func (p *Proposals) gatesAlone(ctx context.Context) error {
	m := p.moment()
	if m == nil {
		return nil
	}
	if err := p.recall(ctx, m); err != nil {
		return err
	}
	return p.gates(ctx, m)
}

func (p *Proposals) look(ctx context.Context, m *moment) error {
	open, err := p.cfg.DB.OpenProposals(ctx, p.cfg.Name)
	if err != nil {
		return err
	}
	for i := range open {
		m.shown[open[i].Head] = open[i].Digest
	}
	if err := p.recall(ctx, m); err != nil {
		return err
	}
	// What people wait for comes before the plans, of which there may be many.
	errs := []error{p.gates(ctx, m), p.requests(ctx, m), p.commands(ctx, m)}
	if p.cfg.Branches && m.tip != "" {
		errs = append(errs, p.branches(ctx, m, open))
	}
	if p.cfg.Pulls && m.tip != "" {
		errs = append(errs, p.pulls(ctx, m, open))
		if p.early {
			errs = append(errs, p.gates(ctx, m))
		}
	}
	if m.gated { // or else not all heads are known
		errs = append(errs, p.forget(ctx, m))
	}
	return errors.Join(errs...)
}

// branches brings every proposed change up to date.
func (p *Proposals) branches(ctx context.Context, m *moment, open []store.StoredProposal) error {
	known := make(map[string]*store.StoredProposal, len(open))
	for i := range open {
		known[open[i].Branch] = &open[i]
	}
	looked, err := p.cfg.DB.LookedAt(ctx, p.cfg.Name)
	if err != nil {
		return err
	}
	// What is there at the first look is planned, and starts nothing.
	_, before := looked[inForce]
	first := !before
	if !first {
		came := make([]pipeline.Proposal, len(open))
		for i := range open {
			came[i] = open[i].Proposal
		}
		if err := p.landed(ctx, m, came, looked); err != nil {
			return err // what is merged is found once this is known
		}
	}
	var errs []error
	n := 0
	for _, ref := range order(m.Tips, p.cfg.Default) {
		branch := ref.Branch()
		if ref == p.cfg.Default {
			continue
		}
		if n++; n > mostOpenProposals && known[branch] == nil {
			continue
		}
		if err := p.branch(ctx, m, known[branch], branch, m.Tips[ref], first); err != nil {
			errs = append(errs, fmt.Errorf("change %s: %w", branch, err))
		}
		delete(known, branch)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if n > mostOpenProposals {
		p.cfg.Log.Warn("there are more branches than are planned", "branches", n, "planned", mostOpenProposals)
	}
	for _, gone := range known {
		errs = append(errs, p.gone(ctx, m, gone))
	}
	for branch := range looked {
		if _, there := m.Tips[pipeline.Ref("refs/heads/"+branch)]; branch != inForce && !there {
			errs = append(errs, p.lookAt(ctx, branch, ""))
		}
	}
	if err := errors.Join(errs...); err != nil || !first {
		return err
	}
	return p.cfg.DB.Write(ctx, func(tx *store.Tx) error { return p.lookAtMain(tx, m) })
}

func (p *Proposals) lookAt(ctx context.Context, branch string, head pipeline.CommitID) error {
	return p.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.LookAt(p.cfg.Name, branch, head) })
}

// branch brings one change up to date: it is merged, planned anew, or judged by its
// reviews.
func (p *Proposals) branch(ctx context.Context, m *moment, known *store.StoredProposal, branch string, head pipeline.CommitID, first bool) error {
	if known != nil && known.Head != head {
		contained, err := p.contained(ctx, m, known.Head)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if contained {
			if err := p.merged(ctx, m, known); err != nil {
				return err
			}
			known = nil
		}
	}
	at := p.settled[branch]
	if at.head != head || at.tip != m.tip || at.live != m.live.Commit {
		span, err := p.cfg.Discussion.Between(ctx, m.tip, head)
		if err != nil {
			return err
		}
		if span.Commits == 0 && !span.Truncated {
			return p.nothing(ctx, m, known, branch, head)
		}
		at = settled{head: head, tip: m.tip, live: m.live.Commit, people: span.People, unknown: span.Truncated}
		if known == nil || known.Head != head || known.Base != m.live.Commit || known.Digest == "" {
			o := offer{
				name: branch, ref: pipeline.Ref("refs/heads/" + branch), head: head, target: p.cfg.Default.Branch(), tip: m.tip, first: first,
			}
			if known, err = p.plan(ctx, m, known, o, span); err != nil {
				return err
			}
		}
		p.settled[branch] = at
	}
	if known == nil {
		return nil // it proposes nothing
	}
	if err := p.judge(ctx, m, known, at); err != nil {
		return err
	}
	return p.note(ctx, known)
}

// nothing is for a branch that the default one contains.
func (p *Proposals) nothing(ctx context.Context, m *moment, known *store.StoredProposal, branch string, head pipeline.CommitID) error {
	if err := p.lookAt(ctx, branch, head); err != nil {
		return err
	}
	if known != nil {
		if err := p.merged(ctx, m, known); err != nil {
			return err
		}
	} else if err := p.restate(ctx, head); err != nil {
		return err
	}
	p.settled[branch] = settled{head: head, tip: m.tip, live: m.live.Commit}
	return nil
}

// gone is for an open change whose branch was deleted.
func (p *Proposals) gone(ctx context.Context, m *moment, known *store.StoredProposal) error {
	contained, err := p.contained(ctx, m, known.Head)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("change %s: %w", known.Branch, err)
	}
	if contained {
		return p.merged(ctx, m, known)
	}
	next := known.Proposal
	next.State, next.Sentence = pipeline.ProposalClosed, "its branch was deleted before it was merged"
	delete(p.settled, next.Branch)
	return p.save(ctx, m, &next)
}

func (p *Proposals) contained(ctx context.Context, m *moment, head pipeline.CommitID) (bool, error) {
	span, err := p.cfg.Discussion.Between(ctx, m.tip, head)
	return err == nil && span.Commits == 0 && !span.Truncated, err
}

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

// note attaches the plan to the head, once for each text.
func (p *Proposals) note(ctx context.Context, c *store.StoredProposal) error {
	digest := pipeline.DigestOf([]byte(c.Markdown))
	if !p.cfg.Notes || c.Markdown == "" || c.Noted == digest {
		return nil
	}
	if err := p.cfg.Discussion.WritePlan(ctx, c.Head, c.Markdown); err != nil {
		return fmt.Errorf("attach the plan: %w", err)
	}
	c.Noted = digest
	return p.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.NoteProposal(p.cfg.Name, c.Branch, c.Head, digest) })
}

// save keeps a change and what its head's status says of it.
func (p *Proposals) save(ctx context.Context, m *moment, next *pipeline.Proposal) error {
	next.ChangedAt = m.now
	err := p.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.SaveProposal(p.cfg.Name, next) })
	if err != nil {
		return err
	}
	return p.restate(ctx, next.Head)
}

// restate makes the statuses of a commit say what the record says of it now.
func (p *Proposals) restate(ctx context.Context, id pipeline.CommitID) error {
	err := p.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		f, err := p.facts(ctx, id)
		if err != nil {
			return err
		}
		return tx.Desire(plan.RollUp(f))
	})
	if err != nil {
		return fmt.Errorf("status of %s: %w", id.Short(), err)
	}
	p.cfg.Runs.Restate(id)
	if p.cfg.StatusesChanged != nil {
		p.cfg.StatusesChanged()
	}
	return nil
}

// facts reads what the status of a commit is derived from.
func (p *Proposals) facts(ctx context.Context, id pipeline.CommitID) (plan.Facts, error) {
	f := plan.Facts{Commit: id, URL: p.cfg.URL}
	rec, err := p.cfg.DB.Commit(ctx, id)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return f, err
	}
	f.Diagnostics = rec.Diagnostics
	if f.Unread, err = unread(ctx, p.cfg.DB, p.cfg.Name, id); err != nil {
		return f, err
	}
	if f.Verdicts, f.Runs, err = historyOfHead(ctx, p.cfg.DB, pipeline.Head{Commit: id}); err != nil {
		return f, err
	}
	f.Proposals, f.Planning, err = proposalsOf(ctx, p.cfg.DB, id, p.cfg.Default, p.cfg.Branches || p.cfg.Pulls)
	if rec.Commit == "" && len(f.Proposals) > 0 {
		f.Diagnostics = f.Proposals[0].Diagnostics // it was there before the first look
	}
	return f, err
}
