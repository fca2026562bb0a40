package agenttest

import (
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/runner"
	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// host shows a Machine as the runner wants it.
type host struct{ m *Machine }

func (m *Machine) now() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.booted)
}

func (m *Machine) alive(p shim.Process) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.procs[p.PID] != nil && m.procs[p.PID].id == p
}

func (h *host) Now() time.Duration { return h.m.now() }

func (h *host) Heard(at time.Time) time.Duration { return h.m.now() - time.Since(at) }

func (h *host) Free(string) (int64, error) {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.m.full {
		return 0, nil
	}
	return 1 << 40, nil
}

func (h *host) Spawn(_ []string, dir string) (runner.Shim, shim.Process, error) {
	if h.m.at(BeforeSpawn) {
		return nil, shim.Process{}, ErrKilled
	}
	p := h.m.spawn(dir)
	if h.m.at(AfterSpawn) {
		return nil, shim.Process{}, ErrKilled
	}
	return hold{p}, p.id, nil
}

func (h *host) Attach(dir string, id shim.Process) runner.Shim {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if p := h.m.procs[id.PID]; p != nil && p.id == id {
		return hold{p}
	}
	gone := &process{m: h.m, dir: dir, id: id, done: make(chan struct{}), stop: make(chan string, 1)}
	close(gone.done)
	return hold{gone}
}

func (h *host) Alive(p shim.Process) bool { return h.m.alive(p) }

func (h *host) SameBoot(p shim.Process) bool {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	return p.Boot == h.m.bootID()
}

// Sweep kills what a killed shim has left.
func (h *host) Sweep(attempt pipeline.AttemptID) error {
	h.m.mu.Lock()
	p := h.m.strays[attempt]
	delete(h.m.strays, attempt)
	h.m.mu.Unlock()
	if p != nil {
		p.kill()
		p.all.Wait()
	}
	return nil
}

// hold is an agent's hold on a shim.
type hold struct{ p *process }

func (h hold) Give(cfg shim.Config) error {
	if h.p.m.at(BeforeGive) {
		return fault.New(fault.Unavailable, "configure shim: %w", ErrKilled)
	}
	if err := h.p.give(cfg); err != nil {
		return fault.New(fault.Unavailable, "configure shim: %w", err)
	}
	h.p.m.at(AfterGive)
	return nil
}

func (h hold) Abandon() error {
	h.p.m.mu.Lock()
	defer h.p.m.mu.Unlock()
	if h.p.m.procs[h.p.id.PID] == h.p && !h.p.given {
		delete(h.p.m.procs, h.p.id.PID)
		close(h.p.done)
	}
	return nil
}

func (h hold) Cancel(reason string) error {
	select {
	case h.p.stop <- reason:
	default: // the first reason stays
	}
	return nil
}

func (h hold) Done() <-chan struct{} { return h.p.done }

func (hold) Release() {}
