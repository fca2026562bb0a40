package plugins_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/plugins"
	"github.com/maestro-cd/maestro/internal/bundle"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// server is what the reconciler serves, by path; it counts what was asked for.
type server struct {
	files map[string][]byte
	asked atomic.Int32
}

func (s *server) get(_ context.Context, path string) (io.ReadCloser, error) {
	s.asked.Add(1)
	b, ok := s.files[path]
	if !ok {
		return nil, fault.New(fault.NotFound, "no %s", path)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// plugin serves the files and returns the plugin that they are.
func (s *server) plugin(t testing.TB, files fstest.MapFS, programs ...pipeline.Program) wire.Plugin {
	t.Helper()
	tree, err := bundle.TreeHash(files)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := bundle.WriteTar(&b, files); err != nil {
		t.Fatal(err)
	}
	s.files[wire.PathPlugin+strings.TrimPrefix(string(tree), "git:")+".tar"] = b.Bytes()
	return wire.Plugin{Name: "demo", Tree: tree, Programs: programs}
}

// archive serves an archive and returns its digest.
func (s *server) archive(b []byte) string {
	sum := sha256.Sum256(b)
	s.files[wire.PathArchive+hex.EncodeToString(sum[:])] = b
	return hex.EncodeToString(sum[:])
}

func newServer() *server { return &server{files: map[string][]byte{}} }

func newCache(dir string, s *server) *plugins.Cache {
	return plugins.New(plugins.Config{Dir: dir, HTTP: s.get, Log: slog.New(slog.DiscardHandler)})
}

func hello() fstest.MapFS {
	return fstest.MapFS{
		"plugin.cue": {Data: []byte("package demo\n"), Mode: 0o644},
		"bin/run":    {Data: []byte("#!/bin/sh\necho \"hello $1\"; cat \"$(dirname \"$0\")/../lib/words\"\n"), Mode: 0o755},
		"lib/words":  {Data: []byte("world\n"), Mode: 0o644},
	}
}

func output(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", argv, err, out)
	}
	return string(out)
}

func TestInterpreterGetsFilesOfThePlugin(t *testing.T) {
	t.Parallel()
	s := newServer()
	c := newCache(t.TempDir(), s)
	dir, argv, err := c.Fetch(t.Context(), s.plugin(t, hello(), pipeline.Program{Argv: []string{"sh", "./bin/run", "bin/run", "--flag"}}))
	if err != nil || len(argv) != 4 || argv[1] != filepath.Join(dir, "bin", "run") || argv[2] != "bin/run" {
		t.Fatalf("argv %q, %v", argv, err)
	}
	if got := output(t, argv...); !strings.HasPrefix(got, "hello") {
		t.Errorf("it said %q", got)
	}
	for _, word := range []string{"./absent", "./../x", "./bin"} {
		if _, _, err := c.Fetch(t.Context(), s.plugin(t, hello(), pipeline.Program{Argv: []string{"sh", word}})); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want an error of the manifest", word, err)
		}
	}
}

func TestFetchedProgramRuns(t *testing.T) {
	t.Parallel()
	s := newServer()
	p := s.plugin(t, hello(), pipeline.Program{Argv: []string{"./bin/run", "--flag"}})
	c := newCache(filepath.Join(t.TempDir(), "plugins"), s)
	dir, argv, err := c.Fetch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if len(argv) != 2 || argv[0] != filepath.Join(dir, "bin", "run") || !filepath.IsAbs(dir) {
		t.Errorf("dir %q, argv %q", dir, argv)
	}
	if got := output(t, argv...); got != "hello --flag\nworld\n" {
		t.Errorf("printed %q", got)
	}
	for name := range hello() {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm()&0o222 != 0 {
			t.Errorf("%s has mode %v, %v: want it read-only", name, info.Mode(), err)
		}
	}
	again, _, err := c.Fetch(t.Context(), p)
	if err != nil || again != dir || s.asked.Load() != 1 {
		t.Errorf("second fetch: %q, %v, after %d downloads", again, err, s.asked.Load())
	}
}

