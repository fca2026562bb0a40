package config

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// An index finds the places where an author wrote a field, by its path. CUE's
// own positions point as often at the schema as at the file to be changed.
type index struct {
	places map[string][]place
	// names are the fields in a path, in the order of the files.
	names map[string][]string
	// made are the fields below a path whose names are made, as in "test-\(x)".
	made map[string][]madeField
	// scopes are the paths of the structs that are written out, and of the files.
	scopes map[ast.Node]string
	files  []*ast.File
}

// place is one declaration of a field.
type place struct {
	label token.Pos
	value ast.Expr
	// guards are the clauses of comprehensions around it.
	guards []ast.Node
}

// madeField is a field whose name is made of something.
type madeField struct {
	pattern *regexp.Regexp
	place   place
}

// madeName is what a made name looks like, nil for a pattern on names.
func madeName(label ast.Label) *regexp.Regexp {
	text := "^"
	switch l := label.(type) {
	case *ast.Interpolation:
		for _, part := range l.Elts {
			if lit, ok := part.(*ast.BasicLit); ok {
				text += regexp.QuoteMeta(strings.TrimSuffix(strings.TrimPrefix(strings.Trim(lit.Value, `"`), ")"), `\(`))
				continue
			}
			text += ".*"
		}
	case *ast.ParenExpr:
		text += ".*"
	default:
		return nil
	}
	pattern, err := regexp.Compile(text + "$")
	if err != nil {
		return nil
	}
	return pattern
}

const pathSep = "\x00"

func keyOf(path []string) string { return strings.Join(path, pathSep) }

func newIndex(files []*ast.File) *index {
	x := &index{places: map[string][]place{}, names: map[string][]string{}, made: map[string][]madeField{}, scopes: map[ast.Node]string{}, files: files}
	for _, f := range files {
		x.scopes[f] = ""
		x.decls("", f.Decls, nil)
	}
	return x
}

func (x *index) decls(prefix string, decls []ast.Decl, guards []ast.Node) {
	for _, d := range decls {
		switch d := d.(type) {
		case *ast.Field:
			x.field(prefix, d, guards)
		case *ast.EmbedDecl:
			x.expr(prefix, d.Expr, guards)
		case *ast.Comprehension:
			x.comprehension(prefix, d, guards)
		}
	}
}

func (x *index) comprehension(prefix string, c *ast.Comprehension, guards []ast.Node) {
	inner := append([]ast.Node{}, guards...)
	for _, clause := range c.Clauses {
		inner = append(inner, clause)
	}
	x.expr(prefix, c.Value, inner)
}

func (x *index) field(prefix string, f *ast.Field, guards []ast.Node) {
	label := f.Label
	if a, ok := label.(*ast.Alias); ok {
		if e, ok := a.Expr.(ast.Label); ok {
			label = e
		}
	}
	name, _, err := ast.LabelName(label)
	if err != nil {
		if pattern := madeName(label); pattern != nil {
			x.made[prefix] = append(x.made[prefix], madeField{pattern, place{label: label.Pos(), value: f.Value, guards: guards}})
		}
		return
	}
	x.add(prefix, name, place{label: label.Pos(), value: f.Value, guards: guards})
}

func (x *index) add(prefix, name string, p place) {
	key := name
	if prefix != "" {
		key = prefix + pathSep + name
	}
	if len(x.places[key]) == 0 {
		x.names[prefix] = append(x.names[prefix], name)
	}
	x.places[key] = append(x.places[key], p)
	x.expr(key, p.value, p.guards)
}

func (x *index) expr(key string, e ast.Expr, guards []ast.Node) {
	switch e := e.(type) {
	case *ast.StructLit:
		x.scopes[e] = key
		x.decls(key, e.Elts, guards)
	case *ast.BinaryExpr:
		if e.Op == token.AND {
			x.expr(key, e.X, guards)
			x.expr(key, e.Y, guards)
		}
	case *ast.ParenExpr:
		x.expr(key, e.X, guards)
	case *ast.Alias:
		x.expr(key, e.Expr, guards)
	case *ast.Comprehension:
		x.comprehension(key, e, guards)
	case *ast.ListLit:
		for i, elt := range e.Elts {
			if _, ok := elt.(*ast.Comprehension); ok {
				continue // its elements have no fixed place
			}
			x.add(key, strconv.Itoa(i), place{label: elt.Pos(), value: elt, guards: guards})
		}
	}
}

