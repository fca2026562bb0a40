package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/maestro-cd/maestro/internal/fault"
)

const (
	recordName = "maestro.db"
	logsName   = "logs.db"
)

// reading is a file of a data folder or of a backup as it is at one moment, to be
// looked at and not changed. It needs no lock: a server may write the file meanwhile.
type reading struct {
	file *file
	pool *sql.DB
	// conn has the transaction that keeps the moment.
	conn *sql.Conn
	// step is the last migration that was applied, newest the last that there is.
	step, newest int64
}

// openReading opens dir/name. One that is not there is a fault.NotFound, one of a newer
// program a fault.Invalid. The caller closes it.
func openReading(ctx context.Context, dir, name, steps string) (*reading, error) {
	r := &reading{file: &file{path: filepath.Join(dir, name)}}
	info, err := os.Stat(r.file.path)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && info.Size() == 0:
		return nil, fault.New(fault.NotFound, "%s is not there: name the data folder of a server, or a backup", r.file.path)
	case err != nil:
		return nil, err
	}
	if err := r.open(ctx, steps); err != nil {
		return nil, errors.Join(r.file.explain(err), r.close())
	}
	return r, nil
}

func (r *reading) open(ctx context.Context, steps string) error {
	sub, err := fs.Sub(migrations, "migrations/"+steps)
	if err != nil {
		return err
	}
	if r.newest, err = newestStep(sub); err != nil {
		return err
	}
	if _, err := r.file.probe(ctx, sub); err != nil {
		return err
	}
	if r.pool, err = sql.Open("sqlite3", dsn(r.file.path, "mode=ro&_query_only=1&_busy_timeout=10000")); err != nil {
		return err
	}
	if r.conn, err = r.pool.Conn(ctx); err != nil {
		return err
	}
	if _, err := r.conn.ExecContext(ctx, `BEGIN`); err != nil {
		return err
	}
	// The first read is what fixes the moment. A process that was killed as it made the
	// file has left one without tables, or with some.
	var made bool
	err = r.conn.QueryRowContext(ctx, `SELECT count(*) > 0 FROM sqlite_schema WHERE name = 'goose_db_version'`).Scan(&made)
	if err != nil || !made {
		return err
	}
	return r.conn.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version`).Scan(&r.step)
}

// halfMade reports whether nothing was ever written to the record in dir, nor its logs
// made.
func (r *reading) halfMade(ctx context.Context, dir string) (yes bool, err error) {
	if info, err := os.Stat(filepath.Join(dir, logsName)); err == nil && info.Size() > 0 {
		return false, nil
	}
	err = r.conn.QueryRowContext(ctx, `SELECT seq = 0 FROM meta`).Scan(&yes)
	return yes, err
}

func (r *reading) close() error {
	var errs []error
	if r.conn != nil {
		_, err := r.conn.ExecContext(context.Background(), `ROLLBACK`)
		errs = append(errs, err, r.conn.Close())
	}
	if r.pool != nil {
		errs = append(errs, r.pool.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", r.file.path, err)
	}
	return nil
}
