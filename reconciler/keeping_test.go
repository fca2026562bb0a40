package main_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// notices are what the server says of itself.
func notices(t *testing.T, s *testkit.Server) string {
	t.Helper()
	var board struct{ Notices []string }
	if err := s.Get("/board", &board); err != nil {
		t.Fatal(err)
	}
	return strings.Join(board.Notices, "\n")
}

func again(files map[string]string, comment string) map[string]string {
	out := testkit.Files(files)
	for name := range out {
		if strings.HasPrefix(name, "compositions/") {
			out[name] += "\n// " + comment + "\n"
		}
	}
	return out
}

func TestBackupOfARunningServerIsRestored(t *testing.T) {
	real(t)
	s, repo, first := helloServer(t)
	out := says(t, s, 0, []string{"backup", "--data", s.Data, "--json"}, `"path"`)
	var made struct {
		Path string
		Runs int
	}
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Runs != 1 || filepath.Dir(made.Path) != filepath.Join(s.Data, "backups") {
		t.Fatalf("got %s, %v", out, err)
	}
	says(t, s, 0, []string{"fsck", "--data", made.Path}, "1 run", "0 problems")
	second := repo.Push("main", again(testkit.Shell("hello", "echo hello", ""), "again"))
	s.AwaitRuns(t, second, 1)
	says(t, s, 2, []string{"restore", made.Path, "--data", s.Data}, "is locked by process")
	s.Stop()
	says(t, s, 0, []string{"restore", made.Path, "--data", s.Data}, "1 run up to change", "incarnation 2", "before-restore-")
	s.Restart(t)
	if runs, err := s.Runs(first); len(runs) != 1 || err != nil || runs[0].State != pipeline.Success {
		t.Errorf("after the restore: %v, %v", runs, err)
	}
	// The commit that came after the backup is new to the record, and runs.
	s.AwaitRuns(t, second, 1)
	says(t, s, 0, []string{"fsck", "--data", s.Data}, "2 runs", "incarnation 2", "0 problems")
	if said := notices(t, s); said != "" {
		t.Errorf("after a restore that says so: %s", said)
	}
}

// TestResultThatABackupLacksIsToldAgain: the record is put back to the middle of a task
// that has ended since. What really happened is in it again, and nothing happens twice.
func TestResultThatABackupLacksIsToldAgain(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	a := s.StartAgent(t, "one", "default", "")
	dir := t.TempDir()
	gate, effects := filepath.Join(dir, "go"), filepath.Join(dir, "effects")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("long",
		"echo begun; while [ ! -e "+gate+" ]; do sleep 0.05; done; echo done >> "+effects+"; echo ended; exit 3", "")))
	run := s.AwaitTask(t, commit, "long", "work", pipeline.Running)
	testkit.Eventually(t, "the log begins", func() (bool, string) {
		log := s.Log(t, run.Tasks[0].Attempt)
		return log == "begun\n", log
	})
	var made struct{ Path string }
	if err := json.Unmarshal([]byte(says(t, s, 0, []string{"backup", "--data", s.Data, "--json"})), &made); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.AwaitRuns(t, commit, 1)
	testkit.Eventually(t, "the agent forgets the log", func() (bool, string) {
		left, err := os.ReadDir(filepath.Join(a.Dir, "attempts"))
		return err == nil && len(left) == 0, fmt.Sprint(left, err)
	})
	s.Kill()
	a.Kill()
	says(t, s, 0, []string{"restore", made.Path, "--data", s.Data}, "incarnation 2")
	s.Start(t)
	a.Restart(t)
	task := s.AwaitRuns(t, commit, 1)[0].Tasks[0]
	if task.State != pipeline.Failure || task.Epoch != 1 || task.Attempt != run.Tasks[0].Attempt || *task.Exit != 3 ||
		!strings.Contains(task.Reason, "the last 6 bytes of its log were lost") {
		t.Errorf("after the restore: %s: %s; %+v", task.State, task.Reason, task)
	}
	if b, err := os.ReadFile(effects); string(b) != "done\n" || err != nil {
		t.Errorf("it took effect so often: %q, %v", b, err)
	}
	if log := s.Log(t, task.Attempt); log != "begun\n" {
		t.Errorf("log = %q", log)
	}
	says(t, s, 0, []string{"fsck", "--data", s.Data}, "incarnation 2", "0 problems")
}

