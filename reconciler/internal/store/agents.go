package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// CreateJoinToken keeps the hash of a token with which one agent may enrol, into
// the pool and with the trust given, until it expires.
func (db *DB) CreateJoinToken(ctx context.Context, hash [32]byte, pool pipeline.PoolName, untrusted bool, expires time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		_, err := tx.exec(`INSERT INTO join_tokens (hash, pool, untrusted, expires_at) VALUES (?, ?, ?, ?)`,
			hash[:], string(pool), untrusted, expires.UnixNano())
		if isConstraint(err, sqlite3.ErrConstraintPrimaryKey) {
			return fault.New(fault.Conflict, "create a join token: this one was given out before")
		}
		if err != nil {
			return fmt.Errorf("create a join token for pool %s: %w", pool, err)
		}
		return nil
	})
}

// Enrol makes the owner of a.PublicKey an agent and returns it as recorded. Pool
// and trust come from the token, the identity from the key; of a only Name, Build,
// Facts and PublicKey are read. The token is used up by the one statement that
// finds it good. A key that is known already moves to the token's pool. A token
// that is unknown, used or expired, and a key that was revoked, are fault.Invalid
// with a sentence each; then nothing changes.
func (db *DB) Enrol(ctx context.Context, tokenHash [32]byte, a pipeline.Agent, now time.Time) (pipeline.Agent, error) {
	a.ID = pipeline.AgentIDOf(a.PublicKey)
	err := db.Write(ctx, func(tx *Tx) error {
		if err := tx.useToken(tokenHash, &a, now); err != nil {
			return err
		}
		facts, err := rawJSON(a.Facts)
		if err != nil {
			return fault.New(fault.Invalid, "facts: %w", err)
		}
		n, err := tx.exec(`INSERT INTO agents (id, name, pool, untrusted, public_key, facts, build, state, enrolled_at, seen_at, revoked)
			VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'offline', ?8, ?8, 0)
			ON CONFLICT (id) DO UPDATE SET name = ?2, pool = ?3, untrusted = ?4, facts = coalesce(?6, facts), build = ?7, enrolled_at = ?8, seen_at = ?8
			WHERE public_key = ?5 AND revoked = 0`,
			string(a.ID), a.Name, string(a.Pool), a.Untrusted, a.PublicKey, facts, a.Build, now.UnixNano())
		if err != nil {
			return err
		}
		if n != 1 {
			return fault.New(fault.Invalid, "the key of this agent was revoked: remove its identity, so that it makes a new one, and invite it again")
		}
		if err := tx.change(pipeline.Change{Kind: pipeline.ChangeAgent, Agent: a.ID, Reason: "enrolled in pool " + string(a.Pool)}); err != nil {
			return err
		}
		a, err = tx.agent(a.ID)
		return err
	})
	if err != nil {
		return pipeline.Agent{}, fmt.Errorf("enrol agent %s: %w", a.ID, err)
	}
	return a, nil
}

// useToken gives a the pool and the trust of the token, which it uses up.
func (tx *Tx) useToken(hash [32]byte, a *pipeline.Agent, now time.Time) error {
	err := tx.scan(`UPDATE join_tokens SET used_at = ?2, used_by = ?3
		WHERE hash = ?1 AND used_at IS NULL AND expires_at > ?2 RETURNING pool, untrusted`,
		[]any{hash[:], now.UnixNano(), string(a.ID)}, &a.Pool, &a.Untrusted)
	if err == nil {
		tx.changed = true
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	var used bool
	err = tx.scan(`SELECT used_at IS NOT NULL FROM join_tokens WHERE hash = ?`, []any{hash[:]}, &used)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return fault.New(fault.Invalid, "this join token is not known here: ask for a new invitation, and check the address of the server")
	case err != nil:
		return err
	case used:
		return fault.New(fault.Invalid, "this join token was used already: each admits one agent, ask for a new invitation")
	}
	return fault.New(fault.Invalid, "this join token has expired: ask for a new invitation")
}

const agentColumns = `id, name, pool, untrusted, public_key, facts, build, state, enrolled_at, seen_at, revoked, pause`

