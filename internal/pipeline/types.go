package pipeline

import (
	"encoding/json"
	"fmt"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Kind is the base of a Type.
type Kind string

const (
	KindAny    Kind = "any"
	KindString Kind = "string"
	KindInt    Kind = "int"
	KindNumber Kind = "number"
	KindBool   Kind = "bool"
	KindNull   Kind = "null"
	KindList   Kind = "list"
	KindStruct Kind = "struct"
	// KindPath is a path in the run's workspace: it does not travel to another agent.
	KindPath Kind = "path"
	// KindSecret is a reference to a declared secret, {"secret": NAME}.
	KindSecret Kind = "secret"
	// KindOneOf is a value of any of the types in OneOf.
	KindOneOf Kind = "one_of"
)

// Type is a constraint on a JSON value: what a manifest says of an output, a
// composition of a parameter, or a requirement of a fact. It is compiled from
// CUE once, so that nothing needs CUE while tasks run. The zero Type is invalid.
type Type struct {
	Kind Kind `json:"kind"`
	// Enum, if any, lists the only values allowed, as JSON.
	Enum []json.RawMessage `json:"enum,omitempty"`
	// Not lists values that are refused, as JSON.
	Not []json.RawMessage `json:"not,omitempty"`
	// Patterns are RE2 expressions that a string must match; NotPatterns must not.
	Patterns    []string `json:"patterns,omitempty"`
	NotPatterns []string `json:"not_patterns,omitempty"`
	// Min and Max bound a number as decimal text; Over and Under exclude the bound itself.
	Min   string `json:"min,omitempty"`
	Max   string `json:"max,omitempty"`
	Over  string `json:"over,omitempty"`
	Under string `json:"under,omitempty"`
	// Elem is the type of a list's elements; nil allows any. MinItems is its least length.
	Elem     *Type `json:"elem,omitempty"`
	MinItems int   `json:"min_items,omitempty"`
	// Fields are the known fields of a struct; Open allows others, of type Rest if set.
	Fields []Field `json:"fields,omitempty"`
	Open   bool    `json:"open,omitempty"`
	Rest   *Type   `json:"rest,omitempty"`
	OneOf  []Type  `json:"one_of,omitempty"`
	// Text is the constraint as its author wrote it, for messages.
	Text string `json:"text,omitempty"`
}

// Field is a named part of a struct type.
type Field struct {
	Name string `json:"name"`
	Type Type   `json:"type"`
	// Optional: the field may be absent.
	Optional bool `json:"optional,omitempty"`
	// Default is used when the field is absent; nil when there is none.
	Default json.RawMessage `json:"default,omitempty"`
	Doc     string          `json:"doc,omitempty"`
}

// Check returns everything about the JSON value v that the type does not allow,
// each with the path to it; nothing when v fits. v is what encoding/json decodes
// with UseNumber; float64 and int are taken as well.
func (t Type) Check(v any) []string { return t.check("", v, nil) }

// CheckJSON decodes raw and checks it. A text that is not JSON is one complaint.
func (t Type) CheckJSON(raw []byte) []string {
	v, err := DecodeJSON(raw)
	if err != nil {
		return []string{"is not JSON: " + err.Error()}
	}
	return t.Check(v)
}

// DecodeJSON decodes one JSON value, numbers kept as json.Number.
func DecodeJSON(raw []byte) (any, error) {
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, fmt.Errorf("more than one value")
	}
	return v, nil
}

// Fits reports whether v satisfies the type.
func (t Type) Fits(v any) bool { return len(t.check("", v, nil)) == 0 }

func (t Type) String() string {
	if t.Text != "" {
		return t.Text
	}
	if len(t.Enum) > 0 {
		parts := make([]string, len(t.Enum))
		for i, e := range t.Enum {
			parts[i] = string(e)
		}
		return strings.Join(parts, " | ")
	}
	if t.Kind == KindList && t.Elem != nil {
		return "[..." + t.Elem.String() + "]"
	}
	return string(t.Kind)
}

func (t Type) check(path string, v any, out []string) []string {
	say := func(format string, args ...any) []string {
		at := ""
		if path != "" {
			at = path + ": "
		}
		return append(out, at+fmt.Sprintf(format, args...))
	}
	if len(t.Enum) > 0 && !inJSON(t.Enum, v) {
		return say("%s is not one of %s", brief(v), t.enumText())
	}
	if inJSON(t.Not, v) {
		return say("%s is not allowed here (%s)", brief(v), t)
	}
	switch t.Kind {
	case KindAny:
		return out
	case KindOneOf:
		for _, alt := range t.OneOf {
			if alt.Fits(v) {
				return out
			}
		}
		return say("%s does not fit %s", brief(v), t)
	case KindString, KindPath:
		s, ok := v.(string)
		if !ok {
			return say("%s is not a %s", brief(v), t.Kind)
		}
		return t.checkString(s, say, out)
	case KindInt, KindNumber:
		n, ok := numberOf(v)
		if !ok || (t.Kind == KindInt && !n.IsInt()) {
			return say("%s is not of type %s", brief(v), t.Kind)
		}
		return t.checkNumber(n, v, say, out)
	case KindBool:
		if _, ok := v.(bool); !ok {
			return say("%s is not a bool", brief(v))
		}
	case KindNull:
		if v != nil {
			return say("%s is not null", brief(v))
		}
	case KindSecret:
		m, ok := v.(map[string]any)
		name, isText := m["secret"].(string)
		if !ok || len(m) != 1 || !isText || !ValidName(name) {
			return say("%s is not a reference to a secret", brief(v))
		}
	case KindList:
		return t.checkList(path, v, out)
	case KindStruct:
		return t.checkStruct(path, v, out)
	default:
		return say("type %q is unknown", t.Kind)
	}
	return out
}

