package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// WriteLease allows the task in dir to go on until deadline, a time on the clock
// of BootNow. The file is replaced as a whole and not fsynced: after a power cut
// the task is gone too.
func WriteLease(dir string, deadline time.Duration) error {
	path := filepath.Join(dir, LeaseFile)
	if err := os.WriteFile(path+".tmp", strconv.AppendInt(nil, int64(deadline), 10), 0o600); err != nil {
		return fmt.Errorf("write lease: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("write lease: %w", err)
	}
	return nil
}

// lease is the deadline as last read.
type lease struct {
	path     string
	deadline time.Duration
}

// expired reports whether the deadline has passed. The file is read only then: it
// may have been renewed. One that cannot be read leaves the last deadline.
func (l *lease) expired() bool {
	now := BootNow()
	if now < l.deadline {
		return false
	}
	if b, err := os.ReadFile(l.path); err == nil {
		if ns, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil {
			l.deadline = time.Duration(ns)
		}
	}
	return now >= l.deadline
}
