package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func TestRunComesBackAsItWasWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db := open(t, dir)
	c := composition("build", 3)
	r := newRun(c, 1)
	create(t, db, r, c)
	if r.Number != 1 || r.Version != 1 {
		t.Errorf("got number %d, version %d", r.Number, r.Version)
	}
	exit := 3
	after := move(r, "t1", pipeline.Offered)
	after.Task("t1").Slot = 2
	after.Task("t1").NotBefore = noon.Add(time.Minute)
	after.Task("t2").Outputs = json.RawMessage(`{"a":[1,2]}`)
	after.Task("t2").Links = []pipeline.Link{{Name: "site", URL: "https://example.com"}}
	after.Task("t2").Exit = &exit
	after.Task("t2").Failures = 4
	after.Priority = 70
	if err := save(t, db, r, after); err != nil {
		t.Fatal(err)
	}
	db.Close()
	db = open(t, dir)
	got, err := db.Run(t.Context(), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(after, got); d != "" {
		t.Errorf("want - got +\n%s", d)
	}
	byNumber, err := db.RunByNumber(t.Context(), "build", 1)
	if d := cmp.Diff(after, byNumber); d != "" || err != nil {
		t.Errorf("by number: %v\n%s", err, d)
	}
	byKey, err := db.RunByKey(t.Context(), r.Key)
	if d := cmp.Diff(after, byKey); d != "" || err != nil {
		t.Errorf("by key: %v\n%s", err, d)
	}
	_, err = db.Run(t.Context(), "nobody")
	want(t, err, fault.NotFound)
	_, err = db.RunByKey(t.Context(), "nobody")
	want(t, err, fault.NotFound)
	_, err = db.RunByNumber(t.Context(), "build", 2)
	want(t, err, fault.NotFound)
}

func TestRunKeyMakesOneRunAndTheTransactionGoesOn(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	create(t, db, newRun(c, 1), c)
	again, other := newRun(c, 2), newRun(c, 3)
	again.Key = newRun(c, 1).Key
	err := db.Write(t.Context(), func(tx *store.Tx) error {
		want(t, tx.CreateRun(again, c), fault.Conflict)
		return tx.CreateRun(other, c)
	})
	if err != nil {
		t.Fatal(err)
	}
	if other.Number != 2 {
		t.Errorf("got number %d, want 2: the refused run must not use one up", other.Number)
	}
	_, err = db.Run(t.Context(), again.ID)
	want(t, err, fault.NotFound)
}

func TestRolledBackNumberIsGivenAgainAndAUsedOneNever(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	a, b := composition("a", 1), composition("b", 1)
	create(t, db, newRun(a, 1), a)
	boom := errors.New("boom")
	err := db.Write(t.Context(), func(tx *store.Tx) error {
		return errors.Join(tx.CreateRun(newRun(a, 2), a), boom)
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	r, s := newRun(a, 3), newRun(b, 1)
	create(t, db, r, a)
	create(t, db, s, b)
	if r.Number != 2 || s.Number != 1 {
		t.Errorf("got a/%d and b/%d, want a/2 and b/1", r.Number, s.Number)
	}
}

func TestImpossibleRunsAreNotCreated(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	for name, spoil := range map[string]func(*pipeline.Run){
		"other digest":                      func(r *pipeline.Run) { r.Digest = "sha256:0" },
		"other composition":                 func(r *pipeline.Run) { r.Composition = "deploy" },
		"task that is not planned":          func(r *pipeline.Run) { r.Tasks[0].Name = "t9" },
		"task that runs":                    func(r *pipeline.Run) { r.Tasks[0].State = pipeline.Running },
		"no key":                            func(r *pipeline.Run) { r.Key = "" },
		"no state":                          func(r *pipeline.Run) { r.State = "" },
		"ended without a time":              func(r *pipeline.Run) { r.State = pipeline.Success },
		"time of the end while it is ready": func(r *pipeline.Run) { r.FinishedAt = noon },
		"params that are not JSON":          func(r *pipeline.Run) { r.Params = json.RawMessage(`{`) },
		"task ended without a time":         func(r *pipeline.Run) { r.Tasks[0].State = pipeline.Skipped },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRun(c, 1)
			spoil(r)
			err := db.Write(t.Context(), func(tx *store.Tx) error {
				_ = tx.CreateRun(r, c) // to go on after this must not help
				return nil
			})
			want(t, err, fault.Internal)
			if n, err := db.LastSeq(t.Context()); n != 0 || err != nil {
				t.Errorf("got seq %d, %v, want nothing written", n, err)
			}
		})
	}
}

