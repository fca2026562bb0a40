package shim

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// identify returns when a process started, in microseconds since 1970.
func identify(pid int) (uint64, error) {
	k, err := unix.SysctlKinfoProc("kern.proc.pid", pid)
	if err != nil {
		return 0, err
	}
	const zombie = 5 // SZOMB of sys/proc.h
	if int(k.Proc.P_pid) != pid || k.Proc.P_stat == zombie {
		return 0, syscall.ESRCH
	}
	return uint64(k.Proc.P_starttime.Sec)*1e6 + uint64(k.Proc.P_starttime.Usec), nil
}

// BootNow is the time since boot, with the time that the machine was asleep.
func BootNow() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(ts.Nano())
}

// awake is the time since boot without sleep.
func awake() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_UPTIME_RAW, &ts)
	return time.Duration(ts.Nano())
}
