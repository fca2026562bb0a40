package sources

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// watch asks the file system for notices where Git writes refs: HEAD,
// packed-refs, and the folders of branches and tags. Notices do not cover
// folders below, so each is watched, and new ones join as they appear. Without
// roots, or where notices cannot be had, it is silent and polling does the work.
type watch struct {
	roots []string // the folder of HEAD, and that of the refs if another
	log   *slog.Logger
	fsn   *fsnotify.Watcher
	// seen holds what was at each watched path; a folder that was replaced has
	// another identity, and its notices are lost.
	seen map[string]fs.FileInfo
	// stale: folders may have come or gone since they were last looked through.
	stale bool
}

func newWatch(roots []string, log *slog.Logger) *watch {
	w := &watch{roots: roots, log: log, seen: map[string]fs.FileInfo{}}
	if len(roots) == 0 {
		return w
	}
	fsn, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("file system gives no notices, changes are found by polling", "err", err)
		return w
	}
	w.fsn, w.stale = fsn, true
	w.sync()
	return w
}

func (w *watch) close() {
	if w.fsn != nil {
		_ = w.fsn.Close()
	}
}

func (w *watch) events() <-chan fsnotify.Event {
	if w.fsn == nil {
		return nil
	}
	return w.fsn.Events
}

func (w *watch) errors() <-chan error {
	if w.fsn == nil {
		return nil
	}
	return w.fsn.Errors
}

// drain takes notices that are there already: the pass that follows covers them.
// Their number is bounded, so that a busy repository cannot keep it from coming.
func (w *watch) drain() {
	for range 1000 {
		select {
		case ev := <-w.events():
			w.matters(ev)
		default:
			return
		}
	}
}

// matters reports whether a notice may mean that a ref moved, and notes whether the
// set of watched folders is still right.
func (w *watch) matters(ev fsnotify.Event) bool {
	if ev.Op == fsnotify.Chmod || strings.HasSuffix(ev.Name, ".lock") {
		return false
	}
	dir, base := filepath.Split(ev.Name)
	dir = filepath.Clean(dir)
	for _, root := range w.roots {
		switch {
		case ev.Name == root: // the repository itself came or went
		case dir == root && base != "HEAD" && base != "packed-refs" && base != "refs":
			return false // index, objects, config and such
		case dir == filepath.Dir(root) && !w.underRoot(ev.Name):
			return false // a neighbour of the repository
		}
	}
	if _, folder := w.seen[ev.Name]; folder || isDir(ev.Name) {
		w.stale = true
	}
	return true
}

func (w *watch) underRoot(name string) bool {
	for _, root := range w.roots {
		if name == root || strings.HasPrefix(name, root+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

// sync watches every folder that should be, and anew where it was replaced, if any may
// have been: it looks through all of them, so once for many notices. It looks again
// after each addition: a folder may have been made in the moment before its parent was
// watched.
func (w *watch) sync() {
	if w.fsn == nil || !w.stale {
		return
	}
	w.stale = false
	const rounds = 16 // deeper nesting that is made meanwhile waits for the poll
	for range rounds {
		if !w.syncOnce() {
			return
		}
	}
}

// syncOnce reports whether it added a folder.
func (w *watch) syncOnce() (added bool) {
	active := map[string]bool{}
	for _, p := range w.fsn.WatchList() {
		active[p] = true
	}
	want := map[string]fs.FileInfo{}
	for _, root := range w.roots {
		w.collect(want, root, "refs", filepath.Join("refs", "heads"), filepath.Join("refs", "tags"),
			filepath.Join("refs", "reviews"), filepath.Join("refs", "maestro"))
	}
	for p := range w.seen {
		if _, still := want[p]; !still {
			_ = w.fsn.Remove(p) // fails when it vanished, which is why it goes
			delete(w.seen, p)
		}
	}
	for p, fi := range want {
		if old, ok := w.seen[p]; ok && active[p] && os.SameFile(old, fi) {
			continue
		}
		_ = w.fsn.Remove(p)
		if err := w.fsn.Add(p); err != nil {
			delete(w.seen, p)
			w.log.Debug("folder cannot be watched, changes in it are found by polling", "folder", p, "err", err)
			continue
		}
		w.seen[p] = fi
		added = true
	}
	return added
}

// mostFolders bounds the watched folders of a kind: each reviewed commit has one, and
// the system has a limit for all programs of a user.
const mostFolders = 2000

// collect adds a root and its folders of refs, or, while the root is missing,
// the folder where it would appear.
func (w *watch) collect(want map[string]fs.FileInfo, root string, below ...string) {
	fi, err := os.Stat(root)
	if err != nil {
		parent := filepath.Dir(root)
		if fi, err := os.Stat(parent); err == nil {
			want[parent] = fi
		}
		return
	}
	want[root] = fi
	for i, sub := range below {
		deep := i > 0 // everything below, but of refs only itself
		start := filepath.Join(root, sub)
		left := mostFolders
		_ = filepath.WalkDir(start, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // it vanished while we looked; its parent gives notice
			}
			if fi, err := d.Info(); err == nil {
				want[p] = fi
			}
			if left--; !deep || left == 0 {
				return fs.SkipAll
			}
			return nil
		})
	}
}

func isDir(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.IsDir()
}
