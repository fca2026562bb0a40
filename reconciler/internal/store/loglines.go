package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// mostLine is how much of one line is shown; cut marks that there was more.
	mostLine = 8 << 10
	cut      = " … [line cut]"
	// mostLines bounds the answer of one call to Lines or Search.
	mostLines = 4 << 20
)

// Line is one line of a log, numbered from 1, without its newline and the
// carriage return before it. A line of more than 8 KiB is cut, with a mark.
type Line struct {
	N    int64
	Text []byte
}

func (l Line) clone() Line { return Line{l.N, bytes.Clone(l.Text)} }

// Lines returns up to n lines of an attempt's log from line number from on, fewer
// when they come to more than 4 MiB: ask again from the next one. A last line
// without a newline is a line. It needs no more memory than it returns.
func (l *Logs) Lines(ctx context.Context, id pipeline.AttemptID, from int64, n int) ([]Line, error) {
	var lines []Line
	size := 0
	err := l.scan(ctx, id, max(from, 1), nil, func(line Line, _ bool) bool {
		if n <= 0 {
			return false
		}
		lines = append(lines, line.clone())
		size += len(line.Text)
		return len(lines) < n && size < mostLines
	})
	return lines, l.read(err, id)
}

// Search returns the first limit lines of an attempt's log that contain text, and
// how many do. A to Z match in either case, and a terminal's sequences are not part
// of the text. No text matches nothing.
func (l *Logs) Search(ctx context.Context, id pipeline.AttemptID, text string, limit int) (lines []Line, total int64, err error) {
	if text == "" {
		return nil, 0, nil
	}
	size := 0
	err = l.scan(ctx, id, 1, lower([]byte(text)), func(line Line, match bool) bool {
		if !match {
			return true
		}
		if total++; len(lines) < limit && size < mostLines {
			lines = append(lines, line.clone())
			size += len(line.Text)
		}
		return true
	})
	return lines, total, l.read(err, id)
}

// scan calls each for every line from line number from on, until it returns false;
// the line's text is good until then.
// With text to find, it tells whether the whole line contains it, cut or not.
func (l *Logs) scan(ctx context.Context, id pipeline.AttemptID, from int64, find []byte, each func(Line, bool) bool) error {
	log, _, err := l.find(ctx, l.file.reader, id)
	if err != nil {
		return ignoreNoRows(err)
	}
	c, err := l.chunkOfLine(ctx, l.file.reader, log, from)
	s := lineScan{from: from, n: c.line, find: find, each: each}
	for err == nil {
		if !s.feed(c.data) {
			return nil
		}
		next := c.off + int64(len(c.data))
		if skip := s.skip(); skip > 0 {
			// The rest of a very long line is of no use: go on where it ends.
			if c, err = l.chunkOfLine(ctx, l.file.reader, log, skip); err == nil && c.off >= next {
				continue
			}
		}
		c, err = l.chunkAt(ctx, l.file.reader, log, next)
	}
	if errors.Is(err, sql.ErrNoRows) {
		if s.begun {
			s.end()
		}
	}
	return ignoreNoRows(err)
}

func ignoreNoRows(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}

// lineScan cuts rows into lines. It holds at most mostLine bytes of one line, and
// as much of its end as a match across two rows may need.
type lineScan struct {
	from int64
	n    int64 // number of the line under way
	find []byte
	each func(Line, bool) bool

	text  []byte // the beginning of the line under way
	long  bool   // there was more of it
	begun bool   // there was something of it
	match bool
	carry []byte // the end of its plain text, in lower case
	plain escapes
}

// feed takes the bytes of a row and returns false when each did.
func (s *lineScan) feed(data []byte) bool {
	for len(data) > 0 {
		piece, rest, ended := bytes.Cut(data, []byte{'\n'})
		data = rest
		if s.n >= s.from {
			s.add(piece)
		}
		if ended && !s.end() {
			return false
		}
	}
	return true
}

func (s *lineScan) add(piece []byte) {
	s.begun = s.begun || len(piece) > 0
	room := min(len(piece), mostLine-len(s.text))
	s.text = append(s.text, piece[:room]...)
	s.long = s.long || room < len(piece)
	if s.find == nil || s.match {
		return
	}
	end := len(s.carry)
	s.carry = s.plain.appendPlain(s.carry, piece)
	lower(s.carry[end:])
	s.match = bytes.Contains(s.carry, s.find)
	if keep := len(s.find) - 1; len(s.carry) > keep {
		s.carry = append(s.carry[:0], s.carry[len(s.carry)-keep:]...)
	}
}

// end ends the line under way and returns false when each did.
func (s *lineScan) end() bool {
	n := s.n
	s.n++
	if n < s.from {
		return true
	}
	text := s.text
	if s.long {
		text = append(text, cut...)
	} else {
		text = bytes.TrimSuffix(text, []byte{'\r'})
	}
	ok := s.each(Line{n, text}, s.match)
	s.text, s.long, s.begun, s.match, s.carry, s.plain = s.text[:0], false, false, false, s.carry[:0], escapes{}
	return ok
}

// skip returns the line to go on with when nothing more of the one under way is needed.
func (s *lineScan) skip() int64 {
	if s.long && (s.find == nil || s.match) {
		return s.n + 1
	}
	return 0
}

// lower puts A to Z in b into lower case, and returns b.
func lower(b []byte) []byte {
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return b
}
