package main

import (
	"os"
	"syscall"
)

// The types of file systems in memory, as statfs gives them.
const (
	tmpfs = 0x01021994
	ramfs = 0x858458f6
)

// memoryFolder is a folder that is kept in memory, false when there is none to write to.
func memoryFolder() (dir string, ok bool) {
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/dev/shm"} {
		var s syscall.Statfs_t
		if dir == "" || syscall.Statfs(dir, &s) != nil {
			continue
		}
		const writeAndEnter = 0o3
		if t := uint32(s.Type); (t == tmpfs || t == ramfs) && syscall.Access(dir, writeAndEnter) == nil {
			return dir, true
		}
	}
	return "", false
}
