// Package sops reads and writes YAML and JSON files as the program sops does
// (https://getsops.io), for age keys alone. It reads no files itself and keeps nothing:
// what is decrypted is in memory, in what it returns.
//
// The format, in short: names are in the clear, each value is encrypted by itself with
// AES-256-GCM, with the path of its names as additional data; the data key is encrypted
// to each recipient; a keyed checksum (the MAC) covers all values in order. So a file can
// be judged without a key as far as names, recipients and "is it encrypted" go, and
// nothing that it says is true before the MAC was compared.
//
// The library of sops itself would bring the SDKs of five clouds into the program, some
// three hundred modules, for what is here. What sops can do and this package cannot is
// refused by name: keys that are not age's, key groups, rules about comments.
package sops

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/maestro-cd/maestro/internal/fault"
)

// MaxSize bounds a file, in bytes.
const MaxSize = 256 << 10

// metadataKey is the name that a document cannot have for itself.
const metadataKey = "sops"

// Supported reports whether the name is one of a file that this package can read.
func Supported(name string) bool { return formatOf(name) != nil }

// File is an encrypted file, as far as it can be read without a key.
type File struct {
	name   string
	format *format
	doc    *yaml.Node // without the metadata
	meta   metadata
}

// ErrClear is why Parse refuses a file that is not encrypted at all.
var ErrClear = errors.New("is not encrypted")

// Parse reads an encrypted file. Its name decides the format and stands in messages.
// Errors are fault.Invalid and say what to do; they never hold a value.
func Parse(name string, text []byte) (*File, error) {
	f := &File{name: name, format: formatOf(name)}
	if f.format == nil {
		return nil, fault.New(fault.Invalid, "%s is neither YAML nor JSON by its name: it has to end in .yaml, .yml or .json", name)
	}
	doc, err := f.format.parse(name, text)
	if err != nil {
		return nil, err
	}
	meta, above := take(root(doc), metadataKey)
	if above != "" { // which the last line of the file was
		doc.FootComment = strings.TrimPrefix(doc.FootComment+"\n"+above, "\n")
	}
	if meta == nil {
		return nil, fault.New(fault.Invalid, "%s %w: it has no part named sops. Everybody who reads the repository knows what it holds: replace that, and encrypt it with: reconciler secrets edit %s", name, ErrClear, name)
	}
	f.doc = doc
	if f.meta, err = readMetadata(name, meta); err != nil {
		return nil, err
	}
	return f, nil
}

// Recipients are the age keys, public, that the file says it is encrypted to.
func (f *File) Recipients() []string {
	out := make([]string, 0, len(f.meta.Age))
	for _, a := range f.meta.Age {
		out = append(out, a.Recipient)
	}
	return out
}

// Check reports whether the key names one encrypted text, as far as that can be seen
// without opening the file: fault.NotFound when there is no such key, and fault.Invalid
// when what it names is in the clear or no text.
func (f *File) Check(key string) error {
	n, path := find(root(f.doc), key, nil)
	if n == nil {
		return fault.New(fault.NotFound, "%s has no key %q; it has %s", f.name, key, listed(f.Keys()))
	}
	if n.Kind != yaml.ScalarNode {
		return fault.New(fault.Invalid, "%s: key %q is no text but holds others, as %q", f.name, key, strings.Join(append(path, childOf(n)), "."))
	}
	if !f.meta.encrypts(path) || !isEncrypted(n.Value) {
		return fault.New(fault.Invalid, "%s: the value of key %q is not encrypted, so everybody who can read the repository knows it: replace it, and encrypt it with: reconciler secrets edit %s", f.name, key, f.name)
	}
	if t := typeOf(n.Value); t != typeString {
		return fault.New(fault.Invalid, "%s: the value of key %q is of type %s, and a secret is a text: write it in quotes", f.name, key, t)
	}
	return nil
}

// Keys are the names of all values, those within others with dots, in their order.
func (f *File) Keys() []string {
	var out []string
	w := walk{scalar: func(_ *yaml.Node, path []string) error {
		if k := strings.Join(path, "."); !slices.Contains(out, k) {
			out = append(out, k)
		}
		return nil
	}}
	_ = w.document(f.doc) // nothing here returns one
	return out
}

// Opened is a decrypted file whose MAC was right.
type Opened struct {
	file *File
	doc  *yaml.Node
}

