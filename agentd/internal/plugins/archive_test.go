package plugins_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/agentd/internal/plugins"
	"github.com/maestro-cd/maestro/internal/bundle"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

func targz(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(rawTar(t, entries...))
	z.Close()
	return b.Bytes()
}

// rawTar writes entries whose PAX record "body" is their contents.
func rawTar(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		body := h.Uname
		h.Uname = ""
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(body))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, body)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestArchiveIsUnpackedOverTheFolder(t *testing.T) {
	t.Parallel()
	s := newServer()
	sum := s.archive(targz(t,
		tar.Header{Name: "pax_global_header", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "abc"}},
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		tar.Header{Name: "./bin/", Typeflag: tar.TypeDir, Mode: 0o777},
		tar.Header{Name: "./bin/tool", Mode: 0o6755, Uname: "#!/bin/sh\necho tool\n"},
		tar.Header{Name: "lib/words", Mode: 0o600, Uname: "replaced\n"},
	))
	p := s.plugin(t, hello(), pipeline.Program{Argv: []string{"./bin/tool"}, URL: "https://tools.example/t.tar.gz", SHA256: sum})
	c := newCache(t.TempDir(), s)
	dir, argv, err := c.Fetch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, argv...); got != "tool\n" {
		t.Errorf("printed %q", got)
	}
	if got := output(t, filepath.Join(dir, "bin", "run")); got != "hello \nreplaced\n" {
		t.Errorf("the plugin's own program printed %q", got)
	}
	if info, err := os.Stat(argv[0]); err != nil || info.Mode() != 0o555 {
		t.Errorf("mode %v, %v, want 0555", info.Mode(), err)
	}
	// The folder without the archive is another entry, and unharmed.
	p.Programs = []pipeline.Program{{Argv: []string{"./bin/run"}}}
	plain, _, err := c.Fetch(t.Context(), p)
	if err != nil || plain == dir || read(t, filepath.Join(plain, "lib", "words")) != "world\n" {
		t.Errorf("plain folder %q, %v", plain, err)
	}
}

func TestSingleFileBecomesTheProgram(t *testing.T) {
	t.Parallel()
	s := newServer()
	sum := s.archive([]byte("#!/bin/sh\necho single\n"))
	p := s.plugin(t, hello(), pipeline.Program{Argv: []string{"./bin/run"}, URL: "https://x.example/run", SHA256: sum})
	_, argv, err := newCache(t.TempDir(), s).Fetch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, argv...); got != "single\n" {
		t.Errorf("printed %q", got)
	}
	p.Programs[0].Argv = []string{"run"}
	if _, _, err := newCache(t.TempDir(), s).Fetch(t.Context(), p); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "./run") {
		t.Errorf("without a place: %v", err)
	}
}

func TestArchiveWithAnotherDigestIsRefused(t *testing.T) {
	t.Parallel()
	s := newServer()
	sum := s.archive([]byte("#!/bin/sh\n"))
	other := strings.Repeat("0", 64)
	s.files[wire.PathArchive+other] = s.files[wire.PathArchive+sum]
	p := s.plugin(t, hello(), pipeline.Program{Argv: []string{"./x"}, URL: "https://x.example/run", SHA256: other})
	dir := t.TempDir()
	_, _, err := newCache(dir, s).Fetch(t.Context(), p)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), sum) || !strings.Contains(err.Error(), other) {
		t.Errorf("Fetch = %v", err)
	}
	broken := targz(t, tar.Header{Name: "x", Mode: 0o755, Uname: strings.Repeat("data", 10_000)})
	for _, b := range [][]byte{broken[:len(broken)/2], {0x1f, 0x8b}, {0x1f, 0x8b, 0, 0, 0}, append([]byte{0x1f, 0x8b}, bytes.Repeat([]byte("x"), 600)...)} {
		p.Programs[0].SHA256 = s.archive(b)
		if _, _, err := newCache(t.TempDir(), s).Fetch(t.Context(), p); !fault.Is(err, fault.Invalid) {
			t.Errorf("damaged archive of %d bytes: %v, want invalid", len(b), err)
		}
	}
}

