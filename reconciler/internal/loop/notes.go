package loop

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

const (
	// maxNote bounds a text that a task says of itself, in characters.
	maxNote = 200
	// maxLinks bounds the links that are kept while it runs; its result has all.
	maxLinks = 20
)

// notes are what running tasks last said of themselves, for people who ask why it
// takes long. They are not recorded: a restart forgets them, and the next word of
// the task brings them back. Any goroutine may call its methods.
type notes struct {
	mu    sync.Mutex
	of    map[pipeline.AttemptID]pipeline.Note
	seq   int64                    // counts the notes
	runs  map[pipeline.RunID]int64 // the newest note of each unfinished run
	watch map[chan struct{}]bool
}

func newNotes() *notes {
	return &notes{
		of: map[pipeline.AttemptID]pipeline.Note{}, runs: map[pipeline.RunID]int64{}, watch: map[chan struct{}]bool{},
	}
}

// add takes m into what the attempt has said so far.
func (n *notes) add(run pipeline.RunID, m *wire.Note, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.of[m.Attempt]
	note := old.Clone()
	note.At = now.UTC()
	if m.Waiting != nil {
		note.Waiting = clip(*m.Waiting, maxNote)
	}
	if m.Progress != nil {
		p := min(1, max(0, *m.Progress))
		note.Progress = &p
	}
	if m.Text != "" {
		note.Text = clip(m.Text, maxNote)
	}
	for _, l := range m.Links {
		note.Links = slices.DeleteFunc(note.Links, func(o pipeline.Link) bool { return o.Name == l.Name })
		if len(note.Links) < maxLinks {
			note.Links = append(note.Links, l)
		}
	}
	n.of[m.Attempt] = note
	n.seq++
	n.runs[run] = n.seq
	for ch := range n.watch {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// drop forgets an attempt that has ended.
func (n *notes) drop(id pipeline.AttemptID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.of, id)
}

// forget forgets a run that has ended.
func (n *notes) forget(id pipeline.RunID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.runs, id)
}

func (n *notes) all() map[pipeline.AttemptID]pipeline.Note {
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.of)
}

// Noted returns the unfinished runs whose tasks have said something since the note
// with the number after, and the number of the newest note. It does not block.
func (l *Runs) Noted(after int64) (runs []pipeline.RunID, newest int64) {
	l.notes.mu.Lock()
	defer l.notes.mu.Unlock()
	if after < l.notes.seq {
		for id, seq := range l.notes.runs {
			if seq > after {
				runs = append(runs, id)
			}
		}
	}
	slices.Sort(runs)
	return runs, l.notes.seq
}

// WatchNotes returns a channel that receives after a task has said something.
// Signals are coalesced. The caller calls stop once.
func (l *Runs) WatchNotes() (signal <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	l.notes.mu.Lock()
	defer l.notes.mu.Unlock()
	l.notes.watch[ch] = true
	return ch, func() {
		l.notes.mu.Lock()
		defer l.notes.mu.Unlock()
		delete(l.notes.watch, ch)
	}
}

func clip(s string, n int) string {
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n]) + "…"
}
