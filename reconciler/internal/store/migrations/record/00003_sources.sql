-- +goose Up

-- Source repositories: what is of one of them says so by its name in source, which is
-- empty for the ops repository. Their refs and commits have a repo of their own, which
-- begins with "source:".

-- A run is about the commit head: of the ops repository that is commit_id.
DROP TRIGGER runs_terminal;
DROP TRIGGER runs_made;
DROP INDEX runs_commit;
ALTER TABLE runs ADD COLUMN source TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN head TEXT NOT NULL DEFAULT '';
UPDATE runs SET head = commit_id;
CREATE INDEX runs_head ON runs (head);

-- +goose StatementBegin
CREATE TRIGGER runs_about BEFORE INSERT ON runs
WHEN NEW.head = '' OR NEW.source = '' AND NEW.head <> NEW.commit_id
BEGIN SELECT RAISE(ABORT, 'a run is about a commit'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER runs_terminal BEFORE UPDATE ON runs
WHEN OLD.finished_at IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'the outcome of a run is for ever'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER runs_made BEFORE UPDATE ON runs
WHEN NEW.run_key <> OLD.run_key OR NEW.digest <> OLD.digest OR NEW.commit_id <> OLD.commit_id OR NEW.draft > OLD.draft
  OR NEW.source <> OLD.source OR NEW.head <> OLD.head
  OR OLD.draft = 0 AND (NEW.params IS NOT OLD.params OR NEW.grp <> OLD.grp)
BEGIN SELECT RAISE(ABORT, 'what a run was made with stays'); END;
-- +goose StatementEnd

ALTER TABLE commits ADD COLUMN source TEXT NOT NULL DEFAULT '';

CREATE TABLE verdicts_of (
  source      TEXT NOT NULL,
  commit_id   TEXT NOT NULL CHECK (commit_id <> ''),
  composition TEXT NOT NULL CHECK (composition <> ''),
  ref         TEXT NOT NULL,
  kind        TEXT NOT NULL CHECK (kind <> ''),
  outcome     TEXT NOT NULL CHECK (outcome IN ('run', 'skipped', 'rejected')),
  sentence    TEXT NOT NULL,
  run_id      TEXT REFERENCES runs (id) DEFERRABLE INITIALLY DEFERRED,
  PRIMARY KEY (commit_id, source, composition, ref, kind)
) STRICT, WITHOUT ROWID;
INSERT INTO verdicts_of SELECT '', commit_id, composition, ref, kind, outcome, sentence, run_id FROM verdicts;
DROP TABLE verdicts;
ALTER TABLE verdicts_of RENAME TO verdicts;

CREATE TABLE forge_desired_of (
  source        TEXT    NOT NULL,
  commit_id     TEXT    NOT NULL CHECK (commit_id <> ''),
  context       TEXT    NOT NULL CHECK (context <> ''),
  state         TEXT    NOT NULL CHECK (state IN ('pending', 'success', 'failure', 'error')),
  description   TEXT    NOT NULL,
  url           TEXT    NOT NULL,
  digest        TEXT    NOT NULL,
  posted_digest TEXT    NOT NULL,
  tries         INTEGER NOT NULL CHECK (tries >= 0),
  next_at       INTEGER NOT NULL,
  problem       TEXT    NOT NULL,
  PRIMARY KEY (commit_id, source, context)
) STRICT;
INSERT INTO forge_desired_of SELECT '', commit_id, context, state, description, url, digest, posted_digest, tries, next_at, problem
  FROM forge_desired ORDER BY rowid;
DROP TABLE forge_desired;
ALTER TABLE forge_desired_of RENAME TO forge_desired;
CREATE INDEX forge_due ON forge_desired (source, next_at) WHERE posted_digest <> digest;

-- A program that does not know of the names would show one repository's statuses on
-- another.
UPDATE meta SET schema_min_reader = 3;
