package store_test

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// acks collects what OnDurable tells.
type acks struct {
	mu   sync.Mutex
	cond *sync.Cond
	all  map[pipeline.AttemptID][]ack
}

type ack struct {
	length int64
	gap    bool
}

func newAcks() *acks {
	a := &acks{all: map[pipeline.AttemptID][]ack{}}
	a.cond = sync.NewCond(&a.mu)
	return a
}

func (a *acks) durable(id pipeline.AttemptID, length int64, gap bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all[id] = append(a.all[id], ack{length, gap})
	a.cond.Broadcast()
}

// next waits for the nth acknowledgement of an attempt, counted from 0.
func (a *acks) next(id pipeline.AttemptID, n int) ack {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.all[id]) <= n {
		a.cond.Wait()
	}
	return a.all[id][n]
}

// reach waits until length is acknowledged.
func (a *acks) reach(id pipeline.AttemptID, length int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		if l := a.all[id]; len(l) > 0 && l[len(l)-1].length >= length {
			return
		}
		a.cond.Wait()
	}
}

func openLogs(t testing.TB, dir string, opts store.LogOptions) *store.Logs {
	t.Helper()
	l, err := store.OpenLogs(t.Context(), dir, testLog(t), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestGapIsRefusedAndToldFromWhere(t *testing.T) {
	t.Parallel()
	a := newAcks()
	l := openLogs(t, t.TempDir(), store.LogOptions{OnDurable: a.durable})
	for i, c := range []struct {
		off  int64
		data string
		want ack
	}{
		{5, "never", ack{0, true}}, // before anything
		{0, "hello", ack{5, false}},
		{7, "x", ack{5, true}},      // bytes between are missing
		{0, "hello", ack{5, false}}, // again
		{3, "lo, w", ack{8, false}}, // overlaps with the same bytes
		{3, "LO, wo", ack{8, true}}, // overlaps with others: refused as a whole
		{8, "orld\n", ack{13, false}},
		{13, "", ack{13, false}},
		{-1, "x", ack{13, true}},
	} {
		appendAll(t, l, "a1", c.off, []byte(c.data))
		if got := a.next("a1", i); got != c.want {
			t.Errorf("%d %q: got %+v, want %+v", c.off, c.data, got, c.want)
		}
	}
	if got, err := l.Read(t.Context(), "a1", 0, 100); string(got) != "hello, world\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	want(t, l.Seal(t.Context(), "a1", 12), fault.Conflict)
	if err := l.Seal(t.Context(), "a1", 13); err != nil {
		t.Fatal(err)
	}
	if err := l.Seal(t.Context(), "a1", 13); err != nil {
		t.Errorf("sealed twice: %v", err)
	}
	appendAll(t, l, "a1", 8, []byte("orld\nand more"))
	if got := a.next("a1", 9); got != (ack{13, false}) {
		t.Errorf("after the end: got %+v", got)
	}
	if n, err := l.Length(t.Context(), "a1"); n != (store.LogLength{Received: 13, Bytes: 13, Lines: 1, Sealed: true}) || err != nil {
		t.Errorf("got %+v, %v", n, err)
	}
}

func TestLogThatWasNeverWrittenIsEmpty(t *testing.T) {
	t.Parallel()
	l := openLogs(t, t.TempDir(), store.LogOptions{})
	if n, err := l.Length(t.Context(), "a1"); n != (store.LogLength{}) || err != nil {
		t.Errorf("got %+v, %v", n, err)
	}
	if b, err := l.Read(t.Context(), "a1", 0, 10); len(b) != 0 || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	if b, err := l.Lines(t.Context(), "a1", 1, 10); len(b) != 0 || err != nil {
		t.Errorf("got %v, %v", b, err)
	}
	if n, err := l.Copy(t.Context(), "a1", 0, io.Discard); n != 0 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if _, n, err := l.Search(t.Context(), "a1", "x", 10); n != 0 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if err := l.Seal(t.Context(), "a1", 0); err != nil {
		t.Error(err)
	}
	if n, err := l.Length(t.Context(), "a1"); !n.Sealed || err != nil {
		t.Errorf("got %+v, %v", n, err)
	}
}

func TestLogGoesOnWhereItWasAfterReopening(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := []byte("first\nsecond, which is\n cut in two\nthird")
	for off := range text {
		l := openLogs(t, dir, store.LogOptions{})
		appendAll(t, l, "a1", int64(off), text[off:off+1])
		if err := l.Close(); err != nil { // writes what is queued
			t.Fatal(err)
		}
	}
	l := openLogs(t, dir, store.LogOptions{})
	if got, err := l.Read(t.Context(), "a1", 0, 1000); !bytes.Equal(got, text) || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	lines, err := l.Lines(t.Context(), "a1", 2, 10)
	if err != nil || len(lines) != 3 || lines[0].N != 2 || string(lines[0].Text) != "second, which is" || string(lines[2].Text) != "third" {
		t.Errorf("got %v, %v", lines, err)
	}
}

func TestCloseWritesWhatIsQueued(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := newAcks()
	l := openLogs(t, dir, store.LogOptions{OnDurable: a.durable})
	appendAll(t, l, "a1", 0, []byte("written, "))
	a.reach("a1", 9)
	appendAll(t, l, "a1", 9, []byte("queued")) // until the next group
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLogs(t, dir, store.LogOptions{})
	if got, err := l.Read(t.Context(), "a1", 0, 100); string(got) != "written, queued" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestTooLongALogIsCutVisiblyAndStillAcknowledged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a := newAcks()
	opts := store.LogOptions{OnDurable: a.durable, MaxBytes: 20}
	l := openLogs(t, dir, opts)
	text := []byte("0123456789\n0123456789\n0123456789\n")
	appendAll(t, l, "a1", 0, text[:15])
	a.reach("a1", 15)
	appendAll(t, l, "a1", 15, text[15:30])
	a.reach("a1", 30)
	l.Close()
	l = openLogs(t, dir, opts) // it is remembered how much was discarded
	appendAll(t, l, "a1", 25, text[25:])
	a.reach("a1", int64(len(text)))
	got, err := l.Read(t.Context(), "a1", 0, 1000)
	const kept = "0123456789\n012345678\n[maestro] the log is cut here: more than 20 bytes of one attempt are not kept\n"
	if string(got) != kept || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if err := l.Seal(t.Context(), "a1", int64(len(text))); err != nil {
		t.Error(err)
	}
	n, err := l.Length(t.Context(), "a1")
	if n != (store.LogLength{Received: int64(len(text)), Bytes: int64(len(kept)), Lines: 3, Truncated: true, Sealed: true}) || err != nil {
		t.Errorf("got %+v, %v", n, err)
	}
}

func TestStreamsAreWrittenInGroups(t *testing.T) {
	t.Parallel()
	a := newAcks()
	l := openLogs(t, t.TempDir(), store.LogOptions{OnDurable: a.durable})
	const attempts, frames = 20, 200
	var wg sync.WaitGroup
	for i := range attempts {
		id := pipeline.AttemptID(fmt.Sprint("a", i))
		wg.Go(func() {
			for n := range frames {
				appendAll(t, l, id, int64(n*10), []byte("012345678\n"))
			}
		})
	}
	wg.Wait()
	commits := 0
	for i := range attempts {
		id := pipeline.AttemptID(fmt.Sprint("a", i))
		a.reach(id, frames*10)
		a.mu.Lock()
		commits += len(a.all[id])
		a.mu.Unlock()
		if got, err := l.Read(t.Context(), id, 0, 1<<20); err != nil || !bytes.Equal(got, bytes.Repeat([]byte("012345678\n"), frames)) {
			t.Errorf("%s: got %d bytes, %v", id, len(got), err)
		}
	}
	if commits > attempts*10 {
		t.Errorf("%d acknowledgements for %d frames of %d attempts: they are not written in groups", commits, attempts*frames, attempts)
	}
}

func TestFirstBytesAreWrittenAtOnceAndLaterOnesInGroups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAcks()
		l := openLogs(t, t.TempDir(), store.LogOptions{OnDurable: a.durable})
		begin := time.Now()
		appendAll(t, l, "a1", 0, []byte("x"))
		a.reach("a1", 1)
		if d := time.Since(begin); d != 0 {
			t.Errorf("the first byte waited %s", d)
		}
		for n := range 100 { // a byte each 10 ms, for a second
			appendAll(t, l, "a1", int64(n+1), []byte("x"))
			time.Sleep(10 * time.Millisecond)
		}
		a.reach("a1", 101)
		if n := len(a.all["a1"]); n < 5 || n > 7 {
			t.Errorf("got %d commits in a second, want about 5", n)
		}
		begin = time.Now()
		appendAll(t, l, "a1", 101, make([]byte, 4<<20)) // does not wait for the end of the pause
		a.reach("a1", 101+4<<20)
		if d := time.Since(begin); d != 0 {
			t.Errorf("4 MiB waited %s", d)
		}
	})
}

