package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
)

// restoring is the name of a file that says that a restore is under way: while it is
// there, no server opens the folder, or it would begin a new record.
const restoring = "restoring"

// Restored says what Restore did.
type Restored struct {
	Backup BackupInfo `json:"backup"`
	// Incarnation of the record from now on.
	Incarnation int64 `json:"incarnation"`
	// Aside is the folder with the files that were there before, "" when there were none.
	Aside string `json:"aside,omitempty"`
	// Damaged are files of the backup that are not as they were, and LogsLost the logs
	// that only these had. All else is back.
	Damaged  []string `json:"damaged,omitempty"`
	LogsLost int      `json:"logs_lost,omitempty"`
}

// Restore puts the files of a backup into the data folder dir, which it locks, and what
// was there aside into a folder of its own. The backup is compared with its digests and
// checked first. The record gets a higher incarnation than any that is known here, so
// that agents can tell what they were promised after the backup was made. After a crash
// the folder has what it had, or Restore has to be called again, which servers say.
//
// A backup that is not good is a fault.Invalid, but for segments of its logs, a running server a fault.Conflict.
func Restore(ctx context.Context, backup, dir string, told Progress) (Restored, error) {
	done, err := restore(ctx, backup, dir, told)
	if err != nil {
		return done, fmt.Errorf("restore %s: %w", backup, err)
	}
	return done, nil
}

func restore(ctx context.Context, backup, dir string, told Progress) (done Restored, err error) {
	if told == nil {
		told = func(string, int64, int64) {}
	}
	info, segments, damaged, err := verify(ctx, backup, told)
	done.Backup, done.Damaged = info, damaged
	if err != nil {
		return done, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return done, err
	}
	release, err := Hold(dir)
	if err != nil {
		return done, err
	}
	defer func() { err = errors.Join(err, release()) }()
	known, err := knownIncarnation(ctx, dir)
	if err != nil {
		return done, err
	}
	done.Incarnation = max(known, done.Backup.Incarnation) + 1
	for _, name := range []string{recordName, logsName} {
		if err := copyInto(ctx, filepath.Join(backup, name), filepath.Join(dir, name+".restored"), told); err != nil {
			return done, err
		}
	}
	if len(segments)+len(damaged) > 0 {
		logs := filepath.Join(dir, logsName+".restored")
		if done.LogsLost, err = unite(ctx, backup, segments, logs, told); err == nil {
			err = syncFile(logs)
		}
		if err != nil {
			return done, err
		}
	}
	if err := setIncarnation(ctx, filepath.Join(dir, recordName+".restored"), done.Incarnation); err != nil {
		return done, err
	}
	if err := durable.WriteFile(filepath.Join(dir, restoring), []byte(backup+"\n"), 0o600); err != nil {
		return done, err
	}
	if done.Aside, err = putAside(dir); err != nil {
		return done, err
	}
	for _, name := range []string{recordName, logsName} {
		if err := os.Rename(filepath.Join(dir, name+".restored"), filepath.Join(dir, name)); err != nil {
			return done, err
		}
	}
	if err := durable.SyncDir(dir); err != nil {
		return done, err
	}
	if err := os.Remove(filepath.Join(dir, restoring)); err != nil {
		return done, err
	}
	return done, durable.SyncDir(dir)
}

// verify compares a backup with its description, and checks it. It returns the segments
// that are good, and those that are not, which is no error.
func verify(ctx context.Context, path string, told Progress) (info BackupInfo, segments, damaged []string, err error) {
	if info, err = readManifest(path); err != nil {
		return info, nil, nil, err
	}
	for _, want := range info.Files {
		switch {
		case isSegment(want.Name): // below
		case want.Name != recordName && want.Name != logsName:
			err = fault.New(fault.Invalid, "%s names a file %q, which no backup has", manifestName, want.Name)
		default:
			err = sameFile(ctx, path, want, told)
		}
		if err != nil {
			return info, nil, nil, err
		}
	}
	if segments, damaged, err = damagedSegments(ctx, &info, told); err != nil {
		return info, nil, nil, err
	}
	report, err := check(ctx, path, depth{quick: true, good: segments, damaged: damaged})
	if err == nil && report.Broken() {
		err = fault.New(fault.Invalid, "the backup does not pass the checks; see: reconciler fsck --data %s", path)
	}
	return info, segments, damaged, err
}

// sameFile compares a file of a backup with its description; one that differs, or is not
// there, is a fault.Invalid.
func sameFile(ctx context.Context, dir string, want BackupFile, told Progress) error {
	f, err := os.Open(filepath.Join(dir, want.Name))
	if err != nil {
		return fault.New(fault.Invalid, "the backup lacks %s: %w", want.Name, err)
	}
	got, err := digestOf(ctx, f, want.Name, told)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if got.Bytes != want.Bytes || got.SHA256 != want.SHA256 {
		return fault.New(fault.Invalid, "%s is not as it was when the backup was made: it has %d bytes with SHA-256 %s, and had %d with %s; take another backup",
			want.Name, got.Bytes, got.SHA256, want.Bytes, want.SHA256)
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// knownIncarnation is the highest that the data folder knows of; 0 when it knows none,
// be it that its record is damaged.
func knownIncarnation(ctx context.Context, dir string) (int64, error) {
	known, err := readWatermark(dir)
	if err != nil {
		return 0, err
	}
	n := known.Incarnation
	r, err := openReading(ctx, dir, recordName, "record")
	if err != nil {
		return n, nil // it is to be replaced, whatever is the matter with it
	}
	var own int64
	if r.conn.QueryRowContext(ctx, `SELECT incarnation FROM meta`).Scan(&own) == nil {
		n = max(n, own)
	}
	return n, r.close()
}

func copyInto(ctx context.Context, from, to string, told Progress) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	for done := int64(0); err == nil; {
		var n int64
		n, err = io.CopyN(dst, src, backupPages*4096)
		done += n
		told("copy "+filepath.Base(from), done, info.Size())
		if ctx.Err() != nil {
			err = ctx.Err()
		}
	}
	if errors.Is(err, io.EOF) {
		err = dst.Sync()
	}
	return errors.Join(err, dst.Close())
}

// setIncarnation writes the incarnation into a record that nobody has open. What was said
// of its age is settled by that.
func setIncarnation(ctx context.Context, path string, n int64) error {
	db, err := sql.Open("sqlite3", dsn(path, "_synchronous=FULL"))
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, `UPDATE meta SET incarnation = ?, clean = 0`, n)
	var there int
	if err == nil { // a backup may be of before there was one
		err = db.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema WHERE name = 'rollback'`).Scan(&there)
	}
	if err == nil && there > 0 {
		_, err = db.ExecContext(ctx, `DELETE FROM rollback`)
	}
	return errors.Join(err, db.Close())
}

// putAside moves what is there of record and logs into a folder of its own.
func putAside(dir string) (string, error) {
	aside := filepath.Join(dir, "before-restore-"+time.Now().UTC().Format("20060102T150405.000Z"))
	moved := false
	// The record first: one that is gone is noticed, and logs without it are not.
	for _, name := range []string{recordName, logsName} {
		for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
			path := filepath.Join(dir, name+suffix)
			if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err := os.MkdirAll(aside, 0o700); err != nil {
				return "", err
			}
			if err := os.Rename(path, filepath.Join(aside, name+suffix)); err != nil {
				return "", err
			}
			moved = true
		}
	}
	if !moved {
		return "", nil
	}
	return aside, durable.SyncDir(aside)
}
