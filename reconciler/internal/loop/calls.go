package loop

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// call is a run to be made, and who asked for it.
type call struct {
	caller *pipeline.Run // as it then stood
	engine.Call
}

// made is a run that the pass makes. It becomes active once it is written.
type made struct {
	run *pipeline.Run
	of  *pipeline.Composition
}

// settle carries on with what follows from the events of the pass, until nothing
// does: runs that wait for others, tasks for agents, and runs to be made.
func (l *Runs) settle(ctx context.Context, p *pass) {
	for {
		l.lookForWaits(p)
		l.advance(p)
		if p.placing || len(p.steps) > 0 {
			l.place(ctx, p)
		}
		if !l.make(ctx, p) && !p.line {
			return
		}
	}
}

// make makes the runs that were asked for, as drafts. It reports whether there were any.
func (l *Runs) make(ctx context.Context, p *pass) bool {
	calls := p.calls
	p.calls = nil
	for _, c := range calls {
		of, err := l.cfg.DB.Composition(ctx, c.Digest)
		switch {
		case fault.Is(err, fault.NotFound):
			l.cannotCall(p, c, fmt.Sprintf("%s is not there to be called: it has errors at this commit, or did not exist", c.Composition))
			continue
		case err != nil:
			p.failed = err
			return false
		}
		run, err := makeRun(&plan.Run{Composition: of, Key: plan.Key(c.Event, of, nil, 0), Event: c.Event}, c.caller.Depth+1)
		if err != nil {
			l.cannotCall(p, c, err.Error())
			continue
		}
		p.made = append(p.made, made{run, of})
		if c.Event.Kind == pipeline.EventCall {
			l.apply(p, c.caller.ID, engine.Made{Task: c.Task, Run: run.ID})
		}
	}
	return len(calls) > 0
}

// cannotCall ends the task that called; a failure that nobody can be told of stays one.
func (l *Runs) cannotCall(p *pass, c call, why string) {
	if c.Event.Kind == pipeline.EventCall {
		l.apply(p, c.caller.ID, engine.Unfit{Task: c.Task, Reason: why})
		return
	}
	l.cfg.Log.Error("hook not called", "run_id", c.caller.ID, "task", c.Task, "composition", c.Composition, "reason", why)
}

// verdictOf says in the ledger why a run was made that another one asked for.
func verdictOf(r *pipeline.Run) pipeline.Verdict {
	by := r.Event.Cause
	why := fmt.Sprintf("%s#%d", by.Composition, by.Number)
	if by.Task != "" {
		why += ", task " + string(by.Task)
	}
	if r.Event.Kind == pipeline.EventFailure {
		why += ", failed"
	} else {
		why = "called by " + why
	}
	return pipeline.Verdict{
		Commit: r.Commit, Ref: r.Ref, Composition: r.Composition, Kind: r.Event.Kind,
		Outcome: pipeline.VerdictRun, Sentence: why, Run: r.ID,
	}
}

// activate takes up the runs that the pass has made and written.
func (l *Runs) activate(p *pass) {
	for _, m := range p.made {
		l.next = append(l.next, message{added: []*pipeline.Run{m.run}, of: []*pipeline.Composition{m.of}, commit: m.run.Head()})
	}
}

// newRun makes a run of what was planned. It is a draft when somebody else's end may
// have to come first, when its params are not known, or when it has tasks of the
// control plane or leads to other runs: those are begun by the loop alone.
func newRun(p *plan.Run) (*pipeline.Run, error) { return makeRun(p, 0) }

// makeRun is newRun for a run to which depth calls lead.
func makeRun(p *plan.Run, depth int) (*pipeline.Run, error) {
	r := draftRun(p, depth)
	s, err := engine.Next(r, p.Composition, nil, engine.Created{}, r.CreatedAt)
	if err != nil {
		return nil, fmt.Errorf("make run of %s: %w", r.Composition, err)
	}
	return s.Run, nil
}

