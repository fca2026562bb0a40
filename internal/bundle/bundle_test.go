package bundle_test

import (
	"archive/tar"
	"bytes"
	"embed"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/bundle"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

//go:embed testdata/plugin
var embedded embed.FS

// gitTree is what Git itself calls the files.
func gitTree(t testing.TB, files map[string]*fstest.MapFile) pipeline.Digest {
	t.Helper()
	dir := t.TempDir()
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GIT_CONFIG_NOSYSTEM=1", "HOME=" + dir, "GIT_DIR=" + filepath.Join(dir, ".git")}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q")
	for name, f := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	git("add", "-A", "-f")
	return pipeline.Digest("git:" + git("write-tree"))
}

func TestTreeHashIsGitsOwn(t *testing.T) {
	t.Parallel()
	files := fstest.MapFS{
		"plugin.cue": {Data: []byte("package x\n"), Mode: 0o644},
		"run":        {Data: []byte("#!/bin/sh\n"), Mode: 0o755},
		// Git sorts "lib" after "lib-a" and "lib.x", because it is a folder.
		"lib/b/c": {Data: nil, Mode: 0o644},
		"lib/a":   {Data: []byte("a"), Mode: 0o700},
		"lib-a":   {Data: []byte("1"), Mode: 0o600},
		"lib.x":   {Data: []byte("2"), Mode: 0o644},
		"lib0":    {Data: []byte("#!not executable"), Mode: 0o644},
		"ü/z":     {Data: bytes.Repeat([]byte("x"), 100_000), Mode: 0o644},
	}
	got, err := bundle.TreeHash(files)
	if err != nil {
		t.Fatal(err)
	}
	if want := gitTree(t, files); got != want {
		t.Errorf("TreeHash = %s, git says %s", got, want)
	}
	if got, err := bundle.TreeHash(fstest.MapFS{}); err != nil || got != "git:4b825dc642cb6eb9a060e54bf8d69288fbee4904" {
		t.Errorf("empty tree = %s, %v", got, err)
	}
}

func TestEmbeddedScriptsAreExecutable(t *testing.T) {
	t.Parallel()
	sub, err := fs.Sub(embedded, "testdata/plugin")
	if err != nil {
		t.Fatal(err)
	}
	got, err := bundle.TreeHash(sub)
	if err != nil {
		t.Fatal(err)
	}
	onDisk, err := bundle.TreeHash(os.DirFS("testdata/plugin"))
	if err != nil {
		t.Fatal(err)
	}
	if got != onDisk {
		t.Errorf("embedded tree is %s, the same folder on disk %s", got, onDisk)
	}
}

func TestTarCarriesTheTreeAndIsDeterministic(t *testing.T) {
	t.Parallel()
	name := rapid.StringMatching(`[a-c]{1,2}(/[a-c.-]{0,2}[a-c]){0,2}`)
	rapid.Check(t, func(t *rapid.T) {
		fsys := fstest.MapFS{}
		for _, n := range rapid.SliceOfN(name, 0, 6).Draw(t, "names") {
			for other := range fsys {
				if strings.HasPrefix(other, n+"/") || strings.HasPrefix(n, other+"/") {
					return
				}
			}
			fsys[n] = &fstest.MapFile{Data: rapid.SliceOfN(rapid.Byte(), 0, 600).Draw(t, "data"), Mode: rapid.SampledFrom([]fs.FileMode{0o644, 0o755}).Draw(t, "mode")}
		}
		var one, two bytes.Buffer
		if err := errors.Join(bundle.WriteTar(&one, fsys), bundle.WriteTar(&two, fsys)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(one.Bytes(), two.Bytes()) {
			t.Fatal("two archives of one tree differ")
		}
		back := fstest.MapFS{}
		for tr := tar.NewReader(&one); ; {
			h, err := tr.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if !h.ModTime.IsZero() && h.ModTime.Unix() != 0 || h.Uid != 0 || h.Uname != "" {
				t.Fatalf("%s tells time %v or owner %q", h.Name, h.ModTime, h.Uname)
			}
			data, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			back[h.Name] = &fstest.MapFile{Data: data, Mode: fs.FileMode(h.Mode)}
		}
		a, errA := bundle.TreeHash(fsys)
		b, errB := bundle.TreeHash(back)
		if errA != nil || errB != nil || a != b {
			t.Fatalf("tree %s (%v) became %s (%v)", a, errA, b, errB)
		}
	})
}

func TestSpecialFilesAreRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for what, fsys := range map[string]fs.FS{
		"a symbolic link": os.DirFS(dir),
		"a colon":         fstest.MapFS{"a:b": {}},
		"a backslash":     fstest.MapFS{`a\b`: {}},
		"a device":        fstest.MapFS{"dev": {Mode: fs.ModeDevice}},
	} {
		if _, err := bundle.TreeHash(fsys); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: TreeHash = %v, want invalid", what, err)
		}
		if err := bundle.WriteTar(io.Discard, fsys); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: WriteTar = %v, want invalid", what, err)
		}
	}
}

func TestTooManyFilesAreRefused(t *testing.T) {
	t.Parallel()
	fsys := fstest.MapFS{}
	for i := range bundle.MaxFiles + 1 {
		fsys["f"+strings.Repeat("0", i%7)+string(rune('a'+i%26))+strings.Repeat("x", i/26%100)+strings.Repeat("y", i/2600)] = &fstest.MapFile{}
	}
	for i := 0; len(fsys) <= bundle.MaxFiles; i++ {
		fsys["g"+strings.Repeat("z", i%200)+strings.Repeat("q", i/200)] = &fstest.MapFile{}
	}
	if _, err := bundle.TreeHash(fsys); !fault.Is(err, fault.Invalid) {
		t.Errorf("TreeHash = %v, want invalid", err)
	}
}

func TestCheckPathRefusesEveryTrick(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", ".", "..", "../x", "a/../b", "a/..", "/etc/passwd", "//x", "a//b", "a/", "./a", "a/./b", `a\b`, `..\x`, "C:x", "C:/x",
		"a\x00b", "a\nb", "a\x7f", "a\xff", strings.Repeat("d/", 40) + "f", strings.Repeat("n", 600), "file:stream",
	} {
		if err := bundle.CheckPath(name); !fault.Is(err, fault.Invalid) {
			t.Errorf("CheckPath(%q) = %v, want invalid", name, err)
		}
	}
	for _, name := range []string{"a", "a/b", "..a", "a..", "...", "-rf", "ü b/(c)"} {
		if err := bundle.CheckPath(name); err != nil {
			t.Errorf("CheckPath(%q) = %v", name, err)
		}
	}
}

func FuzzCheckPath(f *testing.F) {
	f.Add("a/b")
	f.Add("../a")
	f.Fuzz(func(t *testing.T, name string) {
		if bundle.CheckPath(name) == nil && (!fs.ValidPath(name) || !filepath.IsLocal(name)) {
			t.Errorf("%q was accepted", name)
		}
	})
}
