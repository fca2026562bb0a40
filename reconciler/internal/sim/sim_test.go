// Package sim simulates the control plane and its agents with their machines,
// networks and disks under the false clock of testing/synctest, and lets all of it
// fail by drawn schedules. The code is the real one on both sides, down to the SQLite
// files, the journals and the websocket frames; what is simulated is the network that
// carries them, the processes that tasks are, the repository and the forge. Hours pass
// in milliseconds, so that thousands of schedules are tried where a test of processes
// tries one.
//
// A schedule is repeatable, the order in which goroutines run is not: one that fails
// may pass when it is tried again.
package sim_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/agentd/agenttest"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

var (
	soakFor  = flag.Duration("sim.soak", 0, "how long TestSoak tries schedules; 0 leaves it out")
	verbose  = flag.Bool("sim.log", false, "tell all that the programs log when a schedule fails")
	quickest = flag.Int("sim.schedules", 100, "how many schedules each third of TestNoScheduleBreaksAPromise tries")
)

func TestMain(m *testing.M) {
	flag.Parse()
	// A failure tells its schedule; what rapid would keep is of no use to another build.
	if err := flag.Set("rapid.nofailfile", "true"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// TestNoScheduleBreaksAPromise draws schedules of faults and checks after each that
// everything was done, nothing twice, and that each log is whole.
func TestNoScheduleBreaksAPromise(t *testing.T) {
	t.Parallel()
	most := *quickest
	if testing.Short() {
		most = min(most, 4)
	}
	for i := range 3 {
		t.Run(strconv.Itoa(i+1), func(t *testing.T) {
			t.Parallel()
			for tried := 0; tried < most; {
				// rapid has no count of its own to be told, only a flag for all tests.
				rapid.Check(t, func(r *rapid.T) {
					if tried >= most {
						return
					}
					tried++
					s := drawSchedule(r)
					if err := simulate(t, &s); err != nil {
						r.Fatalf("%v\nschedule: %s", err, &s)
					}
				})
				if t.Failed() {
					return
				}
			}
		})
	}
}

// TestSoak tries schedules for as long as it is told to, and counts them.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("takes as long as -sim.soak says")
	}
	began, tried, faults := time.Now(), 0, 0
	for time.Since(began) < *soakFor && !t.Failed() {
		rapid.Check(t, func(r *rapid.T) {
			if time.Since(began) >= *soakFor {
				return
			}
			s := drawSchedule(r)
			tried, faults = tried+1, faults+len(s.Faults)
			if err := simulate(t, &s); err != nil {
				r.Fatalf("%v\nschedule: %s", err, &s)
			}
		})
	}
	fmt.Printf("soak: %d schedules with %d faults in %s, failed: %v\n", tried, faults, time.Since(began).Round(time.Second), t.Failed())
}

