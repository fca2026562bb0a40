package store_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

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
	l, err := store.OpenLogs(t.Context(), dir, slog.New(slog.NewTextHandler(t.Output(), nil)), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestLargeLogIsStoredWithinSecondsInConstantMemory(t *testing.T) {
	t.Parallel()
	const lines = 1_000_000
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
	if peak > 150<<20 {
		t.Errorf("peak heap %d MB: the queue is bounded by 32 MiB", peak>>20)
	}
	n, err := l.Length(t.Context(), "a1")
	if err != nil || n.Bytes != off || n.Lines != lines || !n.Sealed || n.Truncated {
		t.Errorf("got %+v, %v, want %d bytes and %d lines", n, err, off, lines)
	}
	begin = time.Now()
	for _, from := range []int64{1, 2, 500_000, 777_777, 999_999, 1_000_000} {
		got, err := l.Lines(t.Context(), "a1", from, 3)
		if err != nil || len(got) == 0 || got[0].N != from || !bytes.HasPrefix(got[0].Text, fmt.Appendf(nil, "%08d ", from)) {
			t.Errorf("line %d: got %v, %v", from, got, err)
		}
	}
	t.Logf("6 jumps in %s", time.Since(begin))
	begin = time.Now()
	found, total, err := l.Search(t.Context(), "a1", "00777", 10)
	if err != nil || total != 1100-0 && total == 0 || len(found) != 10 {
		t.Errorf("search: got %d, %d, %v", len(found), total, err)
	}
	t.Logf("searched in %s, %d matches", time.Since(begin), total)
	begin = time.Now()
	if n, err := l.Copy(t.Context(), "a1", 0, io.Discard); n != off || err != nil {
		t.Errorf("copy: got %d, %v, want %d", n, err, off)
	}
	t.Logf("copied in %s", time.Since(begin))
}
