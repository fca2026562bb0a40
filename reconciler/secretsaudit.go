package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func newSecretsAudit() *cobra.Command {
	opt := options{personal: true}
	var c client
	var asJSON bool
	var since time.Duration
	cmd := &cobra.Command{
		Use: "audit [DIR]", Short: "Say of every secret who may use it, and which tasks had it", Args: cobra.MaximumNArgs(1),
		Long: `Say of every secret that a working copy declares what "secrets check" says of it, where it
is declared, and which tasks it was given to, as the server's record has them: those that
may have a value which leaked. Secrets that tasks had and that are not declared any more
are listed too. No value is printed.

The record has runs for as long as the policy keeps them, and knows names, not values:
what a task had before a value was replaced is an older one.`,
		Example: "  reconciler secrets audit\n  reconciler secrets audit ~/pipelines --since 168h --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if since <= 0 {
				return fault.New(fault.Invalid, "--since must be more than 0, as 168h for a week")
			}
			dir, err := moduleAbove(dirOf(args))
			if err != nil {
				return err
			}
			found, err := inspectSecrets(cmd.Context(), opt, dir)
			if err != nil {
				return err
			}
			given, err := c.deliveries(cmd.Context(), time.Now().Add(-since))
			if err != nil {
				return err
			}
			list := auditOf(found.Secrets, given)
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), struct {
					Secrets []auditedSecret `json:"secrets"`
				}{list})
			}
			printAudit(cmd.OutOrStdout(), list)
			return nil
		},
	}
	opt.secretsFlag(cmd.Flags())
	serverFlag(cmd, &c)
	cmd.Flags().DurationVar(&since, "since", 30*24*time.Hour, "how far back runs are looked at")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

// auditedSecret is a secret, and the tasks that had it, the newest first.
type auditedSecret struct {
	secretState
	Delivered []delivery `json:"delivered"`
}

// delivery is one attempt at a task that was given a secret.
type delivery struct {
	Run     string             `json:"run"`
	Task    pipeline.TaskName  `json:"task"`
	Attempt pipeline.AttemptID `json:"attempt"`
	Agent   pipeline.AgentID   `json:"agent"`
	Commit  pipeline.CommitID  `json:"commit"`
	Repo    string             `json:"repo,omitempty"` // "" for the ops repository
	Ref     pipeline.Ref       `json:"ref,omitempty"`
	At      time.Time          `json:"at"`
}

// deliveries are by the name of the secret those in runs that were created since.
func (c *client) deliveries(ctx context.Context, since time.Time) (map[pipeline.SecretName][]delivery, error) {
	const page = 200
	out := map[pipeline.SecretName][]delivery{}
	q := url.Values{"limit": {fmt.Sprint(page)}, "tasks": {"1"}}
	for {
		var list struct {
			Runs []shownRun `json:"runs"`
		}
		if err := c.get(ctx, "/runs", q, &list); err != nil {
			return nil, err
		}
		for i := range list.Runs {
			r := &list.Runs[i]
			if r.CreatedAt.Before(since) {
				return out, nil
			}
			if err := c.deliveriesIn(ctx, r, out); err != nil {
				return nil, err
			}
			q.Set("before", string(r.ID))
		}
		if len(list.Runs) < page {
			return out, nil
		}
	}
}

// deliveriesIn adds those of one run. A secret goes with the word by which a task starts,
// which is written before.
func (c *client) deliveriesIn(ctx context.Context, r *shownRun, out map[pipeline.SecretName][]delivery) error {
	had := func(t *shownTask) bool { return len(t.Spec.Secrets) > 0 && t.Epoch > 0 }
	if !slices.ContainsFunc(r.Tasks, func(t shownTask) bool { return had(&t) }) {
		return nil
	}
	all, err := c.attempts(ctx, r.ID)
	if err != nil {
		return err
	}
	head := r.Head()
	for _, a := range slices.Backward(all) {
		t := r.Task(a.Task)
		if t == nil || !had(t) || a.StartedAt.IsZero() {
			continue
		}
		for _, name := range t.Spec.Secrets {
			out[name] = append(out[name], delivery{
				Run: runName(&r.Run), Task: a.Task, Attempt: a.ID, Agent: a.Agent, Commit: head.Commit, Repo: head.Repo, Ref: r.Event.Ref, At: a.StartedAt,
			})
		}
	}
	return nil
}

// auditOf joins what is declared with what was delivered.
func auditOf(declared []secretState, given map[pipeline.SecretName][]delivery) []auditedSecret {
	out := make([]auditedSecret, 0, len(declared))
	for _, s := range declared {
		out = append(out, auditedSecret{s, given[s.Name]})
		delete(given, s.Name)
	}
	for name, list := range given {
		out = append(out, auditedSecret{secretState{
			Name: name, State: "warning", Text: "it is not declared here any more", UsedBy: []string{},
		}, list})
	}
	for i := range out {
		if out[i].Delivered == nil {
			out[i].Delivered = []delivery{}
		}
	}
	slices.SortFunc(out, func(a, b auditedSecret) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func printAudit(w io.Writer, list []auditedSecret) {
	for _, s := range list {
		s.print(w)
		if s.Declared != "" {
			fmt.Fprintf(w, "    at    %s\n", oneLine(s.Declared))
		}
		const most = 10
		for i, d := range s.Delivered {
			if i == most {
				fmt.Fprintf(w, "    and %d more; see --json\n", len(s.Delivered)-most)
				break
			}
			of := strings.TrimPrefix(string(d.Ref), "refs/heads/")
			if d.Repo != "" {
				of += " of " + d.Repo
			}
			fmt.Fprintf(w, "    given %s to %s %s on %s, %s %s\n", ago(d.At), d.Run, d.Task, d.Agent, d.Commit.Short(), oneLine(of))
		}
		if len(s.Delivered) == 0 {
			fmt.Fprintf(w, "    given to no task\n")
		}
	}
	fmt.Fprintf(w, "\n%s\n", counted(len(list), "secret"))
}
