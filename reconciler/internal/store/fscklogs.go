package store

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// logRules are the invariants of the logs that one statement decides.
var logRules = []rule{
	{
		name: "I4", what: "the pieces of a log do not follow one another", next: restoreAdvice, since: 3,
		query: `SELECT l.attempt || ' at byte ' || c.off FROM (
				SELECT log_id, off, lag(off + coalesce(size, length(data))) OVER (PARTITION BY log_id ORDER BY off) AS last FROM chunks) c
			JOIN logs l ON l.id = c.log_id WHERE c.off <> coalesce(c.last, 0)`,
	}, {
		name: "I4", what: "a log is not as long as it says", next: restoreAdvice, since: 3,
		query: `SELECT l.attempt || ': ' || l.bytes FROM logs l
			WHERE l.removed <> 1 AND NOT (` + elsewhere + `) AND l.bytes <> coalesce((SELECT sum(coalesce(c.size, length(c.data))) FROM chunks c WHERE c.log_id = l.id), 0)`,
	},
}

// logs checks logs.db, and that every accepted result of the record has its whole log.
func (c *fsck) logs() error {
	if c.report.Broken() {
		return nil
	}
	if err := c.check(logRules); err != nil {
		return err
	}
	if err := c.references(); err != nil {
		return err
	}
	type log struct {
		attempt  pipeline.AttemptID
		received int64
	}
	list, err := query(c.ctx, c.r.conn, func(row scanner) (l log, err error) {
		err = row.Scan(&l.attempt, &l.received)
		return l, err
	}, `SELECT attempt, received FROM logs`)
	if err != nil {
		return err
	}
	c.report.Logs = len(list)
	for _, l := range list {
		if want, ok := c.done[l.attempt]; ok && l.received < want {
			c.find("I4", fmt.Sprintf("a result was accepted with %d bytes of log, and %d are here", want, l.received), string(l.attempt), restoreAdvice)
		}
		delete(c.done, l.attempt)
	}
	missing := 0
	for id, want := range c.done {
		if missing++; missing > mostFindings {
			break
		}
		c.find("I4", fmt.Sprintf("a result was accepted with %d bytes of log, and none is here", want), string(id), restoreAdvice)
	}
	if err := c.elsewhere(); err != nil || c.depth.quick {
		return err
	}
	return c.packed()
}

// segments checks the segments of a backup, each of which is a file of logs.
func (c *fsck) segments(dir string) error {
	if c.report.Broken() {
		return nil
	}
	names, err := segmentsIn(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if slices.Contains(c.depth.damaged, name) {
			continue
		}
		logs, _, err := readSegment(c.ctx, dir, name)
		if err == nil && !slices.Contains(c.depth.good, name) {
			err = c.file(dir, name, "logs", c.segment)
		}
		if err = c.damaged(name, err); err != nil {
			return err
		}
		maps.Copy(c.segmented, logs)
	}
	return nil
}

func (c *fsck) segment() error {
	if c.report.Broken() {
		return nil
	}
	if err := c.check(logRules); err != nil {
		return err
	}
	if err := c.references(); err != nil || c.depth.quick {
		return err
	}
	return c.packed()
}

// elsewhere finds logs that are packed and not here, and in no segment either.
func (c *fsck) elsewhere() error {
	const since = 3 // the migration that brought packing
	if c.r.step < since {
		return nil
	}
	type log struct {
		attempt pipeline.AttemptID
		packed  packedLog
	}
	list, err := query(c.ctx, c.r.conn, func(row scanner) (l log, err error) {
		err = row.Scan(&l.attempt, &l.packed.bytes, &l.packed.digest)
		return l, err
	}, `SELECT attempt, bytes, digest FROM logs l WHERE `+elsewhere)
	if err != nil {
		return err
	}
	found := 0
	for _, l := range list {
		if l.packed.same(c.segmented[l.attempt]) {
			continue
		}
		if found++; found > mostFindings {
			break
		}
		c.report.Findings = append(c.report.Findings, Finding{
			Rule: "I4", Warning: len(c.depth.damaged) > 0, What: "the bytes of a log are not here", Where: fmt.Sprintf("%s: %d", l.attempt, l.packed.bytes), Next: restoreAdvice,
		})
	}
	return nil
}

// packed compares what was packed with its checksums: each row, and each log as a whole.
func (c *fsck) packed() error {
	const since = 3 // the migration that brought packing
	if c.r.step < since {
		return nil
	}
	p, err := newPacker()
	if err != nil {
		return err
	}
	type log struct {
		id      int64
		attempt pipeline.AttemptID
		digest  []byte
	}
	list, err := query(c.ctx, c.r.conn, func(row scanner) (l log, err error) {
		err = row.Scan(&l.id, &l.attempt, &l.digest)
		return l, err
	}, `SELECT id, attempt, digest FROM logs l
		WHERE removed = 0 AND EXISTS (SELECT 1 FROM chunks c WHERE c.log_id = l.id AND c.size IS NOT NULL) ORDER BY id`)
	if err != nil {
		return err
	}
	found := 0
	for _, l := range list {
		damage, digest, err := c.unpack(p, l.id)
		if err != nil {
			return err
		}
		if len(damage) == 0 && l.digest != nil && !bytes.Equal(digest, l.digest) {
			damage = []string{"as a whole, which has another digest than when it was packed"}
		}
		for _, where := range damage {
			if found++; found > mostFindings {
				c.find("I4", "bytes of a log are not what was written", "and more", damagedLogAdvice)
				return nil
			}
			c.find("I4", "bytes of a log are not what was written", fmt.Sprintf("%s %s, in %s", l.attempt, where, filepath.Base(c.r.file.path)), damagedLogAdvice)
		}
	}
	return nil
}

const damagedLogAdvice = "the rest of the log can be read, and nothing else is touched; a backup that was made before may have it whole"

// unpack reads a log, and returns where it is damaged, and the digest of what was read.
func (c *fsck) unpack(p packer, log int64) (damage []string, digest []byte, err error) {
	rows, err := c.r.conn.QueryContext(c.ctx, `SELECT `+chunkColumns+` FROM chunks WHERE log_id = ? ORDER BY off`, log)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	h := sha256.New()
	for rows.Next() {
		row, err := scanChunk(rows)
		if err != nil {
			return nil, nil, err
		}
		data, err := p.unpack(row)
		if err != nil {
			damage = append(damage, fmt.Sprintf("at bytes %d to %d", row.off, row.off+row.size))
		}
		h.Write(data)
	}
	return damage, h.Sum(nil), rows.Err()
}
