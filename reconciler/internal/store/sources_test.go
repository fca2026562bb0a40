package store_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func TestRepositoriesShareACommitAndNothingElse(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	ours, theirs := newRun(c, 1), newRun(c, 2)
	theirs.Event.Repo, theirs.Event.Head, theirs.Event.Config, theirs.Commit = "app", "c0ffee", "beef", "beef"
	create(t, db, ours, c)
	create(t, db, theirs, c)
	status := func(repo, state string) pipeline.Status {
		return pipeline.Status{Repo: repo, Commit: "c0ffee", Context: "maestro", State: state}
	}
	verdict := func(repo, sentence string) pipeline.Verdict {
		return pipeline.Verdict{Repo: repo, Commit: "c0ffee", Ref: "refs/heads/main", Composition: "build", Kind: "push", Outcome: "run", Sentence: sentence}
	}
	write(t, db, func(tx *store.Tx) error {
		for _, s := range []pipeline.Status{status("", "success"), status("app", "failure"), status("lib", "pending")} {
			if err := tx.Desire(s); err != nil {
				return err
			}
		}
		return tx.RecordVerdicts([]pipeline.Verdict{verdict("", "ours"), verdict("app", "theirs")})
	})
	runs, err := db.Runs(t.Context(), store.Filter{Commit: "c0ffee", Limit: 9})
	if err != nil || len(runs) != 2 {
		t.Errorf("both runs are about the commit, got %d, %v", len(runs), err)
	}
	if of, err := db.Runs(t.Context(), store.Filter{Commit: "beef", Limit: 9}); err != nil || len(of) != 0 {
		t.Errorf("no run is about the configuration of a source run, got %d, %v", len(of), err)
	}
	verdicts, err := db.Verdicts(t.Context(), "c0ffee")
	if d := cmp.Diff([]pipeline.Verdict{verdict("", "ours"), verdict("app", "theirs")}, verdicts); d != "" || err != nil {
		t.Errorf("verdicts: %v\n%s", err, d)
	}
	for repo, state := range map[string]string{"": "success", "app": "failure", "lib": "pending", "none": ""} {
		due, err := db.Register(repo).DueStatuses(t.Context(), noon, 9)
		if err != nil || (state == "") != (len(due) == 0) || len(due) == 1 && due[0].Status != status(repo, state) {
			t.Errorf("due in %q: %+v, %v", repo, due, err)
		}
		if repo == "app" {
			if err := db.Register(repo).MarkPosted(t.Context(), due); err != nil {
				t.Fatal(err)
			}
		}
	}
	for repo, n := range map[string]int{"": 1, "app": 0, "lib": 1} {
		if due, err := db.Register(repo).DueStatuses(t.Context(), noon, 9); err != nil || len(due) != n {
			t.Errorf("after one was posted %d are due in %q, %v", len(due), repo, err)
		}
	}
}

func TestSourcesThatAreNotKeptAreForgotten(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	ops, kept, gone := "/srv/ops.git", "source:app https://example.com/app.git", "source:lib https://example.com/lib.git"
	write(t, db, func(tx *store.Tx) error {
		for _, repo := range []string{ops, kept, gone} {
			if err := tx.ObserveRef(repo, "refs/heads/main", "c1"); err != nil {
				return err
			}
			if err := tx.RepositoryProblem(repo, "it is away"); err != nil {
				return err
			}
		}
		return tx.KeepSources([]string{kept})
	})
	problems, err := db.RepositoryProblems(t.Context())
	if err != nil || len(problems) != 2 || problems[ops] == "" || problems[kept] == "" {
		t.Errorf("problems are %v, %v", problems, err)
	}
	for repo, n := range map[string]int{ops: 1, kept: 1, gone: 0} {
		if refs, err := db.ObservedRefs(t.Context(), repo); err != nil || len(refs) != n {
			t.Errorf("refs of %s are %v, %v", repo, refs, err)
		}
	}
	write(t, db, func(tx *store.Tx) error { return tx.KeepSources(nil) })
	if refs, err := db.ObservedRefs(t.Context(), kept); err != nil || len(refs) != 0 {
		t.Errorf("with none kept: %v, %v", refs, err)
	}
}

