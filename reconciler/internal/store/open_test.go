package store_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// TestMain lets this program be a second process: with STORE_CHILD set it opens
// the record in STORE_DIR and does what it is told to.
func TestMain(m *testing.M) {
	switch os.Getenv("STORE_CHILD") {
	case "":
		os.Exit(m.Run())
	case "hold":
		os.Exit(child(func(*store.DB, *store.Logs) error {
			fmt.Println("holding")
			_, err := bufio.NewReader(os.Stdin).ReadString('\n')
			return err
		}))
	case "migrate":
		os.Exit(child(func(*store.DB, *store.Logs) error { return nil }))
	case "tidy":
		os.Exit(child(tidy))
	case "persist":
		os.Exit(child(persist))
	case "write":
		os.Exit(child(writeForEver))
	}
}

func child(do func(*store.DB, *store.Logs) error) int {
	ctx, log := context.Background(), slog.New(slog.DiscardHandler)
	db, err := store.Open(ctx, os.Getenv("STORE_DIR"), log)
	if err == nil {
		defer db.Close()
		var logs *store.Logs
		logs, err = store.OpenLogs(ctx, os.Getenv("STORE_DIR"), log, store.LogOptions{OnDurable: func(_ pipeline.AttemptID, n int64, _ bool) {
			fmt.Println("log", n)
		}})
		if err == nil {
			defer logs.Close()
			err = do(db, logs)
		}
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// writeForEver prints the number of each run after it was written, until it is killed.
func writeForEver(db *store.DB, logs *store.Logs) error {
	c := composition("build", 3)
	for i := 1; ; i++ {
		r := newRun(c, i)
		if err := db.Write(context.Background(), func(tx *store.Tx) error { return tx.CreateRun(r, c) }); err != nil {
			return err
		}
		fmt.Println("run", r.Number)
		if err := logs.Append("a1", int64(i-1)*100, bytes.Repeat([]byte{'x'}, 100)); err != nil {
			return err
		}
	}
}

func startChild(t *testing.T, what, dir string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_CHILD="+what, "STORE_DIR="+dir)
	in, err := cmd.StdinPipe() // closed when the test ends
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	return cmd, bufio.NewReader(out)
}

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// open opens the record in dir; it is closed with the test.
func open(t testing.TB, dir string) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), dir, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// rawDB opens the file of a closed record as another program would.
func rawDB(t testing.TB, dir, name string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(dir, name)+"?_foreign_keys=1")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { db.Close() })
	return db
}

func run(t testing.TB, db *sql.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.Exec(statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func TestIdentityStays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	id := db.ID()
	if len(id) != 32 || db.Incarnation() != 1 {
		t.Errorf("got id %q, incarnation %d", id, db.Incarnation())
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if got := open(t, dir).ID(); got != id {
		t.Errorf("reopened: got id %s, want %s", got, id)
	}
	if other := open(t, t.TempDir()).ID(); other == id {
		t.Errorf("two records have id %s", id)
	}
}

func TestFolderWithOddNameIsOursAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a?mode=memory&b#c%20d é")
	db := open(t, dir)
	c := composition("build", 1)
	create(t, db, newRun(c, 1), c)
	openLogs(t, dir, store.LogOptions{})
	for _, name := range []string{"maestro.db", "maestro.db-wal", "logs.db", "lock"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %o", name, info.Mode().Perm())
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", info.Mode(), err)
	}
}

func TestSecondProcessIsRefusedByName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd, out := startChild(t, "hold", dir)
	if line, err := out.ReadString('\n'); line != "holding\n" {
		t.Fatal(line, err)
	}
	_, err := store.Open(t.Context(), dir, testLog(t))
	want(t, err, fault.Conflict)
	if err == nil || !strings.Contains(err.Error(), "process "+strconv.Itoa(cmd.Process.Pid)+":") {
		t.Errorf("got %v, want the holder %d named", err, cmd.Process.Pid)
	}
	_, err = store.OpenLogs(t.Context(), dir, testLog(t), store.LogOptions{})
	want(t, err, fault.Conflict)
	// The lock goes with the process, however that ends.
	cmd.Process.Kill()
	cmd.Wait()
	open(t, dir)
	openLogs(t, dir, store.LogOptions{})
}

