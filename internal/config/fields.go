package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// readFields splits a task's fields into those that are known and those that wait.
func (w *work) readFields(t *task) {
	fields := get(t.v, "fields")
	loose := w.looseHits(t)
	known := map[string]json.RawMessage{}
	for _, f := range t.def.fields {
		fv := get(fields, f.Name)
		if !fv.Exists() {
			if f.presence == presenceRequired && f.inherit == "" && fields.Exists() {
				w.missing(t, &f)
			}
			continue
		}
		if loose[f.Name] {
			t.deferred[f.Name] = true
			w.deferredSecrets(t, &f)
		}
	}
	// A default that is made of other fields waits when any of them does.
	for _, f := range t.def.fields {
		if f.derived && len(t.deferred) > 0 && get(fields, f.Name).Exists() && len(w.all.at(w.path("tasks", t.name, "fields", f.Name)...)) == 0 {
			t.deferred[f.Name] = true
		}
	}
	if t.broken {
		return
	}
	for _, f := range t.def.fields {
		fv := get(fields, f.Name)
		if !fv.Exists() || t.deferred[f.Name] {
			continue
		}
		if err := fv.Validate(cue.Concrete(true)); err != nil {
			w.complain(w.x.errors(err)...)
			continue
		}
		raw, err := fv.MarshalJSON()
		if err != nil {
			pos, _ := w.all.value(w.path("tasks", t.name, "fields", f.Name)...)
			w.complain(diag(codeValue, pos, "task %q: field %q is not JSON", t.name, f.Name))
			continue
		}
		known[f.Name] = raw
		w.mentionSecrets(t, &f, raw)
	}
	t.spec.Deferred = len(t.deferred) > 0
	if len(known) > 0 {
		t.spec.Fields, _ = json.Marshal(known) // valid JSON by construction
	}
}

func (w *work) missing(t *task, f *fieldDef) {
	if w.x.meant[keyOf(w.path("tasks", t.name, "fields", f.Name))] {
		return // it is there under another name
	}
	d := diag(codeRequired, t.pos, "task %q (%s) needs field %q, %s", t.name, t.spec.Uses, f.Name, inWords(f.value))
	d.Note = declaredAt(f.pos)
	d.Help = "add fields: " + f.Name + ": " + sample(f.value)
	w.complain(d)
}

// looseHits reports which fields refer to the run. A field that was not written
// where the index can see it waits if anything around it refers to the run.
func (w *work) looseHits(t *task) map[string]bool {
	around := w.all.at(w.path("tasks", t.name)...)
	around = append(slices.Clone(around), w.all.at(w.path("tasks", t.name, "fields")...)...)
	loose := w.passes()
	for _, p := range around {
		loose = loose || len(reaches(hiddenParts(p.value)...)) > 0 || len(reaches(looseParts(p.value)...)) > 0 || len(reaches(p.guards...)) > 0
	}
	out := map[string]bool{}
	for _, f := range t.def.fields {
		places := w.all.at(w.path("tasks", t.name, "fields", f.Name)...)
		hit := loose
		for _, p := range places {
			hit = hit || p.value != nil && len(reaches(p.value)) > 0 || len(reaches(p.guards...)) > 0
		}
		out[f.Name] = hit
	}
	return out
}

// looseParts are the parts of an expression that are not written out as fields.
func looseParts(e ast.Expr) []ast.Node {
	switch e := e.(type) {
	case nil:
		return nil
	case *ast.ParenExpr:
		return looseParts(e.X)
	case *ast.BinaryExpr:
		return append(looseParts(e.X), looseParts(e.Y)...)
	case *ast.ListLit:
		var out []ast.Node
		for _, x := range e.Elts {
			if !plainElement(x) {
				out = append(out, x)
			}
		}
		return out
	case *ast.StructLit:
		var out []ast.Node
		for _, d := range e.Elts {
			switch d := d.(type) {
			case *ast.EmbedDecl:
				out = append(out, looseParts(d.Expr)...)
			case *ast.Field:
				if _, _, err := ast.LabelName(d.Label); err != nil {
					out = append(out, d)
				}
			}
		}
		return out
	}
	return []ast.Node{e}
}

func (w *work) readOutputs(t *task) {
	v := get(t.v, "outputs")
	t.spec.Outputs = pipeline.Type{Kind: pipeline.KindStruct, Open: t.def.openOutputs}
	if !v.Exists() || v.IncompleteKind() != cue.StructKind {
		return
	}
	iter, err := v.Fields(cue.Optional(true))
	if err != nil {
		return
	}
	for iter.Next() {
		if iter.Selector().LabelType() != cue.StringLabel || iter.Selector().ConstraintType() == cue.PatternConstraint {
			continue
		}
		name := iter.Selector().Unquoted()
		if !keyRE.MatchString(name) {
			pos, _ := w.all.label(w.path("tasks", t.name, "outputs", name)...)
			w.complain(badKey(fmt.Sprintf("an output of task %q", t.name), name, pos))
			continue
		}
		t.outputs[name] = iter.Value()
		f, err := compileField(iter, 0)
		if t.def.output(name) == nil || err != nil {
			pos, _ := w.all.label(w.path("tasks", t.name, "outputs", name)...)
			w.complain(checkOutput(fmt.Sprintf("task %q: output", t.name), name, pos, iter, err)...)
		}
		f.Default = nil
		t.spec.Outputs.Fields = append(t.spec.Outputs.Fields, f)
	}
	sort.Slice(t.spec.Outputs.Fields, func(i, j int) bool { return t.spec.Outputs.Fields[i].Name < t.spec.Outputs.Fields[j].Name })
}

