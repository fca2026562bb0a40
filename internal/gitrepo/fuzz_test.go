package gitrepo_test

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/gitrepo"
)

func FuzzParseTree(f *testing.F) {
	h := strings.Repeat("h", 20)
	for _, s := range []string{"", "100644 f\x00" + h, "40000 d\x00" + h + "120000 l\x00" + h, "100644 f\x00short", "7777777 f\x00" + h, "0 \x00", "100644", "40000 \xff\x00" + h} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		names, err := gitrepo.ParseTree(data)
		for _, n := range names {
			if strings.ContainsRune(n, 0) {
				t.Errorf("a name holds a zero byte: %q", n)
			}
		}
		again, err2 := gitrepo.EncodeParsed(data)
		if err == nil && err2 == nil && len(again) > len(data) {
			t.Errorf("writing %d bytes again gives %d", len(data), len(again))
		}
	})
}

func FuzzParseCommit(f *testing.F) {
	id := strings.Repeat("0a", 20)
	for _, s := range []string{
		"", "tree " + id + "\n\nx", "tree " + id + "\nparent " + id + "\nauthor A <a@b> 1 +0100\ncommitter B <c> -5 x\n\nsubject\nbody",
		"tree " + id + "\nauthor <<<>>> 99999999999999999999\ngpgsig x\n y\n\n", "tree\n\n", "author\ncommitter\n\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := gitrepo.ParseCommit(data)
		if err != nil {
			return
		}
		if _, err := json.Marshal(c); err != nil {
			t.Error(err)
		}
		if strings.ContainsAny(c.Subject+c.AuthorName+c.AuthorEmail, "\n\r\x1b\x00") {
			t.Errorf("control characters are left in %+v", c)
		}
	})
}

func FuzzCheckPack(f *testing.F) {
	f.Add([]byte("PACK"))
	f.Add(pack(1, byte(3), []byte("hello")))
	f.Add(pack(2, byte(3), []byte("hello"), byte(7), []byte("\x05\x05\x90\x05")))
	f.Add(pack(1, byte(7), []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff")))
	f.Add(pack(4_000_000_000))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = gitrepo.CheckPack(t.Context(), bytes.NewReader(data), gitrepo.Limits{PackBytes: 1 << 16, Object: 1 << 16})
	})
}

func FuzzOpenAddress(f *testing.F) {
	for _, s := range []string{"", "-x", "https://u:p@h/x", "file:///x", "http://[::1]:1/x", "a:b", "https://h/%zz", "//x", "\x00", "https://"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := gitrepo.Open(t.Context(), gitrepo.Options{URL: s})
		if err == nil {
			_ = r.Close()
		}
	})
}

func TestRefNamesAreJudgedAsGitDoes(t *testing.T) {
	t.Parallel()
	piece := rapid.SampledFrom([]string{"a", "B", "-", ".", "..", "/", "//", "@", "@{", "{", "~", "^", ":", "?", "*", "[", "\\", " ", "\x7f", "\x01", ".lock", "é", "refs/heads/"})
	rapid.Check(t, func(t *rapid.T) {
		name := "refs/" + strings.Join(rapid.SliceOfN(piece, 1, 5).Draw(t, "pieces"), "")
		if strings.ContainsRune(name, 0) {
			return
		}
		want := exec.Command("git", "check-ref-format", name).Run() == nil
		if got := gitrepo.ValidRef(name); got != want {
			t.Fatalf("ValidRef(%q) = %v, git says %v", name, got, want)
		}
	})
}
