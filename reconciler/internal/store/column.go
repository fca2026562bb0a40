package store

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// orNull stores an empty word as NULL.
func orNull[T ~string](s T) any {
	if s == "" {
		return nil
	}
	return string(s)
}

// instant stores a time as nanoseconds since 1970, the zero time as NULL.
func instant(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixNano()
}

// intoTime reads what instant stores.
type intoTime struct{ t *time.Time }

func (i intoTime) Scan(v any) error {
	switch n := v.(type) {
	case nil:
		*i.t = time.Time{}
	case int64:
		*i.t = time.Unix(0, n).UTC()
	default:
		return fmt.Errorf("a time is stored as %T", v)
	}
	return nil
}

// rawJSON stores JSON from elsewhere as text, none as NULL. It is checked here and
// not by the table, because SQLite's limit on nesting is not that of encoding/json.
func rawJSON(raw json.RawMessage) (any, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	if !json.Valid(raw) {
		return nil, fmt.Errorf("%d bytes are not JSON", len(raw))
	}
	return string(raw), nil
}

// asJSON stores a value of ours as JSON text, and an empty list as NULL.
func asJSON[T any](list []T) (any, error) {
	if len(list) == 0 {
		return nil, nil
	}
	return marshal(list)
}

// orNone stores what v points at as JSON text, nil as NULL.
func orNone[T any](v *T) (any, error) {
	if v == nil {
		return nil, nil
	}
	return marshal(v)
}

// marshal writes "<" as it is, unlike json.Marshal: JSON inside v stays what it was.
func marshal(v any) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// intoJSON reads what asJSON stores.
type intoJSON struct{ dest any }

func (i intoJSON) Scan(v any) error {
	switch s := v.(type) {
	case nil:
		return nil
	case string:
		return json.Unmarshal([]byte(s), i.dest)
	}
	return fmt.Errorf("JSON is stored as %T", v)
}

// raw reads a nullable text column into a json.RawMessage.
func raw(m *json.RawMessage) *[]byte { return (*[]byte)(m) }
