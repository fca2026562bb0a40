package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/mattn/go-sqlite3" // also registers the driver
	"github.com/pressly/goose/v3"

	"github.com/maestro-cd/maestro/internal/fault"
)

//go:embed migrations
var migrations embed.FS

// readers is how many reads go on at once in each file.
const readers = 4

// file is one SQLite file: a writer, a pool of readers and the lock that keeps a
// second process away.
type file struct {
	path   string
	writer *sql.DB
	reader *sql.DB
	lock   *os.File
}

// layout says what a file of the data folder is made of.
type layout struct {
	name  string // of the file
	steps string // folder of its migrations
	lock  string // name of the file that is locked for as long as it is open
	// check is run at each start.
	check string
}

// openFile opens or makes the file in dir.
func openFile(ctx context.Context, dir string, l layout, log *slog.Logger) (*file, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	f := &file{path: filepath.Join(dir, l.name)}
	if f.lock, err = lockFile(filepath.Join(dir, l.lock)); err != nil {
		return nil, err
	}
	if from, err := os.ReadFile(filepath.Join(dir, restoring)); err == nil {
		f.release()
		return nil, fault.New(fault.Invalid, "a restore of %s was cut off; call it again: reconciler restore %s --data %s",
			dir, strings.TrimSpace(string(from)), dir)
	}
	if err := f.open(ctx, l, log); err != nil {
		f.release()
		return nil, f.explain(err)
	}
	return f, nil
}

func (f *file) open(ctx context.Context, l layout, log *slog.Logger) error {
	steps, err := fs.Sub(migrations, "migrations/"+l.steps)
	if err != nil {
		return err
	}
	if err := f.create(); err != nil {
		return err
	}
	clean, err := f.probe(ctx, steps)
	if err != nil {
		return err
	}
	if f.writer, err = sql.Open("sqlite3", f.dsn("_auto_vacuum=incremental&_txlock=immediate&_journal_mode=WAL&_synchronous=FULL"+
		"&_foreign_keys=1&_busy_timeout=10000&_stmt_cache_size=100")); err != nil {
		return err
	}
	f.writer.SetMaxOpenConns(1)
	if !clean {
		log.Warn("the record was not closed and is checked", "file", f.path)
	}
	// Also when it was closed: a file is damaged by disks and by people as well.
	if err := f.check(ctx, l.check); err != nil {
		return err
	}
	if err := migrate(ctx, f.writer, steps); err != nil {
		return err
	}
	if err := f.shrinkable(ctx, log); err != nil {
		return err
	}
	if _, err := f.writer.ExecContext(ctx, `UPDATE meta SET clean = 0`); err != nil {
		return err
	}
	f.reader, err = sql.Open("sqlite3", f.dsn("mode=ro&_query_only=1&_foreign_keys=1&_busy_timeout=10000&_stmt_cache_size=50"))
	if err != nil {
		return err
	}
	f.reader.SetMaxOpenConns(readers)
	f.reader.SetMaxIdleConns(readers)
	return f.reader.PingContext(ctx)
}

// create makes the file when it is not there: for this user alone, which SQLite
// would not do, and under a name that a crash does not take back.
func (f *file) create() error {
	made, err := os.OpenFile(f.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	folder, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return errors.Join(err, made.Close())
	}
	return errors.Join(folder.Sync(), folder.Close(), made.Close())
}

func (f *file) dsn(params string) string { return dsn(f.path, params) }

// dsn names a file as a URI, because a folder's name may hold "?" or "%".
func dsn(path, params string) string {
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + params
}

