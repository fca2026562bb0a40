package config

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/errors"
	cuejson "cuelang.org/go/encoding/json"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func fillSafely(b *batch, f *fillRequest) (out filled) {
	defer func() {
		if p := recover(); p != nil {
			out = filled{Problem: "the evaluator gave up: " + plain(fmt.Sprint(p))}
		}
	}()
	v, problem := b.fill(f)
	return filled{Value: v, Problem: problem}
}

// A filling is one deferred value being computed.
type filling struct {
	*work
	req  *fillRequest
	root cue.Value
	// task as it is written; instances of a fan-out share it.
	task string
	// path of the value in the composition.
	path []string
}

// fill evaluates a unit again with the run's values in it, and returns one value
// of it, or why it cannot be had.
func (b *batch) fill(req *fillRequest) (json.RawMessage, string) {
	res := &unitResult{Dir: req.Unit}
	v, own, all, ok := b.buildOps(req.Unit, res)
	if !ok {
		return nil, "its unit does not evaluate: " + firstMessage(res.Diagnostics)
	}
	c := &checker{batch: b, unit: req.Unit, own: own, all: all, root: v, res: res}
	c.x = explainer{batch: b, unit: req.Unit, idx: all, root: v, definition: c.definitionOf}
	name := string(req.Composition)
	f := &filling{req: req, root: v, work: &work{checker: c.withTemplates(name), name: name, v: get(v, "compositions", name)}}
	f.task = string(req.Blank.Task)
	if req.Each != nil {
		f.task = string(req.Each.Of)
	}
	f.path = partPath(req.Blank, f.task)
	for _, step := range []func() string{f.isThere, f.checkGiven, f.isReported, f.pour, f.pourItem} {
		if problem := step(); problem != "" {
			return nil, problem
		}
	}
	if req.Blank.Part == pipeline.PartHook {
		return f.hookParams()
	}
	if f.cleansUp() {
		return f.fieldsAtHand()
	}
	raw, problem := f.concrete(f.value(f.path...), req.Blank.Part)
	if problem == "" && req.Blank.Part == pipeline.PartFields {
		if def := c.definitionOf(name, f.task); def != nil {
			var fields map[string]json.RawMessage
			if err := json.Unmarshal(raw, &fields); err != nil {
				return nil, "its fields are no struct"
			}
			return f.finished(fields, def)
		}
	}
	return raw, problem
}

// partPath leads from a composition to a value that a run may have to compute.
func partPath(b pipeline.Blank, task string) []string {
	switch b.Part {
	case pipeline.PartFields:
		return []string{"tasks", task, "fields"}
	case pipeline.PartIf:
		return []string{"tasks", task, "when"}
	case pipeline.PartItems:
		return []string{"tasks", task, "each", "items"}
	case pipeline.PartHook:
		if task == "" {
			return []string{"onFailure", "with"}
		}
		return []string{"tasks", task, "onFailureRun", "with"}
	case pipeline.PartGroup:
		return []string{"concurrency", "group"}
	case pipeline.PartOutputs:
		return []string{"outputs"}
	case pipeline.PartTrigger:
		return []string{"triggers", itoa(b.Trigger), "params"}
	}
	return nil
}

// selectors turns a path in the composition into CUE's from the root; a number
// counts in a list.
func (f *filling) selectors(path ...string) cue.Path {
	sels := []cue.Selector{cue.Str("compositions"), cue.Str(f.name)}
	for i, name := range path {
		if i == 1 && path[0] == "triggers" {
			sels = append(sels, cue.Index(f.req.Blank.Trigger))
			continue
		}
		sels = append(sels, cue.Str(name))
	}
	return cue.MakePath(sels...)
}

func (f *filling) value(path ...string) cue.Value { return f.root.LookupPath(f.selectors(path...)) }

func (f *filling) isThere() string {
	switch {
	case f.path == nil:
		return fmt.Sprintf("nothing is called %q", f.req.Blank.Part)
	case !f.value().Exists():
		return fmt.Sprintf("%s has no composition %q", f.req.Unit, f.name)
	case f.task != "" && !f.value("tasks", f.task).Exists():
		return fmt.Sprintf("composition %q of %s has no task %q", f.name, f.req.Unit, f.task)
	}
	return ""
}

// checkGiven compares the run's values with their declarations, in plainer words
// than CUE would find for what follows from a wrong one.
func (f *filling) checkGiven() string {
	if f.req.Blank.Part != pipeline.PartTrigger { // before there are params
		f.readParams()
		params := pipeline.Type{Kind: pipeline.KindStruct, Fields: f.out.Params}
		if bad := misfits(params, f.req.Params); len(bad) > 0 {
			return "the params of the run: " + strings.Join(bad, "; ")
		}
	}
	for _, name := range sortedNames(f.req.Outputs) {
		t := &task{name: string(name), v: get(f.v, "tasks", string(name)), outputs: map[string]cue.Value{}}
		if t.def = f.definitionOf(f.name, t.name); t.def == nil {
			continue
		}
		f.readOutputs(t)
		// A task that failed may have reported some of them.
		reported := t.spec.Outputs
		reported.Fields = slices.Clone(reported.Fields)
		for i := range reported.Fields {
			reported.Fields[i].Optional = true
		}
		if bad := misfits(reported, f.req.Outputs[name]); len(bad) > 0 {
			return fmt.Sprintf("the outputs of task %q: %s", name, strings.Join(bad, "; "))
		}
	}
	return ""
}

