package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// BackupFolder is where backups of a data folder are, unless said otherwise.
	BackupFolder = "backups"
	manifestName = "backup.json"
	// unfinished begins the name of a backup that is being made.
	unfinished = ".making-"
	// unsound ends the name of a backup that was made and did not pass the checks.
	unsound = ".unsound"
	// backupPages is copied at a time, 4 MiB: between two of them a backup can be
	// stopped, and tells how far it is.
	backupPages = 1024
)

// BackupInfo describes a backup. It is what its backup.json says.
type BackupInfo struct {
	// Path of its folder.
	Path   string    `json:"-"`
	MadeAt time.Time `json:"made_at"`
	// Why it was made: "schedule", "request" or "migration".
	Why         string       `json:"why"`
	StoreID     string       `json:"store"`
	Incarnation int64        `json:"incarnation"`
	Seq         pipeline.Seq `json:"seq"`
	Runs        int          `json:"runs"`
	Files       []BackupFile `json:"files"`
	// Replaced are files of the backup before that were found damaged, and not taken over.
	Replaced []string `json:"replaced,omitempty"`
}

// BackupFile is a file of a backup.
type BackupFile struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	// CheckedAt is when the file was last compared with that.
	CheckedAt time.Time `json:"checked_at,omitzero"`
}

// Bytes is the size of all files.
func (b *BackupInfo) Bytes() int64 {
	var n int64
	for _, f := range b.Files {
		n += f.Bytes
	}
	return n
}

// Progress is told how far a copy is: the step under way, and bytes of that step.
type Progress func(step string, done, total int64)

// Backup copies record and logs of the data folder dir into a folder of its own below
// to, while a server may be writing them, and returns it once it is checked and on the
// disk. The record is copied first, so that the logs have all that it speaks of. What
// is there after a crash or an error is removed by the next Backup into to. A copy that
// breaks an invariant is kept under a name that ends in ".unsound", does not count as a
// backup, and is a fault.Internal.
func Backup(ctx context.Context, dir, to, why string, told Progress) (BackupInfo, error) {
	info, err := makeBackup(ctx, dir, to, why, told)
	if err != nil {
		return info, fmt.Errorf("back up %s: %w", dir, err)
	}
	return info, nil
}

