package store_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

var (
	injections = flag.Int("store.injections", 24, "how many faults TestNothingAcknowledgedIsLostWhereverTheDiskFails injects")
	cuts       = flag.Int("store.cuts", 200, "how many ends of a log of writes are cut or garbled")
)

// persist writes a number of runs, each until it is written, and tells of each.
func persist(db *store.DB, logs *store.Logs) error {
	const most = 25
	c := composition("build", 3)
	for i := 1; i <= most; i++ {
		for tries := 0; ; tries++ {
			r := newRun(c, i)
			err := db.Write(context.Background(), func(tx *store.Tx) error {
				if err := tx.RecordCommit("ops", pipeline.CommitRecord{Commit: r.Commit, Ref: r.Ref, SeenAt: noon}); err != nil {
					return err
				}
				return tx.CreateRun(r, c)
			})
			if err == nil {
				fmt.Println("run", r.Number)
				break
			}
			fmt.Println("failed", err)
			if tries > 3 {
				return err
			}
		}
		if err := logs.Append("a1", int64(i-1)*100, make([]byte, 100)); err != nil {
			return err
		}
	}
	return nil
}

// traced starts a child whose system calls on the files of dir are tampered with.
func traced(t *testing.T, what, dir, inject string) *exec.Cmd {
	t.Helper()
	args := []string{"-f", "-qq", "-o", filepath.Join(t.TempDir(), "trace")}
	for _, f := range []string{"maestro.db", "logs.db"} {
		for _, suffix := range []string{"", "-wal", "-journal"} {
			args = append(args, "-P", filepath.Join(dir, f+suffix))
		}
	}
	args = append(args, "-e", "trace=pwrite64,fdatasync,fsync", "-e", "inject="+inject, os.Args[0])
	cmd := exec.CommandContext(t.Context(), "strace", args...)
	cmd.Env = append(os.Environ(), "STORE_CHILD="+what, "STORE_DIR="+dir)
	return cmd
}

// mayTrace skips the test where strace is not there or may not trace.
func mayTrace(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("starts many processes; the quick part leaves that out")
	}
	out, err := exec.Command("strace", "-f", "-o", os.DevNull, "-e", "inject=pwrite64:error=EIO:when=1", "true").CombinedOutput()
	if err != nil {
		t.Skipf("system calls cannot be tampered with, which takes strace and leave to trace: %v\n%s", err, out)
	}
}

func TestNothingAcknowledgedIsLostWhereverTheDiskFails(t *testing.T) {
	t.Parallel()
	mayTrace(t)
	faults := []string{"signal=SIGKILL", "error=EIO", "error=ENOSPC"}
	for i := range *injections {
		// A record takes about so many of each until it is there and 25 runs are in it.
		call, most := "pwrite64", 320
		if i%2 == 0 {
			call, most = "fdatasync,fsync", 45
		}
		inject := fmt.Sprintf("%s:%s:when=%d", call, faults[i/2%len(faults)], 1+rand.IntN(most))
		t.Run(inject, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			told, said := tamper(t, "persist", dir, inject)
			db := open(t, dir)
			runs, err := db.UnfinishedRuns(t.Context())
			if err != nil || len(runs) < told["run"] {
				t.Errorf("got %d runs, %v; %d were reported:\n%s", len(runs), err, told["run"], said)
			}
			n, err := openLogs(t, dir, store.LogOptions{}).Length(t.Context(), "a1")
			if err != nil || n.Received < int64(told["log"]) {
				t.Errorf("got %+v, %v; %d bytes of the log were reported", n, err, told["log"])
			}
			sound(t, dir)
		})
	}
}

// tamper runs a child to its end and returns the last of what it told.
func tamper(t *testing.T, child, dir, inject string) (told map[string]int, said string) {
	t.Helper()
	cmd := traced(t, child, dir, inject)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	told = map[string]int{}
	var all strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		fmt.Fprintln(&all, lines.Text())
		what, n, _ := strings.Cut(lines.Text(), " ")
		if k, err := strconv.Atoi(n); err == nil {
			told[what] = max(told[what], k)
		}
	}
	err = cmd.Wait() // killed, or told what went wrong
	t.Logf("%v: %v, %d failures", err, told, strings.Count(all.String(), "failed"))
	return told, all.String()
}

// sound fails the test when a check of production finds something.
func sound(t *testing.T, dir string) {
	t.Helper()
	report, err := store.Fsck(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		if !f.Warning {
			t.Errorf("fsck: %+v", f)
		}
	}
}

// TestCutOrGarbledEndCostsNothingBeforeIt damages the log of writes that a kill leaves,
// from a random byte on: every write that ended before that byte is there.
func TestCutOrGarbledEndCostsNothingBeforeIt(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	db := open(t, dir)
	c := composition("build", 3)
	wal := filepath.Join(dir, "maestro.db-wal")
	var ends []int64 // of the log after each write
	for i := range 20 {
		create(t, db, newRun(c, i+1), c)
		fi, err := os.Stat(wal)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, fi.Size())
	}
	record, err := os.ReadFile(filepath.Join(dir, "maestro.db"))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(wal)
	if err != nil {
		t.Fatal(err)
	}
	for i := range *cuts {
		at := rand.IntN(len(whole) + 1)
		b := whole[:at:at]
		if i%2 == 0 { // what follows is something else
			rest := make([]byte, rand.IntN(3*4096))
			for j := range rest {
				rest[j] = byte(rand.Uint32())
			}
			b = append(b, rest...)
		}
		least := 0
		for least < len(ends) && ends[least] <= int64(at) {
			least++
		}
		damaged := memoryDir(t)
		for name, content := range map[string][]byte{"maestro.db": record, "maestro.db-wal": b} {
			if err := os.WriteFile(filepath.Join(damaged, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		again, err := store.Open(t.Context(), damaged, testLog(t))
		if err != nil {
			t.Fatalf("cut at byte %d of %d: %v", at, len(whole), err)
		}
		runs, err := again.UnfinishedRuns(t.Context())
		if err != nil || len(runs) < least {
			t.Errorf("cut at byte %d of %d: got %d runs, %v, want the %d that were written before", at, len(whole), len(runs), err, least)
		}
		if seq, err := again.LastSeq(t.Context()); err != nil || int(seq) != len(runs) {
			t.Errorf("cut at byte %d of %d: got seq %d, %v, for %d runs", at, len(whole), seq, err, len(runs))
		}
		again.Close()
	}
}
