package store_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// packAll packs until nothing is left, and returns what was packed.
func packAll(t testing.TB, l *store.Logs) (ids []pipeline.AttemptID) {
	t.Helper()
	for after := int64(0); ; {
		id, next, err := l.Pack(t.Context(), after)
		after = next
		if err != nil {
			t.Fatal(err)
		}
		if id == "" {
			return ids
		}
		ids = append(ids, id)
	}
}

// sealedLog writes a log of some megabytes in pieces of all sizes, and ends it.
func sealedLog(t testing.TB, l *store.Logs, id pipeline.AttemptID, seed uint64) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	var text []byte
	for len(text) < 3<<20 {
		begin := len(text)
		for range r.IntN(2000) {
			text = fmt.Appendf(text, "%d step %d of the build, %s\n", len(text), r.IntN(100), strings.Repeat("=", r.IntN(80)))
		}
		if r.IntN(50) == 0 {
			text = append(text, bytes.Repeat([]byte("no end of it "), r.IntN(50_000))...)
		}
		appendAll(t, l, id, int64(begin), text[begin:])
		if err := l.Seal(t.Context(), "other", 0); err != nil { // hurries the writer, for small rows
			t.Fatal(err)
		}
	}
	if err := l.Seal(t.Context(), id, int64(len(text))); err != nil {
		t.Fatal(err)
	}
	return text
}

func TestPackedLogReadsAsItWasWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLogs(t, dir, store.LogOptions{})
	text := sealedLog(t, l, "a1", 7)
	appendAll(t, l, "open", 0, []byte("not ended\n"))
	look := func() (out []any) {
		r := rand.New(rand.NewPCG(1, 2))
		for range 50 {
			off := r.Int64N(int64(len(text)))
			b, err := l.Read(t.Context(), "a1", off, r.IntN(500_000))
			if err != nil || !bytes.Equal(b, text[off:off+int64(len(b))]) {
				t.Errorf("at %d: %d bytes, %v", off, len(b), err)
			}
			lines, err := l.Lines(t.Context(), "a1", r.Int64N(30_000), 20)
			out = append(out, lines, err)
		}
		lines, total, err := l.Search(t.Context(), "a1", "STEP 99", 100)
		n, lengthErr := l.Length(t.Context(), "a1")
		return append(out, lines, total, err, n, lengthErr)
	}
	before := look()
	if ids := packAll(t, l); !strings.Contains(fmt.Sprint(ids), "a1") || strings.Contains(fmt.Sprint(ids), "open") {
		t.Errorf("packed %v", ids)
	}
	if d := cmp.Diff(before, look()); d != "" {
		t.Errorf("want - got +\n%s", d)
	}
	var whole bytes.Buffer
	if n, err := l.Copy(t.Context(), "a1", 0, &whole); n != int64(len(text)) || err != nil || !bytes.Equal(whole.Bytes(), text) {
		t.Errorf("copied %d bytes, %v", n, err)
	}
	// What an agent sends again is compared with it.
	a := newAcks()
	open(t, dir)
	l.Close()
	l = openLogs(t, dir, store.LogOptions{OnDurable: a.durable})
	appendAll(t, l, "a1", 1000, bytes.Clone(text[1000:2000]))
	if got := a.next("a1", 0); got != (ack{int64(len(text)), false}) {
		t.Errorf("got %+v", got)
	}
	l.Close()
	if report, err := store.Fsck(t.Context(), dir); err != nil || len(report.Findings) > 0 {
		t.Errorf("got %+v, %v", report, err)
	}
	raw := rawDB(t, dir, "logs.db")
	var rows, stored int
	if err := raw.QueryRow(`SELECT count(*), sum(length(data)) FROM chunks WHERE size IS NOT NULL`).Scan(&rows, &stored); err != nil ||
		rows > 1+2*len(text)>>18 || stored > len(text)/4 {
		t.Errorf("%d rows hold %d bytes of %d, %v", rows, stored, len(text), err)
	}
}

