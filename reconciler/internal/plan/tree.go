package plan

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// node is a value without what means nothing: where it is written, in which order
// its named parts stand, and how its author laid it out.
type node struct {
	// pos is zero where the value is written at the place of what holds it.
	pos pipeline.Position
	// parts of a struct, a map or a list, sorted by name; a leaf has none.
	parts []part
	// code is the canonical text of a leaf, text what people are shown of it.
	code, text string
	// whole: an element of a list, which is added or removed in one piece.
	whole bool
}

type part struct {
	name string
	*node
}

// silent are the fields that mean nothing: they say where something is, or repeat
// what is said elsewhere.
var silent = map[string]bool{
	"Composition.name": true, "Composition.unit": true, "Composition.digest": true,
	"Task.name": true, "Task.places": true, "Task.tree": true, "Task.programs": true, "Task.deferred": true,
	"Plugin.name": true, "Plugin.dir": true, "PluginTask.name": true, "Pool.name": true, "Secret.name": true,
	"Repository.name": true,
	"Group.name":      true, "ChangeRule.name": true, "SecretRule.secret": true, "PoolRule.pool": true, "RequestRule.name": true,
	"Call.digest": true, "Hook.digest": true, // what is called is sealed itself
	"Field.name": true, "Field.doc": true, "Binding.field": true, "Clause.path": true,
}

// spelled are the fields that authors write under another name than the record.
var spelled = map[string]string{
	"Task.requirement": "agent", "Task.lost_after": "lostAfter", "Task.start_timeout": "startTimeout", "Task.when": "run", "Task.if": "when",
	"Task.on_failure": "onFailureRun", "Task.continue": "onFailure", "Task.bindings": "context", "Task.open": "fields",
	"Composition.on_failure": "onFailure", "Composition.max_running": "limits.running",
	"Composition.max_queued": "limits.queued", "Composition.returns": "outputs",
	"Trigger.pull_request": "pullRequest", "WaitFor.any_commit": "anyCommit", "WaitFor.any_result": "anyResult",
}

// unordered are the lists whose order means nothing.
var unordered = map[string]bool{
	"Task.needs": true, "Task.secrets": true, "Task.pins": true, "Group.members": true,
	"Gate.approvers": true, "ChangeRule.approvers": true, "ManualTrigger.approvers": true,
	"Retries.on": true, "ChangeRule.compositions": true, "SecretRule.compositions": true, "PoolRule.compositions": true, "PoolRule.branches": true,
	"RequestRule.verbs": true, "RequestRule.compositions": true, "RequestRule.by": true,
}

var (
	positionType = reflect.TypeFor[pipeline.Position]()
	rawType      = reflect.TypeFor[json.RawMessage]()
)

// forester makes nodes, and remembers of each type what to make of its fields, and
// the words for each type of a value: thousands of tasks declare the same ones.
type forester struct {
	types map[reflect.Type][]meaning
	words map[string]string // by the key of a type that has no text
}

func newForester() *forester {
	return &forester{types: map[reflect.Type][]meaning{}, words: map[string]string{}}
}

// meaning is what to make of a field of a struct.
type meaning struct {
	index     int
	name      string
	position  bool // it says where the struct is written
	optional  bool // it is left out when it is empty
	unordered bool
	list      bool
}

func (f *forester) meanings(t reflect.Type) []meaning {
	if known, ok := f.types[t]; ok {
		return known
	}
	var out []meaning
	for i := range t.NumField() {
		field := t.Field(i)
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		id := t.Name() + "." + name
		if name == "-" || silent[id] {
			continue
		}
		out = append(out, meaning{
			index: i, name: cmp.Or(spelled[id], name), position: field.Type == positionType, optional: options != "",
			unordered: unordered[id], list: field.Type.Kind() == reflect.Slice && field.Type != rawType,
		})
	}
	f.types[t] = out
	return out
}

// treeOf returns the node of what a pointer leads to, nil for what is absent.
func (f *forester) treeOf(pointer any) *node { return f.tree(reflect.ValueOf(pointer).Elem()) }

