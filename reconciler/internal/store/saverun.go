package store

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// saveTask writes all that may change in a task but its epoch. It never makes a
// task offered: that is for offerTask alone.
const saveTask = `UPDATE tasks SET state = ?1, reason = ?2, failures = ?3, attempt_id = ?4, agent_id = ?5, slot = ?6,
		outputs = ?7, links = ?8, exit = ?9, ready_at = ?10, started_at = ?11, finished_at = ?12, not_before = ?13,
		child = ?18, reviews = ?19, records = ?20, message = ?21, cancel = ?22
	WHERE run_id = ?14 AND name = ?15 AND state = ?16 AND epoch = ?17 AND (?1 <> 'offered' OR state = 'offered')`

// offerTask is the only statement that makes a task offered, so that there is one
// place to look for what must hold before an agent may hear of it.
const offerTask = `UPDATE tasks SET state = 'offered', epoch = epoch + 1, reason = ?2, failures = ?3, attempt_id = ?4,
		agent_id = ?5, slot = ?6, outputs = ?7, links = ?8, exit = ?9, ready_at = ?10, started_at = ?11,
		finished_at = ?12, not_before = ?13
	WHERE ?1 = 'offered' AND run_id = ?14 AND name = ?15 AND state = 'ready' AND state = ?16 AND epoch = ?17
		AND EXISTS (SELECT 1 FROM runs WHERE id = ?14 AND (cancel = 0 OR ?18) AND finished_at IS NULL)`

// SaveRun writes what differs between before, as it was read, and after: one
// statement for each task that changed, and one for the run when anything in it
// changed, its Version included; then it sets after.Version to before.Version+1. A
// change of state, of the sentence that explains it or of Cancel appends a change
// row, tasks before their run.
//
// When the record no longer is as before says, the error is a fault.Conflict. A
// move that the table in pipeline does not have, a change of what has ended and
// other impossible values are fault.Internal. After either the transaction will
// not be committed. Specs and what a run was made with are not written; the params
// and the group of a draft are, with the step that ends the draft.
func (tx *Tx) SaveRun(before, after *pipeline.Run) error {
	if before.ID != after.ID || len(before.Tasks) != len(after.Tasks) {
		return tx.defect("save run %s: %s with %d tasks is not what became of it with %d", before.ID, after.ID, len(after.Tasks), len(before.Tasks))
	}
	changed := !sameRun(before, after) || after.Version != before.Version
	for i := range after.Tasks {
		b, a := &before.Tasks[i], &after.Tasks[i]
		if sameTask(b, a) {
			continue
		}
		changed = true
		if err := tx.saveTask(after, b, a); err != nil {
			return fmt.Errorf("save run %s, task %s: %w", after.ID, a.Name, err)
		}
	}
	if !changed {
		return nil
	}
	if err := tx.saveRun(before, after); err != nil {
		return fmt.Errorf("save run %s: %w", after.ID, err)
	}
	return nil
}

func (tx *Tx) saveTask(run *pipeline.Run, b, a *pipeline.RunTask) error {
	offer := a.State == pipeline.Offered && b.State != pipeline.Offered
	epoch := b.Epoch
	if offer {
		epoch++
	}
	switch {
	case a.Name != b.Name || a.Index != b.Index:
		return tx.defect("it was task %s before", b.Name)
	case b.State.Terminal():
		return tx.defect("it ended as %s, which is for ever", b.State)
	case a.State != b.State && !b.State.CanBecome(a.State),
		!a.Spec.BuiltIn() && b.State == pipeline.Pending && a.State == pipeline.Running:
		return tx.defect("%s is never followed by %s", b.State, a.State)
	case a.Epoch != epoch:
		return tx.defect("epoch %d follows %d in state %s", a.Epoch, b.Epoch, a.State)
	case offer && run.Cancel && a.Spec.When != pipeline.Always:
		return tx.defect("it is offered although the run is cancelled")
	}
	j, err := tx.taskJSON(a)
	if err != nil {
		return err
	}
	statement, args := saveTask, []any{
		string(a.State), a.Reason, a.Failures, orNull(a.Attempt), orNull(a.Agent), a.Slot,
		j.outputs, j.links, a.Exit, instant(a.ReadyAt), instant(a.StartedAt), instant(a.FinishedAt), instant(a.NotBefore),
		string(run.ID), string(b.Name), string(b.State), b.Epoch,
	}
	if offer {
		statement, args = offerTask, append(args, a.Spec.When == pipeline.Always)
	} else {
		args = append(args, orNull(a.Child), j.reviews, j.records, a.Message, a.Cancel)
	}
	n, err := tx.exec(statement, args...)
	if err != nil {
		return err
	}
	if n != 1 {
		return tx.conflict("it no longer is %s in epoch %d, or its run may not go on", b.State, b.Epoch)
	}
	if a.State == b.State && a.Reason == b.Reason {
		return nil
	}
	return tx.change(pipeline.Change{Kind: pipeline.ChangeTask, Run: run.ID, Task: a.Name, Agent: a.Agent, State: a.State, Reason: a.Reason})
}

