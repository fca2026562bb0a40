//go:build unix

package plugins_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// upstream is a repository to fetch from, and a clone in which commits are made.
type upstream struct {
	t    testing.TB
	bare string
	work string
}

func newUpstream(t testing.TB) *upstream {
	t.Helper()
	u := &upstream{t, filepath.Join(t.TempDir(), "acme.git"), filepath.Join(t.TempDir(), "work")}
	u.git(".", "init", "-q", "--bare", "-b", "main", u.bare)
	u.git(".", "clone", "-q", u.bare, u.work)
	u.git(u.work, "checkout", "-q", "-b", "main")
	u.commit("one", "file", "1\n")
	return u
}

func (u *upstream) git(dir string, args ...string) string {
	u.t.Helper()
	cmd := exec.Command("git", args...)
	if dir != "." {
		cmd.Dir = dir
	}
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "GIT_ALLOW_PROTOCOL=file",
		"GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@acme.example", "GIT_COMMITTER_NAME=A", "GIT_COMMITTER_EMAIL=a@acme.example",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		u.t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit changes a file on the current branch, pushes it and returns its name.
func (u *upstream) commit(subject, file, text string) string {
	u.t.Helper()
	write(u.t, filepath.Join(u.work, file), text)
	u.git(u.work, "add", "-A")
	u.git(u.work, "commit", "-q", "-m", subject)
	u.git(u.work, "push", "-q", "--force", "origin", "HEAD")
	return u.git(u.work, "rev-parse", "HEAD")
}

func checkout(t testing.TB, s seat, fields map[string]any, env ...string) ended {
	t.Helper()
	return s.run(t, standard(t, "git/checkout"), fields, env...)
}

// good fails the test when the checkout did.
func (e ended) good(t testing.TB, dir, commit string) {
	t.Helper()
	if e.exit != 0 || e.outputs["workdir"] != dir || e.outputs["commit"] != commit {
		t.Fatalf("exit %d, outputs %v, want %s at %s; log:\n%s", e.exit, e.outputs, dir, commit, e.log)
	}
}

// bad fails the test when the checkout did not, or did not say why.
func (e ended) bad(t testing.TB, why string) {
	t.Helper()
	if e.exit == 0 || !strings.Contains(e.log, why) || len(e.outputs) > 0 {
		t.Errorf("exit %d, outputs %v, want the reason %q; log:\n%s", e.exit, e.outputs, why, e.log)
	}
}

func TestCheckoutTakesTheCommitOfTheRun(t *testing.T) {
	t.Parallel()
	u, s := newUpstream(t), newSeat(t)
	first := u.git(u.work, "rev-parse", "HEAD")
	u.commit("two", "file", "2\n")
	e := checkout(t, s, nil, "MAESTRO_REPO="+u.bare, "MAESTRO_COMMIT="+first)
	e.good(t, "src", first)
	if got := read(t, filepath.Join(s.workspace, "src", "file")); got != "1\n" {
		t.Errorf("file = %q", got)
	}
	if !strings.Contains(e.log, "one") {
		t.Errorf("log does not tell the subject: %q", e.log)
	}
}

func TestCheckoutFindsEveryKindOfRef(t *testing.T) {
	t.Parallel()
	u, s := newUpstream(t), newSeat(t)
	first := u.git(u.work, "rev-parse", "HEAD")
	u.git(u.work, "tag", "-a", "-m", "x", "v1")
	u.git(u.work, "tag", "both")
	u.git(u.work, "push", "-q", "--tags")
	u.git(u.work, "checkout", "-q", "-b", "topic/a")
	topic := u.commit("topic", "file", "t\n")
	u.git(u.work, "push", "-q", "origin", "HEAD:refs/pull/3/head", "HEAD:refs/heads/both")
	u.git(u.work, "checkout", "-q", "main")
	tip := u.commit("two", "file", "2\n")
	for _, c := range []struct{ ref, want string }{
		{"main", tip},
		{"topic/a", topic},
		{"v1", first},
		{"refs/tags/v1", first},
		{"refs/pull/3/head", topic},
		{"both", topic},
		{"refs/tags/both", first},
		{first, first},
		{"", tip},
	} {
		for _, depth := range []any{nil, 1} {
			if depth != nil && strings.HasPrefix(c.ref, "refs/") {
				continue
			}
			fields := map[string]any{"url": u.bare, "ref": c.ref, "dir": "a dir/src"}
			if depth != nil {
				fields["depth"] = depth
			}
			e := checkout(t, s, fields, "MAESTRO_REPO=/other.git", "MAESTRO_COMMIT="+strings.Repeat("1", 40))
			e.good(t, "a dir/src", c.want)
		}
	}
	checkout(t, s, map[string]any{"url": u.bare, "ref": "gone"}).bad(t, "has no branch, tag or commit gone")
	checkout(t, s, map[string]any{"url": u.bare, "ref": "gone", "depth": 1}).bad(t, "has no branch, tag or commit gone")
	checkout(t, s, map[string]any{"url": u.bare, "ref": strings.Repeat("a", 40)}).bad(t, "could not be checked out")
}

func TestCheckoutFetchesACommitThatNoBranchHolds(t *testing.T) {
	t.Parallel()
	u, s := newUpstream(t), newSeat(t)
	checkout(t, s, map[string]any{"url": u.bare, "ref": "main"}).good(t, "src", u.git(u.work, "rev-parse", "HEAD"))
	u.git(u.work, "checkout", "-q", "-b", "pr")
	pr := u.commit("pr", "file", "pr\n")
	u.git(u.work, "push", "-q", "origin", "HEAD:refs/pull/9/head", ":pr")
	checkout(t, s, map[string]any{"url": u.bare, "ref": pr}).good(t, "src", pr)
}

func TestCheckoutIsKeptWarmAndCleaned(t *testing.T) {
	t.Parallel()
	u, s := newUpstream(t), newSeat(t)
	write(t, filepath.Join(u.work, ".gitignore"), "ignored/\n")
	first := u.commit("ignore", "dir/deep", "1\n")
	checkout(t, s, map[string]any{"url": u.bare, "ref": first}).good(t, "src", first)
	src := filepath.Join(s.workspace, "src")
	before, err := os.Stat(filepath.Join(src, ".git"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(src, "ignored", "x"), "left over")
	write(t, filepath.Join(src, "nested", ".git", "HEAD"), "ref: refs/heads/x\n")
	write(t, filepath.Join(src, "dir", "deep"), "changed")
	write(t, filepath.Join(src, ".git", "index.lock"), "")
	write(t, filepath.Join(src, "second"), "in the way of the next commit")
	if err := os.Remove(filepath.Join(src, "file")); err != nil {
		t.Fatal(err)
	}
	second := u.commit("second", "second", "2\n")
	checkout(t, s, map[string]any{"url": u.bare, "ref": second}).good(t, "src", second)
	var names []string
	entries, err := os.ReadDir(src)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{".git", ".gitignore", "dir", "file", "second"}; !slices.Equal(names, want) {
		t.Errorf("the folder holds %v, want %v", names, want)
	}
	if got := read(t, filepath.Join(src, "dir", "deep")); got != "1\n" {
		t.Errorf("dir/deep = %q", got)
	}
	after, err := os.Stat(filepath.Join(src, ".git"))
	if err != nil || !os.SameFile(before, after) {
		t.Error("the clone was made anew instead of kept")
	}
}

func TestKnownCommitNeedsNoNetwork(t *testing.T) {
	t.Parallel()
	u, s := newUpstream(t), newSeat(t)
	first := u.git(u.work, "rev-parse", "HEAD")
	checkout(t, s, map[string]any{"url": u.bare, "ref": first}).good(t, "src", first)
	if err := os.Rename(u.bare, u.bare+".away"); err != nil {
		t.Fatal(err)
	}
	checkout(t, s, map[string]any{"url": u.bare, "ref": first}).good(t, "src", first)
	checkout(t, s, map[string]any{"url": u.bare, "ref": first, "dir": "again"}).good(t, "again", first)
	checkout(t, s, map[string]any{"url": u.bare, "ref": "main"}).bad(t, "could not be checked out")
}

func TestForeignFolderIsNotOverwritten(t *testing.T) {
	t.Parallel()
	u, other, s := newUpstream(t), newUpstream(t), newSeat(t)
	first := u.git(u.work, "rev-parse", "HEAD")
	checkout(t, s, map[string]any{"url": u.bare}).good(t, "src", first)
	checkout(t, s, map[string]any{"url": other.bare}).bad(t, "holds a clone of "+u.bare)
	write(t, filepath.Join(s.workspace, "mine", "notes"), "precious")
	checkout(t, s, map[string]any{"url": u.bare, "dir": "mine"}).bad(t, "set the field dir to another folder")
	if read(t, filepath.Join(s.workspace, "mine", "notes")) != "precious" || read(t, filepath.Join(s.workspace, "src", "file")) != "1\n" {
		t.Error("something was overwritten")
	}
	if err := os.Mkdir(filepath.Join(s.workspace, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	checkout(t, s, map[string]any{"url": u.bare, "dir": "empty"}).good(t, "empty", first)
}

func TestBrokenCloneAndMirrorAreMadeAnew(t *testing.T) {
	t.Parallel()
	u, s := newUpstream(t), newSeat(t)
	first := u.git(u.work, "rev-parse", "HEAD")
	fields := map[string]any{"url": u.bare, "ref": first}
	checkout(t, s, fields).good(t, "src", first)
	if err := os.RemoveAll(filepath.Join(s.workspace, "src", ".git", "objects")); err != nil {
		t.Fatal(err)
	}
	checkout(t, s, fields).good(t, "src", first)
	mirrors, err := filepath.Glob(filepath.Join(s.cache, "git", "*.git"))
	if err != nil || len(mirrors) != 1 {
		t.Fatalf("mirrors: %v, %v", mirrors, err)
	}
	if err := os.Remove(filepath.Join(mirrors[0], "HEAD")); err != nil {
		t.Fatal(err)
	}
	checkout(t, s, fields).good(t, "src", first)
}

func TestDepthLimitsHistoryAndGoesAwayAgain(t *testing.T) {
	t.Parallel()
	u, s := newUpstream(t), newSeat(t)
	u.commit("two", "file", "2\n")
	tip := u.commit("three", "file", "3\n")
	count := func() string { return u.git(filepath.Join(s.workspace, "src"), "rev-list", "--count", "HEAD") }
	fields := map[string]any{"url": u.bare, "ref": "main", "depth": 2}
	checkout(t, s, fields).good(t, "src", tip)
	if got := count(); got != "2" {
		t.Errorf("%s commits, want 2", got)
	}
	if m, _ := filepath.Glob(filepath.Join(s.cache, "git", "*.git")); len(m) != 0 {
		t.Errorf("a shallow checkout made a full mirror")
	}
	delete(fields, "depth")
	checkout(t, s, fields).good(t, "src", tip)
	if got := count(); got != "3" {
		t.Errorf("%s commits, want 3", got)
	}
}

// What an earlier task left in the clone, and what the repository carries, is not run.
func TestNothingOfTheRepositoryIsRun(t *testing.T) {
	t.Parallel()
	u, s := newUpstream(t), newSeat(t)
	write(t, filepath.Join(u.work, ".gitattributes"), "* filter=evil\n")
	write(t, filepath.Join(u.work, ".gitmodules"), "[submodule \"x\"]\n\tpath = x\n\turl = ext::sh -c touch% hacked\n")
	first := u.commit("one", "file", "1\n")
	fields := map[string]any{"url": u.bare, "ref": first}
	checkout(t, s, fields).good(t, "src", first)
	marker := filepath.Join(s.workspace, "hacked")
	git := filepath.Join(s.workspace, "src", ".git")
	evil := "#!/bin/sh\ntouch '" + marker + "'\n"
	for _, hook := range []string{"post-checkout", "pre-auto-gc", "reference-transaction", "post-index-change"} {
		write(t, filepath.Join(git, "hooks", hook), evil)
		if err := os.Chmod(filepath.Join(git, "hooks", hook), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(git, "config"), read(t, filepath.Join(git, "config"))+`
[filter "evil"]
	smudge = touch '`+marker+`'
	clean = touch '`+marker+`'
[core]
	fsmonitor = touch '`+marker+`'
	sshCommand = touch '`+marker+`'
	worktree = /
[alias]
	clean = !touch '`+marker+`'
`)
	home := t.TempDir()
	write(t, filepath.Join(home, ".gitconfig"), "[core]\n\thooksPath = "+filepath.Join(git, "hooks")+"\n")
	second := u.commit("two", "file", "2\n")
	fields["ref"] = second
	checkout(t, s, fields, "HOME="+home).good(t, "src", second)
	if _, err := os.Stat(marker); err == nil {
		t.Error("something of the repository was run")
	}
	if got := read(t, filepath.Join(s.workspace, "src", "file")); got != "2\n" {
		t.Errorf("file = %q", got)
	}
}

func TestHostileFieldsAreRefused(t *testing.T) {
	t.Parallel()
	u, s := newUpstream(t), newSeat(t)
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(s.workspace, "link")); err != nil {
		t.Fatal(err)
	}
	token := map[string]any{"secret": "t", "value": "CANARY-token"}
	for _, f := range []map[string]any{
		{"url": "--upload-pack=touch hacked"},
		{"url": "ext::sh -c touch% hacked"},
		{"url": "http://git.acme.example/x.git"},
		{"url": "http://127.0.0.1.evil.example/x.git"},
		{"url": "http://localhost@evil.example/x.git"},
		{"url": "git://git.acme.example/x.git"},
		{"url": "ftp://x/y"},
		{"url": "relative/path"},
		{"url": "https://u:CANARY-p@h/x"},
		{"url": "ssh://-oProxyCommand=touch hacked/x"},
		{"url": "git@-oProxyCommand=touch:x"},
		{"url": "https://x/\ny"},
		{"url": "file://relative"},
		{"url": "fd::17"},
		{"url": "ssh://h/x", "credentials": token},
		{"url": u.bare, "credentials": token},
		{"url": u.bare, "ref": "--force"},
		{"url": u.bare, "ref": "a..b"},
		{"url": u.bare, "ref": "a b"},
		{"url": u.bare, "ref": "refs/heads/*"},
		{"url": u.bare, "ref": "x:refs/heads/main"},
		{"url": u.bare, "ref": "main\nx"},
		{"url": u.bare, "ref": "@{-1}"},
		{"url": u.bare, "dir": "../out"},
		{"url": u.bare, "dir": "/abs"},
		{"url": u.bare, "dir": "a/../../b"},
		{"url": u.bare, "dir": "-x"},
		{"url": u.bare, "dir": "."},
		{"url": u.bare, "dir": "a/.git"},
		{"url": u.bare, "dir": "link/x"},
		{"url": u.bare, "dir": "link"},
		{"url": u.bare, "dir": "a\nb"},
		{"url": u.bare, "depth": 0},
		{"url": u.bare, "depth": "1 --upload-pack=x"},
	} {
		e := checkout(t, s, f)
		e.bad(t, "git/checkout: ")
		if strings.Contains(e.log, "CANARY") {
			t.Errorf("%v: the log tells a secret", f)
		}
	}
	for _, dir := range []string{outside, filepath.Dir(s.workspace)} {
		entries, err := os.ReadDir(dir)
		if err != nil || dir == outside && len(entries) > 0 {
			t.Errorf("%s holds %v, %v", dir, entries, err)
		}
	}
	if _, err := os.Stat(filepath.Join(s.workspace, "hacked")); err == nil {
		t.Error("a field was run as code")
	}
}

func TestManyCheckoutsAtOnce(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"flock", "perl"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			path := os.Getenv("PATH")
			if how == "perl" {
				path = without(t, "flock")
			}
			u, s := newUpstream(t), newSeat(t)
			tip := u.git(u.work, "rev-parse", "HEAD")
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					// Half of them want the same folder.
					dir := []string{"src", "one", "src", "two"}[i%4]
					e := checkout(t, s, map[string]any{"url": u.bare, "ref": "main", "dir": dir}, "PATH="+path)
					if e.exit != 0 || e.outputs["commit"] != tip {
						t.Errorf("exit %d, log %s", e.exit, e.log)
					}
				})
			}
			wg.Wait()
		})
	}
}

// without is a PATH that lacks a program.
func without(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"sh", "git", "perl", "cat", "rm", "mv", "mkdir", "find", "chmod", "ls", "grep"} {
		path, err := exec.LookPath(name)
		if err != nil || name == program {
			t.Skipf("%s: %v", name, err)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
