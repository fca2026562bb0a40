package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
	"github.com/maestro-cd/maestro/reconciler/internal/place"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

const (
	// maxBatch bounds the events of one transaction: enough that a commit's fsync
	// is shared, few enough that nobody waits long for it.
	maxBatch = 256
	// offerTTL is how long an agent has to answer an offer. It only has to write it down.
	offerTTL = 20 * time.Second
	// StalledAfter is when a silent agent gets no new work. It keeps what it has.
	StalledAfter = 30 * time.Second
	// tickEvery is the pace of everything that depends on time alone.
	tickEvery = time.Second
	// firstPause and lastPause are those after the record could not be written, doubled
	// until it can: each try has every agent connect again.
	firstPause = 100 * time.Millisecond
	lastPause  = 10 * time.Second
)

// Fleet reaches the agents. Send queues a message and reports whether the agent
// is connected; it does not block.
type Fleet interface {
	Send(id pipeline.AgentID, m wire.Message) bool
	// Drop ends the agent's connection; it comes back and tells all that it holds.
	Drop(id pipeline.AgentID, reason string)
}

// Filler computes what refers to params, the event or outputs: fields, conditions
// and the other parts of a composition that a Blank names. What does not fit its
// type is fault.Invalid, with a message for the author.
type Filler interface {
	Fill(ctx context.Context, of *pipeline.Composition, run *pipeline.Run, b pipeline.Blank, outputs map[pipeline.TaskName]json.RawMessage) (json.RawMessage, error)
}

// Secrets reads the values that tasks refer to. One that is missing is
// fault.Invalid; fault.Unavailable means that it is not known yet what is declared.
type Secrets interface {
	Secret(name pipeline.SecretName) (string, error)
}

// Logs tells how much of an attempt's log is on disk, and closes it.
type Logs interface {
	Received(ctx context.Context, id pipeline.AttemptID) (int64, error)
	Seal(ctx context.Context, id pipeline.AttemptID, length int64) error
}

// Config of Runs. All fields but Live, Sources and URL are required.
type Config struct {
	DB      *store.DB
	Logs    Logs
	Fleet   Fleet
	Filler  Filler
	Secrets Secrets
	Log     *slog.Logger
	// Live returns the configuration in force, nil while that is not known; without it
	// runs are placed as they were planned.
	Live func() *pipeline.Config
	// Law returns the policy in force, fault.Unavailable while that is not known.
	Law func() (*pipeline.Policy, error)
	// Hold says why nothing may be given to agents, "" when it may; nil never holds. It is
	// asked at each placement and must not block.
	Hold func() string
	// Default is the branch whose runs may have secrets.
	Default pipeline.Ref
	// Repo is the ops repository as tasks see it: a path or URL without credentials.
	Repo string
	// URL of the web view for links in statuses; "" leaves them out.
	URL string
	// Proposals: branches are looked at for what they propose, and their heads are
	// pending until then.
	Proposals bool
	// StatusesChanged is called after a commit that changed what the forge should show.
	StatusesChanged func()
}

// Runs drives the unfinished runs. All of its state belongs to the goroutine in
// Run; other goroutines reach it through the methods, which queue.
type Runs struct {
	cfg    Config
	in     chan message
	filled chan filled
	done   chan struct{}  // closed when Run has returned
	work   sync.WaitGroup // of the goroutines that compute values and seal logs

	beatsMu sync.Mutex
	beats   map[pipeline.AgentID]time.Time // guarded by beatsMu; see hear

	// Owned by Run.
	active   map[pipeline.RunID]*activeRun
	order    []pipeline.RunID                      // of active, oldest first
	attempts map[pipeline.AttemptID]pipeline.RunID // of the open attempts
	agents   map[pipeline.AgentID]*agent
	commits  map[pipeline.Head]*commitFacts
	filling  map[fieldKey]bool
	fields   map[fieldKey]json.RawMessage
	waits    map[fieldKey]bool // tasks that wait for a run
	// inquiries are computations under way, and those to be tried again.
	inquiries map[blankKey]inquiry
	next      []message // that follow from the last write
	fresh     bool      // reloaded, and not looked at whole since
	notes     *notes    // any goroutine may ask it
	refusals  map[fieldKey]map[pipeline.AgentID]refusal
	gos       map[pipeline.AttemptID]bool // accepted attempts whose go waits for secrets
	again     []message                   // to be looked at once more, after a failed write
	failures  int                         // of writes, since the last good one
	reloads   int                         // counts reloads, to tell the fields computed before one
	assigned  int64                       // counts assignments, to find the agent that rested longest
	// served is when each share of the queue last had a task offered, usual how long
	// tasks take. Both are forgotten by a restart, and come back.
	served map[place.Share]time.Time
	force  force
	usual  map[usualKey]time.Duration
}