// TestRecordFromBeforeSourcesIsOfTheOpsRepository opens a record that the first two
// steps made, with runs, verdicts and statuses in it.
func TestRecordFromBeforeSourcesIsOfTheOpsRepository(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	raw := rawDB(t, dir, "maestro.db")
	run(t, raw, `CREATE TABLE goose_db_version (id INTEGER PRIMARY KEY AUTOINCREMENT, version_id INTEGER NOT NULL,
		is_applied INTEGER NOT NULL, tstamp TIMESTAMP DEFAULT (datetime('now')))`)
	run(t, raw, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (0, 1)`)
	for i, name := range []string{"00001_record.sql", "00002_people.sql"} {
		b, err := os.ReadFile(filepath.Join("migrations", "record", name))
		if err != nil {
			t.Fatal(err)
		}
		run(t, raw, string(b)) // what goose reads are comments
		run(t, raw, fmt.Sprintf(`INSERT INTO goose_db_version (version_id, is_applied) VALUES (%d, 1)`, i+1))
	}
	run(t, raw, `INSERT INTO compositions VALUES ('sha256:1', 'build', '{"name":"build","tasks":[]}')`)
	run(t, raw, `INSERT INTO runs (id, composition, number, run_key, digest, commit_id, ref, event, priority, state, reason, cancel, created_at,
		finished_at, depth, draft, grp, version) VALUES ('r1', 'build', 1, 'k1', 'sha256:1', 'c1', 'refs/heads/main', '{"kind":"push"}', 50,
		'success', '', 0, 1, 2, 0, 0, '', 1)`)
	run(t, raw, `INSERT INTO commits VALUES ('/srv/ops.git', 'c1', 'refs/heads/main', '', 'Ada', 'x', NULL, 1, 1)`)
	run(t, raw, `INSERT INTO verdicts VALUES ('c1', 'build', 'refs/heads/main', 'push', 'run', 'push to main', 'r1')`)
	run(t, raw, `INSERT INTO forge_desired VALUES ('c1', 'maestro', 'success', 'x', '', 'd', '', 0, 0, ''), ('c1', 'maestro/run/build', 'success', 'y', '', 'd', 'd', 0, 0, '')`)
	run(t, raw, `UPDATE meta SET clean = 1`)
	raw.Close()

	db := open(t, dir)
	runs, err := db.Runs(t.Context(), store.Filter{Commit: "c1", Limit: 9})
	if err != nil || len(runs) != 1 || runs[0].ID != "r1" || runs[0].Head() != (pipeline.Head{Commit: "c1"}) {
		t.Errorf("runs are %+v, %v", runs, err)
	}
	verdicts, err := db.Verdicts(t.Context(), "c1")
	if err != nil || len(verdicts) != 1 || verdicts[0].Repo != "" || verdicts[0].Run != "r1" {
		t.Errorf("verdicts are %+v, %v", verdicts, err)
	}
	due, err := db.Register("").DueStatuses(t.Context(), noon, 9)
	if err != nil || len(due) != 1 || due[0].Status.Context != "maestro" {
		t.Errorf("due are %+v, %v", due, err)
	}
	all, err := db.StatusesOf(t.Context(), "c1")
	if err != nil || !slices.Equal([]string{all[0].Description, all[1].Description}, []string{"x", "y"}) {
		t.Errorf("statuses are %+v, %v", all, err)
	}
	if live, err := db.LiveCommit(t.Context(), "/srv/ops.git"); err != nil || live.Commit != "c1" || live.Repo != "" {
		t.Errorf("live is %+v, %v", live, err)
	}
}
