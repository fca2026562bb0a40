package loop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// mostRequests bounds the requests that one pass carries out.
const mostRequests = 100

// requests carries out what people ask for, each once, answers it, and takes its
// ref away.
func (p *Proposals) requests(ctx context.Context, m *moment) error {
	var errs []error
	done := 0
	for _, ref := range slices.Sorted(maps.Keys(m.Own)) {
		user, ok := review.OfRequest(ref)
		if !ok {
			continue
		}
		if done++; done > mostRequests {
			break
		}
		if err := p.request(ctx, m, ref, user, m.Own[ref]); err != nil {
			errs = append(errs, fmt.Errorf("request %s: %w", ref, err))
		}
	}
	return errors.Join(errs...)
}

func (p *Proposals) request(ctx context.Context, m *moment, ref pipeline.Ref, user, object string) error {
	answered, err := p.cfg.DB.Request(ctx, p.cfg.Name, object)
	if fault.Is(err, fault.NotFound) {
		answered, err = p.carryOut(ctx, m, ref, user, object)
	}
	if err != nil {
		return err
	}
	if !answered.Told && answered.Target != "" {
		if err := p.cfg.Discussion.TellRequester(ctx, answered.Target, answered.Answer+mark(ref)); err != nil {
			return err
		}
		if err := p.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.RequestTold(p.cfg.Name, object) }); err != nil {
			return err
		}
	}
	if err := p.cfg.Discussion.Remove(ctx, ref, object); err != nil && !fault.Is(err, fault.Conflict) {
		return err
	}
	return nil
}

var plainMark = regexp.MustCompile(`^[A-Za-z0-9._-]{1,40}$`)

// mark tells an answer from others of the same words, by the last part of the request's
// ref: whoever made the ref finds it.
func mark(ref pipeline.Ref) string {
	if last := path.Base(string(ref)); plainMark.MatchString(last) {
		return " [" + last + "]"
	}
	return ""
}

// carryOut does what is asked and records it in one transaction.
func (p *Proposals) carryOut(ctx context.Context, m *moment, ref pipeline.Ref, user, object string) (store.AnsweredRequest, error) {
	a := store.AnsweredRequest{Ref: ref, Object: object, At: m.now}
	s, err := p.statement(ctx, m, object)
	if err != nil && !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.NotFound) {
		return a, err
	}
	a.Target = s.Target
	if err != nil {
		return p.refuse(ctx, a, user, err.Error())
	}
	if why := p.mistrust(&s, user, m); why != "" {
		return p.refuse(ctx, a, user, why)
	}
	asked, err := review.ParseRequest(s.Message)
	if err != nil {
		return p.refuse(ctx, a, user, err.Error())
	}
	return p.obey(ctx, m, a, user, asked)
}

// refuse keeps the answer that nothing is done.
func (p *Proposals) refuse(ctx context.Context, a store.AnsweredRequest, user, why string) (store.AnsweredRequest, error) {
	a.Answer = user + refusing + why
	p.cfg.Log.Info("request refused", "ref", a.Ref, "user", user, "why", why)
	return a, p.cfg.DB.Write(ctx, func(tx *store.Tx) error { return tx.AnswerRequest(p.cfg.Name, a) })
}

// obey does what somebody who is known asks for, when the policy lets them.
func (p *Proposals) obey(ctx context.Context, m *moment, a store.AnsweredRequest, user string, asked review.Request) (store.AnsweredRequest, error) {
	composition := asked.Of.Composition
	if asked.Run != nil {
		composition = asked.Run.Composition
	}
	if why := plan.MayNotAsk(&m.live.Policy, string(asked.Verb), composition, user); why != "" {
		return p.refuse(ctx, a, user, why)
	}
	if asked.Verb == review.VerbRun {
		return p.run(ctx, m, a, user, asked.Run)
	}
	return p.steer(ctx, m, a, user, &asked)
}

// mistrust says why a statement is not taken for its user's, "" when it is.
func (p *Proposals) mistrust(s *Statement, user string, m *moment) string {
	switch {
	case s.Forged != "":
		return s.Forged
	case len(s.Signers) > 0 && !slices.Contains(s.Signers, user):
		return fmt.Sprintf("it is signed by %s, and its ref is of %s", s.Signers[0], user)
	case len(s.Signers) == 0 && !p.cfg.Unsigned:
		return "it is not signed; sign it with a key that allowed_signers on the default branch names"
	case !s.At.IsZero() && m.now.Sub(s.At) > review.Lifetime:
		return "it was made more than a day ago; ask again"
	}
	return ""
}

