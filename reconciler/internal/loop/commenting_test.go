package loop_test

import (
	"context"
	"fmt"
	"log/slog"
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

// wall is a forge that shows comments and checks, as an App may write them.
type wall struct {
	loop.Forge
	mu       sync.Mutex
	comments []pipeline.PullComment
	checks   []string
	silent   bool // it lets nobody ask
	asked    int
}

// ask counts a request; what is returned has to be called.
func (w *wall) ask() (func(), error) {
	w.mu.Lock()
	w.asked++
	if w.silent {
		return w.mu.Unlock, fault.New(fault.Unavailable, "wrapped: %w", silence{time.Now().Add(30 * time.Second)})
	}
	return w.mu.Unlock, nil
}

// silence is the error of a host that does not answer.
type silence struct{ at time.Time }

func (s silence) Error() string    { return "it does not answer" }
func (s silence) Later() time.Time { return s.at }

func (w *wall) Self(context.Context) (pipeline.Account, error) {
	done, err := w.ask()
	defer done()
	return pipeline.Account{ID: 1, Login: "maestro"}, err
}

func (w *wall) Comments(context.Context, int) ([]pipeline.PullComment, error) {
	done, err := w.ask()
	defer done()
	return slices.Clone(w.comments), err
}

func (w *wall) AddComment(_ context.Context, number int, body string) (int64, error) {
	done, err := w.ask()
	defer done()
	if err != nil {
		return 0, err
	}
	id := int64(len(w.comments) + 1)
	w.comments = append(w.comments, pipeline.PullComment{ID: id, Pull: number, By: pipeline.Account{ID: 1}, Body: body})
	return id, nil
}

func (w *wall) EditComment(_ context.Context, id int64, body string) error {
	done, err := w.ask()
	defer done()
	if err == nil {
		w.comments[id-1].Body = body
	}
	return err
}

func (w *wall) Checks() bool { return true }

func (w *wall) ShowCheck(_ context.Context, head pipeline.CommitID, c pipeline.PullCheck) error {
	done, err := w.ask()
	defer done()
	if err == nil {
		w.checks = append(w.checks, fmt.Sprintf("%.7s %v", head, c.Done))
	}
	return err
}

func (w *wall) EndCheck(_ context.Context, head pipeline.CommitID, title, _ string) error {
	done, err := w.ask()
	defer done()
	if err == nil {
		w.checks = append(w.checks, fmt.Sprintf("%.7s %s", head, title))
	}
	return err
}

func (w *wall) so() (checks string, asked int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.checks, "; "), w.asked
}

func (w *wall) hush(silent bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.silent = silent
}

// writing plays a Commenter in a bubble.
type writing struct {
	t    *testing.T
	db   *store.DB
	wall *wall
	runs int
}

func commenting(t *testing.T, f func(*writing)) {
	t.Helper()
	dir := memoryDir(t)
	synctest.Test(t, func(t *testing.T) {
		db, err := store.Open(t.Context(), dir, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		f(&writing{t: t, db: db, wall: &wall{}})
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

// during comments while f is going on.
func (w *writing) during(f func()) {
	c := loop.NewCommenter(loop.CommenterConfig{DB: w.db, Forge: w.wall, Log: slog.New(slog.DiscardHandler), Name: repoName})
	ctx, cancel := context.WithCancel(w.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	f()
	cancel()
	wg.Wait()
}

// pull makes pull request 7 be so, its head with a run that is under way.
func (w *writing) pull(head pipeline.CommitID, state pipeline.ProposalState) {
	w.t.Helper()
	err := w.db.Write(w.t.Context(), func(tx *store.Tx) error {
		p := &pipeline.Proposal{
			Branch: pipeline.PullName(7), Head: head, Target: "main", State: state, Digest: "sha256:plan", Markdown: "the plan", ChangedAt: time.Now(),
		}
		if err := tx.SaveProposal(repoName, p); err != nil {
			return err
		}
		w.runs++
		c := &pipeline.Composition{Name: "c", Digest: "sha256:c", Tasks: []pipeline.Task{{Name: "a"}}}
		return tx.CreateRun(&pipeline.Run{
			ID: pipeline.RunID(fmt.Sprintf("01AAAAAAAAAAAAAAAAAA%06d", w.runs)), Key: pipeline.RunKey(fmt.Sprint("key", w.runs)),
			Composition: "c", Digest: c.Digest, Commit: head, Ref: "refs/pull/7/head", State: pipeline.Pending, CreatedAt: time.Now(), Version: 1,
			Event: pipeline.Event{Kind: pipeline.EventPullRequest, Proposal: p.Branch, Head: head}, Tasks: []pipeline.RunTask{{Name: "a", State: pipeline.Pending}},
		}, c)
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *writing) shows(want string) {
	w.t.Helper()
	time.Sleep(time.Minute)
	synctest.Wait()
	if got, _ := w.wall.so(); got != want {
		w.t.Errorf("checks are %q, want %q", got, want)
	}
}

func TestCommentAndCheckFollowAnOutageWithinAMinute(t *testing.T) {
	t.Parallel()
	commenting(t, func(w *writing) {
		w.wall.hush(true)
		w.during(func() {
			w.pull(c1, pipeline.ProposalOpen)
			time.Sleep(2*time.Hour + 7*time.Second)
			if why, err := w.db.Unwritten(w.t.Context(), repoName); err != nil || !strings.Contains(why, "does not answer") {
				t.Errorf("while nothing can be written it is said that %q, %v", why, err)
			}
			if _, asked := w.wall.so(); asked > 500 {
				t.Errorf("it was asked %d times in two hours", asked)
			}
			w.wall.hush(false)
			w.shows("1111111 false")
			if n := len(w.wall.comments); n != 1 {
				t.Errorf("%d comments a minute after the outage, want one", n)
			}
		})
	})
}

func TestNoCheckStaysUnderWayThatNobodyFollows(t *testing.T) {
	t.Parallel()
	commenting(t, func(w *writing) {
		w.during(func() {
			w.pull(c1, pipeline.ProposalOpen)
			w.shows("1111111 false")
			w.pull(c2, pipeline.ProposalOpen)
			w.shows("1111111 false; 2222222 false; 1111111 another head took its place: 222222222222")
			w.pull(c1, pipeline.ProposalOpen)
			w.shows("1111111 false; 2222222 false; 1111111 another head took its place: 222222222222; 1111111 false; 2222222 another head took its place: 111111111111")
		})
		w.wall.checks = nil
		w.pull(c1, pipeline.ProposalClosed)
		w.during(func() { // another process
			w.shows("1111111 its pull request was closed")
			time.Sleep(time.Hour)
			w.shows("1111111 its pull request was closed")
		})
	})
}
