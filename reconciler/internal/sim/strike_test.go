package sim_test

import (
	"context"
	"fmt"
	"time"

	"github.com/maestro-cd/maestro/agentd/agenttest"
)

// strike makes one thing go wrong.
func (s *sim) strike(f *mishap) {
	n := s.nodes[f.Agent]
	heal := func(why string, after func()) {
		s.soon(f.For.duration(), func() {
			s.world.note("healed: %s", why)
			after()
		})
	}
	s.world.note("%s; agent %d, n %d, for %gs", f.Kind, f.Agent, f.N, float64(f.For))
	switch f.Kind {
	case killServer, jumpClock:
		jump := time.Duration(0)
		if f.Kind == jumpClock {
			jump = []time.Duration{time.Hour, -time.Hour}[f.N%2]
		}
		s.turn <- struct{}{}
		s.crash(f.For.duration(), jump, nil)
	case killServerMid:
		s.mu.Lock()
		s.countdown, s.downFor = f.N, f.For.duration()
		s.mu.Unlock()
	case killAgent:
		s.later.Go(func() { n.kill(f.For.duration(), nil) })
	case killAgentMid:
		n.mu.Lock()
		n.doom = []agenttest.Step{agenttest.BeforeSpawn, agenttest.AfterSpawn, agenttest.BeforeGive, agenttest.AfterGive}[f.N%4]
		n.after = f.For.duration()
		n.mu.Unlock()
	case killShim:
		n.machine.KillShim(f.N)
	case cutPower:
		s.later.Go(func() {
			n.kill(f.For.duration(), func() error {
				return n.machine.PowerCut(n.dir, func(k int) int { return k * (f.N % 4) / 3 })
			})
		})
	case partition:
		s.net.silence(f.Agent, true, toServer, toAgent)
		heal(f.Kind, func() { s.net.silence(f.Agent, false, toServer, toAgent) })
	case deafServer:
		s.net.silence(f.Agent, true, toServer)
		heal(f.Kind, func() { s.net.silence(f.Agent, false, toServer) })
	case deafAgent:
		s.net.silence(f.Agent, true, toAgent)
		heal(f.Kind, func() { s.net.silence(f.Agent, false, toAgent) })
	case slowNetwork:
		s.net.change(f.Agent, func(d *side) { d.slow = time.Duration(f.N) * 20 * time.Millisecond })
		heal(f.Kind, func() { s.net.change(f.Agent, func(d *side) { d.slow = 0 }) })
	case sayTwice, overtake, replay:
		s.net.change(f.Agent, func(d *side) { d.play(f) })
	case fullServerDisk:
		s.fill(1)
		heal(f.Kind, func() { s.fill(-1) })
	case fullAgentDisk:
		n.machine.SetFull(true)
		heal(f.Kind, func() { n.machine.SetFull(false) })
	case forgeDown:
		s.world.forge.fail(1)
		heal(f.Kind, func() { s.world.forge.fail(-1) })
	case cancelRun:
		s.cancel(f.N)
	default:
		s.fail(fmt.Errorf("no such fault: %q", f.Kind))
	}
}

func (d *side) play(f *mishap) {
	for _, t := range d.tamed {
		switch f.Kind {
		case sayTwice:
			t.twice = f.N
		case overtake:
			t.swap = f.N
		case replay:
			t.replay = f.N
		}
	}
}

// fill adds a reason why the server's disk is full, or takes one away.
func (s *sim) fill(by int) {
	s.disk <- struct{}{}
	defer func() { <-s.disk }()
	s.full += by
	if err := fill(s.dir, s.full > 0); err != nil {
		s.fail(err)
	}
}

// cancel cancels the n-th run, if there is one.
func (s *sim) cancel(n int) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.srv == nil {
		return
	}
	runs, err := s.srv.db.UnfinishedRuns(context.Background())
	if err != nil || len(runs) == 0 {
		return
	}
	r := runs[n%len(runs)]
	s.mu.Lock()
	s.cancelled[r.ID] = true
	s.mu.Unlock()
	s.srv.runs.Cancel(r.ID, "cancelled by the schedule")
}