func misfits(t pipeline.Type, raw json.RawMessage) []string {
	bad := t.CheckJSON(orObject(raw))
	for i := range bad {
		bad[i] = plain(bad[i])
	}
	return bad[:min(len(bad), 5)]
}

// isReported refuses a value that refers to outputs that are not there: CUE would
// make an empty list of one that is a list.
func (f *filling) isReported() string {
	if f.req.Blank.Part == pipeline.PartHook || f.cleansUp() {
		return "" // left out one by one
	}
	return f.unreported(f.path...)
}

// cleansUp reports whether the fields are those of a task that runs after failures
// as well, when not everything has been reported.
func (f *filling) cleansUp() bool {
	run := pipeline.RunWhen(text(f.value("tasks", f.task, "run")))
	return f.req.Blank.Part == pipeline.PartFields && run != pipeline.OnSuccess && run != ""
}

// fieldsAtHand are the fields of such a task. One that it can do without is left
// out when what it reads is not there.
func (f *filling) fieldsAtHand() (json.RawMessage, string) {
	def := f.definitionOf(f.name, f.task)
	iter, err := f.value(f.path...).Fields()
	if err != nil || def == nil {
		return nil, "its fields cannot be read"
	}
	out := map[string]json.RawMessage{}
	for iter.Next() {
		name := iter.Selector().Unquoted()
		if problem := f.unreported(append(slices.Clone(f.path), name)...); problem != "" {
			if d := def.field(name); d != nil && d.mayLack() {
				continue
			}
			return nil, problem
		}
		raw, problem := f.concrete(iter.Value(), pipeline.PartFields)
		if problem != "" {
			return nil, problem
		}
		out[name] = raw
	}
	return f.finished(out, def)
}

// finished puts fields together, unless they name a secret that they must not.
func (f *filling) finished(out map[string]json.RawMessage, def *definition) (json.RawMessage, string) {
	raw, err := json.Marshal(out)
	if err != nil {
		return nil, "its fields are not JSON"
	}
	if problem := undeclaredSecret(def, raw, f.req.Secrets); problem != "" {
		return nil, problem
	}
	if def.uses == coreRun {
		raw = callFields(raw)
	}
	return raw, ""
}

// unreported names an output that a value reads and that is not there.
func (f *filling) unreported(path ...string) string {
	for _, read := range f.readsAt(path...) {
		raw, ok := f.req.Outputs[pipeline.TaskName(read.task)]
		if !ok {
			return fmt.Sprintf("it reads an output of task %q, which has none", read.task)
		}
		var have map[string]json.RawMessage
		if err := json.Unmarshal(orObject(raw), &have); err != nil {
			return fmt.Sprintf("the outputs of task %q are no JSON object", read.task)
		}
		wanted := []string{read.output}
		if read.output == "" {
			wanted = fieldNames(get(f.v, "tasks", read.task, "outputs"))
		}
		for _, name := range wanted {
			if _, ok := have[name]; !ok {
				return fmt.Sprintf("it reads output %q of task %q, which did not report it", name, read.task)
			}
		}
	}
	return ""
}

// pour puts the run's values in their places. Filling from the root keeps closed
// structs closed.
func (f *filling) pour() string {
	f.root = f.root.FillPath(cue.MakePath(cue.Str("event")), f.json(f.req.Event))
	if len(f.req.Params) > 0 && f.req.Blank.Part != pipeline.PartTrigger {
		f.root = f.root.FillPath(f.selectors("params"), f.json(f.req.Params))
	}
	for _, name := range sortedNames(f.req.Outputs) {
		if at := []string{"tasks", string(name)}; f.value(at...).Exists() { // an instance of a fan-out has no place
			f.root = f.root.FillPath(f.selectors(append(at, "outputs")...), f.json(orObject(f.req.Outputs[name])))
		}
	}
	for _, bind := range f.req.Bindings {
		if problem := f.pourBinding(bind); problem != "" {
			return problem
		}
	}
	return ""
}

// json makes a CUE value of JSON that was found to be valid.
func (f *filling) json(raw json.RawMessage) cue.Value {
	x, err := cuejson.Extract("", raw)
	if err != nil {
		return f.batch.ctx.CompileString("_|_")
	}
	return f.batch.ctx.BuildExpr(x)
}

