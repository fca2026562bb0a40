package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// mostDescription is what forges accept, in characters.
const mostDescription = 140

// Desire sets what the forge should show on s.Commit of s.Repo under s.Context. It is not
// a queue: the latest wins, and what the forge shows already is not posted again.
// A longer description is cut. A status that is the same as before keeps its tries.
// Another one forgets what was posted: a post whose answer was lost may have
// arrived, so that a return to an earlier status has to be posted again.
func (tx *Tx) Desire(s pipeline.Status) error {
	if d := []rune(s.Description); len(d) > mostDescription {
		s.Description = string(d[:mostDescription-1]) + "…"
	}
	body, err := json.Marshal(s)
	if err == nil {
		_, err = tx.exec(`INSERT INTO forge_desired (commit_id, context, state, description, url, digest, posted_digest, tries, next_at, problem, source)
			VALUES (?1, ?2, ?3, ?4, ?5, ?6, '', 0, 0, '', ?7)
			ON CONFLICT DO UPDATE SET state = ?3, description = ?4, url = ?5, digest = ?6,
				posted_digest = '', tries = 0, next_at = 0, problem = ''
			WHERE digest <> ?6`,
			string(s.Commit), s.Context, s.State, s.Description, s.URL, string(pipeline.DigestOf(body)), s.Repo)
	}
	if err != nil {
		return tx.fail(fmt.Errorf("desire status %s of %s: %w", s.Context, s.Commit, err))
	}
	return nil
}

// Register is the part of the record that says what the forge of one repository should
// show.
type Register struct {
	*DB
	repo string
}

// Register returns that of a source repository by its name, of the ops repository for "".
func (db *DB) Register(repo string) Register { return Register{db, repo} }

// DueStatuses returns at most limit statuses that the forge does not show yet and whose
// next try is not after now, those that wait longest first.
func (r Register) DueStatuses(ctx context.Context, now time.Time, limit int) ([]pipeline.DueStatus, error) {
	list, err := query(ctx, r.file.reader, func(row scanner) (d pipeline.DueStatus, err error) {
		s := &d.Status
		err = row.Scan(&s.Repo, &s.Commit, &s.Context, &s.State, &s.Description, &s.URL, &d.Digest, &d.Tries)
		return d, err
	}, `SELECT source, commit_id, context, state, description, url, digest, tries FROM forge_desired
		WHERE posted_digest <> digest AND source = ? AND next_at <= ? ORDER BY next_at, rowid LIMIT ?`, r.repo, now.UnixNano(), max(limit, 0))
	return list, r.read(err, "due statuses")
}

// Unposted returns for each repository, named as in Register, why one of its statuses
// could not be posted twice in a row.
func (db *DB) Unposted(ctx context.Context) (map[string]string, error) {
	list, err := query(ctx, db.file.reader, scanPair, `SELECT source, max(problem) FROM forge_desired
		WHERE posted_digest <> digest AND tries >= 2 GROUP BY source`)
	return asMap[string, string](list), db.read(err, "statuses that are not posted")
}

// StatusesOf returns the statuses that the forge should show on a commit, sorted by context.
func (db *DB) StatusesOf(ctx context.Context, commit pipeline.CommitID) ([]pipeline.Status, error) {
	list, err := query(ctx, db.file.reader, func(row scanner) (s pipeline.Status, err error) {
		err = row.Scan(&s.Repo, &s.Commit, &s.Context, &s.State, &s.Description, &s.URL)
		return s, err
	}, `SELECT source, commit_id, context, state, description, url FROM forge_desired WHERE commit_id = ? ORDER BY source, context`, string(commit))
	return list, db.read(err, "statuses of %s", commit)
}

// MarkPosted notes that the forge shows these statuses in the versions that their
// digests name, in one transaction. Where another is desired by then, that one
// stays due.
func (db *DB) MarkPosted(ctx context.Context, posted []pipeline.DueStatus) error {
	return db.Write(ctx, func(tx *Tx) error {
		for _, d := range posted {
			_, err := tx.exec(`UPDATE forge_desired SET posted_digest = ?3, tries = 0, problem = ''
				WHERE commit_id = ?1 AND context = ?2 AND source = ?4`, string(d.Status.Commit), d.Status.Context, d.Digest, d.Status.Repo)
			if err != nil {
				return fmt.Errorf("mark status %s of %s: %w", d.Status.Context, d.Status.Commit, err)
			}
		}
		return nil
	})
}

// MarkFailed notes that the version of s that digest names could not be posted, why,
// and when to try again. It does not hold up a version desired since.
func (db *DB) MarkFailed(ctx context.Context, s pipeline.Status, digest, problem string, next time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		_, err := tx.exec(`UPDATE forge_desired SET tries = tries + 1, problem = ?4, next_at = ?5
			WHERE commit_id = ?1 AND context = ?2 AND digest = ?3 AND source = ?6`,
			string(s.Commit), s.Context, digest, problem, next.UnixNano(), s.Repo)
		if err != nil {
			return fmt.Errorf("mark status %s of %s: %w", s.Context, s.Commit, err)
		}
		return nil
	})
}
