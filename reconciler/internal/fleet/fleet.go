// Package fleet is the control plane's side of the agents' connections: it
// enrols agents, knows who is who, keeps one session for each, and passes on what
// they say. It decides nothing about runs and stores nothing; the control loop
// does both, behind the interfaces that Config names.
//
// What it guarantees to the loop: the agent named in an event is the one whose
// key opened the session; events of one agent come one at a time and in order,
// Connected before all others and Disconnected last; of two sessions of one agent
// only the newer lives, and the older one's Disconnected comes first. What it
// does not know is whether an agent may speak about an attempt: the loop compares
// tokens. Only log bytes are matched here, with the attempts that the loop told
// this session to run.
package fleet

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
)

// Registry knows which agents exist. Its methods are called from many goroutines.
type Registry interface {
	// Enrol uses up the one-time token and records a, whose ID, Name and PublicKey
	// are filled in, and returns it with the pool and trust of the token. A token
	// enrols once, whoever asks: an agent that never saw the answer finds itself
	// enrolled when it connects. A key that was revoked stays so. Refusals are
	// fault.NotFound, Conflict or Invalid, with a sentence that the agent is shown.
	Enrol(ctx context.Context, tokenHash [32]byte, a pipeline.Agent, now time.Time) (pipeline.Agent, error)
	// Agent returns an agent, its PublicKey and Revoked included, or fault.NotFound.
	Agent(ctx context.Context, id pipeline.AgentID) (pipeline.Agent, error)
	// Admitted tells of each agent that ever enrolled whether it may connect: those
	// that were revoked may not.
	Admitted(ctx context.Context) (map[pipeline.AgentID]bool, error)
	// TouchAgents records when agents were last heard of.
	TouchAgents(ctx context.Context, seen map[pipeline.AgentID]time.Time) error
}

// Events is told what agents do. It is called from the session's goroutine, which
// reads nothing more until the call returns, and may call back into the Fleet.
type Events interface {
	// Connected: a has Facts, Build and Name as it just reported them. For each
	// attempt in held the loop now sends what the record says.
	Connected(a pipeline.Agent, held []wire.Held)
	Disconnected(id pipeline.AgentID)
	// Renewed: a heartbeat was received. It is acknowledged after Renewed returns.
	Renewed(id pipeline.AgentID)
	// Message is one of Accept, Decline, Started, Note, Result, Facts.
	Message(id pipeline.AgentID, m wire.Message)
}

// Logs takes log bytes. They need not be durable when Append returns; whoever
// makes them so calls Fleet.LogDurable. Append owns data. After an error the
// agent is asked to send again from what is durable.
type Logs interface {
	Append(attempt pipeline.AttemptID, off int64, data []byte) error
}

// Bundles serves what agents download. Both return fault.NotFound for what the
// control plane does not offer.
type Bundles interface {
	// Plugin writes the folder with that tree digest ("git:…") as a tar stream.
	Plugin(ctx context.Context, tree pipeline.Digest, w io.Writer) error
	// Archive opens a file by its SHA-256 in hexadecimal.
	Archive(ctx context.Context, sha256 string) (io.ReadCloser, error)
}

// Config is what a Fleet needs; every field without a default is required.
type Config struct {
	Server string // identity of the record
	// Reached tells how far the record is, for agents to remember. It must not block.
	Reached func() (incarnation int64, seq pipeline.Seq)
	// Admit is asked before an agent is let in, with how far it knows the record to have
	// been; a sentence keeps it out for now. Nil lets everybody in.
	Admit    func(a pipeline.Agent, seen wire.Seen) string
	Log      *slog.Logger
	Registry Registry
	Events   Events
	Logs     Logs
	Bundles  Bundles
	// Heartbeat is how often agents beat, 5 s when zero. Sightings are recorded and
	// revocations looked for at the same interval.
	Heartbeat time.Duration
}

