-- +goose Up

-- One row: who this record is, and the number of its newest change.
CREATE TABLE meta (
  one               INTEGER PRIMARY KEY CHECK (one = 1),
  store_id          TEXT    NOT NULL CHECK (length(store_id) = 32),
  incarnation       INTEGER NOT NULL CHECK (incarnation >= 1),
  seq               INTEGER NOT NULL CHECK (seq >= 0),
  -- The oldest migration that a program must know to read this file.
  schema_min_reader INTEGER NOT NULL,
  -- Whether the last program that had it open closed it.
  clean             INTEGER NOT NULL CHECK (clean IN (0, 1))
) STRICT;

INSERT INTO meta VALUES (1, lower(hex(randomblob(16))), 1, 0, 1, 0);

-- The event log. Times everywhere are nanoseconds since 1970, UTC.
CREATE TABLE changes (
  seq       INTEGER PRIMARY KEY,
  at        INTEGER NOT NULL,
  kind      TEXT NOT NULL,
  run_id    TEXT,
  task      TEXT,
  agent_id  TEXT,
  commit_id TEXT,
  state     TEXT,
  reason    TEXT NOT NULL
) STRICT;

-- What was planned, once for all runs that were planned the same.
CREATE TABLE compositions (
  digest TEXT PRIMARY KEY,
  name   TEXT NOT NULL,
  body   TEXT NOT NULL
) STRICT;

-- The last number that a run of the composition was given.
CREATE TABLE counters (
  composition TEXT PRIMARY KEY,
  last        INTEGER NOT NULL CHECK (last >= 1)
) STRICT;

CREATE TABLE runs (
  id          TEXT PRIMARY KEY CHECK (id <> ''),
  composition TEXT    NOT NULL CHECK (composition <> ''),
  number      INTEGER NOT NULL CHECK (number >= 1),
  run_key     TEXT    NOT NULL UNIQUE CHECK (run_key <> ''),
  digest      TEXT    NOT NULL REFERENCES compositions (digest),
  commit_id   TEXT    NOT NULL,
  ref         TEXT    NOT NULL,
  event       TEXT    NOT NULL,
  params      TEXT,
  priority    INTEGER NOT NULL,
  state       TEXT    NOT NULL CHECK (state IN (
    'pending', 'held', 'ready', 'offered', 'running', 'in_doubt',
    'success', 'failure', 'error', 'timeout', 'cancelled', 'skipped', 'not_needed')),
  reason      TEXT    NOT NULL,
  cancel      INTEGER NOT NULL CHECK (cancel IN (0, 1)),
  created_at  INTEGER NOT NULL,
  started_at  INTEGER,
  finished_at INTEGER,
  depth       INTEGER NOT NULL CHECK (depth >= 0),
  -- Its params and its group are not known yet.
  draft       INTEGER NOT NULL CHECK (draft IN (0, 1)),
  -- The concurrency group, and as JSON the runs it waits behind.
  grp         TEXT    NOT NULL,
  behind      TEXT,
  outputs     TEXT,
  version     INTEGER NOT NULL CHECK (version >= 1),
  UNIQUE (composition, number),
  CHECK ((finished_at IS NOT NULL) = (state IN
    ('success', 'failure', 'error', 'timeout', 'cancelled', 'skipped', 'not_needed')))
) STRICT;

CREATE INDEX runs_unfinished ON runs (id) WHERE finished_at IS NULL;
CREATE INDEX runs_success ON runs (composition, number) WHERE state = 'success';
CREATE INDEX runs_commit ON runs (commit_id);
CREATE INDEX runs_group ON runs (grp) WHERE finished_at IS NULL AND grp <> '';

