-- +goose Up

-- One row for each attempt that wrote something.
CREATE TABLE logs (
  id        INTEGER PRIMARY KEY,
  attempt   TEXT    NOT NULL UNIQUE CHECK (attempt <> ''),
  -- How much of what the agent sent is done with: stored, or discarded when truncated.
  received  INTEGER NOT NULL CHECK (received >= 0),
  bytes     INTEGER NOT NULL CHECK (bytes >= 0),
  newlines  INTEGER NOT NULL CHECK (newlines >= 0 AND newlines <= bytes),
  -- Whether the last line has no newline yet.
  open_line INTEGER NOT NULL CHECK (open_line IN (0, 1)),
  truncated INTEGER NOT NULL CHECK (truncated IN (0, 1)),
  sealed    INTEGER NOT NULL CHECK (sealed IN (0, 1)),
  CHECK (truncated = 1 OR received = bytes)
) STRICT;

-- The bytes, in pieces that follow one another without a gap. first_line is the
-- number of the line that the first byte belongs to, counted from 1.
CREATE TABLE chunks (
  id         INTEGER PRIMARY KEY,
  log_id     INTEGER NOT NULL REFERENCES logs (id),
  off        INTEGER NOT NULL CHECK (off >= 0),
  first_line INTEGER NOT NULL CHECK (first_line >= 1),
  data       BLOB    NOT NULL CHECK (length(data) > 0),
  UNIQUE (log_id, off)
) STRICT;

CREATE INDEX chunks_line ON chunks (log_id, first_line, off);

-- +goose StatementBegin
CREATE TRIGGER chunks_contiguous BEFORE INSERT ON chunks
WHEN NEW.off <> coalesce((SELECT off + length(data) FROM chunks
  WHERE log_id = NEW.log_id ORDER BY off DESC LIMIT 1), 0)
BEGIN SELECT RAISE(ABORT, 'a log has no gaps'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER logs_grow BEFORE UPDATE ON logs
WHEN NEW.received < OLD.received OR NEW.bytes < OLD.bytes OR NEW.sealed < OLD.sealed
  OR (OLD.sealed = 1 AND NEW.received <> OLD.received)
BEGIN SELECT RAISE(ABORT, 'a log only grows, and a sealed one does not'); END;
-- +goose StatementEnd

CREATE TABLE meta (
  one               INTEGER PRIMARY KEY CHECK (one = 1),
  schema_min_reader INTEGER NOT NULL,
  clean             INTEGER NOT NULL CHECK (clean IN (0, 1))
) STRICT;

INSERT INTO meta VALUES (1, 1, 0);
