package config

import (
	"strings"

	"cuelang.org/go/cue/ast"
)

// plainly reports whether everything in the unit that is about the composition is
// written so that its syntax shows all its references: fields with literal names,
// whose values refer to imports, to params, to the event, and to outputs of tasks,
// by their names and nothing else. CUE need not be asked then what depends on what.
// It errs on the side of "no".
func (w *work) plainly() bool {
	for _, f := range w.all.files {
		for _, d := range f.Decls {
			if !w.plainDecl(d) {
				return false
			}
		}
	}
	return true
}

func (w *work) plainDecl(d ast.Decl) bool {
	switch d := d.(type) {
	case *ast.Package, *ast.ImportDecl, *ast.CommentGroup, *ast.Attribute:
		return true
	case *ast.Ellipsis:
		return d.Type == nil || w.plainValue(d.Type)
	case *ast.Field:
		return d.Alias == nil && w.plainLabel(d.Label) && (d.Value == nil || w.plainValue(d.Value))
	}
	return false // a let, a comprehension, an embedded value
}

// plainLabel accepts a name, and a pattern that matches all names: what the pattern
// calls them is a text, and its value is looked at like any other.
func (w *work) plainLabel(l ast.Label) bool {
	switch l := l.(type) {
	case *ast.Ident:
		return !strings.HasPrefix(l.Name, "_") && !strings.HasPrefix(l.Name, "#")
	case *ast.BasicLit:
		return true
	case *ast.ListLit:
		if len(l.Elts) != 1 {
			return false
		}
		a, ok := l.Elts[0].(*ast.Alias)
		if !ok {
			return false
		}
		all, ok := a.Expr.(*ast.Ident)
		return ok && all.Name == "_"
	}
	return false
}

func (w *work) plainValue(e ast.Expr) bool {
	plain := true
	ast.Walk(e, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr, *ast.IndexExpr, *ast.Ident:
			e, _ := n.(ast.Expr)
			plain = plain && w.plainRef(e)
			return false
		case *ast.StructLit:
			for _, d := range n.Elts {
				plain = plain && w.plainDecl(d)
			}
			return false
		case *ast.BasicLit, *ast.BinaryExpr, *ast.UnaryExpr, *ast.ParenExpr, *ast.Interpolation,
			*ast.ListLit, *ast.Ellipsis, *ast.CallExpr, *ast.CommentGroup, *ast.BottomLit:
			return plain
		}
		plain = false
		return false
	}, nil)
	return plain
}

func (w *work) plainRef(e ast.Expr) bool {
	id := rootOf(e)
	if id == nil {
		return false
	}
	switch target := id.Node.(type) {
	case nil:
		// A predeclared name, or an import that CUE has not resolved to its clause.
		return !runtimeRoots[id.Name] && id.Name != "compositions"
	case *ast.ImportSpec:
		return true
	case *ast.Ident: // the _ of a pattern, to whose name this refers
		return target.Name == "_" && e == ast.Expr(id)
	}
	c := chainOf(e, 0)
	if id.Name == "event" {
		return len(c) > 1
	}
	if w.all.scopes[id.Scope] != keyOf(w.path()) {
		return false
	}
	switch id.Name {
	case "params":
		return len(c) > 1
	case "tasks":
		return len(c) > 2 && c[2].name == "outputs"
	}
	return false
}

// rootOf is the name that a reference begins with, nil for what is none.
func rootOf(e ast.Expr) *ast.Ident {
	switch e := e.(type) {
	case *ast.Ident:
		return e
	case *ast.SelectorExpr:
		return rootOf(e.X)
	case *ast.IndexExpr:
		if lit, ok := e.Index.(*ast.BasicLit); ok && lit != nil {
			return rootOf(e.X)
		}
	}
	return nil
}
