package loop_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// board is a forge with pull requests that nobody says anything of.
type board struct {
	loop.Forge
	mu   sync.Mutex
	list []pipeline.Pull
	read []int // whose reviews were asked for
	away bool

	comments []pipeline.PullComment
	odd      string // a login that it cannot say anything of
	signs    []int64
	silent   error // the answer to who reviewed
	broken   map[int]bool
	checks   []pipeline.PullCheck
}

func (b *board) RepositoryID(context.Context) (int64, error) { return 7, nil }

func (b *board) Self(context.Context) (pipeline.Account, error) {
	return pipeline.Account{ID: 1, Login: "maestro"}, nil
}

func (b *board) Pulls(context.Context) ([]pipeline.Pull, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away {
		return nil, fault.New(fault.Unavailable, "it answers HTTP 502")
	}
	return slices.Clone(b.list), nil
}

func (b *board) Reviews(_ context.Context, number int) ([]pipeline.PullReview, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.read = append(b.read, number)
	if b.broken[number] {
		return nil, fault.New(fault.Unavailable, "it answers HTTP 500")
	}
	return nil, b.silent
}

func (b *board) Checks() bool { return true }

func (b *board) ShowCheck(_ context.Context, _ pipeline.CommitID, c pipeline.PullCheck) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.checks = append(b.checks, c)
	if len(b.checks) == 1 {
		return fault.New(fault.Unavailable, "it answers HTTP 502")
	}
	return nil
}

// Pull tells of one that is not listed.
func (b *board) Pull(_ context.Context, number int) (pipeline.Pull, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken[number] {
		return pipeline.Pull{}, fault.New(fault.Unavailable, "it answers HTTP 500")
	}
	return pipeline.Pull{Number: number, Head: c1, Target: "main"}, nil
}

func (b *board) People(context.Context, *pipeline.Pull) (pipeline.PullPeople, error) {
	return pipeline.PullPeople{}, nil
}

func (b *board) CommentsSince(context.Context, time.Time) ([]pipeline.PullComment, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.comments), nil
}

func (b *board) MayWrite(_ context.Context, a pipeline.Account) (bool, error) {
	if a.Login == b.odd {
		return false, fault.New(fault.Invalid, "the token may not do this (HTTP 403)")
	}
	return true, nil
}

// React is refused.
func (b *board) React(_ context.Context, id int64, _ string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.signs = append(b.signs, id)
	return fault.New(fault.Invalid, "it refuses the request (HTTP 422)")
}

// change does something to what is there.
func (b *board) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

// TestNothingCountsThatWasSaidOfAnotherHead looks at more pull requests than are read at
// once, whose heads move, and at an outage.
func TestNothingCountsThatWasSaidOfAnotherHead(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		db, err := store.Open(t.Context(), dir, log)
		if err != nil {
			t.Fatal(err)
		}
		const all = 60
		b := &board{}
		move := func(to string) {
			b.list = nil
			for n := range all {
				b.list = append(b.list, pipeline.Pull{
					Number: n + 1, Head: pipeline.CommitID(fmt.Sprintf("%s%039d", to, n)), Target: "main", UpdatedAt: time.Now().Add(-time.Minute),
				})
			}
		}
		move("a")
		runs := loop.New(loop.Config{DB: db, Log: log, Default: mainRef, Repo: repoName})
		commits := loop.NewCommits(loop.CommitsConfig{DB: db, Runs: runs, Log: log, Name: repoName, Default: mainRef})
		p := loop.NewProposals(loop.ProposalsConfig{DB: db, Commits: commits, Runs: runs, Log: log, Name: repoName, Default: mainRef, Pulls: true})
		pulls := loop.NewPulls(loop.PullsConfig{
			DB: db, Forge: b, Commits: commits, Proposals: p, Log: log, Name: repoName, Poll: time.Hour,
			Bring: func(context.Context, []pipeline.Ref) (map[pipeline.Ref]pipeline.CommitID, error) { return nil, nil },
		})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = pulls.Run(ctx) })
		unread := func(what string, want int, why string) {
			t.Helper()
			synctest.Wait()
			n := 0
			for _, d := range p.Pulled() {
				if d.Unread != "" {
					n++
				}
				if !strings.Contains(d.Unread, why) && d.Unread != "" {
					t.Errorf("%s: %q", what, d.Unread)
				}
			}
			if n != want || len(p.Pulled()) != all {
				t.Errorf("%s: %d of %d are unread, want %d of %d", what, n, len(p.Pulled()), want, all)
			}
		}
		unread("the first look", 10, "its turn")
		time.Sleep(15 * time.Second)
		unread("some seconds later", 0, "")

		// What nobody has read yet is no approval of the new head, and the one that a hint is
		// about is read first.
		time.Sleep(time.Second)
		b.change(func() { move("b"); b.read = nil })
		pulls.Hint(60)
		synctest.Wait()
		b.change(func() {
			if len(b.read) == 0 || len(b.read) > 20 || !slices.Contains(b.read, 60) {
				t.Errorf("read %v, with a hint about 60", b.read)
			}
		})
		unread("after the heads moved", all-len(b.read), "its turn")
		time.Sleep(time.Minute)
		unread("a minute later", 0, "")

		// While the forge is away nothing counts, and what was read just before need not be
		// read again.
		b.change(func() { b.away = true })
		pulls.Hint(0)
		unread("an outage", all, "HTTP 502")
		b.change(func() { b.away = false; b.read = nil })
		time.Sleep(2 * time.Second)
		unread("and after it", 0, "")
		b.change(func() {
			if len(b.read) > 10 {
				t.Errorf("%d were read again after two seconds without the forge", len(b.read))
			}
			b.away = true
		})
		pulls.Hint(0)
		time.Sleep(10 * time.Minute)
		b.change(func() { b.away, b.read = false, nil })
		pulls.Hint(0)
		unread("and after a long one", 10, "its turn")
		cancel()
		wg.Wait()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestACommentThatCannotBeDealtWithHoldsUpNoOther has one whose author cannot be asked
