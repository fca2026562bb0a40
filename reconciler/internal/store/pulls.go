package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Comment is the one comment of a change at the forge.
type Comment struct {
	Branch string
	// Digest of the text that it shows, "" when that is not known.
	Digest pipeline.Digest
	// Number of it at the forge, 0 when that is not known.
	Number int64
	// Rank is the worst that people were notified of.
	Rank int
	// Done: the change is over, and nothing will be added.
	Done bool
	// Tries in a row that failed, when the next one is due, and why.
	Tries   int
	NextAt  time.Time
	Problem string
}

func scanComment(row scanner) (c Comment, err error) {
	err = row.Scan(&c.Branch, &c.Digest, &c.Number, &c.Rank, &c.Done, &c.Tries, intoTime{&c.NextAt}, &c.Problem)
	return c, err
}

// Comments returns what is kept of the comments that are not done, by branch.
func (db *DB) Comments(ctx context.Context, repo string) ([]Comment, error) {
	list, err := query(ctx, db.file.reader, scanComment,
		`SELECT branch, digest, comment, rank, done, tries, next_at, problem FROM comments WHERE repo = ? AND done = 0 ORDER BY branch`, repo)
	return list, db.read(err, "comments of %s", repo)
}

// Unwritten returns why one of the comments that are not done could not be written twice
// in a row, "" when all could.
func (db *DB) Unwritten(ctx context.Context, repo string) (why string, err error) {
	err = db.file.reader.QueryRowContext(ctx, `SELECT coalesce(max(problem), '') FROM comments WHERE repo = ? AND done = 0 AND tries >= 2`, repo).Scan(&why)
	return why, db.read(err, "comments of %s that are not written", repo)
}

// SaveComment keeps what is known of a comment.
func (tx *Tx) SaveComment(repo string, c Comment) error {
	at := int64(0)
	if !c.NextAt.IsZero() {
		at = c.NextAt.UnixNano()
	}
	_, err := tx.exec(`INSERT INTO comments (repo, branch, digest, comment, rank, done, tries, next_at, problem)
			VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
		ON CONFLICT DO UPDATE SET digest = ?3, comment = ?4, rank = ?5, done = ?6, tries = ?7, next_at = ?8, problem = ?9`,
		repo, c.Branch, string(c.Digest), c.Number, c.Rank, c.Done, c.Tries, at, c.Problem)
	if err != nil {
		return fmt.Errorf("save comment of %s: %w", c.Branch, err)
	}
	return nil
}

// Consent is what somebody said of a change that holds until it is taken back.
type Consent struct {
	Branch string
	// Verb is ConsentRun or ConsentHold.
	Verb string
	// Head that it is about, "" for any.
	Head pipeline.CommitID
	By   string
	At   time.Time
}

// What people consent to.
const (
	ConsentRun  = "ok-to-test"
	ConsentHold = "hold"
)

// Consents returns those of a repository.
func (db *DB) Consents(ctx context.Context, repo string) ([]Consent, error) {
	list, err := query(ctx, db.file.reader, func(row scanner) (c Consent, err error) {
		err = row.Scan(&c.Branch, &c.Verb, &c.Head, &c.By, intoTime{&c.At})
		return c, err
	}, `SELECT branch, verb, head, person, at FROM consents WHERE repo = ? ORDER BY branch, verb`, repo)
	return list, db.read(err, "consents of %s", repo)
}

// Consent keeps one in place of an earlier one of the branch and verb.
func (tx *Tx) Consent(repo string, c Consent) error {
	_, err := tx.exec(`INSERT INTO consents (repo, branch, verb, head, person, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
		ON CONFLICT DO UPDATE SET head = ?4, person = ?5, at = ?6`, repo, c.Branch, c.Verb, string(c.Head), c.By, c.At.UnixNano())
	if err != nil {
		return fmt.Errorf("keep %s of %s: %w", c.Verb, c.Branch, err)
	}
	return nil
}

// Withdraw drops one; there may be none.
func (tx *Tx) Withdraw(repo, branch, verb string) error {
	if _, err := tx.exec(`DELETE FROM consents WHERE repo = ? AND branch = ? AND verb = ?`, repo, branch, verb); err != nil {
		return fmt.Errorf("withdraw %s of %s: %w", verb, branch, err)
	}
	return nil
}

// KnowAccount returns the number of the account that had a login when it was first met,
// and keeps id when that is this moment. Logins are the same in any case of letters.
func (db *DB) KnowAccount(ctx context.Context, login string, id int64) (known int64, err error) {
	if known, err = db.KnownAccount(ctx, login); known != 0 || err != nil {
		return known, err
	}
	login = strings.ToLower(login)
	err = db.Write(ctx, func(tx *Tx) error {
		_, err := tx.exec(`INSERT INTO accounts (login, id) VALUES (?, ?) ON CONFLICT DO NOTHING`, login, id)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("keep account %s: %w", login, err)
	}
	return id, nil
}

// KnownAccount returns the number of the account that had a login when it was first met,
// 0 when nobody of that login was.
func (db *DB) KnownAccount(ctx context.Context, login string) (id int64, err error) {
	err = db.file.reader.QueryRowContext(ctx, `SELECT id FROM accounts WHERE login = ?`, strings.ToLower(login)).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return id, db.read(err, "account %s", login)
}

// ForgeFact returns a value that SetForgeFact keeps, "" for none.
func (db *DB) ForgeFact(ctx context.Context, name string) (string, error) {
	var v string
	err := db.file.reader.QueryRowContext(ctx, `SELECT value FROM forge_facts WHERE name = ?`, name).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return v, db.read(err, "%s of the forge", name)
}

// SetForgeFact keeps a value.
func (tx *Tx) SetForgeFact(name, value string) error {
	if _, err := tx.exec(`INSERT INTO forge_facts (name, value) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2`, name, value); err != nil {
		return fmt.Errorf("keep %s of the forge: %w", name, err)
	}
	return nil
}

// RequestsOf returns the last requests that were answered under a ref, the newest
// first, at most limit.
func (db *DB) RequestsOf(ctx context.Context, repo string, ref pipeline.Ref, limit int) ([]AnsweredRequest, error) {
	list, err := query(ctx, db.file.reader, func(row scanner) (r AnsweredRequest, err error) {
		err = row.Scan(&r.Ref, &r.Object, &r.Target, &r.Answer, &r.Told, intoTime{&r.At})
		return r, err
	}, `SELECT ref, object, target, answer, told, done_at FROM requests WHERE repo = ? AND ref = ? ORDER BY done_at DESC, object LIMIT ?`,
		repo, string(ref), max(limit, 0))
	return list, db.read(err, "requests of %s", ref)
}