func scanAgent(row scanner) (pipeline.Agent, error) {
	var a pipeline.Agent
	err := row.Scan(&a.ID, &a.Name, &a.Pool, &a.Untrusted, &a.PublicKey, raw(&a.Facts), &a.Build, &a.State,
		intoTime{&a.EnrolledAt}, intoTime{&a.SeenAt}, &a.Revoked, intoJSON{&a.Pause})
	return a, err
}

func (tx *Tx) agent(id pipeline.AgentID) (pipeline.Agent, error) {
	a, err := scanAgent(tx.tx.QueryRow(`SELECT `+agentColumns+` FROM agents WHERE id = ?`, string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return a, fault.New(fault.NotFound, "agent %s is not enrolled here", id)
	}
	if err != nil {
		return a, tx.fail(tx.db.file.explain(err))
	}
	return a, nil
}

// SaveAgent writes Name, Build, Facts, State and SeenAt of an enrolled agent, and
// appends a change row when anything but SeenAt is different. An agent that is not
// enrolled is a fault.NotFound; facts that are not JSON are fault.Invalid. After
// either nothing was written, and the transaction may go on.
func (tx *Tx) SaveAgent(a pipeline.Agent) error {
	facts, err := rawJSON(a.Facts)
	if err != nil {
		return fault.New(fault.Invalid, "save agent %s: facts: %w", a.ID, err)
	}
	was, err := tx.agent(a.ID)
	if err != nil {
		return fmt.Errorf("save agent %s: %w", a.ID, err)
	}
	if _, err := tx.exec(`UPDATE agents SET name = ?, build = ?, facts = ?, state = ?, seen_at = max(seen_at, ?) WHERE id = ?`,
		a.Name, a.Build, facts, string(a.State), a.SeenAt.UnixNano(), string(a.ID)); err != nil {
		return fmt.Errorf("save agent %s: %w", a.ID, err)
	}
	if was.Name == a.Name && was.Build == a.Build && string(was.Facts) == string(a.Facts) && was.State == a.State {
		return nil
	}
	return tx.change(pipeline.Change{Kind: pipeline.ChangeAgent, Agent: a.ID, Reason: string(a.State)})
}

// PauseAgent keeps new work from an agent, or with nil gives it work again. An agent
// that is not enrolled is a fault.NotFound; then nothing was written, and the
// transaction may go on.
func (tx *Tx) PauseAgent(id pipeline.AgentID, p *pipeline.Pause) error {
	if _, err := tx.agent(id); err != nil {
		return fmt.Errorf("pause agent %s: %w", id, err)
	}
	pause, err := orNone(p)
	if err != nil {
		return tx.fail(err)
	}
	if _, err := tx.exec(`UPDATE agents SET pause = ? WHERE id = ?`, pause, string(id)); err != nil {
		return fmt.Errorf("pause agent %s: %w", id, err)
	}
	reason := "takes new work"
	if p != nil {
		reason = p.String()
	}
	return tx.change(pipeline.Change{Kind: pipeline.ChangeAgent, Agent: id, Reason: reason})
}

// SetAgentState writes how agents look, in one transaction, with a change row for
// each that looked different. Agents that are not enrolled are left out.
func (db *DB) SetAgentState(ctx context.Context, state pipeline.AgentState, ids ...pipeline.AgentID) error {
	return db.Write(ctx, func(tx *Tx) error {
		for _, id := range ids {
			n, err := tx.exec(`UPDATE agents SET state = ?1 WHERE id = ?2 AND state <> ?1`, string(state), string(id))
			if err == nil && n > 0 {
				err = tx.change(pipeline.Change{Kind: pipeline.ChangeAgent, Agent: id, Reason: string(state)})
			}
			if err != nil {
				return fmt.Errorf("agent %s is %s: %w", id, state, err)
			}
		}
		return nil
	})
}

// Admitted tells of each agent that ever enrolled whether it may connect: those that
// were revoked may not.
func (db *DB) Admitted(ctx context.Context) (map[pipeline.AgentID]bool, error) {
	type standing struct {
		id      pipeline.AgentID
		revoked bool
	}
	list, err := query(ctx, db.file.reader, func(row scanner) (s standing, err error) {
		err = row.Scan(&s.id, &s.revoked)
		return s, err
	}, `SELECT id, revoked FROM agents`)
	out := make(map[pipeline.AgentID]bool, len(list))
	for _, s := range list {
		out[s.id] = !s.revoked
	}
	return out, db.read(err, "who may connect")
}

// TouchAgents writes when agents were last heard of, in one transaction that
// wakes no watcher. A time before the one recorded changes nothing.
func (db *DB) TouchAgents(ctx context.Context, seen map[pipeline.AgentID]time.Time) error {
	return db.Write(ctx, func(tx *Tx) error {
		for id, at := range seen {
			if _, err := tx.exec(`UPDATE agents SET seen_at = ?1 WHERE id = ?2 AND seen_at < ?1`, at.UnixNano(), string(id)); err != nil {
				return fmt.Errorf("touch agent %s: %w", id, err)
			}
		}
		tx.changed = false
		return nil
	})
}

// RevokeAgent ends an agent's right to connect, for ever: its key cannot enrol
// again. To revoke it twice changes nothing; one that is not there is a fault.NotFound.
func (db *DB) RevokeAgent(ctx context.Context, id pipeline.AgentID) error {
	return db.Write(ctx, func(tx *Tx) error {
		a, err := tx.agent(id)
		if err == nil && !a.Revoked {
			if _, err = tx.exec(`UPDATE agents SET revoked = 1 WHERE id = ?`, string(id)); err == nil {
				err = tx.change(pipeline.Change{Kind: pipeline.ChangeAgent, Agent: id, Reason: "revoked"})
			}
		}
		if err != nil {
			return fmt.Errorf("revoke agent %s: %w", id, err)
		}
		return nil
	})
}

// disconnectAgents is for the start, when nobody is connected.
func (db *DB) disconnectAgents(ctx context.Context) error {
	ids, err := query(ctx, db.file.reader, scanOne[pipeline.AgentID],
		`SELECT id FROM agents WHERE state <> 'offline' ORDER BY id`)
	if err != nil || len(ids) == 0 {
		return err
	}
	return db.SetAgentState(ctx, pipeline.AgentOffline, ids...)
}

// Agents returns every agent that ever enrolled, sorted by pool and name, with the
// unfinished runs that have tasks on it.
func (db *DB) Agents(ctx context.Context) (agents []pipeline.Agent, err error) {
	err = db.snapshot(ctx, func(q querier) error {
		agents, err = query(ctx, q, scanAgent, `SELECT `+agentColumns+` FROM agents ORDER BY pool, name, id`)
		if err != nil {
			return err
		}
		return addRuns(ctx, q, agents)
	})
	return agents, db.read(err, "agents")
}

// Agent returns one agent as Agents does; one that is not there is a fault.NotFound.
func (db *DB) Agent(ctx context.Context, id pipeline.AgentID) (a pipeline.Agent, err error) {
	err = db.snapshot(ctx, func(q querier) error {
		one, err := query(ctx, q, scanAgent, `SELECT `+agentColumns+` FROM agents WHERE id = ?`, string(id))
		if err != nil {
			return err
		}
		if len(one) == 0 {
			return fault.New(fault.NotFound, "agent %s is not enrolled here", id)
		}
		err = addRuns(ctx, q, one)
		a = one[0]
		return err
	})
	return a, db.read(err, "agent %s", id)
}

// addRuns fills in Runs: those with a task that an agent holds or may still hold.
func addRuns(ctx context.Context, q querier, agents []pipeline.Agent) error {
	type held struct {
		agent pipeline.AgentID
		run   pipeline.RunID
	}
	list, err := query(ctx, q, func(row scanner) (h held, err error) {
		err = row.Scan(&h.agent, &h.run)
		return h, err
	},
		`SELECT DISTINCT t.agent_id, t.run_id FROM runs r CROSS JOIN tasks t ON t.run_id = r.id
		WHERE r.finished_at IS NULL AND t.agent_id IS NOT NULL AND t.state IN ('offered', 'running', 'in_doubt') ORDER BY 2`)
	if err != nil {
		return err
	}
	runs := map[pipeline.AgentID][]pipeline.RunID{}
	for _, h := range list {
		runs[h.agent] = append(runs[h.agent], h.run)
	}
	for i := range agents {
		agents[i].Runs = runs[agents[i].ID]
	}
	return nil
}
