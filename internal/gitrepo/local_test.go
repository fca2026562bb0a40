package gitrepo_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestFetchShowsBranchesAndTagsAsTheyAre(t *testing.T) {
	t.Parallel()
	for _, packed := range []bool{false, true} {
		t.Run(fmt.Sprintf("packed=%v", packed), func(t *testing.T) {
			t.Parallel()
			g := newGit(t)
			one := g.commit("one")
			g.run("tag", "light")
			g.run("tag", "-a", "-m", "x", "heavy")
			g.run("tag", "-a", "-m", "x", "tagtag", "heavy")
			g.run("tag", "atree", "HEAD^{tree}")
			two := g.commit("two")
			g.run("branch", "feature/deep", string(one))
			g.run("branch", "refs/heads/main", string(one))
			g.run("update-ref", "refs/maestro/x", string(one))
			g.run("update-ref", "refs/reviews/x/ana", string(one))
			g.run("update-ref", "refs/remotes/origin/x", string(one))
			g.run("notes", "--ref", "maestro/status", "add", "-m", "x")
			if packed {
				g.run("pack-refs", "--all")
			}
			r := open(t, gitrepo.Options{URL: g.dir})
			want := gitrepo.Refs{Head: "refs/heads/main", Tips: map[pipeline.Ref]pipeline.CommitID{
				"refs/heads/main": two, "refs/heads/feature/deep": one, "refs/heads/refs/heads/main": one,
				"refs/tags/light": one, "refs/tags/heavy": one, "refs/tags/tagtag": one,
			}, Own: map[pipeline.Ref]string{"refs/maestro/x": string(one), "refs/reviews/x/ana": string(one)}}
			for range 2 { // the second time tags come from memory
				if diff := cmp.Diff(want, fetch(t, r)); diff != "" {
					t.Errorf("refs differ (-want +got):\n%s", diff)
				}
			}
			g.run("branch", "-D", "feature/deep")
			g.run("update-ref", "refs/heads/main", string(one))
			got := fetch(t, r)
			if _, there := got.Tips["refs/heads/feature/deep"]; there {
				t.Error("a deleted branch is still shown")
			}
			if got.Tip() != one {
				t.Errorf("forced branch is at %s, want %s", got.Tip(), one)
			}
			if got.Equal(want) {
				t.Error("refs that differ are called equal")
			}
		})
	}
}

func TestEveryFormOfLocalRepositoryOpens(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	b := g.bare()
	linked := filepath.Join(t.TempDir(), "linked")
	g.run("worktree", "add", "-q", "-b", "side", linked)
	for name, url := range map[string]string{
		"worktree": g.dir, "git folder": filepath.Join(g.dir, ".git"), "bare": b.dir, "file url": "file://" + b.dir, "linked worktree": linked,
	} {
		r := open(t, gitrepo.Options{URL: url})
		if got := fetch(t, r).Tips["refs/heads/main"]; got != id {
			t.Errorf("%s: main is at %q, want %s", name, got, id)
		}
		if len(r.WatchDirs()) == 0 {
			t.Errorf("%s: nothing to watch", name)
		}
	}
}

func TestEmptyRepositoryHasNoRefsAndNoError(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	got := fetch(t, open(t, gitrepo.Options{URL: g.dir}))
	if len(got.Tips) != 0 || got.Head != "refs/heads/main" || got.Tip() != "" {
		t.Errorf("Fetch = %+v, want no tips and the unborn main", got)
	}
}

