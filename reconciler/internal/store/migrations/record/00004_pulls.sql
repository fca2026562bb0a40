-- +goose Up

-- The one comment of a change at the forge. comment is its number there, 0 when it is
-- not known; rank the worst that people were notified of. done: nothing will be added.
CREATE TABLE comments (
  repo    TEXT    NOT NULL,
  branch  TEXT    NOT NULL CHECK (branch <> ''),
  digest  TEXT    NOT NULL,
  comment INTEGER NOT NULL,
  rank    INTEGER NOT NULL,
  done    INTEGER NOT NULL CHECK (done IN (0, 1)),
  tries   INTEGER NOT NULL,
  next_at INTEGER NOT NULL,
  problem TEXT    NOT NULL,
  PRIMARY KEY (repo, branch)
) STRICT, WITHOUT ROWID;

-- What people said of a change that holds until they take it back: that a head of a
-- fork may run, that it is not to be merged yet.
CREATE TABLE consents (
  repo   TEXT    NOT NULL,
  branch TEXT    NOT NULL,
  verb   TEXT    NOT NULL CHECK (verb IN ('ok-to-test', 'hold')),
  head   TEXT    NOT NULL,
  person TEXT    NOT NULL,
  at     INTEGER NOT NULL,
  PRIMARY KEY (repo, branch, verb)
) STRICT, WITHOUT ROWID;

-- Whose a login was when it was first met. Logins change hands, numbers do not.
CREATE TABLE accounts (
  login TEXT    PRIMARY KEY CHECK (login <> ''),
  id    INTEGER NOT NULL CHECK (id > 0)
) STRICT, WITHOUT ROWID;

-- Single values that the talk with the forge goes on from after a restart.
CREATE TABLE forge_facts (
  name  TEXT PRIMARY KEY CHECK (name <> ''),
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
