package store

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// A packed log does not change any more, and most of what a folder holds is such logs.
// So the backups that a server makes by itself have them in segments: files of the form
// of logs.db that are written once, and shared by the backups of a folder by hard links.
// Each backup is complete without the others.

const segmentPrefix = "logs-"

func isSegment(name string) bool {
	return filepath.Base(name) == name && strings.HasPrefix(name, segmentPrefix) && filepath.Ext(name) == ".db"
}

// segmentsIn names the segments of a backup.
func segmentsIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if isSegment(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// packedLog is a log that does not change any more.
type packedLog struct {
	id, bytes int64
	digest    []byte
}

func (p packedLog) same(o packedLog) bool { return o.digest != nil && bytes.Equal(p.digest, o.digest) }

const packedLogs = `SELECT attempt, id, bytes, digest FROM %s WHERE digest IS NOT NULL AND removed = 0`

func readPacked(ctx context.Context, q querier, table string) (map[pipeline.AttemptID]packedLog, error) {
	out := map[pipeline.AttemptID]packedLog{}
	_, err := query(ctx, q, func(row scanner) (struct{}, error) {
		var id pipeline.AttemptID
		var p packedLog
		err := row.Scan(&id, &p.id, &p.bytes, &p.digest)
		out[id] = p
		return struct{}{}, err
	}, fmt.Sprintf(packedLogs, table))
	return out, err
}

// readSegment returns the logs of a segment, and whether it has the form of this version.
func readSegment(ctx context.Context, dir, name string) (logs map[pipeline.AttemptID]packedLog, current bool, err error) {
	r, err := openReading(ctx, dir, name, "logs")
	if err != nil {
		return nil, false, err
	}
	logs, err = readPacked(ctx, r.conn, "logs")
	return logs, r.step == r.newest, errors.Join(err, r.close())
}

// sharing copies logs into a backup that is made in the folder to, with segments.
type sharing struct {
	ctx  context.Context
	to   string
	told Progress
	conn *sql.Conn // main is the backup's logs.db, fresh its segment, live the original
	live map[pipeline.AttemptID]packedLog
	// linked are the segments that it shares with the backup before.
	linked []BackupFile
	// replaced are those that were found damaged.
	replaced []string
	// covered are the logs that these have.
	covered map[pipeline.AttemptID]bool
}

// copyShared copies the logs of dir as they are at one moment, and takes from the backup
// before, if any, the segments that are worth it. It returns nil when the logs are not
// of this program's form.
func copyShared(ctx context.Context, dir, to string, before *BackupInfo, told Progress) (*sharing, error) {
	src, err := openReading(ctx, dir, logsName, "logs")
	if err != nil {
		return nil, err
	}
	ours := src.step == src.newest
	if err := src.close(); err != nil || !ours {
		return nil, err
	}
	s := &sharing{ctx: ctx, to: to, told: told, covered: map[pipeline.AttemptID]bool{}}
	fresh := filepath.Join(to, segmentPrefix+time.Now().UTC().Format("20060102T150405.000Z")+".db")
	for _, path := range []string{filepath.Join(to, logsName), fresh} {
		if err := makeLogs(ctx, path); err != nil {
			return nil, err
		}
	}
	some, err := s.copy(filepath.Join(dir, logsName), fresh, before)
	if err == nil && !some {
		err = os.Remove(fresh)
	}
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", logsName, (&file{path: filepath.Join(dir, logsName)}).explain(err))
	}
	return s, nil
}

// unsafely is how files are written that do not count before they have their name.
const unsafely = "_journal_mode=MEMORY&_synchronous=OFF"

// makeLogs makes an empty file of the form of logs.db.
func makeLogs(ctx context.Context, path string) error {
	steps, err := fs.Sub(migrations, "migrations/logs")
	if err != nil {
		return err
	}
	if err := (&file{path: path}).create(); err != nil {
		return err
	}
	db, err := sql.Open("sqlite3", dsn(path, "_auto_vacuum=incremental&"+unsafely))
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	return errors.Join(migrate(ctx, db, steps), db.Close())
}