func TestCommandIsFoundInPATH(t *testing.T) {
	t.Parallel()
	s := newServer()
	p := s.plugin(t, hello(), pipeline.Program{OS: "plan9", Argv: []string{"./bin/run"}}, pipeline.Program{OS: runtime.GOOS, Argv: []string{"sh", "-c", "true"}})
	_, argv, err := newCache(t.TempDir(), s).Fetch(t.Context(), p)
	if err != nil || len(argv) != 3 || !filepath.IsAbs(argv[0]) || filepath.Base(argv[0]) != "sh" {
		t.Errorf("argv %q, %v", argv, err)
	}
	p.Programs = []pipeline.Program{{Argv: []string{"no-such-command-anywhere"}}}
	if _, _, err := newCache(t.TempDir(), s).Fetch(t.Context(), p); !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "no-such-command-anywhere") {
		t.Errorf("missing command: %v", err)
	}
}

func TestWhatCannotRunIsRefusedWithTheReason(t *testing.T) {
	t.Parallel()
	one := func(argv ...string) []pipeline.Program { return []pipeline.Program{{Argv: argv}} }
	for what, c := range map[string]struct {
		programs []pipeline.Program
		says     string
	}{
		"other platform":   {[]pipeline.Program{{OS: "plan9", Arch: "arm", Argv: []string{"x"}}, {OS: "aix", Argv: []string{"x"}}}, "plan9/arm, aix/any"},
		"no programs":      {nil, "offers none"},
		"no argv":          {one(), "no argv"},
		"missing file":     {one("./bin/other"), "is not a file"},
		"not executable":   {one("./lib/words"), "not executable"},
		"a folder":         {one("./bin"), "is not a file"},
		"outside":          {one("../../bin/sh"), "leaves the plugin's folder"},
		"absolute":         {one("/bin/sh"), "leaves the plugin's folder"},
		"digest is a path": {[]pipeline.Program{{Argv: []string{"./x"}, URL: "https://x/y", SHA256: "../../../etc/passwd"}}, "64 lower-case"},
	} {
		s := newServer()
		p := s.plugin(t, hello(), c.programs...)
		_, _, err := newCache(t.TempDir(), s).Fetch(t.Context(), p)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "demo") {
			t.Errorf("%s: %v, want invalid and %q", what, err, c.says)
		}
	}
	s := newServer()
	for _, tree := range []pipeline.Digest{"", "git:", "git:../../x", "sha256:" + pipeline.Digest(strings.Repeat("a", 64)), "git:" + pipeline.Digest(strings.Repeat("A", 40))} {
		_, _, err := newCache(t.TempDir(), s).Fetch(t.Context(), wire.Plugin{Tree: tree, Programs: one("./x")})
		if !fault.Is(err, fault.Invalid) || s.asked.Load() != 0 {
			t.Errorf("tree %q: %v after %d downloads", tree, err, s.asked.Load())
		}
	}
}

func TestOtherTreeThanPlannedIsRefusedNamingBoth(t *testing.T) {
	t.Parallel()
	s := newServer()
	p := s.plugin(t, hello(), pipeline.Program{Argv: []string{"./bin/run"}})
	changed := hello()
	changed["bin/run"] = &fstest.MapFile{Data: []byte("#!/bin/sh\nevil\n"), Mode: 0o755}
	q := s.plugin(t, changed)
	s.files[wire.PathPlugin+strings.TrimPrefix(string(p.Tree), "git:")+".tar"] = s.files[wire.PathPlugin+strings.TrimPrefix(string(q.Tree), "git:")+".tar"]
	dir := t.TempDir()
	_, _, err := newCache(dir, s).Fetch(t.Context(), p)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), string(p.Tree)) || !strings.Contains(err.Error(), string(q.Tree)) {
		t.Errorf("Fetch = %v", err)
	}
	empty(t, dir)
}

