package main

import (
	"context"
	"fmt"
	"path"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// askAgain is the pause between two looks for an answer.
const askAgain = 500 * time.Millisecond

// until calls done again and again, until it says so or the time is over. It reports
// whether it did.
func until(ctx context.Context, most time.Duration, done func() (bool, error)) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		ok, err := done()
		if ok || err != nil && ctx.Err() == nil {
			return ok, err
		}
		pause := time.NewTimer(askAgain)
		select {
		case <-ctx.Done():
			pause.Stop()
			return false, nil
		case <-pause.C:
		}
	}
}

var startedRun = regexp.MustCompile(`^starts ([a-z][a-z0-9-]*#[0-9]+)`)

// answer waits until a request is done, which takes its ref away, and says what came of
// it. What was not done is an error that says why.
func (v *voice) answer(ctx context.Context, head, ref string) error {
	if v.dry || v.wait <= 0 {
		return nil
	}
	done, err := until(ctx, v.wait, func() (bool, error) {
		out, err := v.git(ctx, "ls-remote", v.remote, ref)
		return err == nil && strings.TrimSpace(out) == "", err
	})
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !done {
		fmt.Fprintf(v.cmd.ErrOrStderr(), "no answer within %s: it is done, once, as soon as a server serves %s; see: reconciler request --help\n", v.wait, v.remote)
		return nil
	}
	const notes = "refs/notes/maestro/requests"
	if _, err := v.git(ctx, "fetch", "--quiet", v.remote, "+"+notes+":"+notes); err != nil {
		return err
	}
	said, err := v.git(ctx, "notes", "--ref="+notes, "show", head)
	if err != nil {
		return err
	}
	for line := range strings.Lines(said) {
		line, ours := strings.CutSuffix(strings.TrimSpace(line), " ["+path.Base(ref)+"]")
		if !ours {
			continue
		}
		_, what, _ := strings.Cut(line, ": ")
		if why, no := strings.CutPrefix(what, "not done: "); no {
			return &exitError{code: exitFailed, err: fault.New(fault.Conflict, "not done: %s", oneLine(why))}
		}
		fmt.Fprintln(v.cmd.OutOrStdout(), oneLine(what))
		if m := startedRun.FindStringSubmatch(what); m != nil {
			fmt.Fprintf(v.cmd.ErrOrStderr(), "see: reconciler watch %s\n", m[1])
		}
		return nil
	}
	return fault.New(fault.Unavailable, "it was taken away, and the note on %.12s says nothing of it", head)
}

// judged waits until a server has read the review of a change, and says whether it
// counts. before is what it made of an earlier one of the same person, nil for none.
// Without a server that answers there is nothing to say.
func (v *voice) judged(ctx context.Context, c *client, branch, head, user string, before *pipeline.Opinion) error {
	if v.dry || v.wait <= 0 {
		return nil
	}
	var mine *pipeline.Opinion
	var p pipeline.Proposal
	done, err := until(ctx, v.wait, func() (bool, error) {
		var err error
		if p, err = c.proposal(ctx, branch); err != nil {
			return false, err
		}
		mine = opinionOf(&p, head, user)
		return mine != nil && (before == nil || !reflect.DeepEqual(mine, before)), nil
	})
	switch {
	case fault.Is(err, fault.Unavailable):
		return nil // it was said before the push
	case err != nil:
		return err
	case !done:
		fmt.Fprintf(v.cmd.ErrOrStderr(), "the server has not read it within %s; see: reconciler change %s\n", v.wait, branch)
		return ctx.Err()
	case !mine.Counts:
		return &exitError{code: exitFailed, err: fault.New(fault.Conflict, "it does not count: %s", oneLine(mine.Why))}
	}
	fmt.Fprintln(v.cmd.OutOrStdout(), oneLine("it counts: "+p.Sentence))
	return nil
}

// opinionOf is what the server makes of somebody's review of a head, nil for none.
func opinionOf(p *pipeline.Proposal, head, user string) *pipeline.Opinion {
	for i := range p.Reviews {
		if o := &p.Reviews[i]; o.By == user && string(p.Head) == head {
			return o
		}
	}
	return nil
}

// gateJudged is judged for a gate as it was before, whose sentence tells what the review
// has come to.
func (v *voice) gateJudged(ctx context.Context, c *client, before *shownTask, run, user string) error {
	if v.dry || v.wait <= 0 || before == nil {
		return nil
	}
	var t *shownTask
	done, err := until(ctx, v.wait, func() (bool, error) {
		var err error
		t, err = gateTask(ctx, c, run, string(before.Name)) // it may hold nothing any more
		return err == nil && t != nil && (t.Reason != before.Reason || t.State != before.State), err
	})
	switch {
	case fault.Is(err, fault.Unavailable):
		return nil
	case err != nil:
		return err
	case !done:
		fmt.Fprintf(v.cmd.ErrOrStderr(), "the server has not read it within %s; see: reconciler why %s %s\n", v.wait, run, before.Name)
		return ctx.Err()
	}
	if _, why, no := strings.Cut(t.Reason, "the review by "+user+" does not count: "); no {
		why, _, _ = strings.Cut(why, "; the review by ")
		return &exitError{code: exitFailed, err: fault.New(fault.Conflict, "it does not count: %s", oneLine(why))}
	}
	fmt.Fprintln(v.cmd.OutOrStdout(), oneLine(fmt.Sprintf("it counts: %s is %s: %s", t.Name, t.State, t.Reason)))
	return nil
}

// gateTask is the gate of a run; of one that holds several, the one that is named.
func gateTask(ctx context.Context, c *client, run, task string) (*shownTask, error) {
	r, err := c.find(ctx, run)
	if err != nil {
		return nil, err
	}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if string(t.Name) == task || task == "" && t.State == pipeline.Held {
			return t, nil
		}
	}
	return nil, nil
}
