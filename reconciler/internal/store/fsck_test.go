package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func TestSoundRecordHasNoFindings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	record(t, db)
	agent := enrol(t, db, "one").ID
	c := composition("build", 1)
	for i, s := range pipeline.States() {
		if s == pipeline.Pending || s == pipeline.Held {
			continue
		}
		r := newRun(c, i)
		r.Group = ""
		create(t, db, r, c)
		bringWithAttempts(t, db, r, s, agent)
	}
	openLogs(t, dir, store.LogOptions{})
	// A server has it open meanwhile.
	report, err := store.Fsck(t.Context(), dir)
	if err != nil || len(report.Findings) > 0 || report.Runs != len(pipeline.States())-2 || report.Seq != db.Watermark().Seq {
		t.Errorf("got %+v, %v", report, err)
	}
}

// bringWithAttempts is bring, with what the fleet would record beside it.
func bringWithAttempts(t testing.TB, db *store.DB, r *pipeline.Run, to pipeline.State, agent pipeline.AgentID) {
	t.Helper()
	var attempt *pipeline.Attempt
	for _, s := range path[to] {
		next := move(r, "t0", s)
		task := next.Task("t0")
		task.Agent = agent
		if r.Tasks[0].Agent == "" && s != pipeline.Offered {
			task.Agent = ""
		}
		before := attempt
		switch s {
		case pipeline.Offered:
			attempt = &pipeline.Attempt{
				ID: task.Attempt, Run: r.ID, Task: "t0", Agent: agent, State: pipeline.AttemptOffered, OfferedAt: noon,
				Token: pipeline.Token{Incarnation: 1, Epoch: task.Epoch},
			}
		case pipeline.Running:
			attempt = in(*attempt, pipeline.AttemptRunning)
		case pipeline.InDoubt:
			attempt = in(*attempt, pipeline.AttemptLost)
		case pipeline.Success, pipeline.Failure:
			done := in(*attempt, pipeline.AttemptDone)
			done.Outcome, done.LogBytes = s, 0
			attempt = done
		}
		err := db.Write(t.Context(), func(tx *store.Tx) error {
			if err := tx.SaveRun(r, next); err != nil || attempt == before {
				return err
			}
			return tx.SaveAttempt(before, attempt)
		})
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		r = next
	}
}

func TestEachInvariantThatIsBrokenIsFound(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		rule       string
		statements []string
	}{
		"two attempts":        {"I1", []string{`DROP INDEX attempts_open`, `INSERT INTO attempts SELECT 'x2', run_id, task, agent_id, 1, epoch + 1, state, NULL, '', NULL, 0, 1, NULL, NULL FROM attempts WHERE state = 'running' LIMIT 1`}},
		"no attempt":          {"I1", []string{`PRAGMA foreign_keys = OFF`, `DELETE FROM attempts WHERE state = 'running'`}},
		"attempt without":     {"I1", []string{`DROP TRIGGER tasks_terminal`, `UPDATE tasks SET attempt_id = 'other' WHERE state = 'running'`}},
		"epoch falls":         {"I2", []string{`DROP TRIGGER tasks_epoch`, `UPDATE tasks SET epoch = 7 WHERE state = 'running'`}},
		"no reason":           {"I3", []string{`DROP TRIGGER tasks_terminal`, `UPDATE tasks SET reason = '', attempt_id = NULL WHERE state = 'success'`}},
		"state of a run":      {"I7", []string{`UPDATE runs SET state = 'held' WHERE state = 'running'`}},
		"end of a run":        {"I7", []string{`DROP TRIGGER runs_complete`, `UPDATE runs SET state = 'success', finished_at = 1 WHERE state = 'running'`}},
		"gap":                 {"I9", []string{`DROP TRIGGER changes_kept`, `DELETE FROM changes WHERE seq = 2`}},
		"end of the sequence": {"I9", []string{`DROP TRIGGER meta_rises`, `UPDATE meta SET seq = seq + 1`}},
		"unknown agent":       {"I11", []string{`PRAGMA foreign_keys = OFF`, `UPDATE attempts SET agent_id = 'nobody' WHERE state = 'running'`}},
		"group":               {"I12", []string{`DROP TRIGGER runs_made`, `UPDATE runs SET grp = 'prod' WHERE finished_at IS NULL`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := soundFolder(t)
			raw := rawDB(t, dir, "maestro.db")
			for _, s := range c.statements {
				run(t, raw, s)
			}
			raw.Close()
			broken(t, dir, c.rule)
		})
	}
}

