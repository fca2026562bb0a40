package gitrepo

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/storage/filesystem"
	"github.com/go-git/go-git/v5/storage/filesystem/dotgit"
)

const (
	// maxCommitBytes bounds commits and tags; the largest seen in the wild are
	// far below, and a longer message is nothing that anybody reads.
	maxCommitBytes = 4 << 20
	// maxTreeBytes bounds one directory: about 200,000 entries.
	maxTreeBytes = 8 << 20
	// cacheBytes is for delta bases; without it each object of a pack is
	// unpacked from the start of its chain.
	cacheBytes = 8 << 20
	// readsPerOpening bounds what go-git notes of each object it has looked up.
	readsPerOpening = 100_000
)

var (
	errMissing  = errors.New("the object is missing from the repository")
	errTooLarge = errors.New("the object is too large")
	errCorrupt  = errors.New("the object is damaged")
)

// objects reads and writes the object store. go-git's storage is neither safe
// for concurrent use nor aware of packs that appear or vanish after it was
// opened, so every use goes through here.
type objects struct {
	dir string // holds objects/

	mu    sync.Mutex
	st    *filesystem.ObjectStorage // guarded by mu; nil until needed
	stamp packStamp                 // guarded by mu: of the pack directory when st was made
	reads int                       // guarded by mu: since st was made
}

// packStamp tells whether the set of packs may have changed. An equal stamp that
// is younger than the clock's grain proves nothing.
type packStamp struct {
	info os.FileInfo
	at   time.Time
}

// objectCache keeps recently read objects for go-git, whose own cache counts
// their bytes but not what it costs to keep them: thousands of small objects
// would take many times the limit. Two generations, as in treeCache.
type objectCache struct {
	mu         sync.Mutex
	young, old map[plumbing.Hash]plumbing.EncodedObject // guarded by mu
	bytes      int64                                    // guarded by mu: of young
}

func (c *objectCache) Put(o plumbing.EncodedObject) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.putLocked(o.Hash(), o)
}

func (c *objectCache) putLocked(h plumbing.Hash, o plumbing.EncodedObject) {
	const overhead = 512 // of an object and its places in maps, measured
	cost := o.Size() + overhead
	if cost > cacheBytes/4 {
		return
	}
	if c.young == nil || c.bytes+cost > cacheBytes/2 {
		c.old, c.young, c.bytes = c.young, map[plumbing.Hash]plumbing.EncodedObject{}, 0
	}
	if _, known := c.young[h]; !known {
		c.young[h] = o
		c.bytes += cost
	}
}

func (c *objectCache) Get(h plumbing.Hash) (plumbing.EncodedObject, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o, ok := c.young[h]; ok {
		return o, true
	}
	o, ok := c.old[h]
	if ok {
		c.putLocked(h, o)
	}
	return o, ok
}

func (c *objectCache) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.young, c.old, c.bytes = nil, nil, 0
}

func newObjects(dir string) *objects { return &objects{dir: dir} }

func (o *objects) packDir() string { return filepath.Join(o.dir, "objects", "pack") }

func (o *objects) currentStamp() packStamp {
	fi, err := os.Stat(o.packDir())
	if err != nil {
		return packStamp{at: time.Now()}
	}
	return packStamp{info: fi, at: time.Now()}
}

// same reports whether now certainly shows the same packs as s.
func (s packStamp) same(now packStamp) bool {
	if s.info == nil || now.info == nil {
		return s.info == nil && now.info == nil
	}
	const grain = 2 * time.Second // the coarsest time stamps of a file system
	return os.SameFile(s.info, now.info) && s.info.ModTime().Equal(now.info.ModTime()) &&
		s.at.Sub(s.info.ModTime()) > grain
}

