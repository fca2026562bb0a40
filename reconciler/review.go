package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func newReview() *cobra.Command {
	v := voice{}
	var c client
	var refuse bool
	var text string
	cmd := &cobra.Command{
		Use: "review BRANCH|COMPOSITION#N[/TASK]", Short: "Approve or refuse a change or a gate", Args: cobra.ExactArgs(1),
		Long: `Approve or refuse a proposed change, or a gate that holds a run. Run it in a clone of
the ops repository: a review is a tag that is pushed under refs/reviews/, and this
command prints the git commands that make it. The tag is signed when your git signs
tags (git config gpg.format ssh, and user.signingKey).

It names the plan that the server shows, so that it counts for that plan only. What the
server makes of it is printed; a review that does not count is exit code 1.`,
		Example: "  reconciler review feature/louder\n  reconciler review feature/louder --refuse -m \"not on a Friday\"\n  reconciler review release#7/confirm",
		RunE: func(cmd *cobra.Command, args []string) error {
			v.cmd = cmd
			ctx := cmd.Context()
			head, digest, err := v.reviewed(ctx, &c, args[0])
			if err != nil {
				return err
			}
			user, err := v.who(ctx)
			if err != nil {
				return err
			}
			message := "approve"
			if refuse {
				message = "refuse"
			}
			if text != "" {
				message += "\n\n" + text
			}
			if digest != "" {
				message += "\n\nplan: " + string(digest)
			}
			name, task, isGate := cutGate(args[0])
			run := strings.Replace(name, "/", "#", 1)
			var before *shownTask
			if isGate { // it is no failure that nobody can be asked
				before, _ = gateTask(ctx, &c, run, task)
			}
			// The times of tags are in seconds, so a review is not told from an earlier
			// one by its time.
			var earlier *pipeline.Opinion
			if p, err := c.proposal(ctx, args[0]); err == nil {
				earlier = opinionOf(&p, head, user)
			}
			if err := v.say(ctx, head, message, fmt.Sprintf("refs/reviews/%s/%s", head, user)); err != nil {
				return err
			}
			if isGate {
				return v.gateJudged(ctx, &c, before, run, user)
			}
			return v.judged(ctx, &c, args[0], head, user, earlier)
		},
	}
	v.flags(cmd)
	serverFlag(cmd, &c)
	cmd.Flags().BoolVar(&refuse, "refuse", false, "refuse instead")
	cmd.Flags().StringVarP(&text, "message", "m", "", "why")
	return cmd
}

// reviewed returns the commit that the review is of, and the plan that it has.
func (v *voice) reviewed(ctx context.Context, c *client, what string) (head string, plan pipeline.Digest, err error) {
	if name, task, isGate := cutGate(what); isGate {
		head, err := v.gate(ctx, name, task)
		return head, "", err
	}
	head, err = v.tip(ctx, "refs/heads/"+what)
	if err != nil {
		return "", "", err
	}
	p, err := c.proposal(ctx, what)
	switch {
	case fault.Is(err, fault.Unavailable):
		fmt.Fprintln(v.cmd.ErrOrStderr(), "note: no server answers, so the review names no plan; it counts for the one that is shown when it arrives")
	case err != nil:
		return "", "", err
	case string(p.Head) != head || p.Digest == "":
		return "", "", fault.New(fault.Conflict, "%s is at %.12s and its plan is of %s: look at it again when the plan is there, with: reconciler change %s", what, head, p.Head.Short(), what)
	default:
		fmt.Fprintln(v.cmd.ErrOrStderr(), oneLine(p.Sentence))
	}
	return head, p.Digest, nil
}

// cutGate reads COMPOSITION#N or COMPOSITION#N/TASK. No branch is called so: git
// allows it, and then its head can be named instead.
func cutGate(what string) (run, task string, ok bool) {
	name, task, _ := strings.Cut(what, "/")
	composition, number, found := strings.Cut(name, "#")
	if !found || !pipeline.ValidName(composition) || number == "" || strings.Trim(number, "0123456789") != "" {
		return "", "", false
	}
	return composition + "/" + number, task, true
}

func (v *voice) gate(ctx context.Context, run, task string) (string, error) {
	if err := v.inClone(ctx); err != nil {
		return "", err
	}
	const space = "refs/maestro/gates/"
	pattern := space + run + "/*"
	if task != "" {
		pattern = space + run + "/" + task
	}
	out, err := v.git(ctx, "ls-remote", v.remote, pattern)
	if err != nil {
		return "", err
	}
	var heads, names []string
	for line := range strings.Lines(out) {
		head, ref, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if ok {
			heads, names = append(heads, head), append(names, strings.TrimPrefix(ref, space+run+"/"))
		}
	}
	shown := strings.Replace(run, "/", "#", 1)
	switch len(heads) {
	case 0:
		return "", fault.New(fault.NotFound, "no gate of %s is open; see: reconciler run %s", shown, shown)
	case 1:
		_, err := v.git(ctx, "fetch", "--quiet", v.remote, space+run+"/"+names[0])
		return heads[0], err
	}
	return "", fault.New(fault.Invalid, "%s has several gates; name one: %s", shown, strings.Join(names, ", "))
}
