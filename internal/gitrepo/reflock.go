package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/maestro-cd/maestro/internal/fault"
)

// go-git locks refs with flock, which no git process looks at. This is git's own
// protocol: REF.lock is created exclusively, the old value is compared, the new
// one is written into the lock, and the lock is renamed over the ref.

// readRef returns what one ref points at, zero when there is none. Loose before
// packed, for the reason given at readRefs.
func readRef(common, name string) (plumbing.Hash, error) {
	b, err := readSmall(filepath.Join(common, filepath.FromSlash(name)))
	switch {
	case err == nil:
		text := strings.TrimSpace(string(b))
		if !isHex40(text) {
			return plumbing.ZeroHash, fault.New(fault.Invalid, "ref %s holds no commit id; repair it with: git update-ref", quote(name))
		}
		return plumbing.NewHash(text), nil
	case !errors.Is(err, fs.ErrNotExist) && !isDir(filepath.Join(common, filepath.FromSlash(name))):
		return plumbing.ZeroHash, fault.New(fault.Unavailable, "read ref %s: %w; check the permissions of the repository", name, err)
	}
	packed, err := os.ReadFile(filepath.Join(common, "packed-refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return plumbing.ZeroHash, nil
	}
	if err != nil {
		return plumbing.ZeroHash, fault.New(fault.Unavailable, "read ref %s: %w; check the permissions of the repository", name, err)
	}
	for line := range bytes.Lines(packed) {
		id, ref, ok := strings.Cut(strings.TrimRight(string(line), "\r\n"), " ")
		if ok && ref == name && isHex40(id) {
			return plumbing.NewHash(id), nil
		}
	}
	return plumbing.ZeroHash, nil
}

// staleAfter is when a lock is taken to be left over, as by a process that was
// killed: one holds it for milliseconds, for an fsync at most. Only refs for notes
// are ever locked here, and only by writers of notes.
const staleAfter = 10 * time.Second

// moveRef points a ref at id if it still points at old. fault.Conflict when it
// does not, or when somebody holds its lock.
func moveRef(ctx context.Context, common, name string, old, id plumbing.Hash) error {
	path := filepath.Join(common, filepath.FromSlash(name))
	fail := func(kind fault.Kind, err error) error {
		return fault.New(kind, "move ref %s: %w; check that this user may write to the repository", name, err)
	}
	if err := ctx.Err(); err != nil {
		return fault.New(fault.Unavailable, "move ref %s: %w", name, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return fail(fault.Unavailable, err)
	}
	lock := path + ".lock"
	f, err := os.OpenFile(lock, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	switch {
	case errors.Is(err, fs.ErrExist):
		if fi, err := os.Stat(lock); err == nil && time.Since(fi.ModTime()) > staleAfter {
			_ = os.Remove(lock)
		}
		return fault.New(fault.Conflict, "move ref %s: another process holds %s", name, lock)
	case errors.Is(err, fs.ErrNotExist): // git removed the empty folder meanwhile
		return fault.New(fault.Conflict, "move ref %s: its folder vanished", name)
	case err != nil:
		return fail(fault.Unavailable, err)
	}
	current, err := readRef(common, name)
	if err == nil && current != old {
		err = fault.New(fault.Conflict, "move ref %s: it is at %s, not at %s", name, current, old)
	}
	if err == nil {
		err = writeLock(f, lock, path, id)
	} else {
		_ = f.Close()
	}
	if err != nil {
		_ = os.Remove(lock)
		if fault.KindOf(err) == fault.Internal {
			return fail(fault.Unavailable, err)
		}
	}
	return err
}

func writeLock(f *os.File, lock, path string, id plumbing.Hash) error {
	_, err := f.WriteString(id.String() + "\n")
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(lock, path)
}
