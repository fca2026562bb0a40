package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/maestro-cd/maestro/internal/fault"
)

// drainSignals: there is no signal to spare here.
var drainSignals []os.Signal

// lockData makes the data folder and takes it for this process alone: the lock
// file is open without leave for anybody else to open it. fault.Conflict when
// another has it.
func lockData(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	path, err := syscall.UTF16PtrFromString(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	const shared = 0
	h, err := syscall.CreateFile(path, syscall.GENERIC_READ|syscall.GENERIC_WRITE, shared, nil,
		syscall.OPEN_ALWAYS, syscall.FILE_ATTRIBUTE_NORMAL, 0)
	const sharingViolation = syscall.Errno(32)
	if errors.Is(err, sharingViolation) {
		return nil, fault.New(fault.Conflict, "data folder %s is in use by another agentd; stop that one, or give this one a folder of its own with --data", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("lock data folder %s: %w", dir, err)
	}
	return func() { _ = syscall.CloseHandle(h) }, nil
}
