package gitrepo_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestCommitSaysWhatGitSays(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	one := g.commit("one")
	g.run("checkout", "-q", "-b", "side")
	two := g.commit("two")
	g.run("checkout", "-q", "main")
	three := g.commit("three")
	g.run("merge", "-q", "--no-ff", "-m", "Merge the side\n\nWith a body.", "side")
	got, err := open(t, gitrepo.Options{URL: g.dir}).Commit(t.Context(), g.rev("HEAD"))
	if err != nil {
		t.Fatal(err)
	}
	want := gitrepo.CommitInfo{
		ID: g.rev("HEAD"), Parents: []pipeline.CommitID{three, two}, AuthorName: "Ana", AuthorEmail: "ana@example.org",
		CommitterName: "Ana", CommitterEmail: "ana@example.org", Subject: "Merge the side", When: time.Unix(1700000000, 0).UTC(),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("commit differs (-want +got):\n%s", diff)
	}
	_ = one
}

// hostileCommit is a commit object with these headers and message.
func (g git) hostileCommit(author, committer, message string) pipeline.CommitID {
	text := fmt.Sprintf("tree %s\nauthor %s\ncommitter %s\n\n%s", g.pipe("", "mktree"), author, committer, message)
	return pipeline.CommitID(g.pipe(text, "hash-object", "-t", "commit", "-w", "--literally", "--stdin"))
}

func TestHostileCommitMetadataIsCutAndEscaped(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	r := open(t, gitrepo.Options{URL: g.dir})
	for _, c := range []struct{ name, author, committer, message string }{
		{"year 1", "a <a> -62135596800 +0000", "a <a> -62135596800 +0000", "x"},
		{"year 30000", "a <a> 900000000000 +0000", "a <a> 900000000000 +0000", "x"},
		{"overflow", "a <a> 99999999999999999999999 +0000", "a <a> 99999999999999999999999 +0000", "x"},
		{"no date", "a <a>", "a <a>", "x"},
		{"no brackets", "just a name", "just a name", "x"},
		{"terminal sequences", "\x1b[31mred\x1b[0m <\x07@x> 1 +0000", "a <a> 1 +0000", "\x1b]0;title\x07subject"},
		{"direction", "ana\u202egpj <a\u2066b> 1 +0000", "a <a> 1 +0000", "user \u202e txt.exe\u2028x"},
		{"long", strings.Repeat("n", 10_000) + " <" + strings.Repeat("e", 10_000) + "> 1 +0000", "a <a> 1 +0000", strings.Repeat("m", 1<<20)},
		{"not utf-8", "\xff\xfe <\x80> 1 +0000", "a <a> 1 +0000", "\xc3\x28"},
		{"empty", " <> 1 +0000", " <> 1 +0000", ""},
		{"blank lines first", "a <a> 1 +0000", "a <a> 1 +0000", "\n\n  subject  \nbody"},
	} {
		got, err := r.Commit(t.Context(), g.hostileCommit(c.author, c.committer, c.message))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for field, s := range map[string]string{"name": got.AuthorName, "email": got.AuthorEmail, "subject": got.Subject} {
			if n := len([]rune(s)); n > 1300 {
				t.Errorf("%s: %s has %d characters", c.name, field, n)
			}
			for _, r := range s {
				if unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
					t.Errorf("%s: %s holds %U: %q", c.name, field, r, s)
				}
			}
		}
		if y := got.When.Year(); y < 1970 || y > 9999 {
			t.Errorf("%s: year %d", c.name, y)
		}
		if _, err := json.Marshal(got); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	got, err := r.Commit(t.Context(), g.hostileCommit("a <a> 1 +0000", "a <a> 1 +0000", "\n\n  subject  \nbody"))
	if err != nil || got.Subject != "subject" {
		t.Errorf("subject = %q, %v", got.Subject, err)
	}
}

func TestHugeCommitIsRefused(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.hostileCommit("a <a> 1 +0000", "a <a> 1 +0000", strings.Repeat("m", 5<<20))
	if _, err := open(t, gitrepo.Options{URL: g.dir}).Commit(t.Context(), id); !fault.Is(err, fault.Invalid) {
		t.Errorf("Commit = %v, want invalid", err)
	}
}

