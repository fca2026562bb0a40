package config

import (
	"encoding/json"
	"fmt"
	"math/big"
	"slices"

	"cuelang.org/go/cue"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// pathPattern is how a maestro.#Path is told from any other string, see schema.cue.
const pathPattern = `\x00`

// typeError says which part of a constraint has no counterpart in pipeline.Type.
type typeError struct {
	path string
	what string
}

func (e *typeError) Error() string {
	if e.path == "" {
		return e.what
	}
	return e.path + ": " + e.what
}

func inexpressible(format string, args ...any) error {
	return &typeError{what: fmt.Sprintf(format, args...)}
}

// maxTypeDepth bounds how deep a type nests; shared CUE values can make a short
// text a very deep one.
const maxTypeDepth = 32

// compileType turns a CUE constraint into one that needs no CUE. What it cannot
// express exactly is an error, never an approximation.
func compileType(v cue.Value) (pipeline.Type, error) {
	return compileAt(v, 0)
}

func compileAt(v cue.Value, depth int) (pipeline.Type, error) {
	if depth > maxTypeDepth {
		return pipeline.Type{}, inexpressible("nests more than %d deep", maxTypeDepth)
	}
	v = cue.Dereference(v)
	if rest, ok := withoutDefault(v); ok {
		return compileAt(rest, depth+1)
	}
	if err := v.Err(); err != nil && v.IncompleteKind() == cue.BottomKind {
		return pipeline.Type{}, inexpressible("it cannot be evaluated by itself")
	}
	if k := v.IncompleteKind(); k == cue.StructKind || k == cue.ListKind {
		if err := noFunctions(v, depth); err != nil {
			return pipeline.Type{}, err
		}
	}
	switch v.IncompleteKind() {
	case cue.StructKind:
		if op, args := v.Expr(); op == cue.OrOp {
			return compileStructs(v, args, depth)
		}
		return compileStruct(v, depth)
	case cue.ListKind:
		if op, args := v.Expr(); op == cue.OrOp {
			return compileOr(args, depth)
		}
		return compileList(v, depth)
	}
	if v.IsConcrete() && isScalar(v.Kind()) {
		return compileConst(v)
	}
	return compileExpr(v, depth)
}

// noFunctions refuses structs and lists with a validator such as list.MaxItems(3),
// which leaves no trace in their elements.
func noFunctions(v cue.Value, depth int) error {
	if depth > maxTypeDepth {
		return inexpressible("nests more than %d deep", maxTypeDepth)
	}
	op, args := cue.Dereference(v).Expr()
	switch op {
	case cue.CallOp:
		if name := sourceOf(args[0]); name != "close" {
			return noFunction(name)
		}
	case cue.AndOp:
		for _, a := range args {
			if err := noFunctions(a, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

func noFunction(name string) error {
	return inexpressible("a function such as %s(…) cannot be used here; bounds, patterns, enumerations, lists and structs can", name)
}

// withoutDefault returns what is left of a choice of which the default is one of
// the values that the other alternative allows, as in *1 | int.
func withoutDefault(v cue.Value) (cue.Value, bool) {
	if _, ok := v.Default(); !ok {
		return v, false
	}
	for _, w := range []cue.Value{v, v.Eval()} {
		op, args := w.Expr()
		if op != cue.NoOp || len(args) != 1 {
			continue
		}
		// An open list has a default that nobody wrote; what had an explicit one was
		// no value yet.
		explicit := w.Kind() == cue.BottomKind && args[0].Kind() == cue.ListKind
		if _, still := args[0].Default(); !still || explicit || args[0].Source() != w.Source() && args[0].Source() != nil {
			return args[0], true
		}
	}
	return v, false
}

func isScalar(k cue.Kind) bool {
	return k&(cue.StructKind|cue.ListKind) == 0 && k != cue.BottomKind
}

func compileConst(v cue.Value) (pipeline.Type, error) {
	if v.Kind() == cue.BytesKind {
		return pipeline.Type{}, inexpressible("bytes are not JSON")
	}
	raw, err := v.MarshalJSON()
	if err != nil {
		return pipeline.Type{}, inexpressible("%s", plain(err.Error()))
	}
	return pipeline.Type{Kind: kindOfCUE(v.Kind()), Enum: []json.RawMessage{raw}}, nil
}

func kindOfCUE(k cue.Kind) pipeline.Kind {
	switch k {
	case cue.StringKind:
		return pipeline.KindString
	case cue.IntKind:
		return pipeline.KindInt
	case cue.FloatKind, cue.NumberKind:
		return pipeline.KindNumber
	case cue.BoolKind:
		return pipeline.KindBool
	case cue.NullKind:
		return pipeline.KindNull
	case cue.TopKind:
		return pipeline.KindAny
	}
	return ""
}

// compileExpr takes a scalar constraint apart as CUE evaluated it.
func compileExpr(v cue.Value, depth int) (pipeline.Type, error) {
	op, args := v.Eval().Expr()
	switch op {
	case cue.NoOp:
		if v.IncompleteKind() == cue.FloatKind {
			return pipeline.Type{}, inexpressible("float cannot be used here, because JSON does not tell 2.0 from 2; write number")
		}
		if k := kindOfCUE(v.IncompleteKind()); k != "" {
			return pipeline.Type{Kind: k}, nil
		}
		return compileKinds(v.IncompleteKind())
	case cue.AndOp:
		return compileAnd(args, depth)
	case cue.OrOp:
		return compileOr(args, depth)
	case cue.RegexMatchOp, cue.NotRegexMatchOp:
		return compilePattern(op, args)
	case cue.GreaterThanOp, cue.GreaterThanEqualOp, cue.LessThanOp, cue.LessThanEqualOp:
		return compileBound(op, args)
	case cue.NotEqualOp:
		return compileNot(args)
	case cue.CallOp:
		return pipeline.Type{}, noFunction(sourceOf(args[0]))
	}
	return pipeline.Type{}, inexpressible("%s cannot be used here; bounds, patterns, enumerations, lists and structs can", sourceOf(v))
}

// compileKinds handles what is left of a disjunction of basic kinds, as number|string.
func compileKinds(k cue.Kind) (pipeline.Type, error) {
	if k&cue.BytesKind != 0 && k != cue.TopKind {
		return pipeline.Type{}, inexpressible("bytes are not JSON")
	}
	var alts []pipeline.Type
	for _, one := range []cue.Kind{cue.NullKind, cue.BoolKind, cue.StringKind} {
		if k&one != 0 {
			alts = append(alts, pipeline.Type{Kind: kindOfCUE(one)})
		}
	}
	if n := k & cue.NumberKind; n != 0 {
		alts = append(alts, pipeline.Type{Kind: kindOfCUE(n)})
	}
	if k&cue.StructKind != 0 {
		alts = append(alts, pipeline.Type{Kind: pipeline.KindStruct, Open: true})
	}
	if k&cue.ListKind != 0 {
		alts = append(alts, pipeline.Type{Kind: pipeline.KindList})
	}
	return oneOf(alts), nil
}

func compilePattern(op cue.Op, args []cue.Value) (pipeline.Type, error) {
	p, err := args[0].String()
	if err != nil {
		return pipeline.Type{}, inexpressible("a pattern must be written out")
	}
	switch {
	case op == cue.RegexMatchOp:
		return pipeline.Type{Kind: pipeline.KindString, Patterns: []string{p}}, nil
	case p == pathPattern:
		return pipeline.Type{Kind: pipeline.KindPath}, nil
	}
	return pipeline.Type{Kind: pipeline.KindString, NotPatterns: []string{p}}, nil
}

func compileBound(op cue.Op, args []cue.Value) (pipeline.Type, error) {
	if args[0].Kind()&cue.NumberKind == 0 {
		return pipeline.Type{}, inexpressible("only numbers can have bounds here")
	}
	raw, err := args[0].MarshalJSON()
	if err != nil {
		return pipeline.Type{}, inexpressible("a bound must be written out")
	}
	t := pipeline.Type{Kind: pipeline.KindNumber}
	switch op {
	case cue.GreaterThanOp:
		t.Over = string(raw)
	case cue.GreaterThanEqualOp:
		t.Min = string(raw)
	case cue.LessThanOp:
		t.Under = string(raw)
	case cue.LessThanEqualOp:
		t.Max = string(raw)
	}
	return t, nil
}

func compileNot(args []cue.Value) (pipeline.Type, error) {
	c, err := compileConst(args[0])
	if err != nil {
		return pipeline.Type{}, err
	}
	if c.Kind == pipeline.KindNull {
		return pipeline.Type{Kind: pipeline.KindAny, Not: c.Enum}, nil
	}
	// In CUE, !="x" also says that the value is a string.
	kind := c.Kind
	if kind == pipeline.KindInt {
		kind = pipeline.KindNumber
	}
	return pipeline.Type{Kind: kind, Not: c.Enum}, nil
}

func compileOr(args []cue.Value, depth int) (pipeline.Type, error) {
	alts := make([]pipeline.Type, 0, len(args))
	for _, a := range args {
		t, err := compileAt(a, depth+1)
		if err != nil {
			return pipeline.Type{}, err
		}
		alts = append(alts, t)
	}
	return oneOf(alts), nil
}

// compileStructs compiles a choice of structs. Taking it apart loses whether it
// was closed, so that is asked of the whole.
func compileStructs(v cue.Value, args []cue.Value, depth int) (pipeline.Type, error) {
	t, err := compileOr(args, depth)
	if err == nil && !v.Allows(cue.AnyString) {
		for i := range t.OneOf {
			t.OneOf[i].Open = t.OneOf[i].Rest != nil
		}
	}
	return t, err
}

// oneOf simplifies a choice: constants of one kind become an enumeration, and a
// constant that another alternative allows is left out.
func oneOf(alts []pipeline.Type) pipeline.Type {
	var kept []pipeline.Type
	for i, t := range alts {
		redundant := slices.ContainsFunc(alts, func(o pipeline.Type) bool {
			return len(t.Enum) == 1 && len(o.Enum) != 1 && len(o.CheckJSON(t.Enum[0])) == 0
		}) || slices.ContainsFunc(alts[:i], func(o pipeline.Type) bool { return equalTypes(o, t) })
		if !redundant {
			kept = append(kept, t)
		}
	}
	if len(kept) == 1 {
		return kept[0]
	}
	enum := pipeline.Type{}
	for _, t := range kept {
		if len(t.Enum) == 0 || (enum.Kind != "" && enum.Kind != t.Kind) || len(t.Fields) > 0 {
			return pipeline.Type{Kind: pipeline.KindOneOf, OneOf: kept}
		}
		enum.Kind = t.Kind
		enum.Enum = append(enum.Enum, t.Enum...)
	}
	return enum
}

func equalTypes(a, b pipeline.Type) bool {
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && string(x) == string(y)
}

func compileAnd(args []cue.Value, depth int) (pipeline.Type, error) {
	t := pipeline.Type{Kind: pipeline.KindAny}
	for _, a := range args {
		next, err := compileAt(a, depth+1)
		if err != nil {
			return pipeline.Type{}, err
		}
		if t, err = both(t, next); err != nil {
			return pipeline.Type{}, err
		}
	}
	return t, nil
}

// both is the type of values that fit a and b. Scalars only: CUE has already
// unified structs and lists.
func both(a, b pipeline.Type) (pipeline.Type, error) {
	if a.Kind == pipeline.KindOneOf || b.Kind == pipeline.KindOneOf {
		return distribute(a, b)
	}
	kind, ok := meet(a.Kind, b.Kind)
	if !ok {
		return pipeline.Type{}, inexpressible("no value is both %s and %s", a.Kind, b.Kind)
	}
	t := pipeline.Type{Kind: kind}
	t.Enum = a.Enum
	if len(t.Enum) == 0 {
		t.Enum = b.Enum
	} else if len(b.Enum) > 0 {
		t.Enum = slices.DeleteFunc(slices.Clone(a.Enum), func(e json.RawMessage) bool {
			return len(b.CheckJSON(e)) > 0
		})
	}
	t.Not = append(slices.Clone(a.Not), b.Not...)
	t.Patterns = append(slices.Clone(a.Patterns), b.Patterns...)
	t.NotPatterns = append(slices.Clone(a.NotPatterns), b.NotPatterns...)
	t.Min, t.Max = tighter(a.Min, b.Min, 1), tighter(a.Max, b.Max, -1)
	t.Over, t.Under = tighter(a.Over, b.Over, 1), tighter(a.Under, b.Under, -1)
	if kind == pipeline.KindStruct || kind == pipeline.KindList {
		return pipeline.Type{}, inexpressible("structs and lists cannot be combined with & here")
	}
	return t, nil
}

func distribute(a, b pipeline.Type) (pipeline.Type, error) {
	if a.Kind != pipeline.KindOneOf {
		a, b = b, a
	}
	var alts []pipeline.Type
	for _, alt := range a.OneOf {
		if t, err := both(alt, b); err == nil {
			alts = append(alts, t)
		}
	}
	if len(alts) == 0 {
		return pipeline.Type{}, inexpressible("no value fits all of it")
	}
	return oneOf(alts), nil
}

// meet is the narrower of two kinds that have values in common.
func meet(a, b pipeline.Kind) (pipeline.Kind, bool) {
	narrower := map[pipeline.Kind]pipeline.Kind{
		pipeline.KindInt: pipeline.KindNumber, pipeline.KindPath: pipeline.KindString,
	}
	switch {
	case a == b, b == pipeline.KindAny, narrower[a] == b:
		return a, true
	case a == pipeline.KindAny, narrower[b] == a:
		return b, true
	}
	return "", false
}

func tighter(a, b string, sign int) string {
	if a == "" || b == "" {
		return a + b
	}
	x, okX := new(big.Rat).SetString(a)
	y, okY := new(big.Rat).SetString(b)
	if okX && okY && x.Cmp(y) == sign {
		return a
	}
	return b
}
