package config

import (
	"fmt"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/errors"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// referred is the value that a plain reference leads to, as far as it is declared.
func (x *explainer) referred(p []string, e ast.Expr) (v cue.Value, names []string, ok bool) {
	c := chainOf(e, 0)
	if len(c) < 2 || len(p) < 2 || p[0] != "compositions" || !x.root.Exists() {
		return cue.Value{}, nil, false
	}
	for _, l := range c {
		names = append(names, l.name)
	}
	path := names
	if c[0].name != "compositions" {
		path = append([]string{"compositions", p[1]}, names...)
	}
	v = get(x.root, path...)
	return v, names, v.Exists()
}

// whichIs says what a reference leads to, behind the reference itself.
func (x *explainer) whichIs(p []string, e ast.Expr) string {
	v, names, ok := x.referred(p, e)
	switch {
	case !ok:
		return ""
	case isWholeTask(names):
		return ", which is a whole task and no value"
	case v.IncompleteKind() == cue.StructKind:
		return ", which is a struct"
	}
	return ", which is " + inWords(v)
}

func isWholeTask(names []string) bool {
	return names[0] == "tasks" && (len(names) == 2 || len(names) == 3 && names[2] == "outputs")
}

// convert says how a value that is referred to becomes one of the type that is
// asked for.
func (x *explainer) convert(p []string, e ast.Expr, want pipeline.Type) string {
	v, names, ok := x.referred(p, e)
	if !ok {
		return ""
	}
	ref := exprText(e)
	kind := v.IncompleteKind()
	switch {
	case isWholeTask(names):
		return "name one of its outputs: tasks." + quoteLabel(names[1]) + ".outputs.NAME"
	case isText(want) && kind == cue.ListKind:
		return "write strings.Join(" + ref + `, " "), and import "strings"`
	case isText(want) && kind == cue.StructKind:
		return "name a field of it, or write json.Marshal(" + ref + `), and import "encoding/json"`
	case isText(want) && kind&(cue.NumberKind|cue.BoolKind) != 0 && kind&cue.StringKind == 0:
		return `write "\(` + ref + `)"`
	case want.Kind == pipeline.KindInt && kind == cue.StringKind:
		return "write strconv.Atoi(" + ref + `), and import "strconv"`
	}
	return ""
}

// wrongOperand explains a value that cannot stand where it does, such as a list
// within a string.
func (x *explainer) wrongOperand(p []string, args []any, e errors.Error) pipeline.Diagnostic {
	have, want := fmt.Sprint(args[1]), fmt.Sprint(args[2])
	d := diag(codeValue, x.at(p, e), "%s uses a %s where %s is needed", x.subject(p), have, want)
	if !strings.HasPrefix(want, "(bool|string") {
		return d
	}
	what := "VALUE"
	if in, ok := x.lastWritten(p).(*ast.Interpolation); ok {
		for _, part := range in.Elts {
			if v, _, ok := x.referred(p, part); ok && v.IncompleteKind().String() == have {
				what, d.Pos = exprText(part), position(part.Pos())
			}
		}
	}
	d.Message = fmt.Sprintf("%s: a %s cannot stand within a string", x.subject(p), have)
	switch have {
	case "list":
		d.Help = `write \(strings.Join(` + what + `, " ")), and import "strings"`
	case "struct":
		d.Help = "name a field of it, or write \\(json.Marshal(" + what + `)), and import "encoding/json"`
	}
	return d
}

// wrongOperands explains an operator between values that it does not take.
func (x *explainer) wrongOperands(p []string, args []any, e errors.Error) pipeline.Diagnostic {
	d := diag(codeValue, x.at(p, e), "%s: %v does not take %v and %v", x.subject(p), args[2], args[3], args[4])
	if slices.Contains([]string{fmt.Sprint(args[3]), fmt.Sprint(args[4])}, "string") {
		d.Help = `a value is put into a string with "…\(VALUE)…"`
	}
	return d
}