func TestPackingGoesOnWhereItWasCutOff(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLogs(t, dir, store.LogOptions{})
	text := sealedLog(t, l, "a1", 8)
	l.Close()
	raw := rawDB(t, dir, "logs.db")
	run(t, raw, `DELETE FROM logs WHERE attempt = 'other'`)
	raw.Close()
	l = openLogs(t, dir, store.LogOptions{})
	packAll(t, l)
	l.Close()
	// As after a kill: the first rows are packed, the others are not, and no digest is kept.
	raw = rawDB(t, dir, "logs.db")
	run(t, raw, `UPDATE logs SET digest = NULL`)
	run(t, raw, `DELETE FROM chunks WHERE off > 0`)
	var first int64
	if err := raw.QueryRow(`SELECT size FROM chunks`).Scan(&first); err != nil {
		t.Fatal(err)
	}
	for off := first; off < int64(len(text)); off += 100_000 {
		end := min(off+100_000, int64(len(text)))
		run(t, raw, `INSERT INTO chunks (log_id, off, first_line, data) SELECT id, ?, ?, ? FROM logs`,
			off, 1+bytes.Count(text[:off], []byte{'\n'}), text[off:end])
	}
	raw.Close()
	l = openLogs(t, dir, store.LogOptions{})
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if _, _, err := l.Pack(stopped, 0); err == nil {
		t.Error("packed although it was stopped")
	}
	packAll(t, l)
	var whole bytes.Buffer
	if _, err := l.Copy(t.Context(), "a1", 0, &whole); err != nil || !bytes.Equal(whole.Bytes(), text) {
		t.Errorf("copied %d bytes, %v", whole.Len(), err)
	}
	if b, err := l.Read(t.Context(), "a1", first-10, 20); err != nil || !bytes.Equal(b, text[first-10:first+10]) {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestPackedLogThatWasChangedIsNotShownAsIfItWereNot(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		// The checksum of the row tells.
		"a bit": `UPDATE chunks SET data = CAST(substr(data, 1, length(data) / 2) || x'5a5a5a5a' || substr(data, length(data) / 2 + 5) AS BLOB) WHERE off = 0`,
		// The row is good, and the digest of the whole tells.
		"a row": `UPDATE chunks SET data = (SELECT data FROM chunks WHERE off = 262144), size = (SELECT size FROM chunks WHERE off = 262144) WHERE off = 0`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			l := openLogs(t, dir, store.LogOptions{})
			text := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
			for i := range text {
				text[i] += byte(i >> 16)
			}
			appendAll(t, l, "a1", 0, bytes.Clone(text))
			if err := l.Seal(t.Context(), "a1", int64(len(text))); err != nil {
				t.Fatal(err)
			}
			packAll(t, l)
			l.Close()
			raw := rawDB(t, dir, "logs.db")
			run(t, raw, statement)
			raw.Close()
			l = openLogs(t, dir, store.LogOptions{})
			if _, err := l.Copy(t.Context(), "a1", 0, io.Discard); !store.IsDamaged(err) {
				t.Errorf("got %v", err)
			}
			open(t, dir)
			report, err := store.Fsck(t.Context(), dir)
			if err != nil || len(report.Findings) != 1 || report.Findings[0].Rule != "I4" || !strings.HasPrefix(report.Findings[0].Where, "a1 ") {
				t.Errorf("got %+v, %v", report, err)
			}
			backUp(t, dir) // one log is no reason to do without
		})
	}
}

// TestDamagedLogKeepsNoOtherFromBeingPacked: a kill in the middle of packing has left
// packed rows and no digest, and the disk has changed one.
func TestDamagedLogKeepsNoOtherFromBeingPacked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLogs(t, dir, store.LogOptions{})
	for _, id := range []pipeline.AttemptID{"a1", "a2"} {
		appendAll(t, l, id, 0, bytes.Repeat([]byte("0123456789abcde\n"), 1<<10))
		if err := l.Seal(t.Context(), id, 16<<10); err != nil {
			t.Fatal(err)
		}
	}
	packAll(t, l)
	l.Close()
	raw := rawDB(t, dir, "logs.db")
	run(t, raw, `UPDATE logs SET digest = NULL`)
	run(t, raw, `UPDATE chunks SET data = x'5a5a5a5a' WHERE log_id = 1`)
	raw.Close()
	l = openLogs(t, dir, store.LogOptions{})
	id, after, err := l.Pack(t.Context(), 0)
	if id != "a1" || !store.IsDamaged(err) {
		t.Fatalf("got %q, %v", id, err)
	}
	for _, want := range []pipeline.AttemptID{"a2", ""} {
		if id, after, err = l.Pack(t.Context(), after); id != want || err != nil {
			t.Errorf("after the damaged one: %q, %v", id, err)
		}
	}
	var whole bytes.Buffer
	if n, err := l.Copy(t.Context(), "a2", 0, &whole); n != 16<<10 || err != nil {
		t.Errorf("copied %d bytes, %v", n, err)
	}
}
