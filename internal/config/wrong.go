package config

import (
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

// wrongValue explains a value that does not unify with what else is said of its path.
func (x *explainer) wrongValue(p []string, e errors.Error) pipeline.Diagnostic {
	if d, bad := x.wrongName(p); bad {
		return d
	}
	if d, bad := x.secretName(p); bad {
		return d
	}
	if len(p) == 5 && p[2] == "tasks" && p[4] == "uses" {
		return x.wrongUses(p, e)
	}
	pos := x.at(p, e)
	decl := x.declared(p)
	if d, twice := x.setTwice(p, decl); twice {
		return d
	}
	if !decl.Exists() {
		d := diag(codeValue, pos, "%s has two values that contradict each other", x.subject(p))
		d.Note = x.others(p, pos, e)
		return d
	}
	d := diag(codeValue, pos, "%s must be %s%s", x.subject(p), inWords(decl), x.written(p))
	if wrote := x.lastWritten(p); wrote != nil && x.written(p) != "" {
		d.Message += x.whichIs(p, wrote)
	}
	d.Note = declaredAt(position(decl.Pos()))
	return withHelp(d, x.correction(p, decl))
}

// secretName explains a reference to a secret whose name breaks the rule of names. CUE
// blames the reference and the name in it.
func (x *explainer) secretName(p []string) (pipeline.Diagnostic, bool) {
	if x.idx == nil || len(p) < 5 || p[0] != "compositions" {
		return pipeline.Diagnostic{}, false
	}
	if p[len(p)-1] != "secret" {
		p = append(slices.Clone(p), "secret")
	}
	for _, pl := range x.idx.at(p...) {
		lit, ok := pl.value.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING || nameRE.MatchString(unquote(lit.Value)) {
			continue
		}
		named := unquote(lit.Value)
		d := diag(codeName, position(lit.Pos()), "%q cannot name a secret", plain(named))
		d.Note = nameRule + "; where the secret is read is said in secrets/, from: env: " + fmt.Sprintf("%q", plain(named))
		if better := asName(named); better != named {
			d.Help = fmt.Sprintf("write secret: %q", better)
		}
		return d, true
	}
	return pipeline.Diagnostic{}, false
}

// wrongUses explains a task that says uses, which is for manifests to say.
func (x *explainer) wrongUses(p []string, e errors.Error) pipeline.Diagnostic {
	d := diag(codeNotInstance, x.at(p, e), "task %q says uses, which only a plugin's manifest can", p[3])
	d.Help = "write " + quoteLabel(p[3]) + ": shell.#Run & {…}, or another plugin's definition, and no uses"
	for _, pl := range x.idx.at(p[:4]...) {
		if def := definitionText(pl.value); def != "" {
			d.Message = fmt.Sprintf("task %q is made of %s and cannot be another plugin's task", p[3], def)
			d.Help = "remove uses, or write the other plugin's definition instead of " + def
		}
	}
	return d
}

// wrongName explains the name of a declaration that breaks the rule of names, or
// that is written a second time inside.
func (x *explainer) wrongName(p []string) (pipeline.Diagnostic, bool) {
	if p[len(p)-1] != "name" || x.idx == nil {
		return pipeline.Diagnostic{}, false
	}
	kind := ""
	switch {
	case len(p) == 3 && slices.Contains([]string{"compositions", "pools", "repositories", "secrets"}, p[0]):
		kind = singular(p[0])
	case len(p) == 5 && p[2] == "tasks":
		kind = "task"
	default:
		return pipeline.Diagnostic{}, false
	}
	named := p[len(p)-2]
	if written := x.idx.at(p...); len(written) > 0 && written[0].value != nil {
		d := diag(codeValue, position(written[0].label), "%s %q cannot have another name", kind, named)
		d.Note = "its name is what stands before the colon"
		d.Help = "remove name; words for people go into description"
		return d, true
	}
	pos, _ := x.idx.label(p[:len(p)-1]...)
	d := diag(codeName, pos, "%q cannot name a %s", named, kind)
	d.Note = nameRule
	if better := asName(named); better != named {
		d.Help = "write " + quoteLabel(better)
	}
	return d, true
}

// hump is where one word ends and the next begins in buildWar.
var hump = regexp.MustCompile(`([a-z0-9])([A-Z])`)

// asName makes a name of one that breaks the rule, or returns it as it is.
func asName(s string) string {
	s = hump.ReplaceAllString(s, "$1-$2")
	better := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r == ' ' || r == '_' || r == '-' || r == '.' || r == '/':
			return '-'
		}
		return -1
	}, s), "-0123456789")
	if better == "" {
		return s
	}
	return better
}

// setTwice explains a path that is written in two places with different values,
// each of which would be fine.
func (x *explainer) setTwice(p []string, decl cue.Value) (pipeline.Diagnostic, bool) {
	if x.idx == nil {
		return pipeline.Diagnostic{}, false
	}
	var first, second *place
	for _, pl := range x.idx.at(p...) {
		switch {
		case pl.value == nil || x.misfit(pl.value, decl):
		case first == nil:
			first = &pl
		case exprText(pl.value) != exprText(first.value):
			second = &pl
		}
	}
	if second == nil {
		return pipeline.Diagnostic{}, false
	}
	d := diag(codeValue, position(second.value.Pos()), "%s is set twice%s", x.subject(p), twoTexts(first.value, second.value))
	d.Note = "the other is at " + position(first.value.Pos()).String()
	d.Help = "keep one of them"
	return d, true
}

