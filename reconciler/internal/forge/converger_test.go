package forge_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
)

// fakeRegister is the desired state in memory, with the contract of the record.
type fakeRegister struct {
	mu     sync.Mutex
	rows   map[string]*row
	seq    int
	broken bool // marks fail
	reads  int
}

type row struct {
	due     pipeline.DueStatus
	posted  string
	next    time.Time
	problem string
	seq     int
}

func newRegister() *fakeRegister { return &fakeRegister{rows: map[string]*row{}} }

func keyOf(s pipeline.Status) string { return string(s.Commit) + " " + s.Context }

func (r *fakeRegister) desire(s pipeline.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := keyOf(s)
	if r.rows[k] == nil {
		r.rows[k] = &row{}
	}
	if r.rows[k].due.Status == s {
		return
	}
	r.seq++
	*r.rows[k] = row{due: pipeline.DueStatus{Status: s, Digest: fmt.Sprint(s)}, seq: r.seq} // forgets what was posted
}

func (r *fakeRegister) DueStatuses(_ context.Context, now time.Time, limit int) (out []pipeline.DueStatus, _ error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	var due []*row
	for _, w := range r.rows {
		if w.posted != w.due.Digest && !w.next.After(now) {
			due = append(due, w)
		}
	}
	slices.SortFunc(due, func(a, b *row) int { return cmp.Compare(a.seq, b.seq) })
	for _, w := range due[:min(limit, len(due))] {
		out = append(out, w.due)
	}
	return out, nil
}

func (r *fakeRegister) MarkPosted(_ context.Context, posted []pipeline.DueStatus) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken {
		return errors.New("disk full")
	}
	for _, d := range posted {
		r.rows[keyOf(d.Status)].posted = d.Digest
	}
	return nil
}

func (r *fakeRegister) MarkFailed(_ context.Context, s pipeline.Status, digest, problem string, next time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.rows[keyOf(s)]; w.due.Digest == digest {
		w.due.Tries++
		w.problem, w.next = problem, next
	}
	return nil
}

func (r *fakeRegister) settled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.rows {
		if w.posted != w.due.Digest {
			return false
		}
	}
	return true
}

func (r *fakeRegister) readings() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reads
}

func (r *fakeRegister) repair(broken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = broken
}

// fakeForge shows statuses; a post takes a second and may fail.
type fakeForge struct {
	mu      sync.Mutex
	shown   map[string]string
	posts   []string
	at      []time.Duration
	start   time.Time
	fail    func(pipeline.Status) error
	under   map[string]bool
	now     int
	most    int
	overlap bool
}

func newForge() *fakeForge {
	return &fakeForge{shown: map[string]string{}, under: map[string]bool{}, start: time.Now()}
}

func (f *fakeForge) Name() string { return "fake" }

func (f *fakeForge) Statuses(context.Context, pipeline.CommitID) ([]pipeline.Status, error) {
	return nil, nil
}

func (f *fakeForge) Post(ctx context.Context, s pipeline.Status) error {
	f.mu.Lock()
	k := keyOf(s)
	f.overlap = f.overlap || f.under[k]
	f.under[k] = true
	f.now++
	f.most = max(f.most, f.now)
	f.at = append(f.at, time.Since(f.start))
	fail := f.fail
	f.mu.Unlock()
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now--
	delete(f.under, k)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if fail != nil {
		if err := fail(s); err != nil {
			return err
		}
	}
	f.posts = append(f.posts, s.Context+"="+s.State+s.Description)
	f.shown[k] = s.State + s.Description
	return nil
}

func (f *fakeForge) failing(fail func(pipeline.Status) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

func (f *fakeForge) count() (posts, tries int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.posts), len(f.at)
}

// converge runs a Converger in a synctest bubble.
func converge(t *testing.T, f func(t *testing.T, r *fakeRegister, fg *fakeForge, c *forge.Converger)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, fg := newRegister(), newForge()
		c := forge.NewConverger(forge.Config{Forge: fg, Register: r})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		synctest.Wait()
		f(t, r, fg, c)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if fg.overlap {
			t.Error("two posts of one commit and context overlapped")
		}
		if fg.most > 8 {
			t.Errorf("%d posts at a time, want at most 8", fg.most)
		}
	})
}

func wait(d time.Duration) { time.Sleep(d); synctest.Wait() } // false time, inside a bubble

func st(i, n int) pipeline.Status {
	return pipeline.Status{Commit: commit, Context: fmt.Sprint("c", i), State: "pending", Description: fmt.Sprint(n)}
}

func TestDesiredStatusIsPostedAtOnce(t *testing.T) {
	converge(t, func(t *testing.T, r *fakeRegister, fg *fakeForge, c *forge.Converger) {
		r.desire(st(0, 0))
		c.Wake()
		wait(time.Second)
		if posts, _ := fg.count(); posts != 1 || !r.settled() {
			t.Errorf("%d posts, settled %v", posts, r.settled())
		}
		reads := r.readings()
		wait(time.Minute)
		if n := r.readings() - reads; n > 7 {
			t.Errorf("the register was read %d times in a quiet minute", n)
		}
		if posts, _ := fg.count(); posts != 1 {
			t.Errorf("%d posts of one status", posts)
		}
	})
}