// Open decrypts the file and compares its MAC. All errors are fault.Invalid, name the
// file and say what to do: no key, none of the right ones, or a file that was changed by
// somebody who has none.
func (f *File) Open(keys Keys) (*Opened, error) {
	dataKey, err := f.dataKey(keys)
	if err != nil {
		return nil, err
	}
	o := &Opened{file: f, doc: cloned(f.doc)}
	sum := newSum(f.meta.MACOnlyEncrypted)
	w := walk{
		scalar: func(n *yaml.Node, path []string) error {
			encrypted := f.meta.encrypts(path)
			v, err := f.open(n, path, encrypted, dataKey)
			if err != nil || v == nil {
				return err
			}
			if c, ok := v.(comment); ok {
				n.Tag, n.Value = commentTag, string(c)
				return nil
			}
			if encrypted {
				put(n, v)
			}
			return sum.add(v, encrypted)
		},
		comment: func(text string, path []string) string {
			if v, err := decrypt(text, dataKey, path); err == nil && f.meta.encrypts(path) {
				return fmt.Sprint(v)
			}
			return text // older versions left them in the clear
		},
	}
	if err := w.document(o.doc); err != nil {
		return nil, err
	}
	restoreComments(o.doc)
	mac, err := openWith(f.meta.MAC, dataKey, f.meta.LastModified)
	if err != nil || !sum.is(fmt.Sprint(mac)) {
		return nil, f.changed("its checksum (sops.mac) is not that of its values")
	}
	return o, nil
}

// open returns the value of a scalar, nil for null.
func (f *File) open(n *yaml.Node, path []string, encrypted bool, dataKey []byte) (any, error) {
	v, err := valueOf(n)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s: key %q: %w", f.name, strings.Join(path, "."), err)
	}
	text, isText := v.(string)
	switch {
	case v == nil || !encrypted || isText && text == "":
		return v, nil
	case !isText || !isEncrypted(text):
		return nil, f.changed(fmt.Sprintf("the value of key %q is not encrypted", strings.Join(path, ".")))
	}
	if v, err = decrypt(text, dataKey, path); err != nil {
		return nil, f.changed(fmt.Sprintf("the value of key %q was not encrypted for that place", strings.Join(path, ".")))
	}
	return v, nil
}

// changed is the error for a file that was not made by somebody with its data key.
func (f *File) changed(what string) error {
	return fault.New(fault.Invalid, "%s was changed by other means than sops: %s. Nothing of it is used; take back the change, or write the values again with: reconciler secrets edit %s", f.name, what, f.name)
}

// Value returns the text of a key. Within others a key has dots, as "aws.token"; a name
// that has dots itself goes before. All errors are fault.Invalid.
func (o *Opened) Value(key string) (string, error) {
	if err := o.file.Check(key); err != nil {
		return "", fault.New(fault.Invalid, "%w", err)
	}
	n, _ := find(root(o.doc), key, nil)
	v, err := valueOf(n)
	text, ok := v.(string)
	if err != nil || !ok {
		return "", fault.New(fault.Invalid, "%s: the value of key %q is no text", o.file.name, key)
	}
	return text, nil
}

// Path returns the path that the file says it is meant for, "" when it says none.
func (o *Opened) Path() string {
	n, _ := find(root(o.doc), pathKey, nil)
	if n == nil {
		return ""
	}
	return n.Value
}

// pathKey binds a file to its place: one that was copied over another says so.
const pathKey = "_path"

// CheckPath reports a file that was made for another place than its name: its values
// are for whoever may have those of that place.
func (o *Opened) CheckPath() error {
	if p := o.Path(); p != "" && p != o.file.name {
		return fault.New(fault.Invalid, "%s is a copy of %s: its key %s says so. Nothing of it is used; write the values that belong there with: reconciler secrets edit %s", o.file.name, p, pathKey, o.file.name)
	}
	return nil
}

// Text is the file in the clear, as a person edits it.
func (o *Opened) Text() ([]byte, error) { return o.file.format.emit(o.doc) }

var encrypted = regexp.MustCompile(`^ENC\[AES256_GCM,data:([^,]+),iv:([^,]+),tag:([^,]+),type:([a-z]+)\]$`)

func isEncrypted(s string) bool { return encrypted.MatchString(s) }

func typeOf(s string) string {
	if m := encrypted.FindStringSubmatch(s); m != nil {
		return m[4]
	}
	return ""
}

func listed(all []string) string {
	const most = 20
	if len(all) == 0 {
		return "none"
	}
	if len(all) > most {
		return strings.Join(all[:most], ", ") + fmt.Sprintf(" and %d more", len(all)-most)
	}
	return strings.Join(all, ", ")
}
