package sops

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/maestro-cd/maestro/internal/fault"
)

// Keys are the private age keys that open files. They print as ***, by any verb. The
// zero value opens nothing.
type Keys struct {
	ids        []age.Identity
	recipients []string
}

// ParseKeys reads a file of private keys as age-keygen writes it: one a line, with
// comments. An error is fault.Invalid and holds nothing of the text.
func ParseKeys(text []byte) (Keys, error) {
	ids, err := age.ParseIdentities(strings.NewReader(strings.ReplaceAll(string(text), "\r", "")))
	if err != nil {
		return Keys{}, fault.New(fault.Invalid, "it holds no private age key: a line that begins with AGE-SECRET-KEY-1, as reconciler secrets keygen writes it")
	}
	k := Keys{ids: ids}
	for _, id := range ids {
		switch id := id.(type) {
		case *age.X25519Identity:
			k.recipients = append(k.recipients, id.Recipient().String())
		case *age.HybridIdentity:
			k.recipients = append(k.recipients, id.Recipient().String())
		}
	}
	return k, nil
}

// NewKey makes a private key, and the recipient that others encrypt to.
func NewKey() (private, recipient string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", fmt.Errorf("make a key: %w", err)
	}
	return id.String(), id.Recipient().String(), nil
}

// Recipients are the public keys of k.
func (k Keys) Recipients() []string { return slices.Clone(k.recipients) }

// None reports whether there is no key.
func (k Keys) None() bool { return len(k.ids) == 0 }

// Format hides the keys, so that Keys may be printed by mistake.
func (k Keys) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "***") }

// MarshalText hides the keys in JSON and in logs.
func (k Keys) MarshalText() ([]byte, error) { return []byte("***"), nil }

// dataKey opens the data key with whichever key can.
func (f *File) dataKey(keys Keys) ([]byte, error) {
	if keys.None() {
		return nil, fault.New(fault.Invalid, "%s is encrypted, and there is no age key to open it: name the file that holds one, as --secrets-key-file FILE", f.name)
	}
	broken := false
	for _, a := range f.meta.Age {
		r, err := age.Decrypt(armor.NewReader(strings.NewReader(a.Enc)), keys.ids...)
		var none *age.NoIdentityMatchError
		if errors.As(err, &none) {
			continue
		}
		key, err := readAll(r, err)
		if err == nil && len(key) == dataKeySize {
			return key, nil
		}
		broken = true
	}
	if broken {
		return nil, f.changed("its data key cannot be read")
	}
	return nil, fault.New(fault.Invalid, "%s is encrypted to %s, and the key here is that of %s: name the file of a right one, as --secrets-key-file FILE, or let somebody who has one encrypt it to this one too, with: sops rotate --in-place --add-age %s %s",
		f.name, listed(f.Recipients()), listed(keys.recipients), strings.Join(keys.recipients, ","), f.name)
}

func readAll(r io.Reader, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, dataKeySize+1))
}

// sealTo encrypts a data key to each recipient.
func sealTo(recipients []string, key []byte) ([]ageKey, error) {
	out := make([]ageKey, 0, len(recipients))
	for _, to := range recipients {
		r, err := recipient(to)
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		a := armor.NewWriter(&b)
		w, err := age.Encrypt(a, r)
		if err == nil {
			_, err = w.Write(key)
		}
		if err = errors.Join(err, closeAll(w, a)); err != nil {
			return nil, fmt.Errorf("encrypt to %s: %w", to, err)
		}
		out = append(out, ageKey{Recipient: to, Enc: b.String()})
	}
	return out, nil
}

func closeAll(cs ...io.Closer) error {
	for _, c := range cs {
		if c != nil {
			if err := c.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// CheckRecipient reports whether s is the public part of an age key: fault.Invalid when
// it is not, without repeating a private key.
func CheckRecipient(s string) error {
	_, err := recipient(s)
	return err
}

func recipient(s string) (age.Recipient, error) {
	if strings.HasPrefix(strings.ToUpper(s), "AGE-SECRET-KEY-") {
		return nil, fault.New(fault.Invalid, "a private key was given as a recipient: give the public one, which begins with age1, and replace the private one, which others may have seen by this")
	}
	all, err := age.ParseRecipients(strings.NewReader(s))
	if err != nil || len(all) != 1 {
		return nil, fault.New(fault.Invalid, "%q is no recipient: the public part of an age key begins with age1", s)
	}
	return all[0], nil
}
