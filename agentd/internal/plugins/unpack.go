package plugins

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/maestro-cd/maestro/internal/bundle"
	"github.com/maestro-cd/maestro/internal/fault"
)

// limits of what is unpacked. They hold whatever the headers promise.
type limits struct {
	files int
	bytes int64
}

var (
	treeLimits = limits{bundle.MaxFiles, bundle.MaxBytes}
	// An archive may carry a whole runtime.
	archiveLimits = limits{50_000, 2 << 30}
)

// maxArchive bounds the bytes of an archive as it is downloaded.
const maxArchive = 512 << 20

// unpacker writes into one folder and nowhere else.
type unpacker struct {
	root  *os.Root
	left  limits
	isDir map[string]bool // every path made by this archive: folder or file
}

// unpackTar unpacks r into dir: regular files and folders only. A name that could
// mean anything outside of dir, a link, a device, a name given twice, a file where
// a folder is, and more than lim allows are fault.Invalid; a truncated archive is
// fault.Unavailable. archive/tar refuses none of the former by itself.
func unpackTar(r io.Reader, dir string, lim limits) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := &unpacker{root: root, left: lim, isDir: map[string]bool{".": true}}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = u.one(h, tr)
		}
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF) && !fault.Is(err, fault.Unavailable):
			return fault.New(fault.Unavailable, "the archive ends too early: %w", err)
		case errors.Is(err, tar.ErrHeader), errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
			return fault.New(fault.Invalid, "the archive is damaged or no tar: %w", err)
		case err != nil:
			return err
		}
	}
}

func (u *unpacker) one(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // git archive begins with one; it only carries a comment
	}
	// "./a" and "./" are how tar names what it was given as ".".
	name := strings.TrimPrefix(h.Name, "./")
	folder := h.Typeflag == tar.TypeDir
	if folder {
		name = strings.TrimSuffix(name, "/")
	}
	if folder && (name == "" || name == ".") {
		return nil
	}
	if err := bundle.CheckPath(name); err != nil {
		return err
	}
	if u.left.files--; u.left.files < 0 {
		return fault.New(fault.Invalid, "the archive has too many files")
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.mkdir(name)
	case tar.TypeReg:
		return u.file(name, h.FileInfo().Mode(), r)
	}
	return fault.New(fault.Invalid, "%q in the archive is neither a regular file nor a folder (tar type %q); links and devices are not unpacked", name, h.Typeflag)
}

// mkdir makes a folder and those above it.
func (u *unpacker) mkdir(name string) error {
	if name == "." {
		return nil
	}
	if dir, known := u.isDir[name]; known {
		if !dir {
			return fault.New(fault.Invalid, "%q is a file and a folder in one archive", name)
		}
		return nil
	}
	if err := u.mkdir(path.Dir(name)); err != nil {
		return err
	}
	u.isDir[name] = true
	err := u.root.Mkdir(name, 0o755)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if info, err := u.root.Lstat(name); err != nil || !info.IsDir() {
		return fault.New(fault.Invalid, "%q is a file in the plugin and a folder in the archive", name)
	}
	return nil
}

func (u *unpacker) file(name string, mode fs.FileMode, r io.Reader) error {
	if _, known := u.isDir[name]; known {
		return fault.New(fault.Invalid, "%q is in the archive twice", name)
	}
	if err := u.mkdir(path.Dir(name)); err != nil {
		return err
	}
	u.isDir[name] = false
	perm := fs.FileMode(0o644)
	if mode&0o111 != 0 {
		perm = 0o755
	}
	n, err := u.write(name, perm, io.LimitReader(r, u.left.bytes+1))
	if u.left.bytes -= n; err == nil && u.left.bytes < 0 {
		return fault.New(fault.Invalid, "what the archive unpacks to is too large")
	}
	return err
}

// write makes the file anew: one that is there already, from the plugin's folder,
// is replaced, never written through.
func (u *unpacker) write(name string, perm fs.FileMode, r io.Reader) (int64, error) {
	if info, err := u.root.Lstat(name); err == nil {
		if info.IsDir() {
			return 0, fault.New(fault.Invalid, "%q is a folder in the plugin and a file in the archive", name)
		}
		if err := u.root.Remove(name); err != nil {
			return 0, err
		}
	}
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(f, r)
	if err == nil {
		// The umask may have taken bits that the tree's digest counts.
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return n, err
}

// unpackArchive unpacks a verified archive over dir: a gzipped tar, or else a
// single file that becomes the program single.
func unpackArchive(archive, dir, single string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	if magic, err := r.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(r)
		if err != nil {
			return fault.New(fault.Invalid, "its archive is not a .tar.gz: %w", err)
		}
		return invalidWhenShort(unpackTar(z, dir, archiveLimits))
	}
	name := path.Clean(single)
	if !strings.Contains(single, "/") {
		return fault.New(fault.Invalid, "its archive is a single file, and argv[0] %q does not say where it goes: write ./%s", single, single)
	}
	if err := bundle.CheckPath(name); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	u := &unpacker{root: root, left: archiveLimits, isDir: map[string]bool{".": true}}
	return u.file(name, 0o755, r)
}

// invalidWhenShort: an archive with the right digest that ends too early will not
// get longer by another try.
func invalidWhenShort(err error) error {
	if fault.Is(err, fault.Unavailable) {
		return fault.New(fault.Invalid, "its archive is not a whole .tar.gz: %w", err)
	}
	return err
}

// copyEntry copies the files of the entry home into the beginnings of another.
// What a program left beside them is not copied.
func copyEntry(home, to string) error {
	idx, err := readIndex(home)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer root.Close()
	u := &unpacker{root: root, left: treeLimits, isDir: map[string]bool{".": true}}
	for _, f := range idx.Files {
		if err := u.copyFrom(filepath.Join(home, "files", filepath.FromSlash(f.Name)), f); err != nil {
			return err
		}
	}
	return nil
}

func (u *unpacker) copyFrom(path string, f indexed) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	mode := fs.FileMode(0o644)
	if f.Exec {
		mode = 0o755
	}
	return u.file(f.Name, mode, in)
}
