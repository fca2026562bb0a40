package config

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"cuelang.org/go/cue"
	"cuelang.org/go/cue/ast"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// maxEach bounds how many tasks share a list.
const maxEach = 100

// readWhen reads the condition of a task.
func (w *work) readWhen(t *task) {
	v := get(t.v, "when")
	if !v.Exists() {
		return
	}
	e := w.expr(v, "tasks", t.name, "when")
	if !e.Deferred && string(e.Value) == "true" {
		return
	}
	t.spec.If = &e
	for _, p := range w.all.at(w.path("tasks", t.name, "when")...) {
		t.conds = append(t.conds, w.conjuncts(p.value)...)
	}
}

// conjuncts takes a condition apart at its &&, each part with what it refers to,
// so that equal texts mean equal conditions.
func (w *work) conjuncts(e ast.Expr) []string {
	switch x := e.(type) {
	case *ast.ParenExpr:
		return w.conjuncts(x.X)
	case *ast.BinaryExpr:
		if x.Op == token.LAND {
			return append(w.conjuncts(x.X), w.conjuncts(x.Y)...)
		}
	case nil:
		return nil
	}
	r := &reads{work: w, seen: map[ast.Node]bool{}, found: map[outputRead]bool{}}
	r.walk(e)
	return []string{strings.Join(append([]string{exprText(e)}, r.texts...), pathSep)}
}

// readEach reads the list that a task fans out over.
func (w *work) readEach(t *task) {
	v := get(t.v, "each")
	if !v.Exists() {
		return
	}
	t.fansOut = true
	at := []string{"tasks", t.name, "each"}
	if !w.known(v, []string{"max"}, at...) {
		t.broken = true
		return
	}
	items := get(v, "items")
	each := &pipeline.Each{Of: t.spec.Name, Max: number(get(v, "max"), 0), Items: w.expr(items, append(at, "items")...)}
	pos, _ := w.all.label(w.path(at...)...)
	switch n, err := items.Len().Int64(); {
	case each.Items.Deferred && each.Max == 0:
		d := diag(codeRequired, pos, "task %q: each needs max, because its list is known only when the run exists", t.name)
		d.Note = fmt.Sprintf("the tasks of a run are planned with the commit: %s-1 to %s-MAX, and those beyond the list are skipped", t.name, t.name)
		d.Help = "add max: 10, for example; at most 100"
		w.complain(d)
		return
	case each.Items.Deferred:
	case err != nil:
		return // it was reported
	case each.Max > 0 && int(n) > each.Max, n > maxEach:
		w.complain(diag(codeValue, pos, "task %q: the list has %d elements, and there may be %d", t.name, n, cmpMax(each.Max)))
		return
	default:
		each.Max = int(n)
	}
	t.each = each
	if list, exact := w.shape(items, append(at, "items")...); exact {
		t.item = elementOf(list)
	}
	w.checkItems(t, items)
	for i := 1; i <= each.Max; i++ {
		name := instanceName(t.name, i)
		if w.task(name) != nil || !pipeline.ValidName(name) {
			d := diag(codeName, pos, "task %q: one of its tasks would be called %q, which is a task of its own", t.name, name)
			if w.task(name) == nil {
				d = diag(codeName, pos, "task %q: one of its tasks would be called %q, which is too long", t.name, name)
			}
			w.complain(withHelp(d, "rename one of them"))
			return
		}
	}
}

// elementOf is the type of the elements of a list, nil when nothing is known of it.
func elementOf(list pipeline.Type) *pipeline.Type {
	if len(list.Enum) != 1 {
		return list.Elem
	}
	var items []json.RawMessage
	if err := json.Unmarshal(list.Enum[0], &items); err != nil || len(items) == 0 {
		return nil
	}
	var alts []pipeline.Type
	for _, raw := range items {
		v, err := pipeline.DecodeJSON(raw)
		if err != nil {
			return nil
		}
		alts = append(alts, pipeline.Type{Kind: kindOfJSON(v), Enum: []json.RawMessage{raw}})
	}
	t := oneOf(alts)
	return &t
}

func kindOfJSON(v any) pipeline.Kind {
	switch v.(type) {
	case string:
		return pipeline.KindString
	case json.Number:
		return pipeline.KindNumber
	case bool:
		return pipeline.KindBool
	case nil:
		return pipeline.KindNull
	case []any:
		return pipeline.KindList
	}
	return pipeline.KindStruct
}

func cmpMax(most int) int {
	if most == 0 {
		return maxEach
	}
	return most
}