func (o *objects) openLocked() *filesystem.ObjectStorage {
	if o.reads++; o.reads > readsPerOpening {
		_ = o.closeLocked()
	}
	if o.st == nil {
		o.stamp, o.reads = o.currentStamp(), 0
		o.st = filesystem.NewObjectStorageWithOptions(
			dotgit.New(osfs.New(o.dir)), &objectCache{}, filesystem.Options{KeepDescriptors: true},
		)
	}
	return o.st
}

func (o *objects) closeLocked() error {
	if o.st == nil {
		return nil
	}
	err := o.st.Close()
	o.st = nil
	return err
}

func (o *objects) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closeLocked()
}

// refresh lets go of packs that have been replaced, so that their disk space is
// freed and the new ones are seen. Cheap when nothing changed.
func (o *objects) refresh() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.st == nil {
		return
	}
	now := o.currentStamp()
	if now.info != nil && o.stamp.info != nil && os.SameFile(now.info, o.stamp.info) && now.info.ModTime().Equal(o.stamp.info.ModTime()) {
		return
	}
	_ = o.closeLocked()
}

// withStore runs f, and once more on a freshly opened store when f fails and the
// packs may have changed since: after a push, or when gc removed a pack that
// was still indexed.
func (o *objects) withStore(f func(*filesystem.ObjectStorage) error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	err := f(o.openLocked())
	if err == nil || errors.Is(err, errTooLarge) || o.stamp.same(o.currentStamp()) {
		return err
	}
	_ = o.closeLocked()
	return f(o.openLocked())
}

// read returns the content of an object of one kind.
func (o *objects) read(kind plumbing.ObjectType, h plumbing.Hash, most int64) ([]byte, error) {
	got, data, err := o.readAny(h, most)
	if err == nil && got != kind {
		return nil, fmt.Errorf("%s is a %s, not a %s", h, got, kind)
	}
	return data, err
}

// readAny returns the kind and content of an object of at most most bytes. Its
// content is checked against its name. errMissing, errTooLarge and errCorrupt
// tell the failures apart.
func (o *objects) readAny(h plumbing.Hash, most int64) (kind plumbing.ObjectType, data []byte, err error) {
	err = o.withStore(func(st *filesystem.ObjectStorage) error {
		size, err := st.EncodedObjectSize(h)
		if err != nil {
			return readError(h, err)
		}
		if size > most {
			return fmt.Errorf("%s: %w: %d bytes, %d are allowed", h, errTooLarge, size, most)
		}
		obj, err := st.EncodedObject(plumbing.AnyObject, h)
		if err != nil {
			return readError(h, err)
		}
		r, err := obj.Reader()
		if err != nil {
			return readError(h, err)
		}
		defer r.Close()
		kind = obj.Type()
		if data, err = io.ReadAll(io.LimitReader(r, most+1)); err != nil {
			return readError(h, err)
		}
		if plumbing.ComputeHash(kind, data) != h {
			return fmt.Errorf("%s: %w: its content has another hash", h, errCorrupt)
		}
		return nil
	})
	return kind, data, err
}

// size returns the size of an object without reading it.
func (o *objects) size(h plumbing.Hash) (n int64, err error) {
	err = o.withStore(func(st *filesystem.ObjectStorage) error {
		if n, err = st.EncodedObjectSize(h); err != nil {
			return readError(h, err)
		}
		return nil
	})
	return n, err
}

func (o *objects) has(h plumbing.Hash) bool {
	_, err := o.size(h)
	return err == nil
}

// put stores an object and returns its name.
func (o *objects) put(kind plumbing.ObjectType, data []byte) (plumbing.Hash, error) {
	obj := &plumbing.MemoryObject{}
	obj.SetType(kind)
	if _, err := obj.Write(data); err != nil {
		return plumbing.ZeroHash, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.openLocked().SetEncodedObject(obj)
}

func readError(h plumbing.Hash, err error) error {
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return fmt.Errorf("%s: %w", h, errMissing)
	}
	return fmt.Errorf("%s: %w: %w", h, errCorrupt, err)
}
