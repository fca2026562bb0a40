package main

import (
	"cmp"
	"fmt"
	"io"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

const refHelp = `A run is named COMPOSITION#N (or COMPOSITION/N), by its id, or by a
composition alone for its newest run.`

func newRuns() *cobra.Command {
	var c client
	var o output
	var composition, state, commit string
	var limit int
	cmd := &cobra.Command{
		Use: "runs", Short: "List runs, newest first", Args: cobra.NoArgs,
		Example: "  reconciler runs\n  reconciler runs --composition release --state failure --json\n  reconciler runs --commit 9f3c1e2",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			q := url.Values{"limit": {fmt.Sprint(limit)}}
			for k, v := range map[string]string{"composition": composition, "state": state, "commit": commit} {
				if v != "" {
					q.Set(k, v)
				}
			}
			var list struct {
				Runs []shownRun `json:"runs"`
			}
			if err := c.get(cmd.Context(), "/runs", q, &list); err != nil {
				return err
			}
			if len(list.Runs) == 0 {
				if composition != "" {
					if err := c.knows(cmd.Context(), composition); err != nil {
						return err
					}
				}
				fmt.Fprintln(cmd.ErrOrStderr(), "no run is like that; see: reconciler runs, or why COMMIT for what a commit did not start")
			}
			return print(cmd.OutOrStdout(), o, "RUN\tSTATE\tCOMMIT\tCREATED\tTOOK\tWHY", list.Runs, func(r *shownRun) []string {
				return []string{runName(&r.Run), shown(r.Shown), r.Head().Commit.Short(), ago(r.CreatedAt), took(r.StartedAt, r.FinishedAt), oneLine(r.Sentence)}
			}, func(r *shownRun) string { return runName(&r.Run) })
		},
	}
	serverFlag(cmd, &c)
	o.flags(cmd)
	cmd.Flags().StringVar(&composition, "composition", "", "only runs of this composition")
	cmd.Flags().StringVar(&state, "state", "", "only runs in this state")
	cmd.Flags().StringVar(&commit, "commit", "", "only runs of this commit, whole or at least its first 7 digits")
	cmd.Flags().IntVarP(&limit, "limit", "n", 20, "how many")
	return cmd
}

// codeOf names the commit that a run is about.
func codeOf(r *pipeline.Run) string {
	h := r.Head()
	if h.Repo != "" {
		return h.Commit.Short() + " of " + oneLine(h.Repo)
	}
	return h.Commit.Short()
}

func runName(r *pipeline.Run) string { return fmt.Sprintf("%s#%d", r.Composition, r.Number) }

func newRun() *cobra.Command {
	var c client
	var asJSON bool
	cmd := &cobra.Command{
		Use: "run RUN", Short: "Show one run with its tasks", Args: cobra.ExactArgs(1), Long: "Show one run with its tasks.\n\n" + refHelp,
		Example: "  reconciler run release#12\n  reconciler run release --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := c.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			return showRun(cmd.OutOrStdout(), &c, &r)
		},
	}
	serverFlag(cmd, &c)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the run as JSON")
	return cmd
}

func showRun(w io.Writer, c *client, r *shownRun) error {
	fmt.Fprintf(w, "%s  %s  %s\n", runName(&r.Run), shown(r.Shown), oneLine(r.Sentence))
	fmt.Fprintf(w, "commit %s %s by %s\n", codeOf(&r.Run), oneLine(r.Event.Subject), oneLine(r.Event.Author))
	if r.Event.Repo != "" {
		fmt.Fprintf(w, "configuration %s\n", r.Commit.Short())
	}
	fmt.Fprintf(w, "%s\n\n", c.runURL(&r.Run))
	err := print(w, output{format: "table"}, "TASK\tSTATE\tAGENT\tTRY\tTOOK\tWHY", r.Tasks, func(t *shownTask) []string {
		agent, try := cmp.Or(t.AgentName, string(t.Agent)), ""
		if t.Epoch > 0 {
			try = fmt.Sprint(t.Epoch)
		}
		return []string{string(t.Name), shown(t.Shown), oneLine(agent), try, took(t.StartedAt, t.FinishedAt), oneLine(t.Sentence)}
	}, func(t *shownTask) string { return string(t.Name) })
	if err != nil {
		return err
	}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if o := t.Outputs; len(o) > 2 {
			fmt.Fprintf(w, "\n%s set %s\n", t.Name, oneLine(string(o)))
		}
		for _, l := range t.links() {
			fmt.Fprintf(w, "%s links to %s: %s\n", t.Name, oneLine(l.Name), oneLine(l.URL))
		}
	}
	return nil
}

// links are those of the task's result, or those it has told of while it runs.
func (t *shownTask) links() []pipeline.Link {
	if t.Now != nil {
		return t.Now.Links
	}
	return t.Links
}
