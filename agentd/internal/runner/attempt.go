package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/journal"
	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/agentd/internal/workspace"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// Phases of an attempt's life besides the three that wire names.
const (
	phaseOffered = "offered" // not answered; Held does not list it
	phaseGone    = "gone"    // acknowledged or fenced off; only the files are left
)

const (
	// A log that grows is looked at every 20 ms, one that rests every 40 ms: a line
	// is on its way in less than 50 ms, and a hundred quiet tasks cost nothing.
	lookOften  = 20 * time.Millisecond
	lookSeldom = 40 * time.Millisecond
	// tellAgain repeats a result that nobody answers. The answer travels on the
	// same connection, so this is for a control plane that dropped it.
	tellAgain = 30 * time.Second
	// mostStarts bounds the shims of one attempt. One that was killed before it was
	// told anything is replaced; an agent on which that keeps happening is ill.
	mostStarts = 4
)

// attempt is one assignment of a task to this agent.
type attempt struct {
	// Immutable.
	r       *Runner
	id      pipeline.AttemptID
	token   pipeline.Token
	spec    wire.Spec
	dir     string // the agent's files of it
	scratch string // the task's files of it
	revived bool   // it was acknowledged before; its files are gone

	gos      chan map[string]wire.Redacted // go was said; room for one
	stopped  chan struct{}                 // closed when it was cancelled or fenced off
	over     chan struct{}                 // closed when live returns
	news     chan struct{}                 // something for deliver; room for one
	shipNews chan struct{}                 // something for ship; room for one

	// Owned by live.
	handle  Shim
	release func() // gives back the workspace
	events  eventTail
	adopted bool // started by an agentd before this one
	starts  int  // shims that this agentd started

	mu        sync.Mutex
	phase     string
	link      Link
	startedAt time.Time
	process   shim.Process
	reason    string // why it was stopped; "" when it was not
	disowned  bool   // fenced off
	acked     bool
	ackedBy   int64 // incarnation of the record
	result    *pipeline.Result
	told      bool // the result was sent over this link, and its log before
	asked     bool // the control plane has asked for it over this link
	log       shipment
	note      wire.Note // what the task last said it waits for, and how far it is
}

func newAttempt(r *Runner, id pipeline.AttemptID, token pipeline.Token, spec wire.Spec) *attempt {
	return &attempt{
		r: r, id: id, token: token, spec: spec,
		dir:     filepath.Join(r.cfg.Dir, "attempts", string(id)),
		scratch: filepath.Join(r.cfg.Dir, "scratch", string(id)),
		gos:     make(chan map[string]wire.Redacted, 1),
		stopped: make(chan struct{}), over: make(chan struct{}),
		news: make(chan struct{}, 1), shipNews: make(chan struct{}, 1),
		phase: phaseOffered,
	}
}

// restore puts the attempt where the journal says it was. It is called before live.
func (a *attempt) restore(e journal.Entry) {
	a.adopted = true
	switch {
	case e.Result != nil:
		a.phase, a.result = wire.HeldEnded, e.Result
	case !e.StartedAt.IsZero() && e.Process != nil:
		a.phase, a.startedAt = wire.HeldRunning, e.StartedAt
		a.process = shim.Process{PID: e.Process.PID, Start: e.Process.Start, Boot: e.Process.Boot}
		if a.neverTold() && !a.r.cfg.Machine.Alive(a.process) {
			a.phase = wire.HeldAccepted
			break
		}
		// The workspace is in use, and must not be taken for one that nobody needs.
		_, release, err := a.r.workspaces.Acquire(a.workspaceKey(), a.spec.Run)
		if err != nil {
			a.r.cfg.Log.Error("workspace of a running task not held", "attempt_id", a.id, "err", err)
		}
		a.release = release
	default:
		a.phase = wire.HeldAccepted
	}
	if e.Fenced {
		a.stop("fenced off before the agent was restarted", true, 0)
	}
}

// neverTold reports that the shim certainly was not told what to run.
func (a *attempt) neverTold() bool { return a.r.cfg.Machine.SameBoot(a.process) && !shim.Told(a.dir) }