func (tx *Tx) saveRun(b, a *pipeline.Run) error {
	if b.State.Terminal() {
		return tx.defect("it ended as %s, which is for ever", b.State)
	}
	if b.Cancel && !a.Cancel {
		return tx.defect("a cancelled run does not go on")
	}
	if !b.Draft && (a.Draft || a.Group != b.Group || !bytes.Equal(a.Params, b.Params)) {
		return tx.defect("what it was made with stays")
	}
	params, err := rawJSON(a.Params)
	if err != nil {
		return tx.fail(fmt.Errorf("params: %w", err))
	}
	behind, err := asJSON(a.Behind)
	if err != nil {
		return tx.fail(fmt.Errorf("behind: %w", err))
	}
	outputs, err := rawJSON(a.Outputs)
	if err != nil {
		return tx.fail(fmt.Errorf("outputs: %w", err))
	}
	n, err := tx.exec(`UPDATE runs SET state = ?, reason = ?, cancel = ?, priority = ?, started_at = ?, finished_at = ?,
			draft = ?, params = ?, grp = ?, behind = ?, outputs = ?, version = version + 1
		WHERE id = ? AND version = ?`,
		string(a.State), a.Reason, a.Cancel, a.Priority, instant(a.StartedAt), instant(a.FinishedAt),
		a.Draft, params, a.Group, behind, outputs, string(b.ID), b.Version)
	if err != nil {
		return err
	}
	if n != 1 {
		return tx.conflict("it no longer is of version %d", b.Version)
	}
	a.Version = b.Version + 1
	if a.State == b.State && a.Reason == b.Reason && a.Cancel == b.Cancel {
		return nil
	}
	return tx.change(pipeline.Change{Kind: pipeline.ChangeRun, Run: a.ID, Commit: a.Commit, State: a.State, Reason: a.Reason})
}

// sameRun compares what SaveRun writes of a run itself.
func sameRun(a, b *pipeline.Run) bool {
	return a.State == b.State && a.Reason == b.Reason && a.Cancel == b.Cancel && a.Priority == b.Priority &&
		a.Draft == b.Draft && a.Group == b.Group && bytes.Equal(a.Params, b.Params) &&
		a.StartedAt.Equal(b.StartedAt) && a.FinishedAt.Equal(b.FinishedAt) &&
		slices.Equal(a.Behind, b.Behind) && bytes.Equal(a.Outputs, b.Outputs)
}

// sameTask compares what SaveRun writes of a task.
func sameTask(a, b *pipeline.RunTask) bool {
	return a.Name == b.Name && a.Index == b.Index && a.State == b.State && a.Reason == b.Reason && a.Epoch == b.Epoch &&
		a.Failures == b.Failures && a.Attempt == b.Attempt && a.Agent == b.Agent && a.Slot == b.Slot &&
		bytes.Equal(a.Outputs, b.Outputs) && bytes.Equal(a.Records, b.Records) && slices.Equal(a.Links, b.Links) && sameExit(a.Exit, b.Exit) &&
		a.ReadyAt.Equal(b.ReadyAt) && a.StartedAt.Equal(b.StartedAt) &&
		a.FinishedAt.Equal(b.FinishedAt) && a.NotBefore.Equal(b.NotBefore) &&
		a.Child == b.Child && a.Message == b.Message && a.Cancel == b.Cancel && slices.EqualFunc(a.Reviews, b.Reviews, sameReview)
}

func sameReview(a, b pipeline.Review) bool {
	return a.By == b.By && a.Approve == b.Approve && a.Comment == b.Comment && a.At.Equal(b.At)
}

func sameExit(a, b *int) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
