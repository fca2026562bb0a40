package store_test

import (
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// ended makes a run of c that ended, on a branch and a commit, so many days after noon.
func ended(t testing.TB, db *store.DB, c *pipeline.Composition, n int, ref pipeline.Ref, commit pipeline.CommitID, state pipeline.State, day int) *pipeline.Run {
	t.Helper()
	r := newRun(c, n)
	r.Ref, r.Commit, r.Group, r.Event.Head = ref, commit, "", commit
	err := db.Write(t.Context(), func(tx *store.Tx) error {
		if err := tx.RecordCommit("ops", pipeline.CommitRecord{Commit: commit, Ref: ref, SeenAt: noon}); err != nil {
			return err
		}
		if err := tx.CreateRun(r, c); err != nil {
			return err
		}
		return tx.RecordVerdicts([]pipeline.Verdict{{Commit: commit, Composition: c.Name, Ref: ref, Kind: "push", Outcome: pipeline.VerdictRun, Sentence: "ran", Run: r.ID}})
	})
	if err != nil {
		t.Fatal(err)
	}
	if state == pipeline.Ready {
		return r
	}
	for _, s := range path[state] {
		next := move(r, "t0", s)
		if s.Terminal() {
			at := noon.Add(time.Duration(day) * 24 * time.Hour)
			next.FinishedAt, next.Task("t0").FinishedAt = at, at
		}
		if err := save(t, db, r, next); err != nil {
			t.Fatal(err)
		}
		r = next
	}
	return r
}

func point(t testing.TB, db *store.DB, ref pipeline.Ref, commit pipeline.CommitID) {
	t.Helper()
	if err := db.Write(t.Context(), func(tx *store.Tx) error { return tx.ObserveRef("ops", ref, commit) }); err != nil {
		t.Fatal(err)
	}
}

// collect removes all that may go and returns the numbers of the runs that stay.
func collect(t testing.TB, db *store.DB, k store.Keep) (left []int) {
	t.Helper()
	for {
		runs, err := db.Removable(t.Context(), k, 3)
		if err != nil {
			t.Fatal(err)
		}
		if len(runs) == 0 {
			break
		}
		if n, err := db.RemoveRuns(t.Context(), k, runs); n != len(runs) || err != nil {
			t.Fatalf("removed %d of %d: %v", n, len(runs), err)
		}
	}
	for n := 1; n > 0; {
		var err error
		if n, err = db.Sweep(t.Context(), k, 10); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := db.SweepCompositions(t.Context()); err != nil {
		t.Fatal(err)
	}
	runs, err := db.Runs(t.Context(), store.Filter{Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range runs {
		left = append(left, r.Number)
	}
	slices.Sort(left)
	return left
}

// keepDays keeps runs that ended on that day after noon or later, and all of each composition.
func keepDays(day int) store.Keep {
	since := noon.Add(time.Duration(day) * 24 * time.Hour)
	return store.Keep{RunsSince: since, RunsEach: 1000, LogsSince: since, Followed: math.MaxInt64}
}

func TestOldRunsGoAndWhatLaterRunsNeedStays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	c := composition("build", 1)
	const main, side, gone = "refs/heads/main", "refs/heads/side", "refs/heads/gone"
	ended(t, db, c, 1, main, "c1", pipeline.Success, 1)
	ended(t, db, c, 2, main, "c2", pipeline.Success, 2) // the last of its branch
	ended(t, db, c, 3, side, "c3", pipeline.Success, 3) // likewise
	ended(t, db, c, 4, gone, "c4", pipeline.Success, 4) // of a branch that is gone
	ended(t, db, c, 5, main, "c5", pipeline.Failure, 5)
	ended(t, db, c, 6, gone, "c6", pipeline.Success, 6) // the last of all
	ended(t, db, c, 7, main, "c7", pipeline.Failure, 7) // of a commit with work to do
	ended(t, db, c, 8, main, "c7", pipeline.Ready, 0)
	ended(t, db, c, 9, main, "c9", pipeline.Failure, 20) // young
	point(t, db, main, "c7")
	point(t, db, side, "c3")
	k := keepDays(10)
	if got := fmt.Sprint(collect(t, db, k)); got != "[2 3 6 7 8 9]" {
		t.Errorf("left %s", got)
	}
	out, err := db.LastOutputs(t.Context(), "build", "t0", side, main)
	if err != nil {
		t.Errorf("got %s, %v", out, err)
	}
	// The oldest of each composition but the latest so many.
	k.RunsSince, k.RunsEach = noon, 1
	if got := fmt.Sprint(collect(t, db, k)); got != "[2 3 6 7 8 9]" {
		t.Errorf("left %s: they are needed", got)
	}
	point(t, db, side, "")
	if got := fmt.Sprint(collect(t, db, k)); got != "[2 6 7 8 9]" {
		t.Errorf("left %s", got)
	}
	db.Close()
	openLogs(t, dir, store.LogOptions{}).Close()
	if report, err := store.Fsck(t.Context(), dir); err != nil || report.Broken() {
		for _, f := range report.Findings {
			if f.Rule != "I1" && f.Rule != "I2" { // these runs have no attempts to begin with
				t.Errorf("%+v, %v", f, err)
			}
		}
	}
}

func TestRunsThatNobodyFollowedStay(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	ended(t, db, c, 1, "refs/heads/a", "c1", pipeline.Failure, 1)
	k := keepDays(10)
	k.Followed = db.Watermark().Seq
	ended(t, db, c, 2, "refs/heads/a", "c2", pipeline.Failure, 1)
	if got := fmt.Sprint(collect(t, db, k)); got != "[2]" {
		t.Errorf("left %s", got)
	}
}

func TestCalledRunStaysWithItsCaller(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	outer, inner := composition("outer", 1), composition("inner", 1)
	caller := ended(t, db, outer, 1, "refs/heads/a", "c1", pipeline.Failure, 20)
	r := newRun(inner, 1)
	r.Commit, r.Ref, r.Group = "c2", "refs/heads/a", ""
	r.Event = pipeline.Event{Kind: pipeline.EventCall, Head: "c2", Cause: &pipeline.Cause{Run: caller.ID}}
	create(t, db, r, inner)
	for _, s := range path[pipeline.Failure] {
		next := move(r, "t0", s)
		if err := save(t, db, r, next); err != nil {
			t.Fatal(err)
		}
		r = next
	}
	if runs, err := db.Removable(t.Context(), keepDays(10), 10); len(runs) != 0 || err != nil {
		t.Errorf("got %v, %v: its caller is young", runs, err)
	}
	collect(t, db, keepDays(30))
	if runs, err := db.Runs(t.Context(), store.Filter{Limit: 10}); len(runs) != 0 || err != nil {
		t.Errorf("got %v, %v", runs, err)
	}
}

func TestEventOfARemovedRunDoesNotStartItAgain(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	ended(t, db, c, 1, "refs/heads/a", "c1", pipeline.Failure, 1)
	point(t, db, "refs/heads/a", "c1")
	collect(t, db, keepDays(10))
	again := newRun(c, 1)
	err := db.Write(t.Context(), func(tx *store.Tx) error { return tx.CreateRun(again, c) })
	want(t, err, fault.Conflict)
	if err == nil || !strings.Contains(err.Error(), "removed since") {
		t.Errorf("got %v", err)
	}
	// The ref moves on; the key, and what else speaks of the commit, is of no use.
	point(t, db, "refs/heads/a", "c2")
	collect(t, db, keepDays(10))
	_, err = db.Commit(t.Context(), "c1")
	want(t, err, fault.NotFound)
	create(t, db, again, c)
	if again.Number != 2 {
		t.Errorf("number %d is used again", again.Number)
	}
}

func TestSequenceLosesItsOldestChangesAndHasNoGap(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	c := composition("build", 1)
	for i := range 20 {
		create(t, db, newRun(c, i), c)
	}
	k := keepDays(0)
	k.LogsSince = time.Now().Add(time.Hour)
	collect(t, db, k)
	changes, err := db.Changes(t.Context(), 0, 100)
	if err != nil || len(changes) != 1 || changes[0].Seq != 20 {
		t.Errorf("got %+v, %v; want the newest alone", changes, err)
	}
	create(t, db, newRun(c, 99), c)
	if seq, err := db.LastSeq(t.Context()); seq != 21 || err != nil {
		t.Errorf("got %d, %v", seq, err)
	}
}

func TestCompositionThatMayBeCalledStays(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	called, alone := composition("called", 1), composition("alone", 1)
	caller := composition("caller", 1)
	caller.Tasks[0].Call = &pipeline.Call{Composition: "called", Digest: called.Digest}
	r := newRun(caller, 1)
	if err := db.Write(t.Context(), func(tx *store.Tx) error { return tx.CreateRun(r, caller, called, alone) }); err != nil {
		t.Fatal(err)
	}
	if n, err := db.SweepCompositions(t.Context()); n != 1 || err != nil {
		t.Errorf("removed %d, %v", n, err)
	}
	if _, err := db.Composition(t.Context(), called.Digest); err != nil {
		t.Error(err)
	}
	_, err := db.Composition(t.Context(), alone.Digest)
	want(t, err, fault.NotFound)
}

func TestFilesShrink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := openLogs(t, dir, store.LogOptions{})
	const size = 8 << 20
	appendAll(t, l, "a1", 0, []byte(strings.Repeat("0123456789abcde\n", size/16)))
	appendAll(t, l, "a2", 0, []byte("stays\n"))
	for id, n := range map[pipeline.AttemptID]int64{"a1": size, "a2": 6} {
		if err := l.Seal(t.Context(), id, n); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := l.Remove(t.Context(), []pipeline.AttemptID{"a1", "nobody"}, "[maestro] gone"); n != size || err != nil {
		t.Fatal(n, err)
	}
	if n, err := l.Length(t.Context(), "a1"); n.Received != size || n.Bytes != 15 || n.Lines != 1 || !n.Truncated || err != nil {
		t.Errorf("got %+v, %v", n, err)
	}
	if b, err := l.Read(t.Context(), "a1", 0, 100); string(b) != "[maestro] gone\n" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	if here, _, err := l.Here(t.Context(), 0, 10); fmt.Sprint(here) != "[a2]" || err != nil {
		t.Errorf("got %v, %v", here, err)
	}
	for more := true; more; {
		var err error
		if more, err = l.Shrink(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := l.Remove(t.Context(), []pipeline.AttemptID{"a1"}, ""); n != 15 || err != nil {
		t.Error(n, err)
	}
	if b, err := l.Read(t.Context(), "a1", 0, 100); len(b) != 0 || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	open(t, dir)
	l.Close()
	info, err := os.Stat(filepath.Join(dir, "logs.db"))
	if err != nil || info.Size() > size/4 {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
	if report, err := store.Fsck(t.Context(), dir); err != nil || len(report.Findings) > 0 {
		t.Errorf("got %+v, %v", report, err)
	}
}

func TestFileOfAnEarlierVersionCanShrink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open(t, dir).Close()
	raw := rawDB(t, dir, "maestro.db")
	run(t, raw, `PRAGMA journal_mode = DELETE`)
	run(t, raw, `PRAGMA auto_vacuum = none`)
	run(t, raw, `VACUUM`)
	raw.Close()
	open(t, dir).Close()
	raw = rawDB(t, dir, "maestro.db")
	var mode int
	if err := raw.QueryRow(`PRAGMA auto_vacuum`).Scan(&mode); mode != 2 || err != nil {
		t.Errorf("got mode %d, %v", mode, err)
	}
}

// TestCollectingIsAsTheModel makes random runs and collects now and then, and compares
// what is left with the rules said in another way.
func TestCollectingIsAsTheModel(t *testing.T) {
	t.Parallel()
	base := memoryDir(t)
	refs := []pipeline.Ref{"refs/heads/a", "refs/heads/b"}
	states := []pipeline.State{pipeline.Success, pipeline.Failure, pipeline.Cancelled, pipeline.Ready}
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(base, "")
		if err != nil {
			r.Fatal(err)
		}
		db, err := store.Open(context.Background(), dir, testLog(t))
		if err != nil {
			r.Fatal(err)
		}
		defer db.Close()
		all := map[pipeline.RunID]*pipeline.Run{}
		tips := map[pipeline.Ref]pipeline.CommitID{}
		last := map[pipeline.CompositionName]int{}
		for i := range rapid.IntRange(1, 25).Draw(r, "steps") {
			name := rapid.SampledFrom([]string{"x", "y"}).Draw(r, "composition")
			ref := rapid.SampledFrom(refs).Draw(r, "ref")
			commit := pipeline.CommitID(fmt.Sprint("c", rapid.IntRange(0, 5).Draw(r, "commit")))
			run := ended(t, db, composition(name, 1), i, ref, commit, rapid.SampledFrom(states).Draw(r, "state"), rapid.IntRange(0, 20).Draw(r, "day"))
			all[run.ID], last[run.Composition] = run, run.Number
			if rapid.Bool().Draw(r, "there") {
				point(t, db, ref, commit)
				tips[ref] = commit
			} else {
				point(t, db, ref, "")
				delete(tips, ref)
			}
			if rapid.IntRange(0, 5).Draw(r, "collect") > 0 {
				continue
			}
			k := keepDays(rapid.IntRange(0, 20).Draw(r, "since"))
			k.RunsEach = rapid.IntRange(1, 10).Draw(r, "each")
			collect(t, db, k)
			gone := []pipeline.RunID{}
			for id, run := range all {
				if mayGo(run, all, tips, last, k) {
					gone = append(gone, id)
				}
			}
			for _, id := range gone {
				delete(all, id)
			}
			left, err := db.Runs(context.Background(), store.Filter{Limit: 1000})
			if err != nil {
				r.Fatal(err)
			}
			got := map[pipeline.RunID]bool{}
			for _, run := range left {
				got[run.ID] = true
			}
			for id := range all {
				if !got[id] {
					r.Fatalf("%s is gone", id)
				}
				delete(got, id)
			}
			if len(got) > 0 {
				r.Fatalf("left: %v", slices.Collect(maps.Keys(got)))
			}
		}
	})
}

func mayGo(run *pipeline.Run, all map[pipeline.RunID]*pipeline.Run, tips map[pipeline.Ref]pipeline.CommitID, last map[pipeline.CompositionName]int, k store.Keep) bool {
	if !run.State.Terminal() || !run.FinishedAt.Before(k.RunsSince) && run.Number > last[run.Composition]-k.RunsEach {
		return false
	}
	newest, newestThere := true, tips[run.Ref] != ""
	for _, o := range all {
		if o.Commit == run.Commit && !o.State.Terminal() {
			return false
		}
		if o.Composition == run.Composition && o.State == pipeline.Success && o.Number > run.Number {
			newest = false
			newestThere = newestThere && o.Ref != run.Ref
		}
	}
	return run.State != pipeline.Success || !newest && !newestThere
}