func TestEveryTransitionFromEveryState(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	plain, builtIn := composition("build", 2), composition("gate", 2)
	builtIn.Tasks[0].Plugin, builtIn.Digest = pipeline.CorePlugin, "sha256:gate"
	n := 0
	for _, from := range pipeline.States() {
		for _, to := range pipeline.States() {
			n++
			c := plain
			if from == pipeline.Held || from == pipeline.Pending && (to == pipeline.Held || to == pipeline.Running) {
				c = builtIn
			}
			r := newRun(c, n)
			if from == pipeline.Pending || from == pipeline.Held {
				r.Tasks[0].State = pipeline.Pending
			}
			db := open(t, dir) // reopened for each, so that what follows is read from the disk
			create(t, db, r, c)
			r = bring(t, db, r, from)
			after := move(r, "t0", to)
			after.Tasks[0].Slot = 5 // so that there is something to write when the state stays
			seq, err := db.LastSeq(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got := save(t, db, r, after)
			db.Close()
			db = open(t, dir)
			stored, err := db.Run(t.Context(), r.ID)
			if err != nil {
				t.Fatal(err)
			}
			after.Version = r.Version + 1
			if from.CanBecome(to) || from == to && !from.Terminal() {
				if got != nil {
					t.Errorf("%s -> %s: %v", from, to, got)
				}
				if d := cmp.Diff(after, stored); d != "" {
					t.Errorf("%s -> %s: want - got +\n%s", from, to, d)
				}
			} else {
				want(t, got, fault.Internal)
				if d := cmp.Diff(r, stored); d != "" {
					t.Errorf("%s -> %s was refused and changed something: want - got +\n%s", from, to, d)
				}
				if now, err := db.LastSeq(t.Context()); now != seq || err != nil {
					t.Errorf("%s -> %s was refused and appended changes: %d -> %d, %v", from, to, seq, now, err)
				}
			}
			db.Close()
		}
	}
}

func TestStaleWriterIsRefused(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 2)
	r := newRun(c, 1)
	create(t, db, r, c)
	if err := save(t, db, r, move(r, "t0", pipeline.Offered)); err != nil {
		t.Fatal(err)
	}
	for name, after := range map[string]*pipeline.Run{
		"the same move again":          move(r, "t0", pipeline.Offered),
		"another move of the task":     move(r, "t0", pipeline.Cancelled),
		"another task of the run":      move(r, "t1", pipeline.Offered),
		"another sentence for the run": func() *pipeline.Run { a := r.Clone(); a.Reason = "so"; return a }(),
	} {
		t.Run(name, func(t *testing.T) { want(t, save(t, db, r, after), fault.Conflict) })
	}
}

func TestTaskThatIsNotAsItWasReadIsLeftAlone(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	r := newRun(c, 1)
	create(t, db, r, c)
	r = bring(t, db, r, pipeline.Running)
	for name, pretend := range map[string]func(*pipeline.RunTask){
		"state": func(t *pipeline.RunTask) { t.State = pipeline.InDoubt },
		"epoch": func(t *pipeline.RunTask) { t.Epoch = 7 },
	} {
		before := r.Clone() // of the right version
		pretend(&before.Tasks[0])
		want(t, save(t, db, before, move(before, "t0", pipeline.Success)), fault.Conflict)
		if got, err := db.Run(t.Context(), r.ID); !cmp.Equal(r, got) || err != nil {
			t.Errorf("%s: %v: want - got +\n%s", name, err, cmp.Diff(r, got))
		}
	}
}

func TestOfTwoWritersRacingOneWins(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	for i := range 20 {
		r := newRun(c, i)
		create(t, db, r, c)
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for w, to := range []pipeline.State{pipeline.Offered, pipeline.Cancelled} {
			wg.Go(func() { errs[w] = save(t, db, r, move(r, "t0", to)) })
		}
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) || !fault.Is(errors.Join(errs...), fault.Conflict) {
			t.Errorf("got %v, want one success and one conflict", errs)
		}
	}
}

func TestCancelledRunOffersNothingButTearDown(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 2)
	r := newRun(c, 1)
	create(t, db, r, c)
	cancelled := r.Clone()
	cancelled.Cancel = true
	offered := move(cancelled, "t0", pipeline.Offered)
	want(t, save(t, db, r, offered), fault.Internal)
	if err := save(t, db, r, cancelled); err != nil {
		t.Fatal(err)
	}
	// A writer that does not know of it is stopped by the statement itself.
	blind := move(r, "t0", pipeline.Offered)
	want(t, save(t, db, r, blind), fault.Conflict)
	again := cancelled.Clone()
	again.Cancel = false
	want(t, save(t, db, cancelled, again), fault.Internal)
	cancelled.Tasks[0].Spec.When = pipeline.Always
	if err := save(t, db, cancelled, move(cancelled, "t0", pipeline.Offered)); err != nil {
		t.Errorf("tear-down of a cancelled run: %v", err)
	}
}

