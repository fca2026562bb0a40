package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// mostFindings bounds what is listed of one rule; the rest is counted.
const mostFindings = 20

// Finding is something of a record that is not as it must be.
type Finding struct {
	// Rule is the invariant, I1 to I12, or "file" for what SQLite says of a file.
	Rule string `json:"rule"`
	// Warning: it may be so for a while, or for a reason that the record cannot tell.
	Warning bool   `json:"warning,omitempty"`
	What    string `json:"what"`
	Where   string `json:"where"`
	Next    string `json:"next"`
}

// Report is what Fsck found.
type Report struct {
	Dir         string       `json:"dir"`
	StoreID     string       `json:"store"`
	Incarnation int64        `json:"incarnation"`
	Seq         pipeline.Seq `json:"seq"`
	Runs        int          `json:"runs"`
	Logs        int          `json:"logs"`
	Findings    []Finding    `json:"findings"`

	behind *Rollback // as the record says
}

// Broken reports whether anything is, warnings aside.
func (r *Report) Broken() bool {
	for _, f := range r.Findings {
		if !f.Warning {
			return true
		}
	}
	return false
}

// Fsck checks the files of a data folder or of a backup: that SQLite finds them whole,
// and every invariant of the contract that they can decide. It reads both as they are at
// one moment each, the record first, takes no lock and changes nothing, so that a server
// may be running. A file that is damaged is a finding; the error is a fault.NotFound when
// there is no record, a fault.Invalid when it is of a newer program.
func Fsck(ctx context.Context, dir string) (Report, error) {
	return check(ctx, dir, depth{})
}

// depth says how much is checked.
type depth struct {
	// quick does not read what is in the logs, which may take as long as all the rest; a
	// log that is damaged is no reason to do without a backup.
	quick bool
	// good are segments of a backup that are known to be as they were when they were
	// checked. Those that are known to be damaged are left out, with what they had.
	good, damaged []string
}

// check is Fsck.
func check(ctx context.Context, dir string, how depth) (Report, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Report{}, fmt.Errorf("check the record: %w", err)
	}
	report := Report{Dir: dir, Findings: []Finding{}}
	// Read before the record, which only grows.
	known, err := readWatermark(dir)
	if err != nil {
		return report, fmt.Errorf("check %s: %w", dir, err)
	}
	c := &fsck{ctx: ctx, report: &report, depth: how, done: map[pipeline.AttemptID]int64{}, segmented: map[pipeline.AttemptID]packedLog{}}
	if err = c.file(dir, recordName, "record", c.record); err == nil {
		err = c.segments(dir)
	}
	if err == nil {
		err = c.file(dir, logsName, "logs", c.logs)
	}
	if err != nil {
		return report, fmt.Errorf("check %s: %w", dir, err)
	}
	report.rollback(known)
	return report, nil
}

// rollback adds that the record is older than it was, as it says itself or by what its
// folder knows.
func (r *Report) rollback(known Watermark) {
	b := r.behind
	if now := (Watermark{r.StoreID, r.Incarnation, r.Seq}); b == nil && known.After(now) {
		b = &Rollback{Known: known, Found: now, By: byFolder}
	}
	if b == nil {
		return
	}
	r.Findings = append(r.Findings, Finding{
		Rule: "rollback", What: "the record is older than it was",
		Where: fmt.Sprintf("change %d of incarnation %d; %s knows it at change %d of incarnation %d",
			b.Found.Seq, b.Found.Incarnation, b.By, b.Known.Seq, b.Known.Incarnation),
		Next: "if an old backup was put in place on purpose: reconciler fsck --accept-rollback; otherwise put the newer files back",
	})
}

// fsck is a check under way, of one file after the other.
type fsck struct {
	ctx    context.Context
	r      *reading
	report *Report
	depth  depth
	// segmented are the logs that the segments of a backup have.
	segmented map[pipeline.AttemptID]packedLog
	// hosts are the agents that tasks under way are on.
	hosts map[pipeline.AgentID]*pipeline.Host
	// done are the attempts whose result was accepted, with the length of their logs.
	done map[pipeline.AttemptID]int64
}

