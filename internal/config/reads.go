package config

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// outputRead is a reference to an output of a task; output is "" for all of them.
type outputRead struct{ task, output string }

// readsAt are the outputs of tasks to which a value of the composition refers,
// sorted. What is around it counts when it is not written out as fields: the value
// may come from there.
func (w *work) readsAt(path ...string) []outputRead {
	r := w.follow(path...)
	return slices.SortedFunc(maps.Keys(r.found), func(a, b outputRead) int {
		return cmp.Or(strings.Compare(a.task, b.task), strings.Compare(a.output, b.output))
	})
}

// seal covers a value that waits for the run: its text, what is around it and decides
// about it, and all that these refer to.
func (w *work) seal(path ...string) pipeline.Digest {
	texts := slices.Clone(w.follow(path...).texts)
	for n := range path {
		for _, p := range w.all.at(w.path(path[:n]...)...) {
			texts = append(texts, nodeTexts("around", p.guards)...)
			texts = append(texts, nodeTexts("around", looseParts(p.value))...)
		}
	}
	for _, p := range w.all.at(w.path(path...)...) {
		texts = append(texts, nodeTexts("if", p.guards)...)
		texts = append(texts, "value"+pathSep+canonical(p.value))
	}
	slices.Sort(texts)
	return pipeline.DigestOf([]byte(strings.Join(slices.Compact(texts), pathSep+pathSep)))
}

func nodeTexts(what string, nodes []ast.Node) []string {
	out := make([]string, len(nodes))
	for i, n := range nodes {
		out[i] = what + pathSep + nodeText(n)
	}
	return out
}

// nodeText is the text of an expression, or of those that a clause consists of, which
// CUE does not format by itself.
func nodeText(n ast.Node) string {
	if s := canonical(n); s != "" {
		return s
	}
	var parts []string
	ast.Walk(n, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		if ok {
			parts = append(parts, canonical(e))
		}
		return !ok
	}, nil)
	return strings.Join(parts, pathSep)
}

func (w *work) follow(path ...string) *reads {
	r := &reads{work: w, seen: map[ast.Node]bool{}, found: map[outputRead]bool{}}
	for n := 0; n < len(path); n++ {
		for _, p := range w.all.at(w.path(path[:n]...)...) {
			r.walk(p.guards...)
			r.walk(w.opaque(looseParts(p.value))...)
		}
	}
	for _, p := range w.all.at(w.path(path...)...) {
		r.walk(p.guards...)
		if p.value != nil {
			r.walk(p.value)
		}
	}
	return r
}

// opaque leaves out the templates: what they say stands where they are used.
func (w *work) opaque(nodes []ast.Node) []ast.Node {
	return slices.DeleteFunc(nodes, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		return ok && w.templates && w.batch.template(e) != nil
	})
}

// reads collects references to outputs, through lets, aliases and helper fields.
type reads struct {
	*work
	seen  map[ast.Node]bool
	found map[outputRead]bool
	// texts are what it was led to.
	texts []string
}

func (r *reads) walk(nodes ...ast.Node) {
	for _, n := range nodes {
		if n == nil || r.seen[n] {
			continue
		}
		r.seen[n] = true
		ast.Walk(n, r.node, nil)
	}
}

func (r *reads) node(n ast.Node) bool {
	e, ok := n.(ast.Expr)
	if !ok {
		return true
	}
	switch e.(type) {
	case *ast.SelectorExpr, *ast.IndexExpr, *ast.Ident:
	default:
		return true
	}
	c := chainOf(e, 0)
	if full, _ := r.read(c); full != nil {
		r.chain(full)
		return false
	}
	if len(c) > 0 && r.helper(c) {
		return false
	}
	if id, ok := e.(*ast.Ident); ok {
		r.ident(id)
	}
	return true
}

func (r *reads) chain(c chain) {
	switch {
	case c[0].name != "tasks" || len(c) > 2 && c[2].name == "each":
	case len(c) > 3 && c[2].name == "outputs":
		r.found[outputRead{c[1].name, c[3].name}] = true
	case len(c) > 1:
		r.found[outputRead{task: c[1].name}] = true
	default: // all of them
		for _, name := range r.all.children(r.path("tasks")...) {
			r.found[outputRead{task: name}] = true
		}
	}
}

// imported takes in a package of the repository, with those that it imports. A
// plugin is pinned by its tree, and is no part of what refers to it.
func (r *reads) imported(importPath string) {
	dir, ok := r.batch.resolve(importPath)
	p := r.batch.packages[dir]
	if !ok || p == nil || strings.HasPrefix(dir, builtinDir) || strings.HasPrefix(dir, pluginDir("")) {
		return
	}
	for _, f := range p.files {
		if r.seen[f] {
			continue
		}
		r.seen[f] = true
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.Package, *ast.ImportDecl, *ast.CommentGroup:
			default:
				r.texts = append(r.texts, dir+pathSep+canonical(d))
			}
		}
		for spec := range f.ImportSpecs() {
			r.imported(unquote(spec.Path.Value))
		}
	}
}

// helper follows a reference to a field that is written out somewhere in the unit.
func (r *reads) helper(c chain) bool {
	places := r.places(c)
	for _, p := range places {
		r.walk(p.guards...)
		r.enter(p.value)
	}
	return len(places) > 0
}

// places are where a field of the unit that is no part of a run is written out, or
// the nearest field around it that is.
func (w *work) places(c chain) []place {
	prefix, known := w.all.scopes[c[0].scope]
	if !known {
		return nil
	}
	var path []string
	if prefix != "" {
		path = strings.Split(prefix, pathSep)
	}
	for _, l := range c {
		path = append(path, l.name)
	}
	for n := len(path); n > len(path)-len(c); n-- {
		if places := w.all.at(path[:n]...); len(places) > 0 {
			return places
		}
	}
	return nil
}

func (r *reads) ident(id *ast.Ident) {
	switch target := id.Node.(type) {
	case *ast.ImportSpec:
		r.imported(unquote(target.Path.Value))
	case *ast.LetClause:
		r.enter(target.Expr)
	case *ast.Alias:
		r.enter(target.Expr)
	case *ast.ForClause:
		r.walk(target.Source)
	case *ast.Field:
		r.enter(target.Value)
	case ast.Expr:
		if !runtimeRoots[id.Name] {
			r.enter(target)
		}
	}
}

// enter goes on with what a name stands for.
func (r *reads) enter(e ast.Expr) {
	if e == nil || r.seen[e] {
		return
	}
	r.texts = append(r.texts, canonical(e))
	r.walk(e)
}
