package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that runs until the test ends it.
type Process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	log  *output
	done chan struct{}
	// killed: the test has ended it, so that what it said last tells little.
	killed bool
}

// output keeps what a process said, for failures.
type output struct {
	mu sync.Mutex
	b  []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b = append(o.b, p...)
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.b)
}

func start(t testing.TB, name string, env []string, args ...string) *Process {
	t.Helper()
	p := launch(t, name, env, exec.Command(filepath.Join(Programs(t), args[0]), args[1:]...))
	t.Cleanup(func() {
		told := p.killed
		p.Kill()
		if !told {
			p.tell()
		}
	})
	return p
}

// StartShell starts a shell script in a folder, with more environment. At the end
// of the test all that it started is asked to end, and waited for.
func StartShell(t testing.TB, name, dir string, env []string, script string) *Process {
	t.Helper()
	cmd := exec.Command("sh", "-eu", "-c", script)
	cmd.Dir = dir
	p := launch(t, name, env, cmd)
	t.Cleanup(func() {
		_ = syscall.Kill(-p.PID(), syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(patience):
			_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
			<-p.done
			t.Errorf("%s did not stop", name)
		}
		p.tell()
	})
	return p
}

// RunShell runs a shell script to its end and returns what it printed and its exit code.
func RunShell(t testing.TB, dir string, env []string, script string) (out string, exit int) {
	t.Helper()
	p := StartShell(t, "script", dir, env, script)
	<-p.done
	return p.Said(), p.cmd.ProcessState.ExitCode()
}

func launch(t testing.TB, name string, env []string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{t: t, name: name, cmd: cmd, log: &output{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.Env = append(os.Environ(), env...)
	// A group of its own: what the test's terminal sends does not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait()
	}()
	return p
}

// tell shows what the process said last when the test has failed: no more than leaves
// the failure itself to be found.
func (p *Process) tell() {
	if !p.t.Failed() {
		return
	}
	const most = 20
	lines := strings.SplitAfter(p.Said(), "\n")
	p.t.Logf("%s said:\n%s", p.name, strings.Join(lines[max(0, len(lines)-most):], ""))
}

// Said returns all that the process printed so far.
func (p *Process) Said() string { return p.log.String() }

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process with SIGKILL and waits for that.
func (p *Process) Kill() {
	p.killed = true
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Signal sends a signal to the process.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop asks the process to end, waits, and returns its exit code.
func (p *Process) Stop() int {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s did not stop", p.name)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Ended reports whether the process is gone.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}
