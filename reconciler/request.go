package main

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

func newRequest() *cobra.Command {
	cmd := &cobra.Command{
		Use: "request", Short: "Ask for a run, cancel or retry one, settle what is in doubt", Args: cobra.NoArgs,
		Long: `Ask for a run of a composition that has a manual trigger, cancel a run or a task, go on
from a run that ended badly, or say how a task in doubt ended. Run it in a clone of the ops
repository: a request is a tag that is pushed under refs/maestro/requests/, and the
command prints the git commands that make it. It is done once and answered, and the
command prints the answer: what was started, or why it was not done, which is exit code 1.
Then the request is taken away, and the answer stays as a note on the commit that the tag
was of, the newest of the default branch:

  git fetch origin HEAD +refs/notes/maestro/requests:refs/notes/maestro/requests
  git notes --ref=refs/notes/maestro/requests show FETCH_HEAD`,
	}
	cmd.AddCommand(newRequestRun(), newRequestCancel(), newRequestRetry(), newRequestResolve())
	return cmd
}

func newRequestRun() *cobra.Command {
	v := voice{}
	cmd := &cobra.Command{
		Use: "run COMPOSITION [NAME=VALUE …]", Short: "Ask for a run", Args: cobra.MinimumNArgs(1),
		Example: "  reconciler request run release version=1.4.2",
		RunE: func(cmd *cobra.Command, args []string) error {
			v.cmd = cmd
			// One param on a line, so that values may have spaces.
			return v.request(cmd.Context(), "run "+args[0]+"\n"+strings.Join(args[1:], "\n"))
		},
	}
	v.flags(cmd)
	return cmd
}

func newRequestCancel() *cobra.Command {
	v := voice{}
	var why string
	var tree bool
	cmd := &cobra.Command{
		Use: "cancel COMPOSITION#N[/TASK]", Short: "Cancel a run, or one task of it", Args: cobra.ExactArgs(1),
		Long: `Cancel a run, or one task of it. What the run has called and waits for is cancelled
along with it; --tree takes along all else that it led to: what it called and did not
wait for, what was called because something failed, and what followed those.`,
		Example: "  reconciler request cancel release#7 -m \"wrong version\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			v.cmd = cmd
			verb := review.VerbCancel
			if tree {
				verb = review.VerbCancelTree
			}
			return v.request(cmd.Context(), strings.TrimSpace(string(verb)+" "+args[0]+" "+why))
		},
	}
	v.flags(cmd)
	cmd.Flags().StringVarP(&why, "message", "m", "", "why")
	cmd.Flags().BoolVar(&tree, "tree", false, "and every run that it led to")
	return cmd
}

func newRequestRetry() *cobra.Command {
	v := voice{}
	cmd := &cobra.Command{
		Use: "retry COMPOSITION#N", Short: "Go on from a run that ended badly", Args: cobra.ExactArgs(1),
		Long: `Start a run that goes on from one that ended badly: the same composition, commit and
params. It takes over the results of tasks that would certainly get the same inputs
again, and does the rest: what failed, what needs it, gates, tasks whose files are read,
and whatever a clean-up came after.`,
		Example: "  reconciler request retry release#7",
		RunE: func(cmd *cobra.Command, args []string) error {
			v.cmd = cmd
			return v.request(cmd.Context(), "retry "+args[0])
		},
	}
	v.flags(cmd)
	return cmd
}

func newRequestResolve() *cobra.Command {
	v := voice{}
	var why string
	cmd := &cobra.Command{
		Use: "resolve COMPOSITION#N/TASK success|failure|rerun", Short: "Say how a task in doubt ended", Args: cobra.ExactArgs(2),
		Long: `Say how a task in doubt ended: a task with effect "once" whose agent was lost while it
ran. Look first at what it was to do. rerun starts it once more; whatever its lost agent
still reports of it then counts for nothing.`,
		Example: "  reconciler request resolve release#7/deploy success -m \"1.4.2 is up\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			v.cmd = cmd
			return v.request(cmd.Context(), strings.TrimSpace("resolve "+args[0]+" "+args[1]+" "+why))
		},
	}
	v.flags(cmd)
	cmd.Flags().StringVarP(&why, "message", "m", "", "how you know")
	return cmd
}

// voice says something to the reconciler by pushing a tag, with the user's own git.
type voice struct {
	cmd          *cobra.Command
	remote, user string
	dry          bool
	wait         time.Duration // for an answer
}