// copy reports whether anything is in the fresh segment.
func (s *sharing) copy(live, fresh string, before *BackupInfo) (some bool, err error) {
	db, err := sql.Open("sqlite3", dsn(filepath.Join(s.to, logsName), unsafely))
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if s.conn, err = db.Conn(s.ctx); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, s.conn.Close()) }()
	if err := s.exec(`ATTACH ? AS live`, dsn(live, "mode=ro")); err != nil {
		return false, err
	}
	if err := s.exec(`ATTACH ? AS fresh`, dsn(fresh, "mode=rw")); err != nil {
		return false, err
	}
	for _, q := range []string{
		`PRAGMA fresh.journal_mode = MEMORY`, `PRAGMA fresh.synchronous = OFF`, `PRAGMA busy_timeout = 10000`,
		`BEGIN`, `INSERT INTO main.logs SELECT * FROM live.logs`, // which fixes the moment
	} {
		if err := s.exec(q); err != nil {
			return false, err
		}
	}
	if s.live, err = readPacked(s.ctx, s.conn, "main.logs"); err != nil {
		return false, err
	}
	if err := s.link(before); err != nil {
		return false, err
	}
	err = s.exec(`INSERT INTO main.chunks SELECT c.* FROM live.chunks c JOIN live.logs l ON l.id = c.log_id
		WHERE l.digest IS NULL OR l.removed <> 0 ORDER BY c.log_id, c.off`)
	if err == nil {
		some, err = s.fill()
	}
	if err != nil {
		return false, err
	}
	return some, s.exec(`COMMIT`)
}

func (s *sharing) exec(q string, args ...any) error {
	_, err := s.conn.ExecContext(s.ctx, q, args...)
	return err
}

// segment is one of the backup before.
type segment struct {
	file BackupFile
	has  []pipeline.AttemptID // that are still wanted
	// bytes of these, and all that there are.
	wanted, bytes int64
}

// link takes over the segments of the backup before, but for those of which more than
// half is not wanted any more, and those that are no larger than what is new: their logs
// go into the fresh segment with it, so that there are never many.
func (s *sharing) link(before *BackupInfo) error {
	var old []segment
	if before != nil {
		var err error
		if old, err = s.segmentsOf(before); err != nil {
			return err
		}
	}
	fresh := int64(0)
	for _, p := range s.live {
		fresh += p.bytes
	}
	for _, g := range old {
		fresh -= g.wanted
	}
	slices.SortFunc(old, func(a, b segment) int { return cmp.Compare(a.wanted, b.wanted) })
	for _, g := range old {
		if 2*g.wanted < g.bytes || g.wanted <= fresh {
			fresh += g.wanted
			continue
		}
		good, err := s.compare(before.Path, &g.file)
		if err != nil {
			return err
		}
		// Where there are no hard links, each backup has all of it.
		if !good || os.Link(filepath.Join(before.Path, g.file.Name), filepath.Join(s.to, g.file.Name)) != nil {
			fresh += g.wanted
			continue
		}
		s.linked = append(s.linked, g.file)
		for _, id := range g.has {
			s.covered[id] = true
		}
	}
	return nil
}

// compareEvery is how often a segment is compared with its digest, as it is taken over:
// disks change bytes, and all backups of the folder would have them.
const compareEvery = 24 * time.Hour

// compare reports whether a segment is as it was, unless that was looked at before. What
// a damaged one had is copied again.
func (s *sharing) compare(dir string, f *BackupFile) (good bool, err error) {
	if age := time.Since(f.CheckedAt); age >= 0 && age < compareEvery {
		return true, nil
	}
	err = sameFile(s.ctx, dir, *f, s.told)
	if fault.Is(err, fault.Invalid) {
		s.replaced = append(s.replaced, f.Name)
		return false, nil
	}
	f.CheckedAt = time.Now().UTC()
	return err == nil, err
}

// segmentsOf reads what the segments of a backup have of what is wanted. One that cannot
// be read, or has the form of another version, is left out, and what it had is copied.
func (s *sharing) segmentsOf(before *BackupInfo) ([]segment, error) {
	var out []segment
	for _, f := range before.Files {
		if !isSegment(f.Name) {
			continue
		}
		logs, current, err := readSegment(s.ctx, before.Path, f.Name)
		if s.ctx.Err() != nil {
			return nil, s.ctx.Err()
		}
		if err != nil || !current {
			continue
		}
		g := segment{file: f}
		for id, p := range logs {
			g.bytes += p.bytes
			if s.live[id].same(p) {
				g.has = append(g.has, id)
				g.wanted += p.bytes
			}
		}
		out = append(out, g)
	}
	return out, nil
}

