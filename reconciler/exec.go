package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// exitHeld is the answer of exec when the run has come to a gate.
const exitHeld = 4

func newExec() *cobra.Command {
	var x trial
	cmd := &cobra.Command{
		Use: "exec COMPOSITION [DIR]", Short: "Run a composition from the working copy, here and now", Args: cobra.RangeArgs(1, 2),
		Long: `Run one composition from the working copy, committed or not, on this machine: in a
temporary folder it is pushed to a repository of its own, which a control plane and
one agentd for each pool serve, as they would anywhere. No other composition starts,
and the repository itself is not touched. Secrets are read from this environment, and
encrypted ones opened with your own age key; they reach the tasks that name them, and
agents and tasks inherit nothing else.

The exit code is 0 when the run succeeded, 1 when it did not, 4 when it has come to a
gate, which nobody can open here, and 6 when no agent on this machine can take a task.
Interrupting cancels the run.`,
		Example: "  reconciler exec release --param version=1.2.3",
		RunE: func(cmd *cobra.Command, args []string) error {
			x.name, x.out, x.errs = pipeline.CompositionName(args[0]), cmd.OutOrStdout(), cmd.ErrOrStderr()
			return x.run(cmd.Context(), dirOf(args[1:]))
		},
	}
	cmd.Flags().StringArrayVar(&x.given, "param", nil, "NAME=VALUE, as often as needed; VALUE is JSON, or text")
	x.keys.secretsFlag(cmd.Flags())
	cmd.Flags().BoolVar(&x.keep, "keep", false, "keep the temporary folder")
	return cmd
}

// trial is a run of one composition in a world of its own.
type trial struct {
	name      pipeline.CompositionName
	given     []string
	keep      bool
	keys      options // only for the key of encrypted secrets
	out, errs io.Writer

	params json.RawMessage
	pools  []pipeline.PoolName
	// world has the folder and the processes, as in the demo.
	world demo
}

func (x *trial) run(ctx context.Context, dir string) (err error) {
	clone, err := openCheckout(ctx, dir)
	if err != nil {
		return err
	}
	defer clone.close()
	if err := x.prepare(ctx, clone.root); err != nil {
		return err
	}
	if x.world.dir, err = os.MkdirTemp("", "maestro-exec-"); err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	x.world.out = x.errs
	defer func() {
		x.world.stop()
		if x.keep {
			fmt.Fprintf(x.errs, "kept: %s\n", x.world.dir)
			return
		}
		if rmErr := os.RemoveAll(x.world.dir); rmErr != nil && err == nil {
			err = fmt.Errorf("remove the temporary folder: %w", rmErr)
		}
	}()
	return x.serve(ctx, clone)
}

// prepare reads the composition and holds its params to their types.
func (x *trial) prepare(ctx context.Context, dir string) error {
	cfg, c, err := evaluateOne(ctx, dir, string(x.name))
	if err != nil {
		return err
	}
	given := map[string]json.RawMessage{}
	for _, p := range x.given {
		name, value, ok := strings.Cut(p, "=")
		if !ok {
			return fault.New(fault.Invalid, "--param %q is not NAME=VALUE", p)
		}
		given[name] = paramOf(c, name, value)
	}
	raw, err := json.Marshal(given)
	if err != nil {
		return fmt.Errorf("params: %w", err)
	}
	if x.params, err = plan.Params(c, raw); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	x.pools = poolsOf(cfg)
	return nil
}

// paramOf is a value as it was typed: for a text the text itself, else JSON if it is.
func paramOf(c *pipeline.Composition, name, value string) json.RawMessage {
	quoted, err := json.Marshal(value)
	if err != nil {
		return nil // a string always marshals
	}
	for _, f := range c.Params {
		if f.Name == name && f.Type.Kind == pipeline.KindString {
			return quoted
		}
	}
	if json.Valid([]byte(value)) {
		return json.RawMessage(value)
	}
	return quoted
}