func (f *forester) tree(v reflect.Value) *node {
	// Through its address a value is looked at without being copied.
	switch x := v.Addr().Interface().(type) {
	case *json.RawMessage:
		return jsonTree(*x)
	case *pipeline.Type:
		return f.typeTree(x)
	case *pipeline.Expr:
		return exprTree(x)
	case encoding.TextMarshaler:
		text, err := x.MarshalText()
		if err != nil {
			return leaf(err.Error(), err.Error())
		}
		return leaf(marshal(string(text)), string(text))
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return f.tree(v.Elem())
	case reflect.Struct:
		return f.structTree(v)
	case reflect.Slice:
		return f.listTree(v, false)
	case reflect.Map:
		n := &node{}
		for _, k := range v.MapKeys() {
			e := reflect.New(v.Type().Elem()).Elem() // what is in a map has no address
			e.Set(v.MapIndex(k))
			n.add(k.String(), f.tree(e))
		}
		return n.sorted()
	}
	code := marshal(v.Interface())
	return leaf(code, code)
}

// typeTree shows a type in its author's words; one that has none is its kind, or all
// that it says.
func (f *forester) typeTree(t *pipeline.Type) *node {
	code := string(t.AppendKey(make([]byte, 0, 128)))
	words, known := f.words[code]
	if !known {
		kind := pipeline.Type{Kind: t.Kind}
		if code == string(kind.AppendKey(nil)) {
			words = string(t.Kind)
		} else {
			plain := *t
			plain.Text = ""
			words = marshal(&plain)
		}
		f.words[code] = words
	}
	if t.Text != "" && words != string(t.Kind) {
		words = t.Text
	}
	return leaf(code, words)
}

func leaf(code, text string) *node { return &node{code: code, text: text} }

