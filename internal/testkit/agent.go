package testkit

import (
	"os"
	"path/filepath"
	"testing"
)

// Agent is a running agentd.
type Agent struct {
	*Process
	Dir  string
	Name string
	args []string
}

// StartAgentWith starts an agent with the join token in a file, without waiting.
func (s *Server) StartAgentWith(t testing.TB, name, tokenFile string) *Agent {
	t.Helper()
	a := &Agent{Dir: ShortDir(t), Name: name}
	a.args = []string{"agentd", "--server", s.Intake, "--data", a.Dir, "--name", name, "--token-file", tokenFile}
	a.Restart(t)
	return a
}

// StartAgent invites and starts an agent, and waits until it is online. facts is
// the content of an external fact file.
func (s *Server) StartAgent(t testing.TB, name, pool, facts string) *Agent {
	t.Helper()
	a := &Agent{Dir: ShortDir(t), Name: name}
	if facts != "" {
		dir := filepath.Join(a.Dir, "facts.d")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "test.txt"), []byte(facts), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	token := filepath.Join(a.Dir, "token")
	if err := os.WriteFile(token, []byte(s.Invite(t, pool)), 0o600); err != nil {
		t.Fatal(err)
	}
	a.args = []string{"agentd", "--server", s.Intake, "--data", a.Dir, "--name", name, "--token-file", token}
	a.Restart(t)
	s.AwaitAgent(t, name)
	return a
}

// Restart starts the agent again on its folder. At the end of the test it is
// killed, and all that it started.
func (a *Agent) Restart(t testing.TB) {
	t.Helper()
	first := a.Process == nil
	home := filepath.Join(a.Dir, "home") // what tasks leave in a home goes with the test
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	a.Process = start(t, a.Name, []string{"HOME=" + home}, a.args...)
	if first {
		t.Cleanup(a.end)
	}
}
