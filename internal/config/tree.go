package config

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/maestro-cd/maestro/internal/fault"
)

// Tree is the files of one commit. Opening a symbolic link, a submodule, a Git
// LFS pointer or a blob over the limit is an error that names the path.
type Tree interface {
	fs.FS
	// Hash returns the Git tree id, in hexadecimal, of a directory ("." is the
	// root), and "" when there is no such directory. Equal ids mean equal content.
	Hash(dir string) (string, error)
}

// FSTree makes a Tree of any file system, such as os.DirFS of a working copy or
// an embed.FS, as it is at the time: Hash reads everything below a directory once.
// A file is executable when its mode says so, when it begins with "#!", or when it
// is named run or checkout: an embed.FS knows no modes. A .git is no part of the
// tree and is hidden. It is safe for concurrent use.
func FSTree(fsys fs.FS) Tree { return &fsTree{FS: fsys, known: map[string][]byte{}} }

type fsTree struct {
	fs.FS
	mu    sync.Mutex
	known map[string][]byte // guarded by mu; hashes of directories
}

// ReadDir lists a directory as a commit of it would.
func (t *fsTree) ReadDir(dir string) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(t.FS, dir)
	return slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() == ".git" }), err
}

func (t *fsTree) Hash(dir string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	sum, err := t.hashLocked(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("hash tree %s: %w", dir, err)
	}
	return hex.EncodeToString(sum), nil
}

func (t *fsTree) hashLocked(dir string) ([]byte, error) {
	if sum, ok := t.known[dir]; ok {
		return sum, nil
	}
	entries, err := t.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	// Git sorts a directory as if its name ended in a slash.
	key := func(e fs.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(key(a), key(b)) })
	var body bytes.Buffer
	for _, e := range entries {
		mode, sum, err := t.entryLocked(path.Join(dir, e.Name()), e)
		if err != nil {
			return nil, err
		}
		if sum == nil {
			continue // Git keeps no empty directories, and no sockets.
		}
		fmt.Fprintf(&body, "%s %s\x00", mode, e.Name())
		body.Write(sum)
	}
	if body.Len() == 0 && dir != "." {
		return nil, nil
	}
	sum := gitObject("tree", body.Bytes())
	t.known[dir] = sum
	return sum, nil
}

func (t *fsTree) entryLocked(name string, e fs.DirEntry) (mode string, sum []byte, err error) {
	if e.IsDir() {
		sum, err = t.hashLocked(name)
		return "40000", sum, err
	}
	if e.Type()&fs.ModeSymlink != 0 {
		to, err := fs.ReadLink(t.FS, name)
		return "120000", gitObject("blob", []byte(to)), err
	}
	if !e.Type().IsRegular() {
		return "", nil, nil
	}
	b, err := fs.ReadFile(t.FS, name)
	if err != nil {
		return "", nil, err
	}
	info, err := e.Info()
	if err != nil {
		return "", nil, err
	}
	mode = "100644"
	if info.Mode()&0o111 != 0 || Executable(e.Name(), b) {
		mode = "100755"
	}
	return mode, gitObject("blob", b), nil
}

// Executable reports whether a file of a standard plugin is a program. The files
// are embedded without their modes, so a name or a "#!" line has to tell.
func Executable(name string, content []byte) bool {
	return name == "run" || name == "checkout" || bytes.HasPrefix(content, []byte("#!"))
}

// Open refuses what is not a regular file or a directory, so that a symbolic
// link in a working copy leads nowhere.
func (t *fsTree) Open(name string) (fs.File, error) {
	if lf, ok := t.FS.(fs.ReadLinkFS); ok && name != "." {
		info, err := lf.Lstat(name)
		if err != nil {
			return nil, err
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fault.New(fault.Invalid, "is a symbolic link, which is not followed")}
		}
	}
	return t.FS.Open(name)
}

// Stat describes a file as a commit of it would. Where files have no such mode,
// every file may be a program.
func (t *fsTree) Stat(name string) (fs.FileInfo, error) {
	f, err := t.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && runtime.GOOS == "windows" {
		info = executable{info}
	}
	return info, err
}

type executable struct{ fs.FileInfo }

func (e executable) Mode() fs.FileMode { return e.FileInfo.Mode() | 0o111 }

// gitObject is the id that Git gives to an object.
func gitObject(kind string, body []byte) []byte {
	h := sha1.New()
	fmt.Fprintf(h, "%s %d\x00", kind, len(body))
	h.Write(body)
	return h.Sum(nil)
}
