package config

import (
	"encoding/json"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// expr reads a value that may wait for the run.
func (w *work) expr(v cue.Value, path ...string) pipeline.Expr {
	e := pipeline.Expr{Deferred: w.waits(path...)}
	e.Pos, _ = w.all.value(w.path(path...)...)
	if !e.Deferred {
		if err := v.Validate(cue.Concrete(true)); err != nil {
			if v.Validate() == nil { // else it has been reported
				w.complain(w.x.errors(err)...)
			}
			return e
		}
		e.Value, _ = v.MarshalJSON() // validated as concrete
		return e
	}
	e.Text = w.writtenAt(path...)
	for _, read := range w.readsAt(path...) {
		if name := pipeline.TaskName(read.task); !slices.Contains(e.Reads, name) {
			e.Reads = append(e.Reads, name)
		}
	}
	e.Seal = w.seal(path...)
	return e
}

// waits reports whether a value refers to the run, or may, because something
// around it does that is not written out as fields.
func (w *work) waits(path ...string) bool {
	if w.passes() {
		return true
	}
	for n := range path {
		for _, p := range w.all.at(w.path(path[:n]...)...) {
			if n > 0 && len(reaches(hiddenParts(p.value)...)) > 0 || n > 0 && len(reaches(looseParts(p.value)...)) > 0 || len(reaches(p.guards...)) > 0 {
				return true
			}
		}
	}
	for _, p := range w.all.at(w.path(path...)...) {
		if len(reaches(p.guards...)) > 0 || p.value != nil && len(reaches(p.value)) > 0 {
			return true
		}
	}
	return false
}

// writtenAt is a value as its author wrote it.
func (w *work) writtenAt(path ...string) string {
	var parts []string
	for _, p := range w.all.at(w.path(path...)...) {
		if s := exprText(p.value); s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, " & ")
}

// shape is what is known of the type of a value before the run; exact is false
// when the value may be narrower than its type says.
func (w *work) shape(v cue.Value, path ...string) (t pipeline.Type, exact bool) {
	defer func() {
		if t.Text == "" {
			t.Text = w.writtenAt(path...)
		}
	}()
	if !w.waits(path...) {
		if raw, err := v.MarshalJSON(); err == nil && v.Validate(cue.Concrete(true)) == nil {
			return pipeline.Type{Kind: kindOfValue(v), Enum: []json.RawMessage{raw}, Text: plain(string(raw))}, true
		}
		t, err := compileType(v)
		if err != nil {
			return looseType(v), false
		}
		t.Text = constraintText(v)
		return t, true
	}
	places := w.all.at(w.path(path...)...)
	if len(places) != 1 || places[0].value == nil {
		return looseType(v), false
	}
	if len(path) > 1 && path[0] == "tasks" {
		if t := w.task(path[1]); t != nil && t.item != nil && w.isItem(t, places[0].value) {
			return *t.item, true
		}
	}
	if c, _ := w.read(chainOf(places[0].value, 0)); c != nil && c[0].name != "event" {
		return w.referred(c, v)
	}
	return w.composite(v, places[0].value, path...)
}

func kindOfValue(v cue.Value) pipeline.Kind {
	switch v.Kind() {
	case cue.StructKind:
		return pipeline.KindStruct
	case cue.ListKind:
		return pipeline.KindList
	}
	return kindOfCUE(v.Kind())
}

// looseType is as much of a type as CUE can tell of a value that is not there yet.
func looseType(v cue.Value) pipeline.Type {
	switch k := v.IncompleteKind(); k {
	case cue.StructKind:
		return pipeline.Type{Kind: pipeline.KindStruct, Open: true}
	case cue.ListKind:
		return pipeline.Type{Kind: pipeline.KindList}
	default:
		if kind := kindOfCUE(k); kind != "" && k != cue.TopKind {
			return pipeline.Type{Kind: kind}
		}
	}
	return pipeline.Type{Kind: pipeline.KindAny}
}

// referred is the type of what a reference leads to: as it is declared, because
// where it is used a default would stand for it.
func (w *work) referred(c chain, v cue.Value) (pipeline.Type, bool) {
	if c[0].name == "params" && len(c) == 2 {
		if p := w.param(c[1].name); p != nil {
			return p.Type, true
		}
	}
	text := constraintText(v)
	if c[0].name == "tasks" && len(c) == 4 {
		if p := w.task(c[1].name); p != nil && p.outputs[c[3].name].Exists() {
			v = p.outputs[c[3].name]
			text = constraintText(v)
		}
	}
	t, err := compileType(v)
	if err != nil {
		return looseType(v), false
	}
	t.Text = text
	return t, true
}

// comparisons make a bool of whatever they compare.
var comparisons = []token.Token{token.EQL, token.NEQ, token.LSS, token.LEQ, token.GTR, token.GEQ, token.LAND, token.LOR}

// readsAsText reports whether an expression is a text by its form.
func readsAsText(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Interpolation:
		return true
	case *ast.BasicLit:
		return e.Kind == token.STRING
	case *ast.BinaryExpr:
		return e.Op == token.ADD && (readsAsText(e.X) || readsAsText(e.Y))
	}
	return false
}

// composite is the type of an expression by its form.
func (w *work) composite(v cue.Value, e ast.Expr, path ...string) (pipeline.Type, bool) {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return w.composite(v, e.X, path...)
	case *ast.Interpolation:
		return pipeline.Type{Kind: pipeline.KindString}, false
	case *ast.BinaryExpr:
		if slices.Contains(comparisons, e.Op) {
			return pipeline.Type{Kind: pipeline.KindBool}, false
		}
		if e.Op == token.ADD && (readsAsText(e.X) || readsAsText(e.Y)) {
			return pipeline.Type{Kind: pipeline.KindString}, false
		}
	case *ast.StructLit:
		if len(looseParts(e)) > 0 || slices.ContainsFunc(e.Elts, func(d ast.Decl) bool { _, ok := d.(*ast.Comprehension); return ok }) {
			return looseType(v), false
		}
		iter, err := v.Fields()
		if err != nil {
			return looseType(v), false
		}
		t, exact := pipeline.Type{Kind: pipeline.KindStruct}, true
		for iter.Next() {
			name := iter.Selector().Unquoted()
			inner, ok := w.shape(iter.Value(), append(slices.Clone(path), name)...)
			t.Fields = append(t.Fields, pipeline.Field{Name: name, Type: inner})
			exact = exact && ok
		}
		return t, exact
	case *ast.ListLit:
		if slices.ContainsFunc(e.Elts, func(x ast.Expr) bool { return !plainElement(x) }) {
			return looseType(v), false
		}
		var alts []pipeline.Type
		exact := true
		for i := range e.Elts {
			inner, ok := w.shape(v.LookupPath(cue.MakePath(cue.Index(i))), append(slices.Clone(path), itoa(i))...)
			alts = append(alts, inner)
			exact = exact && ok
		}
		elem := oneOf(alts)
		return pipeline.Type{Kind: pipeline.KindList, Elem: &elem, MinItems: len(e.Elts)}, exact
	}
	return looseType(v), false
}

func plainElement(x ast.Expr) bool {
	switch x.(type) {
	case *ast.Comprehension, *ast.Ellipsis:
		return false
	}
	return true
}
