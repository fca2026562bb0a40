package ui

import (
	"fmt"
	"reflect"
	"time"
)

// Templates are handed named strings and numbers of many types; these read the
// plain value out of them.

func asText(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.String {
		return r.String()
	}
	return fmt.Sprint(v)
}

func asInt(v any) int {
	r := reflect.ValueOf(v)
	switch {
	case r.CanInt():
		return int(r.Int())
	case r.CanUint():
		return int(r.Uint())
	}
	return 0
}

func asDuration(v any) (time.Duration, bool) {
	r := reflect.ValueOf(v)
	if !r.CanInt() {
		return 0, false
	}
	return time.Duration(r.Int()), true
}

// dict makes a map of alternating keys and values, to give a shared template
// more than one value.
func dict(pairs ...any) (map[string]any, error) {
	if len(pairs)%2 != 0 {
		return nil, fmt.Errorf("dict wants pairs, got %d values", len(pairs))
	}
	m := make(map[string]any, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		key, ok := pairs[i].(string)
		if !ok {
			return nil, fmt.Errorf("dict wants text as a key, got %T", pairs[i])
		}
		m[key] = pairs[i+1]
	}
	return m, nil
}
