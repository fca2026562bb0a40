package plugins

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/maestro-cd/maestro/internal/bundle"
	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/wire"
)

// stamp is the modification time of every file in the cache. A file with another
// one was written to since, and its entry is made again.
var stamp = time.Date(2012, time.June, 1, 0, 0, 0, 0, time.UTC)

// index lists the files of an entry.
type index struct {
	Files []indexed `json:"files"`
}

type indexed struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	Exec bool   `json:"exec,omitempty"`
}

// entry returns the folder of a complete entry, which it makes when it has to.
func (c *Cache) entry(ctx context.Context, s source) (string, error) {
	unlock, err := c.lock(ctx, s.key())
	if err != nil {
		return "", err
	}
	defer unlock()

	home := filepath.Join(c.cfg.Dir, "entries", s.key())
	if c.intact(ctx, home) {
		// The time of use only steers GC: an entry in use must not fail over it.
		_ = os.Chtimes(filepath.Join(home, "used"), time.Time{}, time.Now())
		return filepath.Join(home, "files"), nil
	}
	if err := c.make(ctx, s, home); err != nil {
		return "", err
	}
	return filepath.Join(home, "files"), nil
}

// lock waits for the right to make the entry of that key.
func (c *Cache) lock(ctx context.Context, key string) (unlock func(), err error) {
	c.mu.Lock()
	sem, ok := c.busy[key]
	if !ok {
		sem = make(chan struct{}, 1)
		c.busy[key] = sem
	}
	c.mu.Unlock()
	select {
	case sem <- struct{}{}:
		return func() { <-sem }, nil
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "wait for another download of it: %w", context.Cause(ctx))
	}
}

// intact reports whether the entry is there and as it was made. Files that a
// program added beside its own, such as compiled Python, do not matter.
func (c *Cache) intact(ctx context.Context, home string) bool {
	idx, err := readIndex(home)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	for _, f := range idx.Files {
		if err == nil {
			err = f.verify(filepath.Join(home, "files"))
		}
	}
	if err != nil {
		c.cfg.Log.WarnContext(ctx, "cached plugin was changed, fetching it again", slog.String("dir", home), slog.Any("err", err))
	}
	return err == nil
}

func readIndex(home string) (index, error) {
	var idx index
	raw, err := os.ReadFile(filepath.Join(home, "index.json"))
	if err == nil {
		err = json.Unmarshal(raw, &idx)
	}
	return idx, err
}

func (f indexed) verify(dir string) error {
	info, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(f.Name)))
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular() || info.Size() != f.Size || !info.ModTime().Equal(stamp),
		runtime.GOOS != "windows" && (info.Mode()&0o100 != 0) != f.Exec:
		return fmt.Errorf("%s is not as it was unpacked", f.Name)
	}
	return nil
}

// make builds the entry in tmp and renames it to home.
func (c *Cache) make(ctx context.Context, s source, home string) error {
	tmp, err := c.tempDir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)

	files := filepath.Join(tmp, "entry", "files")
	if err := os.MkdirAll(files, 0o755); err != nil {
		return err
	}
	if s.sha256 == "" {
		err = c.unpackTree(ctx, s, files)
	} else {
		err = c.overlay(ctx, s, files, tmp)
	}
	if err != nil {
		return err
	}
	if err := seal(filepath.Join(tmp, "entry")); err != nil {
		return err
	}
	// A damaged entry makes room; what runs from it keeps its open files.
	if err := os.Rename(home, filepath.Join(tmp, "damaged")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(home), 0o755); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tmp, "entry"), home); err != nil {
		return err
	}
	c.cfg.Log.InfoContext(ctx, "plugin fetched", slog.String("tree", string(s.tree)), slog.String("dir", home))
	return durable.SyncDir(filepath.Dir(home))
}

func (c *Cache) tempDir() (string, error) {
	parent := filepath.Join(c.cfg.Dir, "tmp")
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", err
	}
	return os.MkdirTemp(parent, "fetch-")
}

// unpackTree downloads the plugin's folder into dir and compares its tree.
func (c *Cache) unpackTree(ctx context.Context, s source, dir string) error {
	body, err := c.cfg.HTTP(ctx, wire.PathPlugin+s.treeHex()+".tar")
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	defer body.Close()
	if err := unpackTar(fromNetwork{body}, dir, treeLimits); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	got, err := bundle.TreeHash(os.DirFS(dir))
	if err != nil {
		return err
	}
	if got != s.tree {
		return fault.New(fault.Invalid, "its files are tree %s, and the manifest was planned with %s: what the server sent is not what was reviewed", got, s.tree)
	}
	return nil
}

// overlay fills dir with a copy of the tree and unpacks the archive over it.
func (c *Cache) overlay(ctx context.Context, s source, dir, tmp string) error {
	base, err := c.entry(ctx, source{tree: s.tree})
	if err != nil {
		return err
	}
	if err := copyEntry(filepath.Dir(base), dir); err != nil {
		return err
	}
	archive := filepath.Join(tmp, "archive")
	if err := c.download(ctx, s, archive); err != nil {
		return err
	}
	return unpackArchive(archive, dir, s.single)
}

// download stores the archive in name and verifies it, before anything reads it.
func (c *Cache) download(ctx context.Context, s source, name string) error {
	body, err := c.cfg.HTTP(ctx, wire.PathArchive+s.sha256)
	if err != nil {
		return fmt.Errorf("download archive: %w", err)
	}
	defer body.Close()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(fromNetwork{body}, maxArchive+1))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	switch {
	case err != nil:
		return fmt.Errorf("download archive: after %d bytes: %w", n, err)
	case n > maxArchive:
		return fault.New(fault.Invalid, "its archive is larger than %d MiB", maxArchive>>20)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != s.sha256 {
		return fault.New(fault.Invalid, "its archive has sha256 %s, and the manifest says %s: either the file behind the url was changed, or the digest is a mistake", got, s.sha256)
	}
	return nil
}

// fromNetwork marks what goes wrong while reading as worth another try.
type fromNetwork struct{ io.Reader }

func (r fromNetwork) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = fault.New(fault.Unavailable, "the connection broke: %w", err)
	}
	return n, err
}

// seal makes the files read-only, stamps them, writes the index and brings all of
// it to the disk.
func seal(home string) error {
	var idx index
	root := filepath.Join(home, "files")
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return durable.SyncDir(name)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		idx.Files = append(idx.Files, indexed{filepath.ToSlash(rel), info.Size(), info.Mode()&0o100 != 0})
		if err := os.Chtimes(name, stamp, stamp); err != nil {
			return err
		}
		return os.Chmod(name, info.Mode().Perm()&^0o222)
	})
	if err != nil {
		return err
	}
	raw, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{"used": nil, "index.json": raw} {
		if err := writeSynced(filepath.Join(home, name), data); err != nil {
			return err
		}
	}
	return durable.SyncDir(home)
}

func writeSynced(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}
