package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// ObserveRef notes where a reference of a repository points; "" means that it is gone.
func (tx *Tx) ObserveRef(repo string, ref pipeline.Ref, commit pipeline.CommitID) error {
	var err error
	if commit == "" {
		_, err = tx.exec(`DELETE FROM refs WHERE repo = ? AND ref = ?`, repo, string(ref))
	} else {
		_, err = tx.exec(`INSERT INTO refs (repo, ref, commit_id) VALUES (?1, ?2, ?3)
			ON CONFLICT DO UPDATE SET commit_id = ?3 WHERE commit_id <> ?3`, repo, string(ref), string(commit))
	}
	if err != nil {
		return fmt.Errorf("observe %s of %s: %w", ref, repo, err)
	}
	return nil
}

// RecordCommit keeps what the evaluation of a commit of a repository found, for
// the reference it was seen on, and appends a change row. When c.Live, it is the
// repository's live commit from then on, and no other is. A record of it that is
// not live does not take that away: only another live commit does.
func (tx *Tx) RecordCommit(repo string, c pipeline.CommitRecord) error {
	diagnostics, err := asJSON(c.Diagnostics)
	if err != nil {
		return tx.fail(fmt.Errorf("record commit %s: %w", c.Commit, err))
	}
	if c.Live {
		if _, err := tx.exec(`UPDATE commits SET live = 0 WHERE repo = ? AND live = 1 AND NOT (commit_id = ? AND ref = ?)`,
			repo, string(c.Commit), string(c.Ref)); err != nil {
			return fmt.Errorf("record commit %s: %w", c.Commit, err)
		}
	}
	_, err = tx.exec(`INSERT INTO commits (repo, commit_id, ref, base, author, subject, diagnostics, live, seen_at, source)
		VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
		ON CONFLICT DO UPDATE SET base = ?4, author = ?5, subject = ?6, diagnostics = ?7, live = max(live, ?8), seen_at = ?9`,
		repo, string(c.Commit), string(c.Ref), string(c.Base), c.Author, c.Subject, diagnostics, c.Live, c.SeenAt.UnixNano(), c.Repo)
	if err == nil {
		err = tx.change(pipeline.Change{Kind: pipeline.ChangeCommit, Commit: c.Commit, Reason: c.Subject})
	}
	if err != nil {
		return fmt.Errorf("record commit %s: %w", c.Commit, err)
	}
	return nil
}

// RecordVerdicts keeps why a commit did or did not start each composition; a later
// verdict on the same commit, reference, composition and kind of event replaces the
// earlier one. A manual event that started nothing does not replace one that did:
// whoever asked in vain has the answer, and the run must stay explained.
// A run that a verdict names must be there when the transaction is committed.
func (tx *Tx) RecordVerdicts(list []pipeline.Verdict) error {
	for _, v := range list {
		if _, err := tx.exec(`INSERT INTO verdicts (commit_id, composition, ref, kind, outcome, sentence, run_id, source)
			VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT DO UPDATE SET outcome = ?5, sentence = ?6, run_id = ?7
			WHERE excluded.kind <> ?9 OR excluded.run_id IS NOT NULL OR verdicts.run_id IS NULL`,
			string(v.Commit), string(v.Composition), string(v.Ref), v.Kind, v.Outcome, v.Sentence, orNull(v.Run), v.Repo, pipeline.EventManual); err != nil {
			return fmt.Errorf("record the verdict on commit %s for %s: %w", v.Commit, v.Composition, err)
		}
	}
	return nil
}

// RepositoryProblem keeps the sentence that says why a repository cannot be read;
// "" clears it. Only a difference appends a change row, whose reason begins with
// the repository.
func (tx *Tx) RepositoryProblem(repo, sentence string) error {
	var n int64
	var err error
	told := sentence
	if sentence == "" {
		told = "is read again"
		n, err = tx.exec(`DELETE FROM repository_problems WHERE repo = ?`, repo)
	} else {
		n, err = tx.exec(`INSERT INTO repository_problems VALUES (?1, ?2)
			ON CONFLICT DO UPDATE SET sentence = ?2 WHERE sentence <> ?2`, repo, sentence)
	}
	if err == nil && n > 0 {
		err = tx.change(pipeline.Change{Kind: pipeline.ChangeRepository, Reason: repo + ": " + told})
	}
	if err != nil {
		return fmt.Errorf("problem of repository %s: %w", repo, err)
	}
	return nil
}

// KeepSources forgets where the references of source repositories pointed, and their
// problems, but for those that are kept: one that comes back is new. A key of a source
// repository begins with "source:".
func (tx *Tx) KeepSources(kept []string) error {
	list, err := marshal(append([]string{}, kept...)) // null would be a list of one
	if err != nil {
		return tx.fail(err)
	}
	for _, table := range []string{"refs", "repository_problems"} {
		if _, err := tx.exec(`DELETE FROM `+table+` WHERE repo LIKE 'source:%' AND repo NOT IN (SELECT value FROM json_each(?))`, list); err != nil {
			return fmt.Errorf("forget source repositories: %w", err)
		}
	}
	return nil
}

// RepositoryProblems returns the sentence of each repository that has one.
func (db *DB) RepositoryProblems(ctx context.Context) (map[string]string, error) {
	list, err := query(ctx, db.file.reader, scanPair, `SELECT repo, sentence FROM repository_problems`)
	return asMap[string, string](list), db.read(err, "problems of repositories")
}

