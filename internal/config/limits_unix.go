//go:build linux || darwin

package config

import (
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// restrict takes from this process what an evaluator does not need. Nothing can
// give it back: hard limits only fall.
func restrict() error {
	limits := []struct {
		what  int
		value uint64
	}{
		{syscall.RLIMIT_FSIZE, 0},
		{syscall.RLIMIT_CORE, 0},
		// In, out, err, and what the runtime keeps open for its poller.
		{syscall.RLIMIT_NOFILE, 16},
	}
	for _, l := range limits {
		if err := syscall.Setrlimit(l.what, &syscall.Rlimit{Cur: l.value, Max: l.value}); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	if !raceEnabled && runtime.GOOS == "linux" {
		if err := syscall.Setrlimit(syscall.RLIMIT_DATA, &syscall.Rlimit{Cur: childMemory, Max: childMemory}); err != nil {
			return os.NewSyscallError("setrlimit data", err)
		}
	}
	// The soft limit moves with each unit. The kernel signals it, and the runtime
	// would ignore that signal.
	spent := make(chan os.Signal, 1)
	signal.Notify(spent, syscall.SIGXCPU)
	go func() { // ends with the process
		<-spent
		os.Exit(exitCPU)
	}()
	return nil
}

// allowCPU gives the process that many more seconds of CPU time.
func allowCPU(seconds int) {
	if seconds <= 0 {
		return
	}
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) != nil {
		return
	}
	sofar := time.Duration(used.Utime.Nano() + used.Stime.Nano())
	limit := uint64(sofar/time.Second) + uint64(seconds) + 1
	var cur syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_CPU, &cur) != nil {
		return
	}
	cur.Cur = min(limit, cur.Max)
	_ = syscall.Setrlimit(syscall.RLIMIT_CPU, &cur) // the wall clock remains
}
