package plan

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Merged is what is in force once a change is merged: what the change declares
// otherwise than the commit that it began with, and of all else what is in force
// now. base is in force, fork is what the change began with, head is the change. When
// base is fork it is head itself. Whole declarations are taken from one side or the
// other; Git merges lines, so a declaration that both sides changed may come out
// otherwise.
func Merged(base, fork, head *pipeline.Config) *pipeline.Config {
	if base.Commit == fork.Commit {
		return head
	}
	out := *head
	out.Compositions = merge(base.Compositions, fork.Compositions, head.Compositions, func(c *pipeline.Composition) string { return string(c.Name) })
	out.Pools = merge(base.Pools, fork.Pools, head.Pools, func(p *pipeline.Pool) string { return string(p.Name) })
	out.Plugins = merge(base.Plugins, fork.Plugins, head.Plugins, func(p *pipeline.Plugin) string { return string(p.Name) })
	out.Secrets = merge(base.Secrets, fork.Secrets, head.Secrets, func(s *pipeline.Secret) string { return string(s.Name) })
	out.Repositories = merge(base.Repositories, fork.Repositories, head.Repositories, func(r *pipeline.Repository) string { return r.Name })
	if same(&fork.Policy, &head.Policy) {
		out.Policy = base.Policy
	}
	if same(&fork.Owners, &head.Owners) {
		out.Owners = base.Owners
	}
	return &out
}

// merge takes each thing by its name from the side that changed it; sorted by name.
func merge[T any](base, fork, head []T, name func(*T) string) []T {
	find := func(list []T, n string) *T {
		for i := range list {
			if name(&list[i]) == n {
				return &list[i]
			}
		}
		return nil
	}
	var out []T
	for i := range head {
		n := name(&head[i])
		was, now := find(fork, n), find(base, n)
		switch {
		case was == nil || !same(was, &head[i]):
			out = append(out, head[i]) // the change's own
		case now != nil:
			out = append(out, *now)
		}
	}
	for i := range base {
		n := name(&base[i])
		if find(head, n) == nil && find(fork, n) == nil {
			out = append(out, base[i]) // came since
		}
	}
	slices.SortFunc(out, func(a, b T) int { return strings.Compare(name(&a), name(&b)) })
	return out
}

// same compares what two declarations mean; their places are no part of that.
func same[T any](a, b *T) bool {
	x, y := essence(a), essence(b)
	return x != nil && bytes.Equal(x, y)
}

// essence is the JSON of a declaration without positions; nil when it has none.
func essence(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	tree, err := pipeline.DecodeJSON(raw)
	if err != nil {
		return nil
	}
	out, err := json.Marshal(withoutPlaces(tree))
	if err != nil {
		return nil
	}
	return out
}

func withoutPlaces(v any) any {
	switch t := v.(type) {
	case map[string]any:
		for k, e := range t {
			if k == "pos" {
				delete(t, k)
			} else {
				t[k] = withoutPlaces(e)
			}
		}
	case []any:
		for i := range t {
			t[i] = withoutPlaces(t[i])
		}
	}
	return v
}