// poolsOf lists the pools that tasks name, and the one for those that name none.
func poolsOf(cfg *pipeline.Config) []pipeline.PoolName {
	out := []pipeline.PoolName{"default"}
	for i := range cfg.Compositions {
		for j := range cfg.Compositions[i].Tasks {
			if p := cfg.Compositions[i].Tasks[j].Requirement.Pool; p != "" {
				out = append(out, p)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// push commits the files as they are to a repository in the temporary folder.
func (x *trial) push(ctx context.Context, clone *checkout) (pipeline.CommitID, error) {
	w := &x.world
	w.work = filepath.Join(w.dir, "work")
	list, err := clone.git(ctx, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
	if err != nil {
		return "", err
	}
	if err := copyFiles(w.work, clone.root, strings.Split(list, "\x00")); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"init", "--quiet", "-b", "main", w.work},
		{"-C", w.work, "add", "--all", "--force"},
		{"-C", w.work, "-c", "user.name=exec", "-c", "user.email=exec@localhost", "-c", "commit.gpgSign=false", "commit", "--quiet", "-m", "the working copy"},
		{"-C", w.work, "push", "--quiet", w.bare, "HEAD:refs/heads/main"},
	} {
		if _, err := w.git(ctx, "", args...); err != nil {
			return "", err
		}
	}
	head, err := w.git(ctx, w.work, "rev-parse", "HEAD")
	return pipeline.CommitID(strings.TrimSpace(head)), err
}

// copyFiles copies regular files; what was deleted and what is no file is left out.
func copyFiles(into, from string, names []string) error {
	for _, name := range names {
		info, err := os.Lstat(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		path := filepath.Join(into, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, b, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return nil
}

// serve runs the control plane and the agents, pushes, and follows the run to its end.
func (x *trial) serve(ctx context.Context, clone *checkout) error {
	agentd, err := findAgentd()
	if err != nil {
		return err
	}
	x.world.bare = filepath.Join(x.world.dir, "ops.git")
	if _, err := x.world.git(ctx, "", "init", "--quiet", "--bare", "-b", "main", x.world.bare); err != nil {
		return err
	}
	logFile, err := os.Create(filepath.Join(x.world.dir, "reconciler.log"))
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer logFile.Close()
	opt := options{
		repo: x.world.bare, branch: "main", data: filepath.Join(x.world.dir, "reconciler"), listen: "127.0.0.1:0", intake: "127.0.0.1:0",
		forge: "none", poll: time.Second, runTip: true, only: &only{x.name, x.params},
		secretsKeyFile: x.keys.secretsKeyFile, personal: true,
	}
	harden()
	// An interrupted run is cancelled, which needs the server a little longer.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	s, err := openServer(serving, opt, slog.New(slog.NewTextHandler(logFile, nil)))
	if err != nil {
		stop()
		return err
	}
	defer s.close()
	ready, ended := make(chan addresses, 1), make(chan error, 1)
	go func() { ended <- s.run(serving, func(at addresses) { ready <- at }) }()
	defer func() { // the server has ended when serve returns
		stop()
		<-ended
	}()
	select {
	case x.world.at = <-ready:
	case err := <-ended:
		ended <- nil
		return err
	}
	for _, pool := range x.pools {
		a := localAgent{binary: agentd, dir: filepath.Join(x.world.dir, "agent-"+string(pool)), name: "local-" + string(pool), pool: string(pool)}
		cmd, err := a.command(ctx, opt.data, x.world.at)
		if err != nil {
			return err
		}
		if err := x.world.spawn(a.name, cmd.Env, cmd.Args[0], cmd.Args[1:]...); err != nil {
			return err
		}
	}
	// The agents first, so that no task is said to lack one.
	if err := x.world.awaitAgents(ctx, len(x.pools)); err != nil {
		return err
	}
	commit, err := x.push(ctx, clone)
	if err == nil {
		err = x.follow(ctx, commit, s.runs)
	}
	x.world.stop() // before the server, which they report to
	return err
}

// follow waits for the run, tells what happens to it, and returns its result.
func (x *trial) follow(ctx context.Context, commit pipeline.CommitID, runs *loop.Runs) error {
	id, err := x.await(ctx, commit)
	if err != nil {
		return err
	}
	c := x.world.client()
	w := newWatcher(c, x.out, x.errs)
	w.refuse, w.passing = refuseStuck(ctx, x.world.client()), true
	final, err := w.follow(ctx, id)
	if err != nil {
		x.cancel(context.WithoutCancel(ctx), id, runs)
		return err
	}
	for i := range final.Tasks {
		if err := x.show(ctx, c, &final.Tasks[i]); err != nil {
			return err
		}
	}
	if !final.State.Good() {
		return &exitError{code: exitFailed}
	}
	return nil
}

// show prints what a task wrote and reported, which is gone when exec ends.
func (x *trial) show(ctx context.Context, c *client, t *shownTask) error {
	if t.Attempt == "" {
		return nil
	}
	fmt.Fprintf(x.out, "\n%s  %s\n", t.Name, shown(t.State))
	if err := copyLog(ctx, c, t.Attempt, false, &calm{w: x.out, plain: !colour(os.Stdout)}, x.errs); err != nil {
		return err
	}
	if len(t.Outputs) > 2 {
		fmt.Fprintf(x.out, "%s set %s\n", t.Name, oneLine(string(t.Outputs)))
	}
	return nil
}

// await returns the run that the commit has made.
func (x *trial) await(ctx context.Context, commit pipeline.CommitID) (pipeline.RunID, error) {
	var rec struct {
		pipeline.CommitRecord
		Verdicts []pipeline.Verdict `json:"verdicts"`
	}
	c := x.world.client()
	err := x.world.await(ctx, "wait for the commit to be evaluated", func() bool {
		return c.get(ctx, "/commits/"+string(commit), nil, &rec) == nil
	})
	if err != nil {
		return "", err
	}
	for _, v := range rec.Verdicts {
		switch {
		case v.Composition != x.name || v.Kind != pipeline.EventPush:
		case v.Outcome == pipeline.VerdictRun:
			return v.Run, nil
		default:
			return "", fault.New(fault.Invalid, "%s does not start: %s", x.name, v.Sentence)
		}
	}
	return "", fault.New(fault.Internal, "%s was not looked at", x.name)
}

// cancelTime is how long the processes of a cancelled run may take to end.
const cancelTime = 20 * time.Second

// cancel ends the run, so that nothing of it goes on when exec has gone.
func (x *trial) cancel(ctx context.Context, id pipeline.RunID, runs *loop.Runs) {
	ctx, cancel := context.WithTimeout(ctx, cancelTime)
	defer cancel()
	runs.Cancel(id, "exec was interrupted")
	quiet := newWatcher(x.world.client(), io.Discard, io.Discard)
	if _, err := quiet.follow(ctx, id); err != nil {
		fmt.Fprintf(x.errs, "the run may go on in %s: %v\n", x.world.dir, err)
		x.keep = true
	}
}

// refuseStuck returns a function that fails when the run needs what is not here: a
// person, or another agent.
func refuseStuck(ctx context.Context, c *client) func(*shownRun) error {
	var since time.Time
	return func(r *shownRun) error {
		if gate := gateOf(ctx, c, r); gate != "" {
			return &exitError{exitHeld, fmt.Errorf("%s has come to gate %s, which nobody can open here", r.Composition, gate)}
		}
		switch {
		case r.Shown != blocked:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > demoBlocked:
			return &exitError{exitBlocked, fmt.Errorf("%s is blocked: %s", r.Composition, oneLine(r.Sentence))}
		}
		return nil
	}
}

// gateOf returns the gate that holds a run, or one that it has called, or "".
func gateOf(ctx context.Context, c *client, r *shownRun) string {
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.State == pipeline.Held {
			return string(r.Composition) + "/" + string(t.Name)
		}
		if t.Child == "" || t.State.Terminal() {
			continue
		}
		var child shownRun
		if c.get(ctx, "/runs/"+string(t.Child), nil, &child) != nil {
			continue // the next look asks again
		}
		if gate := gateOf(ctx, c, &child); gate != "" {
			return gate
		}
	}
	return ""
}

// only is the one composition that a commit of a trial starts.
type only struct {
	name   pipeline.CompositionName
	params json.RawMessage
}

// of returns the repository as the loop is to see it: the one composition starts with
// every push and no other does. A nil only leaves the repository as it is.
func (o *only) of(r loop.Repository) loop.Repository {
	if o == nil {
		return r
	}
	return onlyRepository{r, o}
}

type onlyRepository struct {
	loop.Repository
	only *only
}

func (r onlyRepository) Evaluate(ctx context.Context, id pipeline.CommitID) (pipeline.Config, error) {
	cfg, err := r.Repository.Evaluate(ctx, id)
	cfg.Compositions = slices.Clone(cfg.Compositions) // the evaluator keeps its own
	for i := range cfg.Compositions {
		c := &cfg.Compositions[i]
		c.Triggers = nil
		if c.Name == r.only.name {
			c.Suspend = false
			c.Triggers = []pipeline.Trigger{{
				Push: &pipeline.PushTrigger{Branches: []string{"**"}}, Params: pipeline.Expr{Value: r.only.params},
			}}
		}
	}
	return cfg, err
}
