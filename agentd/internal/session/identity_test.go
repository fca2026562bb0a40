package session_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/agentd/internal/session"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func TestIdentityIsMadeOnceAndKept(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "agent")
	a, err := session.LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := session.LoadIdentity(dir)
	if err != nil || a.ID != b.ID || a.ID != pipeline.AgentIDOf(a.PublicKey()) {
		t.Errorf("identity was %s and is %s, %v", a.ID, b.ID, err)
	}
	other, err := session.LoadIdentity(t.TempDir())
	if err != nil || other.ID == a.ID {
		t.Errorf("two agents are both %s, %v", other.ID, err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "identity.key"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("mode of %s is %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
}

func TestKeyDoesNotPrint(t *testing.T) {
	t.Parallel()
	id, err := session.LoadIdentity(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(id), fmt.Sprintf("%+v", id), fmt.Sprintf("%#v", id)} {
		if s != string(id.ID) {
			t.Errorf("printed %q, want the ID", s)
		}
	}
}

func TestUnfitKeyIsRefusedWithAdvice(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		says    string
	}{
		"readable by others": {"", 0o644, "chmod 600"},
		"empty":              {"", 0o600, "enrol again"},
		"torn":               {"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw", 0o600, "enrol again"},
		"of another kind":    {"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VuBCIEIHgtV2hTnjb0SvNvqcGjsZGe1JpBTFZGvuGI0vAgyORd\n-----END PRIVATE KEY-----\n", 0o600, "not an ed25519 key"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "identity.key")
		if err := os.WriteFile(path, []byte(c.content), c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := session.LoadIdentity(dir)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: LoadIdentity = %v, want invalid, the path and %q", name, err, c.says)
		}
	}
}
