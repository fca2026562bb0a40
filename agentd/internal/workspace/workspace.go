// Package workspace keeps the directories that tasks work in: one for each
// composition, repository, trust class and slot, kept between runs so that sources and
// builds stay warm. One that untrusted work has touched is emptied before anybody else
// sees it. It is not for scratch space, which belongs to an attempt.
//
// Tasks write in these directories and may leave anything there, links included,
// so every access goes through an os.Root: nothing that a task leaves behind can
// make the agent touch a file elsewhere.
package workspace

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Key names a workspace.
type Key struct {
	Composition pipeline.CompositionName
	Untrusted   bool
	Slot        int
	// Source is the address of the source repository that the run is about, "" for none:
	// what was checked out from one is in the way of another.
	Source string
}

func (k Key) dir() string {
	trust := "trusted"
	if k.Untrusted {
		trust = "untrusted"
	}
	name := trust + "-" + strconv.Itoa(k.Slot)
	if k.Source != "" {
		sum := sha256.Sum256([]byte(k.Source))
		name += "-" + hex.EncodeToString(sum[:8])
	}
	return path.Join(string(k.Composition), name)
}

// Policy says when workspaces that nobody uses are removed. The zero value keeps all.
type Policy struct {
	// MaxAge since the last use.
	MaxAge time.Duration
	// MaxBytes of all together; the longest unused go first.
	MaxBytes int64
}

// Store is the set of an agent's workspaces. Its methods may be called from any goroutine.
type Store struct {
	base string
	root *os.Root
	log  *slog.Logger

	mu    sync.Mutex // not held while files are counted or removed, which may take minutes
	users map[string]int
	moved int // names the next thing in the trash
	// untrusted has the workspaces of untrusted runs, so that forgetting a run does
	// not read every directory there is.
	untrusted map[pipeline.RunID]map[string]bool
}

// note is what is remembered of a workspace, in a file beside it.
type note struct {
	Run    pipeline.RunID `json:"run"`
	UsedAt time.Time      `json:"used_at"`
}

const (
	noteSuffix = ".json"
	mostSlot   = 1000
	// trash takes what is to be removed: a rename is quick, so nobody waits for it
	// or gets a half-empty directory. No composition has such a name.
	trash = ".trash"
)

// Open uses dir, an absolute path, for workspaces; it is made when it is not there.
func Open(dir string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open workspaces: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open workspaces: %w", err)
	}
	s := &Store{base: dir, root: root, log: log, users: map[string]int{}, untrusted: map[pipeline.RunID]map[string]bool{}}
	if err := removeAll(root, trash); err != nil {
		log.Error("removed workspaces are still there", "err", err)
	}
	if err := root.MkdirAll(trash, 0o700); err != nil {
		return nil, fmt.Errorf("open workspaces: %w", errors.Join(err, root.Close()))
	}
	for _, w := range s.list() {
		s.rememberLocked(w.name, w.note.Run) // nobody else has s yet
	}
	return s, nil
}

// rememberLocked notes which run an untrusted workspace belongs to.
func (s *Store) rememberLocked(name string, run pipeline.RunID) {
	if !strings.HasPrefix(path.Base(name), "untrusted-") {
		return
	}
	if s.untrusted[run] == nil {
		s.untrusted[run] = map[string]bool{}
	}
	s.untrusted[run][name] = true
}

// Close releases the directory.
func (s *Store) Close() error { return s.root.Close() }

// Acquire returns the path of a workspace for a task of run, and what to call when
// the task has ended. Tasks of one run share it at the same time. An untrusted one
// that another run has used is emptied first. fault.Invalid for a key that cannot be.
func (s *Store) Acquire(k Key, run pipeline.RunID) (dir string, release func(), err error) {
	if !pipeline.ValidName(string(k.Composition)) || k.Slot < 0 || k.Slot > mostSlot {
		return "", nil, fault.New(fault.Invalid, "workspace of composition %q, slot %d: there can be none", k.Composition, k.Slot)
	}
	name := k.dir()
	s.mu.Lock()
	rubbish, err := s.prepareLocked(name, k.Untrusted, run)
	if err == nil {
		s.users[name]++
		s.rememberLocked(name, run)
	}
	s.mu.Unlock()
	s.remove(rubbish)
	if err != nil {
		return "", nil, fmt.Errorf("prepare workspace %s: %w", name, err)
	}
	return filepath.Join(s.base, filepath.FromSlash(name)), sync.OnceFunc(func() { s.release(name, run) }), nil
}

// prepareLocked makes the directory and returns what the caller has to remove.
func (s *Store) prepareLocked(name string, untrusted bool, run pipeline.RunID) (rubbish string, err error) {
	// What is not a directory was put there by a task in the place of one.
	for _, dir := range []string{path.Dir(name), name} {
		if fi, err := s.root.Lstat(dir); err == nil && !fi.IsDir() {
			if err := s.root.Remove(dir); err != nil {
				return "", err
			}
		}
	}
	if untrusted && s.users[name] == 0 {
		if last, ok := s.read(name); !ok || last.Run != run {
			if rubbish, err = s.dropLocked(name); err != nil {
				return rubbish, err
			}
		}
	}
	if err := s.root.MkdirAll(name, 0o700); err != nil {
		return rubbish, err
	}
	return rubbish, s.write(name, note{run, time.Now().UTC()})
}

