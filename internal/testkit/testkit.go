// Package testkit runs the two programs for tests as people run them: built once,
// started as processes on real sockets, with real Git repositories. It is for
// tests only, and knows of the programs no more than a user does: their command
// lines, their API and Git.
package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// patience is how long a test waits for something that happens within a second on
// an idle machine. It only bounds how long a failure takes.
const patience = time.Minute

var build struct {
	once sync.Once
	dir  string
	err  error
}

// Programs builds reconciler and agentd once for all tests of the process, with
// the race detector when the test has it, and returns their folder.
func Programs(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		root, err := moduleRoot()
		if err != nil {
			build.err = err
			return
		}
		if build.dir, err = os.MkdirTemp("", "maestro-test-programs-"); err != nil {
			build.err = err
			return
		}
		args := []string{"build", "-o", build.dir + string(os.PathSeparator)}
		if raceEnabled {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, "./reconciler", "./agentd")...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("build the programs: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return build.dir
}

// RemovePrograms deletes what Programs built; TestMain calls it at the end.
func RemovePrograms() {
	if build.dir != "" {
		_ = os.RemoveAll(build.dir)
	}
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, statErr := os.Stat(filepath.Join(dir, "go.mod")); statErr == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above %s", dir)
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// Run runs one of the programs to its end and returns what it printed and its exit code.
func Run(t testing.TB, program string, args ...string) (out string, exit int) {
	t.Helper()
	return RunIn(t, "", nil, program, args...)
}

// RunIn is Run in a folder, with more environment.
func RunIn(t testing.TB, dir string, env []string, program string, args ...string) (out string, exit int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(Programs(t), program), args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	b, err := cmd.CombinedOutput()
	if exitErr := new(exec.ExitError); err != nil && !asExit(err, &exitErr) {
		t.Fatalf("%s %v: %v", program, args, err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

func asExit(err error, target **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*target = e
	return ok
}

// Eventually waits until ok, looking often; it fails the test with what and the
// last reason when patience runs out.
func Eventually(t testing.TB, what string, ok func() (done bool, why string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		done, why := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s; last: %s", what, patience, why)
		}
		<-tick.C
	}
}

// ShortDir is t.TempDir with a short path: a Unix socket's path has little room.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
