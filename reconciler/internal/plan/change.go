package plan

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// thing is what a configuration declares under one kind and name.
type thing struct {
	kind, name string
	digest     pipeline.Digest // "" when only the value tells
	value      any             // a pointer
	pos        pipeline.Position
	tasks      int
}

// things lists all that a configuration declares, by kind and name.
func things(cfg *pipeline.Config) map[[2]string]thing {
	out := map[[2]string]thing{}
	if cfg == nil {
		return out
	}
	add := func(t thing) { out[[2]string{t.kind, t.name}] = t }
	for i := range cfg.Compositions {
		c := &cfg.Compositions[i]
		add(thing{KindComposition, string(c.Name), c.Digest, c, c.Pos, len(c.Tasks)})
	}
	for i := range cfg.Plugins {
		p := &cfg.Plugins[i]
		add(thing{kind: KindPlugin, name: string(p.Name), value: p, pos: p.Pos})
	}
	for i := range cfg.Pools {
		p := &cfg.Pools[i]
		add(thing{kind: KindPool, name: string(p.Name), value: p, pos: p.Pos})
	}
	for i := range cfg.Secrets {
		s := &cfg.Secrets[i]
		add(thing{kind: KindSecret, name: string(s.Name), value: s, pos: s.Pos})
	}
	for i := range cfg.Repositories {
		r := &cfg.Repositories[i]
		add(thing{kind: KindRepository, name: r.Name, value: r, pos: r.Pos})
	}
	add(thing{kind: KindPolicy, value: &cfg.Policy})
	return out
}

// kinds in the order in which people are shown them.
var kinds = []string{KindComposition, KindPool, KindPlugin, KindSecret, KindRepository, KindPolicy}

// compare lists what head declares otherwise than base, and writes the meaning of
// each difference into the seal.
func (s *seal) compare(base, head *pipeline.Config) (changes []Change, unchanged int) {
	if base == head {
		return nil, len(head.Compositions)
	}
	before, after := things(base), things(head)
	all := maps.Clone(before)
	maps.Copy(all, after)
	keys := slices.SortedFunc(maps.Keys(all), func(a, b [2]string) int {
		return cmp.Or(cmp.Compare(slices.Index(kinds, a[0]), slices.Index(kinds, b[0])), cmp.Compare(a[1], b[1]))
	})
	for _, k := range keys {
		was, had := before[k]
		is, has := after[k]
		c := Change{Kind: k[0], Name: k[1], Pos: is.pos}
		var old, now *node
		switch {
		case had && has && was.digest != "" && was.digest == is.digest:
			unchanged++
			continue
		case !had:
			c.Op, c.Tasks, now = Added, is.tasks, s.treeOf(is.value)
		case !has:
			c.Op, c.Tasks, c.Pos, old = Removed, was.tasks, was.pos, s.treeOf(was.value)
			if w, ok := was.value.(*pipeline.Composition); ok && broken(head, w.Unit) {
				c.Op = Broken
			}
		default:
			c.Op, old, now = Changed, s.treeOf(was.value), s.treeOf(is.value)
		}
		oldCode, newCode := old.encode(nil), now.encode(nil)
		if k[0] == KindComposition {
			s.codes[pipeline.CompositionName(k[1])] = string(newCode)
		}
		if bytes.Equal(oldCode, newCode) {
			if k[0] == KindComposition {
				unchanged++
			}
			continue
		}
		if k[0] == KindPolicy {
			if c.Op, old, now = Changed, orEmpty(old), orEmpty(now); old.encodes(now) {
				continue
			}
		}
		if c.Op == Changed || k[0] != KindComposition {
			c.Edits = edits(orEmpty(old), orEmpty(now), "", c.Pos)
		}
		if c.Op == Changed {
			c.Tasks = sameTasks(now, c.Edits)
		}
		s.add("change", k[0], k[1], string(oldCode), string(newCode))
		changes = append(changes, c)
	}
	return changes, unchanged
}

func orEmpty(n *node) *node {
	if n == nil {
		return (&node{}).sorted()
	}
	return n
}

func (n *node) encodes(o *node) bool {
	if len(n.parts)+len(o.parts) == 0 {
		return n.code == o.code
	}
	return bytes.Equal(n.encode(nil), o.encode(nil))
}

// sameTasks counts the tasks that no edit is about.
func sameTasks(now *node, edits []Edit) int {
	touched := map[string]bool{}
	for i := range edits {
		if rest, ok := strings.CutPrefix(edits[i].Path, "tasks."); ok {
			name, _, _ := strings.Cut(rest, ".")
			touched[name] = true
		}
	}
	same := 0
	for _, p := range orEmpty(now.part("tasks")).parts {
		if !touched[p.name] {
			same++
		}
	}
	return same
}

func (n *node) part(name string) *node {
	if n == nil {
		return nil
	}
	i, ok := slices.BinarySearchFunc(n.parts, name, func(p part, name string) int { return cmp.Compare(p.name, name) })
	if !ok {
		return nil
	}
	return n.parts[i].node
}

// edits lists the parts that differ, by path. A part that is there on one side only
// is entered, except for an element of a list, which people think of as one thing.
func edits(old, now *node, path string, pos pipeline.Position) []Edit {
	if now != nil && now.pos != (pipeline.Position{}) {
		pos = now.pos
	}
	switch {
	case old == nil && now == nil:
		return nil
	case old == nil && (now.whole || len(now.parts) == 0):
		return []Edit{{Op: Added, Path: path, New: now.summary(), Pos: pos}}
	case now == nil && (old.whole || len(old.parts) == 0):
		return []Edit{{Op: Removed, Path: path, Old: old.summary(), Pos: cmp.Or(old.pos, pos)}}
	case old != nil && now != nil && (len(old.parts) == 0 || len(now.parts) == 0):
		if old.encodes(now) {
			return nil
		}
		if len(old.parts) == 0 && len(now.parts) == 0 || !old.hollow() && !now.hollow() {
			e := Edit{Op: Changed, Path: path, Old: old.summary(), New: now.summary(), Pos: pos}
			e.Deep = e.Old == e.New
			return []Edit{e}
		}
	}
	var out []Edit
	for _, name := range names(old, now) {
		out = append(out, edits(old.part(name), now.part(name), join(path, name), pos)...)
	}
	return out
}

// hollow: a struct or a list with nothing in it.
func (n *node) hollow() bool { return len(n.parts) == 0 && (n.code == "{}" || n.code == "[]") }

func names(a, b *node) []string {
	var out []string
	for _, n := range []*node{a, b} {
		if n == nil {
			continue
		}
		for _, p := range n.parts {
			out = append(out, p.name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func join(path, name string) string {
	if number := strings.TrimLeft(name, "0"); len(name) == 4 && strings.Trim(name, "0123456789") == "" {
		return path + "[" + cmp.Or(number, "0") + "]"
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// mostValue bounds what a plan holds of one value.
const mostValue = 4 << 10

// summary shows a value as its author writes it, on one line.
func (n *node) summary() string {
	s := n.text
	if s == "" {
		var parts []string
		for _, p := range n.parts {
			parts = append(parts, strings.TrimPrefix(join("", p.name), "[0]")+": "+p.summary())
		}
		s = "{" + strings.Join(parts, ", ") + "}"
	}
	if len(s) > mostValue {
		s = strings.ToValidUTF8(s[:mostValue], "") + "…"
	}
	return s
}
