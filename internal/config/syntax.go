package config

import (
	"slices"
	"strconv"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// standardPackages are the packages of CUE's library that a file may import. The
// tool packages are left out: they are for commands, which are never run.
var standardPackages = []string{
	"crypto/ed25519", "crypto/hmac", "crypto/md5", "crypto/sha1", "crypto/sha256", "crypto/sha512",
	"encoding/base64", "encoding/csv", "encoding/hex", "encoding/json", "encoding/openapi",
	"encoding/toml", "encoding/yaml", "html", "list", "math", "math/bits", "net", "path", "regexp",
	"strconv", "strings", "struct", "text/tabwriter", "text/template", "time", "uuid",
}

func knownStandard(importPath string) bool {
	return slices.Contains(standardPackages, ast.ParseImportPath(importPath).Path)
}

// topLevel are the fields that package ops may declare.
var topLevel = []string{"compositions", "event", "policy", "pools", "repositories", "secrets"}

func position(p token.Pos) pipeline.Position {
	if !p.IsValid() {
		return pipeline.Position{}
	}
	return pipeline.Position{File: p.Filename(), Line: p.Line(), Column: p.Column()}
}

func unquote(s string) string {
	if u, err := strconv.Unquote(s); err == nil {
		return u
	}
	return strings.Trim(s, `"`)
}

// refusedAttributes finds what this loader does not implement, and what would
// otherwise be silently ignored.
func refusedAttributes(f *ast.File) []pipeline.Diagnostic {
	var out []pipeline.Diagnostic
	ast.Walk(f, func(n ast.Node) bool {
		a, ok := n.(*ast.Attribute)
		if !ok {
			return true
		}
		name, _ := a.Split()
		switch name {
		case "extern", "embed", "if", "tag", "ignore":
			d := diag(codeUnsupported, position(a.Pos()), "@%s is not supported here", name)
			d.Note = "a commit is evaluated without files, tags or foreign functions of its machine"
			out = append(out, d)
		case "inherit", "provide":
		default:
			if hint := didYouMean("@"+name, []string{"@inherit", "@provide"}); hint != "" {
				out = append(out, withHelp(diag(codeAttribute, position(a.Pos()), "unknown attribute @%s", name), hint))
			}
		}
		return true
	}, nil)
	return out
}

func wrongPackage(name string, f *ast.File, want string) pipeline.Diagnostic {
	pos := pipeline.Position{File: name, Line: 1, Column: 1}
	have := f.PackageName()
	for _, d := range f.Decls {
		if p, ok := d.(*ast.Package); ok {
			pos = position(p.Name.Pos())
		}
	}
	if have == "" {
		d := diag(codePackage, pos, "the file names no package")
		d.Help = "begin it with: package " + want
		return d
	}
	d := diag(codePackage, pos, "the file is in package %s, but this directory is package %s", have, want)
	d.Help = "write: package " + want
	return d
}

// setPackage makes f a file of the package.
func setPackage(f *ast.File, name string) {
	for _, d := range f.Decls {
		if p, ok := d.(*ast.Package); ok {
			p.Name.Name = name
			return
		}
	}
	f.Decls = append([]ast.Decl{&ast.Package{Name: ast.NewIdent(name)}}, f.Decls...)
}

// checkTopLevel reports fields of package ops that nothing reads.
func checkTopLevel(files []*ast.File) []pipeline.Diagnostic {
	var out []pipeline.Diagnostic
	for _, f := range files {
		for _, d := range f.Decls {
			field, ok := d.(*ast.Field)
			if !ok {
				if e, isEmbed := d.(*ast.EmbedDecl); isEmbed {
					out = append(out, diag(codeTopLevel, position(e.Pos()), "package ops holds named fields only, no embedded values"))
				}
				continue
			}
			name, _, err := ast.LabelName(field.Label)
			if err != nil {
				out = append(out, diag(codeTopLevel, position(field.Pos()), "a top-level name must be written out"))
				continue
			}
			if slices.Contains(topLevel, name) || strings.HasPrefix(name, "_") || strings.HasPrefix(name, "#") {
				continue
			}
			d := diag(codeTopLevel, position(field.Pos()), "unknown top-level name %q", plain(name))
			d.Note = "package ops declares compositions, pools, secrets, repositories and policy; a helper is written _" + name + " or #" + name
			d.Help = didYouMean(name, topLevel)
			switch {
			case strings.Contains(" pipeline pipelines workflow workflows flow flows ", " "+strings.ToLower(name)+" "):
				d.Help = "they are called compositions: write compositions: NAME: {…}"
			case insideComposition(name):
				d.Help = "it belongs into a composition: compositions: NAME: {…}"
			}
			out = append(out, d)
		}
	}
	return out
}

// insideComposition recognises what other systems write at the top of a file.
func insideComposition(name string) bool {
	if slices.Contains([]string{"tasks", "triggers", "params", "name", "description", "agent", "timeout", "tests"}, name) {
		return true
	}
	return slices.ContainsFunc(compositionWords, func(w foreign) bool { return w.has(name) })
}

// bound reports which top-level names the files bind to the schema in the form
// that ops.cue has. What they do not bind, the loader binds.
func bound(files []*ast.File) map[string]bool {
	out := map[string]bool{}
	for _, f := range files {
		for _, d := range f.Decls {
			field, ok := d.(*ast.Field)
			if !ok {
				continue
			}
			name, _, _ := ast.LabelName(field.Label)
			switch name {
			case "compositions", "pools", "repositories", "secrets":
				if bindsAll(field.Value, bindings[name]) {
					out[name] = true
				}
			case "event", "policy":
				if hasConjunct(field.Value, bindings[name]) {
					out[name] = true
				}
			}
		}
	}
	return out
}

var bindings = map[string]string{
	"compositions": "#Composition", "pools": "#Pool", "secrets": "#Secret", "event": "#Event",
	"policy": "#Policy", "repositories": "#Repository",
}

// bindsAll recognises {[Name=_]: maestro.#Def & …}, for every name.
func bindsAll(x ast.Expr, def string) bool {
	s, ok := x.(*ast.StructLit)
	if !ok {
		return false
	}
	for _, e := range s.Elts {
		field, ok := e.(*ast.Field)
		if !ok {
			continue
		}
		list, ok := field.Label.(*ast.ListLit)
		if !ok || len(list.Elts) != 1 {
			continue
		}
		pattern := list.Elts[0]
		if a, ok := pattern.(*ast.Alias); ok {
			pattern = a.Expr
		}
		if id, ok := pattern.(*ast.Ident); ok && (id.Name == "_" || id.Name == "string") && hasConjunct(field.Value, def) {
			return true
		}
	}
	return false
}

func hasConjunct(x ast.Expr, def string) bool {
	switch x := x.(type) {
	case *ast.ParenExpr:
		return hasConjunct(x.X, def)
	case *ast.BinaryExpr:
		return x.Op == token.AND && (hasConjunct(x.X, def) || hasConjunct(x.Y, def))
	case *ast.SelectorExpr:
		id, ok := x.X.(*ast.Ident)
		if !ok || id.Node == nil {
			return false
		}
		spec, ok := id.Node.(*ast.ImportSpec)
		if !ok || ast.ParseImportPath(unquote(spec.Path.Value)).Path != schemaPath {
			return false
		}
		name, _, err := ast.LabelName(x.Sel)
		return err == nil && name == def
	}
	return false
}
