package store_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

const (
	benchRuns  = 100_000
	benchTasks = 5
)

// aged returns a record in which many runs have ended, 20 are under way, and the
// composition of all of them.
func aged(b *testing.B) (string, *store.DB, *pipeline.Composition) {
	b.Helper()
	dir := b.TempDir()
	c := composition("build", benchTasks)
	db := open(b, dir)
	for n := 0; n < benchRuns; n += 1000 {
		write(b, db, func(tx *store.Tx) error {
			for i := n; i < n+1000; i++ {
				r := newRun(c, i)
				r.State, r.FinishedAt, r.StartedAt = pipeline.Success, noon.Add(time.Minute), noon
				r.Commit = pipeline.CommitID(fmt.Sprintf("%040x", i))
				for j := range r.Tasks {
					r.Tasks[j].State, r.Tasks[j].FinishedAt, r.Tasks[j].Outputs = pipeline.Success, noon, []byte(`{"id":"i-0123456789"}`)
				}
				if err := tx.CreateRun(r, c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for i := range 20 {
		create(b, db, newRun(c, benchRuns+i), c)
	}
	openLogs(b, dir, store.LogOptions{})
	return dir, db, c
}

func BenchmarkWithManyRuns(b *testing.B) {
	dir, db, c := aged(b)
	n := benchRuns + 1000
	// A transaction as of one event: a task moves on, its attempt and its run with it.
	b.Run("Transition", func(b *testing.B) {
		agent := enrol(b, db, "bench").ID
		r := newRun(c, n)
		n++
		create(b, db, r, c)
		for b.Loop() {
			next := move(r, "t0", pipeline.Offered)
			a := &pipeline.Attempt{
				ID: next.Tasks[0].Attempt, Run: r.ID, Task: "t0", Agent: agent,
				Token: pipeline.Token{Incarnation: 1, Epoch: next.Tasks[0].Epoch}, State: pipeline.AttemptOffered, OfferedAt: noon,
			}
			back := move(next, "t0", pipeline.Ready)
			write(b, db, func(tx *store.Tx) error {
				if err := tx.SaveRun(r, next); err != nil {
					return err
				}
				return tx.SaveAttempt(nil, a)
			})
			write(b, db, func(tx *store.Tx) error {
				if err := tx.SaveRun(next, back); err != nil {
					return err
				}
				return tx.SaveAttempt(a, in(*a, pipeline.AttemptDeclined))
			})
			r = back
		}
		b.ReportMetric(2*float64(b.N)/b.Elapsed().Seconds(), "transactions/s")
	})
	// The same moves, 64 in a transaction.
	b.Run("TransitionsInBatches", func(b *testing.B) {
		var runs []*pipeline.Run
		for range 64 {
			r := newRun(c, n)
			n++
			create(b, db, r, c)
			runs = append(runs, r)
		}
		for b.Loop() {
			write(b, db, func(tx *store.Tx) error {
				for i, r := range runs {
					to := pipeline.Offered
					if r.Tasks[0].State == pipeline.Offered {
						to = pipeline.Ready
					}
					runs[i] = move(r, "t0", to)
					if err := tx.SaveRun(r, runs[i]); err != nil {
						return err
					}
				}
				return nil
			})
		}
		b.ReportMetric(64*float64(b.N)/b.Elapsed().Seconds(), "transitions/s")
	})
	b.Run("CreateRun", func(b *testing.B) {
		for b.Loop() {
			create(b, db, newRun(c, n), c)
			n++
		}
	})
	reads := map[string]func() error{
		"UnfinishedRuns":     func() error { _, err := db.UnfinishedRuns(b.Context()); return err },
		"UnfinishedAttempts": func() error { _, err := db.UnfinishedAttempts(b.Context()); return err },
		"Agents":             func() error { _, err := db.Agents(b.Context()); return err },
		"Board":              func() error { _, err := db.Board(b.Context()); return err },
		"Runs":               func() error { _, err := db.Runs(b.Context(), store.Filter{Limit: 50}); return err },
		"RunsByNoSuchRef": func() error {
			_, err := db.Runs(b.Context(), store.Filter{Ref: "refs/heads/none", Limit: 50})
			return err
		},
		"RunsWithTasks": func() error {
			_, err := db.Runs(b.Context(), store.Filter{Composition: "build", Limit: 50, Tasks: true})
			return err
		},
		"RunByNumber": func() error { _, err := db.RunByNumber(b.Context(), "build", 5000); return err },
		"LastOutputs": func() error {
			_, err := db.LastOutputs(b.Context(), "build", "t3", "refs/heads/main", "refs/heads/main")
			return err
		},
		"Removable":       func() error { _, err := db.Removable(b.Context(), keepDays(0), 20); return err },
		"RemovableAllOld": func() error { _, err := db.Removable(b.Context(), keepDays(10), 20); return err },
		"Sweep":           func() error { _, err := db.Sweep(b.Context(), keepDays(0), 200); return err },
		"Fsck":            func() error { _, err := store.Fsck(b.Context(), dir); return err },
		"Changes":         func() error { _, err := db.Changes(b.Context(), 50_000, 100); return err },
	}
	for name, read := range reads {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLogs(b *testing.B) {
	a := newAcks()
	l := openLogs(b, b.TempDir(), store.LogOptions{OnDurable: a.durable, MaxBytes: 1 << 40})
	frame := bytes.Repeat([]byte("one line of a log, of some length, as they are\n"), (60<<10)/47)
	b.SetBytes(int64(len(frame)))
	off := int64(0)
	for b.Loop() {
		appendAll(b, l, "a1", off, frame)
		off += int64(len(frame))
	}
	a.reach("a1", off)
}

// BenchmarkScheduledBackup makes backups of a folder with a GiB of packed logs, with a
// little more log between two of them, and tells how much room each takes.
func BenchmarkScheduledBackup(b *testing.B) {
	dir := b.TempDir()
	record(b, open(b, dir))
	l := openLogs(b, dir, store.LogOptions{})
	noise := rand.New(rand.NewPCG(1, 2))
	n := 0
	add := func(size int) {
		data := make([]byte, size) // what does not get smaller, so that the file has its size
		for i := 0; i < len(data); i += 8 {
			binary.LittleEndian.PutUint64(data[i:], noise.Uint64())
		}
		n++
		id := pipeline.AttemptID(fmt.Sprintf("a%d", n))
		appendAll(b, l, id, 0, data)
		if err := l.Seal(b.Context(), id, int64(size)); err != nil {
			b.Fatal(err)
		}
	}
	for range 256 {
		add(4 << 20)
	}
	packAll(b, l)
	backUp(b, dir)
	before := free(b, dir)
	for b.Loop() {
		b.StopTimer()
		add(64 << 10)
		packAll(b, l)
		b.StartTimer()
		backUp(b, dir)
	}
	b.ReportMetric(float64(before-free(b, dir))/float64(b.N)/(1<<20), "MiB/backup")
}

// free is how much room the disk of dir has.
func free(b *testing.B, dir string) int64 {
	b.Helper()
	s, err := store.SpaceOf(dir)
	if err != nil {
		b.Fatal(err)
	}
	return int64(s.Free)
}
