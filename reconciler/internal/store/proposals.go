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

// SaveProposal keeps a proposed change in place of the last of its branch, and
// appends a change row.
func (tx *Tx) SaveProposal(repo string, p *pipeline.Proposal) error {
	body, err := marshal(p)
	if err != nil {
		return tx.fail(fmt.Errorf("save proposal %s: %w", p.Branch, err))
	}
	var merged pipeline.CommitID
	if p.Merge != nil {
		merged = p.Merge.Commit
	}
	_, err = tx.exec(`INSERT INTO proposals (repo, branch, state, head, body, noted, merged, changed_at)
			VALUES (?1, ?2, ?3, ?4, ?5, '', ?6, ?7)
		ON CONFLICT DO UPDATE SET state = ?3, head = ?4, body = ?5, merged = ?6, changed_at = ?7,
			noted = CASE WHEN head = ?4 THEN noted ELSE '' END`,
		repo, p.Branch, string(p.State), string(p.Head), body, orNull(merged), p.ChangedAt.UnixNano())
	if err == nil {
		err = tx.change(pipeline.Change{Kind: pipeline.ChangeProposal, Commit: p.Head, Reason: p.Branch + ": " + p.Sentence})
	}
	if err != nil {
		return fmt.Errorf("save proposal %s: %w", p.Branch, err)
	}
	return nil
}

// NoteProposal remembers the digest of the text that a head has as a note.
func (tx *Tx) NoteProposal(repo, branch string, head pipeline.CommitID, digest pipeline.Digest) error {
	if _, err := tx.exec(`UPDATE proposals SET noted = ? WHERE repo = ? AND branch = ? AND head = ?`,
		string(digest), repo, branch, string(head)); err != nil {
		return fmt.Errorf("note of proposal %s: %w", branch, err)
	}
	return nil
}

// StoredProposal is a proposal with the digest of the text that its head has as a
// note, "" when it has none.
type StoredProposal struct {
	pipeline.Proposal
	Noted pipeline.Digest
}

func scanProposal(row scanner) (p StoredProposal, err error) {
	err = row.Scan(intoJSON{&p.Proposal}, &p.Noted)
	return p, err
}

// OpenProposals returns the open changes of a repository, by branch.
func (db *DB) OpenProposals(ctx context.Context, repo string) ([]StoredProposal, error) {
	list, err := query(ctx, db.file.reader, scanProposal,
		`SELECT body, noted FROM proposals WHERE repo = ? AND state = 'open' ORDER BY branch`, repo)
	return list, db.read(err, "open proposals of %s", repo)
}

// proposalBrief is a body without what only its own page shows.
const proposalBrief = `json_remove(body, '$.plan', '$.text', '$.markdown', '$.decisions')`

// Proposals returns the proposed changes, open ones first, the latest change first,
// at most limit; without their plans.
func (db *DB) Proposals(ctx context.Context, limit int) ([]pipeline.Proposal, error) {
	list, err := query(ctx, db.file.reader, func(row scanner) (p pipeline.Proposal, err error) {
		err = row.Scan(intoJSON{&p})
		return p, err
	}, `SELECT `+proposalBrief+` FROM proposals
		ORDER BY state <> 'open', changed_at DESC, branch LIMIT ?`, max(limit, 0))
	return list, db.read(err, "proposals")
}

// Proposal returns the last change that was proposed on a branch. None is a
// fault.NotFound.
func (db *DB) Proposal(ctx context.Context, repo, branch string) (pipeline.Proposal, error) {
	p, err := scanProposal(db.file.reader.QueryRowContext(ctx,
		`SELECT body, noted FROM proposals WHERE repo = ? AND branch = ?`, repo, branch))
	if errors.Is(err, sql.ErrNoRows) {
		return p.Proposal, fault.New(fault.NotFound, "no change is proposed on branch %q; see: reconciler change", branch)
	}
	return p.Proposal, db.read(err, "proposal %s", branch)
}