func marshal(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Sprintf("%#v", v) // plain data always marshals
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func (n *node) add(name string, child *node) {
	if child != nil {
		n.parts = append(n.parts, part{name, child})
	}
}

// sorted puts the parts in order, and joins those of one name: fields that are known
// and fields that wait are one struct to their author.
func (n *node) sorted() *node {
	slices.SortStableFunc(n.parts, func(a, b part) int { return cmp.Compare(a.name, b.name) })
	out := n.parts[:0]
	for _, p := range n.parts {
		if last := len(out) - 1; last >= 0 && out[last].name == p.name {
			joined := &node{pos: out[last].pos, parts: slices.Concat(out[last].parts, p.parts)}
			if len(joined.parts) == 0 {
				joined = leaf(out[last].code+p.code, strings.Trim(out[last].text+" "+p.text, " "))
			}
			out[last].node = joined.sorted()
			continue
		}
		out = append(out, p)
	}
	n.parts = out
	if len(n.parts) == 0 && n.code == "" {
		n.code, n.text = "{}", "{}"
	}
	return n
}

func (f *forester) structTree(v reflect.Value) *node {
	means := f.meanings(v.Type())
	n := &node{parts: make([]part, 0, 8)}
	for _, m := range means {
		field := v.Field(m.index)
		switch {
		case m.position:
			if at, ok := field.Addr().Interface().(*pipeline.Position); ok {
				n.pos = *at
			}
		case m.optional && absent(field):
		case m.list:
			n.add(m.name, f.listTree(field, m.unordered))
		default:
			n.add(m.name, f.tree(field))
		}
	}
	n.sorted()
	switch x := v.Addr().Interface().(type) {
	case *pipeline.Task:
		n.text = x.Uses
		n.locate("", x.Places)
	case *pipeline.Field:
		n.text = f.typeTree(&x.Type).text
		if x.Optional {
			n.text += ", optional"
		}
		if x.Default != nil {
			n.text += ", default " + string(x.Default)
		}
	}
	return n
}

func absent(v reflect.Value) bool {
	return v.IsZero() || (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
}

// locate gives the parts of a task the places where they are written.
func (n *node) locate(prefix string, places map[string]pipeline.Position) {
	for _, p := range n.parts {
		if at, ok := places[prefix+p.name]; ok {
			p.pos = at
		}
		if len(places) > 0 {
			p.locate(prefix+p.name+".", places)
		}
	}
}

// listTree makes a list of named things a struct of them, because authors write them
// so; one of other things has numbers for names; and one of plain values is a leaf.
func (f *forester) listTree(v reflect.Value, anyOrder bool) *node {
	if v.Len() == 0 {
		return leaf("[]", "[]")
	}
	if k := v.Type().Elem().Kind(); k != reflect.Struct && k != reflect.Slice {
		return plainList(v, anyOrder)
	}
	n := &node{}
	for i := range v.Len() {
		e := v.Index(i)
		name, named := keyOf(e.Addr().Interface())
		if !named {
			name = fmt.Sprintf("%04d", i) // sorts as it stands
		}
		child := f.tree(e)
		if child == nil {
			continue
		}
		child.whole = e.Kind() == reflect.Struct
		n.add(name, child)
	}
	return n.sorted()
}

func plainList(v reflect.Value, anyOrder bool) *node {
	list := make([]string, v.Len())
	for i := range list {
		list[i] = marshal(v.Index(i).Interface())
	}
	if anyOrder {
		slices.Sort(list)
	}
	text := "[" + strings.Join(list, ", ") + "]"
	return leaf(text, text)
}

// keyOf is the name by which a thing in a list is known.
func keyOf(v any) (string, bool) {
	switch v := v.(type) {
	case *pipeline.Composition:
		return string(v.Name), true
	case *pipeline.Task:
		return string(v.Name), true
	case *pipeline.Field:
		return v.Name, true
	case *pipeline.Clause:
		return strings.Join(v.Path, "."), true
	case *pipeline.Binding:
		return v.Field, true
	case *pipeline.PluginTask:
		return v.Name, true
	case *pipeline.Group:
		return v.Name, true
	case *pipeline.ChangeRule:
		return v.Name, true
	case *pipeline.SecretRule:
		return string(v.Secret), true
	case *pipeline.PoolRule:
		return string(v.Pool), true
	}
	return "", false
}

func exprTree(x *pipeline.Expr) *node {
	switch {
	case x.Deferred:
		n := leaf("="+cmp.Or(string(x.Seal), strings.Join(strings.Fields(x.Text), " ")), x.Text)
		n.pos = x.Pos
		return n
	case len(x.Value) > 0:
		n := jsonTree(x.Value)
		n.pos = x.Pos
		return n
	}
	return nil
}

// jsonTree reads a JSON value; numbers that are equal are written the same.
func jsonTree(raw json.RawMessage) *node {
	if len(raw) == 0 || string(raw) == "null" { // which is how nil is written
		return nil
	}
	if isPlainString(raw) {
		return leaf(string(raw), string(raw))
	}
	v, err := pipeline.DecodeJSON(raw)
	if err != nil {
		return leaf(string(raw), string(raw))
	}
	return valueTree(v)
}

// isPlainString reports whether raw is a string that can be written in one way only.
func isPlainString(raw json.RawMessage) bool {
	last := len(raw) - 1
	if last < 1 || raw[0] != '"' || raw[last] != '"' {
		return false
	}
	return !bytes.ContainsFunc(raw[1:last], func(r rune) bool {
		return r < ' ' || r > '~' || r == '"' || r == '\\'
	})
}

func valueTree(v any) *node {
	m, ok := v.(map[string]any)
	if !ok {
		code := marshal(plain(v))
		return leaf(code, code)
	}
	n := &node{}
	for name, e := range m {
		n.add(name, valueTree(e))
	}
	return n.sorted()
}

// plain writes whole numbers as such, because 1, 1.0 and 1e0 are one value.
func plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		if f, err := v.Float64(); err == nil && f == float64(int64(f)) && max(f, -f) < 1<<53 {
			return json.Number(strconv.FormatInt(int64(f), 10))
		}
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = plain(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = plain(e)
		}
		return out
	}
	return v
}

// encode appends the canonical text of the node: equal texts are equal meanings.
func (n *node) encode(b []byte) []byte {
	if n == nil {
		return append(b, '-')
	}
	if len(n.parts) == 0 {
		return appendText(append(b, 'l'), n.code)
	}
	b = append(b, '{')
	for _, p := range n.parts {
		b = p.node.encode(appendText(b, p.name))
	}
	return append(b, '}')
}

// appendText writes s with its length before it, so that no two lists of texts are
// written alike.
func appendText(b []byte, s string) []byte {
	b = strconv.AppendInt(b, int64(len(s)), 10)
	return append(append(b, ':'), s...)
}
