package runner

import (
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Machine is what tasks run on: it starts shims, knows which of them live, and has
// the clock that leases count on. An agent has the real one; a simulation has one
// whose time and whose processes are its own. The files of an attempt, which a shim
// and its agent share, are real in both.
type Machine interface {
	// Now is shim.BootNow.
	Now() time.Duration
	// Heard converts the time of a sign of life to the clock of Now, as
	// shim.Contact does. It is called by one goroutine at a time.
	Heard(at time.Time) time.Duration
	// Free is how many bytes may still be written under dir.
	Free(dir string) (int64, error)
	// Spawn is shim.Spawn.
	Spawn(argv []string, dir string) (Shim, shim.Process, error)
	// Attach is shim.Attach.
	Attach(dir string, p shim.Process) Shim
	// Alive is shim.Process.Alive, SameBoot is shim.Process.SameBoot.
	Alive(p shim.Process) bool
	SameBoot(p shim.Process) bool
	// Sweep is shim.Sweep.
	Sweep(attempt pipeline.AttemptID) error
}

// Shim is a hold on the process that runs a task; see shim.Handle.
type Shim interface {
	Give(cfg shim.Config) error
	Abandon() error
	Cancel(reason string) error
	Done() <-chan struct{}
	Release()
}

// thisMachine is the real one.
type thisMachine struct{ contact shim.Contact }

func (*thisMachine) Now() time.Duration { return shim.BootNow() }

func (m *thisMachine) Heard(at time.Time) time.Duration { return m.contact.At(at) }

func (*thisMachine) Free(dir string) (int64, error) { return freeSpace(dir) }

func (*thisMachine) Spawn(argv []string, dir string) (Shim, shim.Process, error) {
	h, err := shim.Spawn(argv, dir)
	if err != nil {
		return nil, shim.Process{}, err
	}
	return h, h.Process, nil
}

func (*thisMachine) Attach(dir string, p shim.Process) Shim { return shim.Attach(dir, p) }

func (*thisMachine) Alive(p shim.Process) bool { return p.Alive() }

func (*thisMachine) SameBoot(p shim.Process) bool { return p.SameBoot() }

func (*thisMachine) Sweep(attempt pipeline.AttemptID) error { return shim.Sweep(attempt) }