func TestStatusIsPostedWithoutAWakeToo(t *testing.T) {
	converge(t, func(t *testing.T, r *fakeRegister, fg *fakeForge, _ *forge.Converger) {
		r.desire(st(0, 0))
		wait(12 * time.Second)
		if !r.settled() {
			t.Error("the poll did not find it")
		}
	})
}

func TestFiftyTransitionsInAnOutageAreOnePost(t *testing.T) {
	converge(t, func(t *testing.T, r *fakeRegister, fg *fakeForge, c *forge.Converger) {
		fg.failing(func(pipeline.Status) error { return fault.New(fault.Unavailable, "down") })
		for i := range 50 {
			r.desire(st(0, i))
			c.Wake()
			wait(10 * time.Second)
		}
		fg.failing(nil)
		wait(5 * time.Minute)
		if len(fg.posts) != 1 || fg.posts[0] != "c0=pending49" {
			t.Errorf("posts = %q, want the last one only", fg.posts)
		}
	})
}

func TestStatusThatKeepsFailingIsTriedLessOften(t *testing.T) {
	converge(t, func(t *testing.T, r *fakeRegister, fg *fakeForge, c *forge.Converger) {
		fg.failing(func(pipeline.Status) error { return fault.New(fault.Invalid, "grant it write access") })
		r.desire(st(0, 0))
		c.Wake()
		wait(time.Hour)
		for i := 1; i < len(fg.at); i++ {
			want := min(time.Second<<(i-1), 5*time.Minute)
			if got := fg.at[i] - fg.at[i-1] - time.Second; got > want+10*time.Millisecond || got < want*3/4 {
				t.Errorf("pause %d is %v, want up to %v", i, got, want)
			}
		}
		if len(fg.at) < 15 || r.rows[keyOf(st(0, 0))].problem != "grant it write access" {
			t.Errorf("%d tries, problem %q", len(fg.at), r.rows[keyOf(st(0, 0))].problem)
		}
	})
}

func TestStatusThatMeetsAnotherWriterIsTriedAgainSoon(t *testing.T) {
	converge(t, func(t *testing.T, r *fakeRegister, fg *fakeForge, c *forge.Converger) {
		fg.failing(func(pipeline.Status) error { return fault.New(fault.Conflict, "another process holds the lock") })
		r.desire(st(0, 0))
		c.Wake()
		wait(time.Minute)
		fg.failing(nil)
		wait(5 * time.Second)
		if posts, _ := fg.count(); posts != 1 || !r.settled() {
			t.Errorf("%d posts after the other writer was done", posts)
		}
	})
}

func TestRateLimitSilencesEverythingUntilItsTime(t *testing.T) {
	converge(t, func(t *testing.T, r *fakeRegister, fg *fakeForge, c *forge.Converger) {
		reset := time.Now().Add(17 * time.Minute)
		fg.failing(func(pipeline.Status) error {
			return fault.New(fault.Unavailable, "post: %w", &forge.LaterError{At: reset, Err: errors.New("limit")})
		})
		r.desire(st(0, 0))
		c.Wake()
		wait(2 * time.Second)
		fg.failing(nil)
		for i := range 100 {
			r.desire(st(i, 1))
			c.Wake()
		}
		wait(time.Until(reset) - time.Millisecond)
		if _, tries := fg.count(); tries != 1 {
			t.Errorf("%d tries before the time, want 1", tries)
		}
		wait(20 * time.Second)
		if posts, _ := fg.count(); posts != 100 || !r.settled() {
			t.Errorf("%d of 100 posted after the time", posts)
		}
	})
}

func TestLatestWinsWhileAnOlderOneIsUnderWay(t *testing.T) {
	converge(t, func(t *testing.T, r *fakeRegister, fg *fakeForge, c *forge.Converger) {
		for i := range 10 {
			r.desire(st(0, i))
			c.Wake()
			wait(300 * time.Millisecond)
		}
		wait(3 * time.Second)
		if fg.shown[keyOf(st(0, 0))] != "pending9" || len(fg.posts) > 5 {
			t.Errorf("shown %q after %q", fg.shown[keyOf(st(0, 0))], fg.posts)
		}
	})
}

func TestSlowPostDoesNotHoldUpOthers(t *testing.T) {
	converge(t, func(t *testing.T, r *fakeRegister, fg *fakeForge, c *forge.Converger) {
		for i := range 40 {
			r.desire(st(i, 0))
		}
		c.Wake()
		wait(5*time.Second + 100*time.Millisecond)
		if posts, _ := fg.count(); posts != 40 || fg.most != 8 {
			t.Errorf("%d of 40 in 5 s, %d at a time; want all, eight at a time", posts, fg.most)
		}
	})
}

