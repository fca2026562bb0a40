package sim_test

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/agentd/agenttest"
)

// node is a machine with its agent.
type node struct {
	sim     *sim
	i       int
	dir     string
	token   string
	machine *agenttest.Machine
	// turn holds one token while the agent is being changed.
	turn  chan struct{}
	agent *agenttest.Agent // nil while it is down

	mu    sync.Mutex
	doom  agenttest.Step // where the agent is to be killed
	after time.Duration  // and for how long
}

func (n *node) start() error {
	n.sim.net.cutAgent(n.i, false)
	a, err := agenttest.Start(agenttest.Config{
		Server: "http://server", Dir: n.dir, Token: n.token, Name: "agent-" + strconv.Itoa(n.i),
		Dial:    func(ctx context.Context, _, _ string) (net.Conn, error) { return n.sim.net.dial(ctx, n.i) },
		Machine: n.machine, Log: n.sim.log,
	})
	n.agent = a
	return err
}

// step is asked at each step of a start whether the agent dies there.
func (n *node) step(at agenttest.Step) bool {
	n.mu.Lock()
	doomed, after := n.doom == at, n.after
	if doomed {
		n.doom = ""
	}
	n.mu.Unlock()
	if !doomed {
		return false
	}
	n.sim.world.note("agent %d is killed %s", n.i, at)
	n.sim.net.cutAgent(n.i, true)
	n.sim.later.Go(func() { n.kill(after, nil) })
	// Killed means that nothing of it goes on: until it has heard of its end.
	time.Sleep(time.Millisecond)
	return true
}

// kill kills the agent and brings it back; what is done in between may be nil.
func (n *node) kill(down time.Duration, between func() error) {
	n.turn <- struct{}{}
	defer func() { <-n.turn }()
	n.sim.net.cutAgent(n.i, true)
	if n.agent != nil {
		if err := n.agent.Kill(); err != nil {
			n.sim.fail(fmt.Errorf("agent %d ended by itself: %w", n.i, err))
		}
	}
	n.agent = nil
	if between != nil {
		if err := between(); err != nil {
			n.sim.fail(err)
		}
	}
	time.Sleep(down)
	if err := n.start(); err != nil {
		n.sim.fail(err)
	}
	n.sim.world.note("agent %d is back", n.i)
}
