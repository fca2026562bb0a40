package gitrepo_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// git is a repository that the git program works on.
type git struct {
	t   testing.TB
	dir string
}

// newGit makes a repository with a worktree.
func newGit(t testing.TB) git {
	t.Helper()
	g := git{t, filepath.Join(t.TempDir(), "work")}
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	g.run("init", "-q", "-b", "main")
	return g
}

// bare clones it to a bare repository that becomes its origin.
func (g git) bare() git {
	g.t.Helper()
	b := git{g.t, filepath.Join(g.t.TempDir(), "bare.git")}
	g.run("clone", "-q", "--bare", g.dir, b.dir)
	g.run("remote", "add", "origin", b.dir)
	return b
}

func (g git) run(args ...string) string { g.t.Helper(); return g.pipe("", args...) }

// pipe runs git with text on its standard input.
func (g git) pipe(stdin string, args ...string) string {
	g.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = g.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + g.dir, "GIT_CONFIG_NOSYSTEM=1", "LC_ALL=C", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=Ana", "GIT_AUTHOR_EMAIL=ana@example.org", "GIT_COMMITTER_NAME=Ana", "GIT_COMMITTER_EMAIL=ana@example.org",
		"GIT_AUTHOR_DATE=1700000000 +0100", "GIT_COMMITTER_DATE=1700000000 +0100",
	}
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		g.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimRight(out.String(), "\n")
}

func (g git) write(name, text string) {
	g.t.Helper()
	p := filepath.Join(g.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		g.t.Fatal(err)
	}
}

// commit commits everything in the worktree.
func (g git) commit(message string) pipeline.CommitID {
	g.t.Helper()
	g.run("add", "-A")
	g.run("commit", "-q", "--allow-empty", "-m", message)
	return g.rev("HEAD")
}

func (g git) rev(what string) pipeline.CommitID {
	g.t.Helper()
	return pipeline.CommitID(g.run("rev-parse", what))
}

// commitTree commits a tree that was made by hand.
func (g git) commitTree(tree string) pipeline.CommitID {
	g.t.Helper()
	return pipeline.CommitID(g.run("commit-tree", tree, "-m", "made by hand"))
}

func open(t testing.TB, o gitrepo.Options) *gitrepo.Repo {
	t.Helper()
	r, err := gitrepo.Open(t.Context(), o)
	if err != nil {
		t.Fatalf("Open(%s): %v", o.URL, err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return r
}

func fetch(t testing.TB, r *gitrepo.Repo) gitrepo.Refs {
	t.Helper()
	refs, err := r.Fetch(t.Context())
	if err != nil {
		t.Fatalf("Fetch: %v", err)
	}
	return refs
}
