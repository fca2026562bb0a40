package shim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// process is the task's process and, through its job object, all that descends from it.
type process struct {
	proc *os.Process
	job  windows.Handle
	life
}

// start runs the program in a job object that dies with the shim.
func start(path string, argv []string, dir string, env []string, in, out *os.File) (*process, error) {
	job, err := newJob()
	if err != nil {
		return nil, err
	}
	proc, err := os.StartProcess(path, argv, &os.ProcAttr{
		Dir: dir, Env: env, Files: []*os.File{in, out, out},
		Sys: &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP},
	})
	if err != nil {
		return nil, errors.Join(err, windows.CloseHandle(job))
	}
	if err := assign(job, proc.Pid); err != nil {
		return nil, errors.Join(err, proc.Kill(), windows.CloseHandle(job))
	}
	p := &process{proc: proc, job: job, life: newLife()}
	p.reaper.Go(p.reap) // ends with the task's own process
	return p, nil
}

func newJob() (windows.Handle, error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, err
	}
	info := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{}
	info.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	_, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
	if err != nil {
		return 0, errors.Join(err, windows.CloseHandle(job))
	}
	return job, nil
}

func assign(job windows.Handle, pid int) error {
	h, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(pid))
	if err != nil {
		return err
	}
	return errors.Join(windows.AssignProcessToJobObject(job, h), windows.CloseHandle(h))
}

func (p *process) reap() {
	defer close(p.gone)
	st, err := p.proc.Wait()
	if err != nil {
		p.exited <- ending{signal: err.Error(), alone: true}
		return
	}
	code := st.ExitCode()
	// What the program left behind cannot be asked to end here, only ended.
	_ = windows.TerminateJobObject(p.job, 1)
	p.exited <- ending{exit: &code, alone: true}
}

func (p *process) release() {
	select {
	case <-p.gone:
		p.reaper.Wait()
		_ = windows.CloseHandle(p.job)
	default:
	}
}

// terminate sends the nearest thing to TERM that there is.
func (p *process) terminate() {
	_ = windows.GenerateConsoleCtrlEvent(windows.CTRL_BREAK_EVENT, uint32(p.proc.Pid))
}

func (p *process) kill() { _ = windows.TerminateJobObject(p.job, 1) }

func listen(c chan os.Signal) func() {
	signal.Notify(c, syscall.SIGTERM)
	return func() { signal.Stop(c) }
}

func harden() {}

func lookup(name, pluginDir string, env []string) (string, error) {
	if strings.ContainsAny(name, `/\`) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(pluginDir, filepath.FromSlash(name))
		}
		path, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("the plugin's program cannot run: %w", err)
		}
		return path, nil
	}
	path := ""
	for _, e := range env {
		if k, v, _ := strings.Cut(e, "="); strings.EqualFold(k, "PATH") {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		if file, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("program %q is not on this agent: it is in none of the directories of PATH, %s; install it, or ask for agents that have it", name, path)
}

func openNoFollow(path string) (*os.File, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("open %s: it is not a regular file", path)
	}
	return os.Open(path)
}

// Sweep does nothing: the job object has ended what a killed shim left.
func Sweep(pipeline.AttemptID) error { return nil }

// BootID is empty: start times are absolute here.
func BootID() string { return "" }

// BootNow is the time since boot, with the time that the machine was asleep.
func BootNow() time.Duration { return windows.DurationSinceBoot() }

// awake is the same clock, because time.Since counts a sleep too here.
func awake() time.Duration { return windows.DurationSinceBoot() }

func identify(pid int) (uint64, error) {
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(pid))
	if err != nil {
		return 0, err
	}
	defer func() { _ = windows.CloseHandle(h) }()
	var began, ended, kernel, user windows.Filetime
	if err := windows.GetProcessTimes(h, &began, &ended, &kernel, &user); err != nil {
		return 0, err
	}
	const stillActive = 259
	var code uint32
	if err := windows.GetExitCodeProcess(h, &code); err != nil {
		return 0, err
	}
	if code != stillActive {
		return 0, errDead
	}
	return uint64(began.HighDateTime)<<32 | uint64(began.LowDateTime), nil
}

var errDead = errors.New("the process has ended")

func exists(pid int) bool {
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(pid))
	if err != nil {
		// Not being allowed to look means that there is something to look at.
		return errors.Is(err, windows.ERROR_ACCESS_DENIED)
	}
	return windows.CloseHandle(h) == nil
}

func isDead(err error) bool { return errors.Is(err, errDead) }

func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.DETACHED_PROCESS}
}