// TestSchedulesThatOnceFailed tries those in testdata, which are named for what they broke.
func TestSchedulesThatOnceFailed(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join("testdata", "schedules", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".json"), func(t *testing.T) {
			t.Parallel()
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			var s schedule
			if err := json.Unmarshal(b, &s); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if err := simulate(t, &s); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// simulate plays a schedule in a bubble of its own and returns what it broke.
func simulate(t *testing.T, s *schedule) error {
	base, err := os.MkdirTemp("/dev/shm", "sim")
	if err != nil {
		base = t.TempDir()
	}
	defer os.RemoveAll(base)
	var broken error
	synctest.Test(t, func(*testing.T) { broken = play(s, base) })
	return broken
}

// sim is one simulation under way.
type sim struct {
	plan  *schedule
	base  string
	world *world
	net   *network
	nodes []*node
	log   *slog.Logger
	said  lockedBuffer
	later group // of what heals by itself

	// turn holds one token while the server is being changed; srv is nil while it is down.
	turn chan struct{}
	srv  *server
	// disk holds one token while dir, which has the server's files, is being changed.
	disk chan struct{}
	dir  string
	full int // reasons why it is full

	mu        sync.Mutex
	countdown int           // messages until the server is killed
	downFor   time.Duration // and for how long
	acked     map[pipeline.AttemptID]bool
	knew      map[pipeline.AttemptID]bool // its agent told how it ended
	gone      map[pipeline.AttemptID]bool // go was sent
	durable   map[pipeline.AttemptID]int64
	cancelled map[pipeline.RunID]bool
	errs      []error
}

// group is a sync.WaitGroup that may be added to while others wait.
type group struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when n falls to 0
}

func (g *group) Go(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n++; g.n == 1 {
		g.idle = make(chan struct{})
	}
	go func() { // is waited for by Wait
		f()
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.n--; g.n == 0 {
			close(g.idle)
		}
	}()
}

func (g *group) Wait() {
	for {
		g.mu.Lock()
		n, idle := g.n, g.idle
		g.mu.Unlock()
		if n == 0 {
			return
		}
		<-idle
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func play(plan *schedule, base string) error {
	s := &sim{
		plan: plan, base: base, world: newWorld(), turn: make(chan struct{}, 1), disk: make(chan struct{}, 1),
		acked: map[pipeline.AttemptID]bool{}, knew: map[pipeline.AttemptID]bool{}, gone: map[pipeline.AttemptID]bool{}, durable: map[pipeline.AttemptID]int64{},
		cancelled: map[pipeline.RunID]bool{},
	}
	s.log = slog.New(slog.DiscardHandler)
	if *verbose {
		s.log = slog.New(slog.NewTextHandler(&s.said, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s.net = newNetwork(plan.Agents, s.sent)
	s.dir = filepath.Join(base, "server")
	err := s.begin()
	if err == nil {
		s.later.Go(s.push) // ends when all commits were taken up
		for i := range plan.Faults {
			time.Sleep(plan.Faults[i].After.duration())
			s.strike(&plan.Faults[i])
		}
		s.later.Wait()
		err = s.settle()
	}
	if err == nil {
		err = s.check()
	}
	s.end()
	s.mu.Lock()
	err = errors.Join(append(s.errs, err)...)
	s.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("%w\nwhat happened:\n%s\n%s", err, strings.Join(s.world.events, "\n"), s.said.b.String())
	}
	return err
}

// begin starts the server and enrols the agents.
func (s *sim) begin() error {
	s.start()
	for i := range s.plan.Agents {
		n := &node{sim: s, i: i, dir: filepath.Join(s.base, "agent"+strconv.Itoa(i)), token: fmt.Sprintf("maestro-join-%032d", i), turn: make(chan struct{}, 1)}
		// Every other machine has programs that are slow to end.
		grace := []time.Duration{0, 11 * time.Second}[i%2]
		n.machine = agenttest.NewMachine(s.world.program, grace, n.step)
		s.nodes = append(s.nodes, n)
		if err := s.srv.db.CreateJoinToken(context.Background(), sha256.Sum256([]byte(n.token)), "default", false, time.Now().Add(time.Hour)); err != nil {
			return err
		}
		if err := n.start(); err != nil {
			return err
		}
	}
	// Baseline, and everybody enrolled.
	time.Sleep(time.Second)
	return nil
}

// start starts the server, as often as it takes. The caller has the turn.
func (s *sim) start() {
	for tries := 0; ; tries++ {
		srv, err := startServer(s.dir, s.net.serve(), s.world, s.log)
		if err == nil {
			s.srv = srv
			return
		}
		s.net.cutServer(nil)
		if tries > 2000 {
			s.fail(fmt.Errorf("the server does not start: %w", err))
			return
		}
		// As under a supervisor.
		time.Sleep(5 * time.Second)
	}
}

func (s *sim) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

// soon does f after a while, whatever happens meanwhile.
func (s *sim) soon(after time.Duration, f func()) {
	s.later.Go(func() {
		time.Sleep(after)
		f()
	})
}

// push pushes each commit once the one before it was seen: of commits pushed faster
// than anybody looks only the last counts.
func (s *sim) push() {
	for i, c := range s.plan.Commits {
		time.Sleep(c.After.duration())
		cfg, err := s.plan.configuration(i)
		if err != nil {
			s.fail(err)
			return
		}
		s.world.note("commit %d is pushed", i)
		s.world.repo.push(cfg)
		for !s.seen(cfg.Commit) {
			time.Sleep(time.Second)
		}
	}
}

func (s *sim) seen(commit pipeline.CommitID) bool {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.srv == nil {
		return false
	}
	select {
	case s.srv.pushed <- struct{}{}:
	default:
	}
	refs, err := s.srv.db.ObservedRefs(context.Background(), repoName)
	return err == nil && refs[mainRef] == commit
}

// sent is told each message that somebody writes to a socket. What the server says
// must be in the files of one that is killed now. Killed in a message, the server says
// that one and no other.
func (s *sim) sent(d direction, payload []byte, on *cable) (last bool) {
	if payload == nil {
		return false
	}
	m, err := wire.Decode(payload)
	if err != nil {
		return false
	}
	s.mu.Lock()
	switch m := m.(type) {
	case *wire.Result:
		s.knew[m.Attempt] = s.knew[m.Attempt] || !m.Result.Lost
	case *wire.Ack:
		s.acked[m.Attempt] = true
	case *wire.Go:
		s.gone[m.Attempt] = true
	case *wire.LogAck:
		s.durable[m.Attempt] = max(s.durable[m.Attempt], m.Length)
	}
	fire, down := false, s.downFor
	if d == toAgent {
		s.countdown--
		fire = s.countdown == 0
	}
	s.mu.Unlock()
	if !fire {
		return false
	}
	select {
	case s.turn <- struct{}{}:
	default:
		return false // it is being killed already
	}
	s.world.note("the server is killed as it says %T", m)
	s.crash(down, 0, on)
	return true
}

// crash kills the server at this instant and brings it back. The caller has the turn,
// which is given up when it is back. The last message is still on one cable, or on none.
func (s *sim) crash(down, jump time.Duration, on *cable) {
	srv := s.srv
	if srv == nil {
		<-s.turn
		return
	}
	s.srv = nil
	// After the cut, for what was written before it may have been told to others.
	s.net.cutServer(on)
	// Nobody makes room meanwhile: the image would lack that, and the disk stay full.
	s.disk <- struct{}{}
	then := writtenIn(s.dir)
	to, err := srv.image(then)
	if err != nil {
		s.fail(err)
	}
	s.dir = to
	<-s.disk
	s.later.Go(func() {
		defer func() { <-s.turn }()
		if err := srv.stop(); err != nil {
			s.fail(fmt.Errorf("the server ended by itself: %w", err))
		}
		if err := os.RemoveAll(srv.dir); err != nil {
			s.fail(err)
		}
		time.Sleep(down)
		if jump != 0 {
			if err := shift(to, jump); err != nil {
				s.fail(err)
			}
		}
		s.start()
		s.world.note("the server is back")
	})
}

// settle waits until nothing is left to be done, or nothing moves any more.
func (s *sim) settle() error {
	s.mu.Lock()
	s.countdown = 0
	s.mu.Unlock()
	for i := range s.nodes {
		s.nodes[i].mu.Lock()
		s.nodes[i].doom = ""
		s.nodes[i].mu.Unlock()
	}
	const most = 3 * time.Hour
	var left string
	for began := time.Now(); time.Since(began) < most; time.Sleep(5 * time.Second) {
		s.later.Wait()
		if left = s.left(); left == "" {
			return nil
		}
	}
	if r := s.srv.db.Rollback(); r != nil {
		left += "; and " + r.Sentence()
	}
	return fmt.Errorf("not at rest after %s: %s", most, left)
}

// left says what is still to be done.
func (s *sim) left() string {
	runs, err := s.srv.db.UnfinishedRuns(context.Background())
	if err != nil {
		return err.Error()
	}
	for _, r := range runs {
		for i := range r.Tasks {
			t := &r.Tasks[i]
			switch {
			case t.State == pipeline.InDoubt || t.State.Terminal():
			case t.State == pipeline.Pending && r.State == pipeline.InDoubt: // waits for a person
			case t.State == pipeline.Pending && len(r.Behind) > 0: // behind one that does
			default:
				return fmt.Sprintf("run %s of %s: %s is %s: %s", r.ID, r.Composition, t.Name, t.State, t.Reason)
			}
		}
	}
	for _, n := range s.nodes {
		if held := n.agent.Held(); len(held) > 0 {
			return fmt.Sprintf("agent %d holds %+v", n.i, held)
		}
	}
	due, err := s.srv.db.Register("").DueStatuses(context.Background(), time.Now().Add(24*time.Hour), 10)
	if err != nil || len(due) > 0 {
		return fmt.Sprintf("due statuses: %+v, %v", due, err)
	}
	return ""
}

// end stops everything.
func (s *sim) end() {
	s.later.Wait()
	s.net.cutServer(nil)
	for _, n := range s.nodes {
		s.net.cutAgent(n.i, true)
		if n.agent != nil {
			if err := n.agent.Kill(); err != nil {
				s.fail(err)
			}
		}
		n.machine.Close()
	}
	if s.srv != nil {
		if err := s.srv.stop(); err != nil {
			s.fail(err)
		}
	}
}
