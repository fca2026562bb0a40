package gitrepo_test

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestReviewsAndRequestsAreApartFromBranchesAndTags(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	head := g.commit("one")
	g.run("tag", "-a", "-m", "approve\n\nfine", "t", string(head))
	tag := g.run("rev-parse", "t")
	g.run("tag", "-d", "t")
	refs := map[pipeline.Ref]string{
		"refs/reviews/" + pipeline.Ref(head) + "/ana": tag,
		"refs/reviews/" + pipeline.Ref(head) + "/bo":  string(head),
		"refs/maestro/requests/ana/1":                 tag,
		"refs/heads/maestro-gate/release/7/confirm":   string(head),
	}
	for name, id := range refs {
		g.run("update-ref", string(name), id)
	}
	g.run("notes", "add", "-m", "not told", string(head))
	g.run("pack-refs", "--all")
	g.run("update-ref", "refs/maestro/requests/bo/2", string(head))
	refs["refs/maestro/requests/bo/2"] = string(head)
	r := open(t, gitrepo.Options{URL: g.dir})
	bare := git{t, filepath.Join(t.TempDir(), "mirror.git")}
	g.run("clone", "-q", "--mirror", g.dir, bare.dir)
	for _, repo := range []*gitrepo.Repo{r, over(t, serve(t, bare), bare, gitrepo.Options{})} {
		got := fetch(t, repo)
		if !maps.Equal(got.Own, refs) || got.OwnTruncated {
			t.Errorf("%s: own refs %v, want %v", repo, got.Own, refs)
		}
		if names := got.Names(); !slices.Equal(names, []pipeline.Ref{"refs/heads/main"}) {
			t.Errorf("%s: branches and tags: %v", repo, names)
		}
	}
	told, err := r.Tag(t.Context(), tag)
	if err != nil || told.Target != head || told.Message != "approve\n\nfine\n" || told.When.Unix() != 1700000000 || told.Signature != "" {
		t.Errorf("tag: %+v, %v", told, err)
	}
	if told, err := r.Tag(t.Context(), string(head)); err != nil || told.Target != head || told.Message != "" {
		t.Errorf("a commit is a tag of itself: %+v, %v", told, err)
	}
}

func TestTooManyReviewsAreSaidAndStopNothing(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	head := g.commit("one")
	var b strings.Builder
	for i := range 300 {
		fmt.Fprintf(&b, "create refs/reviews/%s/u%d %s\n", head, i, head)
	}
	g.pipe(b.String(), "update-ref", "--stdin")
	for range 2 { // loose, then packed
		got := fetch(t, open(t, gitrepo.Options{URL: g.dir, Limits: gitrepo.Limits{Own: 100}}))
		if len(got.Own) != 100 || !got.OwnTruncated || got.Tips["refs/heads/main"] != head {
			t.Errorf("%d own refs, truncated %v, tips %v", len(got.Own), got.OwnTruncated, got.Tips)
		}
		g.run("pack-refs", "--all")
	}
}

func TestWhatIsNoTagOfACommitIsRefused(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	head := g.commit("one")
	blob := g.pipe("approve", "hash-object", "-w", "--stdin")
	tree := g.run("rev-parse", "HEAD^{tree}")
	object := func(text string) string {
		return g.pipe(text, "hash-object", "-w", "-t", "tag", "--stdin", "--literally")
	}
	header := "object " + string(head) + "\ntype commit\ntag x\ntagger Ana <a@x> 1 +0000\n\n"
	r := open(t, gitrepo.Options{URL: g.dir})
	for name, id := range map[string]string{
		"a blob": blob, "a tree": tree, "no id": "refs/heads/main",
		"a tag of a tree":  object(strings.Replace(header, "type commit", "type tree", 1)),
		"two objects":      object("object " + blob + "\n" + header),
		"no object":        object("tag x\n\napprove"),
		"a message of 1MB": object(header + strings.Repeat("approve ", 1<<17)),
		"no such object":   strings.Repeat("1", 40),
	} {
		if told, err := r.Tag(t.Context(), id); !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: %+v, %v", name, told, err)
		}
	}
	if told, err := r.Tag(t.Context(), object(header+strings.Repeat("y", 20<<10))); err != nil || len(told.Message) != 8<<10 {
		t.Errorf("a message of 20 KiB: %d bytes, %v", len(told.Message), err)
	}
}

