package store

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

const defectAdvice = "this is a defect of the program: keep a backup of the folder and report it with this line"

// recordRules are the invariants of the record that one statement decides.
var recordRules = []rule{
	{
		name: "I1", what: "more than one attempt of a task is under way", next: defectAdvice,
		query: `SELECT run_id || ' ' || task || ': ' || group_concat(id, ', ') FROM attempts
			WHERE +state IN ('offered', 'running') GROUP BY run_id, task HAVING count(*) > 1`,
	}, {
		name: "I1", what: "a task that an agent has is not what its attempt says", next: defectAdvice,
		query: `SELECT t.run_id || ' ' || t.name || ' is ' || t.state FROM tasks t LEFT JOIN attempts a ON a.id = t.attempt_id
			WHERE t.state IN ('offered', 'running', 'in_doubt') AND NOT t.built_in
				AND (a.id IS NULL OR a.run_id <> t.run_id OR a.task <> t.name OR a.epoch <> t.epoch OR a.agent_id <> t.agent_id
					OR a.state <> CASE t.state WHEN 'in_doubt' THEN 'lost' ELSE t.state END)`,
	}, {
		name: "I1", what: "an attempt is under way and its task is not", next: defectAdvice,
		query: `SELECT a.run_id || ' ' || a.task || ': ' || a.id FROM attempts a JOIN tasks t ON t.run_id = a.run_id AND t.name = a.task
			WHERE a.state IN ('offered', 'running') AND (t.attempt_id IS NOT a.id OR t.state <> a.state)`,
	}, {
		name: "I2", what: "the tokens of a task's attempts do not rise", next: defectAdvice,
		// In the order in which they were written: clocks may be set.
		query: `SELECT run_id || ' ' || task || ': ' || id FROM (
				SELECT id, run_id, task, epoch, incarnation, lag(epoch) OVER w AS e, lag(incarnation) OVER w AS i
				FROM attempts WINDOW w AS (PARTITION BY run_id, task ORDER BY rowid))
			WHERE epoch <= e OR incarnation < i`,
	}, {
		name: "I2", what: "a task has another epoch than its newest attempt", next: defectAdvice,
		query: `SELECT t.run_id || ' ' || t.name FROM tasks t
			WHERE t.epoch <> coalesce((SELECT max(a.epoch) FROM attempts a WHERE a.run_id = t.run_id AND a.task = t.name), 0)`,
	}, {
		name: "I3", what: "a task has ended without a result and without a reason", next: defectAdvice,
		query: `SELECT t.run_id || ' ' || t.name || ' is ' || t.state FROM tasks t LEFT JOIN attempts a ON a.id = t.attempt_id
			WHERE t.finished_at IS NOT NULL AND NOT t.built_in AND t.reason = '' AND a.state IS NOT 'done'`,
	}, {
		name: "I3", what: "a task was tried again after it had succeeded", next: defectAdvice,
		query: `SELECT a.run_id || ' ' || a.task || ': ' || a.id FROM attempts a JOIN attempts b
				ON b.run_id = a.run_id AND b.task = a.task AND b.epoch > a.epoch
			WHERE a.state = 'done' AND a.outcome = 'success'`,
	}, {
		name: "I6", what: "a run is of a commit that was never recorded", warning: true,
		next: "none is needed when it is of a pull request, whose head may be on no branch that is followed",
		query: `SELECT r.id || ' of commit ' || r.commit_id FROM runs r
			WHERE NOT EXISTS (SELECT 1 FROM commits c WHERE c.commit_id = r.commit_id)`,
	}, {
		name: "I7", what: "a run has ended before its tasks", next: defectAdvice,
		query: `SELECT r.id FROM runs r WHERE r.finished_at IS NOT NULL
			AND EXISTS (SELECT 1 FROM tasks t WHERE t.run_id = r.id AND t.finished_at IS NULL)`,
	}, {
		name: "I8", what: "a status is not at the forge after many tries", warning: true,
		next: "see that the forge answers and that the token may write statuses; it is tried again by itself",
		query: `SELECT commit_id || ' ' || context || ': ' || problem FROM forge_desired
			WHERE posted_digest <> digest AND tries >= 10`,
	}, {
		name: "I9", what: "the sequence of changes has a gap, or does not end where it should", next: restoreAdvice,
		query: `SELECT 'changes ' || coalesce(min(c.seq), 0) || ' to ' || coalesce(max(c.seq), 0) || ', ' || count(c.seq) || ' of them; newest ' || m.seq
			FROM meta m LEFT JOIN changes c GROUP BY m.one
			HAVING coalesce(max(c.seq), 0) <> m.seq OR count(c.seq) <> coalesce(max(c.seq) - min(c.seq) + 1, 0)`,
	}, {
		name: "I12", what: "runs of one group are under way at the same time", next: defectAdvice,
		query: `SELECT r.grp || ': ' || group_concat(DISTINCT r.id) FROM runs r JOIN tasks t ON t.run_id = r.id
			WHERE r.finished_at IS NULL AND r.grp <> '' AND r.cancel = 0 AND t.state IN ('offered', 'running') AND NOT t.built_in
			GROUP BY r.grp HAVING count(DISTINCT r.id) > 1`,
	},
}