func (f *filling) pourBinding(bind pipeline.Binding) string {
	got := f.value("tasks", string(bind.From), "outputs", bind.Output)
	if bind.Optional && (f.req.Outputs[bind.From] == nil || !got.Exists() || got.Validate(cue.Concrete(true)) != nil) {
		return ""
	}
	if _, ok := f.req.Outputs[bind.From]; !ok {
		return fmt.Sprintf("field %q takes output %q of task %q, which has no outputs", bind.Field, bind.Output, bind.From)
	}
	if !got.Exists() {
		return fmt.Sprintf("field %q takes output %q of task %q, which did not report it", bind.Field, bind.Output, bind.From)
	}
	f.root = f.root.FillPath(f.selectors("tasks", f.task, "fields", bind.Field), got)
	return ""
}

// pourItem gives an instance of a fan-out its element of the list.
func (f *filling) pourItem() string {
	if f.req.Each == nil || f.req.Blank.Part == pipeline.PartItems {
		return ""
	}
	at := []string{"tasks", f.task, "each", "items"}
	if problem := f.unreported(at...); problem != "" {
		return "its list: " + problem
	}
	raw, problem := f.concrete(f.value(at...), pipeline.PartItems)
	if problem != "" {
		return problem
	}
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil || f.req.Each.Index < 1 || f.req.Each.Index > len(items) {
		return fmt.Sprintf("the list has no element %d", f.req.Each.Index)
	}
	f.root = f.root.FillPath(f.selectors("tasks", f.task, "each", "item"), f.json(items[f.req.Each.Index-1]))
	return ""
}

// concrete is a value as JSON, or what keeps it from being one.
func (f *filling) concrete(v cue.Value, part pipeline.Part) (json.RawMessage, string) {
	if !v.Exists() {
		return json.RawMessage(empty(part)), ""
	}
	if err := v.Validate(cue.Concrete(true)); err != nil {
		return nil, f.valueProblem(err)
	}
	raw, err := v.MarshalJSON()
	if err != nil {
		return nil, f.valueProblem(err)
	}
	return raw, ""
}

// empty is what a part is that nobody wrote.
func empty(part pipeline.Part) string {
	switch part {
	case pipeline.PartIf:
		return "true"
	case pipeline.PartItems:
		return "[]"
	case pipeline.PartGroup:
		return `""`
	}
	return "{}"
}

// hookParams are the params of a hook that can be had: a hook is called when
// something failed, and what failed has reported nothing.
func (f *filling) hookParams() (json.RawMessage, string) {
	iter, err := f.value(f.path...).Fields()
	if err != nil {
		return json.RawMessage("{}"), "" // it gives none
	}
	out := map[string]json.RawMessage{}
	for iter.Next() {
		name := iter.Selector().Unquoted()
		if f.unreported(append(slices.Clone(f.path), name)...) != "" {
			continue
		}
		raw, problem := f.concrete(iter.Value(), f.req.Blank.Part)
		if problem != "" {
			return nil, problem
		}
		out[name] = raw
	}
	raw, err := json.Marshal(out)
	if err != nil {
		return nil, "its params are not JSON"
	}
	return raw, ""
}

func sortedNames[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// valueProblem says why fields are not what they must be, once the run's values
// are in them.
func (c *checker) valueProblem(err error) string {
	var out []string
	done := map[string]bool{}
	for _, e := range errors.Errors(err) {
		key := keyOf(pathOf(e))
		if done[key] {
			continue
		}
		done[key] = true
		format, args := innermost(e)
		d := c.x.classify(e, format, args)
		s := d.Message
		if v := valueAt(err, key); d.Code == codeValue && v != "" {
			s += ": in this run it is " + v
		}
		if d.Pos.File != "" {
			s = d.Pos.String() + ": " + s
		}
		if out = append(out, s); len(out) == 5 {
			break
		}
	}
	return strings.Join(out, "; ")
}

// valueAt is the value that an error at a path is about, if CUE says it.
func valueAt(err error, key string) string {
	for _, e := range errors.Errors(err) {
		if format, args := innermost(e); format == cueOutOfBound && len(args) > 0 && keyOf(pathOf(e)) == key {
			return plain(fmt.Sprint(args[0]))
		}
	}
	return ""
}

func undeclaredSecret(def *definition, raw json.RawMessage, allowed []pipeline.SecretName) string {
	v, err := pipeline.DecodeJSON(raw)
	m, ok := v.(map[string]any)
	if def == nil || err != nil || !ok {
		return ""
	}
	for _, f := range def.fields {
		for _, name := range secretsIn(f.Type, m[f.Name]) {
			if !slices.Contains(allowed, pipeline.SecretName(name)) {
				return fmt.Sprintf("field %q refers to secret %q, which the plan does not list", f.Name, name)
			}
		}
	}
	return ""
}

func firstMessage(ds []pipeline.Diagnostic) string {
	if len(ds) == 0 {
		return "no reason was given"
	}
	return ds[0].String()
}
