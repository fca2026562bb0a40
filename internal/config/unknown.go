package config

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// buildErrors explains what building an instance gave: errors of single names.
// A name that is not there is reported where it is met first.
func (x *explainer) buildErrors(err error) []pipeline.Diagnostic {
	var out []pipeline.Diagnostic
	instead := map[string]bool{}
	for _, e := range errors.Errors(err) {
		format, args := innermost(e)
		if format == cueRefNotFound && len(args) == 1 {
			d, meant := x.notFound(fmt.Sprint(args[0]), x.at(nil, e))
			instead[d.Pos.File+pathSep+meant] = true
			if i := slices.IndexFunc(out, func(o pipeline.Diagnostic) bool {
				return o.Message == d.Message && o.Pos.File == d.Pos.File
			}); i >= 0 {
				out[i].Note = also(out[i].Note, out[i].Pos, d.Pos)
				continue
			}
			out = append(out, d)
			continue
		}
		if d := x.explain(e); !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	// An import that a misspelt name was to use is not unused.
	return slices.DeleteFunc(out, func(d pipeline.Diagnostic) bool {
		return d.Code == codeUnused && slices.ContainsFunc(x.files, func(f *ast.File) bool {
			for name, spec := range imports(f) {
				if position(spec.Path.Pos()) == d.Pos && instead[d.Pos.File+pathSep+name] {
					return true
				}
			}
			return false
		})
	})
}

// also adds a further place of a mistake to a note.
func also(note string, first, pos pipeline.Position) string {
	const most = 60 // enough to find the rest
	line := fmt.Sprint(pos.Line)
	switch {
	case pos.Line == first.Line, strings.HasSuffix(note, " "+line), strings.HasSuffix(note, "…"):
		return note
	case note == "":
		return "also in line " + line
	case len(note) > most:
		return note + ", …"
	}
	return note + ", " + line
}

// notFound explains a name that nothing declares. meant is the import of the same
// file that was probably meant.
func (x *explainer) notFound(name string, pos pipeline.Position) (d pipeline.Diagnostic, meant string) {
	d = diag(codeReference, pos, "nothing here is called %q", name)
	d.Unit = x.unit
	if written, at := x.hyphenated(pos); written != "" {
		d.Pos, d.Message = at, fmt.Sprintf("%q is read as a subtraction", plain(strings.ReplaceAll(written, `"`, "")))
		d.Help = "a name with a hyphen is written in quotes: " + written
		return d, ""
	}
	var here []string
	for _, f := range x.files {
		if f.Filename == pos.File {
			here = append(here, sortedKeys(imports(f))...)
		}
	}
	roots := []string{"tasks", "params", "event"}
	switch {
	case slices.Contains(roots, name):
		d.Help = fmt.Sprintf("CUE finds only names that are written around it: where a template declares %s, add %s: _ beside it", name, name)
	case strings.HasPrefix(name, "#"):
		d.Help = "a plugin's definition is written with the plugin's name, as shell.#Run"
		if by := x.importOf(name, pos.File); by != "" {
			d.Help = "write " + by + "." + name
		}
	case name == "maestro":
		d.Help = fmt.Sprintf("add below the package line: import %q", schemaPath)
	case slices.Contains(builtinNames(), name):
		d.Help = fmt.Sprintf("add below the package line: import %q", pluginsPath+name)
	case knownStandard(name):
		d.Help = fmt.Sprintf("add below the package line: import %q", name)
	case slices.Contains([]string{"True", "False", "yes", "no", "on", "off"}, name):
		d.Help = "write true or false"
	case name == "None" || name == "nil" || name == "undefined":
		d.Help = "leave the field out, or write null where null is allowed"
	case x.foreignName(name) != "":
		d.Help = x.foreignName(name)
	case nearest(name, slices.Concat(roots, here)) != "":
		meant = nearest(name, slices.Concat(roots, here))
		d.Help = fmt.Sprintf("did you mean %q?", meant)
	case nearest(name, builtinNames()) != "":
		near := nearest(name, builtinNames())
		d.Help = fmt.Sprintf("did you mean %q? Then add below the package line: import %q", near, pluginsPath+near)
	default:
		d.Help = fmt.Sprintf("a text is written in quotes: %q", name)
		if x.batch != nil {
			x.batch.unknown[pos] = name
		}
	}
	return d, meant
}

// hyphenated writes a reference with quotes around the name that CUE reads as a
// subtraction: tasks.deploy-war.outputs is tasks.deploy minus war.outputs.
func (x *explainer) hyphenated(pos pipeline.Position) (written string, at pipeline.Position) {
	for _, f := range x.files {
		if f.Filename != pos.File {
			continue
		}
		ast.Walk(f, func(n ast.Node) bool {
			b, ok := n.(*ast.BinaryExpr)
			if !ok || b.Op != token.SUB || written != "" {
				return written == ""
			}
			left, right := chainOf(b.X, 0), chainOf(b.Y, 0)
			if left == nil || right == nil || left[0].pos != pos && right[0].pos != pos {
				return true
			}
			joined := left[len(left)-1].name + "-" + right[0].name
			if x.idx.hasLabel(joined) {
				at = left[len(left)-1].pos
				written = append(append(left[:len(left)-1:len(left)-1], link{name: joined}), right[1:]...).text()
			}
			return true
		}, nil)
	}
	return written, at
}

// importOf is the import of a file that declares a definition, or "".
func (x *explainer) importOf(name, file string) string {
	for _, f := range x.files {
		if f.Filename != file || x.batch == nil {
			continue
		}
		for short, spec := range imports(f) {
			dir, ok := x.batch.resolve(unquote(spec.Path.Value))
			if p := x.batch.packages[dir]; ok && p != nil && slices.Contains(declaredNames(p.files), name) {
				return short
			}
		}
	}
	return ""
}

// unused explains an import, a let or an alias that nothing uses.
func (x *explainer) unused(pos pipeline.Position, format string, args []any) pipeline.Diagnostic {
	if !strings.HasPrefix(format, cueNotUsed) {
		d := diag(codeUnused, pos, "a let or alias is declared but not used")
		if len(args) > 0 {
			d.Message = fmt.Sprintf("%q is declared but not used", fmt.Sprint(args[0]))
		}
		d.Help = "remove it"
		return d
	}
	name := ""
	if len(args) > 0 {
		name = strings.Trim(fmt.Sprint(args[0]), `"`)
	}
	short := ast.ParseImportPath(name).Qualifier
	if id := x.unresolvedNear(short, pos.File); id != nil {
		d, _ := x.notFound(id.Name, position(id.Pos()))
		return d
	}
	d := diag(codeUnused, pos, "%q is imported but not used", name)
	d.Help = "remove the import"
	if x.idx.hasLabel(short) {
		d.Help = fmt.Sprintf("a field here is called %q too, which hides the import: rename the field, or import it under another name", short)
	}
	return d
}

// unresolvedNear finds a name in a file that nothing declares and that is almost
// the one given.
func (x *explainer) unresolvedNear(name, file string) *ast.Ident {
	for _, f := range x.files {
		if f.Filename != file {
			continue
		}
		for _, id := range f.Unresolved {
			if id.Node == nil && nearest(id.Name, []string{name}) != "" {
				return id
			}
		}
	}
	return nil
}

// imports maps the names that a file gives its imports to their clauses.
func imports(f *ast.File) map[string]*ast.ImportSpec {
	out := map[string]*ast.ImportSpec{}
	for spec := range f.ImportSpecs() {
		name := ast.ParseImportPath(unquote(spec.Path.Value)).Qualifier
		if spec.Name != nil {
			name = spec.Name.Name
		}
		out[name] = spec
	}
	return out
}

// unknownImport explains an import clause that leads nowhere.
func (b *batch) unknownImport(importPath string, pos pipeline.Position) pipeline.Diagnostic {
	d := diag(codeImport, pos, "unknown package %q", importPath)
	name := path.Base(importPath)
	switch {
	case slices.Contains(builtinNames(), name):
		d.Help = fmt.Sprintf("write %q", pluginsPath+name)
	case strings.HasPrefix(importPath, "plugins/"):
		d.Help = fmt.Sprintf("write the module's name before it: %q", moduleBase(b.req.Module)+"/"+importPath)
	case didYouMean(importPath, standardPackages) != "":
		d.Help = didYouMean(importPath, standardPackages)
	default:
		b.unknown[pos] = name
	}
	return d
}

// advise completes what a unit could not say of a name that it does not know:
// which plugins the repository has is known here.
func (r *repository) advise(s *survey, m mention) {
	for i := range r.cfg.Diagnostics {
		d := &r.cfg.Diagnostics[i]
		if d.Pos != m.Pos || d.Code != codeReference && d.Code != codeImport {
			continue
		}
		var plugins []string
		for dir := range s.packages {
			if path.Dir(dir) == "plugins" {
				plugins = append(plugins, path.Base(dir))
			}
		}
		slices.Sort(plugins)
		near := m.Name
		if !slices.Contains(plugins, near) {
			near = nearest(m.Name, append(plugins, builtinNames()...))
		}
		importPath := moduleBase(s.module) + "/plugins/" + near
		switch {
		case near == "":
			if d.Code == codeImport && d.Note == "" {
				d.Note = "plugins are folders of plugins/; the standard plugins are " + strings.Join(builtinNames(), ", ")
			}
			return
		case slices.Contains(builtinNames(), near):
			importPath = pluginsPath + near
		}
		d.Help = fmt.Sprintf("write %q", importPath)
		if d.Code == codeReference {
			d.Help = fmt.Sprintf("add below the package line: import %q", importPath)
		}
		if near != m.Name {
			d.Help = fmt.Sprintf("did you mean %q? Then %s", near, d.Help)
		}
	}
}
