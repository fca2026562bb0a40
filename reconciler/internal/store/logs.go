package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// mostQueued bounds the memory of bytes that wait to be written: four attempts
	// may have a whole window of 8 MiB under way before their senders are held back.
	mostQueued = 32 << 20
	// groupBytes and groupEvery end the collection of a group: one commit, hence one
	// fsync, for all attempts that write at the same time.
	groupBytes = 4 << 20
	groupEvery = 200 * time.Millisecond
	// retryEvery is the pause after a commit that went wrong, as on a full disk.
	retryEvery = time.Second
	// DefaultMaxLog is how much of one attempt's log is kept.
	DefaultMaxLog = 1 << 30
)

// LogOptions configures Logs. The zero value is usable.
type LogOptions struct {
	// OnDurable is called after a commit, once for each attempt that it was about,
	// with the length up to which all is done with; the agent goes on from there.
	// gap tells that something was refused, because bytes before it are missing or
	// it contradicts what is stored: the agent must send again from length. It is
	// called by the one goroutine that writes and must not block long.
	OnDurable func(id pipeline.AttemptID, length int64, gap bool)
	// MaxBytes is how much of one attempt's log is kept; 0 is DefaultMaxLog. The
	// rest is acknowledged and discarded, and a line in the log says so.
	MaxBytes int64
}

// Logs holds the bytes that attempts wrote, in logs.db. Its methods may be called
// by many goroutines at once; reads do not wait for writes.
type Logs struct {
	file    *file
	log     *slog.Logger
	opts    LogOptions
	packer  packer
	hub     hub[pipeline.AttemptID]
	wake    chan struct{} // receives when the writer has to look at the queue
	closing chan struct{} // closed by Close
	done    chan struct{} // closed when the writer has ended

	mu     sync.Mutex
	room   sync.Cond // there is room in the queue again, or it closes; on mu
	queue  []logItem // guarded by mu, as are the next three
	queued int
	urgent bool // somebody waits for the queue to be written
	closed bool

	// Owned by the writer.
	known map[pipeline.AttemptID]*logState
	last  time.Time // of the last commit
}

// logItem is bytes to be stored, or the end of a log.
type logItem struct {
	attempt pipeline.AttemptID
	off     int64
	data    []byte
	seal    chan error // not nil: the log ends at off
}

// OpenLogs opens the logs in dir, and makes folder and file when they are not
// there. Its errors are those of Open.
func OpenLogs(ctx context.Context, dir string, log *slog.Logger, opts LogOptions) (*Logs, error) {
	// Only the small table is checked: to read all logs there are would take minutes.
	f, err := openFile(ctx, dir, layout{logsName, "logs", "logs.lock", `PRAGMA quick_check('logs')`}, log)
	if err != nil {
		return nil, fmt.Errorf("open the logs: %w", err)
	}
	p, err := newPacker()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the logs: %w", err), f.release())
	}
	if opts.MaxBytes == 0 {
		opts.MaxBytes = DefaultMaxLog
	}
	l := &Logs{
		file: f, log: log, opts: opts, packer: p,
		wake: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
		known: map[pipeline.AttemptID]*logState{},
	}
	l.room.L = &l.mu
	go l.write() // ends when Close asks for it and waits
	return l, nil
}

// Close writes what is queued, once, and closes the logs. Calls after it fail.
func (l *Logs) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return fault.New(fault.Internal, "close the logs: they are closed")
	}
	l.closed = true
	l.mu.Unlock()
	close(l.closing)
	l.room.Broadcast()
	<-l.done
	if err := l.file.close(); err != nil {
		return fmt.Errorf("close the logs: %w", err)
	}
	return nil
}

var errLogsClosed = fault.New(fault.Unavailable, "the logs are closed: this process is stopping")

