-- +goose Up

-- Why the agent gets no new work, as JSON; NULL when it does.
ALTER TABLE agents ADD COLUMN pause TEXT;