// Each of these wants to leave the folder, or to be something else than it seems.
func TestHostileArchivesAreRefused(t *testing.T) {
	t.Parallel()
	file := func(name string) tar.Header { return tar.Header{Name: name, Mode: 0o644, Uname: "x"} }
	link := func(name, to string, kind byte) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: kind}
	}
	for what, entries := range map[string][]tar.Header{
		"dot dot":          {file("../../agentd")},
		"dot dot inside":   {file("a/../../b")},
		"dot dot local":    {file("a/../b")},
		"absolute":         {file("/etc/cron.d/evil")},
		"backslash":        {file(`..\..\evil`)},
		"drive":            {file("C:evil")},
		"stream":           {file("run:hidden")},
		"newline":          {file("a\nb")},
		"empty element":    {file("a//b")},
		"symlink":          {link("a", "/etc", tar.TypeSymlink), file("a/passwd")},
		"symlink inside":   {link("a", "b", tar.TypeSymlink)},
		"hard link":        {link("a", "/etc/shadow", tar.TypeLink)},
		"device":           {{Name: "a", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"fifo":             {{Name: "a", Typeflag: tar.TypeFifo}},
		"twice":            {file("a"), file("a")},
		"twice by dot":     {file("a"), file("./a")},
		"file then child":  {file("a"), file("a/b")},
		"file then folder": {file("a"), {Name: "a/", Typeflag: tar.TypeDir, Mode: 0o755}},
		"folder then file": {{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o755}, file("a")},
		"child then file":  {file("a/b"), file("a")},
		"file is a folder": {file("bin")},
		"folder is a file": {file("plugin.cue/x")},
		"folder leaves":    {{Name: "../x/", Typeflag: tar.TypeDir, Mode: 0o755}},
		"deep":             {file(strings.Repeat("d/", 40) + "f")},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newServer()
			sum := s.archive(targz(t, entries...))
			p := s.plugin(t, hello(), pipeline.Program{Argv: []string{"./bin/run"}, URL: "https://x.example/a.tgz", SHA256: sum})
			around := t.TempDir()
			dir := filepath.Join(around, "a", "b", "cache")
			_, _, err := newCache(dir, s).Fetch(t.Context(), p)
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("Fetch = %v, want invalid", err)
			}
			for _, d := range []string{around, filepath.Join(around, "a"), filepath.Join(around, "a", "b")} {
				if entries, err := os.ReadDir(d); err != nil || len(entries) != 1 {
					t.Errorf("%s holds %v, %v", d, entries, err)
				}
			}
			if all, _ := filepath.Glob(filepath.Join(dir, "entries", "*-*")); len(all) != 0 {
				t.Errorf("entries made: %v", all)
			}
		})
	}
}

func TestUnpackingIsBounded(t *testing.T) {
	t.Parallel()
	big := rawTar(t, tar.Header{Name: "a", Mode: 0o644, Uname: strings.Repeat("x", 1000)}, tar.Header{Name: "b", Mode: 0o644, Uname: strings.Repeat("x", 1000)})
	if err := plugins.UnpackTar(bytes.NewReader(big), t.TempDir(), 10, 1999); !fault.Is(err, fault.Invalid) {
		t.Errorf("too large: %v", err)
	}
	if err := plugins.UnpackTar(bytes.NewReader(big), t.TempDir(), 1, 1<<20); !fault.Is(err, fault.Invalid) {
		t.Errorf("too many: %v", err)
	}
	if err := plugins.UnpackTar(bytes.NewReader(big), t.TempDir(), 2, 2000); err != nil {
		t.Errorf("just within: %v", err)
	}
	if err := plugins.UnpackTar(bytes.NewReader(big[:700]), t.TempDir(), 2, 2000); !fault.Is(err, fault.Unavailable) {
		t.Errorf("truncated: %v, want unavailable", err)
	}
}

func FuzzUnpackTar(f *testing.F) {
	f.Add(rawTar(f, tar.Header{Name: "a/b", Mode: 0o755, Uname: "text"}))
	f.Add(rawTar(f, tar.Header{Name: "../x", Uname: "t"}, tar.Header{Name: "l", Linkname: "..", Typeflag: tar.TypeSymlink}))
	f.Add([]byte("not a tar"))
	f.Fuzz(func(t *testing.T, b []byte) {
		around := t.TempDir()
		dir := filepath.Join(around, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		err := plugins.UnpackTar(bytes.NewReader(b), dir, 100, 1<<20)
		if entries, readErr := os.ReadDir(around); readErr != nil || len(entries) != 1 {
			t.Fatalf("outside of the folder: %v, %v", entries, readErr)
		}
		if _, hashErr := bundle.TreeHash(os.DirFS(dir)); err == nil && hashErr != nil {
			t.Errorf("unpacked something that is no tree: %v", hashErr)
		}
	})
}
