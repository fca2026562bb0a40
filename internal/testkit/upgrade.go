package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Upgrade puts another build of the program in the place of the one that the agent was
// started from, as a package manager does: another file under the same name. It takes
// effect with the next start.
func (a *Agent) Upgrade(t testing.TB) {
	t.Helper()
	a.args[0] = upgraded(t, a.args[0])
}

// Upgrade is that of Agent for the server.
func (s *Server) Upgrade(t testing.TB) {
	t.Helper()
	s.args[0] = upgraded(t, s.args[0])
}

// upgraded returns the name, below Programs, of a program that is this test's own.
func upgraded(t testing.TB, program string) string {
	t.Helper()
	home := filepath.Join(Programs(t), "of-"+filepath.Base(t.Name()))
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(Programs(t), program))
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(home, filepath.Base(program))
	// What is behind the end of a program is never read, and makes it another file.
	if err := os.WriteFile(own+".new", append(b, "another build"...), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	if err := os.Rename(own+".new", own); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("of-%s/%s", filepath.Base(t.Name()), filepath.Base(program))
}
