package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

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
	// unheard are those of them of which nothing was read yet.
	unheard map[int]bool
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
