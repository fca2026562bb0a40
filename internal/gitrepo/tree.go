package gitrepo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Modes of entries in a tree.
const (
	modeDir       = 0o040000
	modeFile      = 0o100644
	modeGroup     = 0o100664 // written by very old versions
	modeExec      = 0o100755
	modeSymlink   = 0o120000
	modeSubmodule = 0o160000
)

// entry is one line of a directory.
type entry struct {
	name string
	mode uint32
	hash plumbing.Hash
}

func (e entry) isDir() bool  { return e.mode == modeDir }
func (e entry) isFile() bool { return e.mode == modeFile || e.mode == modeExec || e.mode == modeGroup }

// listing is a directory's content. It depends on the tree's hash only, so it is
// shared between commits; it is immutable.
type listing struct {
	hash    plumbing.Hash
	entries []entry // in the order of names
	index   map[string]int
	// refused says why nothing in this directory may be read, "" normally, and
	// at which name.
	refused, at string
}

func (l *listing) find(name string) (entry, bool) {
	i, ok := l.index[name]
	if !ok {
		return entry{}, false
	}
	return l.entries[i], true
}

// parseTree reads the raw form of a tree strictly: "MODE NAME\x00HASH"…, in git's order.
func parseTree(data []byte) ([]entry, error) {
	var out []entry
	for len(data) > 0 {
		sp := bytes.IndexByte(data, ' ')
		if sp < 5 || sp > 6 {
			return nil, errors.New("a tree entry has no mode")
		}
		var mode uint32
		for _, c := range data[:sp] {
			if c < '0' || c > '7' {
				return nil, errors.New("a tree entry has a malformed mode")
			}
			mode = mode<<3 | uint32(c-'0')
		}
		data = data[sp+1:]
		nul := bytes.IndexByte(data, 0)
		if nul < 0 || len(data) < nul+1+len(plumbing.ZeroHash) {
			return nil, errors.New("a tree entry is cut short")
		}
		e := entry{name: string(data[:nul]), mode: mode}
		data = data[nul+1:]
		copy(e.hash[:], data)
		data = data[len(e.hash):]
		out = append(out, e)
	}
	return out, nil
}

func newListing(h plumbing.Hash, entries []entry) *listing {
	l := &listing{hash: h, entries: entries, index: make(map[string]int, len(entries))}
	slices.SortFunc(l.entries, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	folded := make(map[string]string, len(entries))
	for i, e := range l.entries {
		l.index[e.name] = i
		why := suspicious(e.name)
		if why == "" {
			key := foldKey(e.name)
			if twin, taken := folded[key]; taken {
				why = "it differs from " + quote(twin) + " only in case or in how accents are written"
			}
			folded[key] = e.name
		}
		if why != "" && l.refused == "" {
			l.refused, l.at = why, e.name
		}
	}
	return l
}

// treeCache keeps directories between commits. It has two generations: what was
// not asked for while one filled up is dropped, so its size is bounded.
type treeCache struct {
	mu         sync.Mutex
	young, old map[plumbing.Hash]*listing // guarded by mu
	entries    int                        // guarded by mu: in young
}

// cachedEntries bounds a generation; at about 150 bytes an entry, 8 MB.
const cachedEntries = 50_000

func (c *treeCache) get(h plumbing.Hash) *listing {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l, ok := c.young[h]; ok {
		return l
	}
	l, ok := c.old[h]
	if ok {
		c.addLocked(l)
	}
	return l
}

func (c *treeCache) add(l *listing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addLocked(l)
}

func (c *treeCache) addLocked(l *listing) {
	if c.entries > cachedEntries || c.young == nil {
		c.old, c.young, c.entries = c.young, map[plumbing.Hash]*listing{}, 0
	}
	if _, ok := c.young[l.hash]; !ok {
		c.young[l.hash] = l
		c.entries += len(l.entries) + 1
	}
}

// listing reads a directory by its hash.
func (r *Repo) listing(h plumbing.Hash) (*listing, error) {
	if l := r.trees.get(h); l != nil {
		return l, nil
	}
	data, err := r.store.read(plumbing.TreeObject, h, maxTreeBytes)
	if err != nil {
		return nil, err
	}
	entries, err := parseTree(data)
	if err != nil {
		return nil, err
	}
	l := newListing(h, entries)
	r.trees.add(l)
	return l, nil
}

// Tree opens the files of a commit. fault.NotFound when the repository has no
// such commit, fault.Invalid when id does not name one.
func (r *Repo) Tree(ctx context.Context, id pipeline.CommitID) (*Tree, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.New(fault.Unavailable, "open tree of %s: %w", id.Short(), err)
	}
	c, err := r.commit(id)
	if err != nil {
		return nil, err
	}
	return &Tree{repo: r, commit: id, root: c.tree, modified: c.When, dirs: map[string]*listing{}}, nil
}

// objectFault gives the failures of reading an object their kind.
func objectFault(what string, err error) error {
	switch {
	case errors.Is(err, errMissing):
		return fault.New(fault.NotFound, "%s: %w; the clone may be shallow or partial, or the commit was never pushed", what, err)
	case errors.Is(err, errTooLarge):
		return fault.New(fault.Invalid, "%s: %w", what, err)
	case errors.Is(err, errCorrupt):
		return fault.New(fault.Unavailable, "%s: %w; check the repository with: git fsck", what, err)
	}
	return fault.New(fault.Invalid, "%s: %w", what, err)
}

// maxDepth bounds directories in directories.
const maxDepth = 128

// dir returns the listing of a directory by its path in the tree.
func (t *Tree) dir(path string) (*listing, error) {
	t.mu.RLock()
	l := t.dirs[path]
	t.mu.RUnlock()
	if l != nil {
		return l, nil
	}
	h := t.root
	if path != "." {
		if strings.Count(path, "/") >= maxDepth {
			return nil, fault.New(fault.Invalid, "%s: directories are nested deeper than %d", quote(path), maxDepth)
		}
		e, err := t.lookup(path)
		if err != nil {
			return nil, err
		}
		if !e.isDir() {
			return nil, fault.New(fault.NotFound, "%s is not a directory: %w", quote(path), fs.ErrNotExist)
		}
		h = e.hash
	}
	l, err := t.repo.listing(h)
	if err != nil {
		return nil, objectFault("read directory "+quote(path)+" of commit "+t.commit.Short(), err)
	}
	if l.refused != "" {
		return nil, fault.New(fault.Invalid, "%s is refused: %s; rename it", quote(join(path, l.at)), l.refused)
	}
	return l, t.keep(path, l)
}

func (t *Tree) keep(path string, l *listing) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.dirs[path]; known {
		return nil
	}
	if t.entries += len(l.entries); t.entries > t.repo.limits.Entries {
		return fault.New(fault.Invalid, "commit %s has more than %d files and directories; split the repository or remove generated files",
			t.commit.Short(), t.repo.limits.Entries)
	}
	t.dirs[path] = l
	return nil
}

// lookup finds the entry at a path other than the root.
func (t *Tree) lookup(path string) (entry, error) {
	parent, name := split(path)
	l, err := t.dir(parent)
	if err != nil {
		return entry{}, err
	}
	e, ok := l.find(name)
	if !ok {
		return entry{}, fs.ErrNotExist
	}
	return e, nil
}

func split(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return ".", path
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}
