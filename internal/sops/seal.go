package sops

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/maestro-cd/maestro/internal/fault"
)

// formatVersion is that of sops whose format this is.
const formatVersion = "3.13.3"

// How a file is encrypted.
type How struct {
	// Recipients are the age keys, public, that open it; at least one.
	Recipients []string
	Rule       Rule
}

// How is how the file is encrypted, to do it again. It is fault.Invalid for a file that
// others than age keys open: they would be locked out.
func (f *File) How() (How, error) {
	if len(f.meta.foreign) > 0 {
		return How{}, fault.New(fault.Invalid, "%s is also encrypted to keys of %s, which would be locked out: edit it with sops", f.name, strings.Join(f.meta.foreign, " and "))
	}
	return How{Recipients: f.Recipients(), Rule: f.meta.Rule}, nil
}

// Seal encrypts a text in the clear, with a data key of its own, as the file of that
// name. Errors are fault.Invalid, and hold no value.
func Seal(name string, text []byte, how How) ([]byte, error) {
	fm := formatOf(name)
	if fm == nil {
		return nil, fault.New(fault.Invalid, "%s is neither YAML nor JSON by its name: it has to end in .yaml, .yml or .json", name)
	}
	if len(how.Recipients) == 0 {
		return nil, fault.New(fault.Invalid, "%s: it is to be encrypted to nobody; say to whom, as --to age1…, or in .sops.yaml", name)
	}
	doc, err := fm.parse(name, text)
	if err != nil {
		return nil, err
	}
	if n, _ := find(root(doc), metadataKey, nil); n != nil {
		return nil, fault.New(fault.Invalid, "%s: the name sops is for what encrypts the file; use another", name)
	}
	meta := metadata{Rule: how.Rule, LastModified: time.Now().UTC().Format(time.RFC3339), Version: formatVersion}
	if meta.which, err = meta.settle(); err != nil {
		return nil, fault.New(fault.Invalid, "%s: %w", name, err)
	}
	key := make([]byte, dataKeySize)
	rand.Read(key) // never fails
	recipients := slices.Compact(slices.Sorted(slices.Values(how.Recipients)))
	if meta.Age, err = sealTo(recipients, key); err != nil {
		return nil, err
	}
	if err := meta.seal(name, doc, key); err != nil {
		return nil, err
	}
	n, err := meta.node()
	if err != nil {
		return nil, err
	}
	label := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: metadataKey}
	root(doc).Content = append(root(doc).Content, label, n)
	return fm.emit(doc)
}

// seal encrypts the values of a document in place, and sums them up.
func (m *metadata) seal(name string, doc *yaml.Node, key []byte) error {
	sum := newSum(m.MACOnlyEncrypted)
	w := walk{
		scalar: func(n *yaml.Node, path []string) error {
			v, err := valueOf(n)
			encrypted := m.encrypts(path)
			if err == nil && v != nil {
				err = sum.add(v, encrypted)
			}
			if err == nil && v != nil && encrypted {
				var text string
				if text, err = sealWith(v, kindOf(v), key, additional(path)); err == nil {
					put(n, text)
				}
			}
			if err != nil {
				return fault.New(fault.Invalid, "%s: key %q: %w", name, strings.Join(path, "."), err)
			}
			return nil
		},
		comment: func(text string, path []string) string {
			if !m.encrypts(path) {
				return text
			}
			out, _ := sealWith(text, typeComment, key, additional(path)) // a text is always sealed
			return out
		},
	}
	if err := w.document(doc); err != nil {
		return err
	}
	var err error
	if m.MAC, err = sealWith(sum.String(), typeString, key, m.LastModified); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
