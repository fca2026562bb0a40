package engine

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// MaxDepth is how many calls and hooks may lead to a run: more than anybody nests
// on purpose, few enough that compositions which call each other soon end.
const MaxDepth = 16

type (
	// Decided has what a Want of PartIf asked for, as JSON: the list that the task
	// works through, and whether the task runs. nil for what was known before.
	Decided struct {
		Task      pipeline.TaskName
		Items, If json.RawMessage
	}
	// Asked has the fields of a gate, a JSON object: its message is among them.
	Asked struct {
		Task   pipeline.TaskName
		Fields json.RawMessage
	}
	// Returned has the outputs of the run, a JSON object.
	Returned struct{ Outputs json.RawMessage }
	// Reviewed: somebody whose review counts has reviewed a gate.
	Reviewed struct {
		Task   pipeline.TaskName
		Review pipeline.Review
	}
	// Withdrawn: the review that somebody gave a gate counts no more, while it is held
	// still.
	Withdrawn struct {
		Task pipeline.TaskName
		By   string
	}
	// Judged says what else is to be said of a gate that is held, such as why a review
	// does not count. It is stale when it says nothing new.
	Judged struct {
		Task pipeline.TaskName
		Note string
	}
	// Made tells which run was made for a task that calls.
	Made struct {
		Task pipeline.TaskName
		Run  pipeline.RunID
	}
	// Seen tells how the run stands that a task has called, or that it waits for. It is
	// stale when it tells nothing new.
	Seen struct {
		Task pipeline.TaskName
		Run  *pipeline.Run
	}
	// Expired: the time that Due told has come.
	Expired struct{ Task pipeline.TaskName }
	// Prepared ends the draft: the run's params, its group, and whom it waits for.
	Prepared struct {
		Params json.RawMessage
		Group  string
		Behind []pipeline.RunID
		Why    string
	}
	// Stuck: what the run wants, or a draft needs, cannot be computed now, and is tried
	// again. The task is that of the Want.
	Stuck struct {
		Task pipeline.TaskName
		Why  string
	}
	// Moved: the run waits for others than before, or for none.
	Moved struct {
		Behind []pipeline.RunID
		Why    string
	}
)

func (Decided) event()   {}
func (Asked) event()     {}
func (Returned) event()  {}
func (Reviewed) event()  {}
func (Withdrawn) event() {}
func (Judged) event()    {}
func (Made) event()      {}
func (Seen) event()      {}
func (Expired) event()   {}
func (Stuck) event()     {}
func (Prepared) event()  {}
func (Moved) event()     {}

// Call is a run to be made in the transaction of the step: one that a task calls, or
// that was to be called when something failed. It begins as a draft.
type Call struct {
	// Task calls, or has failed; "" when the run as a whole has.
	Task        pipeline.TaskName
	Composition pipeline.CompositionName
	Digest      pipeline.Digest
	Event       pipeline.Event
}

// Want is a value that a run needs before it goes on, and that only an evaluation
// knows: PartIf (answered by Decided, its list included), PartFields of a gate
// (Asked) and PartOutputs (Returned). Unfit answers what has no value.
type Want struct {
	Part pipeline.Part
	Task pipeline.TaskName
}

// Wants lists what the run needs now. It depends on the run alone, so that nothing
// is forgotten by a restart.
func Wants(run *pipeline.Run, of *pipeline.Composition) []Want {
	if run.State.Terminal() || waitsInLine(run) {
		return nil
	}
	m := &machine{run: run, of: of}
	var out []Want
	for i := range run.Tasks {
		t := &run.Tasks[i]
		switch {
		case t.State == pipeline.Held && t.Message == "" && t.Spec.Deferred:
			out = append(out, Want{pipeline.PartFields, t.Name})
		case t.State == pipeline.Pending && asks(&t.Spec):
			if to, _ := m.decide(t); to == pipeline.Pending && m.needsEnded(t) {
				out = append(out, Want{pipeline.PartIf, t.Name})
			}
		}
	}
	if m.returns() {
		out = append(out, Want{Part: pipeline.PartOutputs})
	}
	return out
}

