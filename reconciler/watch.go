package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
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
		Example: "  reconciler runs\n  reconciler runs --composition release --state failure --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"limit": {fmt.Sprint(limit)}}
			for k, v := range map[string]string{"composition": composition, "state": state, "commit": commit} {
				if v != "" {
					q.Set(k, v)
				}
			}
			var list struct {
				Runs []pipeline.Run `json:"runs"`
			}
			if err := c.get(cmd.Context(), "/runs", q, &list); err != nil {
				return err
			}
			return print(cmd.OutOrStdout(), o, "RUN\tSTATE\tCOMMIT\tCREATED\tTOOK\tWHY", list.Runs, func(r *pipeline.Run) []string {
				return []string{runName(r), shown(r.State), r.Commit.Short(), ago(r.CreatedAt), took(r.StartedAt, r.FinishedAt), oneLine(r.Reason)}
			}, runName)
		},
	}
	serverFlag(cmd, &c)
	o.flags(cmd)
	cmd.Flags().StringVar(&composition, "composition", "", "only runs of this composition")
	cmd.Flags().StringVar(&state, "state", "", "only runs in this state")
	cmd.Flags().StringVar(&commit, "commit", "", "only runs of this commit")
	cmd.Flags().IntVarP(&limit, "limit", "n", 20, "how many")
	return cmd
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

func showRun(w io.Writer, c *client, r *pipeline.Run) error {
	fmt.Fprintf(w, "%s  %s  %s\n", runName(r), shown(r.State), oneLine(r.Reason))
	fmt.Fprintf(w, "commit %s %s by %s\n%s\n\n", r.Commit.Short(), oneLine(r.Event.Subject), oneLine(r.Event.Author), c.runURL(r))
	err := print(w, output{format: "table"}, "TASK\tSTATE\tAGENT\tTRY\tTOOK\tWHY", r.Tasks, func(t *pipeline.RunTask) []string {
		return []string{string(t.Name), shown(t.State), string(t.Agent), fmt.Sprint(t.Epoch), took(t.StartedAt, t.FinishedAt), oneLine(t.Reason)}
	}, func(t *pipeline.RunTask) string { return string(t.Name) })
	if err != nil {
		return err
	}
	for i := range r.Tasks {
		if o := r.Tasks[i].Outputs; len(o) > 2 {
			fmt.Fprintf(w, "\n%s set %s\n", r.Tasks[i].Name, oneLine(string(o)))
		}
	}
	return nil
}

func newWatch() *cobra.Command {
	var c client
	cmd := &cobra.Command{
		Use: "watch RUN", Short: "Follow a run to its end; the exit code is its result", Args: cobra.ExactArgs(1),
		Long: "Follow a run to its end. The exit code is 0 when it succeeded and 1 when it did not.\nInterrupting stops the watching, not the run.\n\n" + refHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := c.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			w := &watcher{client: &c, out: cmd.OutOrStdout(), told: map[pipeline.TaskName]pipeline.State{}}
			final, err := w.follow(cmd.Context(), r.ID)
			if err != nil {
				return err
			}
			if !final.State.Good() {
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
	serverFlag(cmd, &c)
	return cmd
}

// watcher prints what happens to a run, one line for each change, and never
// redraws: its output reads the same in a terminal, a pipe and a log.
type watcher struct {
	client *client
	out    io.Writer
	told   map[pipeline.TaskName]pipeline.State
	prefix string
}

// follow returns the run once it has ended.
func (w *watcher) follow(ctx context.Context, id pipeline.RunID) (pipeline.Run, error) {
	for {
		// The sequence is read before the run, so that nothing falls between them.
		seq, err := w.client.lastSeq(ctx)
		if err != nil {
			return pipeline.Run{}, err
		}
		r, done, err := w.look(ctx, id)
		if done || err != nil {
			return r, err
		}
		done, err = w.client.changes(ctx, seq, func(ch pipeline.Change) (bool, error) {
			if ch.Run != id {
				return false, nil
			}
			var done bool
			var err error
			r, done, err = w.look(ctx, id)
			return done, err
		})
		if done || err != nil {
			return r, err
		}
	}
}

// look prints what changed since the last look.
func (w *watcher) look(ctx context.Context, id pipeline.RunID) (pipeline.Run, bool, error) {
	var r pipeline.Run
	if err := w.client.get(ctx, "/runs/"+string(id), nil, &r); err != nil {
		return r, false, err
	}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.State == w.told[t.Name] || t.State == pipeline.Pending || t.State == pipeline.Offered {
			continue
		}
		w.told[t.Name] = t.State
		w.line(t)
	}
	if r.State.Terminal() {
		fmt.Fprintf(w.out, "%s%s %s  %s  %s\n", w.prefix, now(), runName(&r), shown(r.State), took(r.StartedAt, r.FinishedAt))
		if !r.State.Good() {
			w.failure(ctx, &r)
		}
	}
	return r, r.State.Terminal(), nil
}

func (w *watcher) line(t *pipeline.RunTask) {
	extra := oneLine(t.Reason)
	if t.State.Terminal() {
		extra = strings.TrimSpace(took(t.StartedAt, t.FinishedAt) + "  " + extra)
	}
	fmt.Fprintf(w.out, "%s%s   %-20s %-12s %s\n", w.prefix, now(), t.Name, shown(t.State), extra)
}

func now() string { return time.Now().UTC().Format("15:04:05Z") }

// failure repeats what went wrong at the end, where people look, with the end of
// the log.
func (w *watcher) failure(ctx context.Context, r *pipeline.Run) {
	attempts, err := w.client.attempts(ctx, r.ID)
	if err != nil {
		return
	}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.State != pipeline.Failure && t.State != pipeline.Error && t.State != pipeline.Timeout {
			continue
		}
		fmt.Fprintf(w.out, "%s\n%s%s  %s  %s\n", w.prefix, w.prefix, t.Name, shown(t.State), oneLine(t.Reason))
		for _, a := range attempts {
			if a.ID == t.Attempt {
				w.tail(ctx, a.ID)
			}
		}
		fmt.Fprintf(w.out, "%s  log: reconciler logs %s %s\n", w.prefix, runName(r), t.Name)
	}
	fmt.Fprintf(w.out, "%s  web: %s\n", w.prefix, w.client.runURL(r))
}

