package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func newLogs() *cobra.Command {
	var c client
	var follow, raw bool
	var try int
	cmd := &cobra.Command{
		Use: "logs RUN [TASK]", Short: "Print or follow a task's log", Args: cobra.RangeArgs(1, 2),
		Long: `Print a task's log. Without TASK it is the one that failed, else the one that runs,
else the last. Into a file or another program it goes without colours, unless --raw
is given. With --follow a server that goes away is waited for, for 5 minutes.

` + refHelp,
		Example: "  reconciler logs release#12 test\n  reconciler logs -f release",
		RunE: func(cmd *cobra.Command, args []string) error {
			if try < 0 || try == 0 && cmd.Flags().Changed("try") {
				return fault.New(fault.Invalid, "--try %d: tries are counted from 1", try)
			}
			r, err := c.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			var task pipeline.TaskName
			if len(args) == 2 {
				task = pipeline.TaskName(args[1])
			}
			a, err := chooseAttempt(cmd.Context(), &c, &r, task, try)
			if follow && fault.Is(err, fault.NotFound) && r.Task(cmp.Or(task, interesting(&r))) != nil {
				a, err = awaitAttempt(cmd.Context(), &c, &r, cmp.Or(task, interesting(&r)), try, cmd.ErrOrStderr())
			}
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if !raw {
				out = &calm{w: out, plain: !colour(os.Stdout)}
			}
			return copyLog(cmd.Context(), &c, a, follow, out, cmd.ErrOrStderr())
		},
	}
	serverFlag(cmd, &c)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the task has ended")
	cmd.Flags().BoolVar(&raw, "raw", false, "print the bytes as they were written, terminal sequences included")
	cmd.Flags().IntVar(&try, "try", 0, "which try of the task, counted from 1 (the last when it is not given)")
	return cmd
}

// awaitAttempt waits until the task is given to an agent, and says what it waits for.
func awaitAttempt(ctx context.Context, c *client, r *shownRun, task pipeline.TaskName, try int, errs io.Writer) (pipeline.AttemptID, error) {
	again := retry{out: errs, what: c.base}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	said := ""
	for {
		id, err := chooseAttempt(ctx, c, r, task, try)
		t := r.Task(task)
		if err == nil || fault.Is(err, fault.NotFound) && t.State.Terminal() {
			return id, err
		}
		if s := fmt.Sprintf("%s of %s is %s: %s", task, runName(&r.Run), t.Shown, oneLine(t.Sentence)); s != said {
			said = s
			fmt.Fprintln(errs, now(), s)
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-tick.C:
		}
		var next shownRun
		if err := c.get(ctx, "/runs/"+string(r.ID), nil, &next); err == nil {
			again.reached()
			*r = next
		} else if err := again.wait(ctx, err); err != nil {
			return "", err
		}
	}
}

// copyLog writes an attempt's log to out. With follow it goes on until the log is
// complete, and waits for a server that goes away, to go on where it was.
func copyLog(ctx context.Context, c *client, id pipeline.AttemptID, follow bool, out, errs io.Writer) error {
	path := "/attempts/" + string(id) + "/log"
	again := retry{out: errs, what: c.base}
	var off int64
	for {
		n, err := copyPart(ctx, c, path, off, follow, out, &again)
		off += n
		if err == nil && !follow {
			return nil
		}
		if err == nil {
			var complete bool
			if complete, err = isComplete(ctx, c, path, off); complete {
				return nil
			}
		}
		if err == nil {
			err = fault.New(fault.Unavailable, "the log ended before it was complete")
		}
		if err := again.wait(ctx, err); err != nil {
			return err
		}
	}
}

// copyPart copies from an offset to the end of one answer.
func copyPart(ctx context.Context, c *client, path string, off int64, follow bool, out io.Writer, again *retry) (int64, error) {
	q := url.Values{"off": {strconv.FormatInt(off, 10)}}
	if follow {
		q.Set("follow", "1")
	}
	body, err := c.open(ctx, path, q)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	again.reached()
	in := &source{r: body}
	n, err := io.Copy(out, in)
	switch {
	case ctx.Err() != nil:
		return n, ctx.Err()
	case in.err != nil:
		return n, fault.New(fault.Unavailable, "the log broke off: %w", in.err)
	}
	return n, err
}

// source remembers that reading failed, to tell it from a failure to write.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// isComplete reports whether the log has ended and off is its end: a server that
// stops ends its answers too.
func isComplete(ctx context.Context, c *client, path string, off int64) (bool, error) {
	resp, err := c.do(ctx, http.MethodHead, path, nil)
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	length, err := strconv.ParseInt(resp.Header.Get("Maestro-Log-Bytes"), 10, 64)
	if err != nil {
		return false, fault.New(fault.Unavailable, "the server does not tell the length of the log: %w", err)
	}
	return resp.Header.Get("Maestro-Log-Sealed") == "true" && off >= length, nil
}

// chooseAttempt returns the attempt whose log a person wants to see.
func chooseAttempt(ctx context.Context, c *client, r *shownRun, task pipeline.TaskName, try int) (pipeline.AttemptID, error) {
	if task == "" {
		task = interesting(r)
	}
	if r.Task(task) == nil {
		return "", fault.New(fault.NotFound, "%s has no task %q%s", runName(&r.Run), task, didYouMean(string(task), taskNames(r)))
	}
	attempts, err := c.attempts(ctx, r.ID)
	if err != nil {
		return "", err
	}
	var found pipeline.AttemptID
	var tries []string
	for _, a := range attempts {
		if a.Task != task {
			continue
		}
		tries = append(tries, strconv.FormatInt(a.Token.Epoch, 10))
		if try == 0 || a.Token.Epoch == int64(try) {
			found = a.ID
		}
	}
	t := r.Task(task)
	switch {
	case found != "":
		return found, nil
	case len(tries) == 0:
		return "", fault.New(fault.NotFound, "task %s of %s has no log, because no agent was given it: it is %s, %s", task, runName(&r.Run), t.Shown, t.Sentence)
	}
	return "", fault.New(fault.NotFound, "task %s of %s has no try %d; it has %s", task, runName(&r.Run), try, strings.Join(tries, ", "))
}

func interesting(r *shownRun) pipeline.TaskName {
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
