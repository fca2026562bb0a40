package config

import (
	"slices"
	"strings"

	"cuelang.org/go/cue/ast"
)

// checkText looks at a unit that has no value, because a name in it leads nowhere:
// at the names of its fields and at the values that are written out. So its author
// hears of all mistakes at once.
func (b *batch) checkText(dir string, files []*ast.File, res *unitResult) {
	own := newIndex(files)
	c := &checker{batch: b, unit: dir, own: own, all: own, res: res}
	c.x = explainer{batch: b, unit: dir, idx: own, files: files, meant: map[string]bool{}}
	c.x.definition = func(composition, task string) *definition {
		for _, p := range own.at("compositions", composition, "tasks", task) {
			if d := b.definitionIn(files, p.value); d != nil {
				return d
			}
		}
		return nil
	}
	for _, name := range own.children("compositions") {
		w := &work{checker: c, name: name}
		unknown, _ := w.undeclared()
		c.complain(unknown...)
	}
	for _, key := range sortedKeys(own.places) {
		p := strings.Split(key, pathSep)
		if len(p) < 3 || !slices.Contains([]string{"compositions", "pools", "repositories"}, p[0]) {
			continue
		}
		for _, pl := range own.places[key] {
			lit, ok := pl.value.(*ast.BasicLit)
			if ok && c.x.misfit(lit, c.x.declared(p)) {
				c.complain(c.x.wrongValue(p, nil))
				break
			}
		}
	}
}

// definitionIn finds the definition of a plugin that a value is made of, by the
// imports of its file.
func (b *batch) definitionIn(files []*ast.File, e ast.Expr) *definition {
	alias, name, ok := strings.Cut(definitionText(e), ".")
	if !ok {
		return nil
	}
	for _, f := range files {
		spec := imports(f)[alias]
		if spec == nil || f.Filename != e.Pos().Filename() {
			continue
		}
		dir, ok := b.resolve(unquote(spec.Path.Value))
		if !ok || !isPluginDir(dir) {
			continue
		}
		m := b.manifestOf(dir)
		if m == nil {
			continue
		}
		for _, d := range m.defs {
			if d.name == name {
				return d
			}
		}
	}
	return nil
}
