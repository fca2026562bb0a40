package loop

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// refusing is in every answer to what was asked and refused.
const refusing = ": not done: "

// commentObject stands for a comment where requests are kept by their objects.
func commentObject(id int64) string { return "comment/" + strconv.FormatInt(id, 10) }

// CommandRef is under which the answers to the comments of a change are kept.
func CommandRef(name string) pipeline.Ref { return pipeline.Ref("refs/" + name + "/comments") }

// commandHelp is one line of what may be asked.
const commandHelp = "plan, run COMPOSITION [NAME=VALUE …], retry, cancel COMPOSITION#N, ok-to-test HEAD, hold [off], why COMPOSITION, help; " +
	"and what reconciler request --help lists"

// commands carries out what comments ask for, each once.
func (p *Proposals) commands(ctx context.Context, m *moment) error {
	var errs []error
	for i := range m.asked {
		a := &m.asked[i]
		if i == mostRequests {
			break
		}
		_, err := p.cfg.DB.Request(ctx, p.cfg.Name, a.Object)
		if fault.Is(err, fault.NotFound) {
			err = p.command(ctx, m, a)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s on pull request %d: %w", a.Object, a.Pull, err))
		}
	}
	if len(m.asked) > 0 && p.cfg.Look != nil {
		p.cfg.Look() // who asked sees a sign at once
	}
	return errors.Join(errs...)
}

// command carries out one, and keeps the answer in the same transaction.
func (p *Proposals) command(ctx context.Context, m *moment, a *Asked) error {
	name := pipeline.PullName(a.Pull)
	r := store.AnsweredRequest{Ref: CommandRef(name), Object: a.Object, At: m.now}
	c, err := p.cfg.DB.Proposal(ctx, p.cfg.Name, name)
	if fault.Is(err, fault.NotFound) {
		i := slices.IndexFunc(m.pulled, func(d *Discussed) bool { return d.Number == a.Pull })
		if i >= 0 {
			return nil // it is planned in a moment
		}
		return p.answer(ctx, r, a, refusing+"no pull request of that number is open", nil)
	}
	if err != nil {
		return err
	}
	r.Target = c.Head
	if !a.May {
		return p.answer(ctx, r, a, refusing+"who asks may not write to the repository", nil)
	}
	open := c.State == pipeline.ProposalOpen
	switch a.Verb {
	case "help", "":
		return p.answer(ctx, r, a, ": "+commandHelp, nil)
	case "why":
		return p.answer(ctx, r, a, ": "+p.why(ctx, &c, a.Rest), nil)
	case "plan":
		if !open {
			return p.answer(ctx, r, a, refusing+"the pull request is not open", nil)
		}
		delete(p.settled, name)
		p.replan[name] = true
		return p.answer(ctx, r, a, ": the plan is made anew", nil)
	case store.ConsentRun:
		return p.okToTest(ctx, m, r, a, &c)
	case store.ConsentHold:
		return p.hold(ctx, m, r, a, name, open)
	case string(review.VerbRetry):
		if a.Rest == "" {
			return p.retryAll(ctx, m, r, a, &c)
		}
	}
	asked, err := review.ParseRequest(a.Verb + " " + a.Rest)
	if err != nil {
		return p.answer(ctx, r, a, refusing+err.Error()+"; /maestro help says what may be asked", nil)
	}
	_, err = p.obey(ctx, m.askedBy(a), r, a.By.Login, asked)
	return err
}

// askedBy is the moment with groups that name who asks by login, where they do it by
// number or team.
func (m *moment) askedBy(a *Asked) *moment {
	own, live := *m, *m.live
	live.Policy.Groups = review.Members(live.Policy.Groups, map[pipeline.Account]review.Standing{a.By: a.Standing})
	for i := range live.Policy.Groups {
		g := &live.Policy.Groups[i]
		if slices.Contains(g.Members, a.By.Identity()) {
			g.Members = append(g.Members, a.By.Login)
		}
	}
	own.live = &live
	return &own
}

