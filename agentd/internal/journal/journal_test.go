package journal_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/agentd/internal/journal"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

var token = pipeline.Token{Incarnation: 1, Epoch: 7}

func attempt(n int) pipeline.AttemptID { return pipeline.AttemptID(fmt.Sprintf("01JD%022d", n)) }

func accepted(n int) journal.Record {
	return journal.Record{
		Kind: journal.Accepted, Attempt: attempt(n), Token: token, At: time.Unix(int64(n), 0).UTC(),
		Spec: &wire.Spec{Composition: "build", Task: "compile", Fields: []byte(`{"a":"line\nbreak"}`)},
	}
}

func started(n int) journal.Record {
	return journal.Record{
		Kind: journal.Started, Attempt: attempt(n), Token: token, At: time.Unix(int64(n)+1, 0).UTC(),
		Process: &journal.Process{PID: 42, Start: 99, Boot: "b"},
	}
}

func ended(n int) journal.Record {
	exit := 0
	return journal.Record{
		Kind: journal.Ended, Attempt: attempt(n), Token: token,
		Result: &pipeline.Result{Outcome: pipeline.Success, Exit: &exit, LogBytes: 12, Outputs: []byte(`{"x":1}`)},
	}
}

func acked(n int, at time.Time) journal.Record {
	return journal.Record{Kind: journal.Acked, Attempt: attempt(n), Token: token, At: at}
}

