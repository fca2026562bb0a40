package config

import (
	"fmt"
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// shadowed reports names such as params that mean something nearer than their
// author thinks: in "params: version: params.version" the second is the first, and
// CUE takes that for a value that is not there yet.
func (w *work) shadowed() bool {
	found := map[pipeline.Position]bool{}
	for _, p := range w.all.at(w.path()...) {
		if p.value == nil {
			continue
		}
		w.shadowIn(p.value, found)
	}
	return len(found) > 0
}

func (w *work) shadowIn(n ast.Node, found map[pipeline.Position]bool) {
	if n == nil {
		return
	}
	ast.Walk(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			for _, part := range labelParts(n.Label) {
				w.shadowIn(part, found)
			}
			w.shadowIn(n.Value, found)
			return false
		case *ast.SelectorExpr:
			w.shadowIn(n.X, found)
			return false
		case *ast.Ident:
			w.shadow(n, found)
		}
		return true
	}, nil)
}

func (w *work) shadow(id *ast.Ident, found map[pipeline.Position]bool) {
	pos := position(id.Pos())
	key, known := w.all.scopes[id.Scope]
	if !runtimeRoots[id.Name] || !known || found[pos] || key == "" || key == keyOf(w.path()) {
		return
	}
	path := strings.Split(key, pathSep)
	if len(path) < 3 || path[0] != "compositions" {
		return
	}
	found[pos] = true
	d := diag(codeShadow, pos, "%q is here the field of that name in %s, not that of the composition", id.Name, w.x.subject(path))
	switch {
	case path[2] == "triggers":
		d.Note = "the params of a trigger are what it gives to its runs; there are no others yet"
		d.Help = "give a value, or one of the event, such as event.branch"
	case w.callsAt(path):
		d.Help = "what is called gets its params as with: {…}: there, params are those of the composition"
	default:
		d.Help = fmt.Sprintf("write compositions.%s.%s instead of %s", quoteLabel(w.name), id.Name, id.Name)
	}
	w.complain(d)
}

// callsAt reports whether a struct says which composition is called.
func (w *work) callsAt(path []string) bool {
	return len(w.all.at(append(slices.Clone(path), "composition")...)) > 0
}