func TestBackupOfAStoppedServer(t *testing.T) {
	real(t)
	s, _, _ := helloServer(t)
	s.Stop()
	to := filepath.Join(t.TempDir(), "kept")
	says(t, s, 0, []string{"backup", "--data", s.Data, "--to", to}, to, "copy maestro.db", "To put it back: reconciler restore "+to)
	list, err := filepath.Glob(filepath.Join(to, "*", "backup.json"))
	if len(list) != 1 || err != nil {
		t.Fatal(list, err)
	}
	elsewhere := filepath.Join(t.TempDir(), "data")
	says(t, s, 0, []string{"restore", filepath.Dir(list[0]), "--data", elsewhere, "--json"}, `"incarnation": 2`)
	says(t, s, 0, []string{"fsck", "--data", elsewhere, "--json"}, `"findings": []`)
	says(t, s, 2, []string{"restore", to, "--data", elsewhere}, "is no backup")
}

func TestServerMakesBackupsByItself(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil, "--backup-every", "1s", "--backup-keep", "2")
	s.StartAgent(t, "one", "default", "")
	says(t, s, 0, []string{"backup", "--data", s.Data})
	all := func() []string {
		list, err := filepath.Glob(filepath.Join(s.Data, "backups", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	asked := ""
	for _, dir := range all() {
		if b, err := os.ReadFile(filepath.Join(dir, "backup.json")); err == nil && strings.Contains(string(b), `"why": "request"`) {
			asked = dir
		}
	}
	for i := range 4 {
		before := strings.Join(all(), " ")
		commit := repo.Push("main", testkit.Files(testkit.Ops(), again(testkit.Shell("hello", "echo hello", ""), strings.Repeat("x", i))))
		s.AwaitRuns(t, commit, 1)
		testkit.Eventually(t, "another backup", func() (bool, string) { now := strings.Join(all(), " "); return now != before, now })
	}
	testkit.Eventually(t, "old ones are gone", func() (bool, string) {
		now := all()
		return len(now) == 3, strings.Join(now, " ")
	})
	if now := all(); !slices.Contains(now, asked) {
		t.Errorf("the one that a person asked for, %q, is gone: %v", asked, now)
	}
	says(t, s, 0, words("check --repo "+repo.Bare+" --data "+s.Data+" --server "+s.Web), "3 backups in")
	// Packed logs are in a file that the next ones share, and come back from there.
	says(t, s, 0, []string{"gc", "--data", s.Data}, "packed ")
	commit := repo.Push("main", again(testkit.Shell("hello", "echo hello", ""), "packed"))
	attempt := s.AwaitRuns(t, commit, 1)[0].Tasks[0].Attempt
	newest := func() string { list := all(); return list[len(list)-1] }
	testkit.Eventually(t, "a backup of that run with packed logs", func() (bool, string) {
		out, _ := testkit.Run(t, "reconciler", "fsck", "--data", newest())
		list, _ := filepath.Glob(filepath.Join(newest(), "logs-*.db"))
		return len(list) > 0 && strings.Contains(out, "5 runs, 5 logs"), fmt.Sprint(list, out)
	})
	s.Kill() // so that no backup goes
	says(t, s, 0, []string{"fsck", "--data", newest()}, "5 runs, 5 logs", "0 problems")
	says(t, s, 0, []string{"restore", newest(), "--data", s.Data}, "5 runs")
	s.Restart(t)
	if log := s.Log(t, attempt); log != "hello\n" {
		t.Errorf("after the restore the log is %q", log)
	}
	says(t, s, 0, []string{"fsck", "--data", s.Data}, "5 logs", "0 problems")
	if said := notices(t, s); said != "" {
		t.Error(said)
	}
}

func TestFsckOfABrokenRecordSaysWhatAndExits1(t *testing.T) {
	real(t)
	s, _, _ := helloServer(t)
	says(t, s, 0, []string{"fsck", "--data", s.Data}, "1 run", "0 problems") // while it runs
	s.Stop()
	db := filepath.Join(s.Data, "maestro.db")
	b, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	for i := 4096; i < len(b); i += 4096 {
		copy(b[i:], strings.Repeat("\xff", 100))
	}
	if err := os.WriteFile(db, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Spoilt = true
	says(t, s, 1, []string{"fsck", "--data", s.Data}, "✗ file", "reconciler restore")
	says(t, s, 2, []string{"fsck", "--data", t.TempDir()}, "is not there")
}

func TestOldRecordPutInPlaceGivesNobodyWork(t *testing.T) {
	real(t)
	s, repo, _ := helloServer(t)
	kept := t.TempDir()
	s.Stop()
	copyFile(t, filepath.Join(s.Data, "maestro.db"), filepath.Join(kept, "maestro.db"))
	s.Restart(t)
	s.AwaitAgent(t, "one")
	second := repo.Push("main", again(testkit.Shell("hello", "echo hello", ""), "again"))
	s.AwaitRuns(t, second, 1)
	s.Stop()
	copyFile(t, filepath.Join(kept, "maestro.db"), filepath.Join(s.Data, "maestro.db"))
	s.Restart(t)
	// The commit is seen again, its run is made, and waits for a person.
	run := s.AwaitTask(t, second, "hello", "work", pipeline.Ready)
	if said := notices(t, s); !strings.Contains(said, "older than it was") || !strings.Contains(said, "--accept-rollback") {
		t.Errorf("the server says %q", said)
	}
	says(t, s, 0, words("why hello#2"), "--accept-rollback")
	says(t, s, 1, []string{"fsck", "--data", s.Data}, "rollback", "--accept-rollback")
	if now, err := s.Runs(second); err != nil || now[0].Tasks[0].State != pipeline.Ready || now[0].ID != run.ID {
		t.Errorf("got %v, %v", now, err)
	}
	says(t, s, 0, []string{"fsck", "--data", s.Data, "--accept-rollback"}, "incarnation 2")
	s.AwaitRuns(t, second, 1)
	if said := notices(t, s); said != "" {
		t.Errorf("after it was accepted: %q", said)
	}
	says(t, s, 0, []string{"fsck", "--data", s.Data}, "0 problems")
	says(t, s, 2, []string{"fsck", "--data", s.Data, "--accept-rollback"}, "nothing to accept")
}

// TestAgentTellsOfAnOldRecordInANewFolder: only agents can know, when the whole folder
// is an old one. What they hold meanwhile is kept.
func TestAgentTellsOfAnOldRecordInANewFolder(t *testing.T) {
	real(t)
	s, repo, _ := helloServer(t)
	s.Stop()
	kept := t.TempDir()
	for _, name := range []string{"maestro.db", "logs.db"} {
		copyFile(t, filepath.Join(s.Data, name), filepath.Join(kept, name))
	}
	s.Restart(t)
	s.AwaitAgent(t, "one")
	gate := filepath.Join(t.TempDir(), "go")
	second := repo.Push("main", testkit.Shell("long", "echo begun; while [ ! -e "+gate+" ]; do sleep 0.1; done; echo ended", ""))
	s.AwaitTask(t, second, "long", "work", pipeline.Running)
	// The agent has heard a heartbeat since, or it hears of it in the next welcome.
	s.Stop()
	s.Restart(t)
	s.AwaitAgent(t, "one")
	s.Stop()
	if err := os.Remove(filepath.Join(s.Data, "watermark.json")); err != nil {
		t.Fatal(err)
	}
	later := t.TempDir()
	for _, name := range []string{"maestro.db", "logs.db"} {
		copyFile(t, filepath.Join(s.Data, name), filepath.Join(later, name))
		copyFile(t, filepath.Join(kept, name), filepath.Join(s.Data, name))
	}
	s.Restart(t)
	testkit.Eventually(t, "the agent tells", func() (bool, string) {
		said := notices(t, s)
		return strings.Contains(said, "agent one knows it at change"), said
	})
	var agents struct{ Agents []struct{ Online bool } }
	if err := s.Get("/agents", &agents); err != nil || len(agents.Agents) != 1 || agents.Agents[0].Online {
		t.Errorf("got %+v, %v: a record that does not know its work must not hear of it", agents, err)
	}
	// It was a mistake: with the newer files back the task goes on where it was.
	s.Stop()
	for _, name := range []string{"maestro.db", "logs.db"} {
		copyFile(t, filepath.Join(later, name), filepath.Join(s.Data, name))
	}
	s.Restart(t)
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the task ends", func() (bool, string) {
		runs, err := s.Runs(second)
		for _, r := range runs {
			if r.Composition == "long" {
				return r.State == pipeline.Success && r.Tasks[0].Epoch == 1, string(r.State) + ": " + r.Reason
			}
		}
		return false, fmt.Sprint(runs, err)
	})
}

func TestDamagedRecordIsRefusedWithTheWayBack(t *testing.T) {
	real(t)
	for name, damage := range map[string]func([]byte) []byte{
		"cut":     func(b []byte) []byte { return b[:len(b)/2] },
		"garbled": func(b []byte) []byte { copy(b[len(b)/4096/2*4096:], strings.Repeat("\xff", 4096)); return b },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, repo, commit := helloServer(t)
			says(t, s, 0, []string{"backup", "--data", s.Data})
			s.Stop()
			made, err := filepath.Glob(filepath.Join(s.Data, "backups", "*"))
			if err != nil || len(made) != 1 {
				t.Fatal(made, err)
			}
			db := filepath.Join(s.Data, "maestro.db")
			b, err := os.ReadFile(db)
			if err == nil {
				err = os.WriteFile(db, damage(b), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			restore := "reconciler restore " + made[0] + " --data " + s.Data
			out := says(t, s, 1, words("serve --repo "+repo.Bare+" --data "+s.Data+" --listen 127.0.0.1:0 --intake 127.0.0.1:0"), "is damaged", restore)
			// The command as it is printed, up to the next word of the sentence.
			at := strings.Index(out, restore)
			says(t, s, 0, words(strings.TrimPrefix(out[at:at+len(restore)], "reconciler ")), "incarnation 2")
			s.Restart(t)
			if runs, err := s.Runs(commit); len(runs) != 1 || err != nil {
				t.Errorf("got %v, %v", runs, err)
			}
		})
	}
}

func TestServerRemovesWhatThePolicyDoesNotKeep(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	ops := testkit.Ops()
	ops["ops.cue"] += "policy: maestro.#Policy & {keep: runs: count: 2}\n"
	var commits []pipeline.CommitID
	var first pipeline.Run
	for i := range 5 {
		commit := repo.Push("main", testkit.Files(ops, again(testkit.Shell("hello", "echo hello", ""), strings.Repeat("x", i))))
		runs := s.AwaitRuns(t, commit, 1)
		if i == 0 {
			first = runs[0]
		}
		commits = append(commits, commit)
	}
	attempt := first.Tasks[0].Attempt
	if log := s.Log(t, attempt); log != "hello\n" {
		t.Fatalf("got %q", log)
	}
	// A run may go once it was looked at for what follows from its end.
	testkit.Eventually(t, "a dry run names the runs", func() (bool, string) {
		out, _ := testkit.Run(t, "reconciler", "gc", "--dry-run", "--data", s.Data)
		return strings.Contains(out, "hello#1\nhello#2\nhello#3\nwould remove 3 runs"), out
	})
	if runs, err := s.Runs(commits[0]); len(runs) != 1 || err != nil {
		t.Errorf("the dry run removed something: %v, %v", runs, err)
	}
	says(t, s, 0, []string{"gc", "--data", s.Data}, "removed 3 runs and 3 logs", "2 of each composition", "packed 2 logs")
	for i, commit := range commits {
		want := 1
		if i < 3 {
			want = 0
		}
		if runs, err := s.Runs(commit); len(runs) != want || err != nil {
			t.Errorf("commit %d: got %d runs, %v", i, len(runs), err)
		}
	}
	says(t, s, 0, []string{"gc", "--data", s.Data}, "removed 0 runs")
	last, err := s.Runs(commits[4])
	if err != nil || len(last) != 1 {
		t.Fatal(last, err)
	}
	if log := s.Log(t, last[0].Tasks[0].Attempt); log != "hello\n" {
		t.Errorf("packed: got %q", log)
	}
	says(t, s, 0, []string{"fsck", "--data", s.Data}, "2 runs", "0 problems")
	// The same commit, seen again, starts nothing.
	s.Kill()
	s.Restart(t)
	s.AwaitAgent(t, "one")
	next := repo.Push("main", again(testkit.Shell("hello", "echo hello", ""), "last"))
	if runs := s.AwaitRuns(t, next, 1); runs[0].Number != 6 {
		t.Errorf("got number %d", runs[0].Number)
	}
	says(t, s, 0, []string{"runs"}, "hello#6")
}

// TestKilledWhileItRemovesLosesNothingThatIsKept kills the server at random instants of
// collections, while runs go on.
func TestKilledWhileItRemovesLosesNothingThatIsKept(t *testing.T) {
	real(t)
	const compositions, kept = 4, 1
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	files := testkit.Ops()
	files["ops.cue"] += fmt.Sprintf("policy: maestro.#Policy & {keep: runs: count: %d}\n", kept)
	for i := range compositions {
		files = testkit.Files(files, testkit.Shell(fmt.Sprint("c", i), "seq 5000", ""))
	}
	pushes := 0
	push := func() pipeline.CommitID {
		pushes++
		return repo.Push("main", again(files, strings.Repeat("x", pushes)))
	}
	s.AwaitRuns(t, push(), compositions)
	last := push()
	for range 3 {
		s.AwaitRuns(t, last, compositions)
		last = push() // which is under way meanwhile
		collect := exec.Command(filepath.Join(testkit.Programs(t), "reconciler"), "gc", "--data", s.Data)
		if err := collect.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(rand.N(200 * time.Millisecond))
		s.Kill()
		err := collect.Wait()
		t.Logf("before the kill it was done: %v", err == nil)
		s.Restart(t)
	}
	s.AwaitRuns(t, last, compositions)
	testkit.Eventually(t, "nothing is left to be removed", func() (bool, string) {
		out, _ := testkit.Run(t, "reconciler", "gc", "--data", s.Data)
		runs, logs := compositions*kept, compositions*kept
		checked, _ := testkit.Run(t, "reconciler", "fsck", "--data", s.Data)
		return strings.Contains(checked, fmt.Sprintf("%d runs, %d logs", runs, logs)), out + checked
	})
	var want strings.Builder
	for i := range 5000 {
		fmt.Fprintln(&want, i+1)
	}
	var all struct{ Runs []pipeline.Run }
	if err := s.Get("/runs?tasks=1&limit=200", &all); err != nil {
		t.Fatal(err)
	}
	for _, r := range all.Runs {
		if log := s.Log(t, r.Tasks[0].Attempt); r.State != pipeline.Success || log != want.String() {
			t.Errorf("%s#%d is %s: %s; its log has %d bytes, and %d were written", r.Composition, r.Number, r.State, r.Reason, len(log), want.Len())
		}
	}
	says(t, s, 0, []string{"fsck", "--data", s.Data}, "0 problems")
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