// Append queues bytes of an attempt's log that begin at off, and owns data from
// then on. It blocks only while 32 MiB are queued. What became of them is told to
// OnDurable: bytes that are stored already are compared and not stored twice. The
// one error is fault.Unavailable, after Close.
func (l *Logs) Append(id pipeline.AttemptID, off int64, data []byte) error {
	return l.put(logItem{attempt: id, off: off, data: data})
}

// Seal marks the log of an attempt as complete, after what was appended before,
// and returns when that is durable. A log of which not that much
// was received is a fault.Conflict: something is still to come, or was lost.
func (l *Logs) Seal(ctx context.Context, id pipeline.AttemptID, length int64) error {
	sealed := make(chan error, 1)
	if err := l.put(logItem{attempt: id, off: length, seal: sealed}); err != nil {
		return err
	}
	select {
	case err := <-sealed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("seal the log of %s: %w", id, ctx.Err())
	}
}

// Watch returns a channel that receives after the attempt's log has grown or was
// sealed. Signals are coalesced; the caller calls stop when it is done.
func (l *Logs) Watch(id pipeline.AttemptID) (signal <-chan struct{}, stop func()) {
	return l.hub.watch(id)
}

func (l *Logs) put(item logItem) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.queued > 0 && l.queued+len(item.data) > mostQueued && !l.closed {
		l.room.Wait()
	}
	if l.closed {
		return errLogsClosed
	}
	l.queue = append(l.queue, item)
	l.queued += len(item.data)
	l.urgent = l.urgent || item.seal != nil
	if len(l.queue) == 1 || l.queued >= groupBytes || l.urgent {
		select {
		case l.wake <- struct{}{}:
		default: // the writer will look anyhow
		}
	}
	return nil
}

// write is the writer's goroutine. It collects what arrives while a commit is
// under way, or within groupEvery after one, so that the first bytes after a
// silence are written at once and a stream costs five commits a second.
func (l *Logs) write() {
	defer close(l.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		switch wait := l.wait(); {
		case wait == 0:
			if !l.store(l.take()) {
				return
			}
			continue
		case wait > 0:
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-l.wake:
		case <-due:
		case <-l.closing:
			l.store(l.take())
			return
		}
	}
}

// wait returns how long the queue may still collect; negative when it is empty.
func (l *Logs) wait() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case len(l.queue) == 0:
		return -1
	case l.urgent || l.queued >= groupBytes:
		return 0
	}
	return max(0, groupEvery-time.Since(l.last))
}

func (l *Logs) take() []logItem {
	l.mu.Lock()
	defer l.mu.Unlock()
	items := l.queue
	l.queue, l.queued, l.urgent = nil, 0, false
	l.room.Broadcast()
	return items
}

// store writes a group, again and again until it is durable: its senders keep
// what is not acknowledged, and are held back by the queue. It gives up, and
// returns false, when the logs are closed.
func (l *Logs) store(items []logItem) bool {
	if len(items) == 0 {
		return true
	}
	for failures := 0; ; failures++ {
		results, err := l.commit(items)
		l.last = time.Now()
		if err == nil {
			l.tell(results)
			return true
		}
		l.file.full(err)
		// It is uncertain what a failed commit left; what is read again is certain.
		clear(l.known)
		if failures == 0 {
			l.log.Error("logs are not written and wait", "items", len(items), "err", l.file.explain(err))
		}
		select {
		case <-time.After(retryEvery):
		case <-l.closing:
			for _, item := range items {
				if item.seal != nil {
					item.seal <- fmt.Errorf("seal the log of %s: %w", item.attempt, errors.Join(errLogsClosed, err))
				}
			}
			return false
		}
	}
}

// tell passes on what became of a group.
func (l *Logs) tell(g *logGroup) {
	for _, id := range g.order {
		o := g.touched[id]
		if l.opts.OnDurable != nil && o.appended {
			l.opts.OnDurable(id, o.state.received, o.gap)
		}
		l.hub.notify(id)
	}
	for _, s := range g.seals {
		s.done <- s.err
	}
}
