package gitrepo

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/idxfile"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// A mirror is a bare repository that the git program can read as well. Objects
// come in before the refs that name them, so a crash in between costs a second
// fetch and nothing else.

const mirrorConfig = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n"

// openMirror makes the mirror in dir, or picks up the one that is there.
func openMirror(dir, address string) (layout, error) {
	l := layout{git: dir, common: dir}
	wrap := func(err error) (layout, error) {
		return layout{}, fault.New(fault.Internal, "open mirror %s: %w", dir, err)
	}
	if old, err := os.ReadFile(filepath.Join(dir, "address")); err == nil && string(old) != address+"\n" {
		// Objects of another repository must not be found in this one.
		if err := emptyMirror(dir); err != nil {
			return wrap(err)
		}
	}
	for _, sub := range []string{"objects/pack", "objects/info", "refs/heads", "refs/tags", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return wrap(err)
		}
	}
	for name, text := range map[string]string{"config": mirrorConfig, "address": address + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return wrap(err)
		}
	}
	if !exists(filepath.Join(dir, "HEAD")) {
		if err := os.WriteFile(filepath.Join(dir, "HEAD"), []byte("ref: refs/heads/main\n"), 0o600); err != nil {
			return wrap(err)
		}
	}
	if err := sweepMirror(dir); err != nil {
		return wrap(err)
	}
	return l, nil
}

// sweepMirror removes what a crash left: spooled packs, packs half written, and
// indexes whose pack never got its name. A mirror with a torn pack, as a power
// loss may leave it, is emptied.
func sweepMirror(dir string) error {
	spooled, err := filepath.Glob(filepath.Join(dir, "tmp", "pack-*"))
	if err != nil {
		return err
	}
	parts, err := filepath.Glob(filepath.Join(dir, "objects", "pack", "*"))
	if err != nil {
		return err
	}
	for _, p := range parts {
		stem, isIndex := strings.CutSuffix(p, ".idx")
		if strings.HasPrefix(filepath.Base(p), "tmp_") || isIndex && !exists(stem+".pack") {
			spooled = append(spooled, p)
		}
	}
	for _, p := range spooled {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, p := range parts {
		if stem, isPack := strings.CutSuffix(p, ".pack"); isPack && !sealed(stem) {
			return emptyMirror(dir)
		}
	}
	return nil
}

// sealed reports whether a pack and its index both have their ends, and agree:
// the pack ends in its checksum, which the index repeats before its own.
func sealed(stem string) bool {
	pack, ok := tail(stem+".pack", 20)
	if !ok {
		return false
	}
	index, ok := tail(stem+".idx", 40)
	return ok && bytes.Equal(pack, index[:20])
}

func tail(path string, n int64) ([]byte, bool) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() < n {
		return nil, false
	}
	b := make([]byte, n)
	_, err = f.ReadAt(b, fi.Size()-n)
	return b, err == nil
}

// emptyMirror forgets all objects and refs.
func emptyMirror(dir string) error {
	for _, p := range []string{"packed-refs", "refs", "objects"} {
		if err := os.RemoveAll(filepath.Join(dir, p)); err != nil {
			return fault.New(fault.Internal, "empty mirror %s: %w", dir, err)
		}
	}
	for _, p := range []string{"objects/pack", "refs/heads"} {
		if err := os.MkdirAll(filepath.Join(dir, p), 0o700); err != nil {
			return fault.New(fault.Internal, "empty mirror %s: %w", dir, err)
		}
	}
	return nil
}

// writeMirrorRefs notes the refs in one file, replaced at once; nothing is
// written when it says the same already.
func writeMirrorRefs(dir string, head pipeline.Ref, refs map[pipeline.Ref]rawRef) error {
	var b strings.Builder
	b.WriteString("# pack-refs with: peeled sorted \n")
	names := make([]pipeline.Ref, 0, len(refs))
	for name := range refs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "%s %s\n", refs[name].hash, name)
		if p := refs[name].peeled; !p.IsZero() {
			fmt.Fprintf(&b, "^%s\n", p)
		}
	}
	files := map[string]string{"packed-refs": b.String()}
	if head != "" {
		files["HEAD"] = "ref: " + string(head) + "\n"
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if old, err := os.ReadFile(path); err == nil && string(old) == text {
			continue
		}
		tmp := filepath.Join(dir, "tmp", name)
		if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
			return fault.New(fault.Internal, "note refs in mirror: %w", err)
		}
		if err := os.Rename(tmp, path); err != nil {
			return fault.New(fault.Internal, "note refs in mirror: %w", err)
		}
	}
	return nil
}

