package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// chunkBytes is the size of a full row: large enough that a log of 1 GiB has
	// 4,096 of them, small enough to be read for one line.
	chunkBytes = 256 << 10
	// mostTail is how many small rows a log ends in before they become one. Each
	// group adds a row, so that a slow log is not rewritten five times a second.
	mostTail = 64
	// mostKnown bounds the writer's memory of logs; what it forgets it reads again.
	mostKnown = 4096
)

// logState is a log as it stands after the transaction in which it was made.
type logState struct {
	id                int64 // of its row; 0 when it has none yet
	received          int64
	bytes, newlines   int64
	openLine          bool
	truncated, sealed bool

	// The small rows at its end, as far as the writer knows them, and where they begin.
	tailRows          int
	tailOff, tailLine int64
	// What was accepted in this group and is not in a row yet, and where it begins.
	pending                 []byte
	pendingOff, pendingLine int64
	dirty                   bool // differs from its row
}

// outcome is what a group did to one log.
type outcome struct {
	state    *logState
	appended bool // there were bytes for it, however they fared
	gap      bool
}

type sealed struct {
	done chan error
	err  error
}

// logGroup is one transaction of the writer.
type logGroup struct {
	logs    *Logs
	tx      *sql.Tx
	touched map[pipeline.AttemptID]*outcome
	order   []pipeline.AttemptID // of touched
	seals   []sealed
}