// empty fails when the cache holds anything but empty folders.
func empty(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Errorf("%s was left behind", name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestConcurrentFetchesDownloadOnce(t *testing.T) {
	t.Parallel()
	s := newServer()
	sum := s.archive([]byte("#!/bin/sh\n"))
	p := s.plugin(t, hello(), pipeline.Program{Argv: []string{"./x"}, URL: "https://x.example/x", SHA256: sum})
	c := newCache(t.TempDir(), s)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, _, err := c.Fetch(t.Context(), p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.asked.Load(); n != 2 {
		t.Errorf("%d downloads, want the folder and the archive once", n)
	}
}

func TestWaitingForAnotherDownloadEndsWithTheContext(t *testing.T) {
	t.Parallel()
	s := newServer()
	p := s.plugin(t, hello(), pipeline.Program{Argv: []string{"./bin/run"}})
	started, release := make(chan struct{}), make(chan struct{})
	c := plugins.New(plugins.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), HTTP: func(ctx context.Context, path string) (io.ReadCloser, error) {
		close(started)
		<-release
		return s.get(ctx, path)
	}})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, _, err := c.Fetch(t.Context(), p); err != nil {
			t.Error(err)
		}
	})
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.Fetch(ctx, p); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Fetch = %v, want unavailable", err)
	}
	close(release)
	wg.Wait()
}

func TestChangedEntryIsFetchedAgainAndAddedFilesDoNotMatter(t *testing.T) {
	t.Parallel()
	for what, spoil := range map[string]func(dir string) error{
		"written": func(dir string) error { return overwrite(filepath.Join(dir, "lib/words"), "evil!\n") },
		"removed": func(dir string) error { return os.Remove(filepath.Join(dir, "bin/run")) },
		"mode":    func(dir string) error { return os.Chmod(filepath.Join(dir, "bin/run"), 0o644) },
		"link": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "bin/run")), os.Symlink("/bin/sh", filepath.Join(dir, "bin/run")))
		},
		"index":     func(dir string) error { return overwrite(filepath.Join(dir, "..", "index.json"), "{") },
		"no index":  func(dir string) error { return os.Remove(filepath.Join(dir, "..", "index.json")) },
		"all files": os.RemoveAll,
	} {
		s := newServer()
		p := s.plugin(t, hello(), pipeline.Program{Argv: []string{"./bin/run"}})
		c := newCache(t.TempDir(), s)
		dir, argv, err := c.Fetch(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "lib", "words.pyc"), []byte("compiled"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Fetch(t.Context(), p); err != nil || s.asked.Load() != 1 {
			t.Errorf("%s: an added file: %v, %d downloads", what, err, s.asked.Load())
		}
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Fetch(t.Context(), p); err != nil || s.asked.Load() != 2 {
			t.Errorf("%s: %v, %d downloads, want 2", what, err, s.asked.Load())
		}
		if got := output(t, argv...); got != "hello \nworld\n" {
			t.Errorf("%s: printed %q", what, got)
		}
	}
}

func overwrite(name, text string) error {
	return errors.Join(os.Chmod(name, 0o644), os.WriteFile(name, []byte(text), 0o644))
}

