package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Watermark is how far a record is known to have been.
type Watermark struct {
	StoreID     string       `json:"store"`
	Incarnation int64        `json:"incarnation"`
	Seq         pipeline.Seq `json:"seq"`
}

// After reports whether w is of the same record as o, and further.
func (w Watermark) After(o Watermark) bool {
	return w.StoreID == o.StoreID && (w.Incarnation > o.Incarnation || w.Incarnation == o.Incarnation && w.Seq > o.Seq)
}

// Rollback says that the record is older than it was once.
type Rollback struct {
	// Known is how far it was, and Found how far it is.
	Known Watermark `json:"known"`
	Found Watermark `json:"found"`
	// By tells who knows.
	By string    `json:"by"`
	At time.Time `json:"at"`
}

// Sentence tells a person, and what to do.
func (r *Rollback) Sentence() string {
	return fmt.Sprintf("the record is older than it was: it is at change %d of incarnation %d, and %s knows it at change %d of incarnation %d. "+
		"Nothing is given to agents. If an old backup was put in place on purpose, confirm it with: reconciler fsck --accept-rollback. "+
		"Otherwise stop the server and put the newer files back",
		r.Found.Seq, r.Found.Incarnation, r.By, r.Known.Seq, r.Known.Incarnation)
}

// watermarkName is beside the record and in no backup of it: when an old record is put
// in place, it still tells how far the other was.
const watermarkName = "watermark.json"

// byFolder is who knows, when it is this file.
const byFolder = "the data folder"

func readWatermark(dir string) (Watermark, error) {
	var w Watermark
	b, err := os.ReadFile(filepath.Join(dir, watermarkName))
	if errors.Is(err, fs.ErrNotExist) {
		return w, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &w)
	}
	if err != nil {
		return w, fmt.Errorf("read %s: %w; remove the file, and only agents can tell whether the record is old", filepath.Join(dir, watermarkName), err)
	}
	return w, nil
}

func (w Watermark) write(dir string) error {
	b, err := json.MarshalIndent(w, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, watermarkName), append(b, '\n'), 0o600)
}

// Watermark is how far the record is by what has been committed. It does not wait.
func (db *DB) Watermark() Watermark {
	return Watermark{StoreID: db.id, Incarnation: db.incarnation.Load(), Seq: pipeline.Seq(db.seq.Load())}
}

// Rollback tells that the record is older than it was once, nil when it is not, or when
// that was confirmed. It does not wait.
func (db *DB) Rollback() *Rollback { return db.rollback.Load() }

// Mark writes beside the record how far it is, so that an older record put in its place
// is noticed when it is opened. While there is a rollback it does nothing.
func (db *DB) Mark() error {
	db.marking.Lock()
	defer db.marking.Unlock()
	now := db.Watermark()
	if db.rollback.Load() != nil || now == db.marked {
		return nil
	}
	if err := now.write(db.dir); err != nil {
		return fmt.Errorf("mark how far the record is: %w", err)
	}
	db.marked = now
	return nil
}

// Saw compares the record with how far somebody knows it to have been. What is of
// another record, or not further, is of no interest. It returns the rollback that there
// is, which stays over restarts until AcceptRollback, or until the newer record is back.
func (db *DB) Saw(ctx context.Context, known Watermark, by string) (*Rollback, error) {
	db.marking.Lock()
	defer db.marking.Unlock()
	now, before := db.Watermark(), db.rollback.Load()
	if !known.After(now) || before != nil && !known.After(before.Known) {
		return before, nil
	}
	r := &Rollback{Known: known, Found: now, By: by, At: time.Now().UTC()}
	db.rollback.Store(r) // also when it cannot be written
	body, err := marshal(r)
	if err == nil {
		err = db.Write(ctx, func(tx *Tx) error {
			_, err := tx.exec(`INSERT INTO rollback VALUES (1, ?1) ON CONFLICT DO UPDATE SET body = ?1`, body)
			return err
		})
	}
	if err != nil {
		return r, fmt.Errorf("remember that the record is older than it was: %w", err)
	}
	return r, nil
}

// AcceptRollback confirms that the record is meant to be older than it was: it gets a
// higher incarnation than any that is known, and there is no rollback any more. Without
// one it is a fault.Conflict.
func (db *DB) AcceptRollback(ctx context.Context) error {
	r := db.rollback.Load()
	if r == nil {
		return fault.New(fault.Conflict, "the record is not older than anybody knows it to have been: there is nothing to accept")
	}
	next := max(r.Known.Incarnation, db.incarnation.Load()) + 1
	err := db.Write(ctx, func(tx *Tx) error {
		if _, err := tx.exec(`UPDATE meta SET incarnation = ?`, next); err != nil {
			return err
		}
		_, err := tx.exec(`DELETE FROM rollback`)
		return err
	})
	if err != nil {
		return fmt.Errorf("accept the rollback: %w", err)
	}
	db.incarnation.Store(next)
	db.rollback.Store(nil)
	db.log.Warn("an older record was accepted", "incarnation", next, "seq", db.seq.Load(), "known_seq", r.Known.Seq)
	return db.Mark()
}

// recall finds out at the start whether the record is older than it was.
func (db *DB) recall(ctx context.Context) error {
	var r *Rollback
	err := db.file.writer.QueryRowContext(ctx, `SELECT body FROM rollback`).Scan(intoJSON{&r})
	if err == nil {
		db.rollback.Store(r)
		return nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	known, err := readWatermark(db.dir)
	if err != nil {
		db.log.Warn("it is not known how far the record was", "err", err)
		return nil
	}
	_, err = db.Saw(ctx, known, byFolder)
	return err
}