// commit writes the items in one transaction. After an error nothing of them is stored.
func (l *Logs) commit(items []logItem) (*logGroup, error) {
	tx, err := l.file.writer.BeginTx(context.Background(), nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback() // of no effect after a commit
	g := &logGroup{logs: l, tx: tx, touched: map[pipeline.AttemptID]*outcome{}}
	for _, item := range items {
		if err := g.apply(item); err != nil {
			return nil, fmt.Errorf("log of %s: %w", item.attempt, err)
		}
	}
	for _, id := range g.order {
		if err := g.save(id, g.touched[id].state); err != nil {
			return nil, fmt.Errorf("log of %s: %w", id, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return nil, err
	}
	if len(l.known)+len(g.order) > mostKnown {
		clear(l.known)
	}
	for _, id := range g.order {
		l.known[id] = g.touched[id].state
		if l.known[id].sealed {
			delete(l.known, id)
		}
	}
	return g, nil
}

func (g *logGroup) apply(item logItem) error {
	o, err := g.open(item.attempt)
	if err != nil {
		return err
	}
	if item.seal != nil {
		g.seals = append(g.seals, sealed{item.seal, o.state.seal(item.attempt, item.off)})
		return nil
	}
	o.appended = true
	return g.append(item, o)
}

// open returns the log with its changes in this group.
func (g *logGroup) open(id pipeline.AttemptID) (*outcome, error) {
	if o := g.touched[id]; o != nil {
		return o, nil
	}
	var s logState
	if known := g.logs.known[id]; known != nil {
		s = *known
	} else {
		err := g.tx.QueryRow(`SELECT id, received, bytes, newlines, open_line, truncated, sealed FROM logs WHERE attempt = ?`, string(id)).
			Scan(&s.id, &s.received, &s.bytes, &s.newlines, &s.openLine, &s.truncated, &s.sealed)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
		s.tailOff, s.tailLine = s.bytes, s.newlines+1
	}
	o := &outcome{state: &s}
	g.touched[id] = o
	g.order = append(g.order, id)
	return o, nil
}

func (s *logState) seal(id pipeline.AttemptID, length int64) error {
	if s.received != length {
		return fault.New(fault.Conflict, "seal the log of %s: it ends at byte %d, and %d are stored", id, length, s.received)
	}
	s.dirty = s.dirty || !s.sealed
	s.sealed = true
	return nil
}

// append takes the bytes of an item that are new.
func (g *logGroup) append(item logItem, o *outcome) error {
	s := o.state
	if item.off < 0 || item.off > s.received {
		o.gap = true
		return nil
	}
	over := min(s.received-item.off, int64(len(item.data)))
	if over > 0 && !s.truncated { // what was discarded cannot be compared
		same, err := g.same(s, item.off, item.data[:over])
		if err != nil {
			return err
		}
		if !same {
			g.logs.log.Warn("log bytes differ from those stored and are refused",
				"attempt_id", item.attempt, "off", item.off, "bytes", len(item.data))
			o.gap = true
			return nil
		}
	}
	fresh := item.data[over:]
	switch {
	case len(fresh) == 0:
		return nil
	case s.sealed:
		g.logs.log.Warn("log bytes after the end of the log are dropped", "attempt_id", item.attempt, "bytes", len(fresh))
		return nil
	}
	s.dirty = true
	s.received += int64(len(fresh))
	if s.truncated {
		return nil
	}
	if most := g.logs.opts.MaxBytes; s.bytes+int64(len(fresh)) > most {
		s.truncated = true
		fresh = append(fresh[:most-s.bytes:most-s.bytes], g.logs.truncation(s, fresh[:most-s.bytes])...)
	}
	return g.add(item.attempt, s, fresh)
}

// truncation is the line that ends a log which was cut after kept.
func (l *Logs) truncation(s *logState, kept []byte) string {
	begin := ""
	if open := s.openLine && len(kept) == 0 || len(kept) > 0 && kept[len(kept)-1] != '\n'; open {
		begin = "\n"
	}
	return fmt.Sprintf("%s[maestro] the log is cut here: more than %d bytes of one attempt are not kept\n", begin, l.opts.MaxBytes)
}

// add takes bytes that follow the log, and writes full rows.
func (g *logGroup) add(id pipeline.AttemptID, s *logState, data []byte) error {
	if s.pending == nil {
		s.pendingOff, s.pendingLine = s.bytes, s.newlines+1
	}
	s.pending = append(s.pending, data...)
	s.bytes += int64(len(data))
	s.newlines += int64(bytes.Count(data, []byte{'\n'}))
	s.openLine = data[len(data)-1] != '\n'
	if len(s.pending) < 2*chunkBytes {
		return nil
	}
	return g.flush(id, s, chunkBytes)
}

// flush writes the pending bytes as rows until less than least are left: full rows,
// and a small one for the rest. When there are too many small rows at the end, they
// are read back and written as one.
func (g *logGroup) flush(id pipeline.AttemptID, s *logState, least int) error {
	if len(s.pending) < least {
		return nil
	}
	if err := g.begin(id, s); err != nil {
		return err
	}
	if s.tailRows > 0 && (s.tailRows >= mostTail || s.pendingOff-s.tailOff+int64(len(s.pending)) >= chunkBytes) {
		if err := g.unite(s); err != nil {
			return err
		}
	}
	if s.tailRows == 0 {
		s.tailOff, s.tailLine = s.pendingOff, s.pendingLine
	}
	for len(s.pending) >= least {
		piece := s.pending[:min(chunkBytes, len(s.pending))]
		if _, err := g.tx.Exec(`INSERT INTO chunks (log_id, off, first_line, data) VALUES (?, ?, ?, ?)`,
			s.id, s.pendingOff, s.pendingLine, piece); err != nil {
			return err
		}
		s.pendingOff += int64(len(piece))
		s.pendingLine += int64(bytes.Count(piece, []byte{'\n'}))
		s.pending = s.pending[len(piece):]
		if s.tailRows++; len(piece) == chunkBytes {
			s.tailRows, s.tailOff, s.tailLine = 0, s.pendingOff, s.pendingLine
		}
	}
	if len(s.pending) == 0 {
		s.pending = nil
	}
	return nil
}

// begin gives the log a row.
func (g *logGroup) begin(id pipeline.AttemptID, s *logState) error {
	if s.id != 0 {
		return nil
	}
	res, err := g.tx.Exec(`INSERT INTO logs (attempt, received, bytes, newlines, open_line, truncated, sealed)
		VALUES (?, 0, 0, 0, 0, 0, 0)`, string(id))
	if err != nil {
		return err
	}
	s.id, err = res.LastInsertId()
	return err
}

// unite puts the small rows at the end back in front of what is pending.
func (g *logGroup) unite(s *logState) error {
	rows, err := query(context.Background(), g.tx, scanOne[[]byte],
		`SELECT data FROM chunks WHERE log_id = ? AND off >= ? ORDER BY off`, s.id, s.tailOff)
	if err != nil {
		return err
	}
	if _, err := g.tx.Exec(`DELETE FROM chunks WHERE log_id = ? AND off >= ?`, s.id, s.tailOff); err != nil {
		return err
	}
	s.pending = append(bytes.Join(rows, nil), s.pending...)
	s.pendingOff, s.pendingLine, s.tailRows = s.tailOff, s.tailLine, 0
	return nil
}

// same reports whether the log holds data at off.
func (g *logGroup) same(s *logState, off int64, data []byte) (bool, error) {
	if s.pending != nil && off+int64(len(data)) > s.pendingOff {
		from := max(off, s.pendingOff)
		if !bytes.HasPrefix(s.pending[from-s.pendingOff:], data[from-off:]) {
			return false, nil
		}
		data = data[:from-off]
	}
	if len(data) == 0 {
		return true, nil
	}
	stored, err := g.logs.readLog(context.Background(), g.tx, s.id, off, len(data))
	return bytes.Equal(stored, data), err
}

// save writes what is left of the group for one log.
func (g *logGroup) save(id pipeline.AttemptID, s *logState) error {
	if !s.dirty {
		return nil
	}
	if err := g.begin(id, s); err != nil {
		return err
	}
	if err := g.flush(id, s, 1); err != nil {
		return err
	}
	s.dirty = false
	_, err := g.tx.Exec(`UPDATE logs SET received = ?, bytes = ?, newlines = ?, open_line = ?, truncated = ?, sealed = ? WHERE id = ?`,
		s.received, s.bytes, s.newlines, s.openLine, s.truncated, s.sealed, s.id)
	return err
}
