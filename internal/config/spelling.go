package config

import (
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// A spelling is one of the ways to write a reference that CUE resolves. All but
// one are refused, because they read as if they were something else.
type spelling int

const (
	// spelledOut: tasks.build.outputs.file, with or without compositions.NAME before it.
	spelledOut spelling = iota
	// spelledSibling: build.outputs.file, which CUE finds in the struct around it.
	spelledSibling
	// spelledOther: compositions.OTHER.tasks.build.outputs.file.
	spelledOther
)

// read turns a reference into one that begins with tasks, params or event of this
// composition, however CUE comes to find it. It is nil for any other reference.
func (w *work) read(c chain) (chain, spelling) {
	if c == nil {
		return nil, spelledOut
	}
	key, known := w.all.scopes[c[0].scope]
	if !known || key == "" && runtimeRoots[c[0].name] {
		if runtimeRoots[c[0].name] {
			return c, spelledOut
		}
		return nil, spelledOut
	}
	var full chain
	if key != "" {
		for name := range strings.SplitSeq(key, pathSep) {
			full = append(full, link{name: name, pos: c[0].pos})
		}
	}
	depth := len(full)
	full = append(full, c...)
	if len(full) < 3 || full[0].name != "compositions" || !runtimeRoots[full[2].name] {
		return nil, spelledOut
	}
	rest := full[2:]
	switch {
	case full[1].name != w.name:
		return full, spelledOther
	case depth < 3:
		return rest, spelledOut
	case rest[0].name != "tasks":
		return nil, spelledOut // a param that refers to another
	case depth == 3 && w.all.at(w.path("tasks", c[0].name)...) != nil && !strings.HasPrefix(c[0].name, "_") && len(c) > 1:
		return rest, spelledSibling
	case depth == 4 && c[0].name == "outputs":
		return rest, spelledOut // its own, which is a circle
	}
	return nil, spelledOut
}

// chainsIn finds every reference to the run below a node. The longest reference
// is reported, not its beginnings as well.
func (w *work) chainsIn(n ast.Node, visit func(chain, spelling)) {
	ast.Walk(n, func(n ast.Node) bool {
		e, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		switch e.(type) {
		case *ast.SelectorExpr, *ast.IndexExpr, *ast.Ident:
		default:
			return true
		}
		c, how := w.read(chainOf(e, 0))
		if c == nil {
			return true
		}
		visit(c, how)
		return false
	}, nil)
}

// firstRef is the place of the first reference to the run in an expression.
func (w *work) firstRef(e ast.Expr) pipeline.Position {
	pos := position(e.Pos())
	found := false
	w.chainsIn(e, func(c chain, _ spelling) {
		if !found {
			pos, found = c[0].pos, true
		}
	})
	return pos
}

// checkSpelling reports references that CUE resolves and that mean nothing here,
// or mean it in a way that a reader would not expect. It returns the tasks they
// are in. It comes before all other checks, which would take the references for
// values: where an output is an open list, a wrong and concrete one.
func (w *work) checkSpelling() map[string]bool {
	broken := map[string]bool{}
	for _, name := range w.all.children(w.path("tasks")...) {
		hook := w.refsIn("tasks", name, "onFailureRun")
		for _, p := range w.all.at(w.path("tasks", name)...) {
			nodes := slices.Clone(p.guards)
			if p.value != nil {
				nodes = append(nodes, p.value)
			}
			for _, n := range nodes {
				w.chainsIn(n, func(c chain, how spelling) {
					if !hook[c[0].pos] && w.misspelt(name, c, how) {
						broken[name] = true
					}
				})
			}
		}
	}
	return broken
}

// refsIn are the places of the references below a path. What is called when a task
// has failed may read what the task had reported by then.
func (w *work) refsIn(path ...string) map[pipeline.Position]bool {
	out := map[pipeline.Position]bool{}
	for _, p := range w.all.at(w.path(path...)...) {
		if p.value != nil {
			w.chainsIn(p.value, func(c chain, _ spelling) { out[c[0].pos] = true })
		}
	}
	return out
}

// misspelt reports a reference that is refused for its spelling alone.
func (w *work) misspelt(task string, c chain, how spelling) bool {
	var d pipeline.Diagnostic
	switch {
	case len(c) > 2 && c[0].name == "tasks" && c[1].name == task && c[2].name == "outputs":
		d = diag(codeCycle, c[0].pos, "task %q reads its own output, which is there only when it has run", task)
		d.Help = "let a later task read it; within one task, keep the value in the program"
	case how == spelledSibling && len(c) > 2 && c[2].name == "outputs":
		d = diag(codeSibling, c[1].pos, "task %q refers to task %q without \"tasks.\" before it", task, c[1].name)
		d.Help = "write " + c.text()
	default:
		return false
	}
	if w.blamed[d.Pos] {
		return true
	}
	for _, l := range c {
		w.blamed[l.pos] = true
	}
	w.complain(d)
	return true
}

// borrows reports references to the tasks and params of other compositions. CUE
// gives them no value here, and tasks taken from there would go on reading there.
func (w *work) borrows() bool {
	found := false
	for _, p := range w.all.at(w.path()...) {
		if p.value == nil {
			continue
		}
		w.chainsIn(p.value, func(c chain, how spelling) {
			if how != spelledOther {
				return
			}
			found = true
			d := diag(codeOther, c[0].pos, "composition %q refers to %s of composition %q, but a composition sees its own only", w.name, c[2].name, c[1].name)
			d.Note = "compositions run apart, each in runs of its own"
			d.Help = "write what both need once beside them, as _shared: …, and refer to that from both"
			w.complain(d)
		})
	}
	return found
}

// text is a reference as an author writes it; a name with a hyphen is in quotes.
func (c chain) text() string {
	out := make([]string, len(c))
	for i, l := range c {
		out[i] = quoteLabel(l.name)
	}
	return strings.Join(out, ".")
}
