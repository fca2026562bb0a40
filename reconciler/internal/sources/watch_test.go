package sources_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/sources"
)

type git struct {
	t   testing.TB
	dir string
}

func (g git) run(args ...string) string {
	g.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = g.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + g.dir, "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Ana", "GIT_AUTHOR_EMAIL=ana@example.org", "GIT_COMMITTER_NAME=Ana", "GIT_COMMITTER_EMAIL=ana@example.org",
	}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		g.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

func (g git) commit() pipeline.CommitID {
	g.t.Helper()
	g.run("commit", "-q", "--allow-empty", "-m", "x")
	return pipeline.CommitID(g.run("rev-parse", "HEAD"))
}

// pair is a worktree whose origin is a bare repository.
func pair(t testing.TB) (work, bare git) {
	t.Helper()
	dir := t.TempDir()
	work, bare = git{t, filepath.Join(dir, "work")}, git{t, filepath.Join(dir, "bare.git")}
	for _, d := range []string{work.dir, bare.dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	bare.run("init", "-q", "--bare", "-b", "main")
	work.run("init", "-q", "-b", "main")
	work.run("remote", "add", "origin", bare.dir)
	work.commit()
	work.run("push", "-q", "origin", "main")
	return work, bare
}

type seen struct {
	refs gitrepo.Refs
	at   time.Time
}

// counting tells how often a repository was looked at.
type counting struct {
	*gitrepo.Repo
	passes chan struct{}
}

func (c counting) Fetch(ctx context.Context) (gitrepo.Refs, error) {
	defer func() { c.passes <- struct{}{} }()
	return c.Repo.Fetch(ctx)
}

// follow runs a Source whose poll does not come during the test, unless poll says so.
func follow(t testing.TB, dir string, poll time.Duration) (<-chan seen, <-chan error) {
	t.Helper()
	refs, problems, _, _ := followClosely(t, dir, poll)
	return refs, problems
}

func followClosely(t testing.TB, dir string, poll time.Duration) (<-chan seen, <-chan error, *sources.Source[gitrepo.Refs], <-chan struct{}) {
	t.Helper()
	repo, err := gitrepo.Open(t.Context(), gitrepo.Options{URL: dir})
	if err != nil {
		t.Fatal(err)
	}
	refs, problems, passes := make(chan seen, 1000), make(chan error, 1000), make(chan struct{}, 10_000)
	src := sources.New(sources.Config[gitrepo.Refs]{
		Repo: counting{repo, passes}, Poll: poll,
		Observe: func(_ context.Context, r gitrepo.Refs) error { refs <- seen{r, time.Now()}; return nil },
		Problem: func(_ context.Context, err error) { problems <- err },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		_ = repo.Close()
	})
	return refs, problems, src, passes
}

const never = time.Hour

// until waits for an observation that satisfies ok.
func until(t testing.TB, refs <-chan seen, what string, ok func(gitrepo.Refs) bool) time.Time {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case s := <-refs:
			if ok(s.refs) {
				return s.at
			}
		case <-deadline:
			t.Fatalf("%s was never observed", what)
		}
	}
}

func receive(t testing.TB, problems <-chan error) error {
	t.Helper()
	select {
	case err := <-problems:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("no news of a problem or its end")
		return nil
	}
}

func at(ref pipeline.Ref, id pipeline.CommitID) func(gitrepo.Refs) bool {
	return func(r gitrepo.Refs) bool { return r.Tips[ref] == id }
}