// ProposalsOf returns the changes whose head a commit is, and those that it merged,
// open ones first, the latest change first.
func (db *DB) ProposalsOf(ctx context.Context, id pipeline.CommitID) ([]pipeline.Proposal, error) {
	list, err := query(ctx, db.file.reader, func(row scanner) (p pipeline.Proposal, err error) {
		err = row.Scan(intoJSON{&p})
		return p, err
	}, `SELECT `+proposalBrief+` FROM proposals WHERE head = ?1 OR merged = ?1
		ORDER BY state <> 'open', changed_at DESC, branch`, string(id))
	return list, db.read(err, "proposals of %s", id)
}

// LookAt notes that a branch was looked at for what it proposes, at this head; "" for
// a branch that is gone.
func (tx *Tx) LookAt(repo, branch string, head pipeline.CommitID) error {
	var err error
	if head == "" {
		_, err = tx.exec(`DELETE FROM looked WHERE repo = ? AND branch = ?`, repo, branch)
	} else {
		_, err = tx.exec(`INSERT INTO looked VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET head = ?3 WHERE head <> ?3`, repo, branch, string(head))
	}
	if err != nil {
		return fmt.Errorf("look at branch %s: %w", branch, err)
	}
	return nil
}

// LookedAt returns the heads at which branches were looked at last.
func (db *DB) LookedAt(ctx context.Context, repo string) (map[string]pipeline.CommitID, error) {
	list, err := query(ctx, db.file.reader, scanPair, `SELECT branch, head FROM looked WHERE repo = ?`, repo)
	return asMap[string, pipeline.CommitID](list), db.read(err, "branches of %s", repo)
}

