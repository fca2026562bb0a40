//go:build unix

package facts

import (
	"io/fs"
	"os/exec"
	"syscall"
)

// ownGroup makes the program's descendants end with it.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}

// commandLine is how to run the file, nil when it is not executable.
func commandLine(path string, mode fs.FileMode) []string {
	if mode&0o111 == 0 {
		return nil
	}
	return []string{path}
}
