package testkit_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/testkit"
)

// TestCommandsOfTheOperatorsManualWork runs what docs/operations.md shows, in the places
// of a test: all that is marked as to be run, and the restore.
func TestCommandsOfTheOperatorsManualWork(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	files := map[string]string{}
	var run, all []string
	for _, m := range blockRE.FindAllStringSubmatch(document(t, "docs/operations.md"), -1) {
		switch {
		case m[1] == "sh" && m[2] == "run":
			run = append(run, m[3])
		case m[1] == "cue":
			files[m[2]] = m[3]
		}
		all = append(all, m[3])
	}
	if len(run) < 5 || len(files) != 1 {
		t.Fatalf("the manual has %d scripts to run and %d files", len(run), len(files))
	}
	ops := testkit.Ops()
	ops["ops.cue"] += "policy: maestro.#Policy\n"
	commit := repo.Push("main", testkit.Files(ops, files, testkit.Shell("hello", "echo hello", "")))
	s.AwaitRuns(t, commit, 1)

	here := strings.NewReplacer("sudo -u maestro ", "", "/var/lib/maestro", s.Data, "/srv/ops.git", repo.Bare)
	env := []string{"RECONCILER_SERVER=" + s.Web, "PATH=" + testkit.Programs(t) + ":/usr/bin:/bin"}
	script := func(text string) string {
		t.Helper()
		out, exit := testkit.RunShell(t, "", env, here.Replace(text))
		if exit != 0 {
			t.Errorf("exit %d of\n%s\n%s", exit, text, out)
		}
		return out
	}
	said := ""
	for _, text := range run {
		said += script(text)
	}
	for _, want := range []string{"one", "0 problems", "would remove 0 runs", "keeps runs for 4320h0m0s and 500", "To put it back: reconciler restore"} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing says %q in\n%s", want, said)
		}
	}
	backups, err := filepath.Glob(filepath.Join(s.Data, "backups", "*"))
	if err != nil || len(backups) != 1 {
		t.Fatal(backups, err)
	}
	restore := ""
	for _, text := range all {
		if strings.Contains(text, " restore ") {
			restore = text
		}
	}
	restore = strings.NewReplacer("systemctl stop reconciler\n", "", "systemctl start reconciler\n", "", "BACKUP", filepath.Base(backups[0])).Replace(restore)
	s.Stop()
	if out := script(restore); !strings.Contains(out, "incarnation 2") {
		t.Errorf("got %s", out)
	}
	s.Restart(t)
	s.AwaitRuns(t, commit, 1)
}
