package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

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