// checkPack walks a pack object by object and refuses it before anything is
// unpacked into memory: too many objects, one that is or would become too large,
// or many that together would.
func checkPack(ctx context.Context, f io.ReadSeeker, l Limits) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	s := packfile.NewScanner(bufio.NewReaderSize(f, 1<<16))
	_, count, err := s.Header()
	if err != nil {
		return fault.New(fault.Unavailable, "the answer is not a pack: %w", err)
	}
	if int64(count) > int64(l.PackObjects) {
		return fault.New(fault.Invalid, "it has %d objects, %d are allowed; keep generated files out of the repository", count, l.PackObjects)
	}
	const expansion = 32 // a pack of a whole history rarely unpacks to more than this many times its size
	room := expansion * l.PackBytes
	for range count {
		if err := ctx.Err(); err != nil {
			return fault.New(fault.Unavailable, "look over the pack: %w", err)
		}
		h, err := s.NextObjectHeader()
		if err != nil {
			return fault.New(fault.Unavailable, "the pack is damaged or cut short: %w", err)
		}
		size := h.Length
		if size > l.Object {
			return tooLarge(size, l.Object)
		}
		var start prefix
		if _, _, err := s.NextObject(&start); err != nil {
			return fault.New(fault.Unavailable, "the pack is damaged or cut short: %w", err)
		}
		if h.Type.IsDelta() {
			size = start.deltaTarget()
		}
		if size > l.Object {
			return tooLarge(size, l.Object)
		}
		if room -= size; room < 0 {
			return fault.New(fault.Invalid, "it would unpack to more than %d bytes; keep generated files out of the repository", expansion*l.PackBytes)
		}
	}
	return nil
}

func tooLarge(size, most int64) error {
	return fault.New(fault.Invalid, "it has an object of %d bytes, %d are allowed; keep large files out of the repository", size, most)
}

// prefix keeps the first bytes of an object: a delta begins with the sizes of
// its base and of its result.
type prefix struct {
	b [20]byte
	n int
}

func (p *prefix) Write(b []byte) (int, error) {
	p.n += copy(p.b[p.n:], b)
	return len(b), nil
}

func (p *prefix) deltaTarget() int64 {
	b := p.b[:p.n]
	number := func() int64 {
		var v int64
		for shift := 0; len(b) > 0 && shift < 56; shift += 7 {
			c := b[0]
			b = b[1:]
			v |= int64(c&0x7f) << shift
			if c&0x80 == 0 {
				break
			}
		}
		return v
	}
	number()
	return number()
}

func mirrorStorage(dir string) *filesystem.Storage {
	return filesystem.NewStorageWithOptions(osfs.New(dir), &objectCache{}, filesystem.Options{KeepDescriptors: true})
}

// storePack indexes a pack, gives it its name and sees it on the disk, because
// the refs that are noted next claim that it is there. It uses a storage of its
// own, so that reading goes on meanwhile.
func storePack(dir string, f io.ReadSeeker) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	packs := filepath.Join(dir, "objects", "pack")
	before, err := os.ReadDir(packs)
	if err != nil {
		return err
	}
	st := mirrorStorage(dir)
	err = packfile.WritePackfileToObjectStorage(st, f)
	if err = cmp.Or(err, st.Close()); err != nil {
		return err
	}
	after, err := os.ReadDir(packs)
	if err != nil {
		return err
	}
	for _, e := range after {
		old := slices.ContainsFunc(before, func(b fs.DirEntry) bool { return b.Name() == e.Name() })
		if old {
			continue
		}
		if err := syncPath(filepath.Join(packs, e.Name())); err != nil {
			return err
		}
	}
	return syncPath(packs)
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return cmp.Or(f.Sync(), f.Close())
}

const (
	// smallPack is what a push usually brings; smallPacks of them are merged.
	smallPack  = 1 << 20
	smallPacks = 32
)

// compactMirror merges small packs. Each fetch adds a pack, and each lookup asks
// every pack, so their number must not grow with time.
func compactMirror(dir string) error {
	small, err := findSmallPacks(dir)
	if err != nil || len(small) < smallPacks {
		return err
	}
	st := mirrorStorage(dir)
	defer st.Close()
	var hashes []plumbing.Hash
	seen := map[plumbing.Hash]bool{}
	for _, stem := range small {
		list, err := packContent(stem + ".idx")
		if err != nil {
			return err
		}
		for _, h := range list {
			if !seen[h] {
				seen[h] = true
				hashes = append(hashes, h)
			}
		}
	}
	w, err := st.PackfileWriter()
	if err != nil {
		return err
	}
	sum, err := packfile.NewEncoder(w, st, false).Encode(hashes, 0)
	if err := cmp.Or(err, w.Close()); err != nil {
		return err
	}
	merged := filepath.Join(dir, "objects", "pack", "pack-"+sum.String())
	for _, stem := range small {
		if stem == merged {
			continue
		}
		// The pack goes first: an index alone is swept up at the next start.
		if err := cmp.Or(os.Remove(stem+".pack"), os.Remove(stem+".idx")); err != nil {
			return err
		}
	}
	return nil
}

// findSmallPacks returns at most 4*smallPacks of them, without extension; they
// are held in memory while they are merged.
func findSmallPacks(dir string) ([]string, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "objects", "pack", "pack-*.pack"))
	if err != nil {
		return nil, err
	}
	var small []string
	for _, p := range paths {
		fi, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if fi.Size() < smallPack && len(small) < 4*smallPacks {
			small = append(small, strings.TrimSuffix(p, ".pack"))
		}
	}
	return small, nil
}

func packContent(idx string) ([]plumbing.Hash, error) {
	f, err := os.Open(idx)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := idxfile.NewMemoryIndex()
	if err := idxfile.NewDecoder(f).Decode(m); err != nil {
		return nil, err
	}
	entries, err := m.Entries()
	if err != nil {
		return nil, err
	}
	defer entries.Close()
	var out []plumbing.Hash
	for {
		e, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, e.Hash)
	}
}
