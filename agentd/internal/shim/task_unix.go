//go:build unix

package shim

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is the task's process and all that descends from it.
type process struct {
	pid int
	life
}

// start runs the program at path in a process group of its own. The caller's
// thread must live as long as the shim: where the system can, it kills the
// program when that thread ends, so that a killed shim takes its task along.
func start(path string, argv []string, dir string, env []string, in, out *os.File) (*process, error) {
	runtime.LockOSThread()
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Dir: dir, Env: env,
		Files: []uintptr{in.Fd(), out.Fd(), out.Fd()},
		Sys:   childAttr(),
	})
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, life: newLife()}
	p.reaper.Go(p.reap) // ends with the last child
	return p, nil
}

// reap waits for every child, the adopted ones too: none stays behind as a zombie.
func (p *process) reap() {
	defer close(p.gone)
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		if pid == p.pid && (ws.Exited() || ws.Signaled()) {
			p.exited <- endingOf(ws, reapDead())
		}
	}
}

// reapDead collects the children that are dead and reports whether none is alive.
func reapDead() bool {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if pid <= 0 || err != nil {
			return err != nil
		}
	}
}

func endingOf(ws syscall.WaitStatus, alone bool) ending {
	if ws.Exited() {
		code := ws.ExitStatus()
		return ending{exit: &code, alone: alone}
	}
	text := unix.SignalName(ws.Signal())
	if ws.Signal() == syscall.SIGKILL {
		text += " (often the system, for want of memory)"
	}
	return ending{signal: text, alone: alone}
}

// release waits for the reaper when it can end. One that waits for a process that
// cannot be killed ends with the shim, which has nothing left to do.
func (p *process) release() {
	select {
	case <-p.gone:
		p.reaper.Wait()
	default:
	}
}

// listen directs requests to stop to c; the function it returns undoes that.
func listen(c chan os.Signal) func() {
	signal.Notify(c, syscall.SIGTERM)
	// A session leader without a terminal gets these from nobody who means it.
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	return func() { signal.Stop(c) }
}

// lookup finds the program that the first word of a command names.
func lookup(name, pluginDir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(pluginDir, name)
		}
		if err := runnable(name); err != nil {
			return "", fmt.Errorf("the plugin's program cannot run: %w", err)
		}
		return name, nil
	}
	path := ""
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		// A relative element would let the workspace name the program.
		if file := filepath.Join(dir, name); filepath.IsAbs(dir) && runnable(file) == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("program %q is not on this agent: it is in none of the directories of PATH, %s; install it, or ask for agents that have it", name, path)
}

func runnable(file string) error {
	fi, err := os.Stat(file)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not an executable file", file)
	}
	return nil
}

func openNoFollow(path string) (*os.File, error) {
	// O_NONBLOCK: opening a FIFO must not wait for somebody to write.
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// exists reports whether some process has that number.
func exists(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}

// isDead reports whether identify found the process dead, rather than nothing.
func isDead(err error) bool { return errors.Is(err, syscall.ESRCH) }

// detached: a session of its own, so that no signal for agentd reaches the shim.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
