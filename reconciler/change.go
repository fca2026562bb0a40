package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func newChange() *cobra.Command {
	var c client
	var o output
	var markdown bool
	cmd := &cobra.Command{
		Use: "change [BRANCH]", Short: "List proposed changes, or show one", Args: cobra.MaximumNArgs(1),
		Long: `List the changes that people propose, or show what one of them will do, what its
reviews come to and what became of it. A change is a branch of the ops repository
other than the default one.

The exit code is 1 when the change has errors or was refused.`,
		Example: "  reconciler change\n  reconciler change feature/louder\n  reconciler change feature/louder --markdown",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if len(args) == 0 {
				return listChanges(cmd, &c, o)
			}
			p, err := c.proposal(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return showChange(cmd.OutOrStdout(), p, o.json || o.format == "json", markdown)
		},
	}
	serverFlag(cmd, &c)
	o.flags(cmd)
	cmd.Flags().BoolVar(&markdown, "markdown", false, "print the plan as it stands in the note of its head")
	return cmd
}

func (c *client) proposal(ctx context.Context, branch string) (pipeline.Proposal, error) {
	var list struct {
		Changes []pipeline.Proposal `json:"changes"`
	}
	err := c.get(ctx, "/changes", url.Values{"branch": {branch}}, &list)
	if err != nil {
		return pipeline.Proposal{}, err
	}
	if len(list.Changes) != 1 {
		return pipeline.Proposal{}, fault.New(fault.Unavailable, "the answer about change %s is of another form", branch)
	}
	return list.Changes[0], nil
}

func listChanges(cmd *cobra.Command, c *client, o output) error {
	var list struct {
		Changes []pipeline.Proposal `json:"changes"`
	}
	if err := c.get(cmd.Context(), "/changes", nil, &list); err != nil {
		return err
	}
	if len(list.Changes) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "nothing is proposed; propose a change with: git push origin HEAD:my-change")
	}
	return print(cmd.OutOrStdout(), o, "BRANCH\tSTATE\tHEAD\tCHANGED\tWHERE IT STANDS", list.Changes, func(p *pipeline.Proposal) []string {
		return []string{oneLine(p.Branch), string(p.State), p.Head.Short(), ago(p.ChangedAt), oneLine(p.Standing())}
	}, func(p *pipeline.Proposal) string { return p.Branch })
}

func showChange(w io.Writer, p pipeline.Proposal, asJSON, markdown bool) error {
	switch {
	case asJSON:
		return writeJSON(w, p)
	case markdown:
		_, err := io.WriteString(w, p.Markdown)
		return err
	}
	c := &calm{w: w}
	fmt.Fprintf(c, "%s  %s  %s into %s\n%s\n", oneLine(p.Branch), p.State, p.Head.Short(), oneLine(p.Target), oneLine(p.Sentence))
	for _, d := range p.Diagnostics {
		fmt.Fprintln(c, d)
	}
	fmt.Fprintf(c, "\n%s", p.Text)
	for _, n := range p.Needs {
		asked := n.Asked()
		switch {
		case n.Nobody != "":
			asked += " (nobody: " + n.Nobody + ")"
		case len(n.Approvers) > 0:
			asked = strings.Join(n.Approvers, " or ") + " (" + cmp.Or(strings.Join(n.People, ", "), "nobody but its authors") + ")"
		}
		fmt.Fprintf(c, "%s: %d of %d approvals of %s\n", oneLine(n.Rule), n.Have, n.Want, oneLine(asked))
	}
	for _, r := range p.Reviews {
		fmt.Fprintf(c, "  %s\n", oneLine(opinion(&r)))
	}
	if p.State == pipeline.ProposalOpen && (pipeline.HasErrors(p.Diagnostics) || p.Approval == pipeline.ApprovalRefused) {
		return &exitError{code: exitFailed}
	}
	return nil
}

func opinion(r *pipeline.Opinion) string {
	s := r.By + " refuses"
	if r.Approve {
		s = r.By + " approves"
	}
	if r.Comment != "" {
		s += ": " + r.Comment
	}
	if !r.Counts {
		s += " (does not count: " + r.Why + ")"
	}
	return s + ", " + ago(r.At)
}
