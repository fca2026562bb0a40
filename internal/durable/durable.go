// Package durable writes small files so that a crash at any instant leaves either
// the old content or the new, never a part of one. It is for files that matter on
// their own: identities, results, rewritten journals. It is not for logs or for
// data that is appended.
//
// The order is the one that survives on ext4, xfs and APFS: write a temporary
// file in the same directory, fsync it, rename it over the target, fsync the
// directory. Without the last step a power cut may undo the rename.
package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// WriteFile replaces the file at path with data. When it returns nil the new
// content survives a power cut; when it fails the old content is still there. A
// crash may leave a temporary file named like the target with ".tmp" and digits
// behind it.
func WriteFile(path string, data []byte, perm os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	err = fill(f, data, perm)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(f.Name())))
	}
	if err := SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func fill(f *os.File, data []byte, perm os.FileMode) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