// record checks maestro.db.
func (c *fsck) record() error {
	if c.report.Broken() { // more would be said of the same damage
		return nil
	}
	if err := c.meta(); err != nil {
		return err
	}
	if err := c.check(recordRules); err != nil {
		return err
	}
	if err := c.references(); err != nil {
		return err
	}
	if c.r.step < c.r.newest {
		c.report.Findings = append(c.report.Findings, Finding{
			Rule: "form", Warning: true, What: "the record has the form of an earlier version, and its runs were not looked at one by one",
			Where: recordName, Next: "none is needed: a server of this version brings it up to date when it starts",
		})
	} else if err := c.runs(); err != nil {
		return err
	}
	type length struct {
		id    pipeline.AttemptID
		bytes int64
	}
	list, err := query(c.ctx, c.r.conn, func(row scanner) (l length, err error) {
		err = row.Scan(&l.id, &l.bytes)
		return l, err
	}, `SELECT id, log_bytes FROM attempts WHERE state = 'done' AND log_bytes > 0`)
	for _, l := range list {
		c.done[l.id] = l.bytes
	}
	return err
}

// fsckPage is how many runs are in memory at once.
const fsckPage = 500

// runs checks what takes a whole run and its composition to decide. It reads of each only
// what it goes by: there may be a million tasks.
func (c *fsck) runs() error {
	if err := c.agents(); err != nil {
		return err
	}
	known := map[pipeline.Digest]*pipeline.Composition{}
	for after := pipeline.RunID(""); ; {
		runs, err := query(c.ctx, c.r.conn, func(row scanner) (r *pipeline.Run, err error) {
			r = new(pipeline.Run)
			err = row.Scan(&r.ID, &r.Digest, &r.State, &r.Draft)
			return r, err
		}, `SELECT id, digest, state, draft FROM runs WHERE id > ? ORDER BY id LIMIT ?`, string(after), fsckPage)
		if err != nil || len(runs) == 0 {
			return err
		}
		last := runs[len(runs)-1].ID
		if err := c.tasks(runs, after, last); err != nil {
			return err
		}
		for _, r := range runs {
			if known[r.Digest] == nil {
				if len(known) >= mostSpecs {
					clear(known)
				}
				if known[r.Digest], err = c.composition(r.Digest); err != nil {
					return err
				}
			}
			if of := known[r.Digest]; of != nil { // the references tell of one that is not there
				c.run(r, of)
			}
		}
		c.report.Runs += len(runs)
		after = last
	}
}

