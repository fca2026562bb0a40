package facts

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of what an agent reports. All facts together must fit in one message
// beside what else it says, and each is shown on a page and matched for every task.
const (
	maxFacts = 512
	maxValue = 1 << 10
	maxName  = 128
	maxDepth = 8
	maxTotal = 64 << 10
	// maxComplaints bounds the log lines of one collection.
	maxComplaints = 10
)

// pruner copies facts into what JSON can say and the limits allow.
type pruner struct {
	left, bytes int
	dropped     []slog.Attr // path and reason of the first ones
	count       int
}

// prune encodes the facts, without those that exceed the limits. Facter's come
// last, so that they cannot push out any other.
func prune(ctx context.Context, all map[string]any, log *slog.Logger) json.RawMessage {
	p := &pruner{left: maxFacts, bytes: maxTotal - len("{}")}
	names := slices.Sorted(maps.Keys(all))
	if i := slices.Index(names, "facter"); i >= 0 {
		names = append(slices.Delete(names, i, i+1), "facter")
	}
	out := map[string]any{}
	for _, name := range names {
		if name == "trusted" {
			p.drop(name, "is for the control plane to say")
			continue
		}
		p.member(out, "", name, all[name], 1)
	}
	for _, a := range p.dropped {
		log.WarnContext(ctx, "fact dropped", slog.String("fact", a.Key), slog.String("reason", a.Value.String()))
	}
	if more := p.count - len(p.dropped); more > 0 {
		log.WarnContext(ctx, "more facts dropped", slog.Int("count", more))
	}
	raw, err := json.Marshal(out)
	if err != nil {
		log.ErrorContext(ctx, "facts not encodable", slog.Any("err", err))
		return json.RawMessage("{}")
	}
	return raw
}

func (p *pruner) drop(path, reason string) {
	if p.count++; len(p.dropped) < maxComplaints {
		p.dropped = append(p.dropped, slog.String(path, reason))
	}
}

// member copies one member of a map, if it may be.
func (p *pruner) member(to map[string]any, path, name string, v any, depth int) {
	if path != "" {
		path += "."
	}
	if len(name) > maxName || name == "" || !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' }) {
		p.drop(path+fmt.Sprintf("%.40q", name), "has a name that is empty, too long or not text")
		return
	}
	path += name
	if cost := jsonLen(name) + len(":,"); p.spend(path, cost) {
		if v, ok := p.value(path, v, depth); ok {
			to[name] = v
		} else {
			p.bytes += cost
		}
	}
}

// spend takes n bytes from what is left of them.
func (p *pruner) spend(path string, n int) bool {
	if n > p.bytes {
		p.drop(path, fmt.Sprintf("all facts together exceed %d KiB", maxTotal>>10))
		return false
	}
	p.bytes -= n
	return true
}

func (p *pruner) value(path string, v any, depth int) (any, bool) {
	if depth > maxDepth {
		p.drop(path, fmt.Sprintf("is nested deeper than %d", maxDepth))
		return nil, false
	}
	switch v := v.(type) {
	case map[string]any:
		if !p.spend(path, len("{}")) {
			return nil, false
		}
		out := map[string]any{}
		for _, name := range slices.Sorted(maps.Keys(v)) {
			p.member(out, path, name, v[name], depth+1)
		}
		return out, true
	case []any:
		if !p.spend(path, len("[]")) {
			return nil, false
		}
		out := []any{}
		for i, e := range v {
			if e, ok := p.value(fmt.Sprintf("%s[%d]", path, i), e, depth+1); ok {
				out = append(out, e)
				p.bytes-- // a comma
			}
		}
		return out, true
	}
	return p.leaf(path, v)
}

func (p *pruner) leaf(path string, v any) (any, bool) {
	switch t := v.(type) {
	case nil:
		return nil, false // an absent fact, which is not worth a word
	case string:
		if len(t) > maxValue || !utf8.ValidString(t) {
			p.drop(path, fmt.Sprintf("is longer than %d bytes, or not text", maxValue))
			return nil, false
		}
	case time.Time:
		v = t.Format(time.RFC3339)
	case float64:
		if math.IsNaN(t) || math.IsInf(t, 0) {
			p.drop(path, "is not a number that JSON has")
			return nil, false
		}
	case json.Number:
		if len(t) > maxValue {
			p.drop(path, "has too many digits")
			return nil, false
		}
	case bool, int, int64, uint64:
	default:
		p.drop(path, fmt.Sprintf("has type %T", v))
		return nil, false
	}
	if p.left == 0 {
		p.drop(path, fmt.Sprintf("there are more than %d facts", maxFacts))
		return nil, false
	}
	if !p.spend(path, jsonLen(v)) {
		return nil, false
	}
	p.left--
	return v, true
}

// jsonLen is how many bytes v takes; a value that cannot be encoded takes all.
func jsonLen(v any) int {
	b, err := json.Marshal(v)
	if err != nil {
		return maxTotal + 1
	}
	return len(b)
}