// live leads the attempt through its life and returns when that is over, or when
// the agent ends; then the journal tells the next agentd where to go on.
func (a *attempt) live() {
	if a.at() == phaseOffered {
		if reason := a.admit(); reason != "" {
			a.r.cfg.Log.Warn("offer declined", "attempt_id", a.id, "reason", reason)
			a.r.left(a)
			a.r.send(&wire.Decline{Attempt: a.id, Token: a.token, Reason: reason})
			return
		}
		a.move(wire.HeldAccepted)
		a.r.send(&wire.Accept{Attempt: a.id, Token: a.token})
	}
	var shipper sync.WaitGroup
	shipper.Go(a.ship) // ends when over is closed, or with the agent
	defer shipper.Wait()
	defer close(a.over)
	for goOn := true; goOn; {
		switch a.at() {
		case wire.HeldAccepted:
			goOn = a.begin()
		case wire.HeldRunning:
			goOn = a.watch()
		case wire.HeldEnded:
			goOn = a.deliver()
		default:
			a.bury()
			goOn = false
		}
	}
}

func (a *attempt) at() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.phase
}

func (a *attempt) move(phase string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.phase = phase
}

// held is the phase as Held tells it; "" for what is not held.
func (a *attempt) held() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.disowned || a.phase == phaseOffered || a.phase == phaseGone {
		return ""
	}
	return a.phase
}

// fetched is a plugin that is ready, or why it is not.
type fetched struct {
	dir  string
	argv []string
	err  error
}

// begin waits for go, with the plugin being fetched meanwhile, and starts the task.
// It reports false when the agent ends.
func (a *attempt) begin() bool {
	ctx, cancel := context.WithCancel(a.r.life)
	var fetcher sync.WaitGroup
	ready := make(chan fetched, 1)
	fetcher.Go(func() { ready <- a.fetch(ctx) })
	defer fetcher.Wait()
	defer cancel()

	var secrets map[string]wire.Redacted
	select {
	case secrets = <-a.gos:
	case <-a.stopped:
		a.withdraw()
		return true
	case <-ctx.Done():
		return false
	}
	var plugin fetched
	select {
	case plugin = <-ready:
	case <-a.stopped:
		a.withdraw()
		return true
	case <-ctx.Done():
		return false
	}
	if a.isStopped() { // it may have come together with go
		a.withdraw()
		return true
	}
	if a.spec.Effect != pipeline.Once && a.r.cfg.Machine.Now() >= a.r.deadline(&a.spec) {
		// It was a long time on its way: another agent may have the task by now.
		a.end(lost("leave to start came after the time at which the task was to be given up"))
		return true
	}
	err := plugin.err
	if err == nil {
		if err = a.launch(plugin, secrets); fault.Is(err, fault.Unavailable) && a.startAgain() {
			return true
		}
	}
	if err != nil {
		// The agent's end looks like a failed fetch; the next agentd begins anew.
		if ctx.Err() != nil {
			return false
		}
		a.end(pipeline.Result{Outcome: pipeline.Error, Reason: err.Error()})
	}
	return true
}

// startAgain asks for another go, for an attempt of which certainly nothing has
// started. It reports false when that was tried often enough.
func (a *attempt) startAgain() bool {
	if a.starts >= mostStarts {
		return false
	}
	a.move(wire.HeldAccepted)
	a.r.send(&wire.Accept{Attempt: a.id, Token: a.token})
	return true
}

// withdraw ends an attempt that was stopped before it started.
func (a *attempt) withdraw() {
	a.mu.Lock()
	reason := a.reason
	a.mu.Unlock()
	a.end(pipeline.Result{Outcome: pipeline.Cancelled, Reason: reason})
}

