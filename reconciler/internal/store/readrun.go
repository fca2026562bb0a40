package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const runColumns = `r.id, r.composition, r.number, r.run_key, r.digest, r.commit_id, r.ref, r.event, r.params, r.priority,
	r.state, r.reason, r.cancel, r.created_at, r.started_at, r.finished_at, r.depth, r.draft, r.grp, r.behind, r.outputs, r.version, r.resumes`

func scanRun(row scanner) (*pipeline.Run, error) {
	r := new(pipeline.Run)
	err := row.Scan(&r.ID, &r.Composition, &r.Number, &r.Key, &r.Digest, &r.Commit, &r.Ref, intoJSON{&r.Event}, raw(&r.Params),
		&r.Priority, &r.State, &r.Reason, &r.Cancel, intoTime{&r.CreatedAt}, intoTime{&r.StartedAt}, intoTime{&r.FinishedAt},
		&r.Depth, &r.Draft, &r.Group, intoJSON{&r.Behind}, raw(&r.Outputs), &r.Version, intoJSON{&r.Resumes})
	return r, err
}

const taskColumns = `t.run_id, t.name, t.idx, t.state, t.reason, t.epoch, t.failures, coalesce(t.attempt_id, ''), coalesce(t.agent_id, ''),
	t.slot, t.outputs, t.records, t.links, t.exit, t.ready_at, t.started_at, t.finished_at, t.not_before,
	coalesce(t.child, ''), t.message, t.reviews, t.reused, t.cancel`

// taskOf is a task and the run it belongs to.
type taskOf struct {
	run  pipeline.RunID
	task pipeline.RunTask
}

func scanTask(row scanner) (taskOf, error) {
	var of taskOf
	t := &of.task
	err := row.Scan(&of.run, &t.Name, &t.Index, &t.State, &t.Reason, &t.Epoch, &t.Failures, &t.Attempt, &t.Agent, &t.Slot,
		raw(&t.Outputs), raw(&t.Records), intoJSON{&t.Links}, &t.Exit, intoTime{&t.ReadyAt}, intoTime{&t.StartedAt}, intoTime{&t.FinishedAt}, intoTime{&t.NotBefore},
		&t.Child, &t.Message, intoJSON{&t.Reviews}, intoJSON{&t.Reused}, &t.Cancel)
	return of, err
}

// Run returns a run with its tasks and their specs; one that is not there is a
// fault.NotFound. Specs are shared with other results and must not be changed.
func (db *DB) Run(ctx context.Context, id pipeline.RunID) (*pipeline.Run, error) {
	r, err := db.oneRun(ctx, `r.id = ?`, string(id))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "run %s is not in the record", id)
	}
	return r, db.read(err, "run %s", id)
}

// RunByNumber is Run for the nth run of a composition.
func (db *DB) RunByNumber(ctx context.Context, c pipeline.CompositionName, n int) (*pipeline.Run, error) {
	r, err := db.oneRun(ctx, `r.composition = ? AND r.number = ?`, string(c), n)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "run %d of %s is not in the record", n, c)
	}
	return r, db.read(err, "run %d of %s", n, c)
}

// RunByKey returns the run that was made for an event, with tasks and specs. When there
// is none, the error is a fault.NotFound.
func (db *DB) RunByKey(ctx context.Context, key pipeline.RunKey) (*pipeline.Run, error) {
	r, err := db.oneRun(ctx, `r.run_key = ?`, string(key))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "no run with key %s is in the record", key)
	}
	return r, db.read(err, "the run with key %s", key)
}

