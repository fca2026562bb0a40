-- +goose Up

-- The keys of runs that were removed, for as long as a ref points at what they were for,
-- so that the same event does not make them again.
CREATE TABLE spent_keys (
  run_key   TEXT PRIMARY KEY CHECK (run_key <> ''),
  run_id    TEXT NOT NULL,
  -- The commits that it was of and about.
  commit_id TEXT NOT NULL,
  head      TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- +goose StatementBegin
CREATE TRIGGER runs_unspent BEFORE INSERT ON runs
WHEN EXISTS (SELECT 1 FROM spent_keys WHERE run_key = NEW.run_key)
BEGIN SELECT RAISE(ABORT, 'a run was made for this event, and removed since'); END;
-- +goose StatementEnd

-- What names a run or a composition is found without reading all.
CREATE INDEX verdicts_run ON verdicts (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX runs_digest ON runs (digest);
CREATE INDEX runs_commit ON runs (commit_id);

-- +goose StatementBegin
CREATE TRIGGER runs_kept BEFORE DELETE ON runs
WHEN OLD.finished_at IS NULL
BEGIN SELECT RAISE(ABORT, 'a run that has not ended is kept'); END;
-- +goose StatementEnd

-- The oldest changes may go, so that those that are left have no gap. The newest stays.
DROP TRIGGER changes_kept;
-- +goose StatementBegin
CREATE TRIGGER changes_kept BEFORE DELETE ON changes
WHEN OLD.seq <> (SELECT min(seq) FROM changes) OR OLD.seq = (SELECT seq FROM meta)
BEGIN SELECT RAISE(ABORT, 'a change is kept'); END;
-- +goose StatementEnd
