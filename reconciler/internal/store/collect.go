package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Keep says what stays in the record. A run that has ended goes when it ended before
// RunsSince, or when RunsEach newer ones of its composition were made; of these stay:
// the latest success of a composition, and of a composition on each branch that there
// is, because later runs go by what it did; runs of commits with unfinished ones; runs
// whose end was not followed yet; runs whose caller is there.
type Keep struct {
	RunsSince time.Time
	RunsEach  int
	// Followed is the change up to which what follows from ended runs was done.
	Followed pipeline.Seq
	// LogsSince: logs of attempts that ended before it go, and changes that are older.
	LogsSince time.Time
}

// removable is the condition on r for being removed, with the arguments of Keep.args.
const removable = `r.finished_at IS NOT NULL
	AND (r.finished_at < ?1 OR r.number <= (SELECT c.last FROM counters c WHERE c.composition = r.composition) - ?2)
	AND NOT EXISTS (SELECT 1 FROM runs u WHERE u.head = r.head AND u.finished_at IS NULL)
	AND NOT (r.state = 'success' AND (
		r.number = (SELECT max(n.number) FROM runs n WHERE n.composition = r.composition AND n.state = 'success')
		OR EXISTS (SELECT 1 FROM refs f WHERE f.ref = r.ref)
			AND NOT EXISTS (SELECT 1 FROM runs n WHERE n.composition = r.composition AND n.state = 'success' AND n.ref = r.ref AND n.number > r.number)))
	AND r.id NOT IN (SELECT h.run_id FROM changes h WHERE h.run_id IS NOT NULL AND h.seq > ?4)
	AND NOT (json_extract(r.event, '$.kind') = ?3
		AND EXISTS (SELECT 1 FROM runs p WHERE p.id = json_extract(r.event, '$.cause.run')))`

func (k Keep) args(more ...any) []any {
	return append([]any{k.RunsSince.UnixNano(), k.RunsEach, pipeline.EventCall, int64(k.Followed)}, more...)
}

// Removable returns at most limit runs that may go, oldest first, without their tasks.
func (db *DB) Removable(ctx context.Context, k Keep, limit int) ([]*pipeline.Run, error) {
	runs, err := query(ctx, db.file.reader, scanRun,
		`SELECT `+runColumns+` FROM runs r WHERE `+removable+` ORDER BY r.id LIMIT ?5`, k.args(max(limit, 0))...)
	return runs, db.read(err, "runs that may go")
}

// AttemptsOf returns the attempts of runs that have ended.
func (db *DB) AttemptsOf(ctx context.Context, runs []*pipeline.Run) ([]pipeline.AttemptID, error) {
	list, err := query(ctx, db.file.reader, scanOne[pipeline.AttemptID],
		`SELECT a.id FROM json_each(?) j CROSS JOIN attempts a ON a.run_id = j.value`, idsOf(runs))
	return list, db.read(err, "attempts of %d runs", len(runs))
}

func idsOf(runs []*pipeline.Run) string {
	ids := make([]string, len(runs))
	for i, r := range runs {
		ids[i] = string(r.ID)
	}
	b, _ := json.Marshal(ids) // texts always can be
	return string(b)
}

// RemoveRuns removes those of the runs that still may go, with their tasks, attempts and
// verdicts, in one transaction, and returns how many. Their keys are kept while a ref
// points at what they were for. The caller gives it few at a time, because all other
// writers wait, and has removed their logs.
func (db *DB) RemoveRuns(ctx context.Context, k Keep, runs []*pipeline.Run) (n int, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		var ids string
		err := tx.scan(`SELECT json_group_array(r.id) FROM json_each(?5) j JOIN runs r ON r.id = j.value WHERE `+removable,
			k.args(idsOf(runs)), &ids)
		if err != nil {
			return err
		}
		var gone []string
		if err := json.Unmarshal([]byte(ids), &gone); err != nil {
			return tx.fail(err)
		}
		n = len(gone)
		for _, statement := range []string{
			`INSERT INTO spent_keys SELECT run_key, id, commit_id, head FROM runs WHERE id IN (SELECT value FROM json_each(?))`,
			`DELETE FROM verdicts WHERE run_id IN (SELECT value FROM json_each(?))`,
			`DELETE FROM attempts WHERE run_id IN (SELECT value FROM json_each(?))`,
			`DELETE FROM tasks WHERE run_id IN (SELECT value FROM json_each(?))`,
			`DELETE FROM runs WHERE id IN (SELECT value FROM json_each(?))`,
		} {
			if _, err := tx.exec(statement, ids); err != nil {
				return err
			}
		}
		tx.changed = false // nobody follows what is gone
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("remove %d runs: %w", len(runs), err)
	}
	return n, nil
}

