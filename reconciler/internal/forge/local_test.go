package forge_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
)

type git struct {
	t   testing.TB
	dir string
}

func newGit(t testing.TB) git {
	t.Helper()
	g := git{t, filepath.Join(t.TempDir(), "work")}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	g.run("init", "-q", "-b", "main")
	return g
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

func (g git) commit(message string) pipeline.CommitID {
	g.t.Helper()
	g.run("commit", "-q", "--allow-empty", "-m", message)
	return pipeline.CommitID(g.run("rev-parse", "HEAD"))
}

func (g git) local() *forge.Local {
	g.t.Helper()
	repo, err := gitrepo.Open(g.t.Context(), gitrepo.Options{URL: g.dir})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = repo.Close() })
	return forge.NewLocal(repo)
}

func TestLocalStatusesAreNotesThatGitShows(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	l := g.local()
	post := func(context, state, description string) {
		t.Helper()
		if err := l.Post(t.Context(), pipeline.Status{Commit: id, Context: context, State: state, Description: description, URL: "http://127.0.0.1:8420/c/x/1"}); err != nil {
			t.Fatal(err)
		}
	}
	post("maestro/run/hello", "pending", "1 of 2 tasks")
	post("maestro", "pending", `needs "x" & <y>`)
	post("maestro/run/hello", "success", "2 of 2 tasks")
	want := `{"context":"maestro","state":"pending","description":"needs \"x\" & <y>","url":"http://127.0.0.1:8420/c/x/1"}
{"context":"maestro/run/hello","state":"success","description":"2 of 2 tasks","url":"http://127.0.0.1:8420/c/x/1"}`
	if got := g.run("notes", "--ref", "maestro/status", "show", string(id)); got != want {
		t.Errorf("git shows\n%s\nwant\n%s", got, want)
	}
	got, err := l.Statuses(t.Context(), id)
	if err != nil || len(got) != 2 || got[1].State != "success" || got[0].Commit != id {
		t.Errorf("Statuses = %+v, %v", got, err)
	}
	if got, err := l.Statuses(t.Context(), g.commit("two")); err != nil || len(got) != 0 {
		t.Errorf("Statuses of a fresh commit = %+v, %v", got, err)
	}
}

func TestManyStatusesOfACommitAreOneWrite(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	l := g.local()
	var list, want []pipeline.Status
	for i := range 30 {
		s := pipeline.Status{Commit: id, Context: fmt.Sprintf("maestro/run/c%02d", i), State: "success", Description: "x"}
		list, want = append(list, s), append(want, s)
	}
	older := want[5]
	older.State = "pending"
	if err := l.PostAll(t.Context(), id, append([]pipeline.Status{older}, list...)); err != nil {
		t.Fatal(err)
	}
	got, err := l.Statuses(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("statuses differ (-want +got):\n%s", diff)
	}
	if n := g.run("rev-list", "--count", string(forge.StatusNotes)); n != "1" {
		t.Errorf("%s writes, want 1", n)
	}
}

func TestStatusesOfManyAtOnceAreAllKept(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	var wg sync.WaitGroup
	for w := range 3 {
		l := g.local()
		for i := range 4 {
			wg.Go(func() {
				if err := l.Post(t.Context(), pipeline.Status{Commit: id, Context: fmt.Sprintf("c%d-%d", w, i), State: "success"}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if got, err := g.local().Statuses(t.Context(), id); err != nil || len(got) != 12 {
		t.Errorf("%d of 12 statuses are kept, %v", len(got), err)
	}
}

func TestNotesOfOthersDoNoHarm(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	l := g.local()
	for name, text := range map[string]string{
		"prose": "looks good to me", "garbage": "{\"context\":\x01}\n[1,2]\nnull\n{}", "unknown state": `{"context":"x","state":"running"}`,
		"script": `{"context":"x","state":"success","url":"javascript:alert(1)"}`, "huge": strings.Repeat("x", 1<<16),
	} {
		g.run("notes", "--ref", "maestro/status", "add", "-f", "-m", text, string(id))
		if got, err := l.Statuses(t.Context(), id); err != nil || len(got) != 0 {
			t.Errorf("%s: Statuses = %+v, %v, want none", name, got, err)
		}
		if err := l.Post(t.Context(), pipeline.Status{Commit: id, Context: "maestro", State: "success"}); err != nil {
			t.Errorf("%s: Post = %v", name, err)
		}
		if got, err := l.Statuses(t.Context(), id); err != nil || len(got) != 1 {
			t.Errorf("%s: Statuses = %+v, %v, want ours", name, got, err)
		}
	}
}

func TestOneBadStatusRefusesTheWholeBatch(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	l := g.local()
	err := l.PostAll(t.Context(), id, []pipeline.Status{{Context: "a", State: "success"}, {Context: "b", State: "done"}})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("PostAll = %v, want invalid", err)
	}
	if got, _ := l.Statuses(t.Context(), id); len(got) != 0 {
		t.Errorf("%d were written", len(got))
	}
}

func FuzzStatusesFromNotes(f *testing.F) {
	f.Add(`{"context":"maestro","state":"success","description":"x"}`)
	f.Add("{}\nnull\n[]\n\xff")
	f.Fuzz(func(t *testing.T, text string) {
		again, err := forge.RewriteNote(text)
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := forge.RewriteNote(again); err != nil || twice != again {
			t.Errorf("written again it differs: %q, %q, %v", again, twice, err)
		}
	})
}

func BenchmarkPostLocal(b *testing.B) {
	g := newGit(b)
	id := g.commit("one")
	l := g.local()
	n := 0
	for b.Loop() {
		n++
		if err := l.Post(b.Context(), pipeline.Status{Commit: id, Context: "maestro", State: "pending", Description: fmt.Sprint(n)}); err != nil {
			b.Fatal(err)
		}
	}
}