func TestErrorsOfTheServerKeepTheirKindAndNothingStays(t *testing.T) {
	t.Parallel()
	s := newServer()
	p := s.plugin(t, hello(), pipeline.Program{Argv: []string{"./bin/run"}})
	whole := s.files[wire.PathPlugin+strings.TrimPrefix(string(p.Tree), "git:")+".tar"]
	dir := t.TempDir()
	var answer func() (io.ReadCloser, error)
	c := plugins.New(plugins.Config{Dir: dir, Log: slog.New(slog.DiscardHandler), HTTP: func(context.Context, string) (io.ReadCloser, error) { return answer() }})
	for _, tc := range []struct {
		what   string
		answer func() (io.ReadCloser, error)
		kind   fault.Kind
	}{
		{"unknown to the server", func() (io.ReadCloser, error) { return nil, fault.New(fault.NotFound, "404") }, fault.NotFound},
		{"server down", func() (io.ReadCloser, error) { return nil, fault.New(fault.Unavailable, "refused") }, fault.Unavailable},
		{"reset", func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(whole[:900]), failing{errors.New("reset by peer")})), nil
		}, fault.Unavailable},
		{"cut short", func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(whole[:540])), nil }, fault.Unavailable},
		{"no tar", func() (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(strings.Repeat("<html>", 200))), nil
		}, fault.Invalid},
	} {
		answer = tc.answer
		if _, _, err := c.Fetch(t.Context(), p); !fault.Is(err, tc.kind) {
			t.Errorf("%s: %v, want %s", tc.what, err, tc.kind)
		}
		empty(t, dir)
	}
	answer = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(whole)), nil }
	if _, _, err := c.Fetch(t.Context(), p); err != nil {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestUnusedEntriesAreCollected(t *testing.T) {
	t.Parallel()
	s := newServer()
	p := s.plugin(t, hello(), pipeline.Program{Argv: []string{"./bin/run"}})
	q := s.plugin(t, fstest.MapFS{"run": {Data: []byte("#!/bin/sh\n"), Mode: 0o755}}, pipeline.Program{Argv: []string{"./run"}})
	home := t.TempDir()
	c := newCache(home, s)
	old, _, err := c.Fetch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	kept, _, err := c.Fetch(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-48 * time.Hour)
	crashed := filepath.Join(home, "tmp", "fetch-1")
	if err := os.MkdirAll(crashed, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join(old, "..", "used"), crashed} {
		if err := os.Chtimes(name, past, past); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.GC(t.Context(), 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{old: false, crashed: false, kept: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", path, err, want)
		}
	}
	// Fetch makes it anew; being used keeps it.
	if _, _, err := c.Fetch(t.Context(), p); err != nil {
		t.Error(err)
	}
	if err := os.Chtimes(filepath.Join(old, "..", "used"), past, past); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Fetch(t.Context(), p); err != nil {
		t.Error(err)
	}
	if err := c.GC(t.Context(), 24*time.Hour); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(old); err != nil {
		t.Errorf("an entry in use was collected: %v", err)
	}
	if err := newCache(filepath.Join(home, "missing"), s).GC(t.Context(), time.Hour); err != nil {
		t.Errorf("GC of nothing: %v", err)
	}
}

// A process that is killed while it fetches leaves a whole entry or none.
func TestKilledFetchIsHarmless(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	files := hello()
	for i := range 40 {
		files[fmt.Sprintf("lib/f%02d", i)] = &fstest.MapFile{Data: bytes.Repeat([]byte{byte(i)}, 20_000), Mode: 0o644}
	}
	s := newServer()
	p := s.plugin(t, files, pipeline.Program{Argv: []string{"./bin/run"}})
	served, dir := t.TempDir(), t.TempDir()
	write(t, filepath.Join(served, "tar"), string(s.files[wire.PathPlugin+strings.TrimPrefix(string(p.Tree), "git:")+".tar"]))
	for i := range 12 {
		// The child says each time it reads 64 KiB; it is killed after the i-th.
		cmd := exec.Command(self)
		cmd.Env = []string{"FETCH_CHILD=" + dir, "FETCH_FROM=" + filepath.Join(served, "tar"), "FETCH_TREE=" + string(p.Tree)}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		io.ReadFull(out, make([]byte, i+1))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		for _, home := range must(filepath.Glob(filepath.Join(dir, "entries", "*"))) {
			if got, err := bundle.TreeHash(os.DirFS(filepath.Join(home, "files"))); err != nil || !strings.HasSuffix(string(got), filepath.Base(home)) {
				t.Fatalf("after kill %d entry %s is %s, %v", i, home, got, err)
			}
		}
	}
	_, argv, err := newCache(dir, s).Fetch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, argv...); got != "hello \nworld\n" {
		t.Errorf("printed %q", got)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// fetchChild is the process that TestKilledFetchIsHarmless kills.
func fetchChild(dir string) int {
	c := plugins.New(plugins.Config{Dir: dir, Log: slog.New(slog.DiscardHandler), HTTP: func(context.Context, string) (io.ReadCloser, error) {
		f, err := os.Open(os.Getenv("FETCH_FROM"))
		return telling{f}, err
	}})
	_, _, err := c.Fetch(context.Background(), wire.Plugin{Tree: pipeline.Digest(os.Getenv("FETCH_TREE")), Programs: []pipeline.Program{{Argv: []string{"./bin/run"}}}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

type telling struct{ *os.File }

func (f telling) Read(p []byte) (int, error) {
	os.Stdout.Write([]byte{'.'})
	return f.File.Read(p)
}