// probe looks at an existing file without changing it. It refuses one that a
// newer program has written, and reports whether the last program closed it. An
// empty file is new, hence clean.
func (f *file) probe(ctx context.Context, steps fs.FS) (clean bool, err error) {
	if info, err := os.Stat(f.path); err != nil || info.Size() == 0 {
		return true, err
	}
	mode := "ro"
	if _, err := os.Stat(f.path + "-journal"); err == nil {
		mode = "rw" // who was killed while making it left what has to be taken back first
	}
	db, err := sql.Open("sqlite3", f.dsn("mode="+mode+"&_query_only=1&_busy_timeout=10000"))
	if err != nil {
		return false, err
	}
	defer db.Close()
	var tables, ours int
	err = db.QueryRowContext(ctx, `SELECT count(*), count(*) FILTER (WHERE name = 'goose_db_version') FROM sqlite_schema`).
		Scan(&tables, &ours)
	if err != nil || tables == 0 { // as below
		return err == nil, err
	}
	if ours == 0 {
		return false, fault.New(fault.Invalid, "%s is a database of another program; name another data folder", f.path)
	}
	newest, err := newestStep(steps)
	if err != nil {
		return false, err
	}
	var version, least int64
	if err := db.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version`).Scan(&version); err != nil {
		return false, err
	}
	if version == 0 { // the process that made it ended before the first step: nothing was ever in it
		return true, nil
	}
	if err := db.QueryRowContext(ctx, `SELECT schema_min_reader, clean FROM meta`).Scan(&least, &clean); err != nil {
		return false, err
	}
	if version > newest || least > newest {
		return false, fault.New(fault.Invalid, "%s was written by a newer version of this program (step %d, least reader %d; this one knows %d): "+
			"start that version, or name another data folder; nothing was changed", f.path, version, least, newest)
	}
	return clean, nil
}

func newestStep(steps fs.FS) (int64, error) {
	entries, err := fs.ReadDir(steps, ".")
	if err != nil {
		return 0, err
	}
	var newest int64
	for _, e := range entries {
		n, err := goose.NumericComponent(e.Name())
		if err != nil {
			return 0, err
		}
		newest = max(newest, n)
	}
	return newest, nil
}

func migrate(ctx context.Context, db *sql.DB, steps fs.FS) error {
	p, err := goose.NewProvider(goose.DialectSQLite3, db, steps, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

func (f *file) check(ctx context.Context, check string) error {
	var made bool
	if err := f.writer.QueryRowContext(ctx, `SELECT count(*) > 0 FROM sqlite_schema WHERE name = 'meta'`).Scan(&made); err != nil || !made {
		return err // a new file has nothing to look at
	}
	var answer string
	if err := f.writer.QueryRowContext(ctx, check).Scan(&answer); err != nil {
		return err
	}
	if answer != "ok" {
		return fmt.Errorf("%w: %s", sqlite3.ErrCorrupt, answer)
	}
	return nil
}

// shrinkable makes a file of an earlier version one that can give back what it does not
// use, which writes it anew. A large one is left as it is: that would take long.
func (f *file) shrinkable(ctx context.Context, log *slog.Logger) error {
	const large = 256 << 20
	var mode int
	if err := f.writer.QueryRowContext(ctx, `PRAGMA auto_vacuum`).Scan(&mode); err != nil || mode != 0 {
		return err
	}
	if info, err := os.Stat(f.path); err != nil || info.Size() > large {
		log.Info("file is not made smaller when rows are removed", "file", f.path)
		return err
	}
	for _, statement := range []string{`PRAGMA auto_vacuum = incremental`, `VACUUM`} {
		if _, err := f.writer.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// close notes that the file was closed in good order, and lets it go.
func (f *file) close() error {
	_, err := f.writer.Exec(`UPDATE meta SET clean = 1`)
	return errors.Join(f.explain(err), f.release())
}

// release lets go of what is open, in the order that leaves no file behind: the
// last connection to close, a writer, removes the write-ahead log.
func (f *file) release() error {
	var errs []error
	if f.reader != nil {
		errs = append(errs, f.reader.Close())
	}
	if f.writer != nil {
		errs = append(errs, f.writer.Close())
	}
	return errors.Join(append(errs, unlock(f.lock))...)
}

// codeOf returns what SQLite says went wrong, 0 for an error of another kind.
func codeOf(err error) sqlite3.ErrNo {
	var no sqlite3.ErrNo
	var e sqlite3.Error
	switch {
	case errors.As(err, &e):
		return e.Code
	case errors.As(err, &no):
		return no
	}
	return 0
}

// IsDamaged reports whether an error says that a file is not what SQLite wrote.
func IsDamaged(err error) bool {
	no := codeOf(err)
	return no == sqlite3.ErrCorrupt || no == sqlite3.ErrNotADB || errors.Is(err, errDamagedLog)
}

// explain adds to an error of SQLite what a person can do about it. Errors of
// other kinds, and nil, come back as they are.
func (f *file) explain(err error) error {
	switch codeOf(err) {
	case sqlite3.ErrCorrupt, sqlite3.ErrNotADB:
		return fmt.Errorf("%s is damaged: %w; put a backup in its place with: reconciler restore %s --data %s; without any, "+
			"move it and the files beside it whose names begin the same away and start again: history is lost then, "+
			"configuration is not, it is in Git", f.path, err, newestBackup(filepath.Dir(f.path)), filepath.Dir(f.path))
	case sqlite3.ErrFull:
		return fmt.Errorf("the disk of %s is full: %w; nothing of this was recorded, make room and it goes on", f.path, err)
	case sqlite3.ErrReadonly, sqlite3.ErrCantOpen, sqlite3.ErrPerm:
		return fmt.Errorf("%s cannot be written: %w; see that this user may write the folder and the files in it", f.path, err)
	case sqlite3.ErrBusy, sqlite3.ErrLocked:
		return fault.New(fault.Unavailable, "%s is held by another program: %w; close the tool that has it open", f.path, err)
	}
	return err
}

func isConstraint(err error, which sqlite3.ErrNoExtended) bool {
	var e sqlite3.Error
	return errors.As(err, &e) && e.ExtendedCode == which
}