// applyBuiltIn applies the events of this file.
func (m *machine) applyBuiltIn(ev Event) error {
	switch e := ev.(type) {
	case Decided:
		if t := m.run.Task(e.Task); t == nil || t.State != pipeline.Pending {
			return ErrStale
		}
		m.decided = &e
		return nil
	case Asked:
		return m.asked(e)
	case Returned:
		if !m.returns() {
			return ErrStale
		}
		m.run.Outputs = e.Outputs
		return nil
	case Reviewed:
		return m.reviewed(e)
	case Withdrawn:
		return m.withdrawn(e)
	case Judged:
		t := m.run.Task(e.Task)
		if t == nil || t.State != pipeline.Held || t.Reason == WaitsFor(m.run, t, e.Note) {
			return ErrStale
		}
		t.Reason = WaitsFor(m.run, t, e.Note)
		return nil
	case Made:
		t := m.run.Task(e.Task)
		if t == nil || t.State != pipeline.Running || t.Spec.Call == nil {
			return ErrStale
		}
		t.Child = e.Run
		return nil
	case Seen:
		return m.seen(e)
	case Expired:
		return m.expired(e)
	case Prepared:
		if !m.run.Draft {
			return ErrStale
		}
		m.run.Draft, m.run.Params, m.run.Group = false, e.Params, e.Group
		m.run.Behind, m.behind = e.Behind, e.Why
		return nil
	case Stuck:
		t := m.run.Task(e.Task)
		waits := m.run.Draft || e.Task == "" && m.returns() || t != nil && t.State == pipeline.Pending
		if !waits || m.run.Reason == e.Why || t != nil && t.Reason == e.Why {
			return ErrStale
		}
		m.stuck = &e
		return nil
	case Moved:
		if m.run.Draft || len(m.run.Behind) == 0 || m.run.State.Terminal() {
			return ErrStale
		}
		m.run.Behind, m.behind = e.Behind, e.Why
		return nil
	}
	return fmt.Errorf("run %s: event %T is unknown", m.run.ID, ev)
}

// waitsInLine reports whether no task of the run may start yet.
func waitsInLine(r *pipeline.Run) bool { return r.Draft || len(r.Behind) > 0 }

// asks reports whether only an evaluation knows if the task runs.
func asks(t *pipeline.Task) bool {
	return t.If != nil && t.If.Deferred || t.Each != nil && t.Each.Items.Deferred
}

func (m *machine) needsEnded(t *pipeline.RunTask) bool {
	return !slices.ContainsFunc(t.Spec.Needs, func(n pipeline.TaskName) bool {
		need := m.run.Task(n)
		return need != nil && !need.State.Terminal()
	})
}

// choose says whether t, whose needs allow it, runs: Skipped or Error with the
// reason, Pending while that is not known, and Ready when it does.
func (m *machine) choose(t *pipeline.RunTask) (pipeline.State, string) {
	var items, condition json.RawMessage
	if e := t.Spec.Each; e != nil {
		items = e.Items.Value
	}
	if t.Spec.If != nil {
		condition = t.Spec.If.Value
	}
	if m.decided != nil && m.decided.Task == t.Name {
		items, condition = either(m.decided.Items, items), either(m.decided.If, condition)
	} else if asks(&t.Spec) {
		return pipeline.Pending, ""
	}
	if e := t.Spec.Each; e != nil {
		var list []json.RawMessage
		if err := json.Unmarshal(items, &list); err != nil {
			return pipeline.Error, "what it is to work through is not a list: " + err.Error()
		}
		switch {
		case len(list) > e.Max && e.Index == e.Max:
			return pipeline.Error, fmt.Sprintf("the list has %d elements, and at most %d are allowed", len(list), e.Max)
		case len(list) < e.Index:
			return pipeline.Skipped, "the list has " + plural(len(list), "element")
		}
	}
	if t.Spec.If != nil {
		var yes bool
		if err := json.Unmarshal(condition, &yes); err != nil {
			return pipeline.Error, "its condition is not true or false: " + err.Error()
		}
		if !yes {
			return pipeline.Skipped, "its condition is false: " + t.Spec.If.Text
		}
	}
	return pipeline.Ready, "waits for an agent"
}

