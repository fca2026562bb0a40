//go:build unix

package main

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// agentd is one that finds no server.
func agentd(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Args = []string{"agentd", "--server", "http://127.0.0.1:1", "--data", dir}
	cmd.WaitDelay = time.Second
	return cmd
}

// started runs agentd until it says that it starts.
func started(t *testing.T, cmd *exec.Cmd) *bufio.Scanner {
	t.Helper()
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "agentd starts") {
			return lines
		}
	}
	t.Fatal("agentd ended before it started")
	return nil
}

func TestSignalsEndAgentdInGoodOrderAndFreeItsFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct {
		signal syscall.Signal
		says   string
	}{
		{syscall.SIGTERM, "tasks go on"},
		{syscall.SIGUSR1, "takes no new tasks"},
		{syscall.SIGINT, "tasks go on"},
	} {
		cmd := agentd(t, dir)
		lines := started(t, cmd)
		if err := cmd.Process.Signal(c.signal); err != nil {
			t.Fatal(err)
		}
		said := false
		for lines.Scan() {
			said = said || strings.Contains(lines.Text(), c.says)
		}
		if err := cmd.Wait(); err != nil || !said {
			t.Errorf("%s: %v, said %q: %v", c.signal, err, c.says, said)
		}
	}
}