// activeRun is an unfinished run with its open attempts.
type activeRun struct {
	run  *pipeline.Run
	of   *pipeline.Composition
	open engine.Open

	description description
	placed      placed
}

// agent is what is known of an agent now; the record has the rest.
type agent struct {
	pipeline.Agent
	facts     any
	connected bool
	renewedAt time.Time // monotonic; a fresh start counts as a renewal
	warm      map[pipeline.CompositionName]bool
	load      int64
}

// stalled reports whether the agent has been silent for so long that it gets no new work.
func (a *agent) stalled(now time.Time) bool { return now.Sub(a.renewedAt) >= StalledAfter }

// usualKey names a task of a composition, whatever its text.
type usualKey struct {
	composition pipeline.CompositionName
	task        pipeline.TaskName
}

type fieldKey struct {
	run  pipeline.RunID
	task pipeline.TaskName
}

// message is one thing that Run has to look at.
type message struct {
	added        []*pipeline.Run
	of           []*pipeline.Composition // of the added runs
	commit       pipeline.Head           // of the added runs
	connected    *connected
	disconnected pipeline.AgentID
	from         pipeline.AgentID
	wire         wire.Message
	asked        *asked
	pause        *pausing
	filled       *filled
	answered     *answer
	restate      pipeline.Head
	review       *gateReview
	ask          func()
	tick         bool
}

type connected struct {
	agent pipeline.Agent
	held  []wire.Held
}

type filled struct {
	key    fieldKey
	reload int // see Runs.reloads
	fields json.RawMessage
	err    error
}

// asked is what a person asks of a run. It is asked again until it is in the record.
type asked struct {
	run   pipeline.RunID
	event engine.Event
}

// New returns Runs; nothing happens before Run.
func New(cfg Config) *Runs {
	return &Runs{
		cfg: cfg, in: make(chan message, 4096), filled: make(chan filled, 64), done: make(chan struct{}),
		active:   map[pipeline.RunID]*activeRun{},
		attempts: map[pipeline.AttemptID]pipeline.RunID{},
		agents:   map[pipeline.AgentID]*agent{},
		commits:  map[pipeline.Head]*commitFacts{},
		filling:  map[fieldKey]bool{},
		fields:   map[fieldKey]json.RawMessage{},
		waits:    map[fieldKey]bool{}, inquiries: map[blankKey]inquiry{},
		notes:    newNotes(),
		refusals: map[fieldKey]map[pipeline.AgentID]refusal{},
		gos:      map[pipeline.AttemptID]bool{},
		served:   map[place.Share]time.Time{}, beats: map[pipeline.AgentID]time.Time{}, usual: map[usualKey]time.Duration{},
	}
}

