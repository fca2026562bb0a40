-- +goose Up

-- How many bytes are packed in data, with zstd; NULL when data is as it was written.
ALTER TABLE chunks ADD COLUMN size INTEGER CHECK (size > 0);
-- SHA-256 of all bytes of a log that was packed, NULL before.
ALTER TABLE logs ADD COLUMN digest BLOB CHECK (length(digest) = 32);
CREATE INDEX logs_unpacked ON logs (id) WHERE sealed = 1 AND removed = 0 AND digest IS NULL;

DROP TRIGGER chunks_contiguous;
-- +goose StatementBegin
CREATE TRIGGER chunks_contiguous BEFORE INSERT ON chunks
WHEN NEW.off <> coalesce((SELECT off + coalesce(size, length(data)) FROM chunks
  WHERE log_id = NEW.log_id ORDER BY off DESC LIMIT 1), 0)
BEGIN SELECT RAISE(ABORT, 'a log has no gaps'); END;
-- +goose StatementEnd

-- A program that does not know of packed bytes would show them.
UPDATE meta SET schema_min_reader = 3;