func TestKilledProcessLosesNothingItReported(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd, out := startChild(t, "write", dir)
	told := map[string]int{}
	for told["run"] < 60 || told["log"] < 1000 {
		line, err := out.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		what, n, _ := strings.Cut(strings.TrimSpace(line), " ")
		if told[what], err = strconv.Atoi(n); err != nil {
			t.Fatal(line)
		}
	}
	cmd.Process.Kill()
	for { // what it had written to the pipe counts as reported
		line, err := out.ReadString('\n')
		if err != nil {
			break
		}
		what, n, _ := strings.Cut(strings.TrimSpace(line), " ")
		told[what], _ = strconv.Atoi(n)
	}
	cmd.Wait()
	db := open(t, dir) // checks the file, because it was not closed
	runs, err := db.UnfinishedRuns(t.Context())
	if err != nil || len(runs) < told["run"] {
		t.Errorf("got %d runs, %v; %d were reported", len(runs), err, told["run"])
	}
	if seq, err := db.LastSeq(t.Context()); int(seq) != len(runs) || err != nil {
		t.Errorf("got seq %d, %v, for %d runs", seq, err, len(runs))
	}
	n, err := openLogs(t, dir, store.LogOptions{}).Length(t.Context(), "a1")
	if err != nil || n.Received < int64(told["log"]) || n.Received%100 != 0 {
		t.Errorf("got %+v, %v; %d bytes were reported", n, err, told["log"])
	}
}

func TestRecordOfANewerVersionIsLeftAlone(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"step":         `INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)`,
		"least reader": `UPDATE meta SET schema_min_reader = 99`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			open(t, dir).Close()
			raw := rawDB(t, dir, "maestro.db")
			run(t, raw, statement)
			raw.Close()
			file := filepath.Join(dir, "maestro.db")
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = store.Open(t.Context(), dir, testLog(t))
			want(t, err, fault.Invalid)
			if err == nil || !strings.Contains(err.Error(), "newer version") || !strings.Contains(err.Error(), file) {
				t.Errorf("got %v", err)
			}
			if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the file was changed, or is gone: %v", err)
			}
		})
	}
}

func TestDatabaseOfAnotherProgramIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	raw := rawDB(t, dir, "maestro.db")
	run(t, raw, `CREATE TABLE bookmarks (url TEXT)`)
	raw.Close()
	_, err := store.Open(t.Context(), dir, testLog(t))
	want(t, err, fault.Invalid)
	raw = rawDB(t, dir, "maestro.db")
	var n int
	if err := raw.QueryRow(`SELECT count(*) FROM sqlite_schema`).Scan(&n); n != 1 || err != nil {
		t.Errorf("got %d tables, %v", n, err)
	}
}

// damages are what disks and people do to a file.
var damages = map[string]func([]byte) []byte{
	"not a database":     func([]byte) []byte { return bytes.Repeat([]byte("hello "), 2000) },
	"torn in the middle": func(b []byte) []byte { return b[:len(b)/2/4096*4096] },
	"page overwritten": func(b []byte) []byte {
		for i := 4096; i < len(b); i += 4096 {
			copy(b[i:], bytes.Repeat([]byte{0xff}, 512))
		}
		return b
	},
}

func TestDamageSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			db := open(t, dir)
			c := composition("build", 50)
			for i := range 20 {
				create(t, db, newRun(c, i), c)
			}
			record(t, db)
			openLogs(t, dir, store.LogOptions{}).Close()
			good := backUp(t, dir)
			db.Close()
			file := filepath.Join(dir, "maestro.db")
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = store.Open(t.Context(), dir, testLog(t))
			want(t, err, fault.Internal)
			if err == nil || !strings.Contains(err.Error(), "is damaged") ||
				!strings.Contains(err.Error(), "reconciler restore "+good.Path+" --data "+dir) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestEveryConnectionHasItsPragmas(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	writer, readers := db.Pragmas(t, "synchronous", "foreign_keys", "busy_timeout", "query_only", "journal_mode")
	if got := fmt.Sprint(writer); got != "[2 1 10000 0 wal]" {
		t.Errorf("writer: got %s", got)
	}
	for i, r := range readers {
		if got := fmt.Sprint(r[1:]); got != "[1 10000 1 wal]" {
			t.Errorf("reader %d: got %s", i, got)
		}
	}
}

func TestCloseInGoodOrderLeavesOneFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	c := composition("build", 1)
	create(t, db, newRun(c, 1), c)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"maestro.db-wal", "maestro.db-shm"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := db.Write(t.Context(), func(*store.Tx) error { return nil }); err == nil {
		t.Error("a closed record was written")
	}
}
