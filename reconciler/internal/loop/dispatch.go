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
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

// place gives ready tasks to agents and adds the offers to the pass.
func (l *Runs) place(ctx context.Context, p *pass) {
	// What comes of a task that cannot be offered may make another ready, and leaves its
	// agent free, so look again until all is as the board took it to be.
	for range 1 + len(l.active) {
		again := false
		for _, g := range l.board().Assign() {
			again = l.offer(ctx, p, g) || again
		}
		if !again {
			return
		}
	}
}

// board is what placement looks at now.
func (l *Runs) board() *place.Board {
	runs := make([]*pipeline.Run, 0, len(l.active))
	for _, ar := range l.sorted() {
		runs = append(runs, l.placed(ar))
	}
	agents := make([]place.Agent, 0, len(l.agents))
	closed, now := l.closed(slices.ContainsFunc(runs, func(r *pipeline.Run) bool { return r.Ref.Fork() })), time.Now()
	for _, a := range l.agents {
		away := a.away(now)
		drains := a.Pause != nil && a.Pause.Drain && away == a.Pause.String()
		agents = append(agents, place.Agent{
			ID: a.ID, Pool: a.Pool, Untrusted: a.Untrusted, Facts: a.facts, Warm: a.warm, Load: a.load,
			Usable: away == "" || drains, Drains: drains, Away: away, Closed: closed(a),
		})
	}
	slices.SortFunc(agents, func(a, b place.Agent) int { return strings.Compare(string(a.ID), string(b.ID)) })
	b := place.New(runs, agents, now, l.refused)
	b.Line = place.Line{Served: l.served, Usual: func(c pipeline.CompositionName, t pipeline.TaskName) time.Duration {
		return l.usual[usualKey{c, t}]
	}}
	return b
}

// lasted notes how long a task took, the last ones counting most.
func (l *Runs) lasted(a pipeline.Attempt, now time.Time) {
	r := l.active[a.Run]
	if r == nil || a.StartedAt.IsZero() {
		return
	}
	key, d := usualKey{r.run.Composition, a.Task}, now.Sub(a.StartedAt)
	if before := l.usual[key]; before > 0 {
		d = (3*before + d) / 4
	}
	l.usual[key] = max(d, time.Millisecond)
}

// closed tells from which runs the policy in force keeps an agent. While nobody
// knows what is in force, it is kept from all. What came from outside the repository
// runs on agents that are meant for it, whatever pools it names.
func (l *Runs) closed(forks bool) func(*agent) func(*pipeline.Run) bool {
	law, err := l.cfg.Law()
	return func(a *agent) func(*pipeline.Run) bool {
		if err != nil {
			return func(*pipeline.Run) bool { return true }
		}
		pool, outside := a.Pool, forks && !a.Untrusted
		bound := slices.ContainsFunc(law.Pools, func(r pipeline.PoolRule) bool { return r.Pool == pool })
		if !bound && !outside {
			return nil
		}
		return func(r *pipeline.Run) bool {
			return outside && r.Ref.Fork() || bound && plan.Closed(law, pool, r.Composition, l.standing(r))
		}
	}
}

// offer turns an assignment into an attempt. It reports whether there is something else
// to place because of it: not when it was offered, nor when the fields have to be
// computed first.
func (l *Runs) offer(ctx context.Context, p *pass, g place.Assignment) bool {
	ar := l.active[g.Run]
	if ar == nil { // ended within this pass
		return false
	}
	t := ar.run.Task(g.Task)
	if t.State != pipeline.Ready {
		return false
	}
	a := pipeline.Attempt{
		ID: pipeline.AttemptID(ulid.Make().String()), Run: g.Run, Task: g.Task, Agent: g.Agent,
		Token: pipeline.Token{Incarnation: l.cfg.DB.Incarnation(), Epoch: t.Epoch + 1},
	}
	spec, ready, err := l.spec(ctx, ar.run, t, g)
	m := &wire.Offer{Attempt: a.ID, Token: a.Token, Spec: spec}
	if err == nil && ready {
		_, err = wire.Encode(m) // what does not fit into a message would be offered for ever
	}
	switch {
	case err == nil && !ready:
		return false
	case fault.Is(err, fault.Invalid):
		_, moved := l.apply(p, g.Run, engine.Unfit{Task: g.Task, Reason: err.Error()})
		return moved
	case err != nil:
		l.putOff(fieldKey{g.Run, g.Task}, err)
		return true // who waits for the agent may have it
	}
	if _, ok := l.apply(p, g.Run, engine.Offer{Attempt: a, Slot: g.Slot}); !ok {
		return false
	}
	ag := l.agents[g.Agent]
	l.served[place.ShareOf(ar.run, t)] = time.Now()
	l.assigned++
	ag.load, ag.warm[ar.run.Composition] = l.assigned, true
	l.tell(p, g.Agent, m)
	return false
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
	l.refuseFor(fieldKey{a.Run, a.Task}, id, fmt.Sprintf("%s: %s", l.agents[id].Name, reason))
	l.cfg.Log.Info("offer declined", "agent_id", id, "attempt_id", a.ID, "run_id", a.Run, "task", a.Task, "reason", reason)
}

