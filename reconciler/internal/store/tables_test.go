package store_test

import (
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// TestTablesRefuseTheImpossible goes behind the back of the package, as a defect
// in a statement would.
func TestTablesRefuseTheImpossible(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	c := composition("build", 1)
	agent := enrol(t, db, "one").ID
	states := map[pipeline.State]*pipeline.Run{}
	for i, s := range []pipeline.State{pipeline.Pending, pipeline.Ready, pipeline.Offered, pipeline.Running, pipeline.Success} {
		r := newRun(c, i)
		create(t, db, r, c)
		states[s] = bring(t, db, r, s)
	}
	one := pipeline.Attempt{
		ID: "x1", Run: states[pipeline.Offered].ID, Task: "t0", Agent: agent,
		Token: pipeline.Token{Incarnation: 1, Epoch: 5}, State: pipeline.AttemptOffered, OfferedAt: noon,
	}
	if err := db.Write(t.Context(), func(tx *store.Tx) error { return tx.SaveAttempt(nil, &one) }); err != nil {
		t.Fatal(err)
	}
	db.Close()
	raw := rawDB(t, dir, "maestro.db")

	id := func(s pipeline.State) string { return "'" + string(states[s].ID) + "'" }
	insert := `INSERT INTO attempts SELECT `
	for _, statement := range []string{
		`UPDATE tasks SET state = 'done' WHERE run_id = ` + id(pipeline.Ready),
		`UPDATE tasks SET state = 'success' WHERE run_id = ` + id(pipeline.Running),
		`UPDATE tasks SET finished_at = 1 WHERE run_id = ` + id(pipeline.Running),
		`UPDATE tasks SET reason = 'x' WHERE run_id = ` + id(pipeline.Success),
		`UPDATE tasks SET state = 'ready', finished_at = NULL WHERE run_id = ` + id(pipeline.Success),
		`UPDATE tasks SET epoch = epoch + 1 WHERE run_id = ` + id(pipeline.Ready),
		`UPDATE tasks SET epoch = epoch - 1, state = 'ready' WHERE run_id = ` + id(pipeline.Offered),
		`UPDATE tasks SET state = 'offered', attempt_id = 'a', agent_id = 'a' WHERE run_id = ` + id(pipeline.Ready),
		`UPDATE tasks SET state = 'offered', epoch = epoch + 1 WHERE run_id = ` + id(pipeline.Ready),
		`UPDATE tasks SET state = 'offered', epoch = epoch + 1, attempt_id = 'a', agent_id = 'a' WHERE run_id = ` + id(pipeline.Running),
		`UPDATE tasks SET attempt_id = NULL WHERE run_id = ` + id(pipeline.Running),
		`UPDATE tasks SET slot = 'x' WHERE run_id = ` + id(pipeline.Running),
		`UPDATE runs SET state = 'success', finished_at = 1 WHERE id = ` + id(pipeline.Running),
		`UPDATE runs SET reason = 'x' WHERE id = ` + id(pipeline.Success),
		`UPDATE runs SET state = 'blocked' WHERE id = ` + id(pipeline.Ready),
		`UPDATE runs SET finished_at = 1 WHERE id = ` + id(pipeline.Ready),
		`UPDATE runs SET run_key = (SELECT run_key FROM runs WHERE id = ` + id(pipeline.Running) + `) WHERE id = ` + id(pipeline.Ready),
		`UPDATE runs SET number = 1 WHERE id = ` + id(pipeline.Ready),
		`UPDATE runs SET digest = 'unknown' WHERE id = ` + id(pipeline.Ready),
		`DELETE FROM runs WHERE id = ` + id(pipeline.Ready),
		`UPDATE runs SET params = '{}' WHERE id = ` + id(pipeline.Ready),
		`UPDATE runs SET grp = 'other' WHERE id = ` + id(pipeline.Ready),
		`UPDATE runs SET draft = 1 WHERE id = ` + id(pipeline.Ready),
		`UPDATE tasks SET message = 'x' WHERE run_id = ` + id(pipeline.Ready),
		insert + `'x2', run_id, task, agent_id, 1, 6, 'offered', NULL, '', NULL, 0, 1, NULL, NULL FROM attempts`, // two open
		insert + `'x2', run_id, task, agent_id, 1, 4, 'declined', NULL, '', NULL, 0, 1, NULL, 1 FROM attempts`,   // epoch falls
		insert + `'x2', run_id, task, agent_id, 1, 6, 'done', NULL, '', NULL, 0, 1, NULL, 1 FROM attempts`,       // no outcome
		insert + `'x2', run_id, task, 'nobody', 1, 6, 'declined', NULL, '', NULL, 0, 1, NULL, 1 FROM attempts`,
		insert + `'x2', run_id, 't9', agent_id, 1, 6, 'declined', NULL, '', NULL, 0, 1, NULL, 1 FROM attempts`,
		`UPDATE attempts SET state = 'lost'`,
		`UPDATE attempts SET outcome = 'success'`,
		`INSERT INTO changes SELECT seq + 2, 1, 'run', NULL, NULL, NULL, NULL, NULL, '' FROM meta`,
		`INSERT INTO changes SELECT seq, 1, 'run', NULL, NULL, NULL, NULL, NULL, '' FROM meta`,
		`UPDATE changes SET reason = 'x' WHERE seq = 1`,
		`DELETE FROM changes WHERE seq = 2`,
		`UPDATE meta SET seq = seq - 1`,
		`UPDATE meta SET seq = seq + 2`,
		`UPDATE meta SET store_id = '00000000000000000000000000000000'`,
		`UPDATE meta SET incarnation = incarnation - 1`,
		`INSERT INTO meta VALUES (2, '00000000000000000000000000000000', 1, 0, 1, 0)`,
		`UPDATE counters SET last = last - 1`,
		`UPDATE counters SET last = last`,
		`UPDATE agents SET state = 'busy'`,
		`UPDATE join_tokens SET used_by = NULL`,
		`INSERT INTO verdicts VALUES ('', 'c', 'build', '', 'push', 'maybe', '', NULL)`,
		`INSERT INTO verdicts VALUES ('', 'c', 'build', '', 'push', 'run', '', 'no such run')`,
		`INSERT INTO forge_desired VALUES ('', 'c', 'x', 'running', '', '', '', '', 0, 0, '')`,
		`INSERT INTO commits VALUES ('r', 'c1', '', '', '', '', NULL, 1, 1, ''), ('r', 'c2', '', '', '', '', NULL, 1, 1, '')`,
		`UPDATE runs SET head = 'other' WHERE id = ` + id(pipeline.Ready),
	} {
		if _, err := raw.Exec(statement); err == nil {
			t.Errorf("not refused: %s", statement)
		} else if msg := err.Error(); strings.Contains(msg, "syntax") || strings.Contains(msg, "no such") || strings.Contains(msg, "values for") {
			t.Errorf("refused for the wrong reason: %s: %v", statement, err)
		}
	}
	// The states in the tables are those of the vocabulary.
	var ddl string
	if err := raw.QueryRow(`SELECT sql FROM sqlite_schema WHERE name = 'tasks'`).Scan(&ddl); err != nil {
		t.Fatal(err)
	}
	outcomes := ddl[strings.Index(ddl, "(state IN\n"):]
	outcomes = outcomes[:strings.Index(outcomes, "')")]
	for _, s := range pipeline.States() {
		if !strings.Contains(ddl, "'"+string(s)+"'") || strings.Contains(outcomes, "'"+string(s)) != s.Terminal() {
			t.Errorf("state %s is not as in the table", s)
		}
	}
}

func TestTablesOfLogsRefuseTheImpossible(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLogs(t, dir, store.LogOptions{})
	for i, data := range []string{"one\ntw", "o\n"} {
		if err := l.Append("a1", int64(6*i), []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Seal(t.Context(), "a1", 8); err != nil {
		t.Fatal(err)
	}
	l.Close()
	raw := rawDB(t, dir, "logs.db")
	for _, statement := range []string{
		`INSERT INTO chunks (log_id, off, first_line, data) VALUES (1, 9, 3, x'41')`,
		`INSERT INTO chunks (log_id, off, first_line, data) VALUES (1, 7, 3, x'41')`,
		`INSERT INTO chunks (log_id, off, first_line, data) VALUES (1, 8, 3, x'')`,
		`INSERT INTO chunks (log_id, off, first_line, data) VALUES (7, 0, 1, x'41')`,
		`UPDATE logs SET received = 9, bytes = 9`,
		`UPDATE logs SET received = 7, bytes = 7`,
		`UPDATE logs SET bytes = 7`,
		`UPDATE logs SET sealed = 0`,
	} {
		if _, err := raw.Exec(statement); err == nil {
			t.Errorf("not refused: %s", statement)
		}
	}
}