// draftRun is a run before anything of it has begun.
func draftRun(p *plan.Run, depth int) *pipeline.Run {
	now := time.Now().UTC()
	c := p.Composition
	r := &pipeline.Run{
		ID: pipeline.RunID(ulid.Make().String()), Key: p.Key, Composition: c.Name, Digest: c.Digest,
		Commit: p.Event.Head, Ref: p.Event.Ref, Event: p.Event, Params: p.Params, Priority: c.Priority, Group: p.Group,
		Depth: depth, State: pipeline.Pending, CreatedAt: now,
	}
	r.Draft = r.Called() || c.Concurrency != nil || c.MaxRunning > 0 || len(calls(c)) > 0 ||
		slices.ContainsFunc(c.Tasks, func(t pipeline.Task) bool { return t.BuiltIn() })
	for i, t := range c.Tasks {
		r.Tasks = append(r.Tasks, pipeline.RunTask{Name: t.Name, Index: i, Spec: t, State: pipeline.Pending})
	}
	if p.Event.Repo != "" {
		r.Commit, r.Ref = p.Event.Config, pipeline.SourceRef(p.Event.Repo, p.Event.Ref)
	}
	return r
}

// arrived tells a caller of its run, which has its number by now, and takes along a
// run whose caller was cancelled before it was there.
func (l *Runs) arrived(p *pass, r *pipeline.Run) {
	if r.Event.Kind != pipeline.EventCall {
		return
	}
	caller := l.active[r.Event.Cause.Run]
	if caller == nil {
		return
	}
	task := r.Event.Cause.Task
	l.apply(p, caller.run.ID, engine.Seen{Task: task, Run: r})
	t := caller.run.Task(task)
	stopped := engine.Stopped(caller.run, t)
	if t.Spec.Call != nil && t.Spec.Call.Join && t.Child == r.ID && (stopped || t.State.Terminal()) && !r.Cancel {
		l.apply(p, r.ID, engine.Cancel{Reason: "its caller was cancelled: " + cmp.Or(t.Cancel, caller.run.Reason)})
	}
}

// reportEnd tells those who wait for the run that it has ended.
func (l *Runs) reportEnd(p *pass, r *pipeline.Run) {
	if r.Event.Kind == pipeline.EventCall {
		l.apply(p, r.Event.Cause.Run, engine.Seen{Task: r.Event.Cause.Task, Run: r})
	}
	for key := range l.waits {
		ar := l.active[key.run]
		if ar == nil {
			continue
		}
		t := ar.run.Task(key.task)
		if w := t.Spec.Wait; w.AnyCommit && w.Composition == r.Composition && (r.Ref == ar.run.Ref || l.trusted(r)) && !r.FinishedAt.Before(t.StartedAt) {
			l.apply(p, key.run, engine.Seen{Task: key.task, Run: r})
		}
	}
}

// lookForWaits tells tasks that wait for a run of their commit how the latest stands.
func (l *Runs) lookForWaits(p *pass) {
	for key := range l.waits {
		ar := l.active[key.run]
		if ar == nil {
			delete(l.waits, key)
			continue
		}
		w := ar.run.Task(key.task).Spec.Wait
		facts := l.commits[ar.run.Head()]
		if w.AnyCommit || facts == nil {
			continue
		}
		var latest *pipeline.Run
		for _, r := range facts.runs {
			if r.Composition == w.Composition && r.ID != key.run && (latest == nil || r.ID > latest.ID) {
				latest = r
			}
		}
		if latest != nil {
			l.apply(p, key.run, engine.Seen{Task: key.task, Run: latest})
		}
	}
}

// follow keeps the list of the tasks that wait for runs.
func (l *Runs) follow(r *pipeline.Run) {
	for i := range r.Tasks {
		t := &r.Tasks[i]
		if t.Spec.Wait == nil {
			continue
		}
		if key := (fieldKey{r.ID, t.Name}); t.State == pipeline.Running {
			l.waits[key] = true
		} else {
			delete(l.waits, key)
		}
	}
}

