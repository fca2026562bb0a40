package gitrepo

import (
	"bytes"
	"cmp"
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
// and those that Publish makes are ever locked here.
const staleAfter = 10 * time.Second

// moveRef points a ref at id if it still points at old. fault.Conflict when it
// does not, or when somebody holds its lock.
func moveRef(ctx context.Context, common, name string, old, id plumbing.Hash) error {
	return holdRef(ctx, common, name, old, func(lock *os.File, path string) error {
		return writeLock(lock, path, id)
	})
}

// dropRef removes a ref if it still points at old, or is gone. fault.Conflict when
// it points elsewhere, or when somebody holds its lock.
func dropRef(ctx context.Context, common, name string, old plumbing.Hash) error {
	current, err := readRef(common, name)
	if err != nil || current.IsZero() {
		return err
	}
	return holdRef(ctx, common, name, old, func(lock *os.File, path string) error {
		_ = lock.Close()
		// Packed before loose: in between, the ref is still there as it was.
		if err := unpackRef(common, name); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.Remove(lock.Name())
	})
}

// unpackRef takes a ref out of packed-refs, under git's own lock for that file.
func unpackRef(common, name string) error {
	path := filepath.Join(common, "packed-refs")
	if _, found, err := packedWithout(path, name); err != nil || !found {
		return err // most refs are never packed, and git's lock is best left alone
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Conflict, "remove ref %s: another process holds %s.lock", name, path)
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	left, found, err := packedWithout(path, name)
	if err == nil && found {
		_, err = lock.Write(left)
		if err = cmp.Or(err, lock.Sync()); err == nil {
			return os.Rename(lock.Name(), path)
		}
	}
	return cmp.Or(err, os.Remove(lock.Name()))
}

// packedWithout returns packed-refs without one ref and what it peels to.
func packedWithout(path, name string) (left []byte, found bool, err error) {
	packed, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	skips := false
	for line := range bytes.Lines(packed) {
		if line[0] != '^' {
			_, ref, _ := strings.Cut(strings.TrimRight(string(line), "\r\n"), " ")
			skips = ref == name
			found = found || skips
		}
		if !skips {
			left = append(left, line...)
		}
	}
	return left, found, err
}

// holdRef locks a ref, checks that it points at old, and calls change with the
// lock and the path of the ref. change gets rid of the lock, unless it fails.
func holdRef(ctx context.Context, common, name string, old plumbing.Hash, change func(lock *os.File, path string) error) error {
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
		err = change(f, path)
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

func writeLock(f *os.File, path string, id plumbing.Hash) error {
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
	return os.Rename(f.Name(), path)
}
