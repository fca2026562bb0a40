package store_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// smallDisk mounts a file system of that size.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("a small file system cannot be mounted, which takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all room but about spare bytes, and returns what gives it back.
func fill(t *testing.T, dir string, spare int) (free func()) {
	t.Helper()
	file := filepath.Join(dir, "ballast")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := 0
	for {
		n, err := f.Write(make([]byte, 4096))
		size += n
		if err != nil {
			break
		}
	}
	if err := f.Truncate(int64(max(0, size-spare))); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	}
}

func TestFullDiskLosesNothingAndSaysSo(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "2m")
	db := open(t, dir)
	c := composition("build", 100)
	free := fill(t, dir, 200<<10)
	var failed error
	n := 0
	for failed == nil {
		n++
		failed = db.Write(t.Context(), func(tx *store.Tx) error { return tx.CreateRun(newRun(c, n), c) })
	}
	want(t, failed, fault.Internal)
	if !strings.Contains(failed.Error(), "is full") {
		t.Errorf("got %v", failed)
	}
	if runs, err := db.UnfinishedRuns(t.Context()); len(runs) != n-1 || err != nil {
		t.Errorf("got %d runs, %v, want the %d that were written", len(runs), err, n-1)
	}
	free()
	r := newRun(c, n)
	create(t, db, r, c)
	if r.Number != n {
		t.Errorf("got number %d, want %d", r.Number, n)
	}
	db.Close()
	db = open(t, dir)
	if seq, err := db.LastSeq(t.Context()); int(seq) != n || err != nil {
		t.Errorf("got seq %d, %v, want %d", seq, err, n)
	}
}

// TestReserveIsGivenUpWhenTheDiskIsFull: what could not be recorded is when it is tried
// again, without anybody making room.
func TestReserveIsGivenUpWhenTheDiskIsFull(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "20m")
	db := open(t, dir)
	if err := store.Reserve(dir); err != nil {
		t.Fatal(err)
	}
	if s, err := store.SpaceOf(dir); err != nil || s.Total != 20<<20 || s.Free > 4<<20 {
		t.Errorf("got %+v, %v", s, err)
	}
	free := fill(t, dir, 100<<10)
	c := composition("build", 100)
	n, failures := 0, 0
	for ; n < 60; n++ {
		err := db.Write(t.Context(), func(tx *store.Tx) error { return tx.CreateRun(newRun(c, n), c) })
		if err != nil {
			want(t, err, fault.Internal)
			if failures++; failures > 1 {
				t.Fatalf("run %d: %v", n, err)
			}
			n-- // as agents do, who keep what was not acknowledged
		}
	}
	if failures != 1 {
		t.Errorf("the disk was never full")
	}
	if s, err := store.SpaceOf(dir); err != nil || s.Free != 0 {
		t.Errorf("got %+v, %v: nobody has made room", s, err)
	}
	free()
}

func TestLogsWaitForRoomOnTheDisk(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "2m")
	failed := make(chan struct{}, 100)
	a := newAcks()
	l, err := store.OpenLogs(t.Context(), dir, onError(t, failed), store.LogOptions{OnDurable: a.durable})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	appendAll(t, l, "a1", 0, []byte("before\n"))
	a.reach("a1", 7)
	free := fill(t, dir, 0)
	big := bytes.Repeat([]byte("0123456789abcde\n"), 20_000)
	appendAll(t, l, "a1", 7, big)
	<-failed
	if n, err := l.Length(t.Context(), "a1"); n.Received != 7 || err != nil {
		t.Errorf("got %+v, %v: what is not on the disk is not acknowledged", n, err)
	}
	free()
	a.reach("a1", int64(7+len(big)))
	if got, err := l.Read(t.Context(), pipeline.AttemptID("a1"), 7, len(big)); !bytes.Equal(got, big) || err != nil {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}