func (v *voice) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&v.remote, "remote", "origin", "the remote that is the ops repository")
	cmd.Flags().StringVar(&v.user, "user", "", "your name in the policy's groups (default: git config maestro.user, or the first part of user.email)")
	cmd.Flags().BoolVar(&v.dry, "dry-run", false, "print the git commands and do nothing")
	cmd.Flags().DurationVar(&v.wait, "wait", time.Minute, "how long to wait for what comes of it; 0 does not wait")
}

func (v *voice) request(ctx context.Context, message string) error {
	if _, err := review.ParseRequest(message); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	user, err := v.who(ctx)
	if err != nil {
		return err
	}
	head, err := v.tip(ctx, "HEAD")
	if err != nil {
		return err
	}
	ref := fmt.Sprintf("refs/maestro/requests/%s/%s", user, strconv.FormatInt(time.Now().UnixNano(), 36))
	if err := v.say(ctx, head, message, ref); err != nil {
		return err
	}
	return v.answer(ctx, head, ref)
}

// who is the user's name in the policy.
func (v *voice) who(ctx context.Context) (string, error) {
	name := v.user
	if name == "" {
		name = v.config(ctx, "maestro.user")
	}
	if name == "" {
		name, _, _ = strings.Cut(v.config(ctx, "user.email"), "@")
	}
	if !review.ValidUser(name) {
		return "", fault.New(fault.Invalid, "%q is not a name that a ref can hold: give yours in the policy's groups with --user, or: git config maestro.user NAME", name)
	}
	return name, nil
}

func (v *voice) config(ctx context.Context, key string) string {
	out, err := v.git(ctx, "config", "--get", key)
	if err != nil {
		return "" // it is not set
	}
	return strings.TrimSpace(out)
}

// inClone says what is missing where this is no clone with that remote.
func (v *voice) inClone(ctx context.Context) error {
	if _, err := v.git(ctx, "rev-parse", "--git-dir"); err != nil {
		return fault.New(fault.Invalid, "this folder is in no Git repository: run this in a clone of the ops repository")
	}
	if strings.ContainsAny(v.remote, "/:") {
		return nil // an address
	}
	if _, err := v.git(ctx, "remote", "get-url", v.remote); err != nil {
		return fault.New(fault.Invalid, "this clone has no remote %s: name the one that is the ops repository with --remote, or add it with: git remote add %s URL", v.remote, v.remote)
	}
	return nil
}

// tip asks the remote where a ref is, and fetches it.
func (v *voice) tip(ctx context.Context, ref string) (string, error) {
	if err := v.inClone(ctx); err != nil {
		return "", err
	}
	out, err := v.git(ctx, "ls-remote", v.remote, ref)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if id, name, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok && name == ref {
			_, err := v.git(ctx, "fetch", "--quiet", v.remote, ref)
			return id, err
		}
	}
	return "", fault.New(fault.NotFound, "%s has no %s: was it pushed?", v.remote, strings.TrimPrefix(ref, "refs/heads/"))
}

// say makes a tag of a commit and pushes it to a ref, printing the commands. The tag
// does not stay in the clone.
func (v *voice) say(ctx context.Context, commit, message, ref string) error {
	const tag = "maestro-says"
	kind := "-a"
	if v.config(ctx, "user.signingKey") != "" || v.config(ctx, "tag.gpgSign") == "true" {
		kind = "-s"
	} else {
		fmt.Fprintln(v.cmd.ErrOrStderr(), "note: your git signs no tags, so this proves nothing of who you are; see: git help config, gpg.format and user.signingKey")
	}
	for _, args := range [][]string{
		// git puts a signature right behind the message, and finds it at the start of a line.
		{"tag", "-f", kind, "--cleanup=verbatim", "-m", strings.TrimSpace(message) + "\n", tag, commit},
		{"push", v.remote, "+refs/tags/" + tag + ":" + ref},
		{"tag", "-d", tag},
	} {
		fmt.Fprintln(v.cmd.OutOrStdout(), "git "+quoted(args))
		if v.dry {
			continue
		}
		if _, err := v.git(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// quoted is a command line as a shell takes it.
func quoted(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a
		if strings.Trim(a, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+:/.@") != "" {
			out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}

// git runs git in the working folder. Its own words are the error.
func (v *voice) git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	var errs strings.Builder
	cmd.Stdin, cmd.Stderr = v.cmd.InOrStdin(), &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fault.New(fault.Unavailable, "git %s: %w: %s", args[0], err, oneLine(strings.TrimSpace(errs.String())))
	}
	return string(out), nil
}
