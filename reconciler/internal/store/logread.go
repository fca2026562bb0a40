package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"io"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// LogLength describes an attempt's log.
type LogLength struct {
	// Received is how much of what the agent sent is done with: the offset from
	// which it goes on, and what a result's length is compared with.
	Received int64
	// Bytes are stored, and may be read. It differs from Received when Truncated.
	Bytes int64
	// Lines counts a last line that has no newline.
	Lines     int64
	Truncated bool
	Sealed    bool
}

// Length describes the log of an attempt. One that wrote nothing has a zero LogLength.
func (l *Logs) Length(ctx context.Context, id pipeline.AttemptID) (LogLength, error) {
	_, n, err := l.find(ctx, l.file.reader, id)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return n, l.read(err, id)
}

// find returns the log's row; sql.ErrNoRows when it has none.
func (l *Logs) find(ctx context.Context, q querier, id pipeline.AttemptID) (log int64, n LogLength, err error) {
	var open int64
	err = q.QueryRowContext(ctx, `SELECT id, received, bytes, newlines, open_line, truncated, sealed FROM logs WHERE attempt = ?`, string(id)).
		Scan(&log, &n.Received, &n.Bytes, &n.Lines, &open, &n.Truncated, &n.Sealed)
	n.Lines += open
	return log, n, err
}

func (l *Logs) read(err error, id pipeline.AttemptID) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("read the log of %s: %w", id, l.file.explain(err))
}

// Read returns at most most bytes of an attempt's log from off on; none when there
// are none yet.
func (l *Logs) Read(ctx context.Context, id pipeline.AttemptID, off int64, most int) ([]byte, error) {
	log, n, err := l.find(ctx, l.file.reader, id)
	if errors.Is(err, sql.ErrNoRows) || err == nil && (off < 0 || off >= n.Bytes || most <= 0) {
		return nil, nil
	}
	if err != nil {
		return nil, l.read(err, id)
	}
	data, err := l.readLog(ctx, l.file.reader, log, off, int(min(int64(most), n.Bytes-off)))
	return data, l.read(err, id)
}

// readLog returns length bytes from off, fewer at the end of the log.
func (l *Logs) readLog(ctx context.Context, q querier, log, off int64, length int) ([]byte, error) {
	data := make([]byte, 0, length)
	for len(data) < length {
		c, err := l.chunkAt(ctx, q, log, off)
		if errors.Is(err, sql.ErrNoRows) {
			break
		}
		if err != nil {
			return nil, err
		}
		piece := c.data[off-c.off:]
		piece = piece[:min(len(piece), length-len(data))]
		data = append(data, piece...)
		off += int64(len(piece))
	}
	return data, nil
}

// chunk is a row.
type chunk struct {
	id, off, line int64
	data          []byte // as it was written, unless said otherwise
	size          int64  // of what was written
	packed        bool
}

const chunkColumns = `id, off, first_line, data, size`

// chunkAt returns the row that holds the byte at off; sql.ErrNoRows at the end.
// Each row is asked for on its own, so that a slow reader never keeps the
// write-ahead log from being cut back, and rows may become one meanwhile.
func (l *Logs) chunkAt(ctx context.Context, q querier, log, off int64) (chunk, error) {
	c, err := l.packer.scan(q.QueryRowContext(ctx, `SELECT `+chunkColumns+` FROM chunks
		WHERE log_id = ? AND off <= ? ORDER BY off DESC LIMIT 1`, log, off))
	if err == nil && off >= c.off+int64(len(c.data)) {
		return c, sql.ErrNoRows
	}
	return c, err
}

// chunkOfLine returns the row in which line n begins, or the one before it when
// the line begins with a row.
func (l *Logs) chunkOfLine(ctx context.Context, q querier, log, n int64) (chunk, error) {
	if n <= 1 {
		return l.chunkAt(ctx, q, log, 0)
	}
	return l.packer.scan(q.QueryRowContext(ctx, `SELECT `+chunkColumns+` FROM chunks
		WHERE log_id = ? AND first_line < ? ORDER BY first_line DESC, off DESC LIMIT 1`, log, n))
}

// Copy writes the log from byte offset off to w, as far as it is stored when it
// gets there, and returns how many bytes it wrote. It needs constant memory. Of a log
// that is packed and copied whole the digest is compared; when it differs, that is an
// error, after all was written.
func (l *Logs) Copy(ctx context.Context, id pipeline.AttemptID, off int64, w io.Writer) (int64, error) {
	log, _, err := l.find(ctx, l.file.reader, id)
	if errors.Is(err, sql.ErrNoRows) || off < 0 {
		return 0, nil
	}
	var written int64
	h := sha256.New()
	for err == nil {
		var c chunk
		if c, err = l.chunkAt(ctx, l.file.reader, log, off+written); err != nil {
			break
		}
		n, werr := w.Write(c.data[off+written-c.off:])
		h.Write(c.data[off+written-c.off:])
		written += int64(n)
		if werr != nil {
			return written, fmt.Errorf("copy the log of %s: %w", id, werr)
		}
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
		if off == 0 {
			err = l.sameDigest(ctx, log, h.Sum(nil))
		}
	}
	return written, l.read(err, id)
}

// sameDigest compares the digest of a whole log with the one that is kept, if any.
func (l *Logs) sameDigest(ctx context.Context, log int64, got []byte) error {
	var kept []byte
	err := l.file.reader.QueryRowContext(ctx, `SELECT digest FROM logs WHERE id = ? AND removed = 0`, log).Scan(&kept)
	if err == nil && kept != nil && !bytes.Equal(kept, got) {
		return fmt.Errorf("%w: its digest is another", errDamagedLog)
	}
	return ignoreNoRows(err)
}
