package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func newWhy() *cobra.Command {
	var c client
	var asJSON bool
	cmd := &cobra.Command{
		Use: "why RUN [TASK] | why COMMIT [COMPOSITION]", Short: "Say why something waits, ran, or did not",
		Args:    cobra.RangeArgs(1, 2),
		Long:    "Say why something waits, ran, or did not.\n\n" + refHelp + "\nA commit is named by its id or at least the first 7 digits of it.",
		Example: "  reconciler why release#12 test\n  reconciler why 9f3c1e2a4b5c release",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, w := cmd.Context(), cmd.OutOrStdout()
			if isCommit(args[0]) {
				err := whyCommit(ctx, w, &c, args, asJSON)
				if !fault.Is(err, fault.NotFound) || !pipeline.ValidName(args[0]) {
					return err
				}
				if runErr := whyRun(ctx, w, &c, args, asJSON); !fault.Is(runErr, fault.NotFound) {
					return runErr
				}
				return err
			}
			return whyRun(ctx, w, &c, args, asJSON)
		},
	}
	serverFlag(cmd, &c)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

// isCommit reports whether s looks like a commit or the first digits of one. A
// composition may be named so too.
func isCommit(s string) bool {
	return len(s) >= 7 && len(s) <= 64 && strings.Trim(strings.ToLower(s), "0123456789abcdef") == ""
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
			known := make([]string, len(rec.Verdicts))
			for i, v := range rec.Verdicts {
				known[i] = string(v.Composition)
			}
			return fault.New(fault.NotFound, "commit %s has no verdict on %q%s", rec.Commit.Short(), args[1], didYouMean(args[1], known))
		}
		rec.Verdicts = kept
	}
	if asJSON {
		return writeJSON(w, rec)
	}
	at := string(rec.Ref)
	if rec.Repo != "" {
		at += " of " + rec.Repo
	}
	fmt.Fprintf(w, "%s  %s  %s\n", rec.Commit.Short(), oneLine(at), oneLine(rec.Subject))
	for _, d := range rec.Diagnostics {
		fmt.Fprintln(w, oneLine(d.String()))
	}
	return print(w, output{format: "table"}, "COMPOSITION\tEVENT\tVERDICT\tWHY", rec.Verdicts, func(v *pipeline.Verdict) []string {
		return []string{string(v.Composition), v.Kind, v.Outcome, oneLine(v.Sentence)}
	}, nil)
}

// whyAnswer is what why --json prints of a run.
type whyAnswer struct {
	Run       string         `json:"run"`
	ID        pipeline.RunID `json:"id"`
	State     pipeline.State `json:"state"`
	Sentence  string         `json:"sentence"`
	StartedBy string         `json:"started_by"`
	CreatedAt time.Time      `json:"created_at"`
	Tasks     []whyTask      `json:"tasks"`
}

type whyTask struct {
	Task     pipeline.TaskName `json:"task"`
	State    pipeline.State    `json:"state"`
	Sentence string            `json:"sentence"`
	Now      *pipeline.Note    `json:"now,omitempty"`
}

func whyRun(ctx context.Context, w io.Writer, c *client, args []string, asJSON bool) error {
	r, err := c.find(ctx, args[0])
	if err != nil {
		return err
	}
	trigger, err := trigger(ctx, c, &r)
	if err != nil {
		return err
	}
	a := whyAnswer{runName(&r.Run), r.ID, r.Shown, r.Sentence, trigger, r.CreatedAt, nil}
	for i := range r.Tasks {
		if t := &r.Tasks[i]; len(args) == 1 || string(t.Name) == args[1] {
			a.Tasks = append(a.Tasks, whyTask{t.Name, t.Shown, said(t), t.Now})
		}
	}
	if len(a.Tasks) == 0 && len(args) == 2 {
		return fault.New(fault.NotFound, "%s has no task %q%s", a.Run, args[1], didYouMean(args[1], taskNames(&r)))
	}
	if asJSON {
		return writeJSON(w, a)
	}
	fmt.Fprintf(w, "%s is %s: %s\n", a.Run, a.State, oneLine(a.Sentence))
	fmt.Fprintf(w, "  %s of %s, %s (%s)\n", startedBy(&r.Event, trigger), whose(&r.Run), r.CreatedAt.UTC().Format(time.RFC3339), ago(r.CreatedAt))
	for _, t := range a.Tasks {
		fmt.Fprintf(w, "  %-20s %-10s %s\n", t.Task, t.State, oneLine(t.Sentence))
	}
	return nil
}

// startedBy says what began a run. Of what somebody asked for the trigger says it all.
func startedBy(e *pipeline.Event, trigger string) string {
	if e.Kind == pipeline.EventManual {
		return oneLine(trigger)
	}
	return "started by " + oneLine(trigger)
}

// whose names the commit that a run is about, with its subject and author where the event
// has them: that of a request names who asked, and no subject.
func whose(r *pipeline.Run) string {
	if r.Event.Subject == "" {
		return codeOf(r)
	}
	return fmt.Sprintf("%s %q by %s", codeOf(r), oneLine(r.Event.Subject), oneLine(r.Event.Author))
}

// trigger says what started a run: the sentence of the verdict that did, or, of a run
// that another of the same commit replaced, the event.
func trigger(ctx context.Context, c *client, r *shownRun) (string, error) {
	if old := r.Resumes; old != nil {
		return fmt.Sprintf("%s, who asked to go on from %s#%d,", cmp.Or(old.By, "somebody"), r.Composition, old.Number), nil
	}
	if by := r.Event.Cause; by != nil {
		s := fmt.Sprintf("%s of %s#%d", r.Event.Kind, by.Composition, by.Number)
		if by.Task != "" {
			s += ", task " + string(by.Task)
		}
		return s + ",", nil
	}
	var rec struct {
		Verdicts []pipeline.Verdict `json:"verdicts"`
	}
	err := c.get(ctx, "/commits/"+string(r.Head().Commit), nil, &rec)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return "", err
	}
	for _, v := range rec.Verdicts {
		if v.Run == r.ID {
			return v.Sentence, nil
		}
	}
	return fmt.Sprintf("%s to %s", r.Event.Kind, cmp.Or(r.Event.Ref.Branch(), string(r.Ref))), nil
}

// said is why a task is in its state; of one that ended without a word, when it ran.
func said(t *shownTask) string {
	if t.Sentence != "" || t.StartedAt.IsZero() {
		return t.Sentence
	}
	return fmt.Sprintf("ran %s on agent %s", took(t.StartedAt, t.FinishedAt), cmp.Or(t.AgentName, string(t.Agent)))
}

func taskNames(r *shownRun) []string {
	names := make([]string, len(r.Tasks))
	for i := range r.Tasks {
		names[i] = string(r.Tasks[i].Name)
	}
	return names
}