// putOff keeps a task from being offered to anybody for a while: what it needs of us
// cannot be had now. It holds no agent meanwhile.
func (l *Runs) putOff(key fieldKey, err error) {
	l.refuseFor(key, "", "cannot be offered now, and is tried again: "+err.Error())
	l.cfg.Log.Warn("task cannot be offered now", "run_id", key.run, "task", key.task, "err", err)
}

// refuseFor notes why an agent, or nobody when id is "", is to be asked to take a
// task, longer with each time.
func (l *Runs) refuseFor(key fieldKey, id pipeline.AgentID, reason string) {
	const first, most = 2 * time.Second, time.Minute
	if l.refusals[key] == nil {
		l.refusals[key] = map[pipeline.AgentID]refusal{}
	}
	r := l.refusals[key][id]
	pause := min(first<<min(r.count, 5), most)
	l.refusals[key][id] = refusal{reason: reason, until: time.Now().Add(pause), count: r.count + 1}
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
	if id == "" && l.cfg.Hold != nil {
		if held := l.cfg.Hold(); held != "" {
			return held
		}
	}
	r, ok := l.refusals[fieldKey{run, task}][id]
	if !ok || time.Now().After(r.until) {
		return ""
	}
	return r.reason
}

// spec builds what the agent needs to run t. It is not ready while the fields are
// being computed; the task is looked at again when they are. fault.Invalid is for the
// task's author, any other error may pass.
func (l *Runs) spec(ctx context.Context, r *pipeline.Run, t *pipeline.RunTask, g place.Assignment) (s wire.Spec, ready bool, err error) {
	if err := l.mayHave(r, t); err != nil {
		return s, false, err
	}
	if _, err := l.secrets(&t.Spec); err != nil {
		return s, false, err
	}
	repo, commit, ref, err := l.codeOf(r)
	if err != nil {
		return s, false, err
	}
	fields, ready, err := l.fieldsOf(ctx, r, t)
	if err != nil || !ready {
		return s, false, err
	}
	// A branch may go by what is in force did, and what is in force by no branch.
	previous, err := l.cfg.DB.LastOutputs(ctx, r.Composition, t.Name, r.Ref, l.cfg.Default)
	if err != nil {
		return s, false, err
	}
	return wire.Spec{
		Run: r.ID, Number: r.Number, Composition: r.Composition, Task: t.Name, Uses: t.Spec.Uses,
		Plugin: wire.Plugin{Name: t.Spec.Plugin, Tree: t.Spec.Tree, Programs: t.Spec.Programs},
		Fields: fields, Secrets: t.Spec.Secrets, Outputs: t.Spec.Outputs, Previous: previous,
		Timeout: t.Spec.Timeout, LostAfter: pipeline.Duration(lostAfter(&t.Spec)), Effect: t.Spec.Effect,
		Slot: g.Slot, Untrusted: l.agents[g.Agent].Untrusted || !l.trusted(r), IdempotencyKey: idempotencyKey(r, t),
		Repo: repo, Source: r.Event.Repo, Commit: commit, Ref: ref, TryNumber: int(t.Epoch) + 1,
	}, true, nil
}

// standing is the ref by whose rules a run goes.
func (l *Runs) standing(r *pipeline.Run) pipeline.Ref {
	return plan.Standing(l.sources(), &r.Event, r.Ref, l.cfg.Default)
}

