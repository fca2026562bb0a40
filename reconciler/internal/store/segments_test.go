package store_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// addLog writes a log of about that size, which is packed.
func addLog(t testing.TB, l *store.Logs, id pipeline.AttemptID, size int) []byte {
	t.Helper()
	var text []byte
	for i := 0; len(text) < size; i++ {
		text = fmt.Appendf(text, "%s says %d\n", id, i*i)
	}
	appendAll(t, l, id, 0, bytes.Clone(text))
	if err := l.Seal(t.Context(), id, int64(len(text))); err != nil {
		t.Fatal(err)
	}
	packAll(t, l)
	return text
}

// restored puts a backup into a folder of its own and reads its logs.
func restored(t *testing.T, b store.BackupInfo, ids ...pipeline.AttemptID) (map[pipeline.AttemptID][]byte, store.Restored) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	done, err := store.Restore(t.Context(), b.Path, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := openLogs(t, dir, store.LogOptions{})
	got := map[pipeline.AttemptID][]byte{}
	for _, id := range ids {
		var whole bytes.Buffer
		if _, err := l.Copy(t.Context(), id, 0, &whole); err != nil {
			t.Errorf("log %s: %v", id, err)
		}
		if whole.Len() > 0 {
			got[id] = whole.Bytes()
		}
	}
	sound(t, dir)
	return got, done
}

func segmentsOf(t testing.TB, b store.BackupInfo) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(b.Path, "logs-*.db"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestPackedLogsAreSharedByBackupsAndEachIsCompleteAlone(t *testing.T) {
	t.Parallel()
	dir, _, l := written(t, 2)
	want := map[pipeline.AttemptID][]byte{"a1": []byte("one\ntwo\n"), "big": addLog(t, l, "big", 2<<20)}
	first := backUp(t, dir)
	want["small"] = addLog(t, l, "small", 1<<10)
	appendAll(t, l, "open", 0, []byte("not ended\n"))
	if err := l.Seal(t.Context(), "other", 0); err != nil { // which waits for the writer
		t.Fatal(err)
	}
	second := backUp(t, dir)
	a, b := segmentsOf(t, first), segmentsOf(t, second)
	if len(a) != 1 || len(b) != 2 {
		t.Fatalf("segments %v, then %v", a, b)
	}
	one, err := os.Stat(a[0])
	if err != nil {
		t.Fatal(err)
	}
	if two, err := os.Stat(filepath.Join(second.Path, filepath.Base(a[0]))); err != nil || !os.SameFile(one, two) {
		t.Errorf("the large log is there twice: %v", err)
	}
	for _, b := range []store.BackupInfo{first, second} {
		if report, err := store.Fsck(t.Context(), b.Path); err != nil || len(report.Findings) > 0 {
			t.Errorf("got %+v, %v", report, err)
		}
	}
	if err := store.PruneBackups(filepath.Join(dir, store.BackupFolder), 1); err != nil {
		t.Fatal(err)
	}
	want["open"] = []byte("not ended\n")
	got, done := restored(t, second, "a1", "big", "small", "open")
	if !maps.EqualFunc(got, want, bytes.Equal) || done.LogsLost != 0 {
		t.Errorf("got %d logs, %+v", len(got), done)
	}
	// One that a person asks for needs no other file.
	asked, err := store.Backup(t.Context(), dir, filepath.Join(dir, store.BackupFolder), store.WhyRequest, nil)
	if err != nil || len(segmentsOf(t, asked)) > 0 {
		t.Errorf("got %v, %v", segmentsOf(t, asked), err)
	}
}

func TestDamagedSegmentCostsItsLogsAlone(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(file string) error{
		"garbled": func(file string) error {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			copy(b[len(b)/2:], bytes.Repeat([]byte{0xff}, 512))
			return os.WriteFile(file, b, 0o600)
		},
		"gone": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, _, l := written(t, 2)
			addLog(t, l, "lost", 2<<20)
			first := backUp(t, dir)
			want := addLog(t, l, "kept", 1<<10)
			second := backUp(t, dir)
			bad := filepath.Join(second.Path, filepath.Base(segmentsOf(t, first)[0]))
			if err := spoil(bad); err != nil {
				t.Fatal(err)
			}
			broken(t, second.Path, "I4")
			got, done := restored(t, second, "lost", "kept", "a1")
			if done.LogsLost != 1+1 || len(done.Damaged) != 1 { // a1 was packed with it
				t.Errorf("got %+v", done)
			}
			if !bytes.Equal(got["kept"], want) || !bytes.Contains(got["lost"], []byte("the log is lost")) {
				t.Errorf("got %d bytes of kept, and %q", len(got["kept"]), got["lost"])
			}
		})
	}
}