func TestPushesAreNoticedWithoutPolling(t *testing.T) {
	t.Parallel()
	work, bare := pair(t)
	refs, _ := follow(t, bare.dir, never)
	until(t, refs, "the first state", func(gitrepo.Refs) bool { return true })

	id := work.commit()
	work.run("push", "-q", "origin", "main")
	until(t, refs, "a push", at("refs/heads/main", id))

	work.run("push", "-q", "origin", "HEAD:refs/heads/a/b/c/topic")
	until(t, refs, "a branch in new folders", at("refs/heads/a/b/c/topic", id))

	id = work.commit()
	work.run("push", "-q", "origin", "HEAD:refs/heads/a/b/c/topic")
	until(t, refs, "a push to the branch in new folders", at("refs/heads/a/b/c/topic", id))

	work.run("tag", "v1")
	work.run("push", "-q", "origin", "v1")
	until(t, refs, "a tag", at("refs/tags/v1", id))

	bare.run("pack-refs", "--all", "--prune")
	work.run("push", "-q", "origin", ":refs/heads/a/b/c/topic")
	until(t, refs, "a deleted packed branch", at("refs/heads/a/b/c/topic", ""))

	bare.run("symbolic-ref", "HEAD", "refs/heads/other")
	until(t, refs, "another default branch", func(r gitrepo.Refs) bool { return r.Head == "refs/heads/other" })

	work.run("push", "-q", "origin", "+HEAD~2:refs/heads/main")
	until(t, refs, "a force-push", at("refs/heads/main", pipeline.CommitID(work.run("rev-parse", "HEAD~2"))))
}

func TestCommitsInAWorktreeAreNoticed(t *testing.T) {
	t.Parallel()
	work, _ := pair(t)
	refs, _ := follow(t, work.dir, never)
	id := work.commit()
	until(t, refs, "a commit", at("refs/heads/main", id))
}

func TestMaestrosOwnRefsCauseNoPass(t *testing.T) {
	t.Parallel()
	work, bare := pair(t)
	refs, _ := follow(t, bare.dir, never)
	until(t, refs, "the first state", func(gitrepo.Refs) bool { return true })
	work.run("push", "-q", "origin", "HEAD:refs/maestro/x", "HEAD:refs/notes/maestro/status", "HEAD:refs/reviews/x/ana")
	id := work.commit()
	work.run("push", "-q", "origin", "main")
	until(t, refs, "a push", func(r gitrepo.Refs) bool {
		if len(r.Tips) != 1 {
			t.Errorf("refs = %v, want main only", r.Tips)
		}
		return r.Tips["refs/heads/main"] == id
	})
}

func TestRepositoryThatWasMovedAwayIsFoundWhenItIsBack(t *testing.T) {
	t.Parallel()
	work, bare := pair(t)
	refs, problems, src, passes := followClosely(t, bare.dir, never)
	until(t, refs, "the first state", func(gitrepo.Refs) bool { return true })
	away := bare.dir + ".away"
	if err := os.Rename(bare.dir, away); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, problems); err == nil || !strings.Contains(err.Error(), "no such folder") {
		t.Errorf("problem = %v, want that the folder is missing", err)
	}
	for len(passes) > 0 {
		<-passes
	}
	for range 12 { // until the pause between looks is minutes: what finds it then is a notice
		src.Hint()
		<-passes
	}
	id := work.commit()
	work.run("push", "-q", away, "main")
	if err := os.Rename(away, bare.dir); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, problems); err != nil {
		t.Errorf("problem = %v, want nil for recovery", err)
	}
	until(t, refs, "the repository that came back", at("refs/heads/main", id))
	id = work.commit()
	work.run("push", "-q", "origin", "main")
	until(t, refs, "a push afterwards", at("refs/heads/main", id))
}

func TestFolderThatIsSwappedForAnotherIsWatchedAgain(t *testing.T) {
	t.Parallel()
	work, bare := pair(t)
	refs, _ := follow(t, bare.dir, never)
	until(t, refs, "the first state", func(gitrepo.Refs) bool { return true })
	heads := filepath.Join(bare.dir, "refs", "heads")
	for i := range 5 {
		next, old := heads+".next", filepath.Join(t.TempDir(), "old")
		if err := os.Mkdir(next, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Rename(heads, old), os.Rename(next, heads)); err != nil {
			t.Fatal(err)
		}
		until(t, refs, "the branches gone", func(r gitrepo.Refs) bool { return len(r.Tips) == 0 })
		id := work.commit()
		branch := fmt.Sprintf("refs/heads/b%d", i)
		work.run("push", "-q", "origin", "HEAD:"+branch)
		until(t, refs, "a push into the other folder", at(pipeline.Ref(branch), id))
	}
}

