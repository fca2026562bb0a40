package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// removeRows is how many rows of a log go in one transaction, 16 MiB at most: those who
// write logs wait for it.
const removeRows = 64

// Here returns at most limit attempts whose logs are here, in the order in which they
// began to write, and a cursor to go on with; 0 begins.
func (l *Logs) Here(ctx context.Context, after int64, limit int) (ids []pipeline.AttemptID, next int64, err error) {
	next = after
	ids, err = query(ctx, l.file.reader, func(row scanner) (id pipeline.AttemptID, err error) {
		err = row.Scan(&next, &id)
		return id, err
	}, `SELECT id, attempt FROM logs WHERE removed < 2 AND id > ? ORDER BY id LIMIT ?`, after, max(limit, 0))
	if err != nil {
		return nil, after, fmt.Errorf("list logs: %w", l.file.explain(err))
	}
	return ids, next, nil
}

// Remove removes the logs of attempts that have ended, and returns how many bytes there
// were. With a notice, that line stays in place of each; without, nothing does. A log
// that is not there is left out.
func (l *Logs) Remove(ctx context.Context, ids []pipeline.AttemptID, notice string) (bytes int64, err error) {
	for _, id := range ids {
		n, err := l.remove(ctx, id, notice)
		bytes += n
		if err != nil {
			return bytes, fmt.Errorf("remove the log of %s: %w", id, l.file.explain(err))
		}
	}
	return bytes, nil
}

func (l *Logs) remove(ctx context.Context, id pipeline.AttemptID, notice string) (bytes int64, err error) {
	var log int64
	err = l.file.reader.QueryRowContext(ctx, `SELECT id, bytes FROM logs WHERE attempt = ? AND (removed < 2 OR ? = '')`, string(id), notice).
		Scan(&log, &bytes)
	if err != nil {
		return 0, ignoreNoRows(err)
	}
	if _, err := l.file.writer.ExecContext(ctx, `UPDATE logs SET removed = 1 WHERE id = ? AND removed = 0`, log); err != nil {
		return 0, err
	}
	for {
		// From the end, so that what is left is the beginning of a log.
		res, err := l.file.writer.ExecContext(ctx, `DELETE FROM chunks WHERE id IN
			(SELECT id FROM chunks WHERE log_id = ? ORDER BY off DESC LIMIT ?)`, log, removeRows)
		if err != nil {
			return 0, err
		}
		if n, err := res.RowsAffected(); err != nil || n < removeRows {
			return bytes, errors.Join(err, l.replace(ctx, log, notice))
		}
	}
}

// replace puts the notice, if any, in place of a log whose rows are gone.
func (l *Logs) replace(ctx context.Context, log int64, notice string) error {
	tx, err := l.file.writer.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // of no effect after a commit
	if notice == "" {
		_, err = tx.ExecContext(ctx, `DELETE FROM logs WHERE id = ?`, log)
	} else {
		err = replaceIn(ctx, tx, log, notice+"\n")
	}
	if err != nil {
		return err
	}
	return tx.Commit()
}

func replaceIn(ctx context.Context, tx *sql.Tx, log int64, line string) error {
	_, err := tx.ExecContext(ctx, `UPDATE logs SET removed = 2, truncated = 1, sealed = 1, digest = NULL, bytes = ?, newlines = 1, open_line = 0 WHERE id = ?`,
		len(line), log)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO chunks (log_id, off, first_line, data) VALUES (?, 0, 1, ?)`, log, []byte(line))
	return err
}
