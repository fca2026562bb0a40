package config

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// FillRequest asks for one deferred value of a composition.
type FillRequest struct {
	// Tree is the commit that the run was planned with, Unit the composition's unit in it.
	Tree        Tree
	Unit        string
	Composition pipeline.CompositionName
	// Blank names the value: the part, and the task or trigger that it belongs to.
	Blank pipeline.Blank
	Event pipeline.Event
	// Params of the run, as a JSON object with defaults filled in; nil for a trigger,
	// which is asked before there is a run.
	Params json.RawMessage
	// Outputs that the tasks of the run have reported.
	Outputs map[pipeline.TaskName]json.RawMessage
	// Bindings, Secrets and Each as in the planned task: nothing else is read.
	Bindings []pipeline.Binding
	Secrets  []pipeline.SecretName
	Each     *pipeline.Each
}

// Fill returns one deferred value as concrete JSON: an object for fields, params
// and outputs, a bool for a condition, a string for a group, a list for items. A
// value that does not fit its type, or that is not there, is fault.Invalid, in
// words for the people who look at the run; anything else is our failure. Of the
// params of a hook, what reads an output that was never reported is left out.
func (e *Evaluator) Fill(ctx context.Context, req FillRequest) (json.RawMessage, error) {
	where := fmt.Sprintf("fill %s of %s", blankName(req.Blank), req.Composition)
	s, err := newSurvey(req.Tree, e.memo)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if s.dirs[req.Unit] == nil {
		return nil, fault.New(fault.Invalid, "%s: the commit has no directory %s", where, req.Unit)
	}
	texts, err := s.texts([]unitRef{{kindOps, req.Unit}})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if err := validJSON(req); err != nil {
		return nil, fault.New(fault.Invalid, "%s: %w", where, err)
	}
	event, err := eventJSON(req.Event)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: the event: %w", where, err)
	}
	ask := &request{
		Module: s.module, Version: s.version, Files: texts, UnitCPU: int(e.limits.UnitCPU / time.Second),
		Fill: &fillRequest{
			Unit: req.Unit, Composition: req.Composition, Blank: req.Blank, Each: req.Each, Event: event,
			Params: req.Params, Outputs: req.Outputs, Bindings: req.Bindings, Secrets: req.Secrets,
		},
	}
	got, err := e.askFill(ctx, ask)
	var died *errDied
	switch {
	case errors.As(err, &died):
		return nil, fault.New(fault.Invalid, "%s: %s", where, died.why)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", where, err)
	case got == nil:
		return nil, fault.New(fault.Internal, "%s: the evaluator did not answer", where)
	case got.Problem != "":
		return nil, fault.New(fault.Invalid, "%s: %s", where, got.Problem)
	}
	return got.Value, nil
}

// askFill has one child answer; nil without an error means that it said nothing.
func (e *Evaluator) askFill(ctx context.Context, req *request) (*filled, error) {
	w, err := e.crew.take()
	if err != nil {
		return nil, fault.New(fault.Internal, "evaluator: %w", err)
	}
	var got *filled
	err = w.ask(ctx, req, e.limits.UnitWall, func(r reply) {
		if r.Filled != nil {
			got = r.Filled
		}
	})
	e.crew.spare()
	if err != nil {
		return nil, err
	}
	e.crew.put(w)
	return got, nil
}

func validJSON(req FillRequest) error {
	if !json.Valid(orNull(req.Params)) {
		return errors.New("the params of the run are not JSON")
	}
	for _, name := range sortedNames(req.Outputs) {
		if !json.Valid(orNull(req.Outputs[name])) {
			return fmt.Errorf("the outputs of task %s are not JSON", name)
		}
	}
	return nil
}

func orNull(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("null")
	}
	return raw
}

func orObject(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage("{}")
	}
	return raw
}

func blankName(b pipeline.Blank) string {
	switch {
	case b.Part == pipeline.PartFields:
		return "task " + string(b.Task)
	case b.Part == pipeline.PartTrigger:
		return fmt.Sprintf("the params of trigger %d", b.Trigger+1)
	case b.Task != "":
		return fmt.Sprintf("%s of task %s", b.Part, b.Task)
	}
	return string(b.Part)
}

// eventJSON is an event as compositions see it: every field of #Event is there, so
// that none can be taken for something else when an event lacks it.
func eventJSON(ev pipeline.Event) (json.RawMessage, error) {
	kind := ev.Kind
	if kind == "" {
		kind = pipeline.EventManual
	}
	due := ""
	if !ev.Time.IsZero() {
		due = ev.Time.UTC().Format(time.RFC3339)
	}
	cause := ev.Cause
	if cause == nil {
		cause = &pipeline.Cause{}
	}
	outputs := map[pipeline.TaskName]json.RawMessage{}
	for name, raw := range cause.Outputs {
		outputs[name] = orObject(raw)
	}
	pull := ev.Pull
	if pull == nil {
		pull = &pipeline.EventPull{}
	}
	clean := func(s string) string { return strings.ToValidUTF8(s, "?") }
	const tags = "refs/tags/"
	tag := ""
	if rest, ok := strings.CutPrefix(string(ev.Ref), tags); ok {
		tag = rest
	}
	return json.Marshal(map[string]any{
		"kind": kind, "repo": ev.Repo, "ref": ev.Ref, "branch": ev.Ref.Branch(), "tag": tag,
		"commit": ev.Head, "base": ev.Base, "author": clean(ev.Author), "subject": clean(ev.Subject),
		"change": ev.Proposal, "target": ev.Target, "time": due, "payload": orObject(ev.Payload),
		"pull": map[string]any{
			"number": pull.Number, "title": clean(pull.Title), "author": clean(pull.Author.Login), "fork": pull.Fork,
		},
		"cause": map[string]any{
			"run": cause.Run, "composition": cause.Composition, "number": cause.Number, "task": cause.Task,
			"state": cause.State, "reason": clean(cause.Reason), "outputs": outputs,
		},
	})
}
