package config

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/plugins"
	"github.com/maestro-cd/maestro/schema"
)

// A cache keeps results of units in memory, and on disk if it has a folder. Disk
// trouble makes it slower, never wrong.
type cache struct {
	dir string // immutable
	log *slog.Logger

	once sync.Once
	ver  string // set once

	mu   sync.Mutex
	live map[string]*unitResult // guarded by mu
	old  map[string]*unitResult // guarded by mu; the generation before
}

const (
	// maxLive bounds one generation; with the one before it, twice as many units
	// of the largest commit allowed stay in memory.
	maxLive = 20_000
	// keepOnDisk is how long an unused result stays.
	keepOnDisk = 30 * 24 * time.Hour
)

func newCache(dir string, log *slog.Logger) *cache {
	return &cache{dir: dir, log: log, live: map[string]*unitResult{}}
}

// version names the schema and the program that makes results of it.
func (c *cache) version() string {
	c.once.Do(func() {
		h := sha256.New()
		for _, fsys := range []fs.FS{schema.Files, plugins.Files} {
			_ = fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					b, _ := fs.ReadFile(fsys, p) // embedded
					fmt.Fprintf(h, "%s\x00%d\x00%s", p, len(b), b)
				}
				return nil
			})
		}
		if exe, err := os.Executable(); err == nil {
			if info, err := os.Stat(exe); err == nil {
				fmt.Fprintf(h, "%d %d\x00", info.Size(), info.ModTime().UnixNano())
			}
		}
		if info, ok := debug.ReadBuildInfo(); ok {
			fmt.Fprint(h, info)
		}
		c.ver = hex.EncodeToString(h.Sum(nil))
		c.sweep()
	})
	return c.ver
}

func (c *cache) get(key string) *unitResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	if res := c.live[key]; res != nil {
		return res
	}
	res := c.old[key]
	if res == nil {
		res = c.read(key)
	}
	if res != nil {
		c.keepLocked(key, res)
	}
	return res
}

func (c *cache) keepLocked(key string, res *unitResult) {
	if len(c.live) >= maxLive {
		c.old, c.live = c.live, map[string]*unitResult{}
	}
	c.live[key] = res
}

func (c *cache) put(key string, res *unitResult) {
	c.mu.Lock()
	c.keepLocked(key, res)
	c.mu.Unlock()
	if c.dir == "" {
		return
	}
	if err := c.write(key, res); err != nil {
		c.log.Debug("result is not kept on disk", "key", key, "err", err)
	}
}

func (c *cache) path(key string) string { return filepath.Join(c.dir, key[:2], key+".json") }

func (c *cache) read(key string) *unitResult {
	if c.dir == "" {
		return nil
	}
	p := c.path(key)
	raw, err := os.ReadFile(p)
	if err != nil {
		return nil
	}
	var res unitResult
	if json.Unmarshal(raw, &res) != nil {
		os.Remove(p) // cut short by a crash
		return nil
	}
	if info, err := os.Stat(p); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
		now := time.Now()
		_ = os.Chtimes(p, now, now) // it is in use, so the sweep leaves it
	}
	return &res
}

func (c *cache) write(key string, res *unitResult) error {
	raw, err := json.Marshal(res)
	if err != nil {
		return err
	}
	p := c.path(key)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(p), "new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), p)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// sweep removes what has not been used for long.
func (c *cache) sweep() {
	if c.dir == "" {
		return
	}
	_ = filepath.WalkDir(c.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil && time.Since(info.ModTime()) > keepOnDisk {
			os.Remove(p)
		}
		return nil
	})
}
