package loop

import (
	"context"
	"encoding/json"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// partDraft stands for all that a draft needs: its params and its group.
const partDraft pipeline.Part = "draft"

// blankKey names what is being computed for a run.
type blankKey struct {
	run  pipeline.RunID
	part pipeline.Part
	task pipeline.TaskName
}

// inquiry is a computation under way, or one to be tried again.
type inquiry struct {
	busy  bool
	tries int
	again time.Time
}

// answer is what a computation came to: an event of the run.
type answer struct {
	key    blankKey
	reload int // see Runs.reloads
	event  engine.Event
	err    error
}

// inquire computes something for a run outside of the loop, unless that is under way
// or is to be tried again later only. The answer comes back as a message.
func (l *Runs) inquire(ctx context.Context, key blankKey, compute func(context.Context) (engine.Event, error)) {
	q := l.inquiries[key]
	if q.busy || time.Now().Before(q.again) {
		return
	}
	q.busy = true
	l.inquiries[key] = q
	reload := l.reloads
	l.work.Go(func() {
		ev, err := compute(ctx)
		select {
		case l.in <- message{answered: &answer{key, reload, ev, err}}:
		case <-ctx.Done():
		}
	})
}

// evaluate asks for all that the run needs to go on. It is called whenever the run
// has changed, and with each tick for what could not be had before.
func (l *Runs) evaluate(ctx context.Context, id pipeline.RunID) {
	ar := l.active[id]
	if ar == nil {
		return
	}
	run, of := ar.run, ar.of
	if run.Draft {
		l.inquire(ctx, blankKey{run: id, part: partDraft}, func(ctx context.Context) (engine.Event, error) {
			return l.prepared(ctx, run, of)
		})
		return
	}
	for _, w := range engine.Wants(run, of) {
		l.inquire(ctx, blankKey{id, w.Part, w.Task}, func(ctx context.Context) (engine.Event, error) {
			return l.wanted(ctx, run, of, w)
		})
	}
}

// answered takes up what was computed.
func (l *Runs) answered(p *pass, a *answer) {
	if a.reload != l.reloads {
		return
	}
	q := l.inquiries[a.key]
	delete(l.inquiries, a.key)
	ar := l.active[a.key.run]
	if ar == nil {
		return
	}
	if ready, ok := a.event.(engine.Prepared); ok && a.err == nil {
		l.enter(p, ar, ready)
		return
	}
	switch {
	case a.err == nil:
		l.apply(p, a.key.run, a.event)
	case fault.Is(a.err, fault.Invalid):
		l.apply(p, a.key.run, engine.Unfit{Task: a.key.task, Reason: a.err.Error()})
	default: // ours to mend
		const first, most = time.Second, time.Minute
		q.busy, q.again = false, time.Now().Add(min(first<<min(q.tries, 10), most))
		q.tries++
		l.inquiries[a.key] = q
		l.apply(p, a.key.run, engine.Stuck{Task: a.key.task, Why: "waits for what cannot be computed now, and is tried again: " + a.err.Error()})
		l.cfg.Log.Warn("value not computed, tried again", "run_id", a.key.run, "part", a.key.part, "task", a.key.task, "err", a.err)
	}
}

// wanted computes what the engine wants for a run.
func (l *Runs) wanted(ctx context.Context, run *pipeline.Run, of *pipeline.Composition, w engine.Want) (engine.Event, error) {
	fill := func(part pipeline.Part) (json.RawMessage, error) {
		return l.cfg.Filler.Fill(ctx, of, run, pipeline.Blank{Part: part, Task: w.Task}, outputsOf(run))
	}
	switch w.Part {
	case pipeline.PartOutputs:
		v, err := fill(pipeline.PartOutputs)
		if len(v) > pipeline.MaxOutputs {
			err = fault.New(fault.Invalid, "its outputs are %d bytes, most is %d", len(v), pipeline.MaxOutputs)
		}
		return engine.Returned{Outputs: v}, err
	case pipeline.PartFields:
		v, err := fill(pipeline.PartFields)
		return engine.Asked{Task: w.Task, Fields: v}, err
	}
	ev := engine.Decided{Task: w.Task}
	spec := &run.Task(w.Task).Spec
	if each := spec.Each; each != nil {
		items := each.Items.Value
		if each.Items.Deferred {
			var err error
			if items, err = fill(pipeline.PartItems); err != nil {
				return nil, err
			}
			ev.Items = items
		}
		var list []json.RawMessage
		if err := json.Unmarshal(items, &list); err != nil || each.Index > len(list) {
			ev.Items = items
			return ev, nil // it does not run, so nobody asks under which condition it would
		}
	}
	if spec.If != nil && spec.If.Deferred {
		v, err := fill(pipeline.PartIf)
		if err != nil {
			return nil, err
		}
		ev.If = v
	}
	return ev, nil
}

func outputsOf(r *pipeline.Run) map[pipeline.TaskName]json.RawMessage {
	out := map[pipeline.TaskName]json.RawMessage{}
	for i := range r.Tasks {
		if o := r.Tasks[i].Outputs; len(o) > 0 {
			out[r.Tasks[i].Name] = o
		}
	}
	return out
}

// prepared computes the params and the group of a draft. A run that a trigger made
// has both, and waits only for its place in line.
func (l *Runs) prepared(ctx context.Context, run *pipeline.Run, of *pipeline.Composition) (engine.Event, error) {
	if run.Params != nil {
		return engine.Prepared{Params: run.Params, Group: run.Group}, nil
	}
	if of.Suspend {
		return nil, fault.New(fault.Invalid, "%s is suspended", of.Name)
	}
	law, err := l.cfg.Law()
	if err != nil {
		return nil, err
	}
	if why := plan.Forbidden(law, of, run.Event.Repo, l.standing(run), l.cfg.Default); why != "" {
		return nil, fault.New(fault.Invalid, "%s", why)
	}
	given, err := l.given(ctx, run)
	if err != nil {
		return nil, err
	}
	params, err := plan.Params(of, given)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	ready := engine.Prepared{Params: params}
	if of.Concurrency == nil {
		return ready, nil
	}
	group := of.Concurrency.Group.Value
	if of.Concurrency.Group.Deferred {
		with := run.Clone()
		with.Params = params
		if group, err = l.cfg.Filler.Fill(ctx, of, with, pipeline.Blank{Part: pipeline.PartGroup}, nil); err != nil {
			return nil, err
		}
	}
	if err := json.Unmarshal(group, &ready.Group); err != nil {
		return nil, fault.New(fault.Invalid, "concurrency group of %s: %s is not a string", of.Name, group)
	}
	return ready, nil
}

// given are the params that the caller of a run gives it, a JSON object or empty.
func (l *Runs) given(ctx context.Context, run *pipeline.Run) (json.RawMessage, error) {
	cause := run.Event.Cause
	if cause == nil {
		return nil, nil
	}
	caller, err := l.cfg.DB.Run(ctx, cause.Run)
	if err != nil {
		return nil, err
	}
	of, err := l.cfg.DB.Composition(ctx, caller.Digest)
	if err != nil {
		return nil, err
	}
	t := caller.Task(cause.Task)
	if run.Event.Kind == pipeline.EventFailure {
		hook := of.OnFailure
		if t != nil {
			hook = t.Spec.OnFailure
		}
		if hook == nil || !hook.Params.Deferred {
			return hookParams(hook), nil
		}
		return l.cfg.Filler.Fill(ctx, of, caller, pipeline.Blank{Part: pipeline.PartHook, Task: cause.Task}, outputsOf(caller))
	}
	if t == nil {
		return nil, fault.New(fault.Internal, "run %s has no task %q that could have called %s", caller.ID, cause.Task, run.ID)
	}
	fields := t.Spec.Fields
	if t.Spec.Deferred {
		if fields, err = l.cfg.Filler.Fill(ctx, of, caller, pipeline.Blank{Part: pipeline.PartFields, Task: t.Name}, outputsOf(caller)); err != nil {
			return nil, err
		}
	}
	if fields, err = bind(fields, caller, &t.Spec); err != nil {
		return nil, err
	}
	var f struct{ Params json.RawMessage }
	if err := json.Unmarshal(fields, &f); err != nil {
		return nil, fault.New(fault.Invalid, "fields of task %s: %w", t.Name, err)
	}
	return f.Params, nil
}

func hookParams(h *pipeline.Hook) json.RawMessage {
	if h == nil {
		return nil
	}
	return h.Params.Value
}
