package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/mattn/go-sqlite3"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// attemptNext has the states that may follow each state of an attempt. A lost one
// ends once more when its task was in doubt and its agent reports after all.
var attemptNext = map[pipeline.AttemptState][]pipeline.AttemptState{
	pipeline.AttemptOffered: {pipeline.AttemptRunning, pipeline.AttemptDeclined},
	pipeline.AttemptRunning: {pipeline.AttemptDone, pipeline.AttemptLost},
	pipeline.AttemptLost:    {pipeline.AttemptDone},
}

// SaveAttempt writes what became of an attempt, or a new one when before is nil.
// It is written together with the run that it belongs to, which tells followers.
//
// When the record no longer is as before says, the error is a fault.Conflict; an
// agent, run or task that is not there is a fault.NotFound; an impossible move is
// fault.Internal. After any of them the transaction will not be committed.
func (tx *Tx) SaveAttempt(before, after *pipeline.Attempt) error {
	var err error
	if before == nil {
		err = tx.insertAttempt(after)
	} else {
		err = tx.updateAttempt(before, after)
	}
	if err != nil {
		return fmt.Errorf("save attempt %s of run %s, task %s: %w", after.ID, after.Run, after.Task, err)
	}
	return nil
}

func (tx *Tx) insertAttempt(a *pipeline.Attempt) error {
	if a.State != pipeline.AttemptOffered {
		return tx.defect("an attempt begins as offered, not %s", a.State)
	}
	_, err := tx.exec(`INSERT INTO attempts (id, run_id, task, agent_id, incarnation, epoch, state, outcome, reason, exit,
			log_bytes, offered_at, started_at, finished_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		string(a.ID), string(a.Run), string(a.Task), string(a.Agent), a.Token.Incarnation, a.Token.Epoch,
		string(a.State), orNull(a.Outcome), a.Reason, a.Exit, a.LogBytes,
		a.OfferedAt.UnixNano(), instant(a.StartedAt), instant(a.FinishedAt))
	if isConstraint(err, sqlite3.ErrConstraintForeignKey) {
		return fault.New(fault.NotFound, "its task, or its agent %s, is not in the record: %w", a.Agent, err)
	}
	return err
}

func (tx *Tx) updateAttempt(b, a *pipeline.Attempt) error {
	switch {
	case a.ID != b.ID || a.Run != b.Run || a.Task != b.Task || a.Agent != b.Agent || a.Token != b.Token:
		return tx.defect("it was another attempt before: %s of run %s, task %s", b.ID, b.Run, b.Task)
	case a.State == b.State && b.State != pipeline.AttemptOffered && b.State != pipeline.AttemptRunning,
		a.State != b.State && !slices.Contains(attemptNext[b.State], a.State):
		return tx.defect("%s is never followed by %s", b.State, a.State)
	}
	n, err := tx.exec(`UPDATE attempts SET state = ?, outcome = ?, reason = ?, exit = ?, log_bytes = ?,
			offered_at = ?, started_at = ?, finished_at = ?
		WHERE id = ? AND state = ? AND incarnation = ? AND epoch = ?`,
		string(a.State), orNull(a.Outcome), a.Reason, a.Exit, a.LogBytes,
		a.OfferedAt.UnixNano(), instant(a.StartedAt), instant(a.FinishedAt),
		string(b.ID), string(b.State), b.Token.Incarnation, b.Token.Epoch)
	if err != nil {
		return err
	}
	if n != 1 {
		return tx.conflict("it no longer is %s", b.State)
	}
	return nil
}

const attemptColumns = `a.id, a.run_id, a.task, a.agent_id, a.incarnation, a.epoch, a.state, coalesce(a.outcome, ''), a.reason,
	a.exit, a.log_bytes, a.offered_at, a.started_at, a.finished_at`

func scanAttempt(row scanner) (pipeline.Attempt, error) {
	var a pipeline.Attempt
	err := row.Scan(&a.ID, &a.Run, &a.Task, &a.Agent, &a.Token.Incarnation, &a.Token.Epoch, &a.State, &a.Outcome, &a.Reason,
		&a.Exit, &a.LogBytes, intoTime{&a.OfferedAt}, intoTime{&a.StartedAt}, intoTime{&a.FinishedAt})
	return a, err
}

// Attempts returns the attempts of all tasks of a run, oldest first.
func (db *DB) Attempts(ctx context.Context, run pipeline.RunID) ([]pipeline.Attempt, error) {
	list, err := query(ctx, db.file.reader, scanAttempt,
		`SELECT `+attemptColumns+` FROM attempts a WHERE a.run_id = ? ORDER BY a.offered_at, a.id`, string(run))
	return list, db.read(err, "attempts of run %s", run)
}

// Attempt returns one attempt; one that is not there is a fault.NotFound.
func (db *DB) Attempt(ctx context.Context, id pipeline.AttemptID) (pipeline.Attempt, error) {
	a, err := scanAttempt(db.file.reader.QueryRowContext(ctx, `SELECT `+attemptColumns+` FROM attempts a WHERE a.id = ?`, string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return a, fault.New(fault.NotFound, "attempt %s is not in the record", id)
	}
	return a, db.read(err, "attempt %s", id)
}

// UnfinishedAttempts returns the attempts whose agent's word still counts: those
// offered and running, and the lost one of each task in doubt. Oldest first.
func (db *DB) UnfinishedAttempts(ctx context.Context) ([]pipeline.Attempt, error) {
	list, err := query(ctx, db.file.reader, scanAttempt,
		`SELECT `+attemptColumns+` FROM attempts a WHERE a.state IN ('offered', 'running')
		UNION ALL
		SELECT `+attemptColumns+` FROM runs r CROSS JOIN tasks t ON t.run_id = r.id CROSS JOIN attempts a ON a.id = t.attempt_id
			WHERE r.finished_at IS NULL AND t.state = 'in_doubt' AND a.state = 'lost'
		ORDER BY 1`)
	return list, db.read(err, "unfinished attempts")
}