// about, and one that was answered and takes no sign, before a third.
func TestACommentThatCannotBeDealtWithHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		db, err := store.Open(t.Context(), dir, log)
		if err != nil {
			t.Fatal(err)
		}
		b := &board{odd: "odd"}
		for i, who := range []string{"ana", "odd", "bo"} {
			b.comments = append(b.comments, pipeline.PullComment{
				ID: int64(i + 1), Pull: 7, By: pipeline.Account{ID: int64(i + 10), Login: who}, Body: "/maestro help", At: time.Now(), UpdatedAt: time.Now(),
			})
		}
		err = db.Write(t.Context(), func(tx *store.Tx) error {
			return tx.AnswerRequest(repoName, store.AnsweredRequest{Ref: "refs/pull/7/comments", Object: "comment/1", Answer: "ana: help", At: time.Now()})
		})
		if err != nil {
			t.Fatal(err)
		}
		p, _, stop := startLooking(t, db, b)
		time.Sleep(time.Hour) // the clock of the bubble
		synctest.Wait()
		if got := p.Asked(); len(got) != 1 || got[0].By.Login != "bo" {
			t.Errorf("asked: %+v", got)
		}
		b.change(func() {
			if len(b.signs) != 1 {
				t.Errorf("signs were put on %v, want the first once", b.signs)
			}
		})
		stop()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestWhatHasToBeGrantedIsToldOfAPullRequest(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		db, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		b := &board{list: []pipeline.Pull{{Number: 7, Head: c1, Target: "main", UpdatedAt: time.Now()}}}
		p, pulls, stop := startLooking(t, db, b)
		for _, c := range []struct {
			answer error
			want   string
		}{
			{fault.New(fault.Unavailable, "HTTP 502"), ""},
			{fault.New(fault.Invalid, "grant it"), "grant it"},
			{fault.New(fault.Unavailable, "HTTP 502"), "grant it"}, // it is told until it is read
			{nil, ""},
		} {
			b.change(func() { b.silent = c.answer })
			pulls.Hint(7)
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			if got := p.Pulled(); len(got) != 1 || got[0].Denied() != c.want {
				t.Errorf("after %v: %+v", c.answer, got)
			}
		}
		stop()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheButtonOfAPullRequestThatIsOverIsAnsweredOnce(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		db, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		err = db.Write(t.Context(), func(tx *store.Tx) error {
			return tx.SaveProposal(repoName, &pipeline.Proposal{
				Branch: pipeline.PullName(7), Head: c1, Target: "main", State: pipeline.ProposalClosed, Digest: "sha256:plan", ChangedAt: time.Now(),
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		b := &board{}
		_, pulls, stop := startLooking(t, db, b)
		synctest.Wait()
		ana := pipeline.Account{ID: 5, Login: "ana"}
		pulls.Rerun(loop.Rerun{Head: c1, By: ana, Body: "sha256:press"})
		pulls.Rerun(loop.Rerun{Head: c2, By: ana, Body: "sha256:other"}) // of which nothing is known
		time.Sleep(time.Hour)
		synctest.Wait()
		b.change(func() {
			// The first answer is lost.
			if len(b.checks) != 2 || !b.checks[1].Done || b.checks[1].Again != "rerun/sha256:press" || !strings.HasPrefix(b.checks[1].Summary, "ana: not done: the pull request is not open") {
				t.Errorf("checks: %+v", b.checks)
			}
		})
		stop()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

// startLooking starts to look at pull requests; stop ends it.
func startLooking(t *testing.T, db *store.DB, b *board) (p *loop.Proposals, pulls *loop.Pulls, stop func()) {
	return startLookingTold(t, db, b, func(error) {})
}

// startLookingTold tells problem what the trouble is.
func startLookingTold(t *testing.T, db *store.DB, b *board, problem func(error)) (p *loop.Proposals, pulls *loop.Pulls, stop func()) {
	log := slog.New(slog.DiscardHandler)
	runs := loop.New(loop.Config{DB: db, Log: log, Default: mainRef, Repo: repoName})
	commits := loop.NewCommits(loop.CommitsConfig{DB: db, Runs: runs, Log: log, Name: repoName, Default: mainRef})
	p = loop.NewProposals(loop.ProposalsConfig{DB: db, Commits: commits, Runs: runs, Log: log, Name: repoName, Default: mainRef, Pulls: true})
	pulls = loop.NewPulls(loop.PullsConfig{
		DB: db, Forge: b, Commits: commits, Proposals: p, Log: log, Name: repoName, Poll: time.Minute,
		Problem: func(_ context.Context, err error) { problem(err) },
		Bring:   func(context.Context, []pipeline.Ref) (map[pipeline.Ref]pipeline.CommitID, error) { return nil, nil },
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = pulls.Run(ctx) })
	return p, pulls, func() { cancel(); wg.Wait() }
}

// TestAPullRequestThatCannotBeReadHoldsUpNoOther has one of which the forge says nothing
// but errors, listed or not.
func TestAPullRequestThatCannotBeReadHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		db, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		b := &board{broken: map[int]bool{7: true}}
		for n := 7; n < 10; n++ {
			b.list = append(b.list, pipeline.Pull{Number: n, Head: pipeline.CommitID(fmt.Sprintf("%040d", n)), Target: "main", UpdatedAt: time.Now()})
		}
		err = db.Write(t.Context(), func(tx *store.Tx) error {
			p := pipeline.Proposal{Branch: pipeline.PullName(8), Head: b.list[1].Head, Target: "main", State: pipeline.ProposalOpen, ChangedAt: time.Now()}
			return tx.SaveProposal(repoName, &p)
		})
		if err != nil {
			t.Fatal(err)
		}
		var trouble error
		p, pulls, stop := startLookingTold(t, db, b, func(err error) { b.change(func() { trouble = err }) })
		told := func(what string, want map[int]string) {
			t.Helper()
			synctest.Wait()
			got := map[int]string{}
			for _, d := range p.Pulled() {
				got[d.Number] = d.Unread
			}
			if !maps.Equal(got, want) {
				t.Errorf("%s: unread %v, want %v", what, got, want)
			}
			b.change(func() {
				if broken := strings.Contains(fmt.Sprint(want), "500"); (trouble != nil) != broken {
					t.Errorf("%s: the trouble of the repository is %v", what, trouble)
				}
			})
		}
		const why = "it answers HTTP 500"
		told("the first look", map[int]string{7: why, 8: "", 9: ""})
		time.Sleep(time.Hour)
		b.change(func() { b.read = nil })
		told("an hour later", map[int]string{7: why, 8: "", 9: ""})
		time.Sleep(time.Hour)
		b.change(func() {
			if n := count(b.read, 7); n < 30 || n > 60 {
				t.Errorf("it was asked about %d times in an hour, want once a minute", n)
			}
			if n := count(b.read, 9); n < 12 {
				t.Errorf("another one was read %d times in an hour", n)
			}
			b.list[2].UpdatedAt, b.read = time.Now(), nil
		})
		time.Sleep(time.Minute + time.Second) // the poll
		b.change(func() {
			if !slices.Contains(b.read, 9) {
				t.Error("what changed of another one was not read at the next look")
			}
			delete(b.broken, 7)
		})
		pulls.Hint(7)
		told("when it is mended and hinted at", map[int]string{7: "", 8: "", 9: ""})

		b.change(func() { b.list = slices.Delete(b.list, 1, 2); b.broken[8] = true })
		pulls.Hint(8)
		told("one that is not listed any more", map[int]string{7: "", 8: why, 9: ""})
		b.change(func() { delete(b.broken, 8) })
		time.Sleep(2 * time.Minute)
		told("and can be asked about again", map[int]string{7: "", 8: "", 9: ""})
		stop()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

func count(list []int, of int) (n int) {
	for _, i := range list {
		if i == of {
			n++
		}
	}
	return n
}
