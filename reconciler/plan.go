package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/web"
)

// exitChanges is the answer of plan --exit-code when there are changes.
const exitChanges = 3

type planOptions struct {
	base, head           string
	markdown, json, full bool
	exitCode             bool
}

func newPlan() *cobra.Command {
	var o planOptions
	var c client
	cmd := &cobra.Command{
		Use: "plan [DIR]", Short: "Show what merging a change would do", Args: cobra.MaximumNArgs(1),
		Long: `Show what merging a change would do: what it changes, which runs start and why the
others do not, which agents can take each task, whose approval it needs. Nothing is
run and nothing is changed.

The change is the working copy, or the commit named by --head, compared with the
default branch. Agents, queues and times are known when a server is named with
--server, or when "reconciler dev" serves this repository.

The exit code is 1 when the configuration has errors. With --exit-code it is 3 when
something changes, as for scripts.`,
		Example: "  reconciler plan\n  reconciler plan --base main --head louder --markdown\n  reconciler plan --exit-code || echo changes",
		RunE: func(cmd *cobra.Command, args []string) error {
			asked := cmd.Flags().Changed("server") || os.Getenv("RECONCILER_SERVER") != ""
			return showPlan(cmd, dirOf(args), o, &c, asked)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.base, "base", "", "what to compare with: a branch or commit (default: the default branch)")
	f.StringVar(&o.head, "head", worktree, "the change: a branch or commit, or the files as they are")
	f.BoolVar(&o.markdown, "markdown", false, "print it as the comment of a change")
	f.BoolVar(&o.json, "json", false, "print it as JSON")
	f.BoolVar(&o.full, "full", false, "show what does not start as well, and values at length")
	f.BoolVar(&o.exitCode, "exit-code", false, "exit with 3 when something changes")
	cmd.MarkFlagsMutuallyExclusive("markdown", "json", "full")
	serverFlag(cmd, &c)
	return cmd
}

func showPlan(cmd *cobra.Command, dir string, o planOptions, c *client, asked bool) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	clone, err := openCheckout(ctx, dir)
	if err != nil {
		return err
	}
	defer clone.close()
	q := question{clone: clone, hints: cmd.ErrOrStderr(), text: plan.TextOptions{Full: o.full}}
	if err := q.sides(ctx, o.base, o.head); err != nil {
		return err
	}
	if err := q.evaluate(ctx); err != nil {
		return err
	}
	if c = serverFor(ctx, clone, c, asked); c != nil {
		if q.in.Fleet, err = fleetOf(ctx, c, q.starting()); err != nil {
			return err
		}
	}
	p := plan.Of(q.in)
	switch {
	case o.json:
		err = writeJSON(w, &p)
	case o.markdown:
		_, err = io.WriteString(w, p.Markdown(plan.MarkdownOptions{Onto: q.in.Default.Branch()}))
	default:
		_, err = io.WriteString(w, p.Text(q.text))
	}
	switch {
	case err != nil:
		return err
	case pipeline.HasErrors(p.Diagnostics):
		fmt.Fprintln(cmd.ErrOrStderr(), "the configuration has errors; see them with: reconciler vet")
		return &exitError{code: exitFailed}
	case o.exitCode && len(p.Changes) > 0:
		return &exitError{code: exitChanges}
	}
	return nil
}

// question is a plan's input being gathered from a working copy.
type question struct {
	clone *checkout
	hints io.Writer
	in    plan.Input
	text  plan.TextOptions
	// base and head are the commits; head is "" for the working copy.
	base, head pipeline.CommitID
}

// sides finds out what is compared with what.
func (q *question) sides(ctx context.Context, base, head string) error {
	name, branch, err := q.clone.trunk(ctx)
	if err != nil && base == "" {
		return err
	}
	with := cmp.Or(base, name)
	if q.base, err = q.clone.commit(ctx, with); err != nil {
		return err
	}
	q.text.What = head
	at := pipeline.CommitID("HEAD")
	if head != worktree {
		if q.head, err = q.clone.commit(ctx, head); err != nil {
			return err
		}
		at = q.head
		q.text.What = fmt.Sprintf("%s (%s)", head, at.Short())
	}
	q.text.With = fmt.Sprintf("%s (%s)", with, q.base.Short())
	from, behind := q.clone.fork(ctx, q.base, at)
	if behind > 0 {
		fmt.Fprintf(q.hints, "note: %s has %d commits that this change lacks; what they change is left out\n", with, behind)
		q.base = from
	}
	q.in.Default = pipeline.Ref("refs/heads/" + cmp.Or(branch, base))
	q.in.Event = pipeline.Event{Kind: pipeline.EventPush, Ref: q.in.Default, Head: q.head, Base: q.base}
	q.in.Now = time.Now()
	return nil
}

