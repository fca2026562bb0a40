package sops

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/maestro-cd/maestro/internal/fault"
)

// format reads and writes documents. Both formats become nodes of YAML.
type format struct {
	decode func([]byte) (*yaml.Node, error)
	emit   func(*yaml.Node) ([]byte, error)
}

func formatOf(name string) *format {
	switch path.Ext(name) {
	case ".yaml", ".yml":
		return &format{decodeYAML, emitYAML}
	case ".json":
		return &format{decodeJSON, emitJSON}
	}
	return nil
}

// parse reads one document that is a mapping of names.
func (f *format) parse(name string, text []byte) (*yaml.Node, error) {
	if len(text) > MaxSize {
		return nil, fault.New(fault.Invalid, "%s has %d bytes, most is %d; make several files of it", name, len(text), MaxSize)
	}
	doc, err := f.decode(text)
	if err == nil && (len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode) {
		err = errors.New("it is no mapping of names to values")
	}
	if err == nil {
		err = plain(doc)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: %w", name, err)
	}
	return doc, nil
}

// maxNesting bounds how deep values lie.
const maxNesting = 64

// plain refuses what sops has no notion of: a name twice, names that are no texts, and
// parts that stand for others, with which a small text could be a large one.
func plain(n *yaml.Node) error { return plainAt(n, 0) }

func plainAt(n *yaml.Node, depth int) error {
	if depth > maxNesting {
		return fmt.Errorf("line %d: more than %d levels", n.Line, maxNesting)
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return fmt.Errorf("line %d: an anchor or an alias; write the value out", n.Line)
	}
	if n.Kind == yaml.MappingNode {
		seen := map[string]bool{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			switch {
			case k.Kind != yaml.ScalarNode || k.ShortTag() != "!!str":
				return fmt.Errorf("line %d: a name that is no text; write it in quotes", k.Line)
			case seen[k.Value]:
				return fmt.Errorf("line %d: the name %q is there twice", k.Line, k.Value)
			}
			seen[k.Value] = true
		}
	}
	for _, c := range n.Content {
		if err := plainAt(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// decodeYAML holds the parser's panics: it has had some on inputs that it should have
// refused, and a server parses the files of whoever may push a branch.
func decodeYAML(text []byte) (doc *yaml.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			doc, err = nil, errors.New("it is not readable as YAML")
		}
	}()
	d := yaml.NewDecoder(bytes.NewReader(text))
	doc = &yaml.Node{}
	if err := d.Decode(doc); errors.Is(err, io.EOF) {
		return nil, errors.New("it is empty")
	} else if err != nil {
		return nil, err
	}
	if err := d.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, errors.New("it has more than one document; make several files of it")
	}
	return doc, nil
}

func emitYAML(doc *yaml.Node) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(4)
	if err := e.Encode(doc); err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	return b.Bytes(), e.Close()
}

func decodeJSON(text []byte) (*yaml.Node, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	n, err := jsonValue(d, 0)
	if errors.Is(err, io.EOF) {
		err = errors.New("it ends too early")
	}
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the document")
	}
	return &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{n}}, nil
}

func jsonValue(d *json.Decoder, depth int) (*yaml.Node, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	if depth > maxNesting {
		return nil, fmt.Errorf("more than %d levels", maxNesting)
	}
	n := &yaml.Node{Kind: yaml.ScalarNode}
	switch t := t.(type) {
	case json.Delim:
		n.Kind = yaml.MappingNode
		if t == '[' {
			n.Kind = yaml.SequenceNode
		}
		for d.More() { // of an object, names and values in turn
			c, err := jsonValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, c)
		}
		_, err = d.Token()
		return n, err
	case json.Number:
		if i, err := strconv.Atoi(t.String()); err == nil {
			put(n, i)
		} else if f, err := t.Float64(); err == nil {
			put(n, f)
		} else {
			return nil, errors.New("a number is too large; write it in quotes")
		}
	default:
		put(n, t)
	}
	return n, nil
}

func emitJSON(doc *yaml.Node) ([]byte, error) {
	raw, err := jsonOf(root(doc))
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "\t"); err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	return append(b.Bytes(), '\n'), nil
}

func jsonOf(n *yaml.Node) ([]byte, error) {
	if n.Kind == yaml.ScalarNode {
		v, err := valueOf(n)
		if err != nil {
			return nil, err
		}
		return marshal(v)
	}
	open, end, sep := "{", "}", ":"
	if n.Kind == yaml.SequenceNode {
		open, end, sep = "[", "]", ","
	}
	var b strings.Builder
	b.WriteString(open)
	for i, c := range n.Content {
		switch {
		case i%2 == 1:
			b.WriteString(sep)
		case i > 0:
			b.WriteString(",")
		}
		raw, err := jsonOf(c)
		if err != nil {
			return nil, err
		}
		b.Write(raw)
	}
	b.WriteString(end)
	return []byte(b.String()), nil
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
