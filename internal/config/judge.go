package config

import (
	"fmt"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// judge says whether a value that is given fits a type: nothing when it surely
// does, an error when it surely or plainly need not, a warning when it cannot be
// told before the run.
func judge(want pipeline.Type, g given) (severity pipeline.Severity, why string) {
	switch {
	case covers(want, g.Type):
		return "", ""
	case len(g.Type.Enum) == 1:
		if bad := want.CheckJSON(g.Type.Enum[0]); len(bad) > 0 {
			return pipeline.SeverityError, plain(bad[0])
		}
	case !meets(want, g.Type):
		return pipeline.SeverityError, fmt.Sprintf("it is given %s, which is not %s", shown(g.Type), want)
	case !g.Loose && !hasPattern(want) && want.Kind != pipeline.KindAny && g.Type.Kind != pipeline.KindAny:
		return pipeline.SeverityError, fmt.Sprintf("it is given %s, which need not be %s", shown(g.Type), want)
	}
	return pipeline.SeverityWarning, fmt.Sprintf("it is given %s: that it fits %s is checked when the run is made", shown(g.Type), want)
}

// meets reports whether some value might fit both, by their kinds.
func meets(a, b pipeline.Type) bool {
	any := func(ts []pipeline.Type, other pipeline.Type) bool {
		for _, t := range ts {
			if meets(t, other) {
				return true
			}
		}
		return false
	}
	switch {
	case a.Kind == pipeline.KindAny || b.Kind == pipeline.KindAny:
		return true
	case a.Kind == pipeline.KindOneOf:
		return any(a.OneOf, b)
	case b.Kind == pipeline.KindOneOf:
		return any(b.OneOf, a)
	}
	_, ok := meet(a.Kind, b.Kind)
	return ok
}

// shown is a type as a person wrote it, or its kind.
func shown(t pipeline.Type) string {
	if t.Text == "" || t.Text == string(t.Kind) {
		return t.String()
	}
	if len(t.Enum) > 0 || t.Kind == pipeline.KindOneOf || t.Kind == pipeline.KindAny {
		return t.Text
	}
	return fmt.Sprintf("%s (%s)", t.Text, t.Kind)
}
