// Package plugins fetches the programs of plugins and keeps them, named by what
// they contain. What is kept was verified: a plugin's folder against its Git tree,
// a program's archive against its SHA-256. It does not run anything, and it does
// not decide which plugin a task may use.
//
// On disk, under Config.Dir:
//
//	entries/KEY/index.json   the files, written last; made complete by a rename
//	entries/KEY/files/...    read-only
//	entries/KEY/used         touched by every Fetch; its age decides in GC
//	tmp/...                  downloads; whatever is there belongs to nobody after a crash
//
// KEY is the tree's name, followed by the archive's when the program has a URL.
// An entry appears by one rename, so a kill at any instant leaves it whole or
// absent.
package plugins

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/maestro-cd/maestro/internal/bundle"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// Config of a Cache.
type Config struct {
	// Dir is the cache's own folder; it is made when needed.
	Dir string
	// HTTP gets a path of the reconciler, such as wire.PathPlugin + ….tar. The
	// caller closes what it returns. Its errors keep their fault kind.
	HTTP func(ctx context.Context, path string) (io.ReadCloser, error)
	Log  *slog.Logger
}

// Cache holds verified plugins. Its methods may be called from any goroutine. One
// process at a time may use a folder.
type Cache struct {
	cfg Config

	mu   sync.Mutex
	busy map[string]chan struct{} // key -> taken by whoever makes that entry
}

// New returns a cache over cfg.Dir. It does no I/O.
func New(cfg Config) *Cache {
	return &Cache{cfg: cfg, busy: map[string]chan struct{}{}}
}

// Fetch makes the program of p for this platform ready to run: dir is the plugin's
// folder, which must not be changed, and argv the command, its first element an
// absolute path. Concurrent calls for one plugin download it once.
//
// fault.Invalid: no program for this platform, or what was downloaded is not what
// its digest says, or could harm. fault.NotFound: the command is not in PATH.
// fault.Unavailable: the download broke off; try again.
func (c *Cache) Fetch(ctx context.Context, p wire.Plugin) (dir string, argv []string, err error) {
	wrap := func(err error) error { return fmt.Errorf("fetch plugin %s: %w", p.Name, err) }
	prog := (&pipeline.Plugin{Programs: p.Programs}).For(runtime.GOOS, runtime.GOARCH)
	if prog == nil {
		return "", nil, wrap(fault.New(fault.Invalid, "it has no program for %s/%s; its manifest offers %s",
			runtime.GOOS, runtime.GOARCH, offers(p.Programs)))
	}
	if len(prog.Argv) == 0 || prog.Argv[0] == "" {
		return "", nil, wrap(fault.New(fault.Invalid, "its program for %s/%s has no argv", runtime.GOOS, runtime.GOARCH))
	}
	want := source{tree: p.Tree, sha256: prog.SHA256, single: prog.Argv[0]}
	if prog.URL == "" {
		want.sha256 = ""
	}
	if err := want.check(prog.URL); err != nil {
		return "", nil, wrap(err)
	}
	if dir, err = c.entry(ctx, want); err != nil {
		return "", nil, wrap(err)
	}
	if argv, err = command(dir, prog.Argv); err != nil {
		return "", nil, wrap(err)
	}
	return dir, argv, nil
}

// command finds the program that the first element names, and the files of the
// plugin that later ones name with a leading "./": what an interpreter is to read.
func command(dir string, words []string) ([]string, error) {
	first, err := resolve(dir, words[0])
	if err != nil {
		return nil, err
	}
	argv := []string{first}
	for _, w := range words[1:] {
		if strings.HasPrefix(w, "./") {
			if w, _, err = fileIn(dir, w); err != nil {
				return nil, err
			}
		}
		argv = append(argv, w)
	}
	return argv, nil
}

// source is what an entry is made of.
type source struct {
	tree   pipeline.Digest
	sha256 string // "" when the program is in the tree
	// single is where an archive that is a single file goes.
	single string
}

// check keeps a digest that is none out of paths and URLs.
func (s source) check(url string) error {
	if !strings.HasPrefix(string(s.tree), "git:") || !isHex(s.treeHex(), 40) {
		return fault.New(fault.Invalid, "its digest %.80q is not a Git tree (git: and 40 hexadecimal digits)", s.tree)
	}
	if url != "" && !isHex(s.sha256, 64) {
		return fault.New(fault.Invalid, "the sha256 %.80q of %s is not 64 lower-case hexadecimal digits", s.sha256, url)
	}
	return nil
}

func isHex(s string, digits int) bool {
	return len(s) == digits && strings.Trim(s, "0123456789abcdef") == ""
}

func (s source) treeHex() string { return strings.TrimPrefix(string(s.tree), "git:") }

// key names the entry. A single file lands where argv says, so argv is part of
// what the entry is; its digest keeps the name short and free of slashes.
func (s source) key() string {
	if s.sha256 == "" {
		return s.treeHex()
	}
	at := strings.TrimPrefix(string(pipeline.DigestOf([]byte(s.single))), "sha256:")
	return s.treeHex() + "-" + s.sha256 + "-" + at[:8]
}

func offers(programs []pipeline.Program) string {
	var out []string
	for _, p := range programs {
		os, arch := p.OS, p.Arch
		if os == "" {
			os = "any"
		}
		if arch == "" {
			arch = "any"
		}
		out = append(out, os+"/"+arch)
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(slices.Compact(out), ", ")
}

// resolve finds the program that argv[0] names.
func resolve(dir, name string) (string, error) {
	if !strings.Contains(name, "/") {
		found, err := exec.LookPath(name)
		if err == nil {
			found, err = filepath.Abs(found)
		}
		if err != nil {
			return "", fault.New(fault.NotFound, "its command %q is not in this agent's PATH; install it, or require an agent that has it (facts: tools): %w", name, err)
		}
		return found, nil
	}
	full, mode, err := fileIn(dir, name)
	if err == nil && runtime.GOOS != "windows" && mode&0o100 == 0 {
		err = fault.New(fault.Invalid, "its command %q is not executable; run git update-index --chmod=+x on it and commit", name)
	}
	return full, err
}

func fileIn(dir, name string) (full string, mode os.FileMode, err error) {
	rel := path.Clean(name)
	if err := bundle.CheckPath(rel); err != nil {
		return "", 0, fault.New(fault.Invalid, "its command %q leaves the plugin's folder: %w", name, err)
	}
	full = filepath.Join(dir, filepath.FromSlash(rel))
	info, err := os.Lstat(full)
	if err != nil || !info.Mode().IsRegular() {
		return "", 0, fault.New(fault.Invalid, "its command %q is not a file in the plugin's folder; argv names it relative to plugin.cue", name)
	}
	return full, info.Mode(), nil
}
