package loop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// errNotDone is a sentence for the requester: what was asked is not possible as
// things are, and asking again does not change that.
type errNotDone string

func (e errNotDone) Error() string { return string(e) }

func notDone(format string, args ...any) error { return errNotDone(fmt.Sprintf(format, args...)) }

// steer does what is asked of a run that is there, and records the answer. What is
// done is in the record before the answer is; to be asked twice does no harm.
func (p *Proposals) steer(ctx context.Context, m *moment, a store.AnsweredRequest, user string, asked *review.Request) (store.AnsweredRequest, error) {
	r, err := p.cfg.DB.RunByNumber(ctx, asked.Of.Composition, asked.Of.Number)
	if fault.Is(err, fault.NotFound) {
		err = notDone("there is no run %s", asked.Of)
	}
	var does string
	if err == nil {
		switch asked.Verb {
		case review.VerbRetry:
			return p.retry(ctx, m, a, user, r)
		case review.VerbCancelTree:
			does, err = p.cancelTree(ctx, r, by("cancelled", user, asked))
		default:
			does, err = p.settle(ctx, r, user, asked)
		}
	}
	var no errNotDone
	switch {
	case errors.As(err, &no):
		a.Answer = fmt.Sprintf("%s: not done: %s", user, no)
	case err != nil:
		return a, err
	default:
		a.Answer = user + ": " + does
	}
	p.cfg.Log.Info("request answered", "user", user, "answer", a.Answer)
	return a, p.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.AnswerRequest(p.cfg.Name, a) })
}

// by is the reason of what a person does.
func by(what, user string, asked *review.Request) string {
	s := what + " by " + user
	if asked.Reason != "" {
		s += ": " + asked.Reason
	}
	return s
}

// settle cancels a run or a task of it, or says how a task in doubt ended.
func (p *Proposals) settle(ctx context.Context, r *pipeline.Run, user string, asked *review.Request) (does string, err error) {
	run, t := p.cfg.Runs, r.Task(asked.Task)
	name := fmt.Sprintf("%s/%s", asked.Of, asked.Task)
	isNot := func(s pipeline.State) func(*pipeline.Run) bool {
		return func(r *pipeline.Run) bool { return r.Task(asked.Task).State != s }
	}
	switch {
	case r.State.Terminal():
		return "", notDone("%s has ended as %s", asked.Of, r.State)
	case asked.Task == "":
		return "cancels " + asked.Of.String(), run.CancelNow(ctx, r.ID, by("cancelled", user, asked))
	case t == nil:
		return "", notDone("%s has no task %s", asked.Of, asked.Task)
	case asked.Verb == review.VerbResolve && t.State != pipeline.InDoubt:
		return "", notDone("%s is not in doubt: it is %s", name, cmp.Or(t.Reason, string(t.State)))
	case asked.Verb == review.VerbResolve && asked.To == pipeline.Ready:
		return "starts " + name + " once more",
			run.doNow(ctx, r.ID, engine.Resolved{Task: t.Name, To: asked.To, Reason: by("started once more", user, asked)}, isNot(pipeline.InDoubt))
	case asked.Verb == review.VerbResolve:
		return fmt.Sprintf("settles %s as %s", name, asked.To),
			run.doNow(ctx, r.ID, engine.Resolved{Task: t.Name, To: asked.To, Reason: by("settled", user, asked)}, isNot(pipeline.InDoubt))
	case t.State.Terminal():
		return "", notDone("%s has ended as %s", name, t.State)
	}
	return "cancels " + name, run.doNow(ctx, r.ID, engine.CancelTask{Task: t.Name, Reason: by("cancelled", user, asked)},
		func(r *pipeline.Run) bool { return r.Task(t.Name).Cancel != "" || r.Task(t.Name).State.Terminal() })
}

// cancelTree cancels a run and all that it led to.
func (p *Proposals) cancelTree(ctx context.Context, root *pipeline.Run, reason string) (does string, err error) {
	found := map[pipeline.RunID]bool{}
	// What is cancelled leads to nothing more, but what came before may be just being
	// made. Each look reaches at least one generation further.
	for range engine.MaxDepth + 2 {
		active, err := p.cfg.Runs.Active(ctx)
		if err != nil {
			return "", err
		}
		fresh := false
		for _, r := range active {
			below, err := p.leadsTo(ctx, root.ID, r)
			if err != nil {
				return "", err
			}
			if !below || found[r.ID] {
				continue
			}
			found[r.ID], fresh = true, true
			if !r.Cancel {
				if err := p.cfg.Runs.CancelNow(ctx, r.ID, reason); err != nil {
					return "", err
				}
			}
		}
		if !fresh {
			break
		}
	}
	n := len(found)
	if found[root.ID] {
		n--
	}
	name := fmt.Sprintf("%s#%d", root.Composition, root.Number)
	switch {
	case len(found) == 0:
		return "", notDone("%s has ended as %s, and nothing below it is under way", name, root.State)
	case n == 0:
		return "cancels " + name, nil
	case n == 1:
		return "cancels " + name + " and the run below it", nil
	}
	return fmt.Sprintf("cancels %s and the %d runs below it", name, n), nil
}