func TestPublishedCommitIsTheSameWhoeverMakesIt(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.commit("one")
	d := gitrepo.Draft{Files: map[string]string{"b.json": "{}\n", "a.txt": "x"}, Message: "gate\n", At: time.Unix(1_800_000_000, 0)}
	want, err := d.ID()
	if err != nil {
		t.Fatal(err)
	}
	bare := g.bare()
	for name, repo := range map[string]*gitrepo.Repo{
		"local":  open(t, gitrepo.Options{URL: g.dir}),
		"served": over(t, serve(t, bare), bare, gitrepo.Options{}),
	} {
		const ref = "refs/maestro/gates/release/1/gate"
		got, err := repo.Publish(t.Context(), ref, d)
		if err != nil || got != want {
			t.Fatalf("%s: %s, %v; want %s", name, got, err, want)
		}
		if refs := fetch(t, repo); refs.Own[ref] != string(want) {
			t.Errorf("%s: refs %v", name, refs.Own)
		}
		if _, err := repo.Publish(t.Context(), ref, d); err != nil {
			t.Errorf("%s: again: %v", name, err)
		}
		if err := repo.Remove(t.Context(), ref, strings.Repeat("1", 40)); !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: removed another: %v", name, err)
		}
		if err := repo.Remove(t.Context(), ref, string(want)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if refs := fetch(t, repo); len(refs.Own) != 0 {
			t.Errorf("%s: still there: %v", name, refs.Own)
		}
		for _, bad := range []pipeline.Ref{"refs/heads/main", "refs/maestro/../heads/main", "refs/maestro/x.lock", "refs/reviews/x"} {
			if _, err := repo.Publish(t.Context(), bad, d); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: published at %s: %v", name, bad, err)
			}
		}
		// A forge shows what a branch has that another one has not.
		based, base := d, gitrepo.Draft{Message: "nothing\n", At: d.At}
		based.Onto = &base
		const branch = "refs/heads/maestro-gate/release/1/gate"
		if got, err = repo.Publish(t.Context(), branch, based); err != nil || got == want {
			t.Fatalf("%s: %s, %v", name, got, err)
		}
		if refs := fetch(t, repo); refs.Own[branch] != string(got) || refs.Tips[branch] != "" {
			t.Errorf("%s: refs %v", name, refs)
		}
		at := g
		if name == "served" {
			at = bare
		}
		id, err := base.ID()
		if err != nil || at.run("rev-parse", string(got)+"^") != string(id) || at.run("show", "--format=", "--name-only", string(got)) != "a.txt\nb.json" {
			t.Errorf("%s: its parent is not %s: %v", name, id, err)
		}
		at.run("fsck", "--strict")
	}
}

func TestRemovedRefIsGoneWhetherLooseOrPacked(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	head := g.commit("one")
	g.run("tag", "-a", "-m", "kept", "v1")
	for _, name := range []string{"refs/maestro/requests/ana/1", "refs/maestro/requests/ana/2", "refs/maestro/requests/ana/12"} {
		g.run("update-ref", name, string(head))
	}
	g.run("pack-refs", "--all")
	g.run("update-ref", "refs/maestro/requests/ana/3", string(head))
	r := open(t, gitrepo.Options{URL: g.dir})
	before := g.run("rev-parse", "v1^{commit}")
	for _, n := range []string{"1", "3", "gone"} {
		if err := r.Remove(t.Context(), pipeline.Ref("refs/maestro/requests/ana/"+n), string(head)); err != nil {
			t.Fatal(err)
		}
	}
	if got := g.run("for-each-ref", "--format=%(refname)", "refs/maestro"); got != "refs/maestro/requests/ana/12\nrefs/maestro/requests/ana/2" {
		t.Errorf("left: %s", got)
	}
	if g.run("rev-parse", "v1^{commit}") != before {
		t.Error("a tag changed")
	}
	g.run("pack-refs", "--all", "--prune")
	g.run("fsck", "--strict")
}

func TestBetweenIsWhatGitSays(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	g.commit("root")
	r := open(t, gitrepo.Options{URL: g.dir})
	rapid.Check(t, func(rt *rapid.T) {
		// A history of commits with one or two parents each, made without a worktree.
		ids := []pipeline.CommitID{g.rev("HEAD")}
		tree := g.run("rev-parse", "HEAD^{tree}")
		for i := range rapid.IntRange(2, 8).Draw(rt, "commits") {
			// Whoever makes a commit writes its date.
			who := fmt.Sprintf("Ana <ana@example.org> %d +0000", 1_700_000_000+rapid.IntRange(-9, 9).Draw(rt, "date"))
			text := "tree " + tree + "\n"
			parents := rapid.SliceOfNDistinct(rapid.SampledFrom(ids), 1, min(2, len(ids)), rapid.ID).Draw(rt, "parents")
			for _, p := range parents {
				text += "parent " + string(p) + "\n"
			}
			text += fmt.Sprintf("author %s\ncommitter %s\n\n%d\n", who, who, i)
			ids = append(ids, pipeline.CommitID(g.pipe(text, "hash-object", "-t", "commit", "-w", "--stdin")))
		}
		base, head := rapid.SampledFrom(ids).Draw(rt, "base"), rapid.SampledFrom(ids).Draw(rt, "head")
		got, err := r.Between(t.Context(), base, head)
		if err != nil {
			rt.Fatal(err)
		}
		var have []string
		for _, c := range got.Commits {
			have = append(have, string(c.ID))
		}
		want := strings.Fields(g.run("rev-list", string(base)+".."+string(head)))
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) || got.Truncated {
			rt.Errorf("%s..%s: %v, want %v", base, head, have, want)
		}
		bases := strings.Fields(g.run("merge-base", "--all", string(base), string(head)))
		forks := []string{string(got.Fork)}
		for _, o := range got.Others {
			forks = append(forks, string(o))
		}
		slices.Sort(bases)
		if slices.Sort(forks); !slices.Equal(forks, bases) {
			rt.Errorf("%s and %s come from %v, want %v", base, head, forks, bases)
		}
	})
}

func TestBetweenOfUnrelatedHistories(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	one := g.commit("one")
	other := pipeline.CommitID(g.run("commit-tree", g.run("rev-parse", "HEAD^{tree}"), "-m", "other"))
	r := open(t, gitrepo.Options{URL: g.dir})
	s, err := r.Between(t.Context(), one, other)
	if err != nil || len(s.Commits) != 1 || s.Fork != "" || s.Commits[0].CommitterName != "Ana" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := r.Between(t.Context(), one, pipeline.CommitID(strings.Repeat("1", 40))); !fault.Is(err, fault.NotFound) {
		t.Errorf("a head that is not there: %v", err)
	}
	if s, err := r.Between(t.Context(), "", one); err != nil || len(s.Commits) != 1 {
		t.Errorf("no base: %+v, %v", s, err)
	}
}
