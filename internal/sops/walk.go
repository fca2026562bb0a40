package sops

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// walk visits all values of a document in the order in which sops does, with the path
// of names that each is at. Elements of a list are at the path of the list. Comments are
// at the path of what they stand in, by rules that are those of sops, so that it finds
// ours and we find its.
type walk struct {
	scalar  func(n *yaml.Node, path []string) error
	comment func(text string, path []string) string // nil leaves them
}

func (w *walk) document(doc *yaml.Node) error {
	w.comments(doc, nil)
	return w.value(root(doc), nil, false)
}

func (w *walk) value(n *yaml.Node, path []string, commentsDone bool) error {
	if n.Kind == yaml.ScalarNode {
		return w.scalar(n, path)
	}
	if !commentsDone {
		w.comments(n, path)
	}
	if n.Kind == yaml.SequenceNode {
		for _, item := range n.Content {
			w.comments(item, path)
			if err := w.value(item, path, true); err != nil {
				return err
			}
		}
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, v := n.Content[i], n.Content[i+1]
		w.comments(key, path)
		if v.Kind == yaml.ScalarNode {
			w.comments(v, path)
		}
		if err := w.value(v, append(slices.Clone(path), key.Value), v.Kind == yaml.ScalarNode); err != nil {
			return err
		}
	}
	return nil
}

func (w *walk) comments(n *yaml.Node, path []string) {
	if w.comment == nil {
		return
	}
	for _, text := range []*string{&n.HeadComment, &n.LineComment, &n.FootComment} {
		lines := strings.Split(*text, "\n")
		for i, line := range lines {
			if rest, ok := strings.CutPrefix(line, "#"); ok {
				lines[i] = "#" + w.comment(rest, path)
			}
		}
		*text = strings.Join(lines, "\n")
	}
}

// commentTag marks an element of a list that was a comment: sops writes those that
// stand in lists as elements.
const commentTag = "!comment"

// restoreComments puts comments that are elements of lists before the next element.
func restoreComments(n *yaml.Node) {
	if n.Kind == yaml.SequenceNode {
		kept := n.Content[:0]
		above := ""
		for _, item := range n.Content {
			if item.Tag == commentTag {
				above += "#" + item.Value + "\n"
				continue
			}
			item.HeadComment = above + item.HeadComment
			kept, above = append(kept, item), ""
		}
		n.FootComment += strings.TrimSuffix(above, "\n")
		n.Content = kept
	}
	for _, c := range n.Content {
		restoreComments(c)
	}
}

// root is the mapping of a document; parse has seen to it that there is one.
func root(doc *yaml.Node) *yaml.Node { return doc.Content[0] }

// take removes a name from a mapping and returns its value, nil when there is none, and
// the comment above it.
func take(mapping *yaml.Node, name string) (v *yaml.Node, above string) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == name {
			v, above = mapping.Content[i+1], mapping.Content[i].HeadComment
			mapping.Content = slices.Delete(mapping.Content, i, i+2)
			return v, above
		}
	}
	return nil, ""
}

// find looks a key up: the whole of it as one name, then by its dots.
func find(mapping *yaml.Node, key string, path []string) (*yaml.Node, []string) {
	if mapping.Kind != yaml.MappingNode {
		return nil, nil
	}
	for cut := len(key); cut > 0; cut = strings.LastIndexByte(key[:cut], '.') {
		for i := 0; i+1 < len(mapping.Content); i += 2 {
			if mapping.Content[i].Value != key[:cut] {
				continue
			}
			at := append(slices.Clone(path), key[:cut])
			if cut == len(key) {
				return mapping.Content[i+1], at
			}
			if n, at := find(mapping.Content[i+1], key[cut+1:], at); n != nil {
				return n, at
			}
		}
	}
	return nil, nil
}

// childOf names something in what should have been a text.
func childOf(n *yaml.Node) string {
	if n.Kind == yaml.MappingNode && len(n.Content) > 0 {
		return n.Content[0].Value
	}
	return "…"
}

func cloned(n *yaml.Node) *yaml.Node {
	c := *n
	c.Content = make([]*yaml.Node, len(n.Content))
	for i := range n.Content {
		c.Content[i] = cloned(n.Content[i])
	}
	return &c
}

// valueOf is what a scalar says: nil, a string, an int, a float64, a bool or a time.
func valueOf(n *yaml.Node) (any, error) {
	var v any
	if err := n.Decode(&v); err != nil {
		return nil, fmt.Errorf("line %d: the value is not of the kind that its tag says", n.Line)
	}
	if v == nil {
		return nil, nil
	}
	_, err := bytesOf(v)
	return v, err
}

// put makes a scalar say v, and leaves its comments.
func put(n *yaml.Node, v any) {
	n.Kind = yaml.ScalarNode
	text, isText := v.(string)
	if !isText || !utf8.ValidString(text) {
		var to yaml.Node
		_ = to.Encode(v) // plain values always encode
		n.Tag, n.Value, n.Style = to.Tag, to.Value, to.Style
		return
	}
	n.Tag, n.Value, n.Style = "!!str", text, 0
	switch {
	case strings.Contains(text, "\n") && literal(text):
		n.Style = yaml.LiteralStyle
	case strings.TrimSpace(text) != text:
		n.Style = yaml.DoubleQuotedStyle
	}
}

// literal reports whether a text of several lines is the same when it is written as
// they are: YAML's writer loses blank lines at either end, and ours may be a key.
func literal(text string) bool {
	return strings.TrimSpace(text) == strings.TrimSuffix(text, "\n")
}
