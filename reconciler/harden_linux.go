package main

import "golang.org/x/sys/unix"

// harden keeps other processes of the same user, such as the tasks of an agent that runs
// as it, from reading this one's environment and memory, which hold secrets, and allows
// no core dump. Failing is harmless: each closes a gap that the system may not let us
// close.
func harden() {
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}
