package gitrepo_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func tree(t testing.TB, r *gitrepo.Repo, id pipeline.CommitID) *gitrepo.Tree {
	t.Helper()
	tr, err := r.Tree(t.Context(), id)
	if err != nil {
		t.Fatalf("Tree: %v", err)
	}
	return tr
}

// rawTree writes a tree that git itself would refuse to make.
func (g git) rawTree(entries ...[3]string) string {
	var b strings.Builder
	for _, e := range entries {
		h, err := hex.DecodeString(e[2])
		if err != nil {
			g.t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %s\x00%s", e[0], e[1], h)
	}
	return g.pipe(b.String(), "hash-object", "-t", "tree", "-w", "--literally", "--stdin")
}

func (g git) blob(text string) string { return g.pipe(text, "hash-object", "-w", "--stdin") }

func TestTreeIsAProperFileSystem(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	want := []string{"ops.cue", "a/b/c/d.cue", "a-b", "a/b.c", "empty", "ünïcode/日本.cue"}
	for _, name := range want {
		g.write(name, "content of "+name)
	}
	g.write("empty", "")
	g.run("update-index", "--add", "--chmod=+x", "ops.cue")
	r := open(t, gitrepo.Options{URL: g.dir})
	if err := fstest.TestFS(tree(t, r, g.commit("one")), want...); err != nil {
		t.Error(err)
	}
}

func TestHashNamesADirectorysContent(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.write("a/b/c.cue", "1")
	g.write("d/b/c.cue", "1")
	one := g.commit("one")
	g.write("d/b/c.cue", "2")
	two := g.commit("two")
	r := open(t, gitrepo.Options{URL: g.dir})
	hash := func(id pipeline.CommitID, dir string) string {
		t.Helper()
		h, err := tree(t, r, id).Hash(dir)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	if got, want := hash(one, "a/b"), g.run("rev-parse", string(one)+":a/b"); got != want {
		t.Errorf("Hash(a/b) = %s, want %s", got, want)
	}
	if got, want := hash(two, "."), g.run("rev-parse", string(two)+"^{tree}"); got != want {
		t.Errorf("Hash(.) = %s, want %s", got, want)
	}
	if hash(one, "a") != hash(one, "d") || hash(two, "a") != hash(one, "a") || hash(two, "d") == hash(one, "d") {
		t.Error("hashes do not follow content")
	}
	for _, absent := range []string{"x", "a/x", "a/b/c.cue", "a/b/c.cue/d"} {
		if got := hash(one, absent); got != "" {
			t.Errorf("Hash(%s) = %q, want none", absent, got)
		}
	}
	if _, err := tree(t, r, one).Hash("../x"); !fault.Is(err, fault.Invalid) {
		t.Errorf("Hash(../x) = %v, want invalid", err)
	}
}

func TestWhatIsNoPlainFileIsListedButNotOpened(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	blob, dir := g.blob("x"), g.pipe("", "mktree")
	big, lfs := g.blob(strings.Repeat("x", 1<<20+1)), g.blob("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
	link := g.blob("/etc/passwd")
	id := g.commitTree(g.rawTree(
		[3]string{"100644", "big.bin", big}, [3]string{"120000", "dirlink", g.blob("sub")}, [3]string{"100644", "lfs.bin", lfs},
		[3]string{"100644", "limit.bin", g.blob(strings.Repeat("x", 1<<20))}, [3]string{"120000", "link.cue", link},
		[3]string{"160000", "module", string(g.commit("one"))}, [3]string{"100600", "odd", blob}, [3]string{"100644", "ok.cue", blob},
		[3]string{"40000", "sub", dir},
	))
	tr := tree(t, open(t, gitrepo.Options{URL: g.dir}), id)
	list, err := tr.ReadDir(".")
	if err != nil || len(list) != 9 {
		t.Fatalf("ReadDir = %v, %v; want all nine entries", list, err)
	}
	for name, says := range map[string]string{
		"big.bin": "too large", "link.cue": "symbolic link", "dirlink": "symbolic link", "lfs.bin": "LFS", "module": "submodule", "odd": "mode",
		"dirlink/x": "", "module/x": "",
	} {
		for how, f := range map[string]func() error{
			"Open":     func() error { _, err := tr.Open(name); return err },
			"ReadFile": func() error { _, err := tr.ReadFile(name); return err },
		} {
			err := f()
			var pe *fs.PathError
			if !errors.As(err, &pe) || !strings.Contains(err.Error(), path.Dir(name)+"/") && !strings.Contains(err.Error(), path.Base(name)) {
				t.Errorf("%s(%s) = %v, want a path error that names it", how, name, err)
			}
			if says != "" && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), says)) {
				t.Errorf("%s(%s) = %v, want invalid that says %q", how, name, err, says)
			}
		}
	}
	if fi, err := tr.Stat("link.cue"); err != nil || fi.Mode().Type() != fs.ModeSymlink {
		t.Errorf("Stat(link.cue) = %v, %v; want a symbolic link", fi, err)
	}
	if fi, err := tr.Stat("big.bin"); err != nil || fi.Size() != 1<<20+1 {
		t.Errorf("Stat(big.bin) = %v, %v", fi, err)
	}
	if _, err := tr.ReadFile("limit.bin"); err != nil {
		t.Errorf("a file of exactly the limit: %v", err)
	}
	if _, err := tr.Open("sub"); err != nil {
		t.Errorf("Open(sub): %v", err)
	}
}