func TestEpochRisesOnlyWithAnOffer(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	r := newRun(c, 1)
	create(t, db, r, c)
	r = bring(t, db, r, pipeline.Offered)
	for name, spoil := range map[string]func(*pipeline.RunTask){
		"back":              func(t *pipeline.RunTask) { t.Epoch = 0 },
		"without an offer":  func(t *pipeline.RunTask) { t.Epoch = 2 },
		"back in the queue": func(t *pipeline.RunTask) { t.State, t.Epoch = pipeline.Ready, 2 },
	} {
		after := r.Clone()
		spoil(&after.Tasks[0])
		t.Run(name, func(t *testing.T) { want(t, save(t, db, r, after), fault.Internal) })
	}
	ready := move(r, "t0", pipeline.Ready)
	if err := save(t, db, r, ready); err != nil {
		t.Fatal(err)
	}
	twice := move(ready, "t0", pipeline.Offered)
	twice.Tasks[0].Epoch = 3
	want(t, save(t, db, ready, twice), fault.Internal)
}

func TestRunEndsAfterItsTasks(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 2)
	r := newRun(c, 1)
	create(t, db, r, c)
	early := r.Clone()
	early.State, early.FinishedAt = pipeline.Success, noon
	want(t, save(t, db, r, early), fault.Internal)
	one := move(r, "t0", pipeline.Cancelled)
	if err := save(t, db, r, one); err != nil {
		t.Fatal(err)
	}
	both := move(one, "t1", pipeline.Cancelled)
	if err := save(t, db, one, both); err != nil {
		t.Fatal(err)
	}
	late := both.Clone()
	late.Reason = "on second thoughts"
	want(t, save(t, db, both, late), fault.Internal)
}

func TestChangesTellWhatMovedInOrder(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 2)
	r := newRun(c, 1)
	create(t, db, r, c)
	after := move(r, "t0", pipeline.Offered)
	after.Tasks[1].Slot = 7 // of no interest to followers
	if err := save(t, db, r, after); err != nil {
		t.Fatal(err)
	}
	if err := save(t, db, after, after.Clone()); err != nil { // nothing
		t.Fatal(err)
	}
	changes, err := db.Changes(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i, ch := range changes {
		if ch.Seq != pipeline.Seq(i+1) || ch.At.IsZero() {
			t.Errorf("change %d: %+v", i, ch)
		}
		got = append(got, fmt.Sprintf("%s %s %s %s %s", ch.Kind, ch.Run, ch.Task, ch.Agent, ch.State))
	}
	if d := cmp.Diff([]string{
		"run.created build-000001   ready",
		"task build-000001 t0 a-1 offered",
		"run build-000001   running",
	}, got); d != "" {
		t.Errorf("want - got +\n%s", d)
	}
	if rest, err := db.Changes(t.Context(), 1, 1); len(rest) != 1 || rest[0].Seq != 2 || err != nil {
		t.Errorf("after 1, at most 1: got %v, %v", rest, err)
	}
}

// TestOneStatementOffers reads the sources: what must hold before an agent hears
// of a task is guarded in one place only if there is one place.
func TestOneStatementOffers(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("*.go")
	if err != nil || len(names) == 0 {
		t.Fatalf("sources: %v, %v", names, err)
	}
	writes := regexp.MustCompile(`(?is)\b(update|insert\s+into|replace\s+into)\s+tasks\b`)
	offers := 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING || !writes.MatchString(lit.Value) {
				return true
			}
			switch {
			case strings.Contains(lit.Value, "SET state = 'offered'"):
				offers++
			case strings.Contains(lit.Value, "INSERT"):
				if !strings.Contains(lit.Value, "0, ?, NULL, NULL") { // epoch 0, no attempt: the table refuses it as offered
					t.Errorf("this statement may insert an offered task: %s", lit.Value)
				}
			case !strings.Contains(lit.Value, "(?1 <> 'offered' OR state = 'offered')"):
				t.Errorf("this statement may offer a task: %s", lit.Value)
			}
			return true
		})
	}
	if offers != 1 {
		t.Errorf("got %d statements that offer a task, want 1", offers)
	}
}

