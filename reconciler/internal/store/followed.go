package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Followed returns the change up to which Follow has seen to a repository's runs.
// Before the first Follow it is a fault.NotFound.
func (db *DB) Followed(ctx context.Context, repo string) (seq pipeline.Seq, err error) {
	err = db.file.reader.QueryRowContext(ctx, `SELECT seq FROM followed WHERE repo = ?`, repo).Scan(&seq)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, fault.New(fault.NotFound, "the runs of %s are not followed yet", repo)
	}
	return seq, db.read(err, "how far %s is followed", repo)
}

// Follow notes that what the changes up to seq lead to has been done.
func (tx *Tx) Follow(repo string, seq pipeline.Seq) error {
	if _, err := tx.exec(`INSERT INTO followed VALUES (?1, ?2) ON CONFLICT DO UPDATE SET seq = max(seq, ?2)`, repo, int64(seq)); err != nil {
		return fmt.Errorf("note how far %s is followed: %w", repo, err)
	}
	return nil
}

// Ended returns the runs that have ended with the changes after seq, in that order
// and without their tasks, and the newest change looked at. At most limit changes
// are, so that there may be more when there was one.
func (db *DB) Ended(ctx context.Context, after pipeline.Seq, limit int) (runs []*pipeline.Run, seen pipeline.Seq, err error) {
	seen = after
	err = db.snapshot(ctx, func(q querier) error {
		last, err := query(ctx, q, scanOne[pipeline.Seq],
			`SELECT coalesce(max(seq), ?1) FROM (SELECT seq FROM changes WHERE seq > ?1 ORDER BY seq LIMIT ?2)`, int64(after), max(limit, 1))
		if err != nil {
			return err
		}
		seen = last[0]
		// Nothing changes in a run that has ended, so that it has one such change; one
		// that ended when it was made has that.
		runs, err = query(ctx, q, scanRun, `SELECT `+runColumns+` FROM changes c CROSS JOIN runs r ON r.id = c.run_id
			WHERE c.seq > ?1 AND c.seq <= ?2 AND c.kind IN (?3, ?4) AND c.task IS NULL AND r.finished_at IS NOT NULL AND c.state = r.state
			ORDER BY c.seq`, int64(after), int64(seen), pipeline.ChangeRun, pipeline.ChangeRunCreated)
		return err
	})
	return runs, seen, db.read(err, "runs that ended after change %d", after)
}

// Firing is a cron trigger of a composition, and until when its firings have been
// seen to.
type Firing struct {
	Composition pipeline.CompositionName
	Schedule    string
	Zone        string
	SeenTo      time.Time
}

// Firings returns the cron triggers of a repository that are kept.
func (db *DB) Firings(ctx context.Context, repo string) ([]Firing, error) {
	list, err := query(ctx, db.file.reader, func(row scanner) (f Firing, err error) {
		err = row.Scan(&f.Composition, &f.Schedule, &f.Zone, intoTime{&f.SeenTo})
		return f, err
	}, `SELECT composition, schedule, zone, seen_to FROM firings WHERE repo = ? ORDER BY composition, schedule, zone`, repo)
	return list, db.read(err, "cron triggers of %s", repo)
}

// SaveFiring keeps a cron trigger, or moves on until when it has been seen to.
func (tx *Tx) SaveFiring(repo string, f Firing) error {
	_, err := tx.exec(`INSERT INTO firings VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET seen_to = ?5`,
		repo, string(f.Composition), f.Schedule, f.Zone, f.SeenTo.UnixNano())
	if err != nil {
		return fmt.Errorf("save cron trigger %q of %s: %w", f.Schedule, f.Composition, err)
	}
	return nil
}

// DropFiring forgets a cron trigger: it is not in force any more.
func (tx *Tx) DropFiring(repo string, f Firing) error {
	_, err := tx.exec(`DELETE FROM firings WHERE repo = ? AND composition = ? AND schedule = ? AND zone = ?`,
		repo, string(f.Composition), f.Schedule, f.Zone)
	if err != nil {
		return fmt.Errorf("drop cron trigger %q of %s: %w", f.Schedule, f.Composition, err)
	}
	return nil
}
