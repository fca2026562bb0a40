-- +goose Up

-- The run that a run goes on from, and the one that the result of a task is from, as JSON.
ALTER TABLE runs ADD COLUMN resumes TEXT;
ALTER TABLE tasks ADD COLUMN reused TEXT;
-- Why a person asked for this task alone to stop, '' when nobody did.
ALTER TABLE tasks ADD COLUMN cancel TEXT NOT NULL DEFAULT '';
