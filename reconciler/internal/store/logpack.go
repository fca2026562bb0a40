package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"hash"

	"github.com/klauspost/compress/zstd"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// packRows is how many rows are packed in one transaction: those who write logs wait.
const packRows = 16

// packer makes rows smaller. Each is a frame of its own with a checksum, so that a line
// in the middle of a large log costs no more than the row that it is in.
type packer struct {
	enc *zstd.Encoder // its EncodeAll, and that of dec, may be called by many
	dec *zstd.Decoder
}

func newPacker() (packer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return packer{}, err
	}
	// No row is larger than one and a tail; what says so is not read into memory.
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(4*chunkBytes))
	return packer{enc, dec}, err
}

// scan reads a row as it was written. Bytes that differ from their checksum are an error
// that IsDamaged knows.
func (p packer) scan(row scanner) (chunk, error) {
	c, err := scanChunk(row)
	if err == nil {
		c.data, err = p.unpack(c)
	}
	return c, err
}

// unpack returns what a row as it is stored holds, with the errors of scan.
func (p packer) unpack(c chunk) ([]byte, error) {
	if !c.packed {
		return c.data, nil
	}
	data, err := p.dec.DecodeAll(c.data, make([]byte, 0, min(c.size, 2*chunkBytes)))
	if err == nil && int64(len(data)) != c.size {
		err = fmt.Errorf("%d bytes, not %d", len(data), c.size)
	}
	if err != nil {
		err = fmt.Errorf("%w: packed bytes at %d: %w", errDamagedLog, c.off, err)
	}
	return data, err
}

// scanChunk reads a row as it is stored.
func scanChunk(row scanner) (c chunk, err error) {
	var size sql.NullInt64
	err = row.Scan(&c.id, &c.off, &c.line, &c.data, &size)
	c.size, c.packed = int64(len(c.data)), size.Valid
	if size.Valid {
		c.size = size.Int64
	}
	return c, err
}

var errDamagedLog = errors.New("the log is not what was written")

// Pack makes the log of one attempt smaller that has ended and is not packed yet, and
// keeps the digest of the whole. It is done in small transactions and goes on where it
// was cut off. It returns the attempt, "" when all logs are packed, and a cursor to go on
// with, also past a log that is damaged, which IsDamaged knows; 0 begins.
func (l *Logs) Pack(ctx context.Context, after int64) (id pipeline.AttemptID, next int64, err error) {
	err = l.file.reader.QueryRowContext(ctx, `SELECT id, attempt FROM logs
		WHERE sealed = 1 AND removed = 0 AND digest IS NULL AND id > ? ORDER BY id LIMIT 1`, after).Scan(&next, &id)
	if err != nil {
		return "", after, l.read(ignoreNoRows(err), "those that are not packed")
	}
	if err := l.pack(ctx, next); err != nil {
		return id, next, fmt.Errorf("pack the log of %s: %w", id, l.file.explain(err))
	}
	return id, next, nil
}

func (l *Logs) pack(ctx context.Context, log int64) (err error) {
	h := sha256.New()
	for off, more := int64(0), true; more; {
		if off, more, err = l.packSome(ctx, log, off, h); err != nil {
			return err
		}
	}
	_, err = l.file.writer.ExecContext(ctx, `UPDATE logs SET digest = ? WHERE id = ? AND removed = 0`, h.Sum(nil), log)
	return err
}

// packSome packs the rows from off on, and adds what they hold to the digest.
func (l *Logs) packSome(ctx context.Context, log, off int64, h hash.Hash) (next int64, more bool, err error) {
	rows, err := query(ctx, l.file.reader, l.packer.scan,
		`SELECT `+chunkColumns+` FROM chunks WHERE log_id = ? AND off >= ? ORDER BY off LIMIT ?`, log, off, packRows)
	if err != nil || len(rows) == 0 {
		return off, false, err
	}
	tx, err := l.file.writer.BeginTx(ctx, nil)
	if err != nil {
		return off, false, err
	}
	defer tx.Rollback() // of no effect after a commit
	for len(rows) > 0 {
		n := pieceOf(rows)
		if err := l.packPiece(ctx, tx, rows[:n]); err != nil {
			return off, false, err
		}
		for _, c := range rows[:n] {
			h.Write(c.data)
			off = c.off + int64(len(c.data))
		}
		rows = rows[n:]
	}
	return off, true, tx.Commit()
}

// pieceOf returns how many of the rows become one: small ones that follow one another.
func pieceOf(rows []chunk) int {
	n, size := 1, len(rows[0].data)
	for n < len(rows) && !rows[0].packed && !rows[n].packed && size+len(rows[n].data) <= chunkBytes {
		size += len(rows[n].data)
		n++
	}
	return n
}

func (l *Logs) packPiece(ctx context.Context, tx *sql.Tx, rows []chunk) error {
	if rows[0].packed {
		return nil
	}
	whole := make([][]byte, len(rows))
	for i, c := range rows {
		whole[i] = c.data
	}
	data := bytes.Join(whole, nil)
	for _, c := range rows[1:] {
		if _, err := tx.ExecContext(ctx, `DELETE FROM chunks WHERE id = ?`, c.id); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, `UPDATE chunks SET data = ?, size = ? WHERE id = ?`, l.packer.enc.EncodeAll(data, nil), len(data), rows[0].id)
	return err
}
