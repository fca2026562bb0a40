package config

import (
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// A chain is a reference written out: tasks.build.outputs.file.
type chain []link

type link struct {
	name string
	pos  pipeline.Position
	// scope is where CUE found the first name of a chain; nil for the others.
	scope ast.Node
}

// maxAliases bounds how many lets and aliases a reference is followed through.
const maxAliases = 16

// chainOf takes a reference apart, through lets and aliases. It is nil when the
// expression is not a plain reference.
func chainOf(e ast.Expr, aliases int) chain {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return chainOf(e.X, aliases)
	case *ast.SelectorExpr:
		c := chainOf(e.X, aliases)
		name, _, err := ast.LabelName(e.Sel)
		if c == nil || err != nil {
			return nil
		}
		return append(c, link{name: name, pos: position(e.Sel.Pos())})
	case *ast.IndexExpr:
		c := chainOf(e.X, aliases)
		lit, ok := e.Index.(*ast.BasicLit)
		if c == nil || !ok || lit.Kind != token.STRING {
			return nil
		}
		return append(c, link{name: unquote(lit.Value), pos: position(lit.Pos())})
	case *ast.Ident:
		if aliases < maxAliases {
			if target := aliased(e); target != nil {
				if c := chainOf(target, aliases+1); c != nil {
					return c
				}
			}
		}
		return chain{{e.Name, position(e.Pos()), e.Scope}}
	}
	return nil
}

func aliased(id *ast.Ident) ast.Expr {
	switch n := id.Node.(type) {
	case *ast.LetClause:
		return n.Expr
	case *ast.Alias:
		return n.Expr
	}
	return nil
}

// checkSelectors reports IMPORT.#Definition that the imported package does not
// declare. CUE reports it too, at another place for each use.
func (b *batch) checkSelectors(files []*ast.File) []pipeline.Diagnostic {
	var out []pipeline.Diagnostic
	for _, f := range files {
		names := imports(f)
		ast.Walk(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			id, ok := sel.X.(*ast.Ident)
			if !ok {
				return true
			}
			if spec, isImport := id.Node.(*ast.ImportSpec); id.Node != nil && (!isImport || spec == nil) {
				return true
			}
			spec, ok := names[id.Name]
			if !ok {
				return true
			}
			if d, bad := b.checkSelector(id.Name, unquote(spec.Path.Value), sel); bad {
				out = append(out, d)
			}
			return true
		}, nil)
	}
	return out
}

func (b *batch) checkSelector(name, importPath string, sel *ast.SelectorExpr) (pipeline.Diagnostic, bool) {
	dir, ok := b.resolve(importPath)
	if !ok {
		return pipeline.Diagnostic{}, false
	}
	p := b.packages[dir]
	member, _, err := ast.LabelName(sel.Sel)
	if p == nil || p.inst == nil || err != nil {
		return pipeline.Diagnostic{}, false
	}
	known := declaredNames(p.files)
	if slices.Contains(known, member) {
		return pipeline.Diagnostic{}, false
	}
	d := diag(codePluginTask, position(sel.Sel.Pos()), "%s declares no %s", name, member)
	if m := b.manifestOf(dir); isPluginDir(dir) && m != nil {
		d.Message = "plugin \"" + m.name + "\" has no task " + member
		var offers []string
		for _, def := range m.defs {
			offers = append(offers, def.name)
		}
		slices.Sort(offers)
		d.Note = "it offers " + strings.Join(offers, ", ")
	}
	return withHelp(d, didYouMean(member, known)), true
}

func isPluginDir(dir string) bool {
	return strings.HasPrefix(dir, "plugins/") || strings.HasPrefix(dir, builtinDir) && dir != builtinDir
}

// declaredNames are the top-level names of a package.
func declaredNames(files []*ast.File) []string {
	var out []string
	for _, f := range files {
		for _, d := range f.Decls {
			if field, ok := d.(*ast.Field); ok {
				if name, _, err := ast.LabelName(field.Label); err == nil {
					out = append(out, name)
				}
			}
		}
	}
	return out
}