// TestSegmentThatTheDiskHasChangedIsMadeAnew: each is compared with its digest once a day.
func TestSegmentThatTheDiskHasChangedIsMadeAnew(t *testing.T) {
	t.Parallel()
	dir, _, l := written(t, 2)
	want := addLog(t, l, "big", 2<<20)
	first := backUp(t, dir)
	file := segmentsOf(t, first)[0]
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if second := backUp(t, dir); len(second.Replaced) > 0 || len(segmentsOf(t, second)) != 1 {
		t.Errorf("within the day: %+v", second)
	}
	for _, b := range []string{first.Path, backUp(t, dir).Path} { // as if they were of the day before yesterday
		manifest := filepath.Join(b, "backup.json")
		text, err := os.ReadFile(manifest)
		if err != nil {
			t.Fatal(err)
		}
		text = regexp.MustCompile(`"checked_at": ".*"`).ReplaceAll(text, []byte(`"checked_at": "2020-01-01T00:00:00Z"`))
		if err := os.WriteFile(manifest, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	third := backUp(t, dir)
	if len(third.Replaced) != 1 || third.Replaced[0] != filepath.Base(file) {
		t.Errorf("replaced %v, want %s", third.Replaced, filepath.Base(file))
	}
	if got, done := restored(t, third, "big"); !bytes.Equal(got["big"], want) || done.LogsLost > 0 {
		t.Errorf("got %d bytes, %+v", len(got["big"]), done)
	}
	if fourth := backUp(t, dir); len(fourth.Replaced) > 0 || len(segmentsOf(t, fourth)) != 1 {
		t.Errorf("after it was made anew: %+v", fourth)
	}
}

// TestBackupsAreAsTheLogsWere writes and removes logs between backups, and compares each
// backup with what was there when it was made.
func TestBackupsAreAsTheLogsWere(t *testing.T) {
	t.Parallel()
	dir, _, l := written(t, 1)
	rnd := rand.New(rand.NewPCG(3, 4))
	now := map[pipeline.AttemptID][]byte{"a1": []byte("one\ntwo\n")}
	ids := []pipeline.AttemptID{"a1"}
	type made struct {
		store.BackupInfo
		logs map[pipeline.AttemptID][]byte
	}
	var all []made
	for i := range 24 {
		id := pipeline.AttemptID(fmt.Sprintf("b%d", i))
		now[id] = addLog(t, l, id, 1<<rnd.IntN(18))
		ids = append(ids, id)
		if i%4 == 3 {
			for _, id := range ids {
				if now[id] == nil || rnd.IntN(3) > 0 {
					continue
				}
				if _, err := l.Remove(t.Context(), []pipeline.AttemptID{id}, ""); err != nil {
					t.Fatal(err)
				}
				delete(now, id)
			}
		}
		if i%2 == 0 {
			all = append(all, made{backUp(t, dir), maps.Clone(now)})
		}
	}
	for i, b := range all {
		if n := len(segmentsOf(t, b.BackupInfo)); n > 6 {
			t.Errorf("backup %d has %d segments", i, n)
		}
		if i%3 != 2 {
			continue // to restore takes the longest
		}
		if got, done := restored(t, b.BackupInfo, ids...); !maps.EqualFunc(got, b.logs, bytes.Equal) || done.LogsLost > 0 {
			t.Errorf("backup %d: %d logs, want %d; %+v", i, len(got), len(b.logs), done)
		}
	}
}