// launch starts the task under a shim. After an error nothing of it runs.
func (a *attempt) launch(plugin fetched, secrets map[string]wire.Redacted) error {
	cfg, err := a.prepare(plugin, secrets)
	if err != nil {
		return err
	}
	a.starts++
	h, process, err := a.r.cfg.Machine.Spawn(a.r.cfg.Shim, a.dir)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	err = a.r.journal.Promise(journal.Record{
		Kind: journal.Started, Attempt: a.id, Token: a.token, At: now,
		Process: &journal.Process{PID: process.PID, Start: process.Start, Boot: process.Boot},
	})
	if err != nil {
		return errors.Join(err, h.Abandon())
	}
	if err := h.Give(cfg); err != nil {
		return err
	}
	a.handle = h
	a.mu.Lock()
	a.phase, a.startedAt, a.process = wire.HeldRunning, now, process
	a.mu.Unlock()
	a.r.cfg.Log.Info("task started", "attempt_id", a.id, "run_id", a.spec.Run, "task", a.spec.Task, "pid", process.PID)
	a.r.send(&wire.Started{Attempt: a.id, Token: a.token, At: now})
	return nil
}

// watch follows the task to its end, or to the agent's.
func (a *attempt) watch() bool {
	if a.handle == nil {
		a.handle = a.r.cfg.Machine.Attach(a.dir, a.process)
	}
	defer func() {
		a.handle.Release()
		a.handle = nil
	}()
	look := time.NewTimer(0)
	defer look.Stop()
	stopped := a.stopped
	for {
		select {
		case <-a.handle.Done():
			a.observe()
			a.conclude()
			return true
		case <-a.r.life.Done():
			return false
		case <-stopped:
			stopped = nil
			a.mu.Lock()
			reason := a.reason
			a.mu.Unlock()
			if err := a.handle.Cancel(reason); err != nil {
				a.r.cfg.Log.Error("task not cancelled in good order", "attempt_id", a.id, "err", err)
			}
		case <-look.C:
			wait := lookSeldom
			if a.observe() {
				wait = lookOften
			}
			look.Reset(wait)
		}
	}
}

// observe looks how long the log is and what the task reported, and reports
// whether there was anything.
func (a *attempt) observe() bool {
	grew := false
	if fi, err := os.Stat(filepath.Join(a.dir, shim.LogFile)); err == nil {
		a.mu.Lock()
		grew = fi.Size() > a.log.size
		a.log.size = max(a.log.size, fi.Size())
		a.mu.Unlock()
		if grew {
			poke(a.shipNews)
		}
	}
	if note, ok := a.events.read(filepath.Join(a.dir, shim.EventsFile)); ok {
		a.tellNote(note)
	}
	return grew
}

// conclude finds out how the attempt ended, now that its shim is gone.
func (a *attempt) conclude() {
	if a.release != nil {
		a.release()
		a.release = nil
	}
	sr, err := shim.ReadResult(a.dir)
	switch {
	case err != nil:
		a.end(lost(fmt.Sprintf("the result of the task cannot be read: %v", err)))
	case sr != nil:
		a.end(judge(sr, filepath.Join(a.dir, shim.OutputsFile), &a.spec))
	case a.neverTold() && a.isStopped():
		a.withdraw()
	case a.neverTold() && (a.adopted || shim.Complaint(a.dir) == "") && a.startAgain():
		// The agentd before us ended before it could tell the shim what to run, or
		// somebody killed the shim before it knew.
		a.adopted = false
	case a.neverTold():
		a.end(pipeline.Result{Outcome: pipeline.Error, Reason: "the task was not started: " + cmp.Or(shim.Complaint(a.dir), "its shim ended at once")})
	default:
		if !a.sweep() {
			return
		}
		why := "the process that watches over the task was killed"
		if !a.r.cfg.Machine.SameBoot(a.process) {
			why = "the agent's machine was restarted"
		}
		if c := shim.Complaint(a.dir); c != "" {
			why += ": " + c
		}
		a.end(lost(why))
	}
}

func (a *attempt) isStopped() bool {
	select {
	case <-a.stopped:
		return true
	default:
		return false
	}
}