func TestSuspiciousNamesAreRefusedWithTheirDirectory(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	blob, dir := g.blob("x"), g.pipe("", "mktree")
	r := open(t, gitrepo.Options{URL: g.dir})
	for _, names := range [][]string{
		{"../x"},
		{".."},
		{"."},
		{""},
		{"/abs"},
		{"a/b"},
		{`..\x`},
		{`c:\x`},
		{".git"},
		{".GIT"},
		{".Git"},
		{"git~1"},
		{"GIT~2"},
		{".g\u200cit"},
		{".git "},
		{".git."},
		{".git::$INDEX_ALLOCATION"},
		{"a\x01b"},
		{"a\nb"},
		{"a\u202eb"},
		{"a\ufeffb"},
		{"a\xff"},
		{strings.Repeat("x", 256)},
		{strings.Repeat("x", 5000)},
		{"A.cue", "a.cue"},
		{"README", "readme"},
		{"stra\u00dfe", "strasse"},
		{"\u00e9.cue", "e\u0301.cue"},
		{"\u00c9.cue", "e\u0301.cue"},
		{"\u212a", "k"},
		{"same", "same"},
	} {
		var entries [][3]string
		for _, n := range names {
			entries = append(entries, [3]string{"100644", n, blob})
		}
		for _, mode := range []string{"100644", "40000", "160000", "120000"} {
			entries[0][0] = mode
			if entries[0][2] = blob; mode == "40000" {
				entries[0][2] = dir
			}
			bad := g.rawTree(entries...)
			id := g.commitTree(g.rawTree([3]string{"100644", "fine.cue", blob}, [3]string{"40000", "sub", bad}))
			tr := tree(t, r, id)
			if _, err := tr.ReadDir("."); err != nil {
				t.Errorf("%q: its parent is refused too: %v", names, err)
			}
			_, err := tr.ReadDir("sub")
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "sub/") || strings.ContainsAny(err.Error(), "\n\x01\u202e") {
				t.Errorf("%q: ReadDir = %v, want a refusal that names the path safely", names, err)
			}
			for _, n := range names {
				if p := "sub/" + n; fs.ValidPath(p) {
					if _, err := tr.ReadFile(p); err == nil {
						t.Errorf("%q can be read", p)
					}
				}
			}
		}
	}
}

func TestOrdinaryNamesAreNotSuspicious(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	blob := g.blob("x")
	names := []string{".github", ".gitignore", ".gitattributes", ".gitmodules", "git", "git~", "gitx~1", "a b", "日本語", "café", "x.cue", "ß", "e\u0301", "..x", "x..", "-rf", "%2e", "$(id)"}
	slices.Sort(names)
	var entries [][3]string
	for _, n := range names {
		entries = append(entries, [3]string{"100644", n, blob})
	}
	tr := tree(t, open(t, gitrepo.Options{URL: g.dir}), g.commitTree(g.rawTree(entries...)))
	if list, err := tr.ReadDir("."); err != nil || len(list) != len(entries) {
		t.Errorf("ReadDir = %v, %v", list, err)
	}
}

func TestTreesThatExplodeHitALimit(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	// Ten entries a level, ten levels: ten thousand million files in eleven objects.
	h := g.rawTree([3]string{"100644", "f", g.blob("x")})
	for range 10 {
		var entries [][3]string
		for i := range 10 {
			entries = append(entries, [3]string{"40000", fmt.Sprint("d", i), h})
		}
		h = g.rawTree(entries...)
	}
	bomb := g.commitTree(h)
	for range 135 {
		h = g.rawTree([3]string{"40000", "d", h})
	}
	deep := g.commitTree(h)
	r := open(t, gitrepo.Options{URL: g.dir, Limits: gitrepo.Limits{Entries: 5000}})
	for name, id := range map[string]pipeline.CommitID{"bomb": bomb, "deep": deep} {
		err := fs.WalkDir(tree(t, r, id), ".", func(_ string, _ fs.DirEntry, err error) error { return err })
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: walk ended with %v, want invalid", name, err)
		}
	}
	ch, err := r.ChangedPaths(t.Context(), "", bomb)
	if err != nil || !ch.Truncated {
		t.Errorf("ChangedPaths = %d paths, %v, %v; want them cut", len(ch.Paths), ch.Truncated, err)
	}
}

func TestDamagedTreesAndMissingObjectsAreErrors(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	blob := g.blob("x")
	r := open(t, gitrepo.Options{URL: g.dir})
	cut := g.pipe("100644 name\x00too short", "hash-object", "-t", "tree", "-w", "--literally", "--stdin")
	mode := g.rawTree([3]string{"9x0644", "f", blob})
	lost := g.rawTree([3]string{"100644", "f", strings.Repeat("ab", 20)})
	for name, c := range map[string]struct {
		tree string
		kind fault.Kind
	}{"cut short": {cut, fault.Invalid}, "bad mode": {mode, fault.Invalid}, "missing tree": {strings.Repeat("ab", 20), fault.NotFound}, "missing blob": {lost, fault.NotFound}} {
		id := pipeline.CommitID(g.pipe("tree "+c.tree+"\nauthor a <a> 1 +0000\ncommitter a <a> 1 +0000\n\nx\n", "hash-object", "-t", "commit", "-w", "--literally", "--stdin"))
		if _, err := tree(t, r, id).ReadFile("f"); fault.KindOf(err) != c.kind {
			t.Errorf("%s: ReadFile = %v (%s), want %s", name, err, fault.KindOf(err), c.kind)
		}
	}
}

func TestTreeIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	for i := range 100 {
		g.write(fmt.Sprintf("a%d/b/c.cue", i%10), fmt.Sprint(i))
		g.write(fmt.Sprintf("a%d/d%d.cue", i%10, i), fmt.Sprint(i))
	}
	id := g.commit("one")
	r := open(t, gitrepo.Options{URL: g.dir})
	tr := tree(t, r, id)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			err := fs.WalkDir(tr, ".", func(p string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					_, err = tr.ReadFile(p)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			if _, err := r.ChangedPaths(t.Context(), "", id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
