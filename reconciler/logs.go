package main

import (
	"context"
	"io"
	"net/url"
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
