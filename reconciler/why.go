package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func newWhy() *cobra.Command {
	var c client
	var asJSON bool
	cmd := &cobra.Command{
		Use: "why RUN [TASK] | why COMMIT [COMPOSITION]", Short: "Say why something waits, ran, or did not",
		Args:    cobra.RangeArgs(1, 2),
		Long:    "Say why something waits, ran, or did not.\n\n" + refHelp + "\nA commit is named by its id or at least the first 7 digits of it.",
		Example: "  reconciler why release#12 test\n  reconciler why 9f3c1e2a4b5c release",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, w := cmd.Context(), cmd.OutOrStdout()
			if isCommit(args[0]) {
				err := whyCommit(ctx, w, &c, args, asJSON)
				if !fault.Is(err, fault.NotFound) || !pipeline.ValidName(args[0]) {
					return err
				}
				if runErr := whyRun(ctx, w, &c, args, asJSON); !fault.Is(runErr, fault.NotFound) {
					return runErr
				}
				return err
			}
			return whyRun(ctx, w, &c, args, asJSON)
		},
	}
	serverFlag(cmd, &c)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

// isCommit reports whether s looks like a commit or the first digits of one. A
// composition may be named so too.
func isCommit(s string) bool {
	return len(s) >= 7 && len(s) <= 64 && strings.Trim(strings.ToLower(s), "0123456789abcdef") == ""
}

func whyCommit(ctx context.Context, w io.Writer, c *client, args []string, asJSON bool) error {
	var rec struct {
		pipeline.CommitRecord
		Verdicts []pipeline.Verdict `json:"verdicts"`
	}
	if err := c.get(ctx, "/commits/"+args[0], nil, &rec); err != nil {
		return err
	}
	if len(args) == 2 {
		var kept []pipeline.Verdict
		for _, v := range rec.Verdicts {
			if string(v.Composition) == args[1] {
				kept = append(kept, v)
			}
		}
		if len(kept) == 0 {
			return fault.New(fault.NotFound, "commit %s has no verdict on %q", rec.Commit.Short(), args[1])
		}
		rec.Verdicts = kept
	}
	if asJSON {
		return writeJSON(w, rec)
	}
	fmt.Fprintf(w, "%s  %s  %s\n", rec.Commit.Short(), rec.Ref, oneLine(rec.Subject))
	for _, d := range rec.Diagnostics {
		fmt.Fprintln(w, oneLine(d.String()))
	}
	return print(w, output{format: "table"}, "COMPOSITION\tVERDICT\tWHY", rec.Verdicts, func(v *pipeline.Verdict) []string {
		return []string{string(v.Composition), v.Outcome, oneLine(v.Sentence)}
	}, nil)
}

func whyRun(ctx context.Context, w io.Writer, c *client, args []string, asJSON bool) error {
	r, err := c.find(ctx, args[0])
	if err != nil {
		return err
	}
	type answer struct {
		Task     pipeline.TaskName `json:"task"`
		State    pipeline.State    `json:"state"`
		Blocked  bool              `json:"blocked,omitempty"`
		Sentence string            `json:"sentence"`
	}
	var out []answer
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if len(args) == 2 && string(t.Name) != args[1] {
			continue
		}
		a := answer{Task: t.Name, State: t.State, Sentence: t.Reason}
		if !t.State.Terminal() {
			if err := c.get(ctx, "/why", url.Values{"run": {string(r.ID)}, "task": {string(t.Name)}}, &a); err != nil {
				return err
			}
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		return fault.New(fault.NotFound, "%s has no task %q", runName(&r), args[1])
	}
	if asJSON {
		return writeJSON(w, out)
	}
	fmt.Fprintf(w, "%s is %s: %s\n", runName(&r), r.State, oneLine(r.Reason))
	for _, a := range out {
		state := string(a.State)
		if a.Blocked {
			state = "blocked"
		}
		fmt.Fprintf(w, "  %-20s %-10s %s\n", a.Task, state, oneLine(a.Sentence))
	}
	return nil
}
