package sops

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/maestro-cd/maestro/internal/fault"
)

// metadata is the part of a file named sops, as far as it is ours. Everything else in
// it makes the file one that only sops itself may write.
type metadata struct {
	Age          []ageKey `yaml:"age"`
	LastModified string   `yaml:"lastmodified"`
	MAC          string   `yaml:"mac"`
	Rule         `yaml:",inline"`
	Version      string `yaml:"version"`

	// foreign are the kinds of other keys that open the file.
	foreign []string
	// which are those of Rule, compiled.
	which *regexp.Regexp
}

// ageKey is the data key, encrypted to one recipient.
type ageKey struct {
	Recipient string `yaml:"recipient"`
	Enc       string `yaml:"enc"`
}

// Rule says which values of a file are encrypted: all, but for names (and what is below
// them) that end in UnencryptedSuffix or match UnencryptedRegex; or only those that end
// in EncryptedSuffix or match EncryptedRegex. At most one is set.
type Rule struct {
	UnencryptedSuffix string `yaml:"unencrypted_suffix,omitempty"`
	EncryptedSuffix   string `yaml:"encrypted_suffix,omitempty"`
	UnencryptedRegex  string `yaml:"unencrypted_regex,omitempty"`
	EncryptedRegex    string `yaml:"encrypted_regex,omitempty"`
	MACOnlyEncrypted  bool   `yaml:"mac_only_encrypted,omitempty"`
}

const defaultUnencryptedSuffix = "_unencrypted"

// settle gives a rule its default and finds what is wrong with it.
func (r *Rule) settle() (*regexp.Regexp, error) {
	set := 0
	for _, s := range []string{r.UnencryptedSuffix, r.EncryptedSuffix, r.UnencryptedRegex, r.EncryptedRegex} {
		if s != "" {
			set++
		}
	}
	if set > 1 {
		return nil, fmt.Errorf("it has more than one rule about what is encrypted; sops allows one")
	}
	if set == 0 {
		r.UnencryptedSuffix = defaultUnencryptedSuffix
	}
	which, err := regexp.Compile(r.EncryptedRegex + r.UnencryptedRegex) // one of them
	if err != nil {
		return nil, fmt.Errorf("its rule about what is encrypted is no regular expression: %w", err)
	}
	return which, nil
}

// encrypts reports whether the value at a path is one that is encrypted.
func (m *metadata) encrypts(path []string) bool {
	suffix := m.UnencryptedSuffix + m.EncryptedSuffix // one of them, or a pattern is set
	marked := slices.ContainsFunc(path, func(name string) bool {
		if suffix != "" {
			return strings.HasSuffix(name, suffix)
		}
		return m.which.MatchString(name)
	})
	return marked == (m.EncryptedSuffix != "" || m.EncryptedRegex != "")
}

// kindsOfKeys are the lists of keys that sops knows besides age's.
var kindsOfKeys = []string{"pgp", "kms", "gcp_kms", "azure_kv", "hc_vault", "hckms"}

// readMetadata reads the part of a file named sops. It is outside of the MAC: whoever
// may push can have written it.
func readMetadata(name string, n *yaml.Node) (metadata, error) {
	var m metadata
	refuse := func(format string, args ...any) (metadata, error) {
		return metadata{}, fault.New(fault.Invalid, "%s: %w", name, fmt.Errorf(format, args...))
	}
	var all map[string]yaml.Node
	if err := n.Decode(&all); err != nil {
		return refuse("its part named sops is no mapping of names")
	}
	if err := n.Decode(&m); err != nil {
		return refuse("its part named sops is not as sops writes it")
	}
	for _, rule := range []string{"encrypted_comment_regex", "unencrypted_comment_regex"} {
		if _, ok := all[rule]; ok {
			return refuse("it goes by %s, which is not supported here; encrypt it by names, with encrypted_regex", rule)
		}
	}
	if groups, ok := all["key_groups"]; ok && len(groups.Content) > 0 {
		return refuse("its data key is split among key_groups, which is not supported here; encrypt it to single keys")
	}
	for _, kind := range kindsOfKeys {
		if keys, ok := all[kind]; ok && len(keys.Content) > 0 {
			m.foreign = append(m.foreign, kind)
		}
	}
	if len(m.Age) == 0 {
		return refuse("it is not encrypted to any age key, and others are not supported here; add one with: sops rotate --in-place --add-age age1… %s", name)
	}
	if !isEncrypted(m.MAC) {
		return refuse("it has no checksum (sops.mac), so that anybody could have changed it; write it again with: reconciler secrets edit %s", name)
	}
	var err error
	if m.which, err = m.settle(); err != nil {
		return refuse("%w", err)
	}
	return m, nil
}

func (m *metadata) node() (*yaml.Node, error) {
	var n yaml.Node
	if err := n.Encode(m); err != nil {
		return nil, fmt.Errorf("write the metadata: %w", err)
	}
	return &n, nil
}