// tail prints the last lines of an attempt's log.
func (w *watcher) tail(ctx context.Context, id pipeline.AttemptID) {
	const lines, window = 12, 16 << 10
	body, err := w.client.open(ctx, "/attempts/"+string(id)+"/log", nil)
	if err != nil {
		return
	}
	defer body.Close()
	last := make([]byte, 0, 2*window)
	buf := make([]byte, window)
	for {
		n, err := body.Read(buf)
		last = append(last, buf[:n]...)
		if len(last) > window {
			last = append(last[:0], last[len(last)-window:]...)
		}
		if err != nil {
			break
		}
	}
	all := strings.Split(strings.TrimRight(string(last), "\n"), "\n")
	for _, l := range all[max(0, len(all)-lines):] {
		fmt.Fprintf(w.out, "%s  | %s\n", w.prefix, oneLine(l))
	}
}

func newLogs() *cobra.Command {
	var c client
	var follow, raw bool
	var try int
	cmd := &cobra.Command{
		Use: "logs RUN [TASK]", Short: "Print or follow a task's log", Args: cobra.RangeArgs(1, 2),
		Long:    "Print a task's log. Without TASK it is the one that failed, else the one that runs, else the last.\n\n" + refHelp,
		Example: "  reconciler logs release#12 test\n  reconciler logs -f release",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := c.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			var task pipeline.TaskName
			if len(args) == 2 {
				task = pipeline.TaskName(args[1])
			}
			a, err := chooseAttempt(cmd.Context(), &c, &r, task, try)
			if err != nil {
				return err
			}
			q := url.Values{}
			if follow {
				q.Set("follow", "1")
			}
			body, err := c.open(cmd.Context(), "/attempts/"+string(a)+"/log", q)
			if err != nil {
				return err
			}
			defer body.Close()
			out := cmd.OutOrStdout()
			if !raw {
				out = &calm{w: out}
			}
			_, err = io.Copy(out, body)
			return err
		},
	}
	serverFlag(cmd, &c)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the task has ended")
	cmd.Flags().BoolVar(&raw, "raw", false, "print the bytes as they were written, terminal sequences included")
	cmd.Flags().IntVar(&try, "try", 0, "which try of the task, counted from 1; the last when 0")
	return cmd
}

