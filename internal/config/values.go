package config

import (
	"encoding/json"

	"cuelang.org/go/cue"
)

// decode reads a concrete value into what encoding/json would.
func decode(v cue.Value, into any) error {
	raw, err := v.MarshalJSON()
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

func get(v cue.Value, path ...string) cue.Value {
	sels := make([]cue.Selector, len(path))
	for i, p := range path {
		sels[i] = cue.Str(p)
	}
	return v.LookupPath(cue.MakePath(sels...))
}

// text returns a concrete string, or "".
func text(v cue.Value) string {
	s, err := v.String()
	if err != nil {
		return ""
	}
	return s
}

func flag(v cue.Value) bool {
	b, err := v.Bool()
	return err == nil && b
}

func number(v cue.Value, otherwise int) int {
	n, err := v.Int64()
	if err != nil {
		return otherwise
	}
	return int(n)
}