func twoTexts(a, b ast.Expr) string {
	const most = 30
	s, t := exprText(a), exprText(b)
	if s == "" || t == "" || len(s) > most || len(t) > most {
		return ""
	}
	return ": " + s + " and " + t
}

// misfit reports whether a value that is written out breaks a declaration by itself.
func (x *explainer) misfit(e ast.Expr, decl cue.Value) bool {
	if !decl.Exists() {
		return false
	}
	switch e.(type) {
	case *ast.BasicLit, *ast.UnaryExpr, *ast.ListLit:
	default:
		return false
	}
	raw, err := x.batch.ctx.BuildExpr(e).MarshalJSON()
	if err != nil {
		return false
	}
	t, err := compileType(decl)
	if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING && strings.HasPrefix(lit.Value, "'") {
		return err == nil && t.Kind == pipeline.KindString
	}
	return err == nil && len(t.CheckJSON(raw)) > 0
}

// declaredTwice finds a task that is declared in two places, each with a plugin's
// definition. What CUE says of its fields follows from that.
func (x *explainer) declaredTwice(p []string) (pipeline.Diagnostic, bool) {
	if x.idx == nil || len(p) < 4 || p[0] != "compositions" || p[2] != "tasks" {
		return pipeline.Diagnostic{}, false
	}
	var whole []place
	for _, pl := range x.idx.at(p[:4]...) {
		if definitionText(pl.value) != "" {
			whole = append(whole, pl)
		}
	}
	if len(whole) < 2 {
		return pipeline.Diagnostic{}, false
	}
	first, second := whole[0], whole[1]
	d := diag(codeValue, position(second.label), "task %q is declared twice", p[3])
	if a, b := definitionText(first.value), definitionText(second.value); a != b {
		d.Message += ", as " + a + " and as " + b
	}
	d.Note = "the other is at " + position(first.label).String()
	d.Help = "give one of them another name"
	return d, true
}

// definitionText is the IMPORT.#Definition that a value is made of, or "".
func definitionText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return definitionText(e.X)
	case *ast.BinaryExpr:
		if s := definitionText(e.X); s != "" {
			return s
		}
		return definitionText(e.Y)
	case *ast.SelectorExpr:
		if name, _, err := ast.LabelName(e.Sel); err == nil && strings.HasPrefix(name, "#") {
			return exprText(e)
		}
	}
	return ""
}

// correction says what to write instead of a wrong value.
func (x *explainer) correction(p []string, decl cue.Value) string {
	if x.idx == nil {
		return ""
	}
	var wrote ast.Expr
	for _, pl := range x.idx.at(p...) {
		if pl.value != nil && (wrote == nil || x.misfit(pl.value, decl)) {
			wrote = pl.value
		}
	}
	name, text := p[len(p)-1], exprText(wrote)
	if strings.Contains(constraintText(decl), "#Duration") {
		return durationFor(text)
	}
	if s := example(p, wrote); s != "" {
		return s
	}
	t, err := compileType(decl)
	if err != nil {
		return ""
	}
	if s := x.convert(p, wrote, t); s != "" {
		return s
	}
	lit, _ := wrote.(*ast.BasicLit)
	switch {
	case lit == nil && wrote == nil:
		return ""
	case len(t.Enum) > 0 && lit != nil:
		return nearestOf(t, unquote(lit.Value))
	case t.Kind == pipeline.KindList && lit != nil:
		return "write " + name + ": [" + text + "]"
	case t.Kind == pipeline.KindSecret || holdsOneOf(t, pipeline.KindSecret) && lit == nil && chainOf(wrote, 0) == nil:
		return "write " + name + `: secret: "NAME"`
	case isText(t) && lit != nil && strings.HasPrefix(lit.Value, "'"):
		return "a string is in double quotes: " + fmt.Sprintf("%q", strings.Trim(lit.Value, "'"))
	case isText(t) && lit != nil && lit.Kind != token.STRING && lit.Kind != token.NULL:
		return "write it in quotes: " + fmt.Sprintf("%q", text)
	case isText(t) && isList(wrote):
		return `write one string; several lines go between """ and """, each on a line of its own`
	case lit != nil && lit.Kind == token.STRING && t.Fits(unquoted(lit)):
		return "write it without quotes: " + unquote(lit.Value)
	}
	return ""
}

func isText(t pipeline.Type) bool {
	return t.Kind == pipeline.KindString || t.Kind == pipeline.KindPath || holdsOneOf(t, pipeline.KindString)
}

func holdsOneOf(t pipeline.Type, k pipeline.Kind) bool {
	return slices.ContainsFunc(t.OneOf, func(alt pipeline.Type) bool { return alt.Kind == k })
}

func isList(e ast.Expr) bool {
	_, ok := e.(*ast.ListLit)
	return ok
}

// unquoted is what a string would be without its quotes.
func unquoted(lit *ast.BasicLit) any {
	v, err := pipeline.DecodeJSON([]byte(unquote(lit.Value)))
	if err != nil {
		return lit.Value
	}
	return v
}

// nearestOf suggests the value of an enumeration that may have been meant.
func nearestOf(t pipeline.Type, wrote string) string {
	var known []string
	for _, raw := range t.Enum {
		known = append(known, unquote(string(raw)))
	}
	return didYouMean(wrote, known)
}
