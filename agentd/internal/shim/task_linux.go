package shim

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// childAttr: a group of its own, and death with the shim.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// harden makes the shim the one that orphans of its task are given to, so that a
// double fork does not escape; keeps other processes of the same user from
// reading its memory, which holds secrets; and allows no core dump of either.
// Failing is harmless: each closes a gap that the platform may not let us close.
func harden() {
	_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// terminate asks every process of the task to end. One that is stopped is woken,
// or it would never know.
func (p *process) terminate() {
	for _, pid := range descendants(os.Getpid()) {
		_ = syscall.Kill(pid, syscall.SIGTERM)
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
}

// kill ends every process of the task. It stops them first: a stopped process
// does not fork, so that even a fork bomb holds still for the sweep.
func (p *process) kill() {
	const rounds = 50
	seen := map[int]bool{}
	for range rounds {
		fresh := false
		for _, pid := range descendants(os.Getpid()) {
			if !seen[pid] {
				seen[pid], fresh = true, true
				_ = syscall.Kill(pid, syscall.SIGSTOP)
			}
		}
		if !fresh {
			break
		}
	}
	for _, pid := range descendants(os.Getpid()) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// descendants returns the living processes below root.
func descendants(root int) []int {
	children := map[int][]int{}
	for _, pid := range pids() {
		if st, err := readStat(pid); err == nil && !st.dead() {
			children[st.parent] = append(children[st.parent], pid)
		}
	}
	var all []int
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		all = append(all, children[queue[0]]...)
		queue = append(queue, children[queue[0]]...)
	}
	return all
}

func pids() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil && len(names) == 0 {
		return nil
	}
	var all []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// Sweep kills what is left of an attempt whose shim was killed and could not do
// it. It knows the processes by the name of the attempt in their environment, and
// returns an error when some are still there after a while.
func Sweep(attempt pipeline.AttemptID) error {
	mark := []byte("MAESTRO_ATTEMPT=" + string(attempt))
	for deadline := time.Now().Add(killing); ; time.Sleep(10 * time.Millisecond) {
		left := 0
		for _, pid := range pids() {
			env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
			if err != nil || !hasLine(env, mark) {
				continue
			}
			if st, err := readStat(pid); err == nil && !st.dead() {
				left++
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes of attempt %s cannot be killed", left, attempt)
		}
	}
}

func hasLine(env, line []byte) bool {
	for e := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(e, line) {
			return true
		}
	}
	return false
}

// stat is what we need of /proc/PID/stat.
type stat struct {
	state  byte
	parent int
	start  uint64 // clock ticks since boot
}

func (s stat) dead() bool { return s.state == 'Z' || s.state == 'X' }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(b))
}

// parseStat reads the fields after the program's name, which may hold anything.
func parseStat(s string) (stat, error) {
	const state, parent, start = 0, 1, 19
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) <= start || len(f[state]) != 1 {
		return stat{}, fmt.Errorf("process status %q cannot be read", s)
	}
	ppid, err := strconv.Atoi(f[parent])
	if err != nil {
		return stat{}, err
	}
	began, err := strconv.ParseUint(f[start], 10, 64)
	return stat{f[state][0], ppid, began}, err
}

// identify returns when a process started; an error for one that is dead.
func identify(pid int) (uint64, error) {
	st, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	if st.dead() {
		return 0, syscall.ESRCH
	}
	return st.start, nil
}

// BootID names this boot of the machine.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// BootNow is the time since boot, with the time that the machine was suspended:
// after a suspension a lease must be found to have run out.
func BootNow() time.Duration { return clock(unix.CLOCK_BOOTTIME) }

// awake is the time since boot without suspensions, as time.Since counts.
func awake() time.Duration { return clock(unix.CLOCK_MONOTONIC) }

func clock(id int32) time.Duration {
	var ts unix.Timespec
	// It fails only for a clock that the kernel does not have.
	_ = unix.ClockGettime(id, &ts)
	return time.Duration(ts.Nano())
}
