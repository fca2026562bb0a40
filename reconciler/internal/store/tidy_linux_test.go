package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// tidy packs the logs, and removes some, and the runs that ended before a day.
func tidy(db *store.DB, logs *store.Logs) error {
	ctx, keep := context.Background(), keepDays(10)
	for id, after := pipeline.AttemptID("first"), int64(0); id != ""; {
		var err error
		if id, after, err = logs.Pack(ctx, after); err != nil {
			return err
		}
	}
	for n := 1; n > 0; {
		runs, err := db.Removable(ctx, keep, 2)
		if err != nil {
			return err
		}
		if _, err := logs.Remove(ctx, []pipeline.AttemptID{"old"}, ""); err != nil {
			return err
		}
		if n, err = db.RemoveRuns(ctx, keep, runs); err != nil {
			return err
		}
	}
	if _, err := logs.Remove(ctx, []pipeline.AttemptID{"expired"}, "[maestro] gone"); err != nil {
		return err
	}
	for _, shrink := range []func(context.Context) (bool, error){db.Shrink, logs.Shrink} {
		for more := true; more; {
			var err error
			if more, err = shrink(ctx); err != nil {
				return err
			}
		}
	}
	fmt.Println("tidy 1")
	return nil
}

// TestKilledAsItTidiesUpOrMigratesLosesNothing lets the disk fail, or kills the process,
// at random writes: what is kept is whole, and the next process brings it to an end.
func TestKilledAsItTidiesUpOrMigratesLosesNothing(t *testing.T) {
	t.Parallel()
	mayTrace(t)
	used := t.TempDir()
	kept := useFolder(t, used)
	for i := range max(1, *injections/2) {
		// Each takes about so many writes, many of which are the same.
		what, most := "tidy", 400
		if i%2 == 0 {
			what, most = "migrate", 3000
		}
		call, n := "pwrite64", 1+rand.IntN(most)>>rand.IntN(8)
		if i%4 < 2 {
			call, n = "fdatasync,fsync", 1+rand.IntN(25)
		}
		fault := []string{"signal=SIGKILL", "signal=SIGKILL", "error=EIO"}[i%3]
		inject := fmt.Sprintf("%s:%s:when=%d", call, fault, n)
		t.Run(what+" "+inject, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if what == "migrate" {
				asEarlier(t, used, dir, "record", "maestro.db")
				asEarlier(t, used, dir, "logs", "logs.db")
			} else if err := os.CopyFS(dir, os.DirFS(used)); err != nil {
				t.Fatal(err)
			}
			_, said := tamper(t, what, dir, inject)
			db := open(t, dir)
			logs := openLogs(t, dir, store.LogOptions{})
			for id, text := range kept {
				var whole bytes.Buffer
				if _, err := logs.Copy(t.Context(), id, 0, &whole); err != nil || !bytes.Equal(whole.Bytes(), text) {
					t.Errorf("log %s: %d bytes of %d, %v\n%s", id, whole.Len(), len(text), err, said)
				}
			}
			if what == "tidy" {
				if err := tidy(db, logs); err != nil {
					t.Error(err)
				}
			}
			runs, err := db.Runs(t.Context(), store.Filter{Limit: 100})
			if want := map[string]int{"tidy": 3, "migrate": 6}[what]; len(runs) != want || err != nil {
				t.Errorf("%d runs, want %d, %v", len(runs), want, err)
			}
			sound(t, dir)
		})
	}
}

// useFolder makes a record of runs, three of which are young, and logs, and returns the
// logs that are kept.
func useFolder(t *testing.T, dir string) map[pipeline.AttemptID][]byte {
	t.Helper()
	db := open(t, dir)
	record(t, db)
	agent := enrol(t, db, "one").ID
	for i := range 3 {
		c := composition("build", 1)
		r := newRun(c, i)
		r.Group = ""
		create(t, db, r, c)
		bringWithAttempts(t, db, r, pipeline.Running, agent)
	}
	c := composition("old", 1)
	for i := range 3 {
		r := newRun(c, i)
		r.Group, r.Commit = "", "01d"
		create(t, db, r, c)
		bringWithAttempts(t, db, r, pipeline.Failure, agent)
	}
	logs := openLogs(t, dir, store.LogOptions{})
	kept := map[pipeline.AttemptID][]byte{"kept": sealedLog(t, logs, "kept", 5)}
	for _, id := range []pipeline.AttemptID{"old", "expired", "small"} {
		text := []byte(strings.Repeat(string(id)+"\n", 50_000))
		appendAll(t, logs, id, 0, bytes.Clone(text))
		if err := logs.Seal(t.Context(), id, int64(len(text))); err != nil {
			t.Fatal(err)
		}
		if id == "small" {
			kept[id] = text
		}
	}
	logs.Close()
	db.Close()
	return kept
}

// asEarlier makes in dir what the first version would have made of the same history.
func asEarlier(t *testing.T, used, dir, steps, name string) {
	t.Helper()
	earlier(t, dir, steps, name)
	raw := rawDB(t, dir, name)
	raw.SetMaxOpenConns(1)
	defer raw.Close()
	run(t, raw, `PRAGMA foreign_keys = OFF`)
	run(t, raw, `ATTACH ? AS used`, filepath.Join(used, name))
	triggers := texts(t, raw, `SELECT sql FROM main.sqlite_schema WHERE type = 'trigger'`)
	for _, trigger := range texts(t, raw, `SELECT name FROM main.sqlite_schema WHERE type = 'trigger'`) {
		run(t, raw, `DROP TRIGGER main.`+trigger)
	}
	for _, table := range texts(t, raw, `SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'goose%' AND name NOT LIKE 'sqlite%'`) {
		columns := strings.Join(texts(t, raw, `SELECT name FROM pragma_table_info(?, 'main')`, table), ", ")
		if columns != strings.Join(texts(t, raw, `SELECT name FROM pragma_table_info(?, 'main') WHERE name IN (SELECT name FROM pragma_table_info(?, 'used'))`, table, table), ", ") {
			t.Fatalf("%s has lost a column since", table)
		}
		run(t, raw, `DELETE FROM main.`+table)
		run(t, raw, fmt.Sprintf(`INSERT INTO main.%[1]s (%[2]s) SELECT %[2]s FROM used.%[1]s`, table, columns))
	}
	run(t, raw, `UPDATE main.meta SET schema_min_reader = 1, clean = 1`)
	for _, trigger := range triggers {
		run(t, raw, trigger)
	}
}

func texts(t *testing.T, db *sql.DB, query string, args ...any) (out []string) {
	t.Helper()
	rows, err := db.Query(query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}