func (s *Store) release(name string, run pipeline.RunID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[name]--
	if s.users[name] == 0 {
		delete(s.users, name)
	}
	if err := s.write(name, note{run, time.Now().UTC()}); err != nil {
		s.log.Warn("use of workspace not noted", "workspace", name, "err", err)
	}
}

// Forget empties what untrusted tasks of the runs have left. Trusted workspaces
// stay warm. It may take long.
func (s *Store) Forget(runs []pipeline.RunID) {
	for _, run := range runs {
		s.mu.Lock()
		names := s.untrusted[run]
		delete(s.untrusted, run)
		s.mu.Unlock()
		for _, name := range slices.Sorted(maps.Keys(names)) {
			if last, ok := s.read(name); ok && last.Run == run {
				s.drop(workspace{name, last}, "its untrusted run has ended")
			}
		}
	}
}

// Warm returns the compositions that have a workspace which trusted runs may use, those
// used last first, at most n.
func (s *Store) Warm(n int) []pipeline.CompositionName {
	all := s.list()
	slices.SortFunc(all, func(a, b workspace) int { return b.note.UsedAt.Compare(a.note.UsedAt) })
	var out []pipeline.CompositionName
	for _, w := range all {
		name := pipeline.CompositionName(path.Dir(w.name))
		if len(out) < n && strings.HasPrefix(path.Base(w.name), "trusted-") && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// Collect removes workspaces that nobody uses and that the policy does not keep. It
// may take long.
func (s *Store) Collect(p Policy) {
	all := s.list()
	slices.SortFunc(all, func(a, b workspace) int { return b.note.UsedAt.Compare(a.note.UsedAt) })
	var total int64
	for _, w := range all {
		if p.MaxAge > 0 && time.Since(w.note.UsedAt) > p.MaxAge {
			s.drop(w, "age")
			continue
		}
		if p.MaxBytes <= 0 {
			continue
		}
		if total += size(s.root, w.name); total > p.MaxBytes {
			s.drop(w, "size")
		}
	}
}

// drop removes a workspace, unless somebody has taken it since it was listed.
func (s *Store) drop(w workspace, why string) {
	s.mu.Lock()
	now, _ := s.read(w.name)
	if s.users[w.name] > 0 || now != w.note {
		s.mu.Unlock()
		return
	}
	rubbish, err := s.dropLocked(w.name)
	s.mu.Unlock()
	s.remove(rubbish)
	s.log.Info("workspace removed", "workspace", w.name, "why", why, "used_at", w.note.UsedAt, "err", err)
}

// dropLocked moves a workspace and its note away and returns where to.
func (s *Store) dropLocked(name string) (rubbish string, err error) {
	s.moved++
	rubbish = path.Join(trash, strconv.Itoa(s.moved))
	// A directory that may not be written cannot be moved either; Rename tells.
	_ = s.root.Chmod(name, 0o700)
	err = s.root.Rename(name, rubbish)
	if errors.Is(err, fs.ErrNotExist) {
		rubbish, err = "", nil
	}
	return rubbish, errors.Join(err, s.root.RemoveAll(name+noteSuffix))
}

// remove empties a piece of the trash.
func (s *Store) remove(rubbish string) {
	if rubbish == "" {
		return
	}
	if err := removeAll(s.root, rubbish); err != nil {
		// It is out of everybody's way; the next start tries again.
		s.log.Error("removed workspace is still there", "path", rubbish, "err", err)
	}
}

// workspace is one that exists.
type workspace struct {
	name string
	note note
}

// list returns the workspaces there are; those without a note count as never used.
func (s *Store) list() []workspace {
	var all []workspace
	compositions, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		s.log.Error("workspaces not listed", "err", err)
	}
	for _, c := range compositions {
		if c.Name() == trash {
			continue
		}
		dirs, err := fs.ReadDir(s.root.FS(), c.Name())
		if err != nil {
			continue
		}
		for _, d := range dirs {
			if d.IsDir() {
				name := path.Join(c.Name(), d.Name())
				last, _ := s.read(name)
				all = append(all, workspace{name, last})
			}
		}
	}
	return all
}

func (s *Store) read(name string) (note, bool) {
	b, err := s.root.ReadFile(name + noteSuffix)
	var n note
	return n, err == nil && json.Unmarshal(b, &n) == nil
}

func (s *Store) write(name string, n note) error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	// The file may be anything by now; a new one takes its place.
	tmp := name + noteSuffix + ".tmp"
	if err := s.root.RemoveAll(tmp); err != nil {
		return err
	}
	if err := s.root.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return s.root.Rename(tmp, name+noteSuffix)
}

// RemoveAll removes dir and all below it, directories without write permission
// too: module caches are full of them. Links are removed, not followed.
func RemoveAll(dir string) error {
	root, err := os.OpenRoot(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	defer root.Close()
	if err := removeAll(root, filepath.Base(dir)); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

func removeAll(root *os.Root, name string) error {
	err := root.RemoveAll(name)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	walk := fs.WalkDir(root.FS(), filepath.ToSlash(name), func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && err == nil {
			// The directory is read after this call, so it can be opened by then.
			return root.Chmod(filepath.FromSlash(p), 0o700)
		}
		return nil
	})
	return errors.Join(root.RemoveAll(name), walk)
}

func size(root *os.Root, name string) int64 {
	var total int64
	// What cannot be read has no known size; age removes it in the end.
	_ = fs.WalkDir(root.FS(), name, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if fi, err := d.Info(); err == nil && fi.Mode().IsRegular() {
			total += fi.Size()
		}
		return nil
	})
	return total
}
