package docs_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnitsAreGood asks systemd about the unit files, with a program that is there in
// the place of ours.
func TestUnitsAreGood(t *testing.T) {
	t.Parallel()
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		// It comes with systemd, which containers and other systems do not have.
		t.Skip("systemd-analyze is not here")
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"reconciler.service", "agentd.service"} {
		b, err := os.ReadFile(filepath.Join("systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		unit := string(b)
		if !strings.Contains(unit, "ExecStart=/usr/local/bin/"+strings.TrimSuffix(name, ".service")) {
			t.Errorf("%s starts another program", name)
		}
		unit = strings.Replace(unit, "/usr/local/bin/"+strings.TrimSuffix(name, ".service"), program, 1)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(unit), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(tool, "verify", "--man=no", filepath.Join(dir, name))
		out, err := cmd.CombinedOutput()
		for line := range strings.Lines(string(out)) { // it also speaks of the machine's own units
			if strings.Contains(line, dir) || strings.Contains(line, name+":") {
				t.Errorf("%s: %s", name, line)
			}
		}
		if err != nil && len(out) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTasksOutliveTheAgentsUnit(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("systemd", "agentd.service"))
	if err != nil || !strings.Contains(string(b), "\nKillMode=process\n") {
		t.Errorf("systemd would kill the tasks with agentd: %v", err)
	}
}
