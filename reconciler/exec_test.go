package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/testkit"
)

// leavesNothing gives exec a folder for temporary files, short enough for a socket,
// and wants it empty at the end of the test.
func leavesNothing(t *testing.T) (env []string, dir string) {
	t.Helper()
	dir = testkit.ShortDir(t)
	t.Cleanup(func() {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind in the temporary folder: %v, %v", left, err)
		}
	})
	return []string{"TMPDIR=" + dir}, dir
}

func TestExecRunsTheWorkingCopyAndNothingElse(t *testing.T) {
	real(t)
	a := newAuthor(t)
	env, _ := leavesNothing(t)
	marks := t.TempDir()
	a.edit("compositions/goodbye/goodbye.cue", "echo bye", "touch "+marks+"/goodbye")
	a.edit(helloFile, `"hello": {`, "\"hello\": {\n\tparams: {who: string, times: *1 | int}")
	a.edit(helloFile, `"echo hello"`, `"for i in $(seq \(params.times)); do echo hello \(params.who); done"`)
	a.edit(helloFile, "triggers: [{push: {}}]", "")
	out, exit := testkit.RunIn(t, a.Work, env, "reconciler", "exec", "hello", "--param", "who=42", "--param", "times=2")
	if exit != 0 || strings.Count(out, "hello 42\n") != 2 || !strings.Contains(out, "✓ success") {
		t.Errorf("exit %d, want 0 and the log of two lines\n%s", exit, out)
	}
	if _, err := os.Stat(filepath.Join(marks, "goodbye")); err == nil {
		t.Error("another composition has run")
	}
	if s := a.Git(a.Work, "status", "--short"); strings.Count(s, "\n") != 1 {
		t.Errorf("the working copy is not as it was:\n%s", s)
	}
	for args, want := range map[string]string{
		"exec hello":                           "who: is missing",
		"exec hello --param who=x --param y=1": "y: is not declared",
		"exec hello --param who":               "is not NAME=VALUE",
		"exec nothing":                         `no composition "nothing"`,
	} {
		out, exit := testkit.RunIn(t, a.Work, env, "reconciler", words(args)...)
		if exit != 2 || !strings.Contains(out, want) {
			t.Errorf("reconciler %s: exit %d, want 2 and %q\n%s", args, exit, want, out)
		}
	}
}

func TestExecEndsAsItsRunDoes(t *testing.T) {
	real(t)
	a := newAuthor(t)
	env, _ := leavesNothing(t)
	a.edit(helloFile, "echo hello", "echo hello; exit 3")
	if out, exit := testkit.RunIn(t, a.Work, env, "reconciler", "exec", "hello"); exit != 1 || !strings.Contains(out, "code 3") {
		t.Errorf("exit %d, want 1 and the reason\n%s", exit, out)
	}
	a.edit(helloFile, "fields:", "agent: facts: kernel: \"Plan9\"\n\t\tfields:")
	if out, exit := testkit.RunIn(t, a.Work, env, "reconciler", "exec", "hello"); exit != 6 || !strings.Contains(out, "kernel") {
		t.Errorf("exit %d, want 6 and the clause that nobody meets\n%s", exit, out)
	}
}

func TestExecEndsAtAGateThatNobodyCanOpen(t *testing.T) {
	real(t)
	a := newAuthor(t)
	env, _ := leavesNothing(t)
	const shell = `import "github.com/maestro-cd/maestro/plugins/shell"`
	for file, task := range map[string]string{
		"compositions/goodbye/goodbye.cue": `ask: maestro.#Approval & {fields: {message: "go?", approvers: ["ops"]}}`,
		helloFile:                          `call: maestro.#Run & {fields: composition: "goodbye"}`,
	} {
		a.edit(file, shell, shell+"\nimport \"github.com/maestro-cd/maestro\"")
		a.edit(file, "tasks:", "tasks: "+task+"\n\ttasks:")
	}
	a.edit("compositions/goodbye/goodbye.cue", "compositions:", "policy: groups: ops: [\"alice\"]\ncompositions:")
	for _, name := range []string{"goodbye", "hello"} {
		out, exit := testkit.RunIn(t, a.Work, env, "reconciler", "exec", name)
		if exit != 4 || !strings.Contains(out, "gate goodbye/ask") || strings.Contains(out, "web:") {
			t.Errorf("exec %s: exit %d, want 4, the gate, and no address that is gone\n%s", name, exit, out)
		}
	}
}

// A task runs as its agent's user and can read the environment of the processes that
// it comes from.
func TestAgentOfExecHasNoSecrets(t *testing.T) {
	real(t)
	const canary = "canary-ancestor-3d5f7a9b1c"
	a := newAuthor(t)
	env, _ := leavesNothing(t)
	a.edit(helloFile, "echo hello", "for p in /proc/[0-9]*; do case $(readlink $p/exe) in */agentd) echo seen; tr '\\\\0' ' ' < $p/environ;; esac; done")
	out, exit := testkit.RunIn(t, a.Work, append(env, "DEPLOY_TOKEN="+canary), "reconciler", "exec", "hello")
	if exit != 0 || !strings.Contains(out, "seen") || strings.Contains(out, "DEPLOY_TOKEN") {
		t.Errorf("exit %d, want 0 and agents without the variable\n%s", exit, out)
	}
}

func TestInterruptedExecLeavesNoProcess(t *testing.T) {
	real(t)
	a := newAuthor(t)
	env, _ := leavesNothing(t)
	mark := filepath.Join(t.TempDir(), "pid")
	a.edit(helloFile, "echo hello", fmt.Sprintf("echo $$ > %s; sleep 600", mark))
	p := testkit.StartShell(t, "exec", a.Work, env, "exec "+filepath.Join(testkit.Programs(t), "reconciler")+" exec hello")
	var pid string
	testkit.Eventually(t, "the task runs", func() (bool, string) {
		b, err := os.ReadFile(mark)
		pid = strings.TrimSpace(string(b))
		return err == nil && pid != "", p.Said()
	})
	if err := p.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "exec ends", func() (bool, string) { return p.Ended(), p.Said() })
	if code := p.Stop(); code != 130 {
		t.Errorf("exit %d, want 130", code)
	}
	if _, err := os.Stat("/proc/" + pid); err == nil {
		t.Errorf("the task's process %s goes on", pid)
	}
}