// leadsTo reports whether r is the run root, or one that it led to.
func (p *Proposals) leadsTo(ctx context.Context, root pipeline.RunID, r *pipeline.Run) (bool, error) {
	for range engine.MaxDepth + 2 {
		if r.ID == root {
			return true, nil
		}
		if r.Event.Cause == nil {
			return false, nil
		}
		if r.Event.Cause.Run == root {
			return true, nil
		}
		var err error
		if r, err = p.cfg.DB.Run(ctx, r.Event.Cause.Run); fault.Is(err, fault.NotFound) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return false, nil
}

// retry makes a run that goes on from one that has ended badly.
func (p *Proposals) retry(ctx context.Context, m *moment, a store.AnsweredRequest, user string, old *pipeline.Run) (store.AnsweredRequest, error) {
	of, err := p.cfg.DB.Composition(ctx, old.Digest)
	if err != nil {
		return a, err
	}
	why, err := p.notRetried(ctx, m, old, of)
	if err != nil {
		return a, err
	}
	var made *pipeline.Run
	if why == "" {
		if made, err = resumedRun(old, of, user, a.Object); err != nil {
			return a, err
		}
	}
	err = p.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		if made == nil {
			a.Answer = fmt.Sprintf("%s: not done: %s", user, why)
			return tx.AnswerRequest(p.cfg.Name, a)
		}
		if err := tx.CreateRun(made, of); err != nil {
			return err
		}
		a.Answer = fmt.Sprintf("%s: starts %s#%d, which goes on from #%d%s", user, made.Composition, made.Number, old.Number, keeps(made))
		return tx.AnswerRequest(p.cfg.Name, a)
	})
	if err != nil {
		return a, err
	}
	p.cfg.Log.Info("request answered", "user", user, "answer", a.Answer)
	if made != nil {
		p.cfg.Runs.Add(made.Head(), []*pipeline.Run{made}, []*pipeline.Composition{of})
	}
	return a, nil
}

// keeps says which results a run has taken over.
func keeps(r *pipeline.Run) string {
	var names []string
	for i := range r.Tasks {
		if r.Tasks[i].Reused != nil {
			names = append(names, string(r.Tasks[i].Name))
		}
	}
	if len(names) == 0 {
		return " and does all of it again"
	}
	return fmt.Sprintf(" with the %s of %s", map[bool]string{true: "result", false: "results"}[len(names) == 1], list(names))
}

// list joins the first few names.
func list(names []string) string {
	const most = 5
	out := ""
	for i, n := range names[:min(most, len(names))] {
		if i > 0 {
			out += ", "
		}
		out += n
	}
	if n := len(names) - most; n > 0 {
		out += fmt.Sprintf(" and %d more", n)
	}
	return out
}

// notRetried says why no run goes on from old, "" when one may.
func (p *Proposals) notRetried(ctx context.Context, m *moment, old *pipeline.Run, of *pipeline.Composition) (string, error) {
	name := fmt.Sprintf("%s#%d", old.Composition, old.Number)
	if c := old.Event.Cause; c != nil && old.Event.Kind == pipeline.EventCall {
		return fmt.Sprintf("%s was called by %s#%d, which would not hear of it: retry that one", name, c.Composition, c.Number), nil
	}
	switch {
	case !old.State.Terminal():
		return name + " has not ended; cancel it first", nil
	case old.State.Good():
		return fmt.Sprintf("%s has ended as %s, so that nothing is left to do", name, old.State), nil
	}
	if c := m.live.Composition(of.Name); c != nil && c.Suspend {
		return string(of.Name) + " is suspended", nil
	}
	if why := plan.Forbidden(&m.live.Policy, of, old.Event.Repo, plan.Standing(m.live.Repositories, &old.Event, old.Ref, p.cfg.Default), p.cfg.Default); why != "" {
		return why, nil
	}
	active, err := p.cfg.Runs.Active(ctx)
	if err != nil {
		return "", err
	}
	if i := slices.IndexFunc(active, func(r *pipeline.Run) bool { return r.Resumes != nil && r.Resumes.Run == old.ID }); i >= 0 {
		return fmt.Sprintf("%s#%d goes on from it already", active[i].Composition, active[i].Number), nil
	}
	return "", nil
}

// resumedRun makes a run that goes on from old: planned with the same text, for the
// same event and params, with the results that may be taken over.
func resumedRun(old *pipeline.Run, of *pipeline.Composition, by, object string) (*pipeline.Run, error) {
	r := draftRun(&plan.Run{
		Composition: of, Key: plan.RetryKey(old.Key, object), Event: old.Event, Params: old.Params, Group: old.Group,
	}, old.Depth)
	r.Ref, r.Commit = old.Ref, old.Commit
	r.Resumes = &pipeline.Origin{Run: old.ID, Number: old.Number, By: by}
	keep := engine.Reusable(old)
	for i := range r.Tasks {
		t := &r.Tasks[i]
		from := old.Task(t.Name)
		if from == nil || !keep[t.Name] {
			continue
		}
		origin := from.Reused
		if origin == nil {
			origin = &pipeline.Origin{Run: old.ID, Number: old.Number}
		}
		t.State, t.FinishedAt, t.Reused = pipeline.Success, r.CreatedAt, origin
		t.Reason = fmt.Sprintf("taken over from %s#%d, which gave it the same inputs", old.Composition, origin.Number)
		t.Outputs, t.Records, t.Links, t.Exit, t.Child = from.Outputs, from.Records, from.Links, from.Exit, from.Child
	}
	s, err := engine.Next(r, of, nil, engine.Created{}, r.CreatedAt)
	if err != nil {
		return nil, fmt.Errorf("resume run %s: %w", old.ID, err)
	}
	return s.Run, nil
}
