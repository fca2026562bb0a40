package config

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// fromAbove explains a value that the schema allows and a file of a directory
// above does not: what is said there holds for all below it.
func (x *explainer) fromAbove(p []string) (pipeline.Diagnostic, bool) {
	if x.idx == nil || x.batch == nil || len(p) < 3 || p[0] != "compositions" {
		return pipeline.Diagnostic{}, false
	}
	pos, exact := x.idx.value(p...)
	wrote := x.lastWritten(p)
	if !exact || wrote == nil {
		return pipeline.Diagnostic{}, false
	}
	if decl := x.declared(p); decl.Exists() {
		t, err := compileType(decl)
		if lit, ok := wrote.(*ast.BasicLit); ok && err == nil && len(t.CheckJSON([]byte(lit.Value))) > 0 {
			return pipeline.Diagnostic{}, false // it is wrong by itself
		}
	}
	for _, f := range x.ancestors(pos.File) {
		e := sayingOf(f.Decls, p)
		if e == nil {
			continue
		}
		d := diag(codeValue, pos, "%s must be %s here%s", x.subject(p), exprText(e), x.written(p))
		at := position(e.Pos())
		d.Note = fmt.Sprintf("%s:%d says so for all that is below %s", at.File, at.Line, dirName(path.Dir(at.File)))
		d.Help = "keep to it, or have it changed there"
		return d, true
	}
	return pipeline.Diagnostic{}, false
}

func dirName(dir string) string {
	if dir == "." {
		return "the root"
	}
	return dir
}

// ancestors are the files of directories above that of a file, the nearest first.
func (x *explainer) ancestors(file string) []*ast.File {
	var out []*ast.File
	for n := range x.idx.scopes {
		f, ok := n.(*ast.File)
		if !ok || !isAuthor(f.Filename) {
			continue
		}
		dir := path.Dir(f.Filename)
		if dir != path.Dir(file) && (dir == "." || strings.HasPrefix(file, dir+"/")) {
			out = append(out, f)
		}
	}
	slices.SortFunc(out, func(a, b *ast.File) int {
		if n := strings.Count(b.Filename, "/") - strings.Count(a.Filename, "/"); n != 0 {
			return n
		}
		return strings.Compare(a.Filename, b.Filename)
	})
	return out
}

// sayingOf is what declarations say of a path, patterns on names included.
func sayingOf(decls []ast.Decl, p []string) ast.Expr {
	for _, d := range decls {
		f, ok := d.(*ast.Field)
		if !ok {
			continue
		}
		name, _, err := ast.LabelName(f.Label)
		if err != nil {
			if _, pattern := f.Label.(*ast.ListLit); !pattern {
				continue
			}
		} else if name != p[0] {
			continue
		}
		if len(p) == 1 {
			return f.Value
		}
		if e := sayingIn(f.Value, p[1:]); e != nil {
			return e
		}
	}
	return nil
}

func sayingIn(e ast.Expr, p []string) ast.Expr {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return sayingIn(e.X, p)
	case *ast.BinaryExpr:
		if e.Op == token.AND {
			if x := sayingIn(e.X, p); x != nil {
				return x
			}
			return sayingIn(e.Y, p)
		}
	case *ast.StructLit:
		return sayingOf(e.Elts, p)
	}
	return nil
}
