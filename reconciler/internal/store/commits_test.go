package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func write(t testing.TB, db *store.DB, fn func(*store.Tx) error) {
	t.Helper()
	if err := db.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func TestCommitIsFoundByTheFirstDigitsThatOnlyItHas(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	const one, other = pipeline.CommitID("9f3c1e2b7d40a6c85e1f2a3b4c5d6e7f80912a3b"), pipeline.CommitID("9f3c1e2f00000000000000000000000000000000")
	for _, ref := range []pipeline.Ref{"refs/heads/main", "refs/heads/side"} {
		for _, id := range []pipeline.CommitID{one, other} {
			write(t, db, func(tx *store.Tx) error {
				return tx.RecordCommit("ops", pipeline.CommitRecord{Commit: id, Ref: ref, SeenAt: noon})
			})
		}
	}
	for prefix, id := range map[string]pipeline.CommitID{string(one): one, "9f3c1e2b": one, "9f3c1e2f": other} {
		if got, err := db.FindCommit(t.Context(), prefix); got != id || err != nil {
			t.Errorf("%s: %s, %v; want %s", prefix, got, err, id)
		}
	}
	_, err := db.FindCommit(t.Context(), "9f3c1e2")
	want(t, err, fault.Invalid)
	if !strings.Contains(err.Error(), string(one)) || !strings.Contains(err.Error(), string(other)) {
		t.Errorf("%v: want it to name both", err)
	}
	for _, prefix := range []string{"9f3c1e3", string(one) + "0", "a"} {
		_, err := db.FindCommit(t.Context(), prefix)
		want(t, err, fault.NotFound)
	}
}

func TestLastLiveCommitIsInForce(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	const main, side = pipeline.Ref("refs/heads/main"), pipeline.Ref("refs/heads/side")
	_, err := db.LiveCommit(t.Context(), "ops")
	want(t, err, fault.NotFound)
	steps := []struct {
		commit pipeline.CommitID
		ref    pipeline.Ref
		live   bool
		want   pipeline.CommitID
	}{
		{"c1", main, true, "c1"},
		{"c2", main, false, "c1"}, // did not evaluate
		{"c1", side, false, "c1"}, // the same commit elsewhere
		{"c1", main, false, "c1"}, // seen again
		{"c3", main, true, "c3"},
		{"c1", main, true, "c1"}, // the branch was put back
	}
	for i, s := range steps {
		rec := pipeline.CommitRecord{
			Commit: s.commit, Ref: s.ref, Live: s.live, SeenAt: noon.Add(time.Duration(i) * time.Second), Subject: "s",
			Diagnostics: []pipeline.Diagnostic{{Severity: pipeline.SeverityError, Code: "RC1", Message: "a < b"}},
		}
		write(t, db, func(tx *store.Tx) error { return tx.RecordCommit("ops", rec) })
		got, err := db.LiveCommit(t.Context(), "ops")
		if got.Commit != s.want || got.Ref != main || !got.Live || err != nil {
			t.Errorf("step %d: got %+v, %v, want %s", i, got, err, s.want)
		}
	}
	write(t, db, func(tx *store.Tx) error {
		return tx.RecordCommit("other", pipeline.CommitRecord{Commit: "d1", Ref: main, Live: true, SeenAt: noon})
	})
	c, err := db.Commit(t.Context(), "c1")
	if !c.Live || c.Ref != main || len(c.Diagnostics) != 1 || c.Diagnostics[0].Message != "a < b" || err != nil {
		t.Errorf("got %+v, %v", c, err)
	}
	if c, err := db.Commit(t.Context(), "c3"); c.Live || err != nil {
		t.Errorf("got %+v, %v", c, err)
	}
	_, err = db.Commit(t.Context(), "c9")
	want(t, err, fault.NotFound)
	list, err := db.Commits(t.Context(), 3)
	if err != nil || len(list) != 3 || list[0].Commit != "c1" || list[1].Commit != "c3" {
		t.Errorf("got %+v, %v", list, err)
	}
}

func TestVerdictsAreReplacedByKindAndNameRunsOfTheSameTransaction(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	r := newRun(c, 1)
	first := pipeline.Verdict{Commit: "c1", Ref: "refs/heads/main", Composition: "build", Kind: pipeline.EventPush, Outcome: pipeline.VerdictSkipped, Sentence: "no path matches"}
	second := first
	second.Outcome, second.Run = pipeline.VerdictRun, r.ID
	other, night := first, second
	other.Composition = "deploy"
	night.Kind, night.Outcome, night.Run = pipeline.EventCron, pipeline.VerdictRejected, ""
	write(t, db, func(tx *store.Tx) error { return tx.RecordVerdicts([]pipeline.Verdict{other, first}) })
	write(t, db, func(tx *store.Tx) error {
		if err := tx.RecordVerdicts([]pipeline.Verdict{second, night}); err != nil {
			return err
		}
		return tx.CreateRun(r, c)
	})
	got, err := db.Verdicts(t.Context(), "c1")
	if d := cmp.Diff([]pipeline.Verdict{night, second, other}, got); d != "" || err != nil {
		t.Errorf("%v: want - got +\n%s", err, d)
	}
	stray := first
	stray.Run = "nobody"
	if err := db.Write(t.Context(), func(tx *store.Tx) error { return tx.RecordVerdicts([]pipeline.Verdict{stray}) }); err == nil {
		t.Error("a verdict names a run that is not there")
	}
}

func TestARefusedRequestLeavesTheVerdictOfOneThatStarted(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("release", 1)
	r, again := newRun(c, 1), newRun(c, 2)
	refused := pipeline.Verdict{Commit: "c1", Ref: "refs/heads/main", Composition: "release", Kind: pipeline.EventManual, Outcome: pipeline.VerdictRejected, Sentence: "eve may not"}
	started := refused
	started.Outcome, started.Sentence, started.Run = pipeline.VerdictRun, "asked for by ana", r.ID
	later := started
	later.Run = again.ID
	write(t, db, func(tx *store.Tx) error {
		if err := tx.CreateRun(r, c); err != nil {
			return err
		}
		return tx.CreateRun(again, c)
	})
	for _, step := range []struct{ asked, want pipeline.Verdict }{{refused, refused}, {started, started}, {refused, started}, {later, later}} {
		write(t, db, func(tx *store.Tx) error { return tx.RecordVerdicts([]pipeline.Verdict{step.asked}) })
		got, err := db.Verdicts(t.Context(), "c1")
		if d := cmp.Diff([]pipeline.Verdict{step.want}, got); d != "" || err != nil {
			t.Errorf("%v: want - got +\n%s", err, d)
		}
	}
}

func TestObservedRefsFollow(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	write(t, db, func(tx *store.Tx) error {
		for _, o := range []struct {
			repo, ref, commit string
		}{
			{"ops", "refs/heads/a", "c1"},
			{"ops", "refs/heads/b", "c1"},
			{"ops", "refs/heads/a", "c2"},
			{"ops", "refs/heads/b", ""},
			{"ops", "refs/heads/never", ""},
			{"app", "refs/heads/a", "c9"},
		} {
			if err := tx.ObserveRef(o.repo, pipeline.Ref(o.ref), pipeline.CommitID(o.commit)); err != nil {
				return err
			}
		}
		return nil
	})
	got, err := db.ObservedRefs(t.Context(), "ops")
	if d := cmp.Diff(map[pipeline.Ref]pipeline.CommitID{"refs/heads/a": "c2"}, got); d != "" || err != nil {
		t.Errorf("%v: want - got +\n%s", err, d)
	}
}

func TestProblemOfARepositoryIsToldWhenItDiffers(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	for _, sentence := range []string{"", "no answer", "no answer", "wrong password", "", ""} {
		write(t, db, func(tx *store.Tx) error { return tx.RepositoryProblem("ops", sentence) })
		got, err := db.RepositoryProblems(t.Context())
		if got["ops"] != sentence || err != nil {
			t.Errorf("got %v, %v, want %q", got, err, sentence)
		}
	}
	changes, err := db.Changes(t.Context(), 0, 10)
	var told []string
	for _, c := range changes {
		told = append(told, c.Kind+" "+c.Reason)
	}
	if d := cmp.Diff([]string{"repository ops: no answer", "repository ops: wrong password", "repository ops: is read again"}, told); d != "" || err != nil {
		t.Errorf("%v: want - got +\n%s", err, d)
	}
}

func TestForgeIsToldTheLatestOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	status := func(state, text string) pipeline.Status {
		return pipeline.Status{Commit: "c1", Context: "maestro", State: state, Description: text, URL: "https://m.example/1?a=1&b=2"}
	}
	due := func(at time.Time) []pipeline.DueStatus {
		t.Helper()
		list, err := db.Register("").DueStatuses(t.Context(), at, 10)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	desire := func(s pipeline.Status) {
		t.Helper()
		write(t, db, func(tx *store.Tx) error { return tx.Desire(s) })
	}
	for range 50 { // an outage
		desire(status("pending", "1 of 9"))
		desire(status("pending", "2 of 9"))
	}
	list := due(noon)
	if len(list) != 1 || list[0].Status != status("pending", "2 of 9") {
		t.Fatalf("got %+v", list)
	}
	old := list[0]
	next := noon.Add(time.Minute)
	if err := db.MarkFailed(t.Context(), old.Status, old.Digest, "502", next); err != nil {
		t.Fatal(err)
	}
	desire(status("pending", "2 of 9")) // the same again does not hurry it
	if got := due(next.Add(-1)); len(got) != 0 {
		t.Errorf("before its time: got %+v", got)
	}
	if got := due(next); len(got) != 1 || got[0].Tries != 1 {
		t.Errorf("at its time: got %+v", got)
	}
	desire(status("success", "9 of 9")) // a new one is due at once, its tries fresh
	got := due(noon)
	if len(got) != 1 || got[0].Tries != 0 || got[0].Status.State != "success" {
		t.Fatalf("got %+v", got)
	}
	// The answer to the old one arrives late: neither outcome hides the new one.
	if err := db.MarkFailed(t.Context(), old.Status, old.Digest, "502", next); err != nil {
		t.Fatal(err)
	}
	if err := db.MarkPosted(t.Context(), []pipeline.DueStatus{old}); err != nil {
		t.Fatal(err)
	}
	db.Close()
	db = open(t, dir)
	if again := due(noon); !cmp.Equal(got, again) {
		t.Errorf("want - got +\n%s", cmp.Diff(got, again))
	}
	if err := db.MarkPosted(t.Context(), got[:1]); err != nil {
		t.Fatal(err)
	}
	desire(status("success", "9 of 9"))
	if rest := due(next.Add(time.Hour)); len(rest) != 0 {
		t.Errorf("posted, and still due: %+v", rest)
	}
	desire(old.Status) // back to what was shown before: the forge shows something else
	if back := due(noon); len(back) != 1 {
		t.Errorf("got %+v", back)
	}
	all, err := db.StatusesOf(t.Context(), "c1")
	if len(all) != 1 || err != nil {
		t.Errorf("got %+v, %v", all, err)
	}
}

func TestLongDescriptionIsCutBetweenCharacters(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	write(t, db, func(tx *store.Tx) error {
		return tx.Desire(pipeline.Status{Commit: "c1", Context: "maestro", State: "error", Description: strings.Repeat("é", 200)})
	})
	got, err := db.StatusesOf(t.Context(), "c1")
	if err != nil || len(got) != 1 || got[0].Description != strings.Repeat("é", 139)+"…" {
		t.Errorf("got %+v, %v", got, err)
	}
	err = db.Write(t.Context(), func(tx *store.Tx) error {
		return tx.Desire(pipeline.Status{Commit: "c1", Context: "maestro", State: "running"})
	})
	want(t, err, fault.Internal)
}