CREATE TABLE tasks (
  run_id      TEXT    NOT NULL REFERENCES runs (id),
  name        TEXT    NOT NULL CHECK (name <> ''),
  idx         INTEGER NOT NULL CHECK (idx >= 0),
  state       TEXT    NOT NULL CHECK (state IN (
    'pending', 'held', 'ready', 'offered', 'running', 'in_doubt',
    'success', 'failure', 'error', 'timeout', 'cancelled', 'skipped', 'not_needed')),
  reason      TEXT    NOT NULL,
  epoch       INTEGER NOT NULL CHECK (epoch >= 0),
  failures    INTEGER NOT NULL CHECK (failures >= 0),
  attempt_id  TEXT,
  agent_id    TEXT,
  slot        INTEGER NOT NULL,
  outputs     TEXT,
  records     TEXT,
  links       TEXT,
  exit        INTEGER,
  ready_at    INTEGER,
  started_at  INTEGER,
  finished_at INTEGER,
  not_before  INTEGER,
  -- The control plane runs it itself; no agent ever has it.
  built_in    INTEGER NOT NULL CHECK (built_in IN (0, 1)),
  child       TEXT,
  message     TEXT    NOT NULL,
  reviews     TEXT,
  PRIMARY KEY (run_id, name),
  CHECK ((finished_at IS NOT NULL) = (state IN
    ('success', 'failure', 'error', 'timeout', 'cancelled', 'skipped', 'not_needed'))),
  -- What an agent holds names the agent and the attempt.
  CHECK (state NOT IN ('offered', 'running', 'in_doubt') OR built_in
    OR (epoch >= 1 AND attempt_id IS NOT NULL AND agent_id IS NOT NULL)),
  CHECK (built_in OR (state <> 'held' AND child IS NULL AND message = '' AND reviews IS NULL)),
  CHECK (NOT built_in OR (epoch = 0 AND attempt_id IS NULL AND agent_id IS NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE agents (
  id          TEXT PRIMARY KEY CHECK (id <> ''),
  name        TEXT    NOT NULL,
  pool        TEXT    NOT NULL CHECK (pool <> ''),
  untrusted   INTEGER NOT NULL CHECK (untrusted IN (0, 1)),
  public_key  BLOB    NOT NULL UNIQUE,
  facts       TEXT,
  build       TEXT    NOT NULL,
  state       TEXT    NOT NULL CHECK (state IN ('online', 'stalled', 'offline')),
  enrolled_at INTEGER NOT NULL,
  seen_at     INTEGER NOT NULL,
  revoked     INTEGER NOT NULL CHECK (revoked IN (0, 1))
) STRICT;

CREATE TABLE join_tokens (
  hash       BLOB PRIMARY KEY CHECK (length(hash) = 32),
  pool       TEXT    NOT NULL CHECK (pool <> ''),
  untrusted  INTEGER NOT NULL CHECK (untrusted IN (0, 1)),
  expires_at INTEGER NOT NULL,
  used_at    INTEGER,
  used_by    TEXT,
  CHECK ((used_at IS NULL) = (used_by IS NULL))
) STRICT;

CREATE TABLE attempts (
  id          TEXT PRIMARY KEY CHECK (id <> ''),
  run_id      TEXT    NOT NULL,
  task        TEXT    NOT NULL,
  agent_id    TEXT    NOT NULL REFERENCES agents (id),
  incarnation INTEGER NOT NULL CHECK (incarnation >= 1),
  epoch       INTEGER NOT NULL CHECK (epoch >= 1),
  state       TEXT    NOT NULL CHECK (state IN ('offered', 'running', 'done', 'declined', 'lost')),
  outcome     TEXT CHECK (outcome IN ('success', 'failure', 'error', 'timeout', 'cancelled', 'not_needed')),
  reason      TEXT    NOT NULL,
  exit        INTEGER,
  log_bytes   INTEGER NOT NULL CHECK (log_bytes >= 0),
  offered_at  INTEGER NOT NULL,
  started_at  INTEGER,
  finished_at INTEGER,
  FOREIGN KEY (run_id, task) REFERENCES tasks (run_id, name),
  UNIQUE (run_id, task, epoch),
  CHECK ((finished_at IS NOT NULL) = (state IN ('done', 'declined', 'lost'))),
  CHECK ((outcome IS NOT NULL) = (state = 'done'))
) STRICT;

-- At most one attempt of a task is under way.
CREATE UNIQUE INDEX attempts_open ON attempts (run_id, task) WHERE state IN ('offered', 'running');
CREATE INDEX attempts_agent ON attempts (agent_id, run_id);

CREATE TABLE commits (
  repo        TEXT    NOT NULL,
  commit_id   TEXT    NOT NULL CHECK (commit_id <> ''),
  ref         TEXT    NOT NULL,
  base        TEXT    NOT NULL,
  author      TEXT    NOT NULL,
  subject     TEXT    NOT NULL,
  diagnostics TEXT,
  live        INTEGER NOT NULL CHECK (live IN (0, 1)),
  seen_at     INTEGER NOT NULL,
  PRIMARY KEY (commit_id, repo, ref)
) STRICT;

-- One configuration of a repository is in force.
CREATE UNIQUE INDEX commits_live ON commits (repo) WHERE live = 1;
CREATE INDEX commits_seen ON commits (seen_at);

CREATE TABLE verdicts (
  commit_id   TEXT NOT NULL CHECK (commit_id <> ''),
  composition TEXT NOT NULL CHECK (composition <> ''),
  ref         TEXT NOT NULL,
  kind        TEXT NOT NULL CHECK (kind <> ''),
  outcome     TEXT NOT NULL CHECK (outcome IN ('run', 'skipped', 'rejected')),
  sentence    TEXT NOT NULL,
  run_id      TEXT REFERENCES runs (id) DEFERRABLE INITIALLY DEFERRED,
  PRIMARY KEY (commit_id, composition, ref, kind)
) STRICT, WITHOUT ROWID;

CREATE TABLE refs (
  repo      TEXT NOT NULL,
  ref       TEXT NOT NULL CHECK (ref <> ''),
  commit_id TEXT NOT NULL CHECK (commit_id <> ''),
  PRIMARY KEY (repo, ref)
) STRICT, WITHOUT ROWID;

-- How far the changes were followed for runs that others run after.
CREATE TABLE followed (
  repo TEXT PRIMARY KEY,
  seq  INTEGER NOT NULL CHECK (seq >= 0)
) STRICT, WITHOUT ROWID;

-- Until when the firings of each cron trigger that is in force have been seen to.
CREATE TABLE firings (
  repo        TEXT    NOT NULL,
  composition TEXT    NOT NULL,
  schedule    TEXT    NOT NULL,
  zone        TEXT    NOT NULL,
  seen_to     INTEGER NOT NULL,
  PRIMARY KEY (repo, composition, schedule, zone)
) STRICT, WITHOUT ROWID;

CREATE TABLE repository_problems (
  repo     TEXT PRIMARY KEY,
  sentence TEXT NOT NULL CHECK (sentence <> '')
) STRICT, WITHOUT ROWID;

-- What the forge should show. The latest wins; what was posted is remembered by digest.
CREATE TABLE forge_desired (
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
  PRIMARY KEY (commit_id, context)
) STRICT;

-- Proposed changes: for each branch the last. The body is what people see of it, as
-- JSON; noted is the digest of the text that its head has as a note, merged the commit
-- that merged it.
CREATE TABLE proposals (
  repo       TEXT    NOT NULL,
  branch     TEXT    NOT NULL CHECK (branch <> ''),
  state      TEXT    NOT NULL CHECK (state IN ('open', 'merged', 'closed')),
  head       TEXT    NOT NULL CHECK (head <> ''),
  body       TEXT    NOT NULL,
  noted      TEXT    NOT NULL,
  merged     TEXT    CHECK ((merged IS NOT NULL) = (state = 'merged')),
  changed_at INTEGER NOT NULL,
  PRIMARY KEY (repo, branch)
) STRICT, WITHOUT ROWID;

CREATE INDEX proposals_head ON proposals (head);
CREATE INDEX proposals_merged ON proposals (merged) WHERE merged IS NOT NULL;
CREATE INDEX proposals_changed ON proposals (changed_at);

-- The head of each branch that was looked at for what it proposes. The branch '' says
-- that they were looked at for the first time.
CREATE TABLE looked (
  repo   TEXT NOT NULL,
  branch TEXT NOT NULL,
  head   TEXT NOT NULL,
  PRIMARY KEY (repo, branch)
) STRICT, WITHOUT ROWID;

-- Reviews as they were first seen: a ref, the object it pointed at, and the plan that
-- there was to see. What is void stays void while the ref stays.
CREATE TABLE reviews (
  repo    TEXT    NOT NULL,
  ref     TEXT    NOT NULL CHECK (ref <> ''),
  object  TEXT    NOT NULL CHECK (object <> ''),
  head    TEXT    NOT NULL,
  plan    TEXT    NOT NULL,
  void    TEXT    NOT NULL,
  seen_at INTEGER NOT NULL,
  PRIMARY KEY (repo, ref, object)
) STRICT, WITHOUT ROWID;

-- Requests that were answered, by the object that asked, so that none is carried
-- out twice.
CREATE TABLE requests (
  repo     TEXT    NOT NULL,
  object   TEXT    NOT NULL CHECK (object <> ''),
  ref      TEXT    NOT NULL,
  target   TEXT    NOT NULL,
  answer   TEXT    NOT NULL CHECK (answer <> ''),
  told     INTEGER NOT NULL CHECK (told IN (0, 1)),
  done_at  INTEGER NOT NULL,
  PRIMARY KEY (repo, object)
) STRICT, WITHOUT ROWID;

CREATE INDEX forge_due ON forge_desired (next_at) WHERE posted_digest <> digest;

-- What may never happen, whatever statement asks for it.

-- +goose StatementBegin
CREATE TRIGGER changes_gapless BEFORE INSERT ON changes
WHEN NEW.seq <> (SELECT seq + 1 FROM meta)
BEGIN SELECT RAISE(ABORT, 'the sequence of changes has no gaps'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER changes_counted AFTER INSERT ON changes
BEGIN UPDATE meta SET seq = NEW.seq; END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER changes_fixed BEFORE UPDATE ON changes
BEGIN SELECT RAISE(ABORT, 'a change is written once'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER changes_kept BEFORE DELETE ON changes
BEGIN SELECT RAISE(ABORT, 'a change is kept'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER meta_rises BEFORE UPDATE ON meta
WHEN NEW.store_id <> OLD.store_id OR NEW.incarnation < OLD.incarnation
  OR NEW.seq NOT IN (OLD.seq, OLD.seq + 1)
BEGIN SELECT RAISE(ABORT, 'the record keeps its identity, and its numbers rise'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER counters_rise BEFORE UPDATE ON counters
WHEN NEW.last <> OLD.last + 1
BEGIN SELECT RAISE(ABORT, 'a run number is never used again'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER runs_terminal BEFORE UPDATE ON runs
WHEN OLD.finished_at IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'the outcome of a run is for ever'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER runs_made BEFORE UPDATE ON runs
WHEN NEW.run_key <> OLD.run_key OR NEW.digest <> OLD.digest OR NEW.commit_id <> OLD.commit_id OR NEW.draft > OLD.draft
  OR OLD.draft = 0 AND (NEW.params IS NOT OLD.params OR NEW.grp <> OLD.grp)
BEGIN SELECT RAISE(ABORT, 'what a run was made with stays'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER runs_complete BEFORE UPDATE ON runs
WHEN NEW.finished_at IS NOT NULL
  AND EXISTS (SELECT 1 FROM tasks WHERE run_id = NEW.id AND finished_at IS NULL)
BEGIN SELECT RAISE(ABORT, 'a run does not end before its tasks'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER tasks_terminal BEFORE UPDATE ON tasks
WHEN OLD.finished_at IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'the outcome of a task is for ever'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER tasks_epoch BEFORE UPDATE ON tasks
WHEN NEW.epoch <> OLD.epoch + (NEW.state = 'offered' AND OLD.state <> 'offered')
BEGIN SELECT RAISE(ABORT, 'a task''s epoch rises by one with each offer, and only then'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER tasks_offer BEFORE UPDATE ON tasks
WHEN NEW.state = 'offered' AND OLD.state <> 'offered' AND (OLD.state <> 'ready'
  OR EXISTS (SELECT 1 FROM runs WHERE id = NEW.run_id AND finished_at IS NOT NULL))
BEGIN SELECT RAISE(ABORT, 'only a ready task of a run that has not ended is offered'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER attempts_rise BEFORE INSERT ON attempts
WHEN NEW.epoch <= (SELECT max(epoch) FROM attempts WHERE run_id = NEW.run_id AND task = NEW.task)
BEGIN SELECT RAISE(ABORT, 'the epochs of a task''s attempts rise'); END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE TRIGGER attempts_terminal BEFORE UPDATE ON attempts
WHEN OLD.state IN ('done', 'declined') OR (OLD.state = 'lost' AND NEW.state <> 'done')
BEGIN SELECT RAISE(ABORT, 'the end of an attempt is for ever'); END;
-- +goose StatementEnd
