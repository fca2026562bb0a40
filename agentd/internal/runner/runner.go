// Package runner takes a task from its Offer to the acknowledged Result. What it
// promises to the control plane is in the journal first; what runs, runs under a
// shim. So agentd may be killed at any instant: Open finds what was promised and
// goes on with it.
//
// Each attempt has one goroutine that lives its life in order (see attempt.live),
// and one that ships its log. Messages only leave word for them, so that the
// session's reader never waits for a disk or a process. The package knows nothing
// of connections beyond the Link it is handed, and starts nothing without Go.
package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/journal"
	"github.com/maestro-cd/maestro/agentd/internal/workspace"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// Plugins makes programs ready to run.
type Plugins interface {
	// Fetch returns the plugin's folder and the command to run. fault.Unavailable
	// is worth another try.
	Fetch(ctx context.Context, p wire.Plugin) (dir string, argv []string, err error)
}

// Config is what a Runner needs.
type Config struct {
	// Dir is the agent's data directory. One process at a time may use it.
	Dir string
	// Shim is the command line that starts a shim.
	Shim []string
	// Self is the path of the agentd binary, for tasks that call it.
	Self    string
	Plugins Plugins
	// Facts returns what the control plane was last told of this machine, a JSON
	// object, and does not block; nil for none.
	Facts func() json.RawMessage
	Log   *slog.Logger
	// Seats is the most tasks at a time; 0 is no limit.
	Seats int
	// Policy is what this machine's owner allows; the zero value allows everything.
	Policy Policy
	// MinFree is the least free disk space with which a task is accepted; 0 is
	// DefaultMinFree.
	MinFree int64
	// Grace is what a task gets between TERM and KILL; 0 is shim.DefaultGrace.
	Grace time.Duration
	// Keep says which unused workspaces are removed; the zero value is DefaultKeep.
	Keep workspace.Policy
	// Machine is what tasks run on; nil is this one.
	Machine Machine
}

// DefaultMinFree: less than this does not hold a checkout, and the log and the
// result of what runs must fit as well.
const DefaultMinFree = 256 << 20

// DefaultKeep removes workspaces that nobody used for two weeks, and the longest
// unused ones when all together are above 50 GiB.
var DefaultKeep = workspace.Policy{MaxAge: 14 * 24 * time.Hour, MaxBytes: 50 << 30}

// collectEvery is how often unused workspaces are looked for.
const collectEvery = time.Hour

// Link is what a Runner answers over; see wire.Link.
type Link = wire.Link

// Runner runs the attempts of one agent. Its methods may be called from any goroutine.
type Runner struct {
	cfg        Config
	journal    *journal.Journal
	workspaces *workspace.Store
	// life ends when the agent stops; every goroutine of the runner ends with it.
	life context.Context
	die  context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	attempts map[pipeline.AttemptID]*attempt
	link     Link // nil before the first connection
	// incarnation is that of the record at the other end of link.
	incarnation int64
	draining    bool
	heard       time.Duration // last sign of the control plane, on the machine's clock
	changed     chan struct{} // closed and replaced when an attempt has left
}

// Open reads the journal in cfg.Dir and goes on with what it tells: tasks that run
// are watched, results that wait are kept for the next connection. It starts
// goroutines; Run ends them and must be called.
func Open(ctx context.Context, cfg Config) (*Runner, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open runner: %w", err)
	}
	cfg.Dir = dir
	if cfg.MinFree == 0 {
		cfg.MinFree = DefaultMinFree
	}
	if cfg.Keep == (workspace.Policy{}) {
		cfg.Keep = DefaultKeep
	}
	if cfg.Machine == nil {
		cfg.Machine = &thisMachine{}
	}
	r := &Runner{cfg: cfg, attempts: map[pipeline.AttemptID]*attempt{}, changed: make(chan struct{})}
	r.life, r.die = context.WithCancel(context.WithoutCancel(ctx))
	if err := r.open(); err != nil {
		r.die()
		return nil, fmt.Errorf("open runner in %s: %w", dir, err)
	}
	return r, nil
}