func TestSlowLogIsUnitedIntoFewRows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLogs(t, dir, store.LogOptions{})
	var text []byte
	for i := range 500 { // each in a commit of its own, because Seal of another log hurries it
		piece := fmt.Appendf(nil, "line %d\nand half a ", i)
		appendAll(t, l, "a1", int64(len(text)), piece)
		text = append(text, piece...)
		if err := l.Seal(t.Context(), "other", 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int64{1, 2, 250, 500, 501} {
		wantLine := fmt.Sprintf("and half a line %d", n-1)
		if n == 1 {
			wantLine = "line 0"
		} else if n == 501 {
			wantLine = "and half a "
		}
		if got, err := l.Lines(t.Context(), "a1", n, 1); err != nil || len(got) != 1 || string(got[0].Text) != wantLine {
			t.Errorf("line %d: got %v, %v", n, got, err)
		}
	}
	if got, err := l.Read(t.Context(), "a1", 0, len(text)); err != nil || !bytes.Equal(got, text) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	l.Close()
	var rows int
	if err := rawDB(t, dir, "logs.db").QueryRow(`SELECT count(*) FROM chunks`).Scan(&rows); err != nil || rows > 70 {
		t.Errorf("got %d rows, %v, for 500 commits of a few bytes", rows, err)
	}
}

func TestAppendHoldsBackWhenTheQueueIsFull(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	var once sync.Once
	entered := make(chan struct{})
	a := newAcks()
	l := openLogs(t, t.TempDir(), store.LogOptions{OnDurable: func(id pipeline.AttemptID, n int64, gap bool) {
		once.Do(func() { close(entered) })
		<-release
		a.durable(id, n, gap)
	}})
	appendAll(t, l, "first", 0, []byte("x"))
	<-entered // the writer is busy
	const mb = 1 << 20
	off := int64(0)
	for range 32 {
		appendAll(t, l, "a1", off, make([]byte, mb))
		off += mb
	}
	var released atomic.Bool
	started, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		close(started)
		if err := l.Append("a1", off, []byte("one more")); err != nil || !released.Load() {
			t.Errorf("32 MiB were queued: got %v, released %t", err, released.Load())
		}
	}()
	<-started
	for range 100 { // let it go wrong if it can
		runtime.Gosched()
	}
	released.Store(true)
	close(release)
	<-done
	a.reach("a1", off+8)
}

