package store

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// CreateRun adds a run as the engine first left it, and sets r.Number and
// r.Version; they are void when the transaction is rolled back. c is what the run
// was planned with: its digest is the run's, and it has every task of the run. It
// is kept once for each digest, and so are those that a run of it may call: a run
// goes on with what it was planned with.
//
// When a run with the same key is there already, or was and is removed, the error is a fault.Conflict
// and nothing was written; the transaction may go on.
func (tx *Tx) CreateRun(r *pipeline.Run, c *pipeline.Composition, calls ...*pipeline.Composition) error {
	var other pipeline.RunID
	err := tx.scan(`SELECT id FROM runs WHERE run_key = ?`, []any{string(r.Key)}, &other)
	if err == nil {
		return fault.New(fault.Conflict, "create run of %s: run %s was made for the same event", r.Composition, other)
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.scan(`SELECT run_id FROM spent_keys WHERE run_key = ?`, []any{string(r.Key)}, &other)
		if err == nil {
			return fault.New(fault.Conflict, "create run of %s: run %s was made for the same event, and removed since", r.Composition, other)
		}
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("create run %s: %w", r.ID, err)
	}
	if err := tx.checkNew(r, c); err != nil {
		return err
	}
	for _, c := range append([]*pipeline.Composition{c}, calls...) {
		if err := tx.keepComposition(c); err != nil {
			return fmt.Errorf("create run %s: keep %s: %w", r.ID, c.Name, err)
		}
	}
	if err := tx.insertRun(r); err != nil {
		return fmt.Errorf("create run %s: %w", r.ID, err)
	}
	return nil
}

// checkNew refuses what could be written and not be read again.
func (tx *Tx) checkNew(r *pipeline.Run, c *pipeline.Composition) error {
	if r.Digest != c.Digest || r.Composition != c.Name {
		return tx.defect("create run %s: it is of %s %s, and was planned with %s %s", r.ID, r.Composition, r.Digest, c.Name, c.Digest)
	}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if c.Task(t.Name) == nil {
			return tx.defect("create run %s: task %q is not in the composition", r.ID, t.Name)
		}
		if t.Epoch != 0 || t.State.Active() && !t.Spec.BuiltIn() {
			return tx.defect("create run %s: task %q cannot begin as %s in epoch %d", r.ID, t.Name, t.State, t.Epoch)
		}
	}
	return nil
}

func (tx *Tx) insertRun(r *pipeline.Run) error {
	if err := tx.scan(`INSERT INTO counters VALUES (?, 1) ON CONFLICT DO UPDATE SET last = last + 1 RETURNING last`,
		[]any{string(r.Composition)}, &r.Number); err != nil {
		return err
	}
	r.Version = 1
	event, err := marshal(r.Event)
	if err != nil {
		return tx.fail(err)
	}
	params, err := rawJSON(r.Params)
	if err != nil {
		return tx.fail(fmt.Errorf("params: %w", err))
	}
	behind, err := asJSON(r.Behind)
	if err != nil {
		return tx.fail(fmt.Errorf("behind: %w", err))
	}
	resumes, err := orNone(r.Resumes)
	if err != nil {
		return tx.fail(fmt.Errorf("resumes: %w", err))
	}
	_, err = tx.exec(`INSERT INTO runs (id, composition, number, run_key, digest, commit_id, ref, source, head, event, params,
			priority, state, reason, cancel, created_at, started_at, finished_at, depth, draft, grp, behind, outputs, version, resumes)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?)`,
		string(r.ID), string(r.Composition), r.Number, string(r.Key), string(r.Digest), string(r.Commit), string(r.Ref),
		r.Head().Repo, string(r.Head().Commit), event, params, r.Priority, string(r.State), r.Reason, r.Cancel,
		r.CreatedAt.UnixNano(), instant(r.StartedAt), instant(r.FinishedAt), r.Depth, r.Draft, r.Group, behind, r.Version, resumes)
	if err != nil {
		return err
	}
	for i := range r.Tasks {
		if err := tx.insertTask(r.ID, &r.Tasks[i]); err != nil {
			return fmt.Errorf("task %s: %w", r.Tasks[i].Name, err)
		}
	}
	return tx.change(pipeline.Change{Kind: pipeline.ChangeRunCreated, Run: r.ID, Commit: r.Commit, State: r.State, Reason: r.Reason})
}

func (tx *Tx) insertTask(run pipeline.RunID, t *pipeline.RunTask) error {
	j, err := tx.taskJSON(t)
	if err != nil {
		return err
	}
	reused, err := orNone(t.Reused)
	if err != nil {
		return tx.fail(fmt.Errorf("reused: %w", err))
	}
	_, err = tx.exec(`INSERT INTO tasks (run_id, name, idx, state, reason, epoch, failures, attempt_id, agent_id, slot,
			outputs, links, exit, ready_at, started_at, finished_at, not_before, built_in, child, message, reviews, records, reused)
		VALUES (?, ?, ?, ?, ?, 0, ?, NULL, NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		string(run), string(t.Name), t.Index, string(t.State), t.Reason, t.Failures, t.Slot,
		j.outputs, j.links, t.Exit, instant(t.ReadyAt), instant(t.StartedAt), instant(t.FinishedAt), instant(t.NotBefore),
		t.Spec.BuiltIn(), orNull(t.Child), t.Message, j.reviews, j.records, reused)
	return err
}

// taskJSON holds a task's columns of JSON as they are stored.
type taskJSON struct{ outputs, records, links, reviews any }

func (tx *Tx) taskJSON(t *pipeline.RunTask) (j taskJSON, err error) {
	if j.outputs, err = rawJSON(t.Outputs); err != nil {
		return j, tx.fail(fmt.Errorf("outputs: %w", err))
	}
	if j.records, err = rawJSON(t.Records); err != nil {
		return j, tx.fail(fmt.Errorf("records: %w", err))
	}
	if j.links, err = asJSON(t.Links); err != nil {
		return j, tx.fail(fmt.Errorf("links: %w", err))
	}
	if j.reviews, err = asJSON(t.Reviews); err != nil {
		return j, tx.fail(fmt.Errorf("reviews: %w", err))
	}
	return j, nil
}

func (tx *Tx) keepComposition(c *pipeline.Composition) error {
	var there int
	err := tx.scan(`SELECT 1 FROM compositions WHERE digest = ?`, []any{string(c.Digest)}, &there)
	if err == nil || !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	body, err := marshal(c)
	if err != nil {
		return tx.fail(err)
	}
	_, err = tx.exec(`INSERT INTO compositions (digest, name, body) VALUES (?, ?, ?)`, string(c.Digest), string(c.Name), body)
	return err
}