// expire ends what has waited long enough.
func (l *Runs) expire(p *pass, now time.Time) {
	type due struct {
		run  pipeline.RunID
		task pipeline.TaskName
	}
	var all []due
	for id, ar := range l.active {
		for i := range ar.run.Tasks {
			t := &ar.run.Tasks[i]
			if at := engine.Due(t); !at.IsZero() && !at.After(now) {
				all = append(all, due{id, t.Name})
			}
		}
	}
	for _, d := range all {
		l.apply(p, d.run, engine.Expired{Task: d.task})
	}
}

// recovered looks at everything that a restart may have cut off: it is found in the
// runs themselves.
func (l *Runs) recovered(p *pass) {
	p.line = true
	for _, ar := range l.sorted() {
		l.follow(ar.run)
		l.arrived(p, ar.run)
	}
}

// enlist makes a run active.
func (l *Runs) enlist(r *pipeline.Run, of *pipeline.Composition) {
	if i, there := slices.BinarySearch(l.order, r.ID); !there {
		l.order = slices.Insert(l.order, i, r.ID)
	}
	l.active[r.ID] = &activeRun{run: r, of: of, open: engine.Open{}}
}

func (l *Runs) delist(id pipeline.RunID) {
	delete(l.active, id)
	if i, there := slices.BinarySearch(l.order, id); there {
		l.order = slices.Delete(l.order, i, i+1)
	}
}

// sorted are the active runs, oldest first.
func (l *Runs) sorted() []*activeRun {
	out := make([]*activeRun, len(l.order))
	for i, id := range l.order {
		out[i] = l.active[id]
	}
	return out
}

// enter gives a run that is no draft any more its place in line.
func (l *Runs) enter(p *pass, ar *activeRun, ready engine.Prepared) {
	x := ar.run.Clone()
	x.Group = ready.Group
	var cancel string
	for _, place := range engine.Line(l.entrants(x)) {
		if place.Run == x.ID {
			ready.Behind, ready.Why, cancel = place.Behind, place.Why, place.Cancel
		}
	}
	if _, ok := l.apply(p, x.ID, ready); !ok {
		return
	}
	p.line = p.line || inLine(ar.run, ar.of)
	if cancel != "" {
		l.apply(p, x.ID, engine.Cancel{Reason: cancel})
	}
}

// inLine reports whether other runs may have to wait for r.
func inLine(r *pipeline.Run, of *pipeline.Composition) bool {
	return r.Group != "" || of.MaxRunning > 0
}

// entrants are the active runs as the line sees them; x, if any, enters.
func (l *Runs) entrants(x *pipeline.Run) []engine.Entrant {
	out := make([]engine.Entrant, 0, len(l.active))
	for _, ar := range l.sorted() {
		e := engine.Entrant{Run: ar.run, Of: l.limited(ar), Live: l.trusted(ar.run)}
		if x != nil && x.ID == ar.run.ID {
			e.Run, e.Enters = x, true
		}
		out = append(out, e)
	}
	return out
}

// advance lets those go whose turn it is, and ends those that were overtaken.
func (l *Runs) advance(p *pass) {
	for p.line {
		p.line = false
		for _, place := range engine.Line(l.entrants(nil)) {
			ar := l.active[place.Run]
			switch {
			case ar == nil:
			case place.Cancel != "":
				if !ar.run.Cancel {
					l.apply(p, place.Run, engine.Cancel{Reason: place.Cancel})
				}
			case !slices.Equal(ar.run.Behind, place.Behind):
				l.apply(p, place.Run, engine.Moved{Behind: place.Behind, Why: place.Why})
			}
		}
	}
}

// lookAt evaluates the runs that the pass has changed, and with a tick all.
func (l *Runs) lookAt(ctx context.Context, p *pass, batch []message) {
	for _, m := range batch {
		if m.tick {
			for id := range l.active {
				l.evaluate(ctx, id)
			}
			return
		}
		for _, r := range m.added {
			l.evaluate(ctx, r.ID)
		}
	}
	for _, s := range p.steps {
		l.evaluate(ctx, s.Run.ID)
	}
}