func (db *DB) oneRun(ctx context.Context, where string, args ...any) (r *pipeline.Run, err error) {
	err = db.snapshot(ctx, func(q querier) error {
		r, err = scanRun(q.QueryRowContext(ctx, `SELECT `+runColumns+` FROM runs r WHERE `+where, args...))
		if err != nil {
			return err
		}
		return db.addTasks(ctx, q, []*pipeline.Run{r}, `SELECT `+taskColumns+` FROM tasks t WHERE t.run_id = ? ORDER BY t.idx`, string(r.ID))
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// addTasks gives each run the tasks that the query finds, specs filled in.
func (db *DB) addTasks(ctx context.Context, q querier, runs []*pipeline.Run, text string, args ...any) error {
	tasks, err := query(ctx, q, scanTask, text, args...)
	if err != nil {
		return err
	}
	byID := make(map[pipeline.RunID]*pipeline.Run, len(runs))
	for _, r := range runs {
		byID[r.ID] = r
		r.Tasks = []pipeline.RunTask{}
	}
	for _, t := range tasks {
		if r := byID[t.run]; r != nil {
			r.Tasks = append(r.Tasks, t.task)
		}
	}
	for _, r := range runs {
		c, err := db.specs.get(ctx, q, r.Digest)
		if err != nil {
			return err
		}
		for i := range r.Tasks {
			if spec := c.Task(r.Tasks[i].Name); spec != nil {
				r.Tasks[i].Spec = *spec
			}
		}
	}
	return nil
}

// UnfinishedRuns returns every run that has not ended, with tasks and specs,
// oldest first. It takes no longer when many runs have ended.
func (db *DB) UnfinishedRuns(ctx context.Context) (runs []*pipeline.Run, err error) {
	err = db.snapshot(ctx, func(q querier) error {
		runs, err = query(ctx, q, scanRun, `SELECT `+runColumns+` FROM runs r WHERE r.finished_at IS NULL ORDER BY r.id`)
		if err != nil {
			return err
		}
		// CROSS JOIN keeps the planner from reading all tasks there ever were.
		return db.addTasks(ctx, q, runs, `SELECT `+taskColumns+` FROM runs r CROSS JOIN tasks t ON t.run_id = r.id
			WHERE r.finished_at IS NULL ORDER BY r.id, t.idx`)
	})
	return runs, db.read(err, "unfinished runs")
}

// Filter selects runs; fields that are zero select all.
type Filter struct {
	Composition pipeline.CompositionName
	State       pipeline.State
	Ref         pipeline.Ref
	Commit      pipeline.CommitID // that the run is about, of whichever repository
	Agent       pipeline.AgentID  // that was asked to do a task of the run
	// Before is a cursor: only runs older than this one.
	Before pipeline.RunID
	// Limit is at least 1.
	Limit int
	// Tasks asks for tasks and specs; without it Run.Tasks is nil.
	Tasks bool
}

// where returns the condition on r, its arguments, and the order.
func (f Filter) where() (text string, args []any) {
	var and []string
	add := func(cond string, arg any) { and, args = append(and, cond), append(args, arg) }
	order := "r.id"
	if f.Composition != "" {
		add("r.composition = ?", string(f.Composition))
		order = "r.number"
	}
	if f.State != "" {
		add("r.state = ?", string(f.State))
		if !f.State.Terminal() {
			and = append(and, "r.finished_at IS NULL") // names the index of the few
		}
	}
	if f.Ref != "" {
		add("r.ref = ?", string(f.Ref))
	}
	if f.Commit != "" {
		add("r.head = ?", string(f.Commit))
	}
	if f.Agent != "" {
		add("r.id IN (SELECT run_id FROM attempts WHERE agent_id = ?)", string(f.Agent))
	}
	if f.Before != "" && f.Composition != "" {
		add("r.number < (SELECT number FROM runs WHERE id = ?)", string(f.Before))
	} else if f.Before != "" {
		add("r.id < ?", string(f.Before))
	}
	text = " ORDER BY " + order + " DESC LIMIT ?"
	if len(and) > 0 {
		text = " WHERE " + strings.Join(and, " AND ") + text
	}
	return text, append(args, max(f.Limit, 1))
}

// Runs returns the runs that match, newest first, at most f.Limit.
func (db *DB) Runs(ctx context.Context, f Filter) (runs []*pipeline.Run, err error) {
	err = db.snapshot(ctx, func(q querier) error {
		where, args := f.where()
		runs, err = query(ctx, q, scanRun, `SELECT `+runColumns+` FROM runs r`+where, args...)
		if err != nil || !f.Tasks {
			return err
		}
		return db.addTasksOf(ctx, q, runs)
	})
	return runs, db.read(err, "runs")
}

func (db *DB) addTasksOf(ctx context.Context, q querier, runs []*pipeline.Run) error {
	ids := make([]string, len(runs))
	for i, r := range runs {
		ids[i] = string(r.ID)
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	return db.addTasks(ctx, q, runs, `SELECT `+taskColumns+` FROM json_each(?) j CROSS JOIN tasks t ON t.run_id = j.value
		ORDER BY t.run_id, t.idx`, string(list))
}

// Summary is a composition's line on a board.
type Summary struct {
	Composition pipeline.CompositionName
	// Latest is the newest run, with tasks and specs.
	Latest *pipeline.Run
	// Recent holds the last runs, at most 30, newest first; they have no tasks.
	Recent []*pipeline.Run
	// Median is the usual duration of a successful run; 0 when there was none.
	Median time.Duration
}

// Board returns a summary of each composition that has runs, sorted by name, all
// at one moment.
func (db *DB) Board(ctx context.Context) (board []Summary, err error) {
	err = db.snapshot(ctx, func(q querier) error {
		// Numbers have no gaps, so the last 30 runs are those with the last 30 numbers.
		runs, err := query(ctx, q, scanRun, `SELECT `+runColumns+` FROM counters c CROSS JOIN runs r
			ON r.composition = c.composition AND r.number > c.last - 30 ORDER BY r.composition, r.number DESC`)
		if err != nil {
			return err
		}
		latest := []*pipeline.Run{}
		for _, r := range runs {
			if n := len(board); n == 0 || board[n-1].Composition != r.Composition {
				whole := *r
				latest = append(latest, &whole)
				board = append(board, Summary{Composition: r.Composition, Latest: &whole})
			}
			s := &board[len(board)-1]
			s.Recent = append(s.Recent, r)
		}
		for i := range board {
			if board[i].Median, err = median(ctx, q, board[i].Composition); err != nil {
				return err
			}
		}
		return db.addTasksOf(ctx, q, latest)
	})
	return board, db.read(err, "the board")
}

// UsualDuration returns the median duration of the last 20 successful runs of a
// composition, 0 when there was none.
func (db *DB) UsualDuration(ctx context.Context, c pipeline.CompositionName) (time.Duration, error) {
	d, err := median(ctx, db.file.reader, c)
	return d, db.read(err, "durations of %s", c)
}

func median(ctx context.Context, q querier, c pipeline.CompositionName) (time.Duration, error) {
	list, err := query(ctx, q, scanOne[time.Duration],
		`SELECT finished_at - started_at FROM runs
		WHERE composition = ? AND state = 'success' AND started_at IS NOT NULL ORDER BY number DESC LIMIT 20`, string(c))
	if err != nil || len(list) == 0 {
		return 0, err
	}
	slices.Sort(list)
	return list[len(list)/2], nil
}

// LastOutputs returns the outputs of a task in the last successful run of its
// composition on one of two refs, nil when there are none or when it failed in that run and was forgiven.
func (db *DB) LastOutputs(ctx context.Context, c pipeline.CompositionName, task pipeline.TaskName, on, or pipeline.Ref) (out json.RawMessage, err error) {
	err = db.file.reader.QueryRowContext(ctx, `SELECT outputs FROM tasks WHERE name = ?2 AND state = 'success' AND run_id =
			(SELECT id FROM runs WHERE composition = ?1 AND state = 'success' AND ref IN (?3, ?4) ORDER BY number DESC LIMIT 1)`,
		string(c), string(task), string(on), string(or)).Scan(raw(&out))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return out, db.read(err, "outputs of %s in %s", task, c)
}