// soundFolder has a closed record: two runs that run and one that has succeeded.
func soundFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	db := open(t, dir)
	record(t, db)
	agent := enrol(t, db, "one").ID
	c := composition("build", 1)
	for i, s := range []pipeline.State{pipeline.Running, pipeline.Running, pipeline.Success} {
		r := newRun(c, i)
		r.Group = ""
		create(t, db, r, c)
		bringWithAttempts(t, db, r, s, agent)
	}
	logs := openLogs(t, dir, store.LogOptions{})
	appendAll(t, logs, "a1", 0, []byte("hello\n"))
	if err := logs.Seal(t.Context(), "a1", 6); err != nil {
		t.Fatal(err)
	}
	logs.Close()
	db.Close()
	report, err := store.Fsck(t.Context(), dir)
	if err != nil || len(report.Findings) > 0 {
		t.Fatalf("it is not sound to begin with: %+v, %v", report, err)
	}
	return dir
}

func broken(t *testing.T, dir, rule string) {
	t.Helper()
	report, err := store.Fsck(t.Context(), dir)
	if err != nil || !report.Broken() {
		t.Fatalf("got %+v, %v", report, err)
	}
	for _, f := range report.Findings {
		if f.Rule == rule && f.What != "" && f.Where != "" && f.Next != "" {
			return
		}
	}
	t.Errorf("rule %s is not among %+v", rule, report.Findings)
}

func TestLogsThatLackSomethingAreFound(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"gap":    `UPDATE chunks SET off = 1`,
		"length": `UPDATE logs SET bytes = 7, received = 7, sealed = 0`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := soundFolder(t)
			raw := rawDB(t, dir, "logs.db")
			run(t, raw, `DROP TRIGGER logs_grow`)
			run(t, raw, statement)
			raw.Close()
			broken(t, dir, "I4")
		})
	}
	t.Run("result without its log", func(t *testing.T) {
		t.Parallel()
		dir := soundFolder(t)
		raw := rawDB(t, dir, "maestro.db")
		run(t, raw, `DROP TRIGGER attempts_terminal`)
		run(t, raw, `UPDATE attempts SET log_bytes = 5 WHERE state = 'done'`)
		raw.Close()
		broken(t, dir, "I4")
	})
	t.Run("no logs at all", func(t *testing.T) {
		t.Parallel()
		dir := soundFolder(t)
		if err := os.Remove(filepath.Join(dir, "logs.db")); err != nil {
			t.Fatal(err)
		}
		broken(t, dir, "file")
	})
}

func TestDamagedFileIsAFinding(t *testing.T) {
	t.Parallel()
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := soundFolder(t)
			file := filepath.Join(dir, "maestro.db")
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			broken(t, dir, "file")
		})
	}
}

func TestFolderWithoutARecordIsNotChecked(t *testing.T) {
	t.Parallel()
	_, err := store.Fsck(t.Context(), t.TempDir())
	want(t, err, fault.NotFound)
	if err == nil || !strings.Contains(err.Error(), "data folder") {
		t.Errorf("got %v", err)
	}
}

func TestTaskOnAnAgentThatLacksWhatItAsksForIsAWarning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	record(t, db)
	agent := enrol(t, db, "one").ID
	for i, pool := range []pipeline.PoolName{"linux", "prod"} {
		c := composition("build"+string(pool), 1)
		c.Tasks[0].Requirement.Pool = pool
		c.Digest = pipeline.Digest("sha256:" + pool)
		r := newRun(c, i)
		r.Group = ""
		create(t, db, r, c)
		bringWithAttempts(t, db, r, pipeline.Running, agent)
	}
	openLogs(t, dir, store.LogOptions{})
	report, err := store.Fsck(t.Context(), dir)
	if err != nil || report.Broken() || len(report.Findings) != 1 || report.Findings[0].Rule != "I10" || !strings.Contains(report.Findings[0].What, "pool prod") {
		t.Errorf("got %+v, %v", report, err)
	}
}

func TestRunOfACommitThatIsNotRecordedIsAWarning(t *testing.T) {
	t.Parallel()
	dir := soundFolder(t)
	raw := rawDB(t, dir, "maestro.db")
	run(t, raw, `DELETE FROM commits`)
	raw.Close()
	report, err := store.Fsck(t.Context(), dir)
	if err != nil || report.Broken() || len(report.Findings) == 0 || report.Findings[0].Rule != "I6" {
		t.Errorf("got %+v, %v", report, err)
	}
	backUp(t, dir)
}
