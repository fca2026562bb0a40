package redact

import (
	"slices"
	"strings"
)

// automaton is an Aho-Corasick automaton over all forms. States are numbered in
// breadth-first order, so the root and its children come first. Those few have a
// full table, because nearly every byte of a log is read in one of them; deeper
// ones keep a list of their children, which is nearly always one long. A private
// key has some ten thousand states, and full tables for all would be megabytes.
type automaton struct {
	dense int32   // states below it have a table
	table []int32 // dense x 256
	// Children of a state s: label and state kids[s] to kids[s+1].
	kids  []int32
	label []byte
	fail  []int32 // the state of the longest proper suffix
	depth []int32 // length of the text that leads to the state
	found []match // the longest form that ends in the state
	// owner is the first secret with a form that begins as the state does.
	owner []int32
	// texts are what replaces each secret.
	texts []string
}

type match struct {
	length int32 // 0: none
	owner  int32
}

// next is the transition function.
func (a *automaton) next(s int32, c byte) int32 {
	for s >= a.dense {
		for k := a.kids[s]; k < a.kids[s+1]; k++ {
			if a.label[k] == c {
				return k + 1 // child k of all is state k+1: breadth-first order
			}
		}
		s = a.fail[s]
	}
	return a.table[int(s)<<8|int(c)]
}

// trie is the automaton in the making: children as linked lists.
type trie struct{ nodes []node }

type node struct {
	child, sibling int32 // 0: none
	owner          int32 // the first secret that leads through the node
	label          byte
	end            bool
}

func (t *trie) insert(form string, owner int32) {
	at := int32(0)
	for i := range len(form) {
		next := t.nodes[at].child
		for next != 0 && t.nodes[next].label != form[i] {
			next = t.nodes[next].sibling
		}
		if next == 0 {
			next = int32(len(t.nodes))
			t.nodes = append(t.nodes, node{label: form[i], sibling: t.nodes[at].child, owner: owner})
			t.nodes[at].child = next
		}
		at = next
	}
	t.nodes[at].end = true
}

// compile returns nil when there is nothing to look for.
func compile(secrets []Secret) *automaton {
	all, size := make([][]string, len(secrets)), 1
	for i, s := range secrets {
		all[i] = forms(s.Value)
		for _, f := range all[i] {
			size += len(f)
		}
	}
	if size == 1 {
		return nil
	}
	t := &trie{nodes: make([]node, 1, size)}
	texts := make([]string, len(secrets))
	for i, s := range secrets {
		texts[i] = safeText(s.Name, all)
		for _, f := range all[i] {
			t.insert(f, int32(i))
		}
	}
	a := t.build()
	a.texts = texts
	return a
}

// safeText is the placeholder of a secret, without its name when the name itself
// would show a form of a secret.
func safeText(name string, all [][]string) string {
	text := placeholder(name)
	for _, forms := range all {
		if slices.ContainsFunc(forms, func(f string) bool { return strings.Contains(text, f) }) {
			return "***"
		}
	}
	return text
}

func (t *trie) build() *automaton {
	n := len(t.nodes)
	a := &automaton{
		kids: make([]int32, n+1), label: make([]byte, 0, n-1), fail: make([]int32, n),
		depth: make([]int32, n), found: make([]match, n), owner: make([]int32, n),
	}
	// order[s] is the node of state s.
	order := make([]int32, 1, n)
	for s := 0; s < len(order); s++ {
		nd := t.nodes[order[s]]
		a.owner[s] = nd.owner
		a.kids[s] = int32(len(a.label))
		for c := nd.child; c != 0; c = t.nodes[c].sibling {
			a.depth[len(order)] = a.depth[s] + 1
			a.label = append(a.label, t.nodes[c].label)
			order = append(order, c)
		}
		if s == 0 {
			a.dense = int32(len(order))
		}
	}
	a.kids[n] = int32(len(a.label))
	a.fillTable()
	a.fillFail()
	for s := range order {
		// A state's longest form is itself, or that of its longest suffix, which has
		// a lower depth and so a lower number.
		if nd := t.nodes[order[s]]; nd.end {
			a.found[s] = match{a.depth[s], nd.owner}
		} else {
			a.found[s] = a.found[a.fail[s]]
		}
	}
	return a
}

// fillTable writes the tables of the root and its children, which fail to the root.
func (a *automaton) fillTable() {
	a.table = make([]int32, int(a.dense)<<8)
	for k := a.kids[0]; k < a.kids[1]; k++ {
		a.table[a.label[k]] = k + 1
	}
	for s := int32(1); s < a.dense; s++ {
		row := a.table[int(s)<<8 : int(s+1)<<8]
		copy(row, a.table[:256])
		for k := a.kids[s]; k < a.kids[s+1]; k++ {
			row[a.label[k]] = k + 1
		}
	}
}

// fillFail sets, in order of depth, where each state goes on when no child fits.
func (a *automaton) fillFail() {
	for s := int32(0); int(s) < len(a.fail); s++ {
		for k := a.kids[s]; k < a.kids[s+1]; k++ {
			if s != 0 {
				a.fail[k+1] = a.next(a.fail[s], a.label[k])
			}
		}
	}
}