func (t Type) checkString(s string, say func(string, ...any) []string, out []string) []string {
	for _, p := range t.Patterns {
		if re, err := compiled(p); err != nil || !re.MatchString(s) {
			return say("%s does not match %q", brief(s), p)
		}
	}
	for _, p := range t.NotPatterns {
		if re, err := compiled(p); err != nil || re.MatchString(s) {
			return say("%s must not match %q", brief(s), p)
		}
	}
	return out
}

func (t Type) checkNumber(n *big.Rat, v any, say func(string, ...any) []string, out []string) []string {
	bounds := []struct {
		text, op string
		ok       func(cmp int) bool
	}{
		{t.Min, ">=", func(c int) bool { return c >= 0 }},
		{t.Over, ">", func(c int) bool { return c > 0 }},
		{t.Max, "<=", func(c int) bool { return c <= 0 }},
		{t.Under, "<", func(c int) bool { return c < 0 }},
	}
	for _, b := range bounds {
		if b.text == "" {
			continue
		}
		if limit, ok := ratOf(b.text); !ok || !b.ok(n.Cmp(limit)) {
			return say("%s is not %s%s", brief(v), b.op, b.text)
		}
	}
	return out
}

func (t Type) checkList(path string, v any, out []string) []string {
	list, ok := v.([]any)
	if !ok {
		return append(out, at(path)+brief(v)+" is not a list")
	}
	if len(list) < t.MinItems {
		out = append(out, fmt.Sprintf("%sneeds at least %d elements, has %d", at(path), t.MinItems, len(list)))
	}
	if t.Elem == nil {
		return out
	}
	for i, e := range list {
		out = t.Elem.check(path+"["+strconv.Itoa(i)+"]", e, out)
	}
	return out
}

func (t Type) checkStruct(path string, v any, out []string) []string {
	m, ok := v.(map[string]any)
	if !ok {
		return append(out, at(path)+brief(v)+" is not a struct")
	}
	known := make(map[string]bool, len(t.Fields))
	for _, f := range t.Fields {
		known[f.Name] = true
		e, present := m[f.Name]
		if !present {
			if !f.Optional && f.Default == nil {
				out = append(out, join(path, f.Name)+": is missing")
			}
			continue
		}
		out = f.Type.check(join(path, f.Name), e, out)
	}
	extra := make([]string, 0, len(m))
	for name := range m {
		if !known[name] {
			extra = append(extra, name)
		}
	}
	slices.Sort(extra)
	for _, name := range extra {
		switch {
		case !t.Open:
			out = append(out, join(path, brief(name))+": is not declared")
		case t.Rest != nil:
			out = t.Rest.check(join(path, name), m[name], out)
		}
	}
	return out
}

func (t Type) enumText() string {
	parts := make([]string, len(t.Enum))
	for i, e := range t.Enum {
		parts[i] = string(e)
	}
	return strings.Join(parts, ", ")
}

func at(path string) string {
	if path == "" {
		return ""
	}
	return path + ": "
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// brief shows a value in a message without letting a large one flood it.
func brief(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprintf("%T", v)
	}
	const most = 60
	if len(b) > most {
		return strings.ToValidUTF8(string(b[:most]), "") + "…"
	}
	return string(b)
}

func inJSON(list []json.RawMessage, v any) bool {
	for _, raw := range list {
		if w, err := DecodeJSON(raw); err == nil && equalJSON(w, v) {
			return true
		}
	}
	return false
}

func equalJSON(a, b any) bool {
	if x, ok := numberOf(a); ok {
		y, ok := numberOf(b)
		return ok && x.Cmp(y) == 0
	}
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && string(x) == string(y)
}

func numberOf(v any) (*big.Rat, bool) {
	switch n := v.(type) {
	case json.Number:
		return ratOf(n.String())
	case float64:
		return new(big.Rat).SetFloat64(n), true
	case int:
		return new(big.Rat).SetInt64(int64(n)), true
	case int64:
		return new(big.Rat).SetInt64(n), true
	case uint64:
		return new(big.Rat).SetInt(new(big.Int).SetUint64(n)), true
	}
	return nil, false
}

// ratOf reads a decimal number exactly. Exponents are bounded, because "1e999999999"
// is a short text and a very long number.
func ratOf(s string) (*big.Rat, bool) {
	const mostExponent = 400
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return new(big.Rat).SetInt64(n), true
	}
	if len(s) > mostExponent {
		return nil, false
	}
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		e, err := strconv.Atoi(s[i+1:])
		if err != nil || e > mostExponent || e < -mostExponent {
			return nil, false
		}
	}
	return new(big.Rat).SetString(s)
}

var patterns sync.Map // string -> *regexp.Regexp

// compiled caches expressions: requirements are matched against every agent. The
// cache is bounded by the number of distinct expressions in live configurations.
func compiled(p string) (*regexp.Regexp, error) {
	if re, ok := patterns.Load(p); ok {
		return re.(*regexp.Regexp), nil
	}
	re, err := regexp.Compile(p)
	if err == nil {
		patterns.Store(p, re)
	}
	return re, err
}