func TestWhatCannotBeOpenedSaysWhatToDo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	sha256 := newGit(t)
	sha256.run("config", "core.repositoryformatversion", "1")
	sha256.run("config", "extensions.objectformat", "sha256")
	borrowed := newGit(t)
	borrowed.write(".git/objects/info/alternates", "/elsewhere\n")
	for _, c := range []struct {
		name, url string
		kind      fault.Kind
		says      string
	}{
		{"missing", filepath.Join(dir, "no"), fault.NotFound, "git init"},
		{"plain folder", dir, fault.Invalid, "not a Git repository"},
		{"file", file, fault.Invalid, "it is a file"},
		{"sha256", sha256.dir, fault.Invalid, "object format"},
		{"alternates", borrowed.dir, fault.Invalid, "repack"},
		{"empty", "", fault.Invalid, "is empty"},
		{"option", "--upload-pack=touch /tmp/x", fault.Invalid, "begins with a dash"},
		{"ssh option", "ssh://-oProxyCommand=x/", fault.Invalid, ""},
		{"ssh", "ssh://git@example.org/x", fault.Invalid, ""},
		{"scp", "git@example.org:x/y", fault.Invalid, "ssh addresses"},
		{"git protocol", "git://example.org/x", fault.Invalid, "scheme"},
		{"helper", "ext::sh -c x", fault.Invalid, ""},
		{"plain http", "http://example.org/x", fault.Invalid, "https://"},
		{"dash host", "https://-x/y", fault.Invalid, "dash"},
		{"query", "https://example.org/x?y=z", fault.Invalid, "query"},
		{"no host", "https:///x", fault.Invalid, "host"},
		{"newline", "https://example.org/x\ny", fault.Invalid, ""},
		{"remote file", "file://server/x", fault.Invalid, "other machine"},
		{"no mirror", "https://example.org/x", fault.Invalid, "mirror"},
	} {
		_, err := gitrepo.Open(t.Context(), gitrepo.Options{URL: c.url})
		if fault.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: Open = %v (%s), want %s that says %q", c.name, err, fault.KindOf(err), c.kind, c.says)
		}
	}
}

func TestCredentialsInAnAddressAreRefusedAndNotRepeated(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"https://ana:hunter2@example.org/x", "https://hunter2@example.org/x", "https://ana:hunter2%zz@example.org/x",
		"http://ana:hunter2@127.0.0.1/x", "https://example.org:hunter2@evil/x",
	} {
		_, err := gitrepo.Open(t.Context(), gitrepo.Options{URL: url, Dir: t.TempDir()})
		if !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open(%s) = %v, want a refusal without the password", url, err)
		}
	}
}

func TestRepositoryThatVanishesIsNotFoundUntilItIsBack(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	b := g.bare()
	r := open(t, gitrepo.Options{URL: b.dir})
	if err := os.Rename(b.dir, b.dir+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Fetch(t.Context()); !fault.Is(err, fault.NotFound) {
		t.Errorf("Fetch = %v, want not found", err)
	}
	if err := os.Rename(b.dir+".away", b.dir); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, r).Tip(); got != id {
		t.Errorf("tip = %q, want %s", got, id)
	}
}

func TestObjectsPushedOrPackedAfterOpeningAreSeen(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.write("f", "0")
	g.commit("zero")
	b := g.bare()
	r := open(t, gitrepo.Options{URL: b.dir})
	check := func(id pipeline.CommitID, want string) {
		t.Helper()
		if got := fetch(t, r).Tip(); got != id {
			t.Fatalf("tip = %s, want %s", got, id)
		}
		tree, err := r.Tree(t.Context(), id)
		if err != nil {
			t.Fatalf("%s: %v", want, err)
		}
		if got, err := fs.ReadFile(tree, "f"); err != nil || string(got) != want {
			t.Fatalf("f = %q, %v, want %q", got, err, want)
		}
	}
	for i := range 3 {
		text := fmt.Sprint("loose ", i)
		g.write("f", text)
		id := g.commit(text)
		g.run("push", "-q", "origin", "main")
		check(id, text)
		text = fmt.Sprint("packed ", i)
		g.write("f", text)
		id = g.commit(text)
		g.run("-c", "fetch.unpackLimit=1", "push", "-q", "origin", "main")
		b.run("repack", "-q", "-a", "-d")
		check(id, text)
		text = fmt.Sprint("collected ", i)
		g.write("f", text)
		id = g.commit(text)
		g.run("push", "-q", "origin", "main")
		check(id, text)
		b.run("gc", "-q", "--prune=now")
		b.run("repack", "-q", "-a", "-d", "-f")
		check(id, text)
	}
}

func TestTreeOutlivesGarbageCollection(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	for i := range 50 {
		g.write(fmt.Sprintf("d%d/f", i), fmt.Sprint(i))
	}
	id := g.commit("one")
	g.run("repack", "-q", "-a", "-d")
	r := open(t, gitrepo.Options{URL: g.dir})
	tree, err := r.Tree(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if i%10 == 5 { // packs get other names under the open tree
			g.commit("more")
			g.run("repack", "-q", "-a", "-d", "-f")
		}
		if got, err := tree.ReadFile(fmt.Sprintf("d%d/f", i)); err != nil || string(got) != fmt.Sprint(i) {
			t.Fatalf("d%d/f = %q, %v", i, got, err)
		}
	}
}