func TestPostThatCouldNotBeNotedIsNotPostedAgain(t *testing.T) {
	converge(t, func(t *testing.T, r *fakeRegister, fg *fakeForge, c *forge.Converger) {
		r.repair(true)
		r.desire(st(0, 0))
		c.Wake()
		wait(time.Minute)
		if _, tries := fg.count(); tries != 1 {
			t.Errorf("%d posts while the register is broken, want 1", tries)
		}
		r.desire(st(0, 1)) // another version is posted all the same
		c.Wake()
		wait(time.Minute)
		r.repair(false)
		wait(time.Minute)
		if _, tries := fg.count(); tries != 2 || !r.settled() {
			t.Errorf("%d posts, settled %v; want 2 and settled", tries, r.settled())
		}
	})
}

func TestStopWaitsForPostsAndBlamesNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, fg := newRegister(), newForge()
		c := forge.NewConverger(forge.Config{Forge: fg, Register: r})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		r.desire(st(0, 0))
		go func() { done <- c.Run(ctx) }()
		wait(500 * time.Millisecond)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		if w := r.rows[keyOf(st(0, 0))]; fg.now != 0 || w.due.Tries != 0 || w.posted != "" {
			t.Errorf("under way %d, row %+v", fg.now, w)
		}
	})
}

// batching is a fakeForge for which a commit's statuses are one write.
type batching struct {
	*fakeForge
	batches []int
}

func (b *batching) PostAll(ctx context.Context, _ pipeline.CommitID, list []pipeline.Status) error {
	for _, s := range list {
		if s.State == "bad" {
			return fault.New(fault.Invalid, "bad")
		}
	}
	b.mu.Lock()
	b.batches = append(b.batches, len(list))
	b.mu.Unlock()
	for _, s := range list {
		if err := b.Post(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

func TestStatusesOfOneCommitGoTogetherAndABadOneAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, fg := newRegister(), &batching{fakeForge: newForge()}
		fg.failing(func(s pipeline.Status) error {
			if s.State == "bad" {
				return fault.New(fault.Invalid, "bad")
			}
			return nil
		})
		c := forge.NewConverger(forge.Config{Forge: fg, Register: r})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		for i := range 20 {
			r.desire(st(i, 0))
		}
		go func() { done <- c.Run(ctx) }()
		wait(30 * time.Second)
		if fmt.Sprint(fg.batches) != "[20]" || !r.settled() {
			t.Errorf("batches %v, want one of 20", fg.batches)
		}
		for i := range 5 {
			s := st(i, 1)
			if i == 2 {
				s.State = "bad"
			}
			r.desire(s)
		}
		c.Wake()
		wait(30 * time.Second)
		if n := len(fg.posts); n != 24 {
			t.Errorf("%d posts, want the four good ones too", n)
		}
		cancel()
		<-done
	})
}

// TestForgeConvergesThroughAnyFaults is the contract in one property: whatever
// fails on the way, in the end each context shows what is desired.
func TestForgeConvergesThroughAnyFaults(t *testing.T) {
	t.Parallel()
	type step struct {
		Context, Version int
		Wait             time.Duration
		Fault            string
	}
	steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{
			rapid.IntRange(0, 3).Draw(t, "context"), rapid.IntRange(0, 5).Draw(t, "version"),
			time.Duration(rapid.IntRange(0, 5000).Draw(t, "wait")) * time.Millisecond,
			rapid.SampledFrom([]string{"", "", "down", "limit", "lost reply", "register"}).Draw(t, "fault"),
		}
	}), 1, 20)
	rapid.Check(t, func(rt *rapid.T) {
		plan := steps.Draw(rt, "steps")
		var failure string
		synctest.Test(t, func(t *testing.T) {
			r, fg := newRegister(), newForge()
			c := forge.NewConverger(forge.Config{Forge: fg, Register: r})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- c.Run(ctx) }()
			want := map[string]string{}
			for _, s := range plan {
				r.repair(s.Fault == "register")
				fg.failing(map[string]func(pipeline.Status) error{
					"down": func(pipeline.Status) error { return fault.New(fault.Unavailable, "down") },
					"limit": func(pipeline.Status) error {
						return &forge.LaterError{At: time.Now().Add(time.Minute), Err: errors.New("limit")}
					},
					"lost reply": func(s pipeline.Status) error {
						fg.shown[keyOf(s)] = s.State + s.Description
						return fault.New(fault.Unavailable, "reply lost")
					},
				}[s.Fault])
				status := st(s.Context, s.Version)
				r.desire(status)
				want[keyOf(status)] = status.State + status.Description
				c.Wake()
				wait(s.Wait)
			}
			r.repair(false)
			fg.failing(nil)
			wait(30 * time.Minute)
			for k, w := range want {
				if got := fg.shown[k]; got != w {
					failure = fmt.Sprintf("%s shows %q, want %q", k, got, w)
				}
			}
			if !r.settled() || fg.overlap {
				failure += fmt.Sprintf(" settled %v, overlap %v", r.settled(), fg.overlap)
			}
			cancel()
			<-done
		})
		if failure != "" {
			rt.Fatal(failure)
		}
	})
}