func (d *definition) output(name string) *fieldDef {
	for i := range d.outputs {
		if d.outputs[i].Name == name {
			return &d.outputs[i]
		}
	}
	return nil
}

// mentionSecrets records the secrets that a known field refers to, each where its
// name is written.
func (w *work) mentionSecrets(t *task, f *fieldDef, raw json.RawMessage) {
	v, err := pipeline.DecodeJSON(raw)
	if err != nil {
		return
	}
	base := w.path("tasks", t.name, "fields", f.Name)
	written := w.writtenSecrets(base)
	for _, name := range secretsIn(f.Type, v) {
		if len(written[name]) == 0 {
			pos, _ := w.all.value(base...)
			w.mentionSecret(t, name, pos)
		}
		for _, pos := range written[name] {
			w.mentionSecret(t, name, pos)
		}
	}
}

// writtenSecrets finds the names of secrets that are written out below a path.
func (w *work) writtenSecrets(base []string) map[string][]pipeline.Position {
	out := map[string][]pipeline.Position{}
	prefix := keyOf(base) + pathSep
	for key, places := range w.all.places {
		if !strings.HasPrefix(key, prefix) || !strings.HasSuffix(key, pathSep+"secret") {
			continue
		}
		for _, p := range places {
			if lit, ok := p.value.(*ast.BasicLit); ok {
				name := unquote(lit.Value)
				out[name] = append(out[name], position(lit.Pos()))
			}
		}
	}
	for _, ps := range out {
		slices.SortFunc(ps, func(a, b pipeline.Position) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
		})
	}
	return out
}

// deferredSecrets looks at a field that waits for the run. Which secrets it can
// reach must be written out all the same.
func (w *work) deferredSecrets(t *task, f *fieldDef) {
	if !holds(f.Type, pipeline.KindSecret) {
		return
	}
	base := w.path("tasks", t.name, "fields", f.Name)
	written := w.writtenSecrets(base)
	for _, name := range sortedKeys(written) {
		for _, pos := range written[name] {
			w.mentionSecret(t, name, pos)
		}
	}
	if f.Type.Kind == pipeline.KindSecret && len(w.all.at(append(base, "secret")...)) == 0 || w.secretRefers(keyOf(base)) {
		pos, _ := w.all.value(base...)
		d := diag(codeSecret, pos, "task %q: field %q: a secret must be named where it is used", t.name, f.Name)
		d.Note = "which secrets a task can reach is decided by the file, not by the run"
		d.Help = "write " + f.Name + `: secret: "NAME"`
		w.complain(d)
	}
}

// secretRefers reports whether the name of a secret below a path waits for the run.
func (w *work) secretRefers(base string) bool {
	for key, places := range w.all.places {
		if !strings.HasPrefix(key, base+pathSep) || !strings.HasSuffix(key, pathSep+"secret") {
			continue
		}
		if slices.ContainsFunc(places, func(p place) bool { return p.value != nil && len(reaches(p.value)) > 0 }) {
			return true
		}
	}
	return false
}

func (w *work) mention(kind, name string, task pipeline.TaskName, pos pipeline.Position) {
	w.res.Mentions = append(w.res.Mentions, mention{Kind: kind, Name: name, Composition: w.out.Name, Task: task, Pos: pos})
}

func (w *work) mentionSecret(t *task, name string, pos pipeline.Position) {
	w.mention(mentionSecret, name, t.spec.Name, pos)
	if s := pipeline.SecretName(name); !slices.Contains(t.spec.Secrets, s) {
		t.spec.Secrets = append(t.spec.Secrets, s)
		slices.Sort(t.spec.Secrets)
	}
}

// secretsIn finds the references to secrets in a value of a type.
func secretsIn(t pipeline.Type, v any) []string {
	var out []string
	switch t.Kind {
	case pipeline.KindSecret:
		if m, ok := v.(map[string]any); ok {
			if s, ok := m["secret"].(string); ok {
				out = append(out, s)
			}
		}
	case pipeline.KindOneOf:
		for _, alt := range t.OneOf {
			if alt.Fits(v) {
				return secretsIn(alt, v)
			}
		}
	case pipeline.KindList:
		list, _ := v.([]any)
		for _, e := range list {
			if t.Elem != nil {
				out = append(out, secretsIn(*t.Elem, e)...)
			}
		}
	case pipeline.KindStruct:
		m, _ := v.(map[string]any)
		for _, name := range sortedKeys(m) {
			if inner, ok := fieldType(t, name); ok {
				out = append(out, secretsIn(inner, m[name])...)
			}
		}
	}
	return out
}

func fieldType(t pipeline.Type, name string) (pipeline.Type, bool) {
	for _, f := range t.Fields {
		if f.Name == name {
			return f.Type, true
		}
	}
	if t.Rest != nil {
		return *t.Rest, true
	}
	return pipeline.Type{}, false
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// holds reports whether values of a type may contain a value of a kind.
func holds(t pipeline.Type, kind pipeline.Kind) bool {
	if t.Kind == kind {
		return true
	}
	inner := func(u pipeline.Type) bool { return holds(u, kind) }
	return slices.ContainsFunc(t.OneOf, inner) ||
		slices.ContainsFunc(t.Fields, func(f pipeline.Field) bool { return inner(f.Type) }) ||
		t.Elem != nil && inner(*t.Elem) || t.Rest != nil && inner(*t.Rest)
}
