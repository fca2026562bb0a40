// Package sshsig checks signatures made with SSH keys, as git makes them with
// gpg.format=ssh and ssh-keygen with -Y sign, against a list of allowed signers.
// It reads what ssh-keygen reads of such a list and refuses, line by line, what it
// does not understand: certificates, patterns, unknown options.
package sshsig

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/maestro-cd/maestro/internal/fault"
)

// GitNamespace is the namespace of signatures that git makes. A signature made for
// anything else is refused, so that none can be taken from another use.
const GitNamespace = "git"

const (
	armorBegin = "-----BEGIN SSH SIGNATURE-----"
	armorEnd   = "-----END SSH SIGNATURE-----"
	magic      = "SSHSIG"
	// algoDSA is written out because the library wants nobody to use it.
	algoDSA = "ssh-dss"
	version = 1
	// maxArmored bounds a signature: that of a 16,384 bit RSA key has some 6 KiB.
	maxArmored = 16 << 10
)

// signature is the binary form, after the magic word.
type signature struct {
	Version   uint32
	PublicKey []byte
	Namespace string
	Reserved  []byte
	Hash      string
	Signature []byte
}

// signed is what the key signed, after the magic word.
type signed struct {
	Namespace string
	Reserved  []byte
	Hash      string
	Sum       []byte
}

// Verify checks that one of the signers made the armored signature of message, in
// the namespace, with a key that is valid at that time, and returns all names that
// the list gives this key, sorted. Whatever is wrong is fault.Invalid, in words for
// people.
func Verify(list Signers, message []byte, armored, namespace string, at time.Time) (names []string, err error) {
	sig, err := parse(armored)
	if err != nil {
		return nil, err
	}
	if sig.Namespace != namespace {
		return nil, fault.New(fault.Invalid, "the signature is for the namespace %.40q, not %q", sig.Namespace, namespace)
	}
	key, err := ssh.ParsePublicKey(sig.PublicKey)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the signature names no key: %w", err)
	}
	if err := check(key, sig, message); err != nil {
		return nil, err
	}
	names, err = list.namesOf(key, namespace, at)
	if err != nil {
		return nil, err
	}
	return names, nil
}

func parse(armored string) (signature, error) {
	var s signature
	wrong := fault.New(fault.Invalid, "the signature is no SSH signature; sign with: git config gpg.format ssh")
	if len(armored) > maxArmored {
		return s, fault.New(fault.Invalid, "the signature is larger than %d bytes", maxArmored)
	}
	body, ok := strings.CutPrefix(strings.TrimSpace(armored), armorBegin)
	if !ok {
		return s, wrong
	}
	body, ok = strings.CutSuffix(body, armorEnd)
	if !ok {
		return s, wrong
	}
	raw, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(body), ""))
	if err != nil {
		return s, wrong
	}
	raw, ok = bytes.CutPrefix(raw, []byte(magic))
	if !ok || ssh.Unmarshal(raw, &s) != nil {
		return s, wrong
	}
	if s.Version != version {
		return s, fault.New(fault.Invalid, "the signature has version %d, only %d is known", s.Version, version)
	}
	return s, nil
}

func check(key ssh.PublicKey, s signature, message []byte) error {
	var inner ssh.Signature
	if err := ssh.Unmarshal(s.Signature, &inner); err != nil {
		return fault.New(fault.Invalid, "the signature is malformed: %w", err)
	}
	if inner.Format == ssh.KeyAlgoRSA || inner.Format == algoDSA {
		return fault.New(fault.Invalid, "the signature uses %s, which can be forged; use a newer ssh-keygen or an ed25519 key", inner.Format)
	}
	var sum []byte
	switch s.Hash {
	case "sha256":
		h := sha256.Sum256(message)
		sum = h[:]
	case "sha512":
		h := sha512.Sum512(message)
		sum = h[:]
	default:
		return fault.New(fault.Invalid, "the signature uses the unknown hash %.20q", s.Hash)
	}
	over := append([]byte(magic), ssh.Marshal(signed{s.Namespace, s.Reserved, s.Hash, sum})...)
	if err := key.Verify(over, &inner); err != nil {
		return fault.New(fault.Invalid, "the signature does not fit what it signs: it was altered, or made with another key")
	}
	return nil
}

// Signers is a list of keys and whom they stand for.
type Signers struct {
	lines []signer
	// Refused are the lines that were not understood and count for nothing, in
	// words for people.
	Refused []string
}

type signer struct {
	names         []string
	key           []byte
	namespaces    []string // nil is any
	after, before time.Time
}

// Names returns all names in the list, sorted.
func (l Signers) Names() []string {
	var out []string
	for _, s := range l.lines {
		out = append(out, s.names...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Aliases returns the other names of those keys that stand for name, sorted, name
// included.
func (l Signers) Aliases(name string) []string {
	out := []string{name}
	for _, s := range l.lines {
		if slices.Contains(s.names, name) {
			out = append(out, l.ofKey(s.key)...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (l Signers) ofKey(key []byte) []string {
	var out []string
	for _, s := range l.lines {
		if bytes.Equal(s.key, key) {
			out = append(out, s.names...)
		}
	}
	return out
}

// namesOf says whom a key stands for. The reason that fits best is in the error.
func (l Signers) namesOf(key ssh.PublicKey, namespace string, at time.Time) ([]string, error) {
	var out []string
	wire := key.Marshal()
	why := "is of nobody in the list of allowed signers"
	for _, s := range l.lines {
		switch {
		case !bytes.Equal(s.key, wire):
		case s.namespaces != nil && !slices.Contains(s.namespaces, namespace):
			why = "is allowed for other namespaces only"
		case !s.after.IsZero() && at.Before(s.after):
			why = "is valid only after " + s.after.UTC().Format(time.DateTime)
		case !s.before.IsZero() && !at.Before(s.before):
			why = "was valid until " + s.before.UTC().Format(time.DateTime)
		default:
			out = append(out, s.names...)
		}
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, "the key %s %s", ssh.FingerprintSHA256(key), why)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