// sweep kills what a killed shim has left. It must be gone before anybody is told,
// because another agent may start the task then. It reports false when the agent ends.
func (a *attempt) sweep() bool {
	for {
		err := a.r.cfg.Machine.Sweep(a.id)
		if err == nil {
			return true
		}
		a.r.cfg.Log.Error("task outlives its shim", "attempt_id", a.id, "err", err)
		select {
		case <-time.After(time.Second):
		case <-a.r.life.Done():
			return false
		}
	}
}

func lost(reason string) pipeline.Result {
	return pipeline.Result{Outcome: pipeline.Error, Reason: reason, Lost: true}
}

// end records how the attempt ended. Nothing of it runs any more.
func (a *attempt) end(res pipeline.Result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.disowned {
		a.phase = phaseGone
		return
	}
	if _, err := wire.Encode(&wire.Result{Attempt: a.id, Token: a.token, Result: res}); err != nil {
		res.Outcome, res.Reason = pipeline.Error, fmt.Sprintf("what the task reported does not fit into a message: %v", err)
		res.Outputs, res.Records, res.Links = nil, nil, nil
	}
	res.LogBytes = max(res.LogBytes, a.log.size)
	a.result, a.phase = &res, wire.HeldEnded
	// A note, not a promise: what it says can be found again in the shim's files,
	// and an attempt that never started ends the same way when it is tried again.
	err := a.r.journal.Note(journal.Record{Kind: journal.Ended, Attempt: a.id, Token: a.token, Result: &res})
	if err != nil {
		a.r.cfg.Log.Warn("end not noted", "attempt_id", a.id, "err", err)
	}
	a.r.cfg.Log.Info("task ended", "attempt_id", a.id, "run_id", a.spec.Run, "task", a.spec.Task,
		"outcome", res.Outcome, "reason", res.Reason)
}

// deliver tells the result until it is acknowledged. It reports false when the
// agent ends.
func (a *attempt) deliver() bool {
	a.observe()
	again := time.NewTicker(tellAgain)
	defer again.Stop()
	for {
		res, done := a.toTell()
		if done {
			a.move(phaseGone)
			return true
		}
		if res != nil {
			a.r.send(&wire.Result{Attempt: a.id, Token: a.token, Result: *res})
		}
		select {
		case <-a.news:
		case <-again.C:
			a.repeat()
		case <-a.r.life.Done():
			return false
		}
	}
}

// toTell returns the result when it is time to send it, and whether nobody wants
// it any more.
func (a *attempt) toTell() (res *pipeline.Result, done bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.acked || a.disowned {
		return nil, true
	}
	if a.told || a.link == nil || a.log.acked < a.result.LogBytes {
		return nil, false
	}
	if a.revived && !a.asked { // most are of no use to anybody, and it may be another server
		return nil, false
	}
	a.told = true
	out := *a.result
	// After a power cut the control plane may have more of the log than we do.
	out.LogBytes = a.log.acked
	return &out, false
}

// bury removes what is left of the attempt.
func (a *attempt) bury() {
	err := a.r.journal.Note(journal.Record{
		Kind: journal.Acked, Attempt: a.id, Token: a.token, At: time.Now().UTC(), Incarnation: a.settledBy(),
	})
	if err != nil {
		// The next agentd sends the result again, and is told again to forget it.
		a.r.cfg.Log.Warn("acknowledgement not noted", "attempt_id", a.id, "err", err)
	}
	if err := errors.Join(workspace.RemoveAll(a.dir), workspace.RemoveAll(a.scratch)); err != nil {
		// The next agentd tries again.
		a.r.cfg.Log.Error("files of attempt not removed", "attempt_id", a.id, "err", err)
	}
	a.r.left(a)
}

// settledBy is the incarnation of the record that wants no more of the attempt.
func (a *attempt) settledBy() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ackedBy
}

// renew rewrites the lease of a task that stops when nothing is heard.
func (a *attempt) renew() error {
	if a.at() != wire.HeldRunning || a.spec.Effect == pipeline.Once {
		return nil
	}
	err := shim.WriteLease(a.dir, a.r.deadline(&a.spec))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has just ended
	}
	return err
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