// Run recovers the unfinished runs from the record and drives them until ctx ends.
// It returns nil then, and an error only when the record cannot be read at the start.
func (l *Runs) Run(ctx context.Context) error {
	defer close(l.done)
	if err := l.reload(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer l.work.Wait()
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	l.process(ctx, []message{{tick: true}})
	for {
		var batch []message
		select {
		case <-ctx.Done():
			return nil
		case m := <-l.in:
			batch = l.drain(m)
		case f := <-l.filled:
			batch = l.drain(message{filled: &f})
		case <-tick.C:
			batch = []message{{tick: true}}
		}
		l.process(ctx, batch)
	}
}

// drain takes what has queued up behind the first message, so that one
// transaction serves all of it.
func (l *Runs) drain(first message) []message {
	batch := []message{first}
	for len(batch) < maxBatch {
		select {
		case m := <-l.in:
			batch = append(batch, m)
		default:
			return batch
		}
	}
	return batch
}

// reload makes memory equal to the record: at the start, and after a write whose
// outcome is unknown.
func (l *Runs) reload(ctx context.Context) error {
	runs, err := l.cfg.DB.UnfinishedRuns(ctx)
	if err != nil {
		return fmt.Errorf("read unfinished runs: %w", err)
	}
	attempts, err := l.cfg.DB.UnfinishedAttempts(ctx)
	if err != nil {
		return fmt.Errorf("read unfinished attempts: %w", err)
	}
	agents, err := l.cfg.DB.Agents(ctx)
	if err != nil {
		return fmt.Errorf("read agents: %w", err)
	}
	l.reloads++
	l.active, l.order = make(map[pipeline.RunID]*activeRun, len(runs)), nil
	// Fields were computed from outputs that may not be in the record.
	l.fields, l.filling = map[fieldKey]json.RawMessage{}, map[fieldKey]bool{}
	l.waits, l.inquiries, l.next, l.fresh = map[fieldKey]bool{}, map[blankKey]inquiry{}, nil, true
	l.gos = map[pipeline.AttemptID]bool{}
	l.attempts = map[pipeline.AttemptID]pipeline.RunID{}
	l.commits = map[pipeline.Head]*commitFacts{}
	for _, r := range runs {
		c, err := l.cfg.DB.Composition(ctx, r.Digest)
		if err != nil {
			return err
		}
		l.enlist(r, c)
	}
	for _, a := range attempts {
		if ar := l.active[a.Run]; ar != nil {
			ar.open[a.ID] = a
			l.attempts[a.ID] = a.Run
		}
	}
	for _, a := range agents {
		l.know(a)
	}
	for _, r := range runs {
		if l.commits[r.Head()] == nil {
			if err := l.loadCommit(ctx, r.Head()); err != nil {
				return err
			}
		}
	}
	l.cfg.Log.Info("runs recovered", "runs", len(runs), "attempts", len(attempts), "agents", len(agents))
	return nil
}

// know adds an agent, or brings what is known of it up to date.
func (l *Runs) know(a pipeline.Agent) *agent {
	k := l.agents[a.ID]
	if k == nil {
		// A silent agent's leases start afresh with us: expiring late is always safe.
		k = &agent{warm: map[pipeline.CompositionName]bool{}, renewedAt: time.Now()}
		l.agents[a.ID] = k
	}
	k.Agent = a
	if a.Warm != nil {
		k.warm = make(map[pipeline.CompositionName]bool, len(a.Warm))
		for _, name := range a.Warm {
			k.warm[name] = true
		}
	}
	if v, err := pipeline.DecodeJSON(a.Facts); err == nil {
		k.facts = v
	}
	return k
}

func (l *Runs) look(ctx context.Context, p *pass, m message) {
	_, note := m.wire.(*wire.Note)
	p.placing = p.placing || m.ask == nil && !note
	switch {
	case m.added != nil:
		l.add(ctx, p, m)
	case m.connected != nil:
		l.agentConnected(ctx, p, m.connected)
	case m.disconnected != "":
		l.agentDisconnected(ctx, p, m.disconnected)
	case m.wire != nil:
		l.agentSays(ctx, p, m.from, m.wire)
	case m.pause != nil:
		l.setPause(p, m.pause)
	case m.asked != nil:
		l.doAsked(p, m.asked)
	case m.filled != nil:
		l.took(p, *m.filled)
	case m.answered != nil:
		l.answered(p, m.answered)
	case m.review != nil:
		l.apply(p, m.review.run, m.review.event)
	case m.restate.Commit != "":
		l.restated(ctx, p, m.restate)
	case m.ask != nil:
		m.ask()
	case m.tick:
		l.tick(p)
	}
}

func (l *Runs) add(ctx context.Context, p *pass, m message) {
	for i, r := range m.added {
		if l.active[r.ID] == nil && !r.State.Terminal() {
			l.enlist(r, m.of[i])
			l.follow(r)
			l.arrived(p, r)
		}
	}
	if err := l.loadCommit(ctx, m.commit); err != nil {
		p.failed = err
	}
}

// finished forgets a run that has ended, and tells its agents that its workspaces are free.
func (l *Runs) finished(p *pass, r *pipeline.Run) {
	l.delist(r.ID)
	maps.DeleteFunc(l.inquiries, func(k blankKey, _ inquiry) bool { return k.run == r.ID })
	l.notes.forget(r.ID)
	told := map[pipeline.AgentID]bool{}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		delete(l.fields, fieldKey{r.ID, t.Name})
		delete(l.waits, fieldKey{r.ID, t.Name})
		delete(l.refusals, fieldKey{r.ID, t.Name})
		if t.Agent != "" && !told[t.Agent] {
			told[t.Agent] = true
			l.tell(p, t.Agent, &wire.Forget{Runs: []pipeline.RunID{r.ID}})
		}
	}
	p.after = append(p.after, func(context.Context) {
		l.cfg.Log.Info("run ended", "run_id", r.ID, "composition", r.Composition, "number", r.Number, "state", r.State, "reason", r.Reason)
	})
}