// Fleet is the set of connected agents. Make one with New and release it with Close.
type Fleet struct {
	cfg        Config
	handshakes *slots
	enrols     *limiter
	// life ends with Close; it bounds every session.
	life   context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // handlers of connections, and the sweep
	sweeps sync.Once

	mu sync.Mutex
	// closed: no handler may begin.
	closed bool
	// sessions has the newest session of each agent, which may not be live yet.
	sessions map[pipeline.AgentID]*session
	streams  map[pipeline.AttemptID]*stream
	fetchers map[[32]byte]*session // by the hash of their fetch token
	seen     map[pipeline.AgentID]time.Time
	// sweepsDone counts the sweeps, see sightingsLocked.
	sweepsDone int
}

const defaultHeartbeat = 5 * time.Second

// New returns a Fleet without agents. It does no I/O and starts nothing.
func New(cfg Config) *Fleet {
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat = defaultHeartbeat
	}
	if cfg.Admit == nil {
		cfg.Admit = func(pipeline.Agent, wire.Seen) string { return "" }
	}
	life, cancel := context.WithCancel(context.Background())
	return &Fleet{
		cfg: cfg, life: life, cancel: cancel,
		handshakes: newSlots(mostHandshakes, mostHandshakesPerAddress),
		enrols:     newLimiter(enrolRate, enrolBurst),
		sessions:   map[pipeline.AgentID]*session{},
		streams:    map[pipeline.AttemptID]*stream{},
		fetchers:   map[[32]byte]*session{},
		seen:       map[pipeline.AgentID]time.Time{},
	}
}

// Handler serves the agents' paths and answers 404 to all others. The server it
// is mounted in sets ReadHeaderTimeout; nothing in front of it may clean paths.
func (f *Fleet) Handler() http.Handler { return http.HandlerFunc(f.route) }

// Send queues m for an agent. It does not block, and is false when the agent is
// not connected or does not read; then its session ends, and the next one starts
// with Connected. Go, and a LogAck in answer to what an agent holds, let the
// agent stream the log of that attempt.
func (f *Fleet) Send(id pipeline.AgentID, m wire.Message) bool {
	f.mu.Lock()
	s := f.sessions[id]
	if s == nil || !s.live {
		f.mu.Unlock()
		return false
	}
	f.followLocked(s, m)
	f.mu.Unlock()
	if err := s.conn.TrySend(m); err != nil {
		s.log.Warn("message not sent", "err", err)
		return false
	}
	return true
}

// Drop ends an agent's session, if it has one. It comes back and tells all that it
// holds, which is how both sides agree again after a doubt.
func (f *Fleet) Drop(id pipeline.AgentID, reason string) {
	f.mu.Lock()
	s := f.sessions[id]
	f.mu.Unlock()
	if s != nil {
		s.end(wsconn.CodeGoingAway, reason)
	}
}

// Online lists the agents with a live session, sorted.
func (f *Fleet) Online() []pipeline.AgentID {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := make([]pipeline.AgentID, 0, len(f.sessions))
	for id, s := range f.sessions {
		if s.live {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Close ends all sessions, after what is queued for them, and waits for their
// goroutines; requests from then on get 503. It returns early with the cause when
// ctx ends. Agents take it for a restart and come back.
func (f *Fleet) Close(ctx context.Context) error {
	f.mu.Lock()
	f.closed = true
	for _, s := range f.sessions {
		s.conn.Close(wsconn.CodeGoingAway, "the server stops")
	}
	f.mu.Unlock()
	f.cancel()
	done := make(chan struct{})
	go func() { // ends with the last handler, each of which ends with life
		f.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// begin counts a handler in, false after Close.
func (f *Fleet) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.wg.Add(1)
	return true
}

// startSweep runs the sweep from the first session until Close.
func (f *Fleet) startSweep() {
	f.sweeps.Do(func() {
		f.wg.Go(func() {
			tick := time.NewTicker(f.cfg.Heartbeat)
			defer tick.Stop()
			for {
				select {
				case <-f.life.Done():
					return
				case <-tick.C:
					f.sweep()
				}
			}
		})
	})
}