func (r *Runner) open() (err error) {
	for _, d := range []string{"attempts", "scratch", "cache"} {
		if err := os.MkdirAll(filepath.Join(r.cfg.Dir, d), 0o700); err != nil {
			return err
		}
	}
	if r.workspaces, err = workspace.Open(filepath.Join(r.cfg.Dir, "work"), r.cfg.Log); err != nil {
		return err
	}
	if r.journal, err = journal.Open(filepath.Join(r.cfg.Dir, "journal"), r.cfg.Log); err != nil {
		return errors.Join(err, r.workspaces.Close())
	}
	known := map[string]bool{}
	for _, e := range r.journal.Entries() {
		if !e.AckedAt.IsZero() {
			continue
		}
		known[string(e.Attempt)] = true
		a := newAttempt(r, e.Attempt, e.Token, e.Spec)
		a.restore(e)
		r.attempts[e.Attempt] = a
		r.cfg.Log.Info("attempt found again", "attempt_id", e.Attempt, "task", e.Spec.Task, "phase", a.phase)
	}
	r.removeStrangers(known)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.attempts {
		r.spawnLocked(a.live)
	}
	return nil
}

// removeStrangers removes directories of attempts that the journal does not know:
// a crash came between the acknowledgement and the removal.
func (r *Runner) removeStrangers(known map[string]bool) {
	for _, d := range []string{"attempts", "scratch"} {
		all, err := os.ReadDir(filepath.Join(r.cfg.Dir, d))
		if err != nil {
			r.cfg.Log.Error("leftovers not listed", "err", err)
		}
		for _, e := range all {
			if known[e.Name()] {
				continue
			}
			if err := workspace.RemoveAll(filepath.Join(r.cfg.Dir, d, e.Name())); err != nil {
				r.cfg.Log.Error("leftover not removed", "err", err)
			}
		}
	}
}

// Run keeps house until ctx ends, then lets go of what runs, which goes on under
// its shims, and returns when all of the runner's goroutines have.
func (r *Runner) Run(ctx context.Context) error {
	t := time.NewTicker(collectEvery)
	defer t.Stop()
	for r.workspaces.Collect(r.cfg.Keep); ; r.workspaces.Collect(r.cfg.Keep) {
		select {
		case <-t.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	r.mu.Lock()
	r.die() // under the lock, so that nothing is started that is not waited for
	r.mu.Unlock()
	r.wg.Wait()
	return errors.Join(r.journal.Close(), r.workspaces.Close())
}

// Stop takes no new offers and waits until nothing is held any more: everything
// has ended and was acknowledged. It returns ctx's error when that ends first;
// offers stay refused.
func (r *Runner) Stop(ctx context.Context) error {
	for {
		r.mu.Lock()
		r.draining = true
		left, changed := len(r.attempts), r.changed
		r.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("drain, %d attempts left: %w", left, context.Cause(ctx))
		}
	}
}

// Held lists what was accepted and not yet acknowledged by that incarnation of the
// record, sorted by attempt. What an earlier one acknowledged may be missing in it, and
// is held again; 0 asks for none of that.
func (r *Runner) Held(incarnation int64) []wire.Held {
	r.revive(incarnation)
	var all []wire.Held
	for _, a := range r.list() {
		if phase := a.held(); phase != "" {
			all = append(all, wire.Held{Attempt: a.id, Token: a.token, Phase: phase})
		}
	}
	return all
}

// mostRevived bounds the results that are held again at a time: they have to fit into
// one message.
const mostRevived = 1000

// revive holds again what an earlier incarnation of the record has acknowledged.
func (r *Runner) revive(incarnation int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.journal.AckedBefore(incarnation, mostRevived) {
		if r.attempts[e.Attempt] == nil {
			r.reviveLocked(e.Attempt, e.Token, e.Result)
		}
	}
	for id, a := range r.attempts {
		if result := a.ackedBefore(incarnation); result != nil { // its files are about to be removed
			r.reviveLocked(id, a.token, result)
		}
	}
}

func (r *Runner) reviveLocked(id pipeline.AttemptID, token pipeline.Token, result *pipeline.Result) {
	r.cfg.Log.Info("result is held again", "attempt_id", id)
	a := newAttempt(r, id, token, wire.Spec{})
	a.revived, a.phase, a.result = true, wire.HeldEnded, result
	r.attempts[id] = a
	r.spawnLocked(a.live)
}

// list returns the attempts, sorted.
func (r *Runner) list() []*attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*attempt, 0, len(r.attempts))
	for _, id := range slices.Sorted(maps.Keys(r.attempts)) {
		all = append(all, r.attempts[id])
	}
	return all
}

func (r *Runner) find(id pipeline.AttemptID) *attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.attempts[id]
}

