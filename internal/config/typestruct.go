package config

import (
	"encoding/json"
	"fmt"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/format"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func compileList(v cue.Value, depth int) (pipeline.Type, error) {
	t := pipeline.Type{Kind: pipeline.KindList}
	rest := v.LookupPath(cue.MakePath(cue.AnyIndex))
	if !v.Allows(cue.AnyIndex) || !rest.Exists() {
		if !v.Allows(cue.AnyIndex) {
			return pipeline.Type{}, inexpressible("a list of fixed length cannot be used here; write [...T]")
		}
		return t, nil
	}
	elem, err := compileAt(rest, depth+1)
	if err != nil {
		return pipeline.Type{}, err
	}
	if elem.Kind != pipeline.KindAny {
		t.Elem = &elem
	}
	iter, err := v.List()
	if err != nil {
		return pipeline.Type{}, inexpressible("is not a plain list")
	}
	for iter.Next() {
		first, err := compileAt(iter.Value(), depth+1)
		if err != nil {
			return pipeline.Type{}, err
		}
		if !equalTypes(first, elem) {
			return pipeline.Type{}, inexpressible("all elements of a list must have the same type")
		}
		t.MinItems++
	}
	return t, nil
}

// maxTypeFields bounds a struct type.
const maxTypeFields = 500

func compileStruct(v cue.Value, depth int) (pipeline.Type, error) {
	if isSecretRef(v) {
		return pipeline.Type{Kind: pipeline.KindSecret}, nil
	}
	t := pipeline.Type{Kind: pipeline.KindStruct}
	iter, err := v.Fields(cue.Optional(true), cue.Patterns(true))
	if err != nil {
		return pipeline.Type{}, inexpressible("is not a plain struct")
	}
	for iter.Next() {
		if iter.Selector().LabelType() != cue.StringLabel || iter.Selector().ConstraintType() == cue.PatternConstraint {
			if err := openPattern(iter, &t, depth); err != nil {
				return pipeline.Type{}, err
			}
			continue
		}
		f, err := compileField(iter, depth)
		if err != nil {
			return pipeline.Type{}, under(iter.Selector().Unquoted(), err)
		}
		if t.Fields = append(t.Fields, f); len(t.Fields) > maxTypeFields {
			return pipeline.Type{}, inexpressible("has more than %d fields", maxTypeFields)
		}
	}
	if !t.Open && v.Allows(cue.AnyString) {
		t.Open = true
	}
	return t, nil
}

// openPattern reads [string]: T; any narrower pattern on names has no counterpart.
func openPattern(iter *cue.Iterator, t *pipeline.Type, depth int) error {
	pattern := iter.Selector().Pattern()
	if !pattern.Exists() || pattern.IncompleteKind() != cue.StringKind {
		return inexpressible("a pattern on field names cannot be used here; write [string]: T")
	}
	if op, _ := pattern.Expr(); op != cue.NoOp {
		return inexpressible("a pattern on field names cannot be used here; write [string]: T")
	}
	rest, err := compileAt(iter.Value(), depth+1)
	if err != nil {
		return err
	}
	t.Open = true
	if rest.Kind != pipeline.KindAny {
		t.Rest = &rest
	}
	return nil
}

func compileField(iter *cue.Iterator, depth int) (pipeline.Field, error) {
	v := iter.Value()
	t, err := compileAt(v, depth+1)
	if err != nil {
		return pipeline.Field{}, err
	}
	t.Text = constraintText(v)
	return pipeline.Field{
		Name: iter.Selector().Unquoted(), Type: t, Doc: docOf(v),
		Optional: iter.Selector().ConstraintType() == cue.OptionalConstraint,
		Default:  defaultOf(v),
	}, nil
}

// defaultOf returns the value marked with *, as JSON. A concrete value is not a
// default, and neither is the empty list that CUE makes of [...T].
func defaultOf(v cue.Value) json.RawMessage {
	d, ok := v.Default()
	if !ok || v.IsConcrete() && v.Kind() != cue.BottomKind {
		return nil
	}
	raw, err := d.MarshalJSON()
	if err != nil {
		return nil
	}
	return raw
}

func under(name string, err error) error {
	te, ok := err.(*typeError)
	if !ok {
		return err
	}
	path := name
	if te.path != "" {
		path += "." + te.path
	}
	return &typeError{path: path, what: te.what}
}

// isSecretRef recognises maestro.#SecretRef, however it was reached.
func isSecretRef(v cue.Value) bool {
	n := 0
	iter, err := v.Fields(cue.Optional(true))
	if err != nil {
		return false
	}
	for iter.Next() {
		if n++; n > 1 || iter.Selector().LabelType() != cue.StringLabel || iter.Selector().Unquoted() != "secret" {
			return false
		}
	}
	if n != 1 || v.Allows(cue.AnyString) {
		return false
	}
	k := v.LookupPath(cue.MakePath(cue.Str("secret").Required()))
	if !k.Exists() {
		k = v.LookupPath(cue.ParsePath("secret"))
	}
	return k.IncompleteKind() == cue.StringKind
}

// constraintText is a constraint as its author wrote it, for messages.
func constraintText(v cue.Value) string {
	if e, ok := v.Source().(*ast.Field); ok && e.Value != nil {
		return exprText(e.Value)
	}
	return sourceOf(v)
}

func sourceOf(v cue.Value) string {
	switch n := v.Source().(type) {
	case *ast.Field:
		return exprText(n.Value)
	case ast.Expr:
		return exprText(n)
	}
	return plain(fmt.Sprint(v))
}

func exprText(e ast.Expr) string { return plain(strings.Join(strings.Fields(canonical(e)), " ")) }

// canonical is the text of an expression in a layout of its own and without
// comments, so that formatting a file changes nothing.
func canonical(e ast.Node) string {
	if e == nil {
		return ""
	}
	ast.Walk(e, func(n ast.Node) bool {
		if len(ast.Comments(n)) > 0 {
			ast.SetComments(n, nil)
		}
		ast.SetRelPos(n, token.NoRelPos)
		return true
	}, nil)
	b, err := format.Node(e, format.Simplify())
	if err != nil {
		return ""
	}
	return string(b)
}

func docOf(v cue.Value) string {
	var out strings.Builder
	for _, g := range v.Doc() {
		out.WriteString(g.Text())
	}
	return strings.TrimSpace(out.String())
}
