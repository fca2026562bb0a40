package sops

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/maestro-cd/maestro/internal/fault"
)

// RulesFile is where a repository says to whom its files are encrypted.
const RulesFile = ".sops.yaml"

// Rules are those of a .sops.yaml: by their path, to whom files are encrypted.
type Rules struct{ rules []creation }

type creation struct {
	path *regexp.Regexp // nil fits all
	how  How
	// foreign are the kinds of keys that this package cannot encrypt to.
	foreign []string
}

// ParseRules reads a .sops.yaml. Errors are fault.Invalid.
func ParseRules(text []byte) (*Rules, error) {
	refuse := func(format string, args ...any) (*Rules, error) {
		return nil, fault.New(fault.Invalid, RulesFile+": %w", fmt.Errorf(format, args...))
	}
	if len(text) > MaxSize {
		return refuse("it has %d bytes, most is %d", len(text), MaxSize)
	}
	doc, err := decodeYAML(text)
	if err != nil {
		return refuse("%w", err)
	}
	var raw struct {
		CreationRules []map[string]yaml.Node `yaml:"creation_rules"`
	}
	if err := doc.Decode(&raw); err != nil {
		return refuse("it is not as sops wants it: creation_rules is a list, as - age: age1…")
	}
	out := &Rules{}
	for i, r := range raw.CreationRules {
		c, err := creationOf(r)
		if err != nil {
			return refuse("rule %d: %w", i+1, err)
		}
		out.rules = append(out.rules, c)
	}
	return out, nil
}

func creationOf(fields map[string]yaml.Node) (c creation, err error) {
	text := func(name string) string { n := fields[name]; return n.Value }
	if p, ok := fields["path_regex"]; ok {
		if c.path, err = regexp.Compile(p.Value); err != nil {
			return c, err
		}
	}
	c.how.Rule = Rule{
		UnencryptedSuffix: text("unencrypted_suffix"), EncryptedSuffix: text("encrypted_suffix"),
		UnencryptedRegex: text("unencrypted_regex"), EncryptedRegex: text("encrypted_regex"),
		MACOnlyEncrypted: text("mac_only_encrypted") == "true",
	}
	for _, kind := range append([]string{"key_groups", "encrypted_comment_regex", "unencrypted_comment_regex"}, kindsOfKeys...) {
		if _, ok := fields[kind]; ok {
			c.foreign = append(c.foreign, kind)
		}
	}
	// One text with commas, or a list of such.
	ages := fields["age"]
	for _, n := range append([]*yaml.Node{&ages}, ages.Content...) {
		for _, to := range strings.Split(n.Value, ",") {
			if to = strings.TrimSpace(to); to == "" {
				continue
			}
			if err := CheckRecipient(to); err != nil {
				return c, err
			}
			c.how.Recipients = append(c.how.Recipients, to)
		}
	}
	return c, nil
}

// For is the first rule that fits a path in the repository; false when none does. It is
// fault.Invalid when the rule wants more than this package can.
func (r *Rules) For(path string) (How, bool, error) {
	for _, c := range r.rules {
		if c.path != nil && !c.path.MatchString(path) {
			continue
		}
		if len(c.foreign) > 0 {
			return How{}, true, fault.New(fault.Invalid, "%s: its rule for %s has %s, which is not supported here: use sops", RulesFile, path, strings.Join(c.foreign, " and "))
		}
		return c.how, true, nil
	}
	return How{}, false, nil
}

// Strangers are the recipients of a file that the rule for it does not name: they would
// go on to get what is written into it.
func (r *Rules) Strangers(path string, recipients []string) []string {
	how, ok, err := r.For(path)
	if !ok || err != nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(recipients), func(to string) bool { return slices.Contains(how.Recipients, to) })
}
