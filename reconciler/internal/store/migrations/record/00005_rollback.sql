-- +goose Up

-- At most one row: somebody knows the record to have been further than it is, and nobody
-- has confirmed that yet. It is in the record, so that it goes when the newer one is put
-- back, and stays when this one goes on.
CREATE TABLE rollback (
  one  INTEGER PRIMARY KEY CHECK (one = 1),
  body TEXT NOT NULL
) STRICT;