func open(t *testing.T, path string) *journal.Journal {
	t.Helper()
	j, err := journal.Open(path, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func promise(t *testing.T, j *journal.Journal, rs ...journal.Record) {
	t.Helper()
	for _, r := range rs {
		if err := j.Promise(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReopenedJournalKnowsWhatWasPromised(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	promise(t, j, accepted(1), started(1), accepted(2), ended(1), accepted(3),
		journal.Record{Kind: journal.Fenced, Attempt: attempt(3), Token: token}, accepted(4), acked(4, time.Now().UTC().Round(0)))
	want := j.Entries()
	// No Close: a killed process does not close either.
	for range 2 { // the second time reads what the first one rewrote
		if d := cmp.Diff(want, open(t, path).Entries()); d != "" {
			t.Fatalf("entries changed (-promised +reopened):\n%s", d)
		}
	}
	if e := want[0]; e.Result == nil || e.Process.PID != 42 || string(e.Spec.Fields) != string(accepted(1).Spec.Fields) {
		t.Errorf("entry = %+v", e)
	}
	if e := want[3]; e.AckedAt.IsZero() || e.Spec.Task != "" {
		t.Errorf("acked entry = %+v, want a tombstone", e)
	}
}

// A crash may cut the file at any byte. What was whole before the cut must be
// there, and the journal must take new records.
func TestTornTailIsDroppedAtEveryByte(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "whole")
	j := open(t, path)
	promise(t, j, accepted(1))
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	promise(t, j, accepted(2))
	both, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := len(first); cut < len(both); cut += 7 {
		torn := filepath.Join(dir, fmt.Sprint(cut))
		if err := os.WriteFile(torn, both[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		k := open(t, torn)
		promise(t, k, accepted(3))
		if got := open(t, torn).Entries(); len(got) != 2 || got[0].Attempt != attempt(1) || got[1].Attempt != attempt(3) {
			t.Fatalf("cut at %d of %d: entries %v", cut, len(both), got)
		}
	}
}

func TestDamagedLineDoesNotCostItsNeighbours(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	promise(t, open(t, path), accepted(1), accepted(2), accepted(3))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(b, []byte(attempt(2)))
	b[i] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := open(t, path).Entries(); len(got) != 2 || got[0].Attempt != attempt(1) || got[1].Attempt != attempt(3) {
		t.Errorf("entries = %v", got)
	}
	if kept, err := os.ReadFile(path + ".damaged"); err != nil || !bytes.Equal(kept, b) {
		t.Errorf("the damaged file was not kept: %v", err)
	}
}

func TestTombstoneIsForgottenAfterADay(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	promise(t, j, accepted(1), acked(1, time.Now().Add(-25*time.Hour)), accepted(2), acked(2, time.Now().Add(-23*time.Hour)))
	if got := open(t, path).Entries(); len(got) != 1 || got[0].Attempt != attempt(2) {
		t.Errorf("entries = %v", got)
	}
}

func TestAcknowledgedResultIsRememberedForALaterRecord(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	by := func(n int, incarnation int64) journal.Record {
		r := acked(n, time.Now().Add(time.Duration(n)*time.Second).UTC().Round(0))
		r.Incarnation = incarnation
		return r
	}
	fenced := journal.Record{Kind: journal.Fenced, Attempt: attempt(4), Token: token}
	promise(t, j, accepted(1), ended(1), by(1, 1), accepted(2), ended(2), by(2, 1), accepted(3), ended(3), by(3, 2),
		accepted(4), ended(4), fenced, by(4, 1))
	for _, again := range []func() *journal.Journal{func() *journal.Journal { return j }, func() *journal.Journal { return open(t, path) }} {
		got := again().AckedBefore(2, 10)
		if len(got) != 2 || got[0].Attempt != attempt(2) || got[1].Attempt != attempt(1) || got[0].Result == nil || string(got[0].Result.Outputs) != `{"x":1}` {
			t.Errorf("acknowledged before incarnation 2: %+v", got)
		}
		if got := again().AckedBefore(3, 1); len(got) != 1 || got[0].Attempt != attempt(3) {
			t.Errorf("the newest before incarnation 3: %+v", got)
		}
	}
	promise(t, j, by(2, 2))
	if got := j.AckedBefore(2, 10); len(got) != 1 || got[0].Attempt != attempt(1) {
		t.Errorf("after the acknowledgement of incarnation 2: %+v", got)
	}
}

func TestOldestAcknowledgedResultsAreForgottenBeforeTheyTakeMuchRoom(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	large := fmt.Appendf(nil, `{"x":"%s"}`, bytes.Repeat([]byte("x"), 1<<20))
	began := time.Now()
	for i := range 12 {
		r := ended(i)
		r.Result.Outputs = large
		a := acked(i, began.Add(time.Duration(i)*time.Second))
		a.Incarnation = 1
		promise(t, j, accepted(i), r, a)
	}
	j = open(t, path)
	kept := j.AckedBefore(2, 100)
	if len(kept) != 7 || kept[0].Attempt != attempt(11) {
		t.Errorf("%d results are kept, from %v", len(kept), kept[0].Attempt)
	}
	if all := j.Entries(); len(all) != 12 {
		t.Errorf("%d entries, want all tombstones", len(all))
	}
}

func TestLargeJournalIsRewrittenWithoutLosingARecord(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	big := accepted(0)
	big.Spec.Fields = fmt.Appendf(nil, `{"a":"%s"}`, bytes.Repeat([]byte("x"), 200_000))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 20 {
				r := big
				r.Attempt = attempt(w*1000 + i)
				if err := j.Promise(r); err != nil {
					t.Error(err)
				}
				if err := j.Promise(acked(w*1000+i, time.Now())); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if fi, err := os.Stat(path); err != nil || fi.Size() > 10<<20 {
		t.Errorf("16 MB of finished work left %v bytes, %v", fi.Size(), err)
	}
	if got := open(t, path).Entries(); len(got) != 80 {
		t.Errorf("%d entries, want 80 tombstones", len(got))
	}
}

func TestClosedJournalPromisesNothing(t *testing.T) {
	t.Parallel()
	j := open(t, filepath.Join(t.TempDir(), "journal"))
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.Promise(accepted(1)); err == nil {
		t.Error("a closed journal promised")
	}
}

func TestJournalIsReadByItsOwnerOnly(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	promise(t, open(t, path), accepted(1))
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

// Whatever the order of records, reading what was written gives the same entries
// as having written them.
func TestReadingGivesWhatWritingGave(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		j := open(t, filepath.Join(dir, fmt.Sprint(n)))
		defer j.Close()
		kinds := rapid.SliceOfN(rapid.IntRange(0, 14), 0, 12).Draw(rt, "records")
		for _, k := range kinds {
			r := []journal.Record{
				accepted(k % 3), started(k % 3), ended(k % 3), acked(k%3, time.Unix(1, 0).UTC()),
				{Kind: journal.Fenced, Attempt: attempt(k % 3), Token: token},
			}[k/3]
			if err := j.Note(r); err != nil {
				rt.Fatal(err)
			}
		}
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(n)))
		if err != nil {
			rt.Fatal(err)
		}
		read, damage := journal.Read(b)
		if damage != (journal.Damage{}) {
			rt.Fatalf("damage %+v", damage)
		}
		for _, want := range j.Entries() {
			if d := cmp.Diff(want, *read[want.Attempt]); d != "" {
				rt.Fatalf("(-written +read):\n%s", d)
			}
			delete(read, want.Attempt)
		}
		if len(read) > 0 {
			rt.Fatalf("read more than was written: %v", read)
		}
	})
}

func FuzzRead(f *testing.F) {
	files, err := filepath.Glob("testdata/hostile/*")
	if err != nil || len(files) == 0 {
		f.Fatalf("no hostile journals: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, damage := journal.Read(b)
		if damage.Torn > len(b) || damage.Lines > bytes.Count(b, []byte("\n")) {
			t.Errorf("damage %+v of %d bytes", damage, len(b))
		}
		for id, e := range entries {
			if e.Attempt != id || (!e.AckedAt.IsZero() && e.Process != nil) {
				t.Errorf("entry %q is %+v", id, e)
			}
		}
	})
}