// evaluate reads both sides as the server would.
func (q *question) evaluate(ctx context.Context) error {
	e, err := newEvaluator(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer e.Close()
	for _, side := range []struct {
		id   pipeline.CommitID
		into **pipeline.Config
	}{{q.base, &q.in.Base}, {q.head, &q.in.Head}} {
		tree, err := q.clone.tree(ctx, side.id)
		if err != nil {
			return err
		}
		cfg, err := e.Evaluate(ctx, side.id, tree)
		if err != nil {
			return err
		}
		*side.into = &cfg
	}
	paths, complete, err := q.clone.changed(ctx, q.base, q.head)
	if err != nil {
		return err
	}
	q.in.Paths, q.in.PathsUnknown = paths, !complete
	return q.fill(ctx, e)
}

// fill computes what triggers take from the event, as the server will.
func (q *question) fill(ctx context.Context, e *config.Evaluator) error {
	tree, err := q.clone.tree(ctx, q.head)
	if err != nil {
		return err
	}
	var failed error
	q.in = plan.Complete(q.in, func(b plan.Blank) plan.Filled {
		value, err := e.Fill(ctx, config.FillRequest{
			Tree: tree, Unit: q.in.Head.Composition(b.Composition).Unit, Composition: b.Composition, Blank: b.Blank,
			Event: q.in.Event, Params: b.Params,
		})
		if err != nil && !fault.Is(err, fault.Invalid) {
			failed = err
		}
		if err != nil {
			return plan.Filled{Problem: err.Error()}
		}
		return plan.Filled{Value: value}
	})
	return failed
}

// starting are the compositions whose history is of interest.
func (q *question) starting() []pipeline.CompositionName {
	runs, _, _ := plan.Decide(q.in)
	const most = 50 // questions to the server
	var out []pipeline.CompositionName
	for _, r := range runs[:min(most, len(runs))] {
		out = append(out, r.Name)
	}
	return out
}

// serverFor returns the server to ask: the one that was named, else a dev on this
// machine that serves the same repository. Nil is none.
func serverFor(ctx context.Context, clone *checkout, c *client, named bool) *client {
	if named {
		return c
	}
	remotes := clone.remotes(ctx)
	folders := []string{defaultData()}
	for _, url := range remotes {
		folders = append(folders, devData(strings.TrimPrefix(url, "file://")))
	}
	for _, dir := range folders {
		var at addresses
		b, err := os.ReadFile(filepath.Join(dir, addressesFile))
		if err != nil || json.Unmarshal(b, &at) != nil {
			continue
		}
		near := &client{base: at.Web}
		quick, cancel := context.WithTimeout(ctx, time.Second)
		var board web.Board
		err = near.get(quick, "/board", nil, &board)
		cancel()
		if err == nil && sameRepository(remotes, board.Repository.URL) {
			return near
		}
	}
	return nil
}

// fleetOf asks a server for its agents, its unfinished runs and the history of some
// compositions.
func fleetOf(ctx context.Context, c *client, names []pipeline.CompositionName) (*plan.Fleet, error) {
	f := &plan.Fleet{At: time.Now().UTC()}
	var list struct {
		Agents []web.AgentView `json:"agents"`
	}
	if err := c.get(ctx, "/agents", nil, &list); err != nil {
		return nil, err
	}
	for i := range list.Agents {
		if a := &list.Agents[i]; !a.Revoked {
			f.Agents = append(f.Agents, asPlanned(a))
		}
	}
	var board web.Board
	if err := c.get(ctx, "/board", nil, &board); err != nil {
		return nil, err
	}
	for i := range board.Unfinished {
		r := &board.Unfinished[i]
		f.Runs = append(f.Runs, plan.Unfinished{
			Run: r.ID, Composition: r.Composition, Number: r.Number, Group: r.Group, State: r.State, Waiting: len(r.Behind) > 0,
		})
	}
	for _, name := range names {
		h, err := historyOf(ctx, c, name)
		if err != nil {
			return nil, err
		}
		f.History = append(f.History, h)
	}
	return f, nil
}

func asPlanned(a *web.AgentView) plan.Agent {
	facts, err := pipeline.DecodeJSON(a.Facts)
	if err != nil {
		facts = nil // it has not reported any
	}
	return plan.Agent{
		ID: a.ID, Name: a.Name, Pool: a.Pool, Untrusted: a.Untrusted, Facts: facts, Online: a.Online, Busy: len(a.Running) > 0,
	}
}

// historyOf asks for the latest runs that succeeded; those that failed early say
// nothing of how long a run takes.
func historyOf(ctx context.Context, c *client, name pipeline.CompositionName) (plan.History, error) {
	h := plan.History{Composition: name}
	var list struct {
		Runs []pipeline.Run `json:"runs"`
	}
	err := c.get(ctx, "/runs", url.Values{"composition": {string(name)}, "state": {string(pipeline.Success)}, "limit": {"50"}}, &list)
	if fault.Is(err, fault.NotFound) {
		return h, nil
	}
	for _, r := range list.Runs {
		if !r.StartedAt.IsZero() && !r.FinishedAt.IsZero() {
			h.Waits = append(h.Waits, r.StartedAt.Sub(r.CreatedAt))
			h.Durations = append(h.Durations, r.FinishedAt.Sub(r.StartedAt))
		}
	}
	return h, err
}
