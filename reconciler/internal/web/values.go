package web

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

func itoa(n int) string { return strconv.Itoa(n) }

// valueRow is one field of a JSON object: a parameter, a field, an output.
type valueRow struct {
	Name, Value string
	Long        bool
}

// mostValue is how much of a value is shown before it is folded.
const mostValue = 200

// valuesOf reads a JSON object into rows sorted by name. What is not an object
// is one row.
func valuesOf(raw json.RawMessage) []valueRow {
	var m map[string]json.RawMessage
	if len(raw) == 0 {
		return nil
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return []valueRow{{Name: "", Value: string(raw)}}
	}
	rows := make([]valueRow, 0, len(m))
	for name, v := range m {
		rows = append(rows, valueOf(name, v))
	}
	slices.SortFunc(rows, func(a, b valueRow) int { return strings.Compare(a.Name, b.Name) })
	return rows
}

// valueOf shows a string as it is and anything else as JSON.
func valueOf(name string, raw json.RawMessage) valueRow {
	text := string(raw)
	var s string
	if json.Unmarshal(raw, &s) == nil {
		text = s
	}
	return valueRow{Name: name, Value: text, Long: len(text) > mostValue || strings.Contains(text, "\n")}
}

func i64toa(n int64) string { return strconv.FormatInt(n, 10) }
