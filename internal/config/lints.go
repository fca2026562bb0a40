package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// template is how other systems put a value into a text. Templates of programs,
// such as Go's and Helm's, do not begin with these names.
var template = regexp.MustCompile(`\$?\{\{-?\s*((?:tasks|params|event|inputs|parameters|steps|jobs|needs|github|gitlab|env|matrix|secrets|vars|workflow)\.[\w."\[\]-]+)\s*-?\}\}` +
	`|\$[({]((?:tasks|params|event|inputs|parameters|workspaces)\.[\w.-]+)[)}]`)

// lint warns of what is right as CUE and hardly ever meant.
func (w *work) lint() {
	for _, p := range w.all.at(w.path()...) {
		if p.value != nil {
			w.lintTemplates(p.value)
		}
	}
	for _, name := range w.all.children(w.path("params")...) {
		if !w.lintType(fmt.Sprintf("param %q of composition %q", name, w.name), w.path("params", name)...) {
			w.lintConstant(name)
		}
	}
	for _, task := range w.all.children(w.path("tasks")...) {
		w.lintScript(task)
		for _, name := range w.all.children(w.path("tasks", task, "outputs")...) {
			w.lintType(fmt.Sprintf("output %q of task %q", name, task), w.path("tasks", task, "outputs", name)...)
		}
	}
}

// lintTemplates finds values of the run that are written as in other systems. They
// would reach the program as they are.
func (w *work) lintTemplates(e ast.Expr) {
	ast.Walk(e, func(n ast.Node) bool {
		lit, ok := n.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return true
		}
		m := template.FindStringSubmatchIndex(lit.Value)
		if m == nil {
			return true
		}
		d := warn(codeTemplate, within(lit, m[0]), "%s is no reference: the program gets these very characters", plain(lit.Value[m[0]:m[1]]))
		ref := m[2:4]
		if ref[0] < 0 {
			ref = m[4:6]
		}
		d.Help = inOurWords(lit.Value[ref[0]:ref[1]])
		w.complain(d)
		return true
	}, nil)
}

// lintType finds a type that is written in quotes.
func (w *work) lintType(what string, path ...string) (found bool) {
	for _, p := range w.all.at(path...) {
		lit, ok := p.value.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			continue
		}
		name := unquote(lit.Value)
		if !slices.Contains([]string{"string", "int", "number", "bool", "float", "boolean", "integer"}, name) {
			continue
		}
		d := warn(codeTemplate, position(lit.Pos()), "%s can only be the text %q", what, name)
		d.Help = "a type is written without quotes: " + map[string]string{"boolean": "bool", "integer": "int"}[name]
		if strings.HasSuffix(d.Help, ": ") {
			d.Help += name
		}
		w.complain(d)
		found = true
	}
	return found
}

// said drops what CUE says of a reference that has been explained.
func said(ds []pipeline.Diagnostic) []pipeline.Diagnostic {
	return slices.DeleteFunc(ds, func(d pipeline.Diagnostic) bool {
		return d.Code == codeOutputRef && strings.HasSuffix(d.Message, notThere) && slices.ContainsFunc(ds, func(o pipeline.Diagnostic) bool {
			return o.Pos.File == d.Pos.File && o.Pos.Line == d.Pos.Line && !strings.HasSuffix(o.Message, notThere) &&
				slices.Contains([]string{codeOutputRef, codeTaskRef, codeParamRef}, o.Code)
		})
	})
}
