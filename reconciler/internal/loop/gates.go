package loop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

// GateFile is the one file of the commit that stands for a gate.
const GateFile = "maestro-gate.json"

const gateSpace = "refs/maestro/gates/"

// GateRef is where the commit of a gate is found. Names have no slash, so no two
// gates share one.
func GateRef(c pipeline.CompositionName, number int, task pipeline.TaskName) pipeline.Ref {
	return pipeline.Ref(fmt.Sprintf("%s%s/%d/%s", gateSpace, c, number, task))
}

// gate is what people review: all that tells this gate from any other is in it, so
// that its commit is the same whoever makes it, and of this gate only.
type gate struct {
	Run         pipeline.RunID           `json:"run"`
	Composition pipeline.CompositionName `json:"composition"`
	Number      int                      `json:"number"`
	Task        pipeline.TaskName        `json:"task"`
	Commit      pipeline.CommitID        `json:"commit"`
	// Source and Head are set when a source repository started the run.
	Source    string            `json:"source,omitempty"`
	Head      pipeline.CommitID `json:"head,omitempty"`
	Digest    pipeline.Digest   `json:"digest"`
	Params    json.RawMessage   `json:"params,omitempty"`
	Message   string            `json:"message"`
	Approvers []string          `json:"approvers,omitempty"`
	Count     int               `json:"count"`
}

// GateDraft is the commit to be reviewed for a task that is held.
func GateDraft(r *pipeline.Run, t *pipeline.RunTask) (Draft, error) {
	g := gate{
		Run: r.ID, Composition: r.Composition, Number: r.Number, Task: t.Name, Commit: r.Commit, Digest: r.Digest, Params: r.Params,
		Message: t.Message, Approvers: t.Spec.Gate.Approvers, Count: max(t.Spec.Gate.Count, 1),
	}
	if r.Event.Repo != "" {
		g.Source, g.Head = r.Event.Repo, r.Event.Head
	}
	text, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		return Draft{}, fmt.Errorf("gate %s of %s#%d: %w", t.Name, r.Composition, r.Number, err)
	}
	return Draft{
		File: GateFile, Text: string(text) + "\n", At: r.CreatedAt,
		Message: fmt.Sprintf("%s#%d waits at %s\n\n%s\n", r.Composition, r.Number, t.Name, strings.TrimSpace(t.Message)),
	}, nil
}

// Review gives a gate the review of somebody whose word counts. To give it again
// changes nothing. Queues.
func (l *Runs) Review(run pipeline.RunID, task pipeline.TaskName, r pipeline.Review) {
	l.queue(message{review: &gateReview{run, engine.Reviewed{Task: task, Review: r}}})
}

// Withdraw takes the review of somebody back that a gate was given. Queues.
func (l *Runs) Withdraw(run pipeline.RunID, task pipeline.TaskName, by string) {
	l.queue(message{review: &gateReview{run, engine.Withdrawn{Task: task, By: by}}})
}

// Judge says of a gate what else is to be said of it. Queues.
func (l *Runs) Judge(run pipeline.RunID, task pipeline.TaskName, note string) {
	l.queue(message{review: &gateReview{run, engine.Judged{Task: task, Note: note}}})
}

type gateReview struct {
	run   pipeline.RunID
	event engine.Event
}

