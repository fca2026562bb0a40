package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func newWatch() *cobra.Command {
	var c client
	cmd := &cobra.Command{
		Use: "watch RUN", Short: "Follow a run to its end; the exit code is its result", Args: cobra.ExactArgs(1),
		Long: `Follow a run to its end. The exit code is 0 when it succeeded and 1 when it did not.
Interrupting stops the watching, not the run. A server that goes away is waited for,
for 5 minutes.

` + refHelp,
		Example: "  reconciler watch release\n  reconciler watch release#12 && ./publish",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := c.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			w := newWatcher(&c, cmd.OutOrStdout(), cmd.ErrOrStderr())
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
	prefix string
	retry  retry
	// refuse, when it is not nil, ends the watch at a run that cannot go on.
	refuse func(*shownRun) error
	// passing: the server ends with the run, so that nothing there can be asked later.
	passing bool

	told map[pipeline.TaskName]told
	last time.Time // when a line was printed
}

// told is what was printed of a task last.
type told struct {
	state          pipeline.State
	sentence, note string
	links          int
	silent         bool
}

func newWatcher(c *client, out, errs io.Writer) *watcher {
	return &watcher{client: c, out: out, retry: retry{out: errs, what: c.base}, told: map[pipeline.TaskName]told{}, last: time.Now()}
}

const (
	// slowly is how often a run is looked at without any news, in case one was lost.
	slowly = 5 * time.Second
	// quiet is how long nothing is printed before what runs is named again.
	quiet = 30 * time.Second
)

// follow returns the run once it has ended. A server that goes away is waited for.
func (w *watcher) follow(ctx context.Context, id pipeline.RunID) (shownRun, error) {
	for {
		r, done, err := w.listen(ctx, id)
		if done {
			return r, nil
		}
		if err := w.retry.wait(ctx, err); err != nil {
			return r, err
		}
	}
}

// listen looks at the run whenever there is news of it, until it has ended or the
// server cannot be heard.
func (w *watcher) listen(ctx context.Context, id pipeline.RunID) (shownRun, bool, error) {
	// The sequence is read before the run, so that nothing falls between them.
	seq, err := w.client.lastSeq(ctx)
	if err != nil {
		return shownRun{}, false, err
	}
	ctx, cancel := context.WithCancel(ctx)
	news, broken := make(chan struct{}, 1), make(chan error, 1)
	go func() { // ends with ctx or the stream
		broken <- w.client.changes(ctx, seq, func(ch pipeline.Change) {
			if ch.Run == id || ch.Kind == pipeline.ChangeAgent {
				select {
				case news <- struct{}{}:
				default:
				}
			}
		})
		close(broken)
	}()
	defer func() { // the stream has ended when listen returns
		cancel()
		for range broken {
		}
	}()
	tick := time.NewTicker(slowly)
	defer tick.Stop()
	for {
		r, done, err := w.look(ctx, id)
		if done || err != nil {
			return r, done, err
		}
		w.retry.reached()
		select {
		case <-news:
		case <-tick.C:
		case err := <-broken:
			return r, false, err
		}
	}
}

// look prints what changed since the last look.
func (w *watcher) look(ctx context.Context, id pipeline.RunID) (shownRun, bool, error) {
	var r shownRun
	if err := w.client.get(ctx, "/runs/"+string(id), nil, &r); err != nil {
		return r, false, err
	}
	var active []string
	for i := range r.Tasks {
		t := &r.Tasks[i]
		w.tell(t)
		if t.State.Active() {
			active = append(active, fmt.Sprintf("%s %s", t.Name, strings.TrimSuffix(took(t.StartedAt, time.Time{}), "…")))
		}
	}
	switch {
	case r.State.Terminal():
		w.printf("%s %s  %s  %s", now(), runName(&r.Run), shown(r.State), took(r.StartedAt, r.FinishedAt))
		if !r.State.Good() {
			w.failure(ctx, &r)
		}
	case time.Since(w.last) > quiet && len(active) > 0:
		w.printf("%s   still running: %s", now(), strings.Join(active, ", "))
	case time.Since(w.last) > quiet:
		w.printf("%s   still waiting: %s", now(), oneLine(r.Sentence))
	}
	if w.refuse != nil && !r.State.Terminal() {
		return r, false, w.refuse(&r)
	}
	return r, r.State.Terminal(), nil
}

func (w *watcher) printf(format string, args ...any) {
	w.last = time.Now()
	fmt.Fprintf(w.out, w.prefix+format+"\n", args...)
}

// tell prints a task when it is worth a line: it moved, or has something new to say.
func (w *watcher) tell(t *shownTask) {
	before, n := w.told[t.Name], told{state: t.Shown, silent: !t.SilentSince.IsZero()}
	if t.Shown == blocked {
		n.sentence = t.Sentence
	}
	if t.Now != nil {
		n.note, n.links = coarse(t.Now), len(t.Now.Links)
	}
	if n == before || t.Shown == pipeline.Pending || t.Shown == pipeline.Offered {
		return
	}
	w.told[t.Name] = n
	extra := oneLine(t.Sentence)
	if t.State.Terminal() {
		extra = strings.TrimSpace(took(t.StartedAt, t.FinishedAt) + "  " + extra)
	}
	w.printf("%s   %-20s %-12s %s", now(), t.Name, shown(t.Shown), extra)
	if links := t.links(); len(links) > before.links {
		for _, l := range links[before.links:] {
			w.printf("%s   %-20s %s: %s", now(), t.Name, oneLine(l.Name), oneLine(l.URL))
		}
	}
}

// coarse is a note with its progress in tenths, so that a line is printed for each
// of them and not for each word of a program that counts.
func coarse(n *pipeline.Note) string {
	c := n.Clone()
	if c.Progress != nil {
		p := math.Floor(*c.Progress*10) / 10
		c.Progress = &p
	}
	return c.String()
}

func now() string { return time.Now().UTC().Format("15:04:05Z") }

// failure repeats what went wrong at the end, where people look, with the end of
// the log.
func (w *watcher) failure(ctx context.Context, r *shownRun) {
	attempts, err := w.client.attempts(ctx, r.ID)
	if err != nil {
		return
	}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.State != pipeline.Failure && t.State != pipeline.Error && t.State != pipeline.Timeout {
			continue
		}
		fmt.Fprintf(w.out, "%s\n%s%s  %s  %s\n", w.prefix, w.prefix, t.Name, shown(t.State), oneLine(t.Sentence))
		for _, a := range attempts {
			if a.ID == t.Attempt {
				w.tail(ctx, a.ID)
			}
		}
		if !w.passing {
			fmt.Fprintf(w.out, "%s  log: reconciler logs %s %s\n", w.prefix, runName(&r.Run), t.Name)
		}
	}
	if w.passing {
		return
	}
	fmt.Fprintf(w.out, "%s  web: %s\n", w.prefix, w.client.runURL(&r.Run))
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
	text := strings.TrimRight(string(last), "\n")
	if text == "" {
		return
	}
	all := strings.Split(text, "\n")
	for _, l := range all[max(0, len(all)-lines):] {
		fmt.Fprintf(w.out, "%s  | %s\n", w.prefix, oneLine(l))
	}
}
