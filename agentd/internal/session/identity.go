package session

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	keyFile = "identity.key"
	pemType = "PRIVATE KEY"
)

// Identity is an agent's key and the name that follows from it. It does not print
// the key.
type Identity struct {
	ID  pipeline.AgentID
	key ed25519.PrivateKey
}

// String returns the ID.
func (i Identity) String() string { return string(i.ID) }

// GoString returns the ID.
func (i Identity) GoString() string { return string(i.ID) }

// PublicKey returns the half that the server knows.
func (i Identity) PublicKey() []byte { return i.key.Public().(ed25519.PublicKey) }

func (i Identity) sign(b []byte) []byte { return ed25519.Sign(i.key, b) }

// LoadIdentity reads the key in dir, and makes dir and key on the first call. One
// process at a time may use dir. A key that cannot be read, or that others on the
// machine may read, is fault.Invalid.
func LoadIdentity(dir string) (Identity, error) {
	path := filepath.Join(dir, keyFile)
	id, err := readIdentity(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Identity{}, fault.New(fault.Internal, "make identity: %w", err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Identity{}, fault.New(fault.Internal, "make identity %s: %w", path, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Identity{}, fault.New(fault.Internal, "make identity %s: %w", path, err)
	}
	if err := durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), 0o600); err != nil {
		return Identity{}, fault.New(fault.Internal, "make identity: %w", err)
	}
	return readIdentity(path)
}

func readIdentity(path string) (Identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Identity{}, fault.New(fault.Internal, "read identity: %w", err)
	}
	// Windows keeps access lists, of which these bits say nothing.
	if perm := info.Mode().Perm(); perm&0o077 != 0 && runtime.GOOS != "windows" {
		return Identity{}, fault.New(fault.Invalid, "read identity %s: others may read it (mode %04o); if nobody has, chmod 600 it, else delete it and enrol again", path, perm)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Identity{}, fault.New(fault.Internal, "read identity: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemType {
		return Identity{}, fault.New(fault.Invalid, "read identity %s: not a PEM private key; restore it, or delete it and enrol again", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := parsed.(ed25519.PrivateKey)
	if err != nil || !ok {
		return Identity{}, fault.New(fault.Invalid, "read identity %s: not an ed25519 key; restore it, or delete it and enrol again", path)
	}
	return Identity{ID: pipeline.AgentIDOf(key.Public().(ed25519.PublicKey)), key: key}, nil
}