// fill copies the packed logs that no linked segment has.
func (s *sharing) fill() (some bool, err error) {
	var todo []packedLog
	var done, total int64
	for id, p := range s.live {
		if !s.covered[id] {
			todo = append(todo, p)
			total += p.bytes
		}
	}
	slices.SortFunc(todo, func(a, b packedLog) int { return cmp.Compare(a.id, b.id) })
	for _, p := range todo {
		if err := s.exec(`INSERT INTO fresh.logs SELECT * FROM live.logs WHERE id = ?`, p.id); err != nil {
			return false, err
		}
		if err := s.exec(`INSERT INTO fresh.chunks SELECT * FROM live.chunks WHERE log_id = ? ORDER BY off`, p.id); err != nil {
			return false, err
		}
		done += p.bytes
		s.told("copy "+logsName, done, total)
	}
	s.told("copy "+logsName, total, total)
	return len(todo) > 0, nil
}

// lostLine is what is left of a log whose segment is damaged.
const lostLine = "[maestro] the log is lost: the file of the backup that it was in is damaged\n"

// unite puts the logs of the segments of a backup back into the copy of its logs.db at
// path, and returns how many logs are lost, because no good segment has them.
func unite(ctx context.Context, backup string, segments []string, path string, told Progress) (lost int, err error) {
	db, err := sql.Open("sqlite3", dsn(path, unsafely))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1) // what is attached is to one connection
	for i, name := range segments {
		if err := uniteOne(ctx, db, filepath.Join(backup, name)); err != nil {
			return 0, fmt.Errorf("take over %s: %w", name, err)
		}
		told("take over logs", int64(i+1), int64(len(segments)))
	}
	missing, err := query(ctx, db, scanOne[int64], `SELECT id FROM logs l WHERE `+elsewhere)
	if err != nil || len(missing) == 0 {
		return 0, err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback() // of no effect after a commit
	for _, log := range missing {
		if err := replaceIn(ctx, tx, log, lostLine); err != nil {
			return 0, err
		}
	}
	return len(missing), tx.Commit()
}

// elsewhere is true of a log l whose bytes are in a segment.
const elsewhere = `l.digest IS NOT NULL AND l.removed = 0 AND l.bytes > 0 AND NOT EXISTS (SELECT 1 FROM chunks x WHERE x.log_id = l.id)`

func uniteOne(ctx context.Context, db *sql.DB, segment string) error {
	for _, step := range []struct {
		query string
		args  []any
	}{
		{`ATTACH ? AS segment`, []any{dsn(segment, "mode=ro")}},
		{`INSERT INTO main.chunks (log_id, off, first_line, data, size)
			SELECT l.id, c.off, c.first_line, c.data, c.size FROM main.logs l
			JOIN segment.logs s ON s.attempt = l.attempt AND s.digest = l.digest
			JOIN segment.chunks c ON c.log_id = s.id
			WHERE ` + elsewhere + ` ORDER BY l.id, c.off`, nil},
		{`DETACH segment`, nil},
	} {
		if _, err := db.ExecContext(ctx, step.query, step.args...); err != nil {
			return err
		}
	}
	return nil
}

// damagedSegments compares the segments of a backup with its description, and returns
// those that are good and those that are not. A damaged one takes its logs with it, and
// nothing else: the others, and the record, are as good as they were.
func damagedSegments(ctx context.Context, info *BackupInfo, told Progress) (good, bad []string, err error) {
	for _, want := range info.Files {
		if !isSegment(want.Name) {
			continue
		}
		err := sameFile(ctx, info.Path, want, told)
		switch {
		case fault.Is(err, fault.Invalid):
			bad = append(bad, want.Name)
		case err != nil:
			return nil, nil, err
		default:
			good = append(good, want.Name)
		}
	}
	return good, bad, nil
}