// Unplanned reports whether a commit was observed as the head of a branch other than
// main, and nobody has looked yet at what it proposes.
func (db *DB) Unplanned(ctx context.Context, id pipeline.CommitID, main pipeline.Ref) (bool, error) {
	var yes bool
	err := db.file.reader.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM refs r
		WHERE r.commit_id = ?1 AND r.repo NOT LIKE 'source:%' AND r.ref LIKE 'refs/heads/%' AND r.ref <> ?2 AND NOT EXISTS (
			SELECT 1 FROM looked l WHERE l.repo = r.repo AND l.branch = substr(r.ref, 12) AND l.head = r.commit_id))`,
		string(id), string(main)).Scan(&yes)
	return yes, db.read(err, "branches at %s", id)
}

// SeenReview is a review as it was when it was first seen.
type SeenReview struct {
	Ref    pipeline.Ref
	Object string
	Head   pipeline.CommitID
	// Plan is the digest that there was to see, "" for none.
	Plan pipeline.Digest
	// Void says why it never counts again, "" while it may.
	Void string
	At   time.Time
}

// SeenReviews returns all that is kept of the reviews of a repository.
func (db *DB) SeenReviews(ctx context.Context, repo string) ([]SeenReview, error) {
	list, err := query(ctx, db.file.reader, func(row scanner) (r SeenReview, err error) {
		err = row.Scan(&r.Ref, &r.Object, &r.Head, &r.Plan, &r.Void, intoTime{&r.At})
		return r, err
	}, `SELECT ref, object, head, plan, void, seen_at FROM reviews WHERE repo = ? ORDER BY ref, object`, repo)
	return list, db.read(err, "reviews of %s", repo)
}

// SeeReview keeps when a review was first seen and of which plan; of one that is kept
// already only its being void changes, and only once.
func (tx *Tx) SeeReview(repo string, r SeenReview) error {
	if _, err := tx.exec(`INSERT INTO reviews (repo, ref, object, head, plan, void, seen_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
		ON CONFLICT DO UPDATE SET void = ?6 WHERE void = ''`,
		repo, string(r.Ref), r.Object, string(r.Head), string(r.Plan), r.Void, r.At.UnixNano()); err != nil {
		return fmt.Errorf("keep review %s: %w", r.Ref, err)
	}
	return nil
}

// ForgetReview drops what is kept of a review: pushed again, it is a new one.
func (tx *Tx) ForgetReview(repo string, ref pipeline.Ref, object string) error {
	if _, err := tx.exec(`DELETE FROM reviews WHERE repo = ? AND ref = ? AND object = ?`, repo, string(ref), object); err != nil {
		return fmt.Errorf("forget review %s: %w", ref, err)
	}
	return nil
}

// AnsweredRequest is what came of a request.
type AnsweredRequest struct {
	Ref    pipeline.Ref
	Object string
	Target pipeline.CommitID
	Answer string
	// Told: the answer is in the repository.
	Told bool
	At   time.Time
}

// AnswerRequest keeps what came of a request, and appends a change row. A request
// that was answered is a fault.Conflict: it must not be carried out again.
func (tx *Tx) AnswerRequest(repo string, r AnsweredRequest) error {
	n, err := tx.exec(`INSERT INTO requests (repo, object, ref, target, answer, told, done_at) VALUES (?, ?, ?, ?, ?, 0, ?)
		ON CONFLICT DO NOTHING`, repo, r.Object, string(r.Ref), string(r.Target), r.Answer, r.At.UnixNano())
	if err == nil && n == 0 {
		return tx.conflict("request %s was answered before", r.Ref)
	}
	if err == nil {
		err = tx.change(pipeline.Change{Kind: pipeline.ChangeRequest, Commit: r.Target, Reason: r.Answer})
	}
	if err != nil {
		return fmt.Errorf("answer request %s: %w", r.Ref, err)
	}
	return nil
}

// RequestTold notes that the answer to a request is in the repository.
func (tx *Tx) RequestTold(repo, object string) error {
	if _, err := tx.exec(`UPDATE requests SET told = 1 WHERE repo = ? AND object = ?`, repo, object); err != nil {
		return fmt.Errorf("answer of request %s: %w", object, err)
	}
	return nil
}

// Request returns what came of the request that an object made, fault.NotFound when
// it was not answered.
func (db *DB) Request(ctx context.Context, repo, object string) (AnsweredRequest, error) {
	var r AnsweredRequest
	err := db.file.reader.QueryRowContext(ctx, `SELECT ref, object, target, answer, told, done_at FROM requests WHERE repo = ? AND object = ?`,
		repo, object).Scan(&r.Ref, &r.Object, &r.Target, &r.Answer, &r.Told, intoTime{&r.At})
	if errors.Is(err, sql.ErrNoRows) {
		return r, fault.New(fault.NotFound, "request %s is not in the record", object)
	}
	return r, db.read(err, "request %s", object)
}

// Took are the times that the latest successful runs of a composition took: from
// being made to their start, and from there to their end.
type Took struct {
	Composition pipeline.CompositionName
	Waits       []time.Duration
	Durations   []time.Duration
}

// History returns what the latest runs of each composition took, at most most of
// each.
func (db *DB) History(ctx context.Context, most int) ([]Took, error) {
	type one struct {
		name      pipeline.CompositionName
		wait, run int64
	}
	list, err := query(ctx, db.file.reader, func(row scanner) (o one, err error) {
		err = row.Scan(&o.name, &o.wait, &o.run)
		return o, err
	}, `SELECT c.composition, r.started_at - r.created_at, r.finished_at - r.started_at
		FROM counters c JOIN runs r ON r.composition = c.composition AND r.state = 'success' AND r.started_at IS NOT NULL
			AND r.number > c.last - ?
		ORDER BY c.composition, r.number DESC`, max(most, 0))
	var out []Took
	for _, o := range list {
		if n := len(out); n == 0 || out[n-1].Composition != o.name {
			out = append(out, Took{Composition: o.name})
		}
		t := &out[len(out)-1]
		t.Waits, t.Durations = append(t.Waits, time.Duration(o.wait)), append(t.Durations, time.Duration(o.run))
	}
	return out, db.read(err, "the history of runs")
}
