package store_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// written makes a sound record with n runs, one of which has a log, in a new folder.
func written(t testing.TB, n int) (dir string, db *store.DB, logs *store.Logs) {
	t.Helper()
	dir = t.TempDir()
	db = open(t, dir)
	record(t, db)
	c := composition("build", 2)
	for i := range n {
		create(t, db, newRun(c, i), c)
	}
	logs = openLogs(t, dir, store.LogOptions{})
	appendAll(t, logs, "a1", 0, []byte("one\ntwo\n"))
	if err := logs.Seal(t.Context(), "a1", 8); err != nil {
		t.Fatal(err)
	}
	return dir, db, logs
}

// record makes the commit of newRun's runs known.
func record(t testing.TB, db *store.DB) {
	t.Helper()
	err := db.Write(t.Context(), func(tx *store.Tx) error {
		return tx.RecordCommit("ops", pipeline.CommitRecord{Commit: "c0ffee", Ref: "refs/heads/main", Live: true, SeenAt: noon})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func backUp(t testing.TB, dir string) store.BackupInfo {
	t.Helper()
	b, err := store.Backup(t.Context(), dir, filepath.Join(dir, store.BackupFolder), store.WhySchedule, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBackupUnderLoadIsOneMoment(t *testing.T) {
	t.Parallel()
	dir, db, logs := written(t, 50)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	wg.Go(func() { // until the backups are made
		c := composition("busy", 3)
		for i := 0; ctx.Err() == nil; i++ {
			r := newRun(c, i)
			if err := db.Write(context.Background(), func(tx *store.Tx) error { return tx.CreateRun(r, c) }); err != nil {
				t.Error(err)
				return
			}
			if err := logs.Append("a2", int64(i*10), []byte("012345678\n")); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var last pipeline.Seq
	for range 3 {
		steps := map[string]bool{}
		b, err := store.Backup(t.Context(), dir, filepath.Join(dir, store.BackupFolder), store.WhySchedule,
			func(step string, done, total int64) { steps[step] = done == total })
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []string{"copy maestro.db", "copy logs.db", "digest maestro.db", "digest logs.db"} {
			if !steps[step] {
				t.Errorf("progress does not reach the end of %q: %v", step, steps)
			}
		}
		if b.Seq < last || b.Runs < 50 || b.StoreID != db.ID() {
			t.Errorf("got %+v after seq %d", b, last)
		}
		last = b.Seq
		// It is whole without any file beside it.
		entries, err := os.ReadDir(b.Path)
		if err != nil || len(entries) != 3 {
			t.Errorf("got %v, %v", entries, err)
		}
	}
	list, err := store.Backups(filepath.Join(dir, store.BackupFolder))
	if err != nil || len(list) != 3 || list[0].Seq != last {
		t.Errorf("got %+v, %v", list, err)
	}
}

func TestBackupThatWasCutOffIsNone(t *testing.T) {
	t.Parallel()
	dir, _, _ := written(t, 1)
	to := filepath.Join(dir, store.BackupFolder)
	ctx, stop := context.WithCancel(t.Context())
	_, err := store.Backup(ctx, dir, to, store.WhySchedule, func(step string, _, _ int64) {
		if step == "copy logs.db" {
			stop()
		}
	})
	if err == nil {
		t.Fatal("a backup that was stopped is reported as made")
	}
	// What a kill would leave goes with the next one.
	if err := os.MkdirAll(filepath.Join(to, ".making-123"), 0o700); err != nil {
		t.Fatal(err)
	}
	if list, err := store.Backups(to); len(list) != 0 || err != nil {
		t.Errorf("got %v, %v", list, err)
	}
	backUp(t, dir)
	if entries, err := os.ReadDir(to); len(entries) != 1 || err != nil {
		t.Errorf("got %v, %v", entries, err)
	}
}

func TestBackupThatBreaksAnInvariantDoesNotCount(t *testing.T) {
	t.Parallel()
	dir, db, logs := written(t, 2)
	good := backUp(t, dir)
	db.Close()
	logs.Close()
	raw := rawDB(t, dir, "maestro.db")
	run(t, raw, `UPDATE runs SET state = 'held'`)
	raw.Close()
	to := filepath.Join(dir, store.BackupFolder)
	for range 2 { // the second replaces the first
		_, err := store.Backup(t.Context(), dir, to, store.WhySchedule, nil)
		want(t, err, fault.Internal)
		if err == nil || !strings.Contains(err.Error(), "I7") || !strings.Contains(err.Error(), "fsck --data") {
			t.Errorf("got %v", err)
		}
	}
	if err := store.PruneBackups(to, 1); err != nil {
		t.Fatal(err)
	}
	if list, err := store.Backups(to); len(list) != 1 || list[0].Path != good.Path || err != nil {
		t.Errorf("got %v, %v; want the good one", list, err)
	}
	if bad, err := filepath.Glob(filepath.Join(to, "*.unsound")); len(bad) != 1 || err != nil {
		t.Errorf("got %v, %v; want the last one for whoever looks into it", bad, err)
	}
}

func TestPruningKeepsTheNewestAndWhatPeopleAskedFor(t *testing.T) {
	t.Parallel()
	dir, _, _ := written(t, 1)
	to := filepath.Join(dir, store.BackupFolder)
	var names []string
	for i := range 5 {
		why := store.WhySchedule
		if i == 0 {
			why = store.WhyRequest
		}
		b, err := store.Backup(t.Context(), dir, to, why, nil)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, b.Path)
	}
	if err := store.PruneBackups(to, 2); err != nil {
		t.Fatal(err)
	}
	list, err := store.Backups(to)
	var got []string
	for _, b := range list {
		got = append(got, b.Path)
	}
	if fmt.Sprint(got) != fmt.Sprint([]string{names[4], names[3], names[0]}) || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	if entries, err := os.ReadDir(to); len(entries) != 3 || err != nil {
		t.Errorf("got %v, %v", entries, err)
	}
}

func TestRestoreBringsBackWhatWasBackedUp(t *testing.T) {
	t.Parallel()
	dir, db, logs := written(t, 3)
	b := backUp(t, dir)
	c := composition("build", 2)
	create(t, db, newRun(c, 99), c)
	newer := db.Watermark()
	_, err := store.Restore(t.Context(), b.Path, dir, nil)
	want(t, err, fault.Conflict) // a server has the folder
	db.Close()
	logs.Close()
	done, err := store.Restore(t.Context(), b.Path, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if done.Incarnation != 2 || done.Aside == "" {
		t.Errorf("got %+v", done)
	}
	db = open(t, dir)
	if seq, err := db.LastSeq(t.Context()); seq != b.Seq || err != nil || db.Incarnation() != 2 || db.ID() != b.StoreID {
		t.Errorf("got seq %d, %v, incarnation %d", seq, err, db.Incarnation())
	}
	if r := db.Rollback(); r != nil {
		t.Errorf("a restore that says so is no rollback: %+v", r)
	}
	if r, err := db.Saw(t.Context(), newer, "an agent"); r != nil || err != nil {
		t.Errorf("what agents knew of the earlier incarnation: %+v, %v", r, err)
	}
	if got, err := openLogs(t, dir, store.LogOptions{}).Read(t.Context(), "a1", 0, 100); string(got) != "one\ntwo\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	// Nothing is lost by a restore that was a mistake.
	aside := rawDB(t, done.Aside, "maestro.db")
	var runs int
	if err := aside.QueryRow(`SELECT count(*) FROM runs`).Scan(&runs); runs != 4 || err != nil {
		t.Errorf("aside: %d runs, %v", runs, err)
	}
}

func TestRestoreIntoANewFolder(t *testing.T) {
	t.Parallel()
	dir, _, _ := written(t, 3)
	b := backUp(t, dir)
	elsewhere := filepath.Join(t.TempDir(), "new")
	done, err := store.Restore(t.Context(), b.Path, elsewhere, nil)
	if err != nil || done.Aside != "" {
		t.Fatal(done, err)
	}
	db := open(t, elsewhere)
	if runs, err := db.UnfinishedRuns(t.Context()); len(runs) != 3 || err != nil {
		t.Errorf("got %d runs, %v", len(runs), err)
	}
}

func TestRestoreRefusesABackupThatIsNotGood(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(dir string) error{
		"garbled": func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, "maestro.db"))
			if err != nil {
				return err
			}
			copy(b[len(b)/2:], bytes.Repeat([]byte{0xff}, 512))
			return os.WriteFile(filepath.Join(dir, "maestro.db"), b, 0o600)
		},
		"cut":           func(dir string) error { return os.Truncate(filepath.Join(dir, "logs.db"), 4096) },
		"without logs":  func(dir string) error { return os.Remove(filepath.Join(dir, "logs.db")) },
		"no such thing": os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, db, logs := written(t, 3)
			b := backUp(t, dir)
			db.Close()
			logs.Close()
			if err := spoil(b.Path); err != nil {
				t.Fatal(err)
			}
			_, err := store.Restore(t.Context(), b.Path, dir, nil)
			if k := fault.KindOf(err); k != fault.Invalid && k != fault.NotFound {
				t.Errorf("got %q %v", k, err)
			}
			db = open(t, dir) // as it was
			if runs, err := db.UnfinishedRuns(t.Context()); len(runs) != 3 || err != nil || db.Incarnation() != 1 {
				t.Errorf("got %d runs, %v, incarnation %d", len(runs), err, db.Incarnation())
			}
		})
	}
}

func TestRestoreThatWasCutOffIsNotServed(t *testing.T) {
	t.Parallel()
	dir, db, logs := written(t, 3)
	b := backUp(t, dir)
	db.Close()
	logs.Close()
	// A kill after the old record was put aside, and before the other had its name.
	if err := os.WriteFile(filepath.Join(dir, "restoring"), []byte(b.Path+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "maestro.db")); err != nil {
		t.Fatal(err)
	}
	_, err := store.Open(t.Context(), dir, testLog(t))
	want(t, err, fault.Invalid)
	if err == nil || !strings.Contains(err.Error(), "reconciler restore "+b.Path) {
		t.Errorf("got %v", err)
	}
	if _, err := store.Restore(t.Context(), b.Path, dir, nil); err != nil {
		t.Fatal(err)
	}
	if runs, err := open(t, dir).UnfinishedRuns(t.Context()); len(runs) != 3 || err != nil {
		t.Errorf("got %d runs, %v", len(runs), err)
	}
}

func TestOldRecordPutInPlaceIsNoticed(t *testing.T) {
	t.Parallel()
	dir, db, _ := written(t, 3)
	b := backUp(t, dir)
	c := composition("build", 2)
	create(t, db, newRun(c, 99), c)
	known := db.Watermark()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "maestro.db")
	newer, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(filepath.Join(b.Path, "maestro.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, old, 0o600); err != nil { // as cp would
		t.Fatal(err)
	}
	for range 2 { // a restart does not end it
		db = open(t, dir)
		r := db.Rollback()
		if r == nil || r.Known != known || r.Found.Seq != b.Seq || !strings.Contains(r.Sentence(), "--accept-rollback") {
			t.Fatalf("got %+v", r)
		}
		broken(t, dir, "rollback")
		for i := range 5 { // nor does it to outgrow what is known
			create(t, db, newRun(composition(fmt.Sprint("more", db.Watermark().Seq), 2), i), composition(fmt.Sprint("more", db.Watermark().Seq), 2))
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// The newer one put back ends it.
	older, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, newer, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	db = open(t, dir)
	if db.Rollback() != nil {
		t.Errorf("the newer record is back: %+v", db.Rollback())
	}
	db.Close()
	if err := os.WriteFile(file, older, 0o600); err != nil {
		t.Fatal(err)
	}
	db = open(t, dir)
	if err := db.AcceptRollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	want(t, db.AcceptRollback(t.Context()), fault.Conflict)
	db.Close()
	if report, err := store.Fsck(t.Context(), dir); err != nil || report.Broken() {
		t.Errorf("got %+v, %v", report, err)
	}
	db = open(t, dir)
	if db.Rollback() != nil || db.Incarnation() != 2 {
		t.Errorf("after it was accepted: %+v, incarnation %d", db.Rollback(), db.Incarnation())
	}
}

func TestAgentThatSawMoreIsBelieved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	now := db.Watermark()
	for _, w := range []store.Watermark{now, {StoreID: "another", Incarnation: 9, Seq: 9}, {StoreID: now.StoreID, Incarnation: 0, Seq: 99}} {
		if r, err := db.Saw(t.Context(), w, "agent one"); r != nil || err != nil {
			t.Errorf("%+v: got %+v, %v", w, r, err)
		}
	}
	more := store.Watermark{StoreID: now.StoreID, Incarnation: 3, Seq: 5}
	if r, err := db.Saw(t.Context(), more, "agent one"); r == nil || r.Known != more || r.By != "agent one" || err != nil {
		t.Errorf("got %+v, %v", r, err)
	}
	db.Close()
	db = open(t, dir)
	if r := db.Rollback(); r == nil || r.Known != more {
		t.Errorf("reopened: got %+v", r)
	}
	if err := db.AcceptRollback(t.Context()); err != nil || db.Incarnation() != 4 {
		t.Errorf("got %v, incarnation %d", err, db.Incarnation())
	}
}

// TestRecordWithoutItsWriteAheadLogIsNoticed: whoever copies maestro.db alone from a
// server that was killed has an older record without any damage.
func TestRecordWithoutItsWriteAheadLogIsNoticed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir).Close() // so that the file itself is written
	db := open(t, dir)
	c := composition("build", 2)
	create(t, db, newRun(c, 1), c)
	if err := db.Mark(); err != nil {
		t.Fatal(err)
	}
	killed := t.TempDir()
	for _, name := range []string{"maestro.db", "watermark.json"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(killed, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if other := open(t, killed); other.Rollback() == nil {
		t.Errorf("got seq %d of %d and no word about it", other.Watermark().Seq, db.Watermark().Seq)
	}
}

func TestRecordOfAnEarlierVersionIsCopiedBeforeItIsChanged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	earlier(t, dir, "record", "maestro.db")
	earlier(t, dir, "logs", "logs.db")
	if pending, err := store.Pending(t.Context(), dir); !pending || err != nil {
		t.Fatalf("got %t, %v", pending, err)
	}
	b := backUp(t, dir)
	open(t, dir).Close()
	openLogs(t, dir, store.LogOptions{}).Close()
	if pending, err := store.Pending(t.Context(), dir); pending || err != nil {
		t.Errorf("after it was opened: got %t, %v", pending, err)
	}
	if _, err := store.Restore(t.Context(), b.Path, dir, nil); err != nil {
		t.Fatal(err)
	}
	if pending, err := store.Pending(t.Context(), dir); !pending || err != nil {
		t.Errorf("the copy was changed: %t, %v", pending, err)
	}
	open(t, dir)
}

// earlier makes a file as the first version did.
func earlier(t *testing.T, dir, steps, name string) {
	t.Helper()
	first, err := filepath.Glob(filepath.Join("migrations", steps, "00001_*.sql"))
	if err != nil || len(first) != 1 {
		t.Fatal(first, err)
	}
	b, err := os.ReadFile(first[0])
	if err != nil {
		t.Fatal(err)
	}
	raw := rawDB(t, dir, name)
	run(t, raw, string(b)) // what goose reads are comments
	run(t, raw, `CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY AUTOINCREMENT, version_id INTEGER NOT NULL,
		is_applied INTEGER NOT NULL, tstamp TIMESTAMP DEFAULT (datetime('now')))`)
	run(t, raw, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, 1), (1, 1)`)
	run(t, raw, `UPDATE meta SET clean = 1`)
	raw.Close()
}

func TestRecordThatWasMadeInPartNeedsNoBackup(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(t *testing.T, dir string){
		"without tables": func(t *testing.T, dir string) {
			raw := rawDB(t, dir, "maestro.db")
			run(t, raw, `PRAGMA journal_mode = WAL`)
			raw.Close()
		},
		"after its first step": func(t *testing.T, dir string) { earlier(t, dir, "record", "maestro.db") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			make(t, dir)
			if pending, err := store.Pending(t.Context(), dir); pending || err != nil {
				t.Errorf("got %t, %v", pending, err)
			}
			open(t, dir)
		})
	}
}