func TestObjectsThatArriveInAPackAreSeenWithoutAFetch(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.commit("zero")
	g.run("repack", "-q", "-a", "-d")
	r := open(t, gitrepo.Options{URL: g.dir})
	for i := range 5 {
		if _, err := r.Commit(t.Context(), g.rev("HEAD")); err != nil { // loads what packs there are
			t.Fatal(err)
		}
		id := g.commit(fmt.Sprint(i))
		g.run("repack", "-q", "-a", "-d")
		if _, err := r.Commit(t.Context(), id); err != nil {
			t.Errorf("commit %d: %v", i, err)
		}
	}
}

func TestObjectWhoseContentIsNotItsNameIsRefused(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.write("f", "as committed")
	id := g.commit("one")
	loose := func(id string) string { return filepath.Join(g.dir, ".git", "objects", id[:2], id[2:]) }
	forged, err := os.ReadFile(loose(g.blob("forged")))
	if err != nil {
		t.Fatal(err)
	}
	path := loose(g.run("rev-parse", "HEAD:f"))
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"other content": forged, "cut short": forged[:5], "empty": nil, "noise": []byte("noise")} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		tr, err := open(t, gitrepo.Options{URL: g.dir}).Tree(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := tr.ReadFile("f"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "git fsck") {
			t.Errorf("%s: ReadFile = %q, %v, want a refusal that names git fsck", name, b, err)
		}
	}
}

func TestUnknownCommitIsNotFoundAndNonsenseIsInvalid(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.commit("one")
	r := open(t, gitrepo.Options{URL: g.dir})
	for id, want := range map[pipeline.CommitID]fault.Kind{
		pipeline.CommitID(strings.Repeat("12", 20)): fault.NotFound,
		"main": fault.Invalid, "": fault.Invalid, "HEAD": fault.Invalid,
		pipeline.CommitID(strings.ToUpper(string(g.rev("HEAD")))): fault.Invalid,
		g.rev("HEAD^{tree}"): fault.Invalid,
	} {
		if _, err := r.Commit(t.Context(), id); fault.KindOf(err) != want {
			t.Errorf("Commit(%q) = %v, want %s", id, err, want)
		}
		if _, err := r.Tree(t.Context(), id); fault.KindOf(err) != want {
			t.Errorf("Tree(%q) = %v, want %s", id, err, want)
		}
	}
}

func BenchmarkFetchLocal(b *testing.B) {
	for _, packed := range []bool{false, true} {
		b.Run(fmt.Sprintf("300refs/packed=%v", packed), func(b *testing.B) {
			g := newGit(b)
			id := g.commit("one")
			var in strings.Builder
			for i := range 200 {
				fmt.Fprintf(&in, "create refs/heads/team%d/topic%d %s\n", i%10, i, id)
			}
			for i := range 100 {
				fmt.Fprintf(&in, "create refs/tags/v%d %s\n", i, id)
			}
			g.pipe(in.String(), "update-ref", "--stdin")
			if packed {
				g.run("pack-refs", "--all")
			}
			r := open(b, gitrepo.Options{URL: g.dir})
			for b.Loop() {
				fetch(b, r)
			}
		})
	}
}

func BenchmarkTreeOf1000Directories(b *testing.B) {
	g := newGit(b)
	for i := range 1000 {
		g.write(fmt.Sprintf("compositions/c%d/c%d.cue", i, i), fmt.Sprint(i))
	}
	id := g.commit("one")
	walk := func(r *gitrepo.Repo) {
		tree, err := r.Tree(b.Context(), id)
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		err = fs.WalkDir(tree, ".", func(_ string, _ fs.DirEntry, err error) error { n++; return err })
		if err != nil || n != 2002 {
			b.Fatalf("walked %d, %v", n, err)
		}
	}
	for _, packed := range []bool{false, true} {
		if packed {
			g.run("gc", "-q")
		}
		b.Run(fmt.Sprintf("cold/packed=%v", packed), func(b *testing.B) {
			for b.Loop() {
				r, err := gitrepo.Open(b.Context(), gitrepo.Options{URL: g.dir})
				if err != nil {
					b.Fatal(err)
				}
				walk(r)
				_ = r.Close()
			}
		})
	}
	b.Run("warm", func(b *testing.B) {
		r := open(b, gitrepo.Options{URL: g.dir})
		for b.Loop() {
			walk(r)
		}
	})
}