// gates publishes the gates that hold runs, takes in their reviews, and removes
// those that are settled.
func (p *Proposals) gates(ctx context.Context, m *moment) error {
	active, err := p.cfg.Runs.Active(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(p.wrote, func(id pipeline.RunID, _ writers) bool {
		return !slices.ContainsFunc(active, func(r *pipeline.Run) bool { return r.ID == id })
	})
	var errs []error
	if m.awaited, err = p.originsOf(ctx, active); err != nil {
		return err
	}
	p.await(m.awaited)
	wanted := map[pipeline.Ref]bool{}
	due := doors{open: map[string]door{}, kept: map[string]bool{}, elsewhere: map[string]int{}}
	p.early = false
	for _, r := range active {
		for i := range r.Tasks {
			t := &r.Tasks[i]
			if !isHeld(t) {
				continue
			}
			ref := GateRef(r.Composition, r.Number, t.Name)
			wanted[ref] = true
			due.kept[DoorBranch(r.Composition, r.Number, t.Name)] = true // until it is known that it needs none
			if err := p.gate(ctx, m, ref, r, t, &due); err != nil {
				errs = append(errs, fmt.Errorf("gate %s of %s#%d: %w", t.Name, r.Composition, r.Number, err))
			}
		}
	}
	m.gated = true
	p.forgetDoors(&due)
	p.tellDoors(m, due)
	for ref, object := range m.Own {
		if !strings.HasPrefix(string(ref), gateSpace) || wanted[ref] || !p.mayTry("remove "+string(ref), m.now) {
			continue
		}
		if err := p.cfg.Discussion.Remove(ctx, ref, object); err != nil && !fault.Is(err, fault.Conflict) {
			errs = append(errs, fmt.Errorf("remove %s: %w", ref, err))
		}
		delete(p.published, ref)
	}
	return errors.Join(errs...)
}

// restOfRef is how long nothing is done to the ref of a gate again: the refs that were
// observed last do not show yet that it was, and a server that refuses does so again.
const restOfRef = 10 * time.Second

func (p *Proposals) mayTry(what string, now time.Time) bool {
	if now.Sub(p.tried[what]) < restOfRef {
		return false
	}
	maps.DeleteFunc(p.tried, func(_ string, at time.Time) bool { return now.Sub(at) >= restOfRef })
	p.tried[what] = now
	return true
}

// publish makes a ref point at a draft, and returns the head that it has whether that
// could be done or not: who knows it may review it.
func (p *Proposals) publish(ctx context.Context, m *moment, ref pipeline.Ref, d Draft) (pipeline.CommitID, error) {
	head, err := p.cfg.Discussion.Head(d)
	if err != nil {
		return "", err
	}
	m.heads[head] = true
	switch {
	case m.Own[ref] == string(head):
		delete(p.published, ref) // it is seen, and so is who takes it away
		delete(p.unpublished, ref)
	case p.published[ref] == head && m.Own[ref] == "", !p.mayTry("publish "+string(ref), m.now):
	default:
		if err := p.cfg.Discussion.Publish(ctx, ref, d); err != nil {
			p.unpublished[ref] = err.Error()
			p.cfg.Log.Warn("gate not published", "ref", ref, "head", head, "err", err)
			break
		}
		p.published[ref] = head
		delete(p.unpublished, ref)
		p.cfg.Log.Info("gate published", "ref", ref, "head", head)
	}
	return head, nil
}

// isThere reports whether a ref points at a head that was published.
func (p *Proposals) isThere(m *moment, ref pipeline.Ref, head pipeline.CommitID) bool {
	return m.Own[ref] == string(head) || p.published[ref] == head
}

// gate publishes one gate and takes in its reviews.
func (p *Proposals) gate(ctx context.Context, m *moment, ref pipeline.Ref, r *pipeline.Run, t *pipeline.RunTask, due *doors) error {
	d, err := GateDraft(r, t)
	if err != nil {
		return err
	}
	if p.cfg.Pulls {
		base := empty()
		d.Onto = &base
	}
	head, err := p.publish(ctx, m, ref, d)
	if err != nil {
		return err
	}
	reviews, truncated, err := p.reviews(ctx, m, head, "")
	if err != nil {
		return err
	}
	people, unknown, err := p.writers(ctx, r)
	if err != nil {
		return err
	}
	in := review.Input{
		Head: head, Groups: m.live.Policy.Groups, Authors: people, AuthorsUnknown: unknown,
		Rules:   []review.Rule{{Name: string(t.Name), Approvers: t.Spec.Gate.Approvers, Count: t.Spec.Gate.Count, Echo: t.Spec.Gate.Echo}},
		Commit:  r.Commit,
		Reviews: reviews, Truncated: truncated, Unsigned: p.cfg.Unsigned, Now: m.now,
	}
	plain := in
	heard, err := p.gateAt(ctx, m, r, t, &in)
	if err != nil {
		return err
	}
	decision := review.Approved(in)
	m.before(decision.Until)
	at, err := p.doorway(ctx, m, due, d, r, t, plain, &decision)
	if err != nil {
		return err
	}
	if note := noteOf(at, &decision); engine.WaitsFor(r, t, note) != t.Reason {
		p.cfg.Runs.Judge(r.ID, t.Name, note)
	}
	var counting []pipeline.Review
	for _, o := range decision.Opinions {
		if !o.Counts {
			p.dismiss(ctx, head, o)
			continue
		}
		if o.Approve && decision.Approval == pipeline.ApprovalRefused {
			continue // who refuses takes precedence, whoever came first
		}
		one := o.Review
		one.By = reviewer(in.Reviews, o)
		counting = append(counting, one)
	}
	give, back := toGive(t.Reviews, counting, heard && !in.Truncated)
	for _, by := range back { // before others are given, or the two would be enough
		p.cfg.Runs.Withdraw(r.ID, t.Name, by)
	}
	for _, one := range give {
		p.cfg.Runs.Review(r.ID, t.Name, one)
	}
	return nil
}

// toGive are the reviews that a gate is to be given, of those that count, and back those
// people whose reviews it has and that do not: they were dismissed, or are too old. Where
// not all has been heard what is missing may count still: nothing is taken back then, and
// nobody approves beside it.
func toGive(has, counting []pipeline.Review, heard bool) (give []pipeline.Review, back []string) {
	for _, old := range has {
		if !slices.ContainsFunc(counting, func(c pipeline.Review) bool { return c.By == old.By }) {
			back = append(back, old.By)
		}
	}
	for _, c := range counting {
		if !slices.Contains(has, c) && (heard || len(back) == 0 || !c.Approve) {
			give = append(give, c)
		}
	}
	if !heard {
		back = nil
	}
	return give, back
}

// noteOf is what is said of a gate besides what it waits for: where else it is reviewed,
// why nobody can review it, and why those who have do not count.
func noteOf(at string, d *review.Decision) string {
	const most = 4
	var parts []string
	if at != "" {
		parts = append(parts, at)
	}
	if d.Nobody != "" {
		parts = append(parts, d.Nobody)
	}
	left := 0
	for _, o := range d.Opinions {
		switch {
		case o.Counts:
		case len(parts) >= most:
			left++
		default:
			parts = append(parts, fmt.Sprintf("the review by %s does not count: %s", o.By, o.Why))
		}
	}
	if left > 0 {
		parts = append(parts, fmt.Sprintf("%d more do not count", left))
	}
	return strings.Join(parts, "; ")
}

// reviewer is the one name by which a gate counts a person, who may go by several.
func reviewer(reviews []review.Review, o pipeline.Opinion) string {
	for _, r := range reviews {
		if r.By == o.By && len(r.Names) > 0 && !strings.HasPrefix(r.Names[0], "id:") {
			return slices.Min(r.Names)
		}
	}
	return o.By
}

// dismiss says on the gate why a review does not count, once.
func (p *Proposals) dismiss(ctx context.Context, head pipeline.CommitID, o pipeline.Opinion) {
	line := fmt.Sprintf("the review by %s does not count: %s", o.By, o.Why)
	if p.dismissed[string(head)+line] {
		return
	}
	if err := p.cfg.Discussion.TellRequester(ctx, head, line); err != nil {
		p.cfg.Log.Warn("reviewer not told", "head", head, "err", err)
		return
	}
	p.dismissed[string(head)+line] = true
}

// writers are who wrote or asked for a run. That does not change, and is looked up once.
type writers struct {
	people  []review.Person
	unknown bool
}

func (p *Proposals) writers(ctx context.Context, r *pipeline.Run) ([]review.Person, bool, error) {
	if w, ok := p.wrote[r.ID]; ok {
		return w.people, w.unknown, nil
	}
	people, unknown, err := p.peopleOf(ctx, r)
	if err == nil {
		p.wrote[r.ID] = writers{people, unknown}
	}
	return people, unknown, err
}

// peopleOf returns who wrote or asked for what a run does: of a run that another
// one caused, those of the first, and whoever had one of them done again.
func (p *Proposals) peopleOf(ctx context.Context, r *pipeline.Run) (people []review.Person, unknown bool, err error) {
	all, err := p.ledTo(ctx, r)
	if err != nil {
		return nil, false, err
	}
	e := all[len(all)-1].Event
	head := e.Head
	if head == "" {
		head = r.Commit
	}
	between := p.cfg.Discussion.Between
	if e.Repo != "" {
		between = func(ctx context.Context, base, head pipeline.CommitID) (Span, error) {
			return p.cfg.Discussion.BetweenIn(ctx, e.Repo, base, head)
		}
	}
	span, err := between(ctx, e.Base, head)
	if fault.Is(err, fault.NotFound) { // the base is gone, as after a force-push
		span, err = between(ctx, "", head)
	}
	if err != nil {
		return nil, false, err
	}
	people = span.People
	names := []string{e.Author}
	for _, r := range all {
		if r.Resumes != nil {
			names = append(names, r.Resumes.By)
		}
	}
	for _, name := range names {
		who, err := p.asker(ctx, name)
		if err != nil {
			return nil, false, err
		}
		people = append(people, who...)
	}
	if e.Pull != nil && e.Pull.Author.ID != 0 {
		by := e.Pull.Author
		people = append(people, review.Person{Name: by.Login}, review.Person{Name: by.Identity()})
	}
	return people, span.Truncated, nil
}

// asker is who asked for something: by name and, at a forge, by the account that had the
// login, which stays the same when it takes another one. Nobody for "".
func (p *Proposals) asker(ctx context.Context, login string) (out []review.Person, err error) {
	if login == "" {
		return nil, nil
	}
	out = append(out, review.Person{Name: login})
	if !p.cfg.Pulls {
		return out, nil
	}
	id, err := p.cfg.DB.KnownAccount(ctx, login)
	if id != 0 {
		out = append(out, review.Person{Name: pipeline.Account{ID: id}.Identity()})
	}
	return out, err
}
