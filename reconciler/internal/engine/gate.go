package engine

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func (m *machine) asked(e Asked) error {
	t := m.run.Task(e.Task)
	if t == nil || t.State != pipeline.Held {
		return ErrStale
	}
	t.Message = messageIn(e.Fields)
	return nil
}

// noMessage stands for the message of a gate that has none.
const noMessage = "Go on?"

func messageIn(fields json.RawMessage) string {
	var f struct{ Message string }
	// What is no object has no message; its type was checked with the composition.
	_ = json.Unmarshal(fields, &f)
	if f.Message == "" {
		return noMessage
	}
	return f.Message
}

func (m *machine) reviewed(e Reviewed) error {
	t := m.run.Task(e.Task)
	if t == nil || t.State != pipeline.Held || e.Review.By == "" {
		return ErrStale
	}
	if slices.ContainsFunc(t.Reviews, func(r pipeline.Review) bool {
		return r.By == e.Review.By && r.Approve == e.Review.Approve && r.Comment == e.Review.Comment
	}) {
		return ErrStale // it was read before
	}
	// The latest word of each person counts.
	t.Reviews = append(slices.DeleteFunc(slices.Clone(t.Reviews), func(r pipeline.Review) bool {
		return r.By == e.Review.By
	}), e.Review)
	if !e.Review.Approve {
		m.move(t, pipeline.Failure, withComment("refused by "+e.Review.By, e.Review.Comment))
		return nil
	}
	if missing(t) > 0 {
		m.move(t, pipeline.Held, WaitsFor(m.run, t, ""))
		return nil
	}
	by, comment, at := approvers(t), "", time.Time{}
	for _, r := range t.Reviews {
		if r.At.After(at) {
			at = r.At
		}
		if r.Comment != "" {
			comment = r.Comment
		}
	}
	outputs, err := json.Marshal(map[string]any{"approved_by": by, "approved_at": at.UTC().Format(time.RFC3339), "comment": comment})
	if err != nil {
		return fmt.Errorf("run %s: outputs of gate %s: %w", m.run.ID, t.Name, err)
	}
	t.Outputs = outputs
	m.move(t, pipeline.Success, withComment("approved by "+strings.Join(by, ", "), comment))
	return nil
}

func (m *machine) withdrawn(e Withdrawn) error {
	t := m.run.Task(e.Task)
	by := func(r pipeline.Review) bool { return r.By == e.By }
	if t == nil || t.State != pipeline.Held || !slices.ContainsFunc(t.Reviews, by) {
		return ErrStale
	}
	t.Reviews = slices.DeleteFunc(slices.Clone(t.Reviews), by)
	m.move(t, pipeline.Held, WaitsFor(m.run, t, ""))
	return nil
}

func withComment(s, comment string) string {
	if comment == "" {
		return s
	}
	return s + ": " + comment
}

func approvers(t *pipeline.RunTask) []string {
	by := []string{}
	for _, r := range t.Reviews {
		if r.Approve {
			by = append(by, r.By)
		}
	}
	slices.Sort(by)
	return by
}

func missing(t *pipeline.RunTask) int { return max(t.Spec.Gate.Count, 1) - len(approvers(t)) }

// WaitsFor says what a gate that is held waits for, and what else is to be said of it.
func WaitsFor(r *pipeline.Run, t *pipeline.RunTask, note string) string {
	s := fmt.Sprintf("waits for %d more approval", missing(t))
	if missing(t) > 1 {
		s += "s"
	}
	if groups := t.Spec.Gate.Approvers; len(groups) > 0 {
		s += " of " + strings.Join(groups, " or ")
	}
	if by := approvers(t); len(by) > 0 {
		s += " (approved by " + strings.Join(by, ", ") + ")"
	}
	s += fmt.Sprintf(": reconciler review %s/%s", nameOf(r), t.Name)
	if note != "" {
		s += "; " + note
	}
	return s
}
