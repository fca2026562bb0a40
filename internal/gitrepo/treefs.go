package gitrepo

import (
	"bytes"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Tree is the files of one commit, read from the object store as they are asked
// for. It implements fs.FS, fs.ReadDirFS, fs.ReadFileFS and fs.StatFS, and may
// be used by several goroutines. It stays valid as long as its Repo is open and
// the repository keeps the commit.
//
// A listing shows everything, but symbolic links, submodules, pointers to LFS
// and files above the size limit cannot be opened: the error names the path and
// is fault.Invalid. A directory that holds a name which some file system would
// take for another (.., .GIT, twins in case) is refused as a whole.
type Tree struct {
	repo     *Repo
	commit   pipeline.CommitID
	root     plumbing.Hash
	modified time.Time

	mu      sync.RWMutex
	dirs    map[string]*listing // guarded by mu: by path
	entries int                 // guarded by mu: in dirs
}

var (
	_ fs.ReadDirFS  = (*Tree)(nil)
	_ fs.ReadFileFS = (*Tree)(nil)
	_ fs.StatFS     = (*Tree)(nil)
)

// Commit returns the commit whose files these are.
func (t *Tree) Commit() pipeline.CommitID { return t.commit }

// Hash returns the Git id of a directory's tree in hexadecimal, "." being the
// root, and "" when there is no such directory. Equal hashes are equal content.
func (t *Tree) Hash(dir string) (string, error) {
	if !fs.ValidPath(dir) {
		return "", fault.New(fault.Invalid, "%s is not a path in a tree", quote(dir))
	}
	if dir == "." {
		return t.root.String(), nil
	}
	e, err := t.lookup(dir)
	switch {
	case isNotExist(err) || err == nil && !e.isDir():
		return "", nil
	case err != nil:
		return "", err
	}
	return e.hash.String(), nil
}

// Open opens a file or directory. Errors are *fs.PathError around a fault.
func (t *Tree) Open(name string) (fs.File, error) {
	if name == "." {
		return t.openDir("open", name)
	}
	e, err := t.entryAt("open", name)
	if err != nil {
		return nil, err
	}
	if e.isDir() {
		return t.openDir("open", name)
	}
	data, err := t.content("open", name, e)
	if err != nil {
		return nil, err
	}
	return &file{Reader: bytes.NewReader(data), info: t.info(e, int64(len(data)))}, nil
}

// ReadFile returns a file's content; the caller owns it.
func (t *Tree) ReadFile(name string) ([]byte, error) {
	if name == "." {
		return nil, pathError("read", name, fault.New(fault.Invalid, "%s is a directory", quote(name)))
	}
	e, err := t.entryAt("read", name)
	if err != nil {
		return nil, err
	}
	if e.isDir() {
		return nil, pathError("read", name, fault.New(fault.Invalid, "%s is a directory", quote(name)))
	}
	return t.content("read", name, e)
}

// ReadDir lists a directory in the order of names.
func (t *Tree) ReadDir(name string) ([]fs.DirEntry, error) {
	if !fs.ValidPath(name) {
		return nil, pathError("readdir", name, fs.ErrInvalid)
	}
	l, err := t.dir(name)
	if err != nil {
		return nil, pathError("readdir", name, err)
	}
	out := make([]fs.DirEntry, len(l.entries))
	for i, e := range l.entries {
		out[i] = dirEntry{tree: t, e: e}
	}
	return out, nil
}

// Stat describes what is at a path, also what cannot be opened.
func (t *Tree) Stat(name string) (fs.FileInfo, error) {
	if name == "." {
		return t.info(entry{name: ".", mode: modeDir}, 0), nil
	}
	e, err := t.entryAt("stat", name)
	if err != nil {
		return nil, err
	}
	fi, err := t.statEntry(e)
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	return fi, nil
}

func (t *Tree) entryAt(op, name string) (entry, error) {
	if !fs.ValidPath(name) {
		return entry{}, pathError(op, name, fs.ErrInvalid)
	}
	e, err := t.lookup(name)
	if err != nil {
		return entry{}, pathError(op, name, err)
	}
	return e, nil
}

// content reads a file, or says why it is none.
func (t *Tree) content(op, name string, e entry) ([]byte, error) {
	refuse := func(format string, args ...any) ([]byte, error) {
		return nil, pathError(op, name, fault.New(fault.Invalid, format, args...))
	}
	switch {
	case e.mode == modeSymlink:
		return refuse("%s is a symbolic link, and links are not followed; put the file itself there", quote(name))
	case e.mode == modeSubmodule:
		return refuse("%s is a submodule, and submodules are not fetched; put the files themselves there", quote(name))
	case !e.isFile():
		return refuse("%s has the unknown mode %o", quote(name), e.mode)
	}
	what := "read " + quote(name) + " of commit " + t.commit.Short()
	data, err := t.repo.store.read(plumbing.BlobObject, e.hash, t.repo.limits.Blob)
	if err != nil {
		return nil, pathError(op, name, objectFault(what, err))
	}
	if isLFSPointer(data) {
		return refuse("%s is a pointer to Git LFS, which is not asked; store the file itself in Git", quote(name))
	}
	return data, nil
}

func isLFSPointer(data []byte) bool {
	const longest = 1024 // of a pointer, by the LFS specification
	return len(data) < longest && bytes.HasPrefix(data, []byte("version https://git-lfs.github.com/spec/v"))
}

func (t *Tree) statEntry(e entry) (fs.FileInfo, error) {
	if !e.isFile() && e.mode != modeSymlink {
		return t.info(e, 0), nil
	}
	n, err := t.repo.store.size(e.hash)
	if err != nil {
		return nil, objectFault("look up "+quote(e.name)+" in commit "+t.commit.Short(), err)
	}
	return t.info(e, n), nil
}

func (t *Tree) openDir(op, name string) (fs.File, error) {
	list, err := t.ReadDir(name)
	if err != nil {
		return nil, pathError(op, name, err)
	}
	_, base := split(name)
	return &directory{info: t.info(entry{name: base, mode: modeDir}, 0), rest: list}, nil
}

func (t *Tree) info(e entry, size int64) fileInfo {
	return fileInfo{name: e.name, mode: fsMode(e.mode), size: size, modified: t.modified}
}

func fsMode(m uint32) fs.FileMode {
	switch m {
	case modeDir:
		return fs.ModeDir | 0o555
	case modeFile, modeGroup:
		return 0o444
	case modeExec:
		return 0o555
	case modeSymlink:
		return fs.ModeSymlink | 0o444
	}
	return fs.ModeIrregular
}

func pathError(op, name string, err error) error {
	if pe, ok := err.(*fs.PathError); ok { //nolint:errorlint // only one made here is unwrapped
		err = pe.Err
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

type fileInfo struct {
	name     string
	mode     fs.FileMode
	size     int64
	modified time.Time
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.size }
func (i fileInfo) Mode() fs.FileMode  { return i.mode }
func (i fileInfo) ModTime() time.Time { return i.modified }
func (i fileInfo) IsDir() bool        { return i.mode.IsDir() }
func (i fileInfo) Sys() any           { return nil }

type dirEntry struct {
	tree *Tree
	e    entry
}

func (d dirEntry) Name() string               { return d.e.name }
func (d dirEntry) IsDir() bool                { return d.e.isDir() }
func (d dirEntry) Type() fs.FileMode          { return fsMode(d.e.mode).Type() }
func (d dirEntry) Info() (fs.FileInfo, error) { return d.tree.statEntry(d.e) }
func (d dirEntry) String() string             { return fs.FormatDirEntry(d) }

type file struct {
	*bytes.Reader
	info fileInfo
}

func (f *file) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *file) Close() error               { return nil }

type directory struct {
	info fileInfo
	rest []fs.DirEntry
}

func (d *directory) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *directory) Close() error               { return nil }

func (d *directory) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.name, Err: fs.ErrInvalid}
}

func (d *directory) ReadDir(n int) ([]fs.DirEntry, error) {
	if n <= 0 {
		out := d.rest
		d.rest = nil
		return out, nil
	}
	if len(d.rest) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(d.rest))
	out := d.rest[:n:n]
	d.rest = d.rest[n:]
	return out, nil
}