// chooseAttempt returns the attempt whose log a person wants to see.
func chooseAttempt(ctx context.Context, c *client, r *pipeline.Run, task pipeline.TaskName, try int) (pipeline.AttemptID, error) {
	if task == "" {
		task = interesting(r)
	}
	if r.Task(task) == nil {
		names := make([]string, len(r.Tasks))
		for i := range r.Tasks {
			names[i] = string(r.Tasks[i].Name)
		}
		return "", fault.New(fault.NotFound, "%s has no task %q; its tasks: %s", runName(r), task, strings.Join(names, ", "))
	}
	attempts, err := c.attempts(ctx, r.ID)
	if err != nil {
		return "", err
	}
	var found pipeline.AttemptID
	for _, a := range attempts {
		if a.Task == task && (try == 0 || a.Token.Epoch == int64(try)) {
			found = a.ID
		}
	}
	if found == "" {
		t := r.Task(task)
		return "", fault.New(fault.NotFound, "task %s of %s has not started: it is %s, %s", task, runName(r), t.State, t.Reason)
	}
	return found, nil
}

func interesting(r *pipeline.Run) pipeline.TaskName {
	for _, want := range []func(pipeline.State) bool{
		func(s pipeline.State) bool {
			return s == pipeline.Failure || s == pipeline.Error || s == pipeline.Timeout
		},
		func(s pipeline.State) bool { return s.Active() },
	} {
		for i := range r.Tasks {
			if want(r.Tasks[i].State) {
				return r.Tasks[i].Name
			}
		}
	}
	var last pipeline.TaskName
	var at time.Time
	for i := range r.Tasks {
		if t := &r.Tasks[i]; t.Attempt != "" && !t.StartedAt.Before(at) {
			last, at = t.Name, t.StartedAt
		}
	}
	if last == "" && len(r.Tasks) > 0 {
		last = r.Tasks[0].Name
	}
	return last
}

func newWhy() *cobra.Command {
	var c client
	var asJSON bool
	cmd := &cobra.Command{
		Use: "why RUN [TASK] | why COMMIT [COMPOSITION]", Short: "Say why something waits, ran, or did not",
		Args:    cobra.RangeArgs(1, 2),
		Example: "  reconciler why release#12 test\n  reconciler why 9f3c1e2a4b5c release",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, w := cmd.Context(), cmd.OutOrStdout()
			if isCommit(args[0]) {
				return whyCommit(ctx, w, &c, args, asJSON)
			}
			return whyRun(ctx, w, &c, args, asJSON)
		},
	}
	serverFlag(cmd, &c)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

// isCommit tells a commit from a run: runs that are not ids have a letter beyond f or a #.
func isCommit(s string) bool {
	return len(s) >= 7 && len(s) <= 40 && strings.Trim(s, "0123456789abcdef") == ""
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

func newAgents() *cobra.Command {
	var c client
	var o output
	cmd := &cobra.Command{
		Use: "agents", Short: "List agents, or invite one", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			type agent struct {
				pipeline.Agent
				Online  bool              `json:"online"`
				Running []json.RawMessage `json:"running"`
			}
			var list struct {
				Agents []agent `json:"agents"`
			}
			if err := c.get(cmd.Context(), "/agents", nil, &list); err != nil {
				return err
			}
			return print(cmd.OutOrStdout(), o, "AGENT\tNAME\tPOOL\tSTATE\tTASKS\tSEEN", list.Agents, func(a *agent) []string {
				return []string{string(a.ID), oneLine(a.Name), string(a.Pool), string(a.State), fmt.Sprint(len(a.Running)), ago(a.SeenAt)}
			}, func(a *agent) string { return string(a.ID) })
		},
	}
	serverFlag(cmd, &c)
	o.flags(cmd)
	cmd.AddCommand(newInvite())
	return cmd
}

func newInvite() *cobra.Command {
	var data string
	var req inviteRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use: "invite", Short: "Print a one-time token with which an agent joins a pool", Args: cobra.NoArgs,
		Long: `Print a one-time token with which one agent joins a pool. Run it on the
reconciler's machine, as its user: it asks the server over a socket in the data
folder. The token is good for 15 minutes and for one agent.`,
		Example: "  reconciler agents invite --pool linux\n  agentd --server http://reconciler:8421 --token-file token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, "RECONCILER_"); err != nil {
				return err
			}
			var resp inviteResponse
			if err := askAdmin(cmd.Context(), data, "/invite", req, &resp); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), resp)
			}
			fmt.Fprintln(cmd.OutOrStdout(), resp.Token)
			fmt.Fprintf(os.Stderr, "Good until %s, for one agent. On its machine:\n  agentd --server %s --token-file FILE\n",
				resp.Expires.Format(time.RFC3339), resp.Intake)
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", defaultData(), "data folder of the running server")
	cmd.Flags().StringVar((*string)(&req.Pool), "pool", "default", "the pool that the agent joins")
	cmd.Flags().BoolVar(&req.Untrusted, "untrusted", false, "the agent may run what nobody approved, and nothing else")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print token, expiry and address as JSON")
	return cmd
}
