package config

import (
	"cmp"
	stderrors "errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// An explainer turns what CUE says into diagnostics in our words, at the author's
// place. CUE reports one mistake once for each alternative of a disjunction and
// once for each place that refers to it; the explainer reports it once.
//
// It switches on CUE's message formats, which are not an interface of CUE. The
// golden tests hold every one of them.
type explainer struct {
	batch *batch
	unit  string
	files []*ast.File
	idx   *index
	root  cue.Value
	// meant are the paths that fields of other names were meant to be; nil keeps none.
	meant map[string]bool
	// definition finds what a task is an instance of.
	definition func(composition, task string) *definition
}

// Message formats of CUE.
const (
	cueNotAllowed   = "field not allowed"
	cueDisjunction  = "%d errors in empty disjunction:"
	cueRequired     = "field is required but not present"
	cueUndefined    = "undefined field: %s"
	cueIncomplete   = "incomplete value %v"
	cueRefNotFound  = "reference %q not found"
	cueCycle        = "structural cycle"
	cueWrongOperand = "cannot use %s (type %s) as type %s"
	cueOperands     = "invalid operands %s and %s to '%s' (type %s and %s)"
	cueConflict     = "conflicting values"
	cueNonConcrete  = "non-concrete value"
	cueOutOfBound   = "invalid value %v (out of bound %s)"
	cueListLength   = "incompatible list lengths (%d and %d)"
	cueNotUsed      = "imported and not used"
	cueLetNotUsed   = "unreferenced alias or let clause"
)

// innermost unwraps to the message that names the cause, as "undefined field"
// inside "invalid interpolation".
func innermost(e errors.Error) (format string, args []any) {
	var inner error = e
	for {
		if next := stderrors.Unwrap(inner); next != nil {
			inner = next
			continue
		}
		break
	}
	if ce, ok := inner.(errors.Error); ok {
		return ce.Msg()
	}
	return e.Msg()
}

// pathOf is the path of an error with its labels as they are, not as CUE quotes them.
func pathOf(e errors.Error) []string {
	p := slices.Clone(e.Path())
	for i, s := range p {
		if strings.HasPrefix(s, `"`) {
			p[i] = unquote(s)
		}
	}
	return p
}

// errors explains what validating a value gave: one diagnostic for each path, and
// for a task that is declared twice one in all.
func (x *explainer) errors(err error) []pipeline.Diagnostic {
	return x.errorsBut(err, map[string]bool{})
}

// errorsBut leaves out the paths of which something has been said.
func (x *explainer) errorsBut(err error, done map[string]bool) []pipeline.Diagnostic {
	var out, missing []pipeline.Diagnostic
	var missed []string
	for _, e := range errors.Errors(err) {
		p := pathOf(e)
		format, _ := innermost(e)
		if format == cueNotAllowed {
			p = x.firstUnknown(p)
		}
		key := keyOf(p)
		d, twice := x.declaredTwice(p)
		if twice {
			key = keyOf(p[:4])
		}
		switch {
		case done[key]:
		case twice:
			out = append(out, d)
		case format == cueRequired:
			missing, missed = append(missing, x.explain(e)), append(missed, key)
		default:
			out = append(out, x.explain(e))
		}
		done[key] = true
	}
	for i, d := range missing {
		if !x.meant[missed[i]] { // else it is there under another name
			out = append(out, d)
		}
	}
	return out
}

func (x *explainer) explain(e errors.Error) pipeline.Diagnostic {
	format, args := innermost(e)
	d := x.classify(e, format, args)
	d.Unit = x.unit
	return d
}

func (x *explainer) classify(e errors.Error, format string, args []any) pipeline.Diagnostic {
	p := pathOf(e)
	switch {
	case format == cueNotAllowed && len(p) > 0:
		return x.unknownField(p, e)
	case format == cueRequired && len(p) > 0:
		return x.missingField(p)
	case format == cueUndefined:
		return x.undefined(p, args, e)
	case format == cueCycle:
		return diag(codeEvaluate, x.at(p, e), "%s refers to itself", x.subject(p))
	case format == cueWrongOperand && len(args) == 3:
		return x.wrongOperand(p, args, e)
	case format == cueOperands && len(args) == 5:
		return x.wrongOperands(p, args, e)
	case format == cueDisjunction, format == cueOutOfBound, format == cueListLength, strings.HasPrefix(format, cueConflict):
		if d, ok := x.fromAbove(p); ok {
			return d
		}
		if d, ok := x.wrongParameter(p); ok {
			return d
		}
		return x.wrongValue(p, e)
	case format == cueIncomplete, strings.HasPrefix(format, cueNonConcrete):
		if d, ok := x.notGiven(p); ok {
			return d
		}
		return x.incomplete(p, e)
	case format == cueRefNotFound && len(args) == 1:
		d, _ := x.notFound(fmt.Sprint(args[0]), x.at(nil, e))
		return d
	case strings.HasPrefix(format, cueNotUsed), strings.HasPrefix(format, cueLetNotUsed):
		return x.unused(x.at(nil, e), format, args)
	}
	d := diag(codeEvaluate, x.at(p, e), "%s cannot be evaluated", x.subject(p))
	d.Note = "the evaluator says: " + plain(errors.Newf(token.NoPos, format, args...).Error())
	return d
}

// nameRE is #Name of the schema.
var nameRE = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// keyRE is #Key of the schema.
var keyRE = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,62}$`)

// badKey refuses a name of a param, a field or an output.
func badKey(what, name string, pos pipeline.Position) pipeline.Diagnostic {
	d := diag(codeName, pos, "%q cannot name %s", plain(name), what)
	d.Note = "such a name is a letter, then up to 62 of a-z, A-Z, 0-9, \"_\", \".\" and \"-\""
	return d
}

const nameRule = "a name is a lower-case letter, then up to 62 of a-z, 0-9 and -"

func (x *explainer) missingField(p []string) pipeline.Diagnostic {
	parent, last := p[:len(p)-1], p[len(p)-1]
	pos := pipeline.Position{}
	if x.idx != nil {
		pos, _ = x.idx.label(parent...)
	}
	d := diag(codeRequired, pos, "%s needs %q", x.subject(parent), last)
	if decl := x.declared(p); decl.Exists() {
		d.Message += ", " + inWords(decl)
		d.Help = "add " + last + ": " + sample(decl)
		d.Note = declaredAt(position(decl.Pos()))
	}
	return d
}

func (x *explainer) undefined(p []string, args []any, e errors.Error) pipeline.Diagnostic {
	name := ""
	if len(args) > 0 {
		name = plain(fmt.Sprint(args[0]))
	}
	pos := position(e.Position())
	if pos.File == "" {
		pos = x.at(p, e)
	}
	return diag(codeOutputRef, pos, "%s refers to %q"+notThere, x.subject(p), name)
}

// notThere ends what is said of a reference of which only CUE's word is known.
const notThere = ", which does not exist"

func (x *explainer) incomplete(p []string, e errors.Error) pipeline.Diagnostic {
	d := diag(codeRequired, x.at(p, e), "%s has no value", x.subject(p))
	if decl := x.declared(p); decl.Exists() {
		d.Note = "it must be " + inWords(decl)
	}
	if len(p) > 3 && p[0] == "pools" && p[2] == "facts" {
		d.Help = "a pool promises exact values; what a task requires is written at the task: agent: " + strings.Join(p[2:], ": ") + ": " + cmp.Or(exprText(x.lastWritten(p)), "…")
	}
	return d
}

// written shows what the author wrote, if it is short.
func (x *explainer) written(p []string) string {
	s := exprText(x.lastWritten(p))
	const most = 40
	if s == "" || len(s) > most {
		return ""
	}
	return ", not " + s
}

// lastWritten is the last value that is written at a path, or nil.
func (x *explainer) lastWritten(p []string) ast.Expr {
	if x.idx == nil {
		return nil
	}
	ps := x.idx.at(p...)
	if len(ps) == 0 {
		return nil
	}
	return ps[len(ps)-1].value
}

func (x *explainer) others(p []string, pos pipeline.Position, e errors.Error) string {
	var at []string
	if x.idx != nil {
		for _, pl := range x.idx.at(p...) {
			if pl.value != nil && position(pl.value.Pos()) != pos {
				at = append(at, position(pl.value.Pos()).String())
			}
		}
	}
	if len(at) == 0 {
		for _, ip := range e.InputPositions() {
			if q := position(ip); q.File != "" && q != pos && !slices.Contains(at, q.String()) {
				at = append(at, q.String())
			}
		}
	}
	if len(at) == 0 {
		return ""
	}
	return "also at " + strings.Join(at, ", ")
}

func declaredAt(pos pipeline.Position) string {
	if pos.File == "" {
		return ""
	}
	return fmt.Sprintf("declared at %s:%d", pos.File, pos.Line)
}

func (x *explainer) taskDefinition(p []string) *definition {
	if x.definition == nil || len(p) < 4 || p[0] != "compositions" || p[2] != "tasks" {
		return nil
	}
	return x.definition(p[1], p[3])
}

// declared is what the schema or a manifest says of a path.
func (x *explainer) declared(p []string) cue.Value {
	if x.batch == nil || len(p) == 0 {
		return cue.Value{}
	}
	if def := x.taskDefinition(p); def != nil {
		if v := descend(def.value, p[4:]); v.Exists() {
			return v
		}
	}
	start := map[string]string{
		"compositions": "#Composition", "pools": "#Pool", "secrets": "#Secret", "manifest": "#Plugin", "event": "#Event",
		"policy": "#Policy", "repositories": "#Repository",
	}[p[0]]
	rest := p[1:]
	if start == "" {
		return cue.Value{}
	}
	if p[0] != "manifest" && p[0] != "event" && p[0] != "policy" {
		if len(rest) == 0 {
			return cue.Value{}
		}
		rest = rest[1:]
	}
	return descend(x.batch.schema().LookupPath(cue.ParsePath(start)), rest)
}

func descend(v cue.Value, path []string) cue.Value {
	for _, name := range path {
		v = child(v, name)
		if !v.Exists() {
			return cue.Value{}
		}
	}
	return v
}

func child(v cue.Value, name string) cue.Value {
	for _, sel := range []cue.Selector{
		cue.Str(name), cue.Str(name).Optional(), cue.Str(name).Required(), cue.AnyString, cue.AnyIndex,
	} {
		if w := v.LookupPath(cue.MakePath(sel)); w.Exists() {
			return w
		}
	}
	return cue.Value{}
}

func fieldNames(v cue.Value) []string {
	if !v.Exists() {
		return nil
	}
	iter, err := v.Fields(cue.Optional(true))
	if err != nil {
		return nil
	}
	var out []string
	for iter.Next() {
		if iter.Selector().LabelType() == cue.StringLabel && iter.Selector().ConstraintType() != cue.PatternConstraint {
			out = append(out, iter.Selector().Unquoted())
		}
	}
	return out
}
