package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/mattn/go-sqlite3"

	"github.com/maestro-cd/maestro/internal/durable"
)

// reserveName is a file that is removed when the disk is full, so that what is under way
// can still be recorded.
const (
	reserveName  = "reserve"
	reserveBytes = 16 << 20
)

// Space is the room of a file system.
type Space struct {
	// Free is what this user may still take, without what the reserve lacks.
	Free  int64 `json:"free"`
	Total int64 `json:"total"`
}

// SpaceOf returns the room of the file system that holds the data folder dir. A reserve
// that was given up counts as taken: else giving it up would look as if somebody had made
// room.
func SpaceOf(dir string) (Space, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return Space{}, fmt.Errorf("room of %s: %w", dir, err)
	}
	block := int64(st.Bsize)
	s := Space{Free: int64(st.Bavail) * block, Total: int64(st.Blocks) * block}
	switch _, err := os.Stat(filepath.Join(dir, reserveName)); {
	case errors.Is(err, fs.ErrNotExist):
		s.Free = max(0, s.Free-reserveBytes)
	case err != nil:
		return Space{}, fmt.Errorf("room of %s: %w", dir, err)
	}
	return s, nil
}

// Reserve makes the file of 16 MiB that is given up when the disk is full, when it is not
// there. It is real bytes: a file system may keep a hole, or zeros, without taking room.
func Reserve(dir string) error {
	path := filepath.Join(dir, reserveName)
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b := make([]byte, reserveBytes)
	for i, x := 0, uint32(1); i < len(b); i++ { // what no file system makes smaller
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	if err := durable.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("keep room for the record: %w", err)
	}
	return nil
}

// full gives up the reserve when err says that there is no room, so that the next try
// finds some.
func (f *file) full(err error) {
	if codeOf(err) == sqlite3.ErrFull || errors.Is(err, syscall.ENOSPC) {
		_ = os.Remove(filepath.Join(filepath.Dir(f.path), reserveName)) // it may be gone already
	}
}
