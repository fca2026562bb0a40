package config

import (
	"encoding/json"
	"math/big"
	"slices"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// covers reports whether every value that fits got surely fits want. CUE's own
// Subsume knows more forms, but takes patterns on names for a contradiction. No
// means "not proved".
func covers(want, got pipeline.Type) bool {
	switch {
	case len(got.Enum) > 0:
		return !slices.ContainsFunc(got.Enum, func(v json.RawMessage) bool { return len(want.CheckJSON(v)) > 0 })
	case want.Kind == pipeline.KindAny && len(want.Not) == 0:
		return true
	case got.Kind == pipeline.KindOneOf:
		return !slices.ContainsFunc(got.OneOf, func(alt pipeline.Type) bool { return !covers(want, alt) })
	case want.Kind == pipeline.KindOneOf:
		return slices.ContainsFunc(want.OneOf, func(alt pipeline.Type) bool { return covers(alt, got) })
	case len(want.Enum) > 0, got.Kind == pipeline.KindAny:
		return false
	case slices.ContainsFunc(want.Not, func(v json.RawMessage) bool { return len(got.CheckJSON(v)) == 0 }):
		return false
	}
	if kind, ok := meet(want.Kind, got.Kind); !ok || kind != got.Kind {
		return false
	}
	switch want.Kind {
	case pipeline.KindList:
		return got.MinItems >= want.MinItems && (want.Elem == nil || got.Elem != nil && covers(*want.Elem, *got.Elem))
	case pipeline.KindStruct:
		return coversStruct(want, got)
	}
	return subset(want.Patterns, got.Patterns) && subset(want.NotPatterns, got.NotPatterns) && coversBounds(want, got)
}

func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(s string) bool { return !slices.Contains(b, s) })
}

func coversBounds(want, got pipeline.Type) bool {
	// sign is 1 for lower bounds and -1 for upper ones; strict bounds exclude
	// themselves.
	holds := func(limit string, strict bool, incl, excl string, sign int) bool {
		if limit == "" {
			return true
		}
		return tightEnough(incl, limit, sign, strict) || tightEnough(excl, limit, sign, false)
	}
	return holds(want.Min, false, got.Min, got.Over, 1) && holds(want.Over, true, got.Min, got.Over, 1) &&
		holds(want.Max, false, got.Max, got.Under, -1) && holds(want.Under, true, got.Max, got.Under, -1)
}

// tightEnough reports whether a bound lies on the safe side of a limit.
func tightEnough(have, limit string, sign int, strict bool) bool {
	h, okH := new(big.Rat).SetString(have)
	l, okL := new(big.Rat).SetString(limit)
	if !okH || !okL {
		return false
	}
	c := h.Cmp(l) * sign
	return c > 0 || c == 0 && !strict
}

func coversStruct(want, got pipeline.Type) bool {
	if got.Open && (!want.Open || want.Rest != nil && (got.Rest == nil || !covers(*want.Rest, *got.Rest))) {
		return false
	}
	for _, w := range want.Fields {
		g, ok := fieldOf(got, w.Name)
		switch {
		case ok:
			if g.Optional && !w.Optional && w.Default == nil || !covers(w.Type, g.Type) {
				return false
			}
		case !w.Optional && w.Default == nil:
			return false
		case got.Open && (got.Rest == nil || !covers(w.Type, *got.Rest)):
			return false
		}
	}
	for _, g := range got.Fields {
		if _, ok := fieldOf(want, g.Name); ok {
			continue
		}
		if !want.Open || want.Rest != nil && !covers(*want.Rest, g.Type) {
			return false
		}
	}
	return true
}

func fieldOf(t pipeline.Type, name string) (pipeline.Field, bool) {
	for _, f := range t.Fields {
		if f.Name == name {
			return f, true
		}
	}
	return pipeline.Field{}, false
}
