package store_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// It does not run in parallel: the heap it looks at is the whole program's.
func TestLargeLogIsStoredWithinSecondsInConstantMemory(t *testing.T) {
	lines := 1_000_000
	if testing.Short() {
		lines = 100_000
	}
	a := newAcks()
	l := openLogs(t, t.TempDir(), store.LogOptions{OnDurable: a.durable})
	var peak uint64
	begin := time.Now()
	var off int64
	buf := make([]byte, 0, 64<<10)
	for i := 1; i <= lines; i++ {
		buf = fmt.Appendf(buf, "%08d %s\n", i, strings.Repeat("x", 90))
		if len(buf) > 60<<10 || i == lines {
			if err := l.Append("a1", off, buf); err != nil {
				t.Fatal(err)
			}
			off += int64(len(buf))
			buf = make([]byte, 0, 64<<10)
			if i%100_000 < 1000 {
				runtime.GC() // what is held counts, not what has yet to be collected
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapAlloc)
			}
		}
	}
	if err := l.Seal(t.Context(), "a1", off); err != nil {
		t.Fatal(err)
	}
	t.Logf("stored %d MB in %s, peak heap %d MB", off>>20, time.Since(begin), peak>>20)
	if peak > 96<<20 {
		t.Errorf("peak heap %d MB: the queue is bounded by 32 MiB", peak>>20)
	}
	n, err := l.Length(t.Context(), "a1")
	if err != nil || n.Bytes != off || n.Lines != int64(lines) || !n.Sealed || n.Truncated {
		t.Errorf("got %+v, %v, want %d bytes and %d lines", n, err, off, lines)
	}
	begin = time.Now()
	for _, from := range []int64{1, 2, int64(lines) / 2, 77_777, int64(lines) - 1, int64(lines)} {
		got, err := l.Lines(t.Context(), "a1", from, 3)
		if err != nil || len(got) == 0 || got[0].N != from || !bytes.HasPrefix(got[0].Text, fmt.Appendf(nil, "%08d ", from)) {
			t.Errorf("line %d: got %v, %v", from, got, err)
		}
	}
	t.Logf("6 jumps in %s", time.Since(begin))
	begin = time.Now()
	found, total, err := l.Search(t.Context(), "a1", "00777", 10)
	if err != nil || total == 0 || len(found) != 10 {
		t.Errorf("search: got %d, %d, %v", len(found), total, err)
	}
	t.Logf("searched in %s, %d matches", time.Since(begin), total)
	begin = time.Now()
	if n, err := l.Copy(t.Context(), "a1", 0, io.Discard); n != off || err != nil {
		t.Errorf("copy: got %d, %v, want %d", n, err, off)
	}
	t.Logf("copied in %s", time.Since(begin))
}

func appendAll(t testing.TB, l *store.Logs, id pipeline.AttemptID, off int64, data []byte) {
	t.Helper()
	if err := l.Append(id, off, bytes.Clone(data)); err != nil {
		t.Fatal(err)
	}
}

func TestSearchFindsWhatAPersonReads(t *testing.T) {
	t.Parallel()
	l := openLogs(t, t.TempDir(), store.LogOptions{})
	text := "\x1b[31mre\x1b[1;4md\x1b[0m Alert\n\x1b]8;;https://e.example/red alert\x1b\\the \x1bPq red alert\x1b\\report\x1b]0;t\x07\x1b]8;;\x1b\\\n" +
		"\x1b]0;never ended red alert\nplain red alert\n"
	// Cut into rows at every byte, so that each sequence is cut somewhere.
	for off := range len(text) {
		appendAll(t, l, "a1", int64(off), []byte(text[off:off+1]))
	}
	if err := l.Seal(t.Context(), "a1", int64(len(text))); err != nil {
		t.Fatal(err)
	}
	for find, want := range map[string][]int64{"red alert": {1, 4}, "the report": {2}, "[31m": nil, "https": nil} {
		found, total, err := l.Search(t.Context(), "a1", find, 5)
		var got []int64
		for _, f := range found {
			got = append(got, f.N)
		}
		if err != nil || int(total) != len(want) || !slices.Equal(got, want) {
			t.Errorf("search %q: lines %v of %d, %v; want %v", find, got, total, err, want)
		}
	}
}

func TestLongLineIsCutAndSearchedWhole(t *testing.T) {
	t.Parallel()
	l := openLogs(t, t.TempDir(), store.LogOptions{})
	long := strings.Repeat("x", 3<<20)
	text := "before\r\n" + long[:2<<20] + "NeedleInTheHay" + long[2<<20:] + "\nafter\n" + long
	for off := 0; off < len(text); off += 60_000 {
		appendAll(t, l, "a1", int64(off), []byte(text[off:min(off+60_000, len(text))]))
	}
	if err := l.Seal(t.Context(), "a1", int64(len(text))); err != nil {
		t.Fatal(err)
	}
	lines, err := l.Lines(t.Context(), "a1", 1, 100)
	if err != nil || len(lines) != 4 || string(lines[0].Text) != "before" || string(lines[2].Text) != "after" {
		t.Fatalf("got %d lines, %v", len(lines), err)
	}
	for _, n := range []int{1, 3} {
		if got := string(lines[n].Text); got != long[:8<<10]+" … [line cut]" {
			t.Errorf("line %d: got %d bytes ending in %q", n+1, len(got), got[len(got)-20:])
		}
	}
	for _, find := range []string{"needleinthehay", "NEEDLEINTHEHAY"} {
		found, total, err := l.Search(t.Context(), "a1", find, 5)
		if err != nil || total != 1 || found[0].N != 2 {
			t.Errorf("search %s: got %d, %v", find, total, err)
		}
	}
	if n, err := l.Length(t.Context(), "a1"); n.Lines != 4 || err != nil {
		t.Errorf("got %+v, %v", n, err)
	}
}

