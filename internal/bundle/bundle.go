// Package bundle is how a plugin's folder travels from the reconciler to an
// agent, and how both name it: by the Git tree that the folder is, so that a
// folder in a repository, one embedded in the binary and one unpacked on an agent
// have the same digest. It is not for unpacking; that is the agent's concern.
package bundle

import (
	"archive/tar"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Limits of a bundle. A plugin is a manifest and a few programs; what is larger
// belongs behind the URL of a program.
const (
	MaxFiles = 10_000
	MaxBytes = 256 << 20
	// maxDepth keeps a walk from exhausting the stack and a path from exceeding
	// what every platform can open.
	maxDepth = 32
	maxPath  = 512
)

// CheckPath reports whether name may be a file of a bundle: slash-separated,
// relative, clean, and meaning the same file on every platform. It refuses "..",
// "." and empty elements, backslashes, colons, control characters and what is not
// UTF-8. The error is fault.Invalid.
func CheckPath(name string) error {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "file name %.100q in a plugin: %s", name, why)
	}
	switch {
	case name == "" || name == ".":
		return bad("is empty")
	case len(name) > maxPath:
		return bad(fmt.Sprintf("is longer than %d bytes", maxPath))
	case !utf8.ValidString(name):
		return bad("is not UTF-8")
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' || r == ':' }):
		return bad("has a control character, a backslash or a colon")
	case path.Clean(name) != name || !filepath.IsLocal(filepath.FromSlash(name)):
		return bad("is not a plain relative path")
	case strings.Count(name, "/") >= maxDepth:
		return bad(fmt.Sprintf("is deeper than %d folders", maxDepth))
	}
	return nil
}

// TreeHash returns the name that Git gives the tree with the files of fsys:
// "git:" and its SHA-1. Files have mode 100755 when anyone may execute them, else
// 100644; empty folders do not count. An embed.FS knows no modes: there a file
// that begins with "#!" is executable. Anything but regular files and folders, a
// name that CheckPath refuses, and more than MaxFiles or MaxBytes are
// fault.Invalid.
func TreeHash(fsys fs.FS) (pipeline.Digest, error) {
	w, err := walk(fsys)
	if err != nil {
		return "", err
	}
	sum, err := w.tree(".")
	if err != nil {
		return "", fmt.Errorf("hash plugin: %w", err)
	}
	return pipeline.Digest("git:" + hex.EncodeToString(sum)), nil
}

// WriteTar writes the files of fsys as a tar archive: regular files only, sorted
// by name, modes 0644 and 0755, no times and no owners. Equal trees give equal
// bytes. Its errors are those of TreeHash, and those of w.
func WriteTar(w io.Writer, fsys fs.FS) error {
	list, err := walk(fsys)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, f := range list.files {
		if err := list.pack(tw, f); err != nil {
			return fmt.Errorf("pack plugin file %s: %w", f.name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("pack plugin: %w", err)
	}
	return nil
}

// listing is what a walk over a file system found.
type listing struct {
	fsys  fs.FS
	files []file // sorted by name
}

type file struct {
	name string
	size int64
	exec bool
}

func walk(fsys fs.FS) (*listing, error) {
	l := &listing{fsys: fsys}
	modeless, total := embedded(fsys), int64(0)
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if err := CheckPath(name); err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fault.New(fault.Invalid, "%s is a %s; a plugin has regular files and folders only", name, kindOf(info.Mode()))
		}
		exec := info.Mode()&0o111 != 0
		if modeless {
			if exec, err = isScript(fsys, name); err != nil {
				return err
			}
		}
		l.files = append(l.files, file{name, info.Size(), exec})
		if total += info.Size(); len(l.files) > MaxFiles || total > MaxBytes {
			return fault.New(fault.Invalid, "a plugin has at most %d files and %d MiB; put large programs behind a url", MaxFiles, MaxBytes>>20)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read plugin: %w", err)
	}
	slices.SortFunc(l.files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return l, nil
}

func kindOf(m fs.FileMode) string {
	if m&fs.ModeSymlink != 0 {
		return "symbolic link"
	}
	return "special file"
}

// embedded reports whether fsys is an embed.FS or a part of one. fs.Sub hides the
// type of the file system, but not that of its files.
func embedded(fsys fs.FS) bool {
	info, err := fs.Stat(fsys, ".")
	if err != nil {
		return false
	}
	t := reflect.TypeOf(info)
	return t.Kind() == reflect.Pointer && t.Elem().PkgPath() == "embed"
}

func isScript(fsys fs.FS, name string) (bool, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var head [2]byte
	_, err = io.ReadFull(f, head[:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return false, nil
	}
	return string(head[:]) == "#!", err
}

func (l *listing) pack(tw *tar.Writer, f file) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: f.size, Mode: 0o644}
	if f.exec {
		h.Mode = 0o755
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	return l.copy(tw, f)
}

// copy writes the contents of f, and fails when they are not as long as when the
// listing was made: headers have promised that length.
func (l *listing) copy(w io.Writer, f file) error {
	r, err := l.fsys.Open(f.name)
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(w, io.LimitReader(r, f.size+1))
	if err == nil && n != f.size {
		err = fault.New(fault.Conflict, "%s changed while it was read", f.name)
	}
	return err
}

// tree returns the object name of the folder dir, "." for all.
func (l *listing) tree(dir string) ([]byte, error) {
	prefix := dir + "/"
	if dir == "." {
		prefix = ""
	}
	type entry struct{ key, mode, name, sum string }
	var entries []entry
	for i := 0; i < len(l.files); {
		rest, ok := strings.CutPrefix(l.files[i].name, prefix)
		if !ok {
			i++
			continue
		}
		name, _, isDir := strings.Cut(rest, "/")
		if !isDir {
			sum, err := l.blob(l.files[i])
			if err != nil {
				return nil, err
			}
			mode := "100644"
			if l.files[i].exec {
				mode = "100755"
			}
			entries = append(entries, entry{name, mode, name, string(sum)})
			i++
			continue
		}
		sub := &listing{fsys: l.fsys}
		for i < len(l.files) && strings.HasPrefix(l.files[i].name, prefix+name+"/") {
			sub.files = append(sub.files, l.files[i])
			i++
		}
		sum, err := sub.tree(prefix + name)
		if err != nil {
			return nil, err
		}
		// Git sorts a folder as if its name ended in a slash.
		entries = append(entries, entry{name + "/", "40000", name, string(sum)})
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	var body strings.Builder
	for _, e := range entries {
		body.WriteString(e.mode + " " + e.name + "\x00" + e.sum)
	}
	h := object("tree", int64(body.Len()))
	io.WriteString(h, body.String())
	return h.Sum(nil), nil
}

func (l *listing) blob(f file) ([]byte, error) {
	h := object("blob", f.size)
	if err := l.copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}

func object(kind string, size int64) hash.Hash {
	h := sha1.New()
	fmt.Fprintf(h, "%s %d\x00", kind, size)
	return h
}