// at returns the declarations of a path.
func (x *index) at(path ...string) []place { return x.places[keyOf(path)] }

// children are the names that are written in a path.
func (x *index) children(path ...string) []string { return slices.Clone(x.names[keyOf(path)]) }

// hasLabel reports whether any field has that name.
func (x *index) hasLabel(name string) bool {
	if x == nil {
		return false
	}
	for _, names := range x.names {
		if slices.Contains(names, name) {
			return true
		}
	}
	return false
}

// label is where the name is written, or the nearest enclosing name that is.
func (x *index) label(path ...string) (pipeline.Position, bool) {
	for n := len(path); n > 0; n-- {
		if ps := x.at(path[:n]...); len(ps) > 0 {
			return position(ps[len(ps)-1].label), n == len(path)
		}
	}
	return pipeline.Position{}, false
}

// first is where a name is written for the first time.
func (x *index) first(path ...string) pipeline.Position {
	if ps := x.at(path...); len(ps) > 0 {
		return position(ps[0].label)
	}
	pos, _ := x.label(path...)
	return pos
}

// value is where the value of a path is written.
func (x *index) value(path ...string) (pipeline.Position, bool) {
	if ps := x.at(path...); len(ps) > 0 {
		p := ps[len(ps)-1]
		if p.value != nil {
			return position(p.value.Pos()), true
		}
		return position(p.label), true
	}
	return x.label(path...)
}

// runtimeRoots are the names whose values are known only when a run exists.
var runtimeRoots = map[string]bool{"tasks": true, "params": true, "event": true}

// A reach answers what an expression refers to, through lets, aliases and helper
// fields. It errs on the side of "yes": what it cannot follow counts as a
// reference to all.
type reach struct {
	seen map[ast.Node]bool
	// hits are the runtime roots that were met.
	hits map[string]bool
}

func reaches(nodes ...ast.Node) map[string]bool {
	r := &reach{seen: map[ast.Node]bool{}, hits: map[string]bool{}}
	for _, n := range nodes {
		r.walk(n)
	}
	return r.hits
}

func (r *reach) walk(n ast.Node) {
	if n == nil || r.seen[n] {
		return
	}
	r.seen[n] = true
	ast.Walk(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			for _, part := range labelParts(n.Label) {
				r.walk(part)
			}
			if n.Value != nil {
				r.walk(n.Value)
			}
			return false
		case *ast.SelectorExpr:
			r.selector(n)
			return false
		case *ast.Ident:
			r.ident(n)
		}
		return true
	}, nil)
}

// selector looks at what is selected from. Outputs are the run's however their
// task is called: "build.outputs.file" and "compositions.x.tasks.build.outputs.file"
// are open lists and texts here, and have values only then.
func (r *reach) selector(e *ast.SelectorExpr) {
	if c := chainOf(e, 0); len(c) > 2 && c[0].name == "compositions" && runtimeRoots[c[2].name] {
		r.hits[c[2].name] = true
		return
	}
	if name, _, err := ast.LabelName(e.Sel); err == nil && name == "outputs" {
		r.hits["tasks"] = true
	}
	r.walk(e.X)
}

// labelParts are the expressions in a label; a plain name refers to nothing.
func labelParts(l ast.Label) []ast.Node {
	switch l := l.(type) {
	case *ast.Interpolation, *ast.ParenExpr, *ast.ListLit:
		return []ast.Node{l}
	case *ast.Alias:
		if inner, ok := l.Expr.(ast.Label); ok {
			return labelParts(inner)
		}
	}
	return nil
}

func (r *reach) ident(id *ast.Ident) {
	if runtimeRoots[id.Name] || id.Name == "each" {
		r.hits[id.Name] = true
		return
	}
	switch target := id.Node.(type) {
	case nil, *ast.ImportSpec:
	case *ast.LetClause:
		r.walk(target.Expr)
	case *ast.Alias:
		r.walk(target.Expr)
	case *ast.ForClause:
		r.walk(target.Source)
	case *ast.Field:
		if target.Value != nil {
			r.walk(target.Value)
		}
	case ast.Expr:
		r.walk(target)
	default:
		r.hits["tasks"], r.hits["params"], r.hits["event"] = true, true, true
	}
}