// sweeps remove, each time at most ?2 rows, what nothing in the record needs once runs
// are gone; ?1 is Keep.RunsSince.
var sweeps = []string{
	`DELETE FROM spent_keys WHERE run_key IN (SELECT s.run_key FROM spent_keys s
		WHERE ?1 IS NOT NULL AND NOT EXISTS (SELECT 1 FROM refs f WHERE f.commit_id IN (s.commit_id, s.head)) LIMIT ?2)`,
	`DELETE FROM proposals WHERE (repo, branch) IN (SELECT repo, branch FROM proposals
		WHERE state <> 'open' AND changed_at < ?1 LIMIT ?2)`,
	`DELETE FROM join_tokens WHERE hash IN (SELECT hash FROM join_tokens WHERE expires_at < ?1 LIMIT ?2)`,
}

// forgotten are commits that nothing speaks of any more.
const forgotten = `SELECT json_group_array(commit_id) FROM (SELECT c.commit_id FROM commits c
	WHERE c.seen_at < ? AND c.live = 0
		AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.commit_id = c.commit_id)
		AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.head = c.commit_id)
		AND NOT EXISTS (SELECT 1 FROM refs f WHERE f.commit_id = c.commit_id)
		AND NOT EXISTS (SELECT 1 FROM commits o WHERE o.commit_id = c.commit_id AND (o.live = 1 OR o.seen_at >= c.seen_at AND o.ref <> c.ref))
		AND NOT EXISTS (SELECT 1 FROM forge_desired d WHERE d.commit_id = c.commit_id AND d.posted_digest <> d.digest)
	LIMIT ?)`

