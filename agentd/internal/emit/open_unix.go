//go:build unix

package emit

import "syscall"

// noFollow keeps a link in place of the events file from being written through.
const noFollow = syscall.O_NOFOLLOW