// ObservedRefs returns where the references of a repository pointed when last seen.
func (db *DB) ObservedRefs(ctx context.Context, repo string) (map[pipeline.Ref]pipeline.CommitID, error) {
	list, err := query(ctx, db.file.reader, scanPair, `SELECT ref, commit_id FROM refs WHERE repo = ?`, repo)
	return asMap[pipeline.Ref, pipeline.CommitID](list), db.read(err, "references of %s", repo)
}

func scanPair(row scanner) (p [2]string, err error) {
	err = row.Scan(&p[0], &p[1])
	return p, err
}

func asMap[K, V ~string](pairs [][2]string) map[K]V {
	m := make(map[K]V, len(pairs))
	for _, p := range pairs {
		m[K(p[0])] = V(p[1])
	}
	return m
}

const commitColumns = `source, commit_id, ref, base, author, subject, diagnostics, live, seen_at`

func scanCommit(row scanner) (pipeline.CommitRecord, error) {
	var c pipeline.CommitRecord
	err := row.Scan(&c.Repo, &c.Commit, &c.Ref, &c.Base, &c.Author, &c.Subject, intoJSON{&c.Diagnostics}, &c.Live, intoTime{&c.SeenAt})
	return c, err
}

// Commit returns the record of a commit: where it is live, or else the one made
// last. A commit that was never evaluated is a fault.NotFound.
func (db *DB) Commit(ctx context.Context, id pipeline.CommitID) (pipeline.CommitRecord, error) {
	c, err := scanCommit(db.file.reader.QueryRowContext(ctx,
		`SELECT `+commitColumns+` FROM commits WHERE commit_id = ? ORDER BY live DESC, seen_at DESC LIMIT 1`, string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return c, fault.New(fault.NotFound, "commit %s is not in the record", id)
	}
	return c, db.read(err, "commit %s", id)
}

// FindCommit returns the commit whose id begins with prefix. None is a
// fault.NotFound, several are a fault.Invalid that names them.
func (db *DB) FindCommit(ctx context.Context, prefix string) (pipeline.CommitID, error) {
	const most = 3 // enough to tell that there are several, and which
	// A hex digit sorts before g, so the range holds what begins with prefix.
	list, err := query(ctx, db.file.reader, func(row scanner) (id pipeline.CommitID, err error) {
		err = row.Scan(&id)
		return id, err
	}, `SELECT DISTINCT commit_id FROM commits WHERE commit_id >= ?1 AND commit_id < ?1 || 'g' ORDER BY commit_id LIMIT ?2`, prefix, most)
	if err != nil {
		return "", db.read(err, "commit %s", prefix)
	}
	switch len(list) {
	case 0:
		return "", fault.New(fault.NotFound, "no commit %s is in the record: it was never seen, or is of a repository that is not served here", prefix)
	case 1:
		return list[0], nil
	}
	return "", fault.New(fault.Invalid, "commit %s is ambiguous, give more digits: %v", prefix, list)
}

// Commits returns the commits that were seen, of every repository, newest first, at
// most limit. A commit that was seen on several references is there as often.
func (db *DB) Commits(ctx context.Context, limit int) ([]pipeline.CommitRecord, error) {
	list, err := query(ctx, db.file.reader, scanCommit,
		`SELECT `+commitColumns+` FROM commits ORDER BY seen_at DESC, rowid DESC LIMIT ?`, max(limit, 0))
	return list, db.read(err, "commits")
}

// NewestEvaluated returns the commit of an ops repository that was evaluated last.
// Before the first there is none, which is a fault.NotFound.
func (db *DB) NewestEvaluated(ctx context.Context) (pipeline.CommitRecord, error) {
	c, err := scanCommit(db.file.reader.QueryRowContext(ctx,
		`SELECT `+commitColumns+` FROM commits WHERE source = '' ORDER BY seen_at DESC, rowid DESC LIMIT 1`))
	if errors.Is(err, sql.ErrNoRows) {
		return c, fault.New(fault.NotFound, "no commit was evaluated yet")
	}
	return c, db.read(err, "the newest commit")
}

// LiveCommit returns the commit of a repository whose configuration is in force.
// Before the first there is none, which is a fault.NotFound.
func (db *DB) LiveCommit(ctx context.Context, repo string) (pipeline.CommitRecord, error) {
	c, err := scanCommit(db.file.reader.QueryRowContext(ctx, `SELECT `+commitColumns+` FROM commits WHERE repo = ? AND live = 1`, repo))
	if errors.Is(err, sql.ErrNoRows) {
		return c, fault.New(fault.NotFound, "no commit of %s is live", repo)
	}
	return c, db.read(err, "the live commit of %s", repo)
}

// Verdicts returns what a commit did to each composition, sorted by composition,
// repository, reference and kind of event.
func (db *DB) Verdicts(ctx context.Context, commit pipeline.CommitID) ([]pipeline.Verdict, error) {
	list, err := query(ctx, db.file.reader, func(row scanner) (v pipeline.Verdict, err error) {
		err = row.Scan(&v.Repo, &v.Commit, &v.Ref, &v.Composition, &v.Kind, &v.Outcome, &v.Sentence, &v.Run)
		return v, err
	}, `SELECT source, commit_id, ref, composition, kind, outcome, sentence, coalesce(run_id, '') FROM verdicts
		WHERE commit_id = ? ORDER BY composition, source, ref, kind`, string(commit))
	return list, db.read(err, "verdicts on commit %s", commit)
}
