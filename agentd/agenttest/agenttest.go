// Package agenttest runs agents for tests of the control plane, which cannot import
// what an agent is made of. An agent here is the real session, runner and journal
// with their real files; only the machine below it is simulated: its processes are
// functions, its clock is the test's, and it can be killed, restarted and cut off
// from power at any instant. It runs under the false clock of testing/synctest.
//
// What this cannot show is what the shim itself does; its own tests do.
package agenttest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/maestro-cd/maestro/agentd/internal/runner"
	"github.com/maestro-cd/maestro/agentd/internal/session"
	"github.com/maestro-cd/maestro/internal/wire"
)

// Config is what an agent needs. All of it is required.
type Config struct {
	Server string
	Dir    string // kept over restarts
	Token  string
	Name   string
	Dial   func(ctx context.Context, network, addr string) (net.Conn, error)
	// Machine outlives the agents that run on it, one at a time.
	Machine *Machine
	Log     *slog.Logger
}

// Agent is one life of agentd.
type Agent struct {
	runner *runner.Runner
	stop   context.CancelFunc
	all    sync.WaitGroup
	mach   *Machine

	mu   sync.Mutex
	errs []error
}

// Start starts an agent on what its folder holds. Kill must be called.
func Start(cfg Config) (*Agent, error) {
	ctx, stop := context.WithCancel(context.Background())
	var late struct{ *runner.Runner }
	s := session.New(session.Config{
		Server: cfg.Server, Dir: cfg.Dir, Token: cfg.Token, Name: cfg.Name, Build: "simulated", Log: cfg.Log,
		Runner: &late, NetDial: cfg.Dial, Facts: func() json.RawMessage { return json.RawMessage(`{}`) },
	})
	a := &Agent{stop: stop, mach: cfg.Machine}
	var err error
	late.Runner, err = runner.Open(ctx, runner.Config{
		Dir: cfg.Dir, Self: "agentd", Plugins: noPlugins{}, Log: cfg.Log, MinFree: 1 << 10, Machine: &host{cfg.Machine},
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("start agent %s: %w", cfg.Name, err)
	}
	a.runner = late.Runner
	a.all.Go(func() { a.failed(s.Run(ctx)) })        // both end with ctx
	a.all.Go(func() { a.failed(a.runner.Run(ctx)) }) // Run also waits for the attempts
	return a, nil
}

func (a *Agent) failed(err error) {
	if err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.errs = append(a.errs, err)
	}
}

// Kill ends the agent as SIGKILL does, once its connections are cut, which the
// caller does first: what runs goes on, and a shim that was not told what to run
// ends. It returns what made the agent end before it was killed.
func (a *Agent) Kill() error {
	a.stop()
	a.mach.orphan()
	a.all.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.errs...)
}

// Held lists what the agent holds.
func (a *Agent) Held() []wire.Held { return a.runner.Held(0) }

// noPlugins has every program, and needs no folder for it.
type noPlugins struct{}

func (noPlugins) Fetch(_ context.Context, p wire.Plugin) (dir string, argv []string, err error) {
	return "/", []string{"/" + string(p.Name)}, nil
}
