package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// scanner is a row, alone or among others.
type scanner interface{ Scan(dest ...any) error }

// querier is a pool or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// query returns all rows that a query finds.
func query[T any](ctx context.Context, q querier, scan func(scanner) (T, error), text string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

func scanOne[T any](row scanner) (v T, err error) {
	err = row.Scan(&v)
	return v, err
}

// snapshot runs fn on the record as it is at one moment.
func (db *DB) snapshot(ctx context.Context, fn func(querier) error) error {
	tx, err := db.file.reader.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // it only read
	return fn(tx)
}

// read says what was being read when err, unless it is nil.
func (db *DB) read(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("read "+format+": %w", append(args, db.file.explain(err))...)
}

// LastSeq returns the number of the newest change, 0 when there is none.
func (db *DB) LastSeq(ctx context.Context) (pipeline.Seq, error) {
	var seq pipeline.Seq
	err := db.file.reader.QueryRowContext(ctx, `SELECT seq FROM meta`).Scan(&seq)
	return seq, db.read(err, "the last change")
}

// Changes returns at most limit changes that follow after, oldest first.
func (db *DB) Changes(ctx context.Context, after pipeline.Seq, limit int) ([]pipeline.Change, error) {
	list, err := query(ctx, db.file.reader, func(row scanner) (pipeline.Change, error) {
		var c pipeline.Change
		err := row.Scan(&c.Seq, intoTime{&c.At}, &c.Kind, &c.Run, &c.Task, &c.Agent, &c.Commit, &c.State, &c.Reason)
		return c, err
	}, `SELECT seq, at, kind, coalesce(run_id, ''), coalesce(task, ''), coalesce(agent_id, ''), coalesce(commit_id, ''),
			coalesce(state, ''), reason
		FROM changes WHERE seq > ? ORDER BY seq LIMIT ?`, int64(after), max(limit, 0))
	return list, db.read(err, "changes after %d", after)
}
