package config

import (
	"maps"
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// maxTemplates bounds how many definitions a reference is followed through.
const maxTemplates = 8

// withTemplates returns the checker with an index in which the composition's
// templates count as written where they are used: definitions with which it, or a
// task of it, is unified. Plugins are no templates: what they say is known apart.
func (c *checker) withTemplates(name string) *checker {
	o := &overlay{batch: c.batch, base: c.all, seen: map[string]bool{}}
	top := []string{"compositions", name}
	o.made("compositions", name)
	for _, p := range o.index().at(top...) {
		o.graft(keyOf(top), p.value, 0)
	}
	tasks := append(top, "tasks")
	for _, task := range fieldNames(get(c.root, tasks...)) {
		o.made(keyOf(tasks), task)
		at := append(slices.Clone(tasks), task)
		for _, p := range o.index().at(at...) {
			o.graft(keyOf(at), p.value, 0)
		}
	}
	if o.own == nil {
		return c
	}
	out := *c
	out.all, out.x.idx, out.templates = o.own, o.own, true
	return &out
}

// An overlay is an index with more in it than the files say.
type overlay struct {
	batch *batch
	base  *index
	own   *index // nil while it is equal to base
	seen  map[string]bool
}

func (o *overlay) index() *index {
	if o.own != nil {
		return o.own
	}
	return o.base
}

// graft adds what the definitions in an expression say of a path.
func (o *overlay) graft(key string, e ast.Expr, depth int) {
	if depth > maxTemplates {
		return
	}
	for _, ref := range conjunctRefs(e) {
		target := o.batch.template(ref)
		at := key + pathSep + position(ref.Pos()).String()
		if target == nil || o.seen[at] {
			continue
		}
		o.seen[at] = true
		x := newIndex(nil)
		x.expr(key, target, nil)
		o.merge(x)
		o.graft(key, target, depth+1)
	}
}

// made adds the declarations of a field whose name is made, as in "test-\(x)": all
// that look like it.
func (o *overlay) made(prefix, name string) {
	if len(o.index().places[prefix+pathSep+name]) > 0 {
		return
	}
	for _, m := range o.index().made[prefix] {
		if m.pattern.MatchString(name) {
			x := newIndex(nil)
			x.add(prefix, name, m.place)
			o.merge(x)
		}
	}
}

func (o *overlay) merge(x *index) {
	if o.own == nil {
		o.own = &index{places: maps.Clone(o.base.places), names: maps.Clone(o.base.names), made: maps.Clone(o.base.made), scopes: maps.Clone(o.base.scopes)}
	}
	for key, places := range x.places {
		// The author's own word comes last: it is the one to blame.
		o.own.places[key] = append(slices.Clone(places), o.own.places[key]...)
	}
	for key, names := range x.names {
		have := slices.Clone(o.own.names[key])
		for _, name := range names {
			if !slices.Contains(have, name) {
				have = append(have, name)
			}
		}
		o.own.names[key] = have
	}
	for key, made := range x.made {
		o.own.made[key] = append(slices.Clone(made), o.own.made[key]...)
	}
	maps.Copy(o.own.scopes, x.scopes)
}

// conjunctRefs are the references with which an expression is unified, or that it embeds.
func conjunctRefs(e ast.Expr) []ast.Expr {
	switch e := e.(type) {
	case *ast.ParenExpr:
		return conjunctRefs(e.X)
	case *ast.BinaryExpr:
		if e.Op == token.AND {
			return append(conjunctRefs(e.X), conjunctRefs(e.Y)...)
		}
	case *ast.StructLit:
		var out []ast.Expr
		for _, d := range e.Elts {
			if embed, ok := d.(*ast.EmbedDecl); ok {
				out = append(out, conjunctRefs(embed.Expr)...)
			}
		}
		return out
	case *ast.Ident, *ast.SelectorExpr:
		return []ast.Expr{e}
	}
	return nil
}

// template finds what a name stands for, when that is a struct which its authors
// wrote: a field of the unit, or of a package that is no plugin.
func (b *batch) template(ref ast.Expr) ast.Expr {
	switch ref := ref.(type) {
	case *ast.Ident:
		if f, ok := ref.Node.(*ast.Field); ok {
			return f.Value
		}
		if x, ok := ref.Node.(ast.Expr); ok && !runtimeRoots[ref.Name] {
			return x
		}
	case *ast.SelectorExpr:
		id, ok := ref.X.(*ast.Ident)
		if !ok {
			return nil
		}
		spec, ok := id.Node.(*ast.ImportSpec)
		name, _, err := ast.LabelName(ref.Sel)
		if !ok || spec == nil || err != nil {
			return nil
		}
		dir, ok := b.resolve(unquote(spec.Path.Value))
		if !ok || strings.HasPrefix(dir, builtinDir) || isPluginDir(dir) || b.packages[dir] == nil {
			return nil
		}
		return declared(b.packages[dir].files, name)
	}
	return nil
}

// declared is the value of a top-level field of a package, the first if it has several.
func declared(files []*ast.File, name string) ast.Expr {
	for _, f := range files {
		for _, d := range f.Decls {
			if field, ok := d.(*ast.Field); ok {
				if label, _, err := ast.LabelName(field.Label); err == nil && label == name {
					return field.Value
				}
			}
		}
	}
	return nil
}

// passes reports whether a template is given something of the run as a parameter:
// then anything that it makes may wait for the run.
func (w *work) passes() bool {
	if !w.templates {
		return false
	}
	for _, p := range w.all.at(w.path()...) {
		if len(reaches(hiddenParts(p.value)...)) > 0 {
			return true
		}
	}
	return false
}

// hiddenParts are the values of definitions and hidden fields in a struct: the
// parameters of what it is unified with.
func hiddenParts(e ast.Expr) []ast.Node {
	var out []ast.Node
	switch e := e.(type) {
	case *ast.ParenExpr:
		return hiddenParts(e.X)
	case *ast.BinaryExpr:
		return append(hiddenParts(e.X), hiddenParts(e.Y)...)
	case *ast.StructLit:
		for _, d := range e.Elts {
			f, ok := d.(*ast.Field)
			if !ok {
				continue
			}
			if name, _, err := ast.LabelName(f.Label); err == nil && (strings.HasPrefix(name, "#") || strings.HasPrefix(name, "_")) {
				out = append(out, f.Value)
			}
		}
	}
	return out
}

// notGiven explains a field that a template makes of a parameter which nobody gave.
func (x *explainer) notGiven(p []string) (pipeline.Diagnostic, bool) {
	wrote := x.lastWritten(p)
	if wrote == nil || len(p) < 5 || p[2] != "tasks" {
		return pipeline.Diagnostic{}, false
	}
	var missing []string
	ast.Walk(wrote, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok && strings.HasPrefix(id.Name, "#") && !slices.Contains(missing, id.Name) {
			missing = append(missing, id.Name)
		}
		return true
	}, nil)
	if len(missing) == 0 {
		return pipeline.Diagnostic{}, false
	}
	pos, _ := x.idx.label(p[:4]...)
	d := diag(codeRequired, pos, "%s is made of %s, which is not given", x.subject(p), strings.Join(missing, " and "))
	d.Note = declaredAt(position(wrote.Pos()))
	d.Help = "add " + missing[0] + ": … beside what it is a parameter of"
	return d, true
}

// wrongParameter explains a parameter of a template that is given a wrong value.
func (x *explainer) wrongParameter(p []string) (pipeline.Diagnostic, bool) {
	if x.idx == nil || !strings.HasPrefix(p[len(p)-1], "#") {
		return pipeline.Diagnostic{}, false
	}
	places := x.idx.at(p...)
	if len(places) < 2 || places[0].value == nil || places[len(places)-1].value == nil {
		return pipeline.Diagnostic{}, false
	}
	want, have := places[0].value, places[len(places)-1].value
	d := diag(codeValue, position(have.Pos()), "%s must be %s, not %s", x.subject(p), exprText(want), exprText(have))
	d.Note = declaredAt(position(want.Pos()))
	return d, true
}