// mayHave compares the secrets of a task with the policy in force: a branch may have
// pushed what a rule gave it when the run was made. fault.Invalid is for its author.
func (l *Runs) mayHave(r *pipeline.Run, t *pipeline.RunTask) error {
	if len(t.Spec.Secrets) == 0 {
		return nil
	}
	law, err := l.cfg.Law()
	if err != nil {
		return err
	}
	for _, s := range t.Spec.Secrets {
		if why := plan.Withheld(law, s, r.Composition, r.Event.Repo, l.standing(r), l.cfg.Default); why != "" {
			return fault.New(fault.Invalid, "may not have what it needs: %s", why)
		}
	}
	return nil
}

// trusted reports whether a run is of what is in force, and of code that is trusted as
// much. Any other has the secrets alone that a rule gives it, and a workspace, a cache and a home of its own:
// whoever may push a branch decides what it does.
func (l *Runs) trusted(r *pipeline.Run) bool { return l.standing(r) == l.cfg.Default }

func (l *Runs) sources() []pipeline.Repository {
	if l.cfg.Live == nil {
		return nil
	}
	if cfg := l.cfg.Live(); cfg != nil {
		return cfg.Repositories
	}
	return nil
}

// codeOf is the repository, the commit and the ref of the code that a run is about, as
// its tasks see it.
func (l *Runs) codeOf(r *pipeline.Run) (url string, commit pipeline.CommitID, ref pipeline.Ref, err error) {
	e := &r.Event
	if e.Repo == "" {
		return l.cfg.Repo, r.Commit, r.Ref, nil
	}
	all := l.sources()
	i := slices.IndexFunc(all, func(s pipeline.Repository) bool { return s.Name == e.Repo })
	if i < 0 {
		return "", "", "", fault.New(fault.Invalid, "needs repository %s, which the default branch does not declare any more", e.Repo)
	}
	return all[i].URL, e.Head, e.Ref, nil
}

// idempotencyKey is the same for all attempts of a task, and of no other task.
func idempotencyKey(r *pipeline.Run, t *pipeline.RunTask) string {
	m := hmac.New(sha256.New, []byte(r.Key))
	m.Write([]byte(t.Name))
	return hex.EncodeToString(m.Sum(nil))
}

// fieldsOf returns the task's fields with its bindings filled in.
func (l *Runs) fieldsOf(ctx context.Context, r *pipeline.Run, t *pipeline.RunTask) (fields json.RawMessage, ready bool, err error) {
	key := fieldKey{r.ID, t.Name}
	if f, ok := l.fields[key]; ok {
		return f, true, nil
	}
	if !t.Spec.Deferred {
		f, err := bind(t.Spec.Fields, r, &t.Spec)
		return f, true, err
	}
	if !l.filling[key] {
		l.filling[key] = true
		l.fill(ctx, r, t)
	}
	return nil, false, nil
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
			return nil, fault.New(fault.Invalid, "fields of task %s: %w", t.Name, err)
		}
	}
	for _, b := range t.Bindings {
		if from := r.Task(b.From); b.Optional && (from == nil || !from.Reported(b.Output)) {
			continue
		}
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
		return nil, fault.New(fault.Invalid, "outputs of task %s: %w", b.From, err)
	}
	v, ok := outputs[b.Output]
	if !ok {
		return nil, fault.New(fault.Invalid, "field %s is inherited from output %s of task %s, which did not report it", b.Field, b.Output, b.From)
	}
	return v, nil
}

// fill computes deferred fields outside of the loop; the answer comes back as filled.
func (l *Runs) fill(ctx context.Context, r *pipeline.Run, t *pipeline.RunTask) {
	outputs, of := outputsOf(r), l.active[r.ID].of
	run, task, key, reload := r, t.Spec, fieldKey{r.ID, t.Name}, l.reloads
	l.work.Go(func() {
		f, err := l.cfg.Filler.Fill(ctx, of, run, pipeline.Blank{Part: pipeline.PartFields, Task: task.Name}, outputs)
		if err == nil {
			f, err = bind(f, run, &task)
		}
		select {
		case l.filled <- filled{key, reload, f, err}:
		case <-ctx.Done():
		}
	})
}

// took notes the answer of a fill; the placement that follows offers the task.
func (l *Runs) took(p *pass, f filled) {
	if f.reload != l.reloads {
		return
	}
	delete(l.filling, f.key)
	ar := l.active[f.key.run]
	switch {
	case ar == nil:
	case f.err == nil:
		l.fields[f.key] = f.fields
	case fault.Is(f.err, fault.Invalid):
		l.apply(p, f.key.run, engine.Unfit{Task: f.key.task, Reason: f.err.Error()})
	default:
		l.putOff(f.key, f.err)
	}
}