// file runs the checks of one file, when SQLite can read it at all.
func (c *fsck) file(dir, name, steps string, check func() error) (err error) {
	if c.r, err = openReading(c.ctx, dir, name, steps); err != nil {
		return c.damaged(name, err)
	}
	err = c.whole()
	if err == nil {
		err = check()
	}
	if closeErr := c.r.close(); err == nil {
		err = closeErr
	}
	return c.damaged(name, err)
}

// damaged makes a finding of an error that says that the file is.
func (c *fsck) damaged(name string, err error) error {
	switch {
	case IsDamaged(err):
		c.find("file", "the file is damaged: "+err.Error(), name, restoreAdvice)
	case fault.Is(err, fault.NotFound) && name == logsName:
		c.find("file", "the logs are not there", name, restoreAdvice)
	default:
		return err
	}
	return nil
}

const restoreAdvice = "stop the server and put the newest good backup in its place: reconciler restore BACKUP --data DIR"

func (c *fsck) find(rule, what, where, next string) {
	c.report.Findings = append(c.report.Findings, Finding{Rule: rule, What: what, Where: where, Next: next})
}

// whole asks SQLite whether the file is. It stops the other checks, which would trip
// over the same damage.
func (c *fsck) whole() error {
	list, err := query(c.ctx, c.r.conn, scanOne[string], fmt.Sprintf(`PRAGMA integrity_check(%d)`, mostFindings))
	if err != nil {
		return err
	}
	for _, said := range list {
		if said != "ok" {
			c.find("file", "SQLite finds: "+said, filepath.Base(c.r.file.path), restoreAdvice)
		}
	}
	return nil
}

// rule is an invariant as a query for what breaks it: one column that says where.
type rule struct {
	name    string
	what    string
	next    string
	query   string
	warning bool
	since   int64 // the migration that it needs
}

func (c *fsck) check(rules []rule, args ...any) error {
	for _, r := range rules {
		if c.r.step < r.since {
			continue
		}
		list, err := query(c.ctx, c.r.conn, scanOne[string], r.query+fmt.Sprintf(" LIMIT %d", mostFindings+1), args...)
		if err != nil {
			return fmt.Errorf("rule %s: %w", r.name, c.r.file.explain(err))
		}
		for i, where := range list {
			f := Finding{Rule: r.name, Warning: r.warning, What: r.what, Where: where, Next: r.next}
			if i == mostFindings {
				f.Where = "and more"
			}
			c.report.Findings = append(c.report.Findings, f)
		}
	}
	return nil
}

// references checks what one row says of another.
func (c *fsck) references() error {
	type broken struct {
		table, parent string
		row           int64
	}
	list, err := query(c.ctx, c.r.conn, func(row scanner) (b broken, err error) {
		var id *int64
		var fk int
		err = row.Scan(&b.table, &id, &b.parent, &fk)
		if id != nil {
			b.row = *id
		}
		return b, err
	}, `PRAGMA foreign_key_check`)
	if err != nil {
		return err
	}
	for i, b := range list {
		if i == mostFindings {
			break
		}
		c.find("I11", fmt.Sprintf("a row of %s names a row of %s that is not there", b.table, b.parent),
			fmt.Sprintf("%s, row %d", b.table, b.row), restoreAdvice)
	}
	return nil
}

// meta reads who the record is.
func (c *fsck) meta() error {
	err := c.r.conn.QueryRowContext(c.ctx, `SELECT store_id, incarnation, seq FROM meta`).
		Scan(&c.report.StoreID, &c.report.Incarnation, &c.report.Seq)
	if err != nil {
		return fmt.Errorf("who the record is: %w", err)
	}
	const since = 5 // the migration that made the table
	if c.r.step < since {
		return nil
	}
	err = c.r.conn.QueryRowContext(c.ctx, `SELECT body FROM rollback`).Scan(intoJSON{&c.report.behind})
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}