func TestReplacedFolderIsWatchedAgainByThePoll(t *testing.T) {
	t.Parallel()
	work, bare := pair(t)
	refs, _ := follow(t, bare.dir, 20*time.Millisecond)
	until(t, refs, "the first state", func(gitrepo.Refs) bool { return true })
	heads := filepath.Join(bare.dir, "refs", "heads")
	for range 3 {
		if err := os.Rename(heads, heads+".old"); err != nil {
			t.Fatal(err)
		}
		until(t, refs, "the branches gone", func(r gitrepo.Refs) bool { return len(r.Tips) == 0 })
		if err := os.MkdirAll(heads, 0o755); err != nil {
			t.Fatal(err)
		}
		id := work.commit()
		work.run("push", "-q", "origin", "main")
		until(t, refs, "a push into the new folder", at("refs/heads/main", id))
		if err := os.RemoveAll(heads + ".old"); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkPushToObserved measures from the moment git has moved the ref: the
// time that the program itself takes to end is not ours.
func BenchmarkPushToObserved(b *testing.B) {
	work, bare := pair(b)
	refs, _ := follow(b, bare.dir, never)
	until(b, refs, "the first state", func(gitrepo.Refs) bool { return true })
	var took []time.Duration
	for b.Loop() {
		id := work.commit()
		work.run("push", "-q", "origin", "+HEAD:refs/heads/staging")
		until(b, refs, "staging", at("refs/heads/staging", id))
		path := filepath.Join(bare.dir, "refs", "heads", "main")
		start := time.Now()
		if err := os.WriteFile(path+".lock", []byte(id+"\n"), 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Rename(path+".lock", path); err != nil {
			b.Fatal(err)
		}
		took = append(took, until(b, refs, "main", at("refs/heads/main", id)).Sub(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs/median")
	b.ReportMetric(float64(took[len(took)*95/100].Microseconds()), "µs/p95")
}

func TestReviewsAndRequestsAreNoticedAsTheyArrive(t *testing.T) {
	t.Parallel()
	work, bare := pair(t)
	refs, _ := follow(t, bare.dir, time.Hour)
	deadline := time.After(10 * time.Second)
	await := func(name pipeline.Ref) {
		t.Helper()
		for {
			select {
			case s := <-refs:
				if s.refs.Own[name] != "" {
					return
				}
			case <-deadline:
				t.Fatalf("%s was not noticed", name)
			}
		}
	}
	head := work.run("rev-parse", "HEAD")
	for _, user := range []string{"ana", "bo"} { // the second into a folder that is there
		for _, ref := range []string{"refs/reviews/" + head + "/" + user, "refs/maestro/requests/" + user + "/1"} {
			work.run("push", "-q", "origin", "HEAD:"+ref)
			await(pipeline.Ref(ref))
		}
	}
}

// BenchmarkManyReviews is how long it takes to see the last of 2,000 refs, each in a
// folder of its own, as somebody makes them.
func BenchmarkManyReviews(b *testing.B) {
	work, bare := pair(b)
	head := work.run("rev-parse", "HEAD")
	refs, _ := follow(b, bare.dir, never)
	n := 0
	for b.Loop() {
		var lines strings.Builder
		for range 2000 {
			n++
			fmt.Fprintf(&lines, "create refs/reviews/%040x/ana %s\n", n, head)
		}
		cmd := exec.Command("git", "update-ref", "--stdin")
		cmd.Dir, cmd.Stdin = bare.dir, strings.NewReader(lines.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
		until(b, refs, "the last review", func(r gitrepo.Refs) bool { return len(r.Own) == n })
		bare.run("pack-refs", "--all", "--prune")
	}
}