func TestClosedLogsTakeNothing(t *testing.T) {
	t.Parallel()
	l := openLogs(t, t.TempDir(), store.LogOptions{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want(t, l.Append("a1", 0, []byte("x")), fault.Unavailable)
	want(t, l.Seal(t.Context(), "a1", 0), fault.Unavailable)
}

func TestReaderFollowsAGrowingLog(t *testing.T) {
	t.Parallel()
	l := openLogs(t, t.TempDir(), store.LogOptions{})
	signal, stop := l.Watch("a1")
	defer stop()
	other, stopOther := l.Watch("a2")
	defer stopOther()
	text := strings.Repeat("a line of text\n", 1000)
	go func() {
		for off := 0; off < len(text); off += 100 {
			l.Append("a1", int64(off), []byte(text[off:min(off+100, len(text))]))
		}
		l.Seal(t.Context(), "a1", int64(len(text)))
	}()
	var got bytes.Buffer
	for {
		<-signal
		n, err := l.Length(t.Context(), "a1")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Copy(t.Context(), "a1", int64(got.Len()), &got); err != nil {
			t.Fatal(err)
		}
		if n.Sealed {
			break
		}
	}
	if got.String() != text {
		t.Errorf("got %d bytes, want %d", got.Len(), len(text))
	}
	select {
	case <-other:
		t.Error("the watcher of another log was woken")
	default:
	}
}