// answer keeps an answer, and what follows from it.
func (p *Proposals) answer(ctx context.Context, r store.AnsweredRequest, a *Asked, text string, also func(*store.Tx) error) error {
	r.Answer = a.By.Login + text
	p.cfg.Log.Info("comment answered", "pull", a.Pull, "object", a.Object, "user", a.By.Login, "verb", a.Verb, "answer", r.Answer)
	return p.cfg.DB.Write(ctx, func(tx *store.Tx) error {
		if also != nil {
			if err := also(tx); err != nil {
				return err
			}
		}
		return tx.AnswerRequest(p.cfg.Name, r)
	})
}

// okToTest lets the head of a fork run. It names the head, because somebody may push
// another one while the comment is written.
func (p *Proposals) okToTest(ctx context.Context, m *moment, r store.AnsweredRequest, a *Asked, c *pipeline.Proposal) error {
	i := slices.IndexFunc(m.pulled, func(d *Discussed) bool { return d.Number == a.Pull && !d.Closed })
	why := ""
	switch {
	case i < 0 || c.State != pipeline.ProposalOpen:
		why = "the pull request is not open"
	case !m.pulled[i].Fork:
		why = "it is not from a fork: its checks start by themselves"
	case a.Rest == "":
		why = "name the head that you have looked at: /maestro ok-to-test " + string(c.Head)
	case c.Head != m.pulled[i].Head:
		why = "it has another head meanwhile; look at that one"
	case !review.NamesHead(a.Rest, c.Head):
		why = "the head is " + string(c.Head) + ": look at that one, and name at least 12 digits of it"
	}
	if why != "" {
		return p.answer(ctx, r, a, refusing+why, nil)
	}
	return p.answer(ctx, r, a, ": "+c.Head.Short()+" may run, without secrets and on untrusted agents only", func(tx *store.Tx) error {
		return tx.Consent(p.cfg.Name, store.Consent{Branch: c.Branch, Verb: store.ConsentRun, Head: c.Head, By: a.By.Login, At: m.now})
	})
}

// hold keeps a change from being approved until somebody says otherwise.
func (p *Proposals) hold(ctx context.Context, m *moment, r store.AnsweredRequest, a *Asked, name string, open bool) error {
	switch {
	case !open:
		return p.answer(ctx, r, a, refusing+"the pull request is not open", nil)
	case strings.TrimSpace(a.Rest) == "off":
		return p.answer(ctx, r, a, ": holds it no more", func(tx *store.Tx) error { return tx.Withdraw(p.cfg.Name, name, store.ConsentHold) })
	}
	return p.answer(ctx, r, a, ": holds it", func(tx *store.Tx) error {
		return tx.Consent(p.cfg.Name, store.Consent{Branch: name, Verb: store.ConsentHold, By: a.By.Login, At: m.now})
	})
}

// why says what a composition does with a change, and why.
func (p *Proposals) why(ctx context.Context, c *pipeline.Proposal, of string) string {
	if !pipeline.ValidName(of) {
		return "want: why COMPOSITION"
	}
	var said []string
	for _, v := range plannedVerdicts(c) {
		if string(v.Composition) == of {
			said = append(said, "on merge: "+v.Sentence)
		}
	}
	list, err := p.cfg.DB.Verdicts(ctx, c.Head)
	if err != nil {
		return "the record cannot be read now"
	}
	for _, v := range list {
		if string(v.Composition) == of {
			said = append(said, v.Kind+": "+v.Sentence)
		}
	}
	if len(said) == 0 {
		return "the change has no composition " + of
	}
	slices.Sort(said)
	said = slices.Compact(said)
	if c.State == pipeline.ProposalOpen && c.Approval == pipeline.ApprovalWaiting {
		said = append(said, "the change "+c.Sentence)
	}
	return of + ": " + strings.Join(said, "; ")
}