func TestChangedPathsAreThoseOfGitDiff(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	r := open(t, gitrepo.Options{URL: g.dir})
	var blobs []string
	for i := range 4 {
		blobs = append(blobs, g.blob(fmt.Sprint(i)))
	}
	gitlink := string(g.commit("one"))
	// Trees are drawn as lists for fast-import: names clash as file and
	// directory, modes change, and links and submodules are among them.
	name := rapid.SampledFrom([]string{"a", "b", "a.b", "a-b", "a0", "é", "x y"})
	line := rapid.Custom(func(t *rapid.T) string {
		path := strings.Join(rapid.SliceOfN(name, 1, 4).Draw(t, "path"), "/")
		switch mode := rapid.SampledFrom([]string{"100644", "100755", "120000", "160000"}).Draw(t, "mode"); mode {
		case "160000":
			return "M " + mode + " " + gitlink + " " + path
		default:
			return "M " + mode + " " + rapid.SampledFrom(blobs).Draw(t, "blob") + " " + path
		}
	})
	commits := func(lists ...[]string) (ids []pipeline.CommitID) {
		var in strings.Builder
		for i, lines := range lists {
			fmt.Fprintf(&in, "reset refs/heads/x\ncommit refs/heads/x\nmark :%d\ncommitter A <a> 1 +0000\ndata 0\n", i+1)
			for _, l := range lines { // a later entry replaces what it clashes with
				in.WriteString(l + "\n")
			}
			in.WriteString("\n")
		}
		g.pipe(in.String(), "fast-import", "--quiet", "--force", "--export-marks=../marks")
		marks, err := os.ReadFile(filepath.Join(filepath.Dir(g.dir), "marks"))
		if err != nil {
			g.t.Fatal(err)
		}
		for _, mark := range strings.Fields(string(marks)) {
			if !strings.HasPrefix(mark, ":") {
				ids = append(ids, pipeline.CommitID(mark))
			}
		}
		return ids
	}
	rapid.Check(t, func(t *rapid.T) {
		from := rapid.SliceOfN(line, 0, 4).Draw(t, "from")
		to := from
		if rapid.Bool().Draw(t, "related") {
			to = append(append([]string{}, from...), rapid.SliceOfN(line, 0, 2).Draw(t, "more")...)
		} else {
			to = rapid.SliceOfN(line, 0, 4).Draw(t, "to")
		}
		ids := commits(from, to)
		base, head := ids[0], ids[1]
		check := func(base, head pipeline.CommitID, out string) {
			var want []string
			if out != "" {
				want = strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")
			}
			got, err := r.ChangedPaths(g.t.Context(), base, head)
			if err != nil || got.Truncated {
				t.Fatalf("ChangedPaths: %v", err)
			}
			if diff := cmp.Diff(want, got.Paths); diff != "" {
				t.Fatalf("paths differ (-git +ours):\n%s", diff)
			}
		}
		check(base, head, g.run("diff", "--name-only", "--no-renames", "-z", string(base), string(head)))
		check("", head, g.run("ls-tree", "-r", "--name-only", "-z", string(head)))
	})
}

func TestTooManyChangedPathsAreCutAndSaySo(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	one := g.commit("one")
	for i := range 30 {
		g.write(fmt.Sprintf("d%d/f", i), "x")
	}
	two := g.commit("two")
	for most, want := range map[int]bool{29: true, 30: false} {
		r := open(t, gitrepo.Options{URL: g.dir, Limits: gitrepo.Limits{Changed: most}})
		got, err := r.ChangedPaths(t.Context(), one, two)
		if err != nil || got.Truncated != want || len(got.Paths) != most {
			t.Errorf("limit %d: %d paths, truncated %v, %v", most, len(got.Paths), got.Truncated, err)
		}
	}
}

func TestChangedPathsWithoutTheBaseCommitIsNotFound(t *testing.T) {
	t.Parallel()
	g := newGit(t)
	id := g.commit("one")
	r := open(t, gitrepo.Options{URL: g.dir})
	if _, err := r.ChangedPaths(t.Context(), pipeline.CommitID(strings.Repeat("ab", 20)), id); !fault.Is(err, fault.NotFound) {
		t.Errorf("ChangedPaths = %v, want not found", err)
	}
}