// Connected goes on over a new link: results that wait are sent again, logs from
// where the control plane says.
func (r *Runner) Connected(link Link, w wire.Welcome, asked time.Time) {
	r.mu.Lock()
	r.link, r.incarnation = link, w.Incarnation
	// The handshake proves contact as a heartbeat does.
	r.heard = max(r.heard, r.cfg.Machine.Heard(asked))
	r.mu.Unlock()
	for _, a := range r.list() {
		a.connected(link)
	}
	r.renew()
}

// Warm lists the compositions that have a workspace, those used last first.
func (r *Runner) Warm() []pipeline.CompositionName { return r.workspaces.Warm(mostWarm) }

// mostWarm bounds what is told of workspaces.
const mostWarm = 200

// Renewed notes that the control plane acknowledged a heartbeat sent at that time.
func (r *Runner) Renewed(at time.Time) {
	r.mu.Lock()
	r.heard = max(r.heard, r.cfg.Machine.Heard(at))
	r.mu.Unlock()
	r.renew()
}

func (r *Runner) renew() {
	for _, a := range r.list() {
		if err := a.renew(); err != nil {
			// The deadline before it stays: stopping too early is the safe side.
			r.cfg.Log.Error("lease not renewed", "attempt_id", a.id, "err", err)
		}
	}
}

// deadline is when a task of that spec has to stop if nothing is heard any more.
func (r *Runner) deadline(spec *wire.Spec) time.Duration {
	// The task must be dead before the control plane may start another, after
	// lostAfter. 30 s: the shim's look, TERM, grace and KILL, and then some.
	const margin = 30 * time.Second
	lostAfter := time.Duration(spec.LostAfter)
	if lostAfter <= 0 {
		lostAfter = pipeline.DefaultLostAfter
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.heard + lostAfter - min(margin, lostAfter/2)
}

// Handle takes a message from the control plane. It returns at once; messages of
// other kinds than the runner's are ignored.
func (r *Runner) Handle(m wire.Message) {
	switch m := m.(type) {
	case *wire.Offer:
		r.offered(m)
	case *wire.Go:
		r.with(m.Attempt, m.Token, "go", func(a *attempt) { a.goAhead(m.Secrets) })
	case *wire.Cancel:
		r.with(m.Attempt, m.Token, "cancel", func(a *attempt) { a.cancel(m.Reason) })
	case *wire.Ack:
		by := r.connectedTo()
		r.with(m.Attempt, m.Token, "ack", func(a *attempt) { a.acknowledged(by) })
	case *wire.Fenced:
		by := r.connectedTo()
		r.with(m.Attempt, m.Token, "fenced", func(a *attempt) { a.fenced(m.Reason, by) })
	case *wire.LogAck:
		r.with(m.Attempt, m.Token, "log_ack", func(a *attempt) { a.logAcked(m.Length, m.Resend) })
	case *wire.Forget:
		r.mu.Lock()
		defer r.mu.Unlock()
		r.spawnLocked(func() { r.workspaces.Forget(m.Runs) }) // emptying a directory takes its time
	}
}

// with calls f with the attempt that a message is about. A message for another
// token, or for what we do not hold, is late or repeated and means nothing.
func (r *Runner) with(id pipeline.AttemptID, token pipeline.Token, kind string, f func(*attempt)) {
	a := r.find(id)
	if a == nil || a.token != token {
		r.cfg.Log.Debug("message for an attempt that is not held", "kind", kind, "attempt_id", id)
		return
	}
	f(a)
}

// connectedTo is the incarnation of the record at the other end.
func (r *Runner) connectedTo() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.incarnation
}

// spawnLocked starts a goroutine that Run waits for, unless the agent has ended.
func (r *Runner) spawnLocked(f func()) {
	if r.life.Err() == nil {
		r.wg.Go(f)
	}
}

// send queues m on the link of the moment. What is lost with a link is sent again
// over the next one, so an error means nothing here.
func (r *Runner) send(m wire.Message) {
	r.mu.Lock()
	link := r.link
	r.mu.Unlock()
	if link == nil {
		return
	}
	if err := link.Send(m); err != nil {
		r.cfg.Log.Debug("not sent", "message", fmt.Sprintf("%T", m), "err", err)
	}
}

// left removes an attempt whose life is over.
func (r *Runner) left(a *attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.attempts[a.id] == a {
		delete(r.attempts, a.id)
	}
	close(r.changed)
	r.changed = make(chan struct{})
}
