-- +goose Up

-- 1: it is being removed, and what is left of it is of no use. 2: it was, and one line
-- that says so is in its place.
ALTER TABLE logs ADD COLUMN removed INTEGER NOT NULL DEFAULT 0 CHECK (removed IN (0, 1, 2));
CREATE INDEX logs_here ON logs (id) WHERE removed < 2;

DROP TRIGGER logs_grow;
-- +goose StatementBegin
CREATE TRIGGER logs_grow BEFORE UPDATE ON logs
WHEN NEW.removed < OLD.removed OR NEW.received < OLD.received OR NEW.sealed < OLD.sealed
  OR (NEW.bytes < OLD.bytes AND NEW.removed = OLD.removed)
  OR (OLD.sealed = 1 AND NEW.received <> OLD.received)
BEGIN SELECT RAISE(ABORT, 'a log only grows, and a sealed one does not'); END;
-- +goose StatementEnd