// run starts a run that somebody asks for, of what is in force.
func (p *Proposals) run(ctx context.Context, m *moment, a store.AnsweredRequest, user string, asked *review.RunRequest) (store.AnsweredRequest, error) {
	started, verdict, err := p.planned(ctx, m, user, a.Object, asked)
	if err != nil {
		return a, err
	}
	var made *pipeline.Run
	err = p.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		if started == nil {
			a.Answer = fmt.Sprintf("%s: not done: %s", user, verdict.Sentence)
			if verdict.Composition != "" {
				if err := tx.RecordVerdicts([]pipeline.Verdict{verdict}); err != nil {
					return err
				}
			}
			return tx.AnswerRequest(p.cfg.Name, a)
		}
		if made, err = newRun(started); err != nil {
			return err
		}
		if err := tx.CreateRun(made, started.Composition, calledBy(m.live, started.Composition)...); err != nil {
			return err
		}
		verdict.Run = made.ID
		if err := tx.RecordVerdicts([]pipeline.Verdict{verdict}); err != nil {
			return err
		}
		a.Answer = fmt.Sprintf("%s: starts %s#%d", user, made.Composition, made.Number)
		return tx.AnswerRequest(p.cfg.Name, a)
	})
	if err != nil {
		return a, err
	}
	p.cfg.Log.Info("request answered", "user", user, "answer", a.Answer)
	if made != nil {
		p.cfg.Runs.Add(made.Head(), []*pipeline.Run{made}, []*pipeline.Composition{started.Composition})
	}
	return a, nil
}

// planned returns the run to be made, nil when there is none, and the verdict that says
// why; one without a composition is not for the record.
func (p *Proposals) planned(
	ctx context.Context, m *moment, user, object string, asked *review.RunRequest,
) (run *plan.Run, v pipeline.Verdict, err error) {
	c := m.live.Composition(asked.Composition)
	if c == nil {
		v.Sentence = fmt.Sprintf("there is no composition %s on %s", asked.Composition, p.cfg.Default.Branch())
		return nil, v, nil
	}
	params, err := textParams(c, asked.Params)
	if err != nil {
		return nil, v, err
	}
	out, err := p.filled(ctx, plan.Input{
		Default: p.cfg.Default, Base: m.live, Head: m.live, Params: params, Now: m.now,
		Event: pipeline.Event{
			Kind: pipeline.EventManual, Ref: p.cfg.Default, Head: m.live.Commit, Author: user, Name: string(asked.Composition), ID: object,
		},
	})
	if err != nil {
		return nil, v, err
	}
	v.Sentence = fmt.Sprintf("%s has no manual trigger", asked.Composition)
	if i := slices.IndexFunc(out.Verdicts, func(v pipeline.Verdict) bool { return v.Composition == asked.Composition }); i >= 0 {
		v = out.Verdicts[i]
	}
	if i := slices.IndexFunc(out.Runs, func(r plan.Run) bool { return r.Name == asked.Composition && !r.Open }); i >= 0 {
		run = &out.Runs[i]
	}
	return run, v, nil
}

// textParams reads text as the composition declares it: as it stands where a string is
// wanted, else as JSON where it is JSON.
func textParams(c *pipeline.Composition, given []review.Param) (json.RawMessage, error) {
	out := map[string]json.RawMessage{}
	for _, g := range given {
		text, err := json.Marshal(g.Value)
		if err != nil {
			return nil, fmt.Errorf("param %s: %w", g.Name, err)
		}
		out[g.Name] = text
		i := slices.IndexFunc(c.Params, func(f pipeline.Field) bool { return f.Name == g.Name })
		if i < 0 || !json.Valid([]byte(g.Value)) {
			continue
		}
		if t := &c.Params[i].Type; len(t.CheckJSON(text)) > 0 {
			out[g.Name] = json.RawMessage(g.Value)
		}
	}
	return json.Marshal(out)
}
