package config

import (
	"encoding/json"
	"fmt"
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
	return b.fill(f)
}

// fill evaluates a unit again with the run's values in it, and returns the
// concrete fields of one task.
func (b *batch) fill(f *fillRequest) filled {
	res := &unitResult{Dir: f.Unit}
	v, own, all, ok := b.buildOps(f.Unit, res)
	if !ok {
		return filled{Problem: "its unit does not evaluate: " + firstMessage(res.Diagnostics)}
	}
	c := &checker{batch: b, unit: f.Unit, own: own, all: all, root: v, res: res}
	c.x = explainer{batch: b, unit: f.Unit, idx: all, root: v, definition: c.definitionOf}
	comp := []cue.Selector{cue.Str("compositions"), cue.Str(string(f.Composition))}
	taskPath := append(slices.Clone(comp), cue.Str("tasks"), cue.Str(string(f.Task)))
	if !v.LookupPath(cue.MakePath(taskPath...)).Exists() {
		return filled{Problem: fmt.Sprintf("composition %q of %s has no task %q", f.Composition, f.Unit, f.Task)}
	}
	def := c.definitionOf(string(f.Composition), string(f.Task))
	if problem := c.checkGiven(f); problem != "" {
		return filled{Problem: problem}
	}
	if name := c.absent(f); name != "" {
		return filled{Problem: fmt.Sprintf("it reads an output of task %q, which has none", name)}
	}
	v, problem := b.pour(v, comp, taskPath, f)
	if problem != "" {
		return filled{Problem: problem}
	}
	fields := v.LookupPath(cue.MakePath(append(taskPath, cue.Str("fields"))...))
	if !fields.Exists() {
		return filled{Fields: json.RawMessage("{}")}
	}
	if err := fields.Validate(cue.Concrete(true)); err != nil {
		return filled{Problem: c.valueProblem(err)}
	}
	raw, err := fields.MarshalJSON()
	if err != nil {
		return filled{Problem: c.valueProblem(err)}
	}
	if problem := undeclaredSecret(def, raw, f.Secrets); problem != "" {
		return filled{Problem: problem}
	}
	return filled{Fields: raw}
}

// checkGiven compares the run's values with their declarations, in plainer words
// than CUE would find for what follows from a wrong one.
func (c *checker) checkGiven(f *fillRequest) string {
	w := &work{checker: c, name: string(f.Composition), v: get(c.root, "compositions", string(f.Composition))}
	w.readParams()
	params := pipeline.Type{Kind: pipeline.KindStruct, Fields: w.out.Params}
	if bad := misfits(params, f.Params); len(bad) > 0 {
		return "the params of the run: " + strings.Join(bad, "; ")
	}
	for _, name := range sortedNames(f.Outputs) {
		t := &task{name: string(name), v: get(w.v, "tasks", string(name)), outputs: map[string]cue.Value{}}
		if t.def = c.definitionOf(w.name, t.name); t.def == nil {
			continue
		}
		w.readOutputs(t)
		if bad := misfits(t.spec.Outputs, f.Outputs[name]); len(bad) > 0 {
			return fmt.Sprintf("the outputs of task %q: %s", name, strings.Join(bad, "; "))
		}
	}
	return ""
}

func misfits(t pipeline.Type, raw json.RawMessage) []string {
	if len(raw) == 0 {
		raw = json.RawMessage("{}")
	}
	bad := t.CheckJSON(raw)
	for i := range bad {
		bad[i] = plain(bad[i])
	}
	return bad[:min(len(bad), 5)]
}

// absent names a task whose outputs the fields refer to and that has none.
func (c *checker) absent(f *fillRequest) string {
	w, missing := &work{checker: c, name: string(f.Composition)}, ""
	for _, p := range c.all.at("compositions", string(f.Composition), "tasks", string(f.Task)) {
		if p.value == nil {
			continue
		}
		w.chainsIn(p.value, func(ch chain, _ spelling) {
			if len(ch) < 2 || ch[0].name != "tasks" || missing != "" {
				return
			}
			if _, ok := f.Outputs[pipeline.TaskName(ch[1].name)]; !ok {
				missing = ch[1].name
			}
		})
	}
	return missing
}

// pour puts the run's values in their places. Filling from the root keeps closed
// structs closed.
func (b *batch) pour(v cue.Value, comp, taskPath []cue.Selector, f *fillRequest) (cue.Value, string) {
	v = v.FillPath(cue.MakePath(cue.Str("event")), f.Event)
	fillJSON := func(raw json.RawMessage, path ...cue.Selector) string {
		if len(raw) == 0 {
			return ""
		}
		x, err := cuejson.Extract("", raw)
		if err != nil {
			return "is not JSON"
		}
		v = v.FillPath(cue.MakePath(path...), b.ctx.BuildExpr(x))
		return ""
	}
	if bad := fillJSON(f.Params, append(slices.Clone(comp), cue.Str("params"))...); bad != "" {
		return v, "the params of the run: " + bad
	}
	tasks := append(slices.Clone(comp), cue.Str("tasks"))
	for _, name := range sortedNames(f.Outputs) {
		path := append(slices.Clone(tasks), cue.Str(string(name)), cue.Str("outputs"))
		if bad := fillJSON(f.Outputs[name], path...); bad != "" {
			return v, fmt.Sprintf("the outputs of task %q: %s", name, bad)
		}
	}
	for _, bind := range f.Bindings {
		from := cue.MakePath(append(slices.Clone(tasks), cue.Str(string(bind.From)), cue.Str("outputs"), cue.Str(bind.Output))...)
		if _, ok := f.Outputs[bind.From]; !ok {
			return v, fmt.Sprintf("field %q takes output %q of task %q, which has no outputs", bind.Field, bind.Output, bind.From)
		}
		got := v.LookupPath(from)
		if !got.Exists() {
			return v, fmt.Sprintf("field %q takes output %q of task %q, which did not report it", bind.Field, bind.Output, bind.From)
		}
		v = v.FillPath(cue.MakePath(append(slices.Clone(taskPath), cue.Str("fields"), cue.Str(bind.Field))...), got)
	}
	return v, ""
}

func sortedNames[V any](m map[pipeline.TaskName]V) []pipeline.TaskName {
	out := make([]pipeline.TaskName, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

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