func makeBackup(ctx context.Context, dir, to, why string, told Progress) (_ BackupInfo, err error) {
	if told == nil {
		told = func(string, int64, int64) {}
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return BackupInfo{}, err
	}
	if err := removeUnfinished(to); err != nil {
		return BackupInfo{}, err
	}
	tmp, err := os.MkdirTemp(to, unfinished)
	if err != nil {
		return BackupInfo{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	info := BackupInfo{MadeAt: time.Now().UTC(), Why: why}
	if err := copyLive(ctx, dir, tmp, recordName, "record", told); err != nil {
		return info, err
	}
	linked, err := copyLogs(ctx, dir, tmp, to, &info, told)
	if err != nil {
		return info, err
	}
	report, err := check(ctx, tmp, depth{quick: true, good: namesOf(linked)})
	if err != nil {
		return info, err
	}
	info.StoreID, info.Incarnation, info.Seq, info.Runs = report.StoreID, report.Incarnation, report.Seq, report.Runs
	if info.Files, err = sealFiles(ctx, tmp, linked, told); err != nil {
		return info, err
	}
	b, err := json.MarshalIndent(info, "", "  ")
	if err == nil {
		err = durable.WriteFile(filepath.Join(tmp, manifestName), append(b, '\n'), 0o600)
	}
	if err != nil {
		return info, err
	}
	name := fmt.Sprintf("%s-%d", info.MadeAt.Format("20060102T150405.000Z"), info.Seq)
	if report.Broken() {
		return info, keepUnsound(to, tmp, name, &report)
	}
	info.Path = filepath.Join(to, name)
	if err := os.Rename(tmp, info.Path); err != nil {
		return info, err
	}
	return info, durable.SyncDir(to)
}

// copyLogs copies the logs. A backup that the server makes by itself shares what does not
// change with the one before it, whose segments are returned; one that a person asked
// for is independent of all others.
func copyLogs(ctx context.Context, dir, tmp, to string, info *BackupInfo, told Progress) (linked []BackupFile, err error) {
	if info.Why == WhySchedule {
		list, err := Backups(to)
		if err != nil {
			return nil, err
		}
		var before *BackupInfo
		if i := slices.IndexFunc(list, func(b BackupInfo) bool { return b.Why == WhySchedule }); i >= 0 {
			before = &list[i]
		}
		if s, err := copyShared(ctx, dir, tmp, before, told); err != nil || s != nil {
			if s != nil {
				linked, info.Replaced = s.linked, s.replaced
			}
			return linked, err
		}
	}
	return nil, copyLive(ctx, dir, tmp, logsName, "logs", told)
}

func namesOf(files []BackupFile) []string {
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f.Name
	}
	return names
}

// keepUnsound keeps the last copy that did not pass, for whoever looks into it.
func keepUnsound(to, tmp, name string, report *Report) error {
	old, err := filepath.Glob(filepath.Join(to, "*"+unsound))
	if err != nil {
		return err
	}
	for _, p := range old {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	path := filepath.Join(to, name+unsound)
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	i := slices.IndexFunc(report.Findings, func(f Finding) bool { return !f.Warning })
	first := report.Findings[i]
	return fault.New(fault.Internal, "the copy does not pass the checks and does not count: %s: %s, %s; see all with: reconciler fsck --data %s",
		first.Rule, first.What, first.Where, path)
}

func removeUnfinished(to string) error {
	old, err := filepath.Glob(filepath.Join(to, unfinished+"*"))
	for _, p := range old {
		err = errors.Join(err, os.RemoveAll(p))
	}
	return err
}

// copyLive copies a file as it is at one moment, whoever writes it, into one that needs
// no other beside it.
func copyLive(ctx context.Context, dir, to, name, steps string, told Progress) error {
	src, err := openReading(ctx, dir, name, steps)
	if err != nil {
		return err
	}
	defer src.close()
	path := filepath.Join(to, name)
	if err := (&file{path: path}).create(); err != nil {
		return err
	}
	// Nothing of this counts before the folder has its name, so that no journal is
	// needed; sealFiles sees that it is on the disk.
	dst, err := sql.Open("sqlite3", dsn(path, "_journal_mode=OFF&_synchronous=OFF"))
	if err != nil {
		return err
	}
	defer dst.Close()
	dst.SetMaxOpenConns(1)
	conn, err := dst.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = src.conn.Raw(func(from any) error {
		return conn.Raw(func(into any) error {
			return copyPages(ctx, into.(*sqlite3.SQLiteConn), from.(*sqlite3.SQLiteConn), func(done, total int64) { told("copy "+name, done, total) })
		})
	})
	if err != nil {
		return fmt.Errorf("copy %s: %w", name, src.file.explain(err))
	}
	// The original is in WAL mode, which would make two files more when it is read.
	if _, err := conn.ExecContext(ctx, `PRAGMA journal_mode = DELETE`); err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	return nil
}

// copyPages copies what from sees in its transaction: it is the same from the first page
// to the last, so that writers neither wait nor make the copy begin again.
func copyPages(ctx context.Context, into, from *sqlite3.SQLiteConn, told func(done, total int64)) error {
	b, err := into.Backup("main", from, "main")
	if err != nil {
		return err
	}
	for finished := false; !finished; {
		if err := ctx.Err(); err != nil {
			return errors.Join(err, b.Close())
		}
		if finished, err = b.Step(backupPages); err != nil {
			return errors.Join(err, b.Close())
		}
		const page = 4096
		told(int64(b.PageCount()-b.Remaining())*page, int64(b.PageCount())*page)
	}
	return b.Finish()
}

// sealFiles brings the files of a backup to the disk and says what they are. Those that
// are linked were brought there before.
func sealFiles(ctx context.Context, dir string, linked []BackupFile, told Progress) ([]BackupFile, error) {
	names, err := segmentsIn(dir)
	if err != nil {
		return nil, err
	}
	var out []BackupFile
	for _, name := range append([]string{recordName, logsName}, names...) {
		if i := slices.IndexFunc(linked, func(b BackupFile) bool { return b.Name == name }); i >= 0 {
			out = append(out, linked[i])
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = f.Sync()
		var b BackupFile
		if err == nil {
			b, err = digestOf(ctx, f, name, told)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("seal %s: %w", name, err)
		}
		out = append(out, b)
	}
	return out, nil
}

func digestOf(ctx context.Context, f *os.File, name string, told Progress) (BackupFile, error) {
	info, err := f.Stat()
	if err != nil {
		return BackupFile{}, err
	}
	h := sha256.New()
	var done int64
	for {
		if err := ctx.Err(); err != nil {
			return BackupFile{}, err
		}
		n, err := io.CopyN(h, f, backupPages*4096)
		done += n
		told("digest "+name, done, info.Size())
		if errors.Is(err, io.EOF) {
			return BackupFile{Name: name, Bytes: done, SHA256: hex.EncodeToString(h.Sum(nil)), CheckedAt: time.Now().UTC()}, nil
		}
		if err != nil {
			return BackupFile{}, err
		}
	}
}

// Backups lists the good backups in a folder, newest first; none when there is no
// such folder. One whose description cannot be read is left out.
func Backups(in string) ([]BackupInfo, error) {
	entries, err := os.ReadDir(in)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list backups: %w", err)
	}
	var list []BackupInfo
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || strings.HasSuffix(e.Name(), unsound) {
			continue
		}
		if b, err := readManifest(filepath.Join(in, e.Name())); err == nil {
			list = append(list, b)
		}
	}
	slices.SortStableFunc(list, func(a, b BackupInfo) int { return b.MadeAt.Compare(a.MadeAt) })
	return list, nil
}

func readManifest(path string) (BackupInfo, error) {
	var b BackupInfo
	raw, err := os.ReadFile(filepath.Join(path, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return b, fault.New(fault.NotFound, "%s is no backup: it has no %s", path, manifestName)
	}
	if err == nil {
		err = json.Unmarshal(raw, &b)
	}
	b.Path = path
	if err != nil {
		return b, fmt.Errorf("read %s of backup %s: %w", manifestName, path, err)
	}
	return b, nil
}

// PruneBackups removes all but the newest keep backups of the folder, at least one is
// kept. Those that a person asked for stay: nobody else knows what they are for.
func PruneBackups(in string, keep int) error {
	list, err := Backups(in)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(b BackupInfo) bool { return b.Why == WhyRequest })
	var errs []error
	for _, b := range list[min(len(list), max(keep, 1)):] {
		// Out of sight first: a crash in the middle must not leave half of one.
		gone := filepath.Join(in, unfinished+filepath.Base(b.Path))
		err := os.Rename(b.Path, gone)
		if err == nil {
			err = os.RemoveAll(gone)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove old backups: %w", err)
	}
	return nil
}

// Why a backup was made.
const (
	WhySchedule  = "schedule"
	WhyRequest   = "request"
	WhyMigration = "migration"
)

// newestBackup names the newest backup of a data folder for a person, or says where to
// look for one.
func newestBackup(dir string) string {
	list, err := Backups(filepath.Join(dir, BackupFolder))
	if err != nil || len(list) == 0 {
		return "BACKUP"
	}
	return list[0].Path
}

// Pending reports whether opening the data folder would change the form of its files. A
// folder without a record has none to change, and neither has one whose record was never
// used and has no logs: the process that made it was killed before it was done.
func Pending(ctx context.Context, dir string) (bool, error) {
	for _, f := range []struct{ name, steps string }{{recordName, "record"}, {logsName, "logs"}} {
		r, err := openReading(ctx, dir, f.name, f.steps)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		pending := r.step > 0 && r.step < r.newest
		if pending && f.name == recordName {
			var halfMade bool
			halfMade, err = r.halfMade(ctx, dir)
			pending = !halfMade
		}
		if err = errors.Join(err, r.close()); err != nil || pending {
			return err == nil, err
		}
	}
	return false, nil
}

// Hold keeps every other process from a data folder that no server runs on, until
// release is called. When one does, it is a fault.Conflict.
func Hold(dir string) (release func() error, err error) {
	var locks []*os.File
	release = func() error {
		var errs []error
		for _, l := range locks {
			errs = append(errs, unlock(l))
		}
		return errors.Join(errs...)
	}
	for _, name := range []string{"lock", "logs.lock"} {
		l, err := lockFile(filepath.Join(dir, name))
		if err != nil {
			return nil, errors.Join(err, release())
		}
		locks = append(locks, l)
	}
	return release, nil
}
