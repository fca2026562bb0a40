// Package journal is the agent's memory: what it has promised, on disk before it
// is promised. The runner is its only user. It holds no secrets, no logs and no
// results of programs that a shim has not already written to its own file.
//
// The file is a list of lines, each with a checksum. A crash can only cut the
// last line short; that line had promised nothing yet and is dropped. There is no
// record for "go": the control plane says go again after each reconnect, and
// until "started" is on disk the shim has not been told what to run, so a crash
// in between leaves an attempt that certainly has not run.
package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// keepAcked is how long an acknowledged attempt is remembered, so that a late
	// duplicate of its offer is recognised. A tombstone is about 150 bytes.
	keepAcked = 24 * time.Hour
	// keepResults bounds the bytes of results that are remembered beyond their
	// acknowledgement, the newest of them, in case the control plane loses them: some
	// ten thousand of the usual size.
	keepResults = 8 << 20
	// slack is how much the file may grow beyond twice what is live before it is
	// rewritten: some thousands of small tasks.
	slack = 4 << 20
)

// Journal is an open journal. Its methods may be called from any goroutine.
type Journal struct {
	path string
	log  *slog.Logger

	syncMu sync.Mutex // held over an fsync; taken before mu
	synced int64      // records on disk; guarded by syncMu

	mu      sync.Mutex
	file    *os.File
	size    int64 // end of the last whole record
	base    int64 // size after the last rewrite
	written int64 // records written since Open
	broken  error // after a failed fsync nothing is known about the file
	entries map[pipeline.AttemptID]*Entry
}

// Open reads the journal at path, or begins one, and rewrites it without what is
// no longer needed. The caller sees to it that no other process has it open. A
// journal that cannot be read or written is an error; a torn or damaged line is not.
func Open(path string, log *slog.Logger) (*Journal, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	entries, damage := Read(b)
	if damage.Lines > 0 {
		log.Error("journal has damaged lines, what they said is lost", "path", path, "lines", damage.Lines)
		if err := durable.WriteFile(path+".damaged", b, 0o600); err != nil {
			return nil, fmt.Errorf("open journal: %w", err)
		}
	}
	if damage.Torn > 0 {
		log.Info("journal ends in a torn line, dropped", "path", path, "bytes", damage.Torn)
	}
	j := &Journal{path: path, log: log, entries: entries}
	if err := j.rewriteLocked(); err != nil {
		return nil, err
	}
	return j, nil
}

// Entries returns what the journal knows, tombstones included, sorted by attempt.
// The caller may keep and change the entries, but not what they point to.
func (j *Journal) Entries() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := make([]Entry, 0, len(j.entries))
	for _, e := range j.entries {
		all = append(all, *e)
	}
	slices.SortFunc(all, func(a, b Entry) int { return strings.Compare(string(a.Attempt), string(b.Attempt)) })
	return all
}

// Note writes r so that it survives the death of this process. It returns before
// the record is safe from a power cut.
func (j *Journal) Note(r Record) error {
	_, err := j.write(r)
	return err
}

// Promise writes r and returns when it is on disk. Callers at the same time share
// one fsync.
func (j *Journal) Promise(r Record) error {
	n, err := j.write(r)
	if err != nil {
		return err
	}
	return j.sync(n)
}

// write returns the number of the record.
func (j *Journal) write(r Record) (int64, error) {
	line, err := encode(r)
	if err != nil {
		return 0, err
	}
	n, large, err := j.append(line, r)
	if err == nil && large {
		// The record is written; a rewrite that fails leaves the old file in use.
		if err := j.rewrite(); err != nil {
			j.log.Error("journal not rewritten", "err", err)
		}
	}
	return n, err
}

func (j *Journal) append(line []byte, r Record) (n int64, large bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.broken != nil {
		return 0, false, j.broken
	}
	// A write that fails half-way is overwritten by the next one, at the same offset.
	if _, err := j.file.WriteAt(line, j.size); err != nil {
		return 0, false, fmt.Errorf("journal %s of attempt %s: %w", r.Kind, r.Attempt, errors.Join(err, j.file.Truncate(j.size)))
	}
	j.size += int64(len(line))
	j.written++
	apply(j.entries, r)
	return j.written, j.size > 2*j.base+slack, nil
}

