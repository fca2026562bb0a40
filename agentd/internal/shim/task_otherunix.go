//go:build unix && !linux

package shim

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// childAttr: a group of its own, which is all that can be found again here.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func harden() { _ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}) }

func (p *process) terminate() {
	_ = syscall.Kill(-p.pid, syscall.SIGTERM)
	_ = syscall.Kill(-p.pid, syscall.SIGCONT)
}

func (p *process) kill() { _ = syscall.Kill(-p.pid, syscall.SIGKILL) }

// Sweep does nothing: without /proc there is no way to know the processes.
func Sweep(pipeline.AttemptID) error { return nil }

// BootID is empty: start times are absolute here, so a pid with its start time is
// enough to know a process by.
func BootID() string { return "" }
