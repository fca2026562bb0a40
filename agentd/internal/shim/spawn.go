package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
)

// errorFile keeps what a shim says when it cannot do its work.
const errorFile = "shim.err"

// Handle is agentd's hold on a shim: one that it started, or one that an agentd
// before it had started. Its methods may be called from any goroutine.
type Handle struct {
	Process Process
	dir     string
	input   *os.File // nil when attached
	done    chan struct{}
	release func()
	watcher sync.WaitGroup
}

// Spawn starts a shim by its command line, which ends in the word that makes the
// program a shim. It waits for its Config, see Give; when this process ends before
// that, the shim ends too, without having started anything. A shim that ended at
// once is fault.Unavailable: it is worth another try.
func Spawn(argv []string, dir string) (*Handle, error) {
	h, err := spawn(argv, dir)
	if err != nil {
		return nil, fmt.Errorf("start shim %s: %w", argv[0], err)
	}
	return h, nil
}

func spawn(argv []string, dir string) (*Handle, error) {
	complaints, err := os.OpenFile(filepath.Join(dir, errorFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer complaints.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stderr = dir, complaints
	// Nothing of agentd's environment: it is not the task's.
	cmd.Env = []string{"GOTRACEBACK=single"}
	cmd.SysProcAttr = detached()
	input, alive, err := startPiped(cmd)
	if err != nil {
		return nil, err
	}
	h := &Handle{dir: dir, input: input, done: make(chan struct{}), release: func() { alive.Close() }}
	h.watcher.Go(func() { // ends with the shim, or at Release
		if _, err := io.Copy(io.Discard, alive); err == nil {
			// The exit code tells nothing that the files do not.
			_ = cmd.Wait()
			close(h.done)
		}
		alive.Close()
	})
	if h.Process, err = Identify(cmd.Process.Pid); err != nil {
		return nil, fault.New(fault.Unavailable, "it ended at once: %w", errors.Join(err, h.Abandon()))
	}
	return h, nil
}

// startPiped starts cmd with a pipe for its input, and one that nothing is written
// to: its end is the end of the process. Of either only our side is open afterwards.
func startPiped(cmd *exec.Cmd) (input, alive *os.File, err error) {
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer inR.Close()
	aliveR, aliveW, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, inW.Close())
	}
	defer aliveW.Close()
	cmd.Stdin, cmd.Stdout = inR, aliveW
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(err, inW.Close(), aliveR.Close())
	}
	return inW, aliveR, nil
}

// Attach takes hold of a shim that an earlier agentd started.
func Attach(dir string, p Process) *Handle {
	stop := make(chan struct{})
	h := &Handle{Process: p, dir: dir, done: make(chan struct{}), release: sync.OnceFunc(func() { close(stop) })}
	h.watcher.Go(func() { // ends with the shim, or at Release
		// It is not our child, so there is nothing to wait for but its absence.
		t := time.NewTicker(50 * time.Millisecond)
		defer t.Stop()
		for p.Alive() {
			select {
			case <-stop:
				return
			case <-t.C:
			}
		}
		close(h.done)
	})
	return h
}

// Give tells the shim what to run. When it returns nil the task starts, or its
// result tells why not. After an error nothing has started; fault.Unavailable, when
// the shim has ended before it was told, is worth another try.
func (h *Handle) Give(cfg Config) error {
	b, err := json.Marshal(cfg)
	if err == nil {
		_, err = h.input.Write(b)
	}
	if err != nil {
		return fault.New(fault.Unavailable, "configure shim: %w", errors.Join(err, h.Abandon()))
	}
	// The shim starts at the end of its input, not before.
	if err := h.input.Close(); err != nil {
		return fmt.Errorf("configure shim: %w", err)
	}
	return nil
}

// Abandon ends a shim that was not given anything, and waits for its end.
func (h *Handle) Abandon() error {
	// A word that no configuration begins with, in case all of one was written.
	_, _ = h.input.Write([]byte("abandoned"))
	err := h.input.Close()
	<-h.done
	h.watcher.Wait()
	return err
}

// Done is closed when the shim has ended.
func (h *Handle) Done() <-chan struct{} { return h.done }

// Release lets go of the shim, which goes on.
func (h *Handle) Release() {
	h.release()
	h.watcher.Wait()
}

// Cancel asks for the task's end and returns at once. The first reason stays. It
// works for a shim that any agentd started, and is harmless for one that has
// ended. An error means that the reason could not be written down; the task is
// stopped all the same, where there are signals.
func (h *Handle) Cancel(reason string) error {
	path := filepath.Join(h.dir, CancelFile)
	var err error
	if _, e := os.Stat(path); errors.Is(e, os.ErrNotExist) {
		err = durable.WriteFile(path, []byte(reason), 0o600)
	}
	// The handle is taken before the identity is checked, so that the signal
	// cannot go to a process that took over the number in between.
	if p, e := os.FindProcess(h.Process.PID); e == nil {
		if h.Process.Alive() {
			// It saves a tick; where there is no such signal the file alone does it.
			_ = p.Signal(syscall.SIGTERM)
		}
		_ = p.Release()
	}
	if err != nil {
		return fmt.Errorf("cancel: %w", err)
	}
	return nil
}

// Told reports whether the shim was told what to run, so that the task may have
// started. It is to be believed only within the same boot of the machine.
func Told(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, PIDFile))
	return !errors.Is(err, os.ErrNotExist)
}

// Complaint returns what the shim said when it could not do its work.
func Complaint(dir string) string {
	const most = 1 << 10
	b, err := os.ReadFile(filepath.Join(dir, errorFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(b[:min(len(b), most)]), "?"))
}
