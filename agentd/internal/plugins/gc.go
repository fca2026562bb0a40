package plugins

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// GC removes the entries that no Fetch asked for in the last unused, and what
// interrupted downloads left behind. unused must be longer than any task runs:
// the program of a task is not asked for again while it runs. An entry that is
// being fetched is left alone. Errors of single entries are joined, and do not
// stop the rest.
func (c *Cache) GC(ctx context.Context, unused time.Duration) error {
	limit := time.Now().Add(-unused)
	entries, err := readDir(filepath.Join(c.cfg.Dir, "entries"))
	if err != nil {
		return fmt.Errorf("collect plugins: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			break
		}
		errs = append(errs, c.collect(ctx, e.Name(), limit))
	}
	// A download takes minutes, not a day.
	const leftover = 24 * time.Hour
	temps, err := readDir(filepath.Join(c.cfg.Dir, "tmp"))
	errs = append(errs, err)
	for _, e := range temps {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > leftover {
			errs = append(errs, os.RemoveAll(filepath.Join(c.cfg.Dir, "tmp", e.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("collect plugins: %w", err)
	}
	return nil
}

func (c *Cache) collect(ctx context.Context, key string, limit time.Time) error {
	unlock, err := c.lock(ctx, key)
	if err != nil {
		return nil // the caller goes, and so does this
	}
	defer unlock()
	home := filepath.Join(c.cfg.Dir, "entries", key)
	info, err := os.Stat(filepath.Join(home, "used"))
	if err == nil && info.ModTime().After(limit) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The rename makes the entry disappear at once; half an entry is never seen.
	tmp, err := c.tempDir()
	if err != nil {
		return err
	}
	if err := os.Rename(home, filepath.Join(tmp, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	c.cfg.Log.InfoContext(ctx, "unused plugin removed", slog.String("key", key))
	return os.RemoveAll(tmp)
}

// readDir is os.ReadDir, for which a missing folder is an empty one.
func readDir(name string) ([]fs.DirEntry, error) {
	list, err := os.ReadDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return list, err
}