// tasks adds the tasks of the runs, which are all that there are after one up to another.
func (c *fsck) tasks(runs []*pipeline.Run, after, last pipeline.RunID) error {
	of := make(map[pipeline.RunID]*pipeline.Run, len(runs))
	for _, r := range runs {
		of[r.ID] = r
	}
	_, err := query(c.ctx, c.r.conn, func(row scanner) (struct{}, error) {
		var t pipeline.RunTask
		var id pipeline.RunID
		var started bool
		err := row.Scan(&id, &t.Name, &t.State, &t.Epoch, &started, &t.Agent)
		if started {
			t.StartedAt = time.Unix(0, 0) // when does not matter
		}
		if r := of[id]; r != nil {
			r.Tasks = append(r.Tasks, t)
		}
		return struct{}{}, err
	}, `SELECT run_id, name, state, epoch, started_at IS NOT NULL, coalesce(agent_id, '') FROM tasks WHERE run_id > ? AND run_id <= ?`, string(after), string(last))
	return err
}

// composition is nil when it is not there.
func (c *fsck) composition(d pipeline.Digest) (*pipeline.Composition, error) {
	out := new(pipeline.Composition)
	err := c.r.conn.QueryRowContext(c.ctx, `SELECT body FROM compositions WHERE digest = ?`, string(d)).Scan(intoJSON{out})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("composition %s: %w", d, err)
	}
	return out, nil
}

// agents reads the agents that have a task.
func (c *fsck) agents() error {
	c.hosts = map[pipeline.AgentID]*pipeline.Host{}
	_, err := query(c.ctx, c.r.conn, func(row scanner) (struct{}, error) {
		var id pipeline.AgentID
		var facts sql.NullString
		h := new(pipeline.Host)
		err := row.Scan(&id, &h.Pool, &h.Untrusted, &facts)
		if err == nil && facts.Valid {
			h.Facts, err = pipeline.DecodeJSON([]byte(facts.String))
		}
		c.hosts[id] = h
		return struct{}{}, err
	}, `SELECT id, pool, untrusted, facts FROM agents
		WHERE id IN (SELECT agent_id FROM attempts WHERE state IN ('offered', 'running'))`)
	return err
}

// fits warns of a task that its agent is not for, as far as that can be known: the record
// has neither the facts nor the configuration in force of when it was offered.
func (c *fsck) fits(r *pipeline.Run, t *pipeline.RunTask) {
	h := c.hosts[t.Agent]
	if h == nil { // the references tell of one that is not there
		return
	}
	if lacks := t.Spec.Lacks(h); len(lacks) > 0 {
		c.report.Findings = append(c.report.Findings, Finding{
			Rule: "I10", Warning: true, What: "a task is on an agent that lacks what it asks for: " + strings.Join(lacks, "; "),
			Where: fmt.Sprintf("%s %s on %s", r.ID, t.Name, t.Agent),
			Next:  "none is needed when the agent, or what the task asks for, has changed since it was offered",
		})
	}
}

func (c *fsck) run(r *pipeline.Run, of *pipeline.Composition) {
	for i := range r.Tasks {
		t := &r.Tasks[i]
		spec := of.Task(t.Name)
		if spec == nil {
			c.find("I7", "a run has a task that its composition does not", fmt.Sprintf("%s %s", r.ID, t.Name), defectAdvice)
			return
		}
		t.Spec = *spec
	}
	if want := pipeline.RunState(r.Tasks); want != r.State && !r.Draft {
		c.find("I7", fmt.Sprintf("a run is %s, and its tasks make it %s", r.State, want), string(r.ID), defectAdvice)
	}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.Spec.BuiltIn() || t.State != pipeline.Offered && t.State != pipeline.Running {
			continue
		}
		c.fits(r, t)
		for _, name := range t.Spec.Needs {
			need := r.Task(name)
			held := need != nil && need.Spec.Gate != nil && need.State != pipeline.Success && t.Spec.When == pipeline.OnSuccess
			if need == nil || !need.State.Terminal() || held && !need.Tolerated() {
				c.find("I5", fmt.Sprintf("a task was given to an agent before %s, which it needs, had let it", name),
					fmt.Sprintf("%s %s", r.ID, t.Name), defectAdvice)
			}
		}
	}
}
