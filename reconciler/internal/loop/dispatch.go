package loop

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/engine"
	"github.com/maestro-cd/maestro/reconciler/internal/place"
)

// place gives ready tasks to agents and adds the offers to the pass.
func (l *Runs) place(ctx context.Context, p *pass) {
	// An error of one task may make another ready, so look again until nothing moves.
	for range 1 + len(l.active) {
		moved := false
		for _, g := range l.board().Assign() {
			moved = l.offer(ctx, p, g) || moved
		}
		if !moved {
			return
		}
	}
}

// board is what placement looks at now.
func (l *Runs) board() *place.Board {
	runs := make([]*pipeline.Run, 0, len(l.active))
	for _, ar := range l.active {
		runs = append(runs, ar.run)
	}
	slices.SortFunc(runs, func(a, b *pipeline.Run) int { return strings.Compare(string(a.ID), string(b.ID)) })
	agents := make([]place.Agent, 0, len(l.agents))
	for _, a := range l.agents {
		agents = append(agents, place.Agent{
			ID: a.ID, Pool: a.Pool, Untrusted: a.Untrusted, Facts: a.facts, Warm: a.warm, Load: a.load,
			Usable: a.connected && !a.Revoked && time.Since(a.renewedAt) < StalledAfter,
		})
	}
	slices.SortFunc(agents, func(a, b place.Agent) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return place.New(runs, agents, time.Now(), l.refused)
}

// offer turns an assignment into an attempt. It reports whether the run changed;
// it does not when the fields have to be computed first.
func (l *Runs) offer(ctx context.Context, p *pass, g place.Assignment) bool {
	ar := l.active[g.Run]
	if ar == nil { // ended within this pass
		return false
	}
	t := ar.run.Task(g.Task)
	if t.State != pipeline.Ready {
		return false
	}
	spec, wait, err := l.spec(ctx, ar.run, t, g)
	switch {
	case wait:
		return false
	case err != nil:
		_, moved := l.apply(p, g.Run, engine.Unfit{Task: g.Task, Reason: err.Error()})
		return moved
	}
	a := pipeline.Attempt{
		ID: pipeline.AttemptID(ulid.Make().String()), Run: g.Run, Task: g.Task, Agent: g.Agent,
		Token: pipeline.Token{Incarnation: l.cfg.DB.Incarnation(), Epoch: t.Epoch + 1},
	}
	if _, ok := l.apply(p, g.Run, engine.Offer{Attempt: a, Slot: g.Slot}); !ok {
		return false
	}
	ag := l.agents[g.Agent]
	l.assigned++
	ag.load, ag.warm[ar.run.Composition] = l.assigned, true
	l.tell(p, g.Agent, &wire.Offer{Attempt: a.ID, Token: a.Token, Spec: spec})
	return true
}

// refusal is an agent's no to a task, and until when it is not asked again.
type refusal struct {
	reason string
	until  time.Time
	count  int
}

// declinedBy keeps the agent from being asked the same again at once: longer with
// each time, up to a minute, because what it lacks may come back.
func (l *Runs) declinedBy(id pipeline.AgentID, a pipeline.Attempt, reason string) {
	const first, most = 2 * time.Second, time.Minute
	key := fieldKey{a.Run, a.Task}
	if l.refusals[key] == nil {
		l.refusals[key] = map[pipeline.AgentID]refusal{}
	}
	r := l.refusals[key][id]
	pause := min(first<<min(r.count, 5), most)
	l.refusals[key][id] = refusal{reason: fmt.Sprintf("%s: %s", l.agents[id].Name, reason), until: time.Now().Add(pause), count: r.count + 1}
	l.cfg.Log.Info("offer declined", "agent_id", id, "attempt_id", a.ID, "run_id", a.Run, "task", a.Task, "reason", reason)
}

// freed lets an agent be asked at once what it has declined: a task of its own has
// ended, and what it lacked most often is a free place.
func (l *Runs) freed(id pipeline.AgentID) {
	for _, by := range l.refusals {
		if r, ok := by[id]; ok {
			r.until = time.Time{}
			by[id] = r
		}
	}
}

func (l *Runs) refused(run pipeline.RunID, task pipeline.TaskName, id pipeline.AgentID) string {
	r, ok := l.refusals[fieldKey{run, task}][id]
	if !ok || time.Now().After(r.until) {
		return ""
	}
	return r.reason
}

// spec builds what the agent needs to run t. wait means that the fields are being
// computed and the task is looked at again when they are; an error is for the
// task's author.
func (l *Runs) spec(ctx context.Context, r *pipeline.Run, t *pipeline.RunTask, g place.Assignment) (s wire.Spec, wait bool, err error) {
	if len(t.Spec.Secrets) > 0 && r.Ref != l.cfg.Default {
		return s, false, fault.New(fault.Invalid, "needs secret %s, which runs of %s may have and those of %s may not",
			t.Spec.Secrets[0], l.cfg.Default, r.Ref)
	}
	if _, err := l.secrets(&t.Spec); err != nil {
		return s, fault.Is(err, fault.Unavailable), err
	}
	fields, wait, err := l.fieldsOf(ctx, r, t)
	if err != nil || wait {
		return s, wait, err
	}
	previous, err := l.cfg.DB.LastOutputs(ctx, r.Composition, t.Name)
	if err != nil && !fault.Is(err, fault.NotFound) {
		l.cfg.Log.Error("previous outputs not read", "run_id", r.ID, "task", t.Name, "err", err)
	}
	lostAfter := t.Spec.LostAfter
	if lostAfter == 0 {
		lostAfter = pipeline.Duration(pipeline.DefaultLostAfter)
	}
	return wire.Spec{
		Run: r.ID, Number: r.Number, Composition: r.Composition, Task: t.Name, Uses: t.Spec.Uses,
		Plugin: wire.Plugin{Name: t.Spec.Plugin, Tree: t.Spec.Tree, Programs: t.Spec.Programs},
		Fields: fields, Secrets: t.Spec.Secrets, Outputs: t.Spec.Outputs, Previous: previous,
		Timeout: t.Spec.Timeout, LostAfter: lostAfter, Effect: t.Spec.Effect,
		Slot: g.Slot, Untrusted: l.agents[g.Agent].Untrusted, IdempotencyKey: idempotencyKey(r, t),
		Repo: l.cfg.Repo, Commit: r.Commit, Ref: r.Ref, TryNumber: int(t.Epoch) + 1,
	}, false, nil
}

// idempotencyKey is the same for all attempts of a task, and of no other task.
func idempotencyKey(r *pipeline.Run, t *pipeline.RunTask) string {
	m := hmac.New(sha256.New, []byte(r.Key))
	m.Write([]byte(t.Name))
	return hex.EncodeToString(m.Sum(nil))
}

// fieldsOf returns the task's fields with its bindings filled in.
func (l *Runs) fieldsOf(ctx context.Context, r *pipeline.Run, t *pipeline.RunTask) (fields json.RawMessage, wait bool, err error) {
	key := fieldKey{r.ID, t.Name}
	if f, ok := l.fields[key]; ok {
		return f, false, nil
	}
	if !t.Spec.Deferred {
		f, err := bind(t.Spec.Fields, r, &t.Spec)
		return f, false, err
	}
	if !l.filling[key] {
		l.filling[key] = true
		l.fill(ctx, r, t)
	}
	return nil, true, nil
}

// bind adds to fields what the task inherits from earlier tasks' outputs.
func bind(fields json.RawMessage, r *pipeline.Run, t *pipeline.Task) (json.RawMessage, error) {
	if len(t.Bindings) == 0 {
		if len(fields) == 0 {
			return json.RawMessage("{}"), nil
		}
		return fields, nil
	}
	m := map[string]json.RawMessage{}
	if len(fields) > 0 {
		if err := json.Unmarshal(fields, &m); err != nil {
			return nil, fmt.Errorf("fields of task %s: %w", t.Name, err)
		}
	}
	for _, b := range t.Bindings {
		v, err := output(r, b)
		if err != nil {
			return nil, err
		}
		m[b.Field] = v
	}
	return json.Marshal(m)
}

func output(r *pipeline.Run, b pipeline.Binding) (json.RawMessage, error) {
	from := r.Task(b.From)
	if from == nil || len(from.Outputs) == 0 {
		return nil, fault.New(fault.Invalid, "field %s is inherited from task %s, which has no outputs", b.Field, b.From)
	}
	var outputs map[string]json.RawMessage
	if err := json.Unmarshal(from.Outputs, &outputs); err != nil {
		return nil, fmt.Errorf("outputs of task %s: %w", b.From, err)
	}
	v, ok := outputs[b.Output]
	if !ok {
		return nil, fault.New(fault.Invalid, "field %s is inherited from output %s of task %s, which did not report it", b.Field, b.Output, b.From)
	}
	return v, nil
}

// fill computes deferred fields outside of the loop; the answer comes back as filled.
func (l *Runs) fill(ctx context.Context, r *pipeline.Run, t *pipeline.RunTask) {
	outputs := map[pipeline.TaskName]json.RawMessage{}
	for i := range r.Tasks {
		if o := r.Tasks[i].Outputs; len(o) > 0 {
			outputs[r.Tasks[i].Name] = o
		}
	}
	run, task, key := r, t.Spec, fieldKey{r.ID, t.Name}
	l.fills.Go(func() {
		f, err := l.cfg.Filler.Fill(ctx, run, &task, outputs)
		if err == nil {
			f, err = bind(f, run, &task)
		}
		select {
		case l.filled <- filled{key, f, err}:
		case <-ctx.Done():
		}
	})
}

// took notes the answer of a fill; the placement that follows offers the task.
func (l *Runs) took(p *pass, f filled) {
	delete(l.filling, f.key)
	ar := l.active[f.key.run]
	switch {
	case ar == nil:
	case f.err == nil:
		l.fields[f.key] = f.fields
	case fault.Is(f.err, fault.Invalid):
		l.apply(p, f.key.run, engine.Unfit{Task: f.key.task, Reason: f.err.Error()})
	default:
		// Ours to mend: the next tick tries again.
		l.cfg.Log.Error("fields not computed", "run_id", f.key.run, "task", f.key.task, "err", f.err)
	}
}