func either(a, b json.RawMessage) json.RawMessage {
	if a != nil {
		return a
	}
	return b
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// lacks names a task whose outputs t reads in an expression and that has none,
// because it never did anything; "" when there is none.
func (m *machine) lacks(t *pipeline.Task) pipeline.TaskName {
	var reads []pipeline.TaskName
	for _, x := range t.Open {
		reads = append(reads, x.Reads...)
	}
	if t.If != nil {
		reads = append(reads, t.If.Reads...)
	}
	if t.Each != nil {
		reads = append(reads, t.Each.Items.Reads...)
	}
	slices.Sort(reads)
	for _, name := range reads {
		if from := m.run.Task(name); from == nil || !from.Ran() && len(from.Outputs) == 0 {
			return name
		}
	}
	return ""
}

// gentle reports whether the task was skipped although nothing it needs went wrong:
// by its condition, or for lack of what such a task would have reported. Those that
// need it only for the order go on.
func (m *machine) gentle(t *pipeline.RunTask) bool {
	if t.State != pipeline.Skipped || t.Spec.When == pipeline.OnFailure {
		return false
	}
	if known, ok := m.gentles[t.Name]; ok {
		return known
	}
	ok := true
	for _, name := range t.Spec.Needs {
		n := m.run.Task(name)
		ok = ok && n != nil && (n.State.Good() || n.Tolerated() || m.gentle(n))
	}
	if m.gentles == nil {
		m.gentles = map[pipeline.TaskName]bool{}
	}
	m.gentles[t.Name] = ok // what has ended stays as it is
	return ok
}

// begin starts a built-in task, whose time has come.
func (m *machine) begin(t *pipeline.RunTask) {
	t.StartedAt = m.now
	switch s := &t.Spec; {
	case s.Gate != nil:
		if !s.Deferred {
			t.Message = messageIn(s.Fields)
		}
		m.move(t, pipeline.Held, WaitsFor(m.run, t, ""))
	case s.Wait != nil:
		which := "a run of " + string(s.Wait.Composition)
		if !s.Wait.AnyCommit {
			which += " at this commit"
		}
		m.move(t, pipeline.Running, fmt.Sprintf("waits for %s, at most %s", which, s.Wait.Within))
	case s.Call != nil && m.run.Depth >= MaxDepth:
		m.move(t, pipeline.Error, tooDeep(s.Call.Composition))
	case s.Call != nil:
		m.move(t, pipeline.Running, "starts a run of "+string(s.Call.Composition))
		m.calls = append(m.calls, m.call(pipeline.EventCall, t, s.Call.Composition, s.Call.Digest))
	default:
		m.move(t, pipeline.Error, fmt.Sprintf("%s is unknown to this version", s.Uses))
	}
}

func tooDeep(c pipeline.CompositionName) string {
	return fmt.Sprintf("%s is not called: %d calls lead to this run already, so they may never end", c, MaxDepth)
}

// call makes the event of a called run: that of this run, which is its cause.
func (m *machine) call(kind string, t *pipeline.RunTask, c pipeline.CompositionName, d pipeline.Digest) Call {
	r, e := m.run, m.run.Event
	e.Kind, e.Payload = kind, nil
	e.Cause = &pipeline.Cause{Run: r.ID, Composition: r.Composition, Number: r.Number, State: r.State, Reason: r.Reason}
	out := Call{Composition: c, Digest: d}
	if t != nil {
		out.Task = t.Name
		e.Cause.Task, e.Cause.State, e.Cause.Reason = t.Name, t.State, t.Reason
	}
	if kind == pipeline.EventFailure {
		e.Cause.Outputs = Reported(r)
	}
	out.Event = e
	return out
}

// mostReported bounds what the event of a run carries of another's outputs.
const mostReported = 1 << 20

// Reported is what the tasks of a run have reported, for a run that follows it: the
// first tasks first, and 1 MiB in all.
func Reported(r *pipeline.Run) map[pipeline.TaskName]json.RawMessage {
	out, room := map[pipeline.TaskName]json.RawMessage{}, mostReported
	for i := range r.Tasks {
		if o := r.Tasks[i].Outputs; len(o) > 0 && len(o) <= room {
			out[r.Tasks[i].Name] = o
			room -= len(o)
		}
	}
	return out
}

// hooks calls what is to be called for tasks that have ended badly in this step, and
// for the run.
func (m *machine) hooks(before *pipeline.Run) {
	for i := range m.run.Tasks {
		t := &m.run.Tasks[i]
		if !failed(t.State) || failed(before.Tasks[i].State) || t.Spec.OnFailure == nil {
			continue
		}
		if h := t.Spec.OnFailure; m.run.Depth < MaxDepth {
			m.calls = append(m.calls, m.call(pipeline.EventFailure, t, h.Composition, h.Digest))
		} else {
			t.Reason += "; " + tooDeep(h.Composition)
		}
	}
}

// hook calls what is to be called when the run has failed, once.
func (m *machine) hook(before *pipeline.Run) {
	if m.of == nil || m.of.OnFailure == nil || !failed(m.run.State) || before.State.Terminal() {
		return
	}
	if h := m.of.OnFailure; m.run.Depth < MaxDepth {
		m.calls = append(m.calls, m.call(pipeline.EventFailure, nil, h.Composition, h.Digest))
	} else {
		m.run.Reason += "; " + tooDeep(h.Composition)
	}
}

func failed(s pipeline.State) bool {
	return s == pipeline.Failure || s == pipeline.Error || s == pipeline.Timeout
}

// returns reports whether the run waits for nothing but its outputs.
func (m *machine) returns() bool {
	return m.of != nil && m.of.Returns.Deferred && m.run.Outputs == nil && !m.run.Cancel && m.state == "" &&
		len(m.run.Tasks) > 0 && pipeline.RunState(m.run.Tasks) == pipeline.Success
}

// seen takes up how another run stands: one that t called, or waits for.
func (m *machine) seen(e Seen) error {
	t := m.run.Task(e.Task)
	if t == nil || t.State != pipeline.Running || !t.Spec.BuiltIn() || t.Spec.Call != nil && t.Child != e.Run.ID {
		return ErrStale
	}
	name, before := nameOf(e.Run), *t
	t.Child = e.Run.ID
	switch {
	case t.Spec.Call != nil && !t.Spec.Call.Join:
		t.Outputs = json.RawMessage(fmt.Sprintf(`{"run":%q}`, e.Run.ID))
		m.move(t, pipeline.Success, "started "+name)
	case t.Spec.Call != nil && !e.Run.State.Terminal():
		t.Reason = "runs " + name
	case !e.Run.State.Terminal():
		t.Reason = fmt.Sprintf("waits for %s, at most %s", name, t.Spec.Wait.Within)
	case t.Spec.Call != nil:
		to := e.Run.State
		if to.Good() {
			to = pipeline.Success
			t.Outputs = declared(e.Run.Outputs, &t.Spec.Outputs)
		}
		m.move(t, to, fmt.Sprintf("%s: %s", name, e.Run.Reason))
	case e.Run.State.Good() || t.Spec.Wait.AnyResult:
		t.Outputs = declared(json.RawMessage(fmt.Sprintf(`{"run":%q,"state":%q}`, e.Run.ID, e.Run.State)), &t.Spec.Outputs)
		m.move(t, pipeline.Success, fmt.Sprintf("%s ended in %s", name, e.Run.State))
	default:
		m.move(t, pipeline.Failure, fmt.Sprintf("%s ended in %s", name, e.Run.State))
	}
	if t.State == before.State && t.Reason == before.Reason && t.Child == before.Child {
		return ErrStale
	}
	return nil
}

// declared leaves out of a JSON object what a struct type does not have: a called
// composition may return more than its caller reads.
func declared(outputs json.RawMessage, t *pipeline.Type) json.RawMessage {
	have := map[string]json.RawMessage{}
	if t.Open || len(outputs) == 0 || json.Unmarshal(outputs, &have) != nil {
		return outputs
	}
	for name := range have {
		if !slices.ContainsFunc(t.Fields, func(f pipeline.Field) bool { return f.Name == name }) {
			delete(have, name)
		}
	}
	out, err := json.Marshal(have)
	if err != nil {
		return outputs
	}
	return out
}

// drop asks that the run that t has called be cancelled.
func (m *machine) drop(t *pipeline.RunTask, why string) {
	if t.Child != "" {
		m.cancels = append(m.cancels, Drop{Run: t.Child, Reason: why})
	}
}

// Drop names a called run that is to be cancelled.
type Drop struct {
	Run    pipeline.RunID
	Reason string
}