func (j *Journal) sync(n int64) error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if j.synced >= n {
		return nil
	}
	j.mu.Lock()
	file, written, broken := j.file, j.written, j.broken
	j.mu.Unlock()
	if broken != nil {
		return broken
	}
	if err := file.Sync(); err != nil {
		// The kernel may have dropped the pages and report success next time, so
		// nothing written here can be trusted any more.
		err = fmt.Errorf("journal is no longer safe, restart agentd: %w", err)
		j.mu.Lock()
		j.broken = err
		j.mu.Unlock()
		return err
	}
	j.synced = written
	return nil
}

func (j *Journal) rewrite() error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.rewriteLocked(); err != nil {
		return err
	}
	j.synced = j.written
	return nil
}

// rewriteLocked replaces the file by one that holds only what is still needed. On
// an error the file in use stays in use.
func (j *Journal) rewriteLocked() error {
	maps.DeleteFunc(j.entries, func(_ pipeline.AttemptID, e *Entry) bool {
		return !e.AckedAt.IsZero() && time.Since(e.AckedAt) > keepAcked
	})
	j.dropResultsLocked()
	var b []byte
	for _, id := range slices.Sorted(maps.Keys(j.entries)) {
		for _, r := range j.entries[id].records() {
			line, err := encode(r)
			if err != nil {
				return err
			}
			b = append(b, line...)
		}
	}
	if err := durable.WriteFile(j.path, b, 0o600); err != nil {
		// Growing twice as large before the next try keeps a full disk from being
		// hammered at each record.
		j.base = j.size
		return fmt.Errorf("rewrite journal: %w", err)
	}
	f, err := os.OpenFile(j.path, os.O_RDWR, 0o600)
	if err != nil {
		// The old handle writes to a file that has no name any more.
		j.broken = fmt.Errorf("rewrite journal: %w", err)
		return j.broken
	}
	if j.file != nil {
		err = j.file.Close()
	}
	j.file, j.size, j.base = f, int64(len(b)), int64(len(b))
	if err != nil {
		return fmt.Errorf("rewrite journal: %w", err)
	}
	return nil
}

// dropResultsLocked forgets the oldest acknowledged results beyond keepResults.
func (j *Journal) dropResultsLocked() {
	size := 0
	for _, e := range j.acknowledgedLocked() {
		size += len(e.Result.Outputs) + len(e.Result.Records) + len(e.Result.Reason) + aResult
		if size > keepResults {
			e.Result = nil
		}
	}
}

// aResult is what a result takes besides what a task makes as large as it likes.
const aResult = 400

// acknowledgedLocked lists the tombstones that have a result, newest first.
func (j *Journal) acknowledgedLocked() []*Entry {
	var all []*Entry
	for _, e := range j.entries {
		if !e.AckedAt.IsZero() && e.Result != nil {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *Entry) int { return b.AckedAt.Compare(a.AckedAt) })
	return all
}

// AckedBefore returns the newest attempts, at most so many, whose results were
// acknowledged by an earlier incarnation of the record and are still remembered.
func (j *Journal) AckedBefore(incarnation int64, most int) []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []Entry
	for _, e := range j.acknowledgedLocked() {
		if e.AckedBy < incarnation && len(out) < most {
			out = append(out, *e)
		}
	}
	return out
}

// Close makes all that was written safe and releases the file.
func (j *Journal) Close() error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return nil
	}
	err := errors.Join(j.file.Sync(), j.file.Close())
	j.file = nil
	j.broken = errors.Join(j.broken, fs.ErrClosed)
	return err
}

// Acked reports whether the attempt was acknowledged, within the last day.
func (j *Journal) Acked(id pipeline.AttemptID) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.entries[id]
	return e != nil && !e.AckedAt.IsZero()
}