// Sweep removes at most limit rows of each kind that nothing needs once runs are gone:
// commits, verdicts, statuses, keys, closed changes, and the oldest changes of the
// sequence. It returns how many, in one transaction; the caller goes on until none are.
func (db *DB) Sweep(ctx context.Context, k Keep, limit int) (n int, err error) {
	err = db.Write(ctx, func(tx *Tx) error {
		n = 0
		do := func(statement string, args ...any) error {
			gone, err := tx.exec(statement, args...)
			n += int(gone)
			return err
		}
		for _, statement := range sweeps {
			if err := do(statement, k.RunsSince.UnixNano(), limit); err != nil {
				return err
			}
		}
		var commits string
		if err := tx.scan(forgotten, []any{k.RunsSince.UnixNano(), limit}, &commits); err != nil {
			return err
		}
		for _, table := range []string{"verdicts", "forge_desired", "commits"} {
			if err := do(`DELETE FROM `+table+` WHERE commit_id IN (SELECT value FROM json_each(?))`, commits); err != nil {
				return err
			}
		}
		last, err := tx.oldChanges(k, limit)
		if err != nil {
			return err
		}
		if err := do(`DELETE FROM changes WHERE seq <= ?`, last); err != nil {
			return err
		}
		tx.changed = false
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("sweep the record: %w", err)
	}
	return n, nil
}

// oldChanges returns the last of the oldest changes that may go: those before the first
// that is young, not followed, or the newest.
func (tx *Tx) oldChanges(k Keep, limit int) (last int64, err error) {
	err = tx.scan(`WITH old AS (SELECT seq, at FROM changes ORDER BY seq LIMIT ?2),
			stays AS (SELECT min(seq) AS seq FROM old
				WHERE at >= ?1 OR seq >= (SELECT seq FROM meta) OR seq > ?3)
		SELECT coalesce((SELECT seq FROM stays) - 1, (SELECT max(seq) FROM old), 0)`,
		[]any{k.LogsSince.UnixNano(), limit, int64(k.Followed)}, &last)
	return last, err
}

// SweepCompositions removes what was planned and no run is of, unless a composition that
// is kept may call it. It returns how many went.
func (db *DB) SweepCompositions(ctx context.Context) (n int, err error) {
	candidates, err := db.uncalled(ctx)
	if err != nil || len(candidates) == 0 {
		return 0, db.read(err, "compositions that may go")
	}
	err = db.Write(ctx, func(tx *Tx) error {
		n = 0
		for _, d := range candidates {
			// What a run that was made since may call is found by its name in the text.
			gone, err := tx.exec(`DELETE FROM compositions WHERE digest = ?1
				AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.digest = ?1)
				AND NOT EXISTS (SELECT 1 FROM compositions o WHERE instr(o.body, ?1) > 0 AND o.digest <> ?1
					AND o.digest IN (SELECT u.digest FROM runs u WHERE u.finished_at IS NULL))`, string(d))
			if err != nil {
				return err
			}
			n += int(gone)
		}
		tx.changed = false
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("sweep compositions: %w", err)
	}
	return n, nil
}

// uncalled returns at most 100 compositions without a run that the text of no other one
// names. It reads all texts, once.
func (db *DB) uncalled(ctx context.Context) ([]pipeline.Digest, error) {
	const most = 100
	list, err := query(ctx, db.file.reader, scanOne[pipeline.Digest],
		`SELECT c.digest FROM compositions c WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE r.digest = c.digest)`)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	called := map[string]bool{}
	_, err = query(ctx, db.file.reader, func(row scanner) (struct{}, error) {
		var own, body string
		err := row.Scan(&own, &body)
		for _, d := range digestRE.FindAllString(body, -1) {
			if d != own {
				called[d] = true
			}
		}
		return struct{}{}, err
	}, `SELECT digest, body FROM compositions`)
	list = slices.DeleteFunc(list, func(d pipeline.Digest) bool { return called[string(d)] })
	return list[:min(len(list), most)], err
}

// digestRE finds what pipeline.DigestOf makes.
var digestRE = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// vacuumPages is given back at a time, 1 MiB.
const vacuumPages = 256

// Shrink gives pages that nothing uses any more back to the file system, at most 1 MiB,
// and reports whether there are more.
func (db *DB) Shrink(ctx context.Context) (more bool, err error) { return db.file.shrink(ctx) }

// Shrink is DB.Shrink for the logs.
func (l *Logs) Shrink(ctx context.Context) (more bool, err error) { return l.file.shrink(ctx) }

func (f *file) shrink(ctx context.Context) (more bool, err error) {
	// The driver does one step of a statement without rows, and each step frees a page.
	rows, err := f.writer.QueryContext(ctx, fmt.Sprintf(`PRAGMA incremental_vacuum(%d)`, vacuumPages))
	if err == nil {
		for rows.Next() {
		}
		err = errors.Join(rows.Err(), rows.Close())
	}
	var free int64
	if err == nil {
		err = f.writer.QueryRowContext(ctx, `PRAGMA freelist_count`).Scan(&free)
	}
	if err != nil {
		return false, fmt.Errorf("shrink %s: %w", f.path, f.explain(err))
	}
	return free > vacuumPages, nil
}

// EndedBefore returns those of the attempts that ended before t.
func (db *DB) EndedBefore(ctx context.Context, t time.Time, ids []pipeline.AttemptID) ([]pipeline.AttemptID, error) {
	b, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	list, err := query(ctx, db.file.reader, scanOne[pipeline.AttemptID],
		`SELECT a.id FROM json_each(?) j CROSS JOIN attempts a ON a.id = j.value WHERE a.finished_at < ?`, string(b), t.UnixNano())
	return list, db.read(err, "old attempts")
}
