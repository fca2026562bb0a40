package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// DB is the record. Its methods may be called by many goroutines at once; writes
// take turns, reads do not wait for writes. Close it after the last call.
type DB struct {
	dir   string
	file  *file
	log   *slog.Logger
	id    string
	specs specs
	hub   hub[struct{}]
	// turn holds one token while a transaction is under way.
	turn chan struct{}

	// As far as it was committed.
	incarnation, seq atomic.Int64
	rollback         atomic.Pointer[Rollback]
	marking          sync.Mutex
	marked           Watermark // what the folder remembers; guarded by marking
}

// Open opens the record in dir, and makes folder and record when they are not
// there. It is a fault.Conflict when another process has it open, and a
// fault.Invalid when a newer version of the program has written it; both leave it
// as it is. A record that was not closed is checked first. No agent is connected
// to a program that has just started, so those shown online become offline.
func Open(ctx context.Context, dir string, log *slog.Logger) (*DB, error) {
	f, err := openFile(ctx, dir, layout{recordName, "record", "lock", `PRAGMA quick_check(1)`}, log)
	if err != nil {
		return nil, fmt.Errorf("open the record: %w", err)
	}
	db := &DB{dir: filepath.Dir(f.path), file: f, log: log, turn: make(chan struct{}, 1)}
	var incarnation, seq int64
	err = f.writer.QueryRowContext(ctx, `SELECT store_id, incarnation, seq FROM meta`).Scan(&db.id, &incarnation, &seq)
	db.incarnation.Store(incarnation)
	db.seq.Store(seq)
	if err == nil {
		err = db.recall(ctx)
	}
	if err == nil {
		err = db.disconnectAgents(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the record: %w", f.explain(err)), f.release())
	}
	return db, nil
}

// Close waits for the transaction under way and closes the record. Calls after it fail.
func (db *DB) Close() error {
	db.turn <- struct{}{}
	defer func() { <-db.turn }()
	if err := errors.Join(db.Mark(), db.file.close()); err != nil {
		return fmt.Errorf("close the record: %w", err)
	}
	return nil
}

// ID names the record: 32 hexadecimal digits, made with it and never changed.
func (db *DB) ID() string { return db.id }

// Incarnation counts the times that the record was put back to an earlier state;
// it is 1 for one that never was. It is part of every token.
func (db *DB) Incarnation() int64 { return db.incarnation.Load() }

// Watch returns a channel that receives after transactions that changed
// something. Signals are coalesced, and a slow reader never holds up the writer.
// The caller calls stop when it is done.
func (db *DB) Watch() (signal <-chan struct{}, stop func()) { return db.hub.watch(struct{}{}) }

// Tx is a transaction under way. It belongs to the function that Write gave it
// to, in whose goroutine it is used, and ends with it.
type Tx struct {
	tx  *sql.Tx
	db  *DB
	seq pipeline.Seq // of the newest change; 0 until it was read
	// err is the first error of a statement or a guard. What came before it in the
	// transaction may be half of something, so nothing is committed after it.
	err     error
	changed bool
}

// Write runs fn in one transaction and returns when all of it is durable, or none
// of it. It is rolled back when fn returns an error, which Write returns, and
// also when fn went on after an error of a Tx method that says so. ctx ends the
// wait for the transaction's turn; once begun, it is finished. fn must not call
// Write, and should be quick: all other writers wait.
func (db *DB) Write(ctx context.Context, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("write the record: %w", err)
	}
	select {
	case db.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("write the record: %w", ctx.Err())
	}
	changed, err := db.write(fn)
	db.file.full(err)
	if err == nil && changed {
		db.hub.notify(struct{}{})
	}
	return err
}

// write has the turn, and gives it up.
func (db *DB) write(fn func(*Tx) error) (changed bool, err error) {
	defer func() { <-db.turn }() // also when fn panics
	// Not the caller's context: a statement that is interrupted half way through
	// would leave it open whether the transaction took place.
	tx, err := db.file.writer.BeginTx(context.Background(), nil)
	if err != nil {
		return false, fmt.Errorf("begin a transaction: %w", db.file.explain(err))
	}
	defer tx.Rollback() // of no effect after a commit
	t := &Tx{tx: tx, db: db}
	if err := fn(t); err != nil {
		return false, err
	}
	if t.err != nil {
		return false, t.err
	}
	if err := tx.Commit(); err != nil {
		return false, fmt.Errorf("commit: %w", db.file.explain(err))
	}
	if t.seq > 0 {
		db.seq.Store(int64(t.seq))
	}
	return t.changed, nil
}

// exec runs a statement that changes something and returns the number of rows.
func (tx *Tx) exec(query string, args ...any) (int64, error) {
	if tx.err != nil {
		return 0, tx.err
	}
	res, err := tx.tx.Exec(query, args...)
	if err != nil {
		return 0, tx.fail(tx.db.file.explain(err))
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, tx.fail(err)
	}
	tx.changed = tx.changed || n > 0
	return n, nil
}

// scan runs a query for one row; sql.ErrNoRows is left to the caller.
func (tx *Tx) scan(query string, args []any, dest ...any) error {
	if tx.err != nil {
		return tx.err
	}
	err := tx.tx.QueryRow(query, args...).Scan(dest...)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return tx.fail(tx.db.file.explain(err))
	}
	return err
}

// fail keeps the transaction from being committed.
func (tx *Tx) fail(err error) error {
	if tx.err == nil {
		tx.err = err
	}
	return err
}

func (tx *Tx) conflict(format string, args ...any) error {
	return tx.fail(fault.New(fault.Conflict, format, args...))
}

// defect is for what a correct caller never asks for.
func (tx *Tx) defect(format string, args ...any) error {
	return tx.fail(fault.New(fault.Internal, format, args...))
}

// change appends to the sequence of changes.
func (tx *Tx) change(c pipeline.Change) error {
	if tx.seq == 0 {
		if err := tx.scan(`SELECT seq FROM meta`, nil, &tx.seq); err != nil {
			return err
		}
	}
	tx.seq++
	_, err := tx.exec(`INSERT INTO changes (seq, at, kind, run_id, task, agent_id, commit_id, state, reason)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		tx.seq, time.Now().UnixNano(), c.Kind, orNull(c.Run), orNull(c.Task), orNull(c.Agent), orNull(c.Commit), orNull(c.State), c.Reason)
	return err
}
