package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
)

// TestTasksCannotReadTheMemoryOfAgentd looks at whom the system lets read a process: of
// one that is closed, the files under /proc are root's whoever it runs as.
func TestTasksCannotReadTheMemoryOfAgentd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := agentd(t, dir)
	if os.Getuid() == 0 {
		const nobody = 65534
		cmd.Path = readable(t, dir)
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	started(t, cmd)
	proc := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid))
	info, err := os.Stat(filepath.Join(proc, "environ"))
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 {
		t.Errorf("user %d may read its environment", owner)
	}
	limits, err := os.ReadFile(filepath.Join(proc, "limits"))
	if err != nil || !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		t.Errorf("it may dump its memory: %v\n%s", err, limits)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// readable copies this program to where every user may run it: Go builds tests in a
// folder of one's own.
func readable(t *testing.T, dir string) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "agentd")
	if err := os.WriteFile(file, text, 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}
