package pipeline

import (
	"cmp"
	"encoding/json"
	"slices"
	"strconv"
)

// AppendKey appends a text that is equal for types that say the same, in whatever
// words: Text, Doc and the order of fields are no part of it.
func (t *Type) AppendKey(b []byte) []byte {
	b = appendString(append(b, 't'), string(t.Kind))
	b = appendRaws(b, 'e', t.Enum)
	b = appendRaws(b, 'n', t.Not)
	b = appendStrings(b, 'p', t.Patterns)
	b = appendStrings(b, 'q', t.NotPatterns)
	for _, s := range [...]string{t.Min, t.Max, t.Over, t.Under} {
		b = appendString(b, s)
	}
	b = strconv.AppendInt(b, int64(t.MinItems), 10)
	if t.Open {
		b = append(b, 'o')
	}
	if t.Elem != nil {
		b = t.Elem.AppendKey(append(b, 'l'))
	}
	if t.Rest != nil {
		b = t.Rest.AppendKey(append(b, 'r'))
	}
	for i := range t.OneOf {
		b = t.OneOf[i].AppendKey(append(b, '|'))
	}
	for _, f := range byName(t.Fields) {
		b = appendString(append(b, 'f'), f.Name)
		if f.Optional {
			b = append(b, '?')
		}
		if f.Default != nil {
			b = appendString(append(b, '='), string(f.Default))
		}
		b = f.Type.AppendKey(b)
	}
	return append(b, '.')
}

func byName(list []Field) []Field {
	order := func(a, b Field) int { return cmp.Compare(a.Name, b.Name) }
	if slices.IsSortedFunc(list, order) {
		return list
	}
	return slices.SortedFunc(slices.Values(list), order)
}

// appendString writes s with its length before it, so that no two lists of strings
// are written alike.
func appendString(b []byte, s string) []byte {
	b = strconv.AppendInt(b, int64(len(s)), 10)
	return append(append(b, ':'), s...)
}

func appendStrings(b []byte, mark byte, list []string) []byte {
	for _, s := range list {
		b = appendString(append(b, mark), s)
	}
	return b
}

func appendRaws(b []byte, mark byte, list []json.RawMessage) []byte {
	for _, s := range list {
		b = appendString(append(b, mark), string(s))
	}
	return b
}