func instanceName(name string, i int) string { return name + "-" + itoa(i) }

// checkItems tries what the elements of the list can be in the task: alone, an
// element could be anything.
func (w *work) checkItems(t *task, items cue.Value) {
	if elem := items.LookupPath(cue.MakePath(cue.AnyIndex)); elem.Exists() {
		w.checkElement(t, elem)
		return
	}
	iter, err := items.List()
	if err != nil {
		return
	}
	const most = 20 // elements of one list are much alike
	for i := 0; i < most && iter.Next(); i++ {
		if !w.checkElement(t, iter.Value()) {
			return
		}
	}
}

func (w *work) checkElement(t *task, elem cue.Value) bool {
	path := []cue.Selector{cue.Str("compositions"), cue.Str(w.name), cue.Str("tasks"), cue.Str(t.name)}
	root := w.root.FillPath(cue.MakePath(append(slices.Clone(path), cue.Str("each"), cue.Str("item"))...), elem)
	if err := root.LookupPath(cue.MakePath(path...)).Validate(); err != nil {
		if t.v.Validate() == nil {
			w.complain(w.x.errors(err)...)
		}
		return false
	}
	ok := true
	for i := range t.def.fields {
		f := &t.def.fields[i]
		for _, p := range w.all.at(w.path("tasks", t.name, "fields", f.Name)...) {
			if p.value == nil || !w.isItem(t, p.value) {
				continue
			}
			what := fmt.Sprintf("task %q: field %q takes each.item", t.name, f.Name)
			before := len(w.res.Diagnostics)
			w.checkEdgeType(what, position(p.value.Pos()), f, elem)
			ok = ok && len(w.res.Diagnostics) == before
		}
	}
	return ok
}

// isItem recognises each.item, however it is spelt.
func (w *work) isItem(t *task, e ast.Expr) bool {
	c := chainOf(e, 0)
	if full, _ := w.read(c); full != nil {
		c = full
	}
	n := len(c)
	switch {
	case n == 2:
		return c[0].name == "each" && c[1].name == "item" && w.all.scopes[c[0].scope] == keyOf(w.path("tasks", t.name))
	case n == 4:
		return c[0].name == "tasks" && c[1].name == t.name && c[2].name == "each" && c[3].name == "item"
	}
	return false
}

// instances are the tasks that a task stands for: itself, or one for each element.
func (t *task) instances() []pipeline.Task {
	if t.each == nil {
		return []pipeline.Task{t.spec}
	}
	out := make([]pipeline.Task, t.each.Max)
	for i := range out {
		out[i] = t.spec
		each := *t.each
		each.Index = i + 1
		out[i].Name, out[i].Each = pipeline.TaskName(instanceName(t.name, i+1)), &each
	}
	return out
}

// needs are the names of the tasks that t waits for.
func (w *work) needs(t *task) []pipeline.TaskName {
	var out []pipeline.TaskName
	for _, name := range sortedKeys(t.edges) {
		for _, p := range w.task(name).instances() {
			out = append(out, p.Name)
		}
	}
	slices.Sort(out)
	return out
}

// locate notes where the parts of a task are written.
func (w *work) locate(t *task) {
	add := func(name string, path ...string) {
		if pos, exact := w.all.value(w.path(path...)...); exact {
			if t.spec.Places == nil {
				t.spec.Places = map[string]pipeline.Position{}
			}
			t.spec.Places[name] = pos
		}
	}
	for _, name := range w.all.children(w.path("tasks", t.name)...) {
		if name == "fields" {
			for _, f := range w.all.children(w.path("tasks", t.name, "fields")...) {
				add("fields."+f, "tasks", t.name, "fields", f)
			}
			continue
		}
		add(name, "tasks", t.name, name)
	}
}

// open lists the fields that wait for the run, as their author wrote them.
func (w *work) open(t *task) {
	for _, name := range sortedKeys(t.deferred) {
		path := []string{"tasks", t.name, "fields", name}
		e := pipeline.Expr{Deferred: true, Text: w.writtenAt(path...)}
		e.Pos, _ = w.all.value(w.path(path...)...)
		for _, read := range w.readsAt(path...) {
			if n := pipeline.TaskName(read.task); !slices.Contains(e.Reads, n) {
				e.Reads = append(e.Reads, n)
			}
		}
		e.Seal = w.seal(path...)
		if t.spec.Open == nil {
			t.spec.Open = map[string]pipeline.Expr{}
		}
		t.spec.Open[name] = e
	}
}