func TestListsOfRuns(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	a, b := composition("a", 2), composition("b", 1)
	var last *pipeline.Run
	for i := range 40 {
		r := newRun(a, i)
		create(t, db, r, a)
		if i%2 == 0 {
			next := move(r, "t0", pipeline.Cancelled)
			if err := save(t, db, r, next); err != nil {
				t.Fatal(err)
			}
			end := move(next, "t1", pipeline.Cancelled)
			if err := save(t, db, next, end); err != nil {
				t.Fatal(err)
			}
			r = end
		}
		last = r
	}
	other := newRun(b, 1)
	other.Ref, other.Commit = "refs/heads/side", "bead"
	create(t, db, other, b)

	ids := func(f store.Filter) []string {
		t.Helper()
		runs, err := db.Runs(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, r := range runs {
			out = append(out, fmt.Sprintf("%s/%d", r.Composition, r.Number))
		}
		return out
	}
	for _, c := range []struct {
		f    store.Filter
		want []string
	}{
		{store.Filter{Limit: 2}, []string{"b/1", "a/40"}},
		{store.Filter{Composition: "a", Limit: 2}, []string{"a/40", "a/39"}},
		{store.Filter{Composition: "a", Before: last.ID, Limit: 1}, []string{"a/39"}},
		{store.Filter{Before: other.ID, Limit: 1}, []string{"a/40"}},
		{store.Filter{State: pipeline.Cancelled, Limit: 2}, []string{"a/39", "a/37"}},
		{store.Filter{State: pipeline.Ready, Composition: "a", Limit: 1}, []string{"a/40"}},
		{store.Filter{Ref: "refs/heads/side", Limit: 9}, []string{"b/1"}},
		{store.Filter{Commit: "bead", Limit: 9}, []string{"b/1"}},
		{store.Filter{Agent: "a-none", Limit: 9}, nil},
		{store.Filter{Composition: "none", Limit: 9}, nil},
	} {
		if d := cmp.Diff(c.want, ids(c.f)); d != "" {
			t.Errorf("%+v: want - got +\n%s", c.f, d)
		}
	}
	unfinished, err := db.UnfinishedRuns(t.Context())
	if err != nil || len(unfinished) != 21 || len(unfinished[0].Tasks) != 2 || unfinished[0].Tasks[1].Spec.Uses != "shell/run" {
		t.Errorf("unfinished: got %d, %v", len(unfinished), err)
	}
	board, err := db.Board(t.Context())
	if err != nil || len(board) != 2 || board[0].Latest.Number != 40 || len(board[0].Recent) != 30 ||
		board[0].Recent[29].Number != 11 || len(board[0].Latest.Tasks) != 2 || board[1].Composition != "b" {
		t.Errorf("board: got %+v, %v", board, err)
	}
	withTasks, err := db.Runs(t.Context(), store.Filter{Limit: 3, Tasks: true})
	if err != nil || len(withTasks[0].Tasks) != 1 || len(withTasks[1].Tasks) != 2 || withTasks[1].Tasks[1].Name != "t1" {
		t.Errorf("with tasks: got %+v, %v", withTasks, err)
	}
}

func TestLastOutputsAndUsualDurationComeFromSuccesses(t *testing.T) {
	t.Parallel()
	db := open(t, t.TempDir())
	c := composition("build", 1)
	if out, err := db.LastOutputs(t.Context(), "build", "t0", "refs/heads/main", "refs/heads/main"); out != nil || err != nil {
		t.Errorf("before any run: got %s, %v", out, err)
	}
	for i, outcome := range []pipeline.State{pipeline.Success, pipeline.Success, pipeline.Success, pipeline.Failure} {
		r := newRun(c, i)
		create(t, db, r, c)
		r = bring(t, db, r, pipeline.Running)
		end := move(r, "t0", outcome)
		end.FinishedAt = end.StartedAt.Add(time.Duration(i+1) * time.Minute)
		end.Tasks[0].Outputs = json.RawMessage(fmt.Sprintf(`{"n":%d}`, i))
		if err := save(t, db, r, end); err != nil {
			t.Fatal(err)
		}
	}
	out, err := db.LastOutputs(t.Context(), "build", "t0", "refs/heads/main", "refs/heads/main")
	if string(out) != `{"n":2}` || err != nil {
		t.Errorf("got %s, %v", out, err)
	}
	if out, err := db.LastOutputs(t.Context(), "build", "t0", "refs/heads/x", "refs/heads/y"); out != nil || err != nil {
		t.Errorf("of other branches: got %s, %v", out, err)
	}
	if out, err := db.LastOutputs(t.Context(), "build", "t9", "refs/heads/main", "refs/heads/main"); out != nil || err != nil {
		t.Errorf("a task that is not there: got %s, %v", out, err)
	}
	d, err := db.UsualDuration(t.Context(), "build")
	if d != 2*time.Minute || err != nil {
		t.Errorf("got %s, %v, want 2m", d, err)
	}
}
