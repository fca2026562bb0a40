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

// scriptOf is the task whose field script is a program, and the name of that field.
const (
	scriptTask  = "shell/run"
	scriptField = "script"
)

// lintScript warns where text that somebody else chooses becomes a part of a script:
// the shell would run what is in it.
func (w *work) lintScript(name string) {
	t := w.task(name)
	if t == nil || t.spec.Uses != scriptTask {
		return
	}
	path := w.path("tasks", name, "fields", scriptField)
	for _, p := range w.all.at(path...) {
		if p.value == nil {
			continue
		}
		w.lintVariables(name, p.value)
		c := chainOf(p.value, 0)
		if whole, _ := w.read(c); whole != nil || isElement(c) {
			continue // the script itself is what is given
		}
		in := poured{work: w, task: t, seen: map[ast.Node]bool{}}
		in.walk(p.value)
	}
}

// poured looks for the values that become a part of a text, through lets and helper
// fields. What a text is only chosen by does not.
type poured struct {
	*work
	task *task
	seen map[ast.Node]bool
}

func (r *poured) walk(e ast.Expr) {
	if e != nil && !r.seen[e] {
		r.seen[e] = true
		ast.Walk(e, r.node, nil)
	}
}

func (r *poured) node(n ast.Node) bool {
	switch e := n.(type) {
	case *ast.IfClause:
		return false
	case *ast.BinaryExpr:
		return !compares[e.Op]
	case *ast.SelectorExpr, *ast.IndexExpr, *ast.Ident:
		return !r.reference(e.(ast.Expr))
	}
	return true
}

var compares = map[token.Token]bool{
	token.EQL: true, token.NEQ: true, token.LSS: true, token.LEQ: true, token.GTR: true, token.GEQ: true, token.MAT: true, token.NMAT: true,
}

// reference reports whether there is nothing more to look at in e.
func (r *poured) reference(e ast.Expr) bool {
	c := chainOf(e, 0)
	if full, _ := r.read(c); full != nil {
		r.judge(full, e)
		return true
	}
	if isElement(c) {
		r.element(c, e)
		return true
	}
	if len(c) > 0 {
		if places := r.places(c); len(places) > 0 {
			for _, p := range places {
				r.walk(p.value)
			}
			return true
		}
	}
	if id, ok := e.(*ast.Ident); ok {
		if target := aliased(id); target != nil {
			r.walk(target)
		}
	}
	return false
}

func isElement(c chain) bool { return len(c) > 1 && c[0].name == "each" && c[1].name == "item" }

// judge warns of a value that may be any text.
func (r *poured) judge(c chain, at ast.Expr) {
	if len(c) < 2 {
		return
	}
	switch c[0].name {
	case "event":
		said, outside := fromOutside[c[1].name]
		if c[1].name == "cause" && len(c) > 2 {
			said, outside = fromOutside["cause."+c[2].name]
		}
		if outside {
			r.warn(c, at, "", said)
		}
	case "params":
		f := r.param(c[1].name)
		if f == nil {
			return
		}
		if t := partOf(f.Type, c[2:]); anyText(t) {
			r.warn(c, at, t.Kind, "whoever starts the run chooses it, and its type allows any text")
		}
	}
}

// element warns of an element of a list that a param or the event gives.
func (r *poured) element(c chain, at ast.Expr) {
	if r.task.item != nil && !anyText(partOf(*r.task.item, c[2:])) {
		return
	}
	given := false
	for _, p := range r.all.at(r.path("tasks", r.task.name, "each", "items")...) {
		if p.value == nil {
			continue
		}
		r.chainsIn(p.value, func(c chain, _ spelling) { given = given || c[0].name == "params" || c[0].name == "event" })
	}
	if given {
		r.warn(c, at, "", "the list comes from outside, and its type allows any text")
	}
}

// fromOutside are the parts of an event that other people write, with how.
var fromOutside = map[string]string{
	"ref":          "whoever may push chooses the name of a branch, and it may hold $(…)",
	"branch":       "whoever may push chooses the name of a branch, and it may hold $(…)",
	"change":       "whoever may push chooses the name of a branch, and it may hold $(…)",
	"target":       "whoever may push chooses the name of a branch, and it may hold $(…)",
	"tag":          "whoever may push chooses the name of a tag, and it may hold $(…)",
	"author":       "it is the text of a commit, and may hold $(…)",
	"subject":      "it is the text of a commit, and may hold $(…)",
	"cause.reason": "it is text that another run has left",
}

// partOf is the type of a part of a value; any where that is not known.
func partOf(t pipeline.Type, rest chain) pipeline.Type {
	for _, l := range rest {
		part, ok := fieldType(t, l.name)
		if !ok {
			return pipeline.Type{Kind: pipeline.KindAny}
		}
		t = part
	}
	return t
}

// anyText reports whether a value of the type may be a text, or hold one, of which
// nothing is said.
func anyText(t pipeline.Type) bool {
	if len(t.Enum) > 0 {
		return false
	}
	switch t.Kind {
	case pipeline.KindAny:
		return true
	case pipeline.KindString:
		return len(t.Patterns) == 0
	case pipeline.KindList:
		return t.Elem == nil || anyText(*t.Elem)
	case pipeline.KindOneOf:
		return slices.ContainsFunc(t.OneOf, anyText)
	}
	return false
}

var notInNames = regexp.MustCompile(`[^A-Z0-9_]+`)

func (r *poured) warn(c chain, at ast.Expr, kind pipeline.Kind, why string) {
	last, pos := c[len(c)-1], position(at.Pos())
	if r.blamed[pos] {
		return
	}
	r.blamed[pos] = true
	d := warn(codeInjection, pos, "task %q: %s becomes a part of the script, and the shell runs what is in it", r.task.name, c.text())
	d.Note = why
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToUpper(last.name), "_"), "_0123456789")
	if name == "" {
		name = "VALUE"
	}
	value := c.text()
	if kind == pipeline.KindList {
		value = "strings.Join(" + value + `, " ")`
	}
	d.Help = plain(fmt.Sprintf(`write "$%s" in the script, and beside it env: %s: %s`, name, name, value))
	r.complain(d)
}