// TestLogIsWhatWasWritten cuts random texts into random frames, repeats and loses
// some, and compares every way of reading with the text itself.
func TestLogIsWhatWasWritten(t *testing.T) {
	t.Parallel()
	l := openLogs(t, t.TempDir(), store.LogOptions{})
	var round int
	rapid.Check(t, func(r *rapid.T) {
		round++
		id := pipeline.AttemptID(fmt.Sprint("a", round))
		var text []byte
		for range rapid.IntRange(0, 12).Draw(r, "parts") {
			switch rapid.IntRange(0, 3).Draw(r, "kind") {
			case 0:
				text = append(text, '\n')
			case 1:
				text = append(text, "needle"...)
			case 2:
				text = append(text, rapid.StringMatching(`[a-c\n ]{0,30}`).Draw(r, "text")...)
			case 3:
				text = append(text, bytes.Repeat([]byte("yz"), rapid.IntRange(0, 150_000).Draw(r, "long"))...)
			}
		}
		off := 0
		for off < len(text) {
			n := min(rapid.IntRange(1, 200_000).Draw(r, "frame"), len(text)-off)
			from := off - rapid.IntRange(0, min(off, 10)).Draw(r, "again")
			appendAll(t, l, id, int64(from), text[from:off+n])
			off += n
			if rapid.Bool().Draw(r, "hurry") {
				if err := l.Seal(t.Context(), "other", 0); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := l.Seal(t.Context(), id, int64(len(text))); err != nil {
			r.Fatal(err)
		}
		compareLog(r, l, id, text)
	})
}

func compareLog(r *rapid.T, l *store.Logs, id pipeline.AttemptID, text []byte) {
	ctx := context.Background()
	lines := bytes.Split(text, []byte{'\n'})
	if len(lines[len(lines)-1]) == 0 {
		lines = lines[:len(lines)-1]
	}
	if n, err := l.Length(ctx, id); n.Bytes != int64(len(text)) || n.Lines != int64(len(lines)) || err != nil {
		r.Fatalf("got %+v, %v, want %d bytes and %d lines", n, err, len(text), len(lines))
	}
	off, most := rapid.IntRange(0, len(text)+2).Draw(r, "off"), rapid.IntRange(0, 400_000).Draw(r, "most")
	wantBytes := text[min(off, len(text)):min(off+most, len(text))]
	if got, err := l.Read(ctx, id, int64(off), most); !bytes.Equal(got, wantBytes) || err != nil {
		r.Fatalf("read %d at %d: got %d bytes, %v, want %d", most, off, len(got), err, len(wantBytes))
	}
	var whole bytes.Buffer
	if n, err := l.Copy(ctx, id, int64(off), &whole); !bytes.Equal(whole.Bytes(), text[min(off, len(text)):]) || n != int64(whole.Len()) || err != nil {
		r.Fatalf("copy from %d: got %d bytes, %v", off, n, err)
	}
	shown := func(b []byte) string {
		if len(b) > 8<<10 {
			return string(b[:8<<10]) + " … [line cut]"
		}
		return string(b)
	}
	from, n := rapid.IntRange(1, len(lines)+2).Draw(r, "from"), rapid.IntRange(1, 20).Draw(r, "n")
	got, err := l.Lines(ctx, id, int64(from), n)
	wantLines := lines[min(from-1, len(lines)):min(from-1+n, len(lines))]
	if err != nil || len(got) != len(wantLines) {
		r.Fatalf("lines %d from %d: got %d, %v, want %d", n, from, len(got), err, len(wantLines))
	}
	for i, line := range got {
		if line.N != int64(from+i) || string(line.Text) != shown(wantLines[i]) {
			r.Fatalf("line %d: got %d bytes as %d, want %d", from+i, len(line.Text), line.N, len(wantLines[i]))
		}
	}
	var wantFound []int64
	for i, line := range lines {
		if bytes.Contains(line, []byte("needle")) {
			wantFound = append(wantFound, int64(i+1))
		}
	}
	found, total, err := l.Search(ctx, id, "Needle", 3)
	if err != nil || total != int64(len(wantFound)) || len(found) != min(3, len(wantFound)) {
		r.Fatalf("search: got %d and %d, %v, want %d", len(found), total, err, len(wantFound))
	}
	for i, line := range found {
		if line.N != wantFound[i] {
			r.Fatalf("search: got line %d, want %d", line.N, wantFound[i])
		}
	}
}
