package testkit_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// good is a composition that must run whatever is wrong beside it.
func good() map[string]string { return testkit.Shell("good", "echo fine", "") }

func composition(name, body string) map[string]string {
	return map[string]string{"compositions/" + name + "/" + name + ".cue": body}
}

func TestBrokenConfigurationIsBlamedAndTheRestRuns(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	first := repo.Push("main", testkit.Files(testkit.Ops(), good()))
	s.AwaitRuns(t, first, 1)
	const header = "package ops\n\nimport \"github.com/maestro-cd/maestro/plugins/shell\"\n\n"
	for _, tc := range []struct{ name, body, want string }{
		{"parse", "package ops\n\ncompositions: {", "compositions/parse/parse.cue:"},
		{"type", header + "compositions: type: {tasks: a: shell.#Run & {fields: script: 3}, triggers: [{push: {}}]}\n", "compositions/type/type.cue:5:"},
		{"plugin", "package ops\n\nimport \"example.com/ops/plugins/nope\"\n\ncompositions: plugin: tasks: a: nope.#X & {}\n", "plugins/nope"},
		{"cycle", header + "compositions: cycle: tasks: {\n\ta: shell.#Run & {needs: [\"b\"], fields: script: \"true\"}\n\tb: shell.#Run & {needs: [\"a\"], fields: script: \"true\"}\n}\n", "wait for each other"},
		{"endless", "package ops\n\nlet l = [for i in list.Range(0, 3000, 1) {i}]\nimport \"list\"\n", "compositions/endless/endless.cue:"},
	} {
		commit := repo.Push("main", composition(tc.name, tc.body))
		status := repo.AwaitStatus(commit, "maestro", "failure")
		if !strings.Contains(status.Description, tc.want) {
			t.Errorf("%s: status says %q, want %q in it", tc.name, status.Description, tc.want)
		}
		for _, r := range s.AwaitRuns(t, commit, 1) {
			if r.Composition != "good" || r.State != pipeline.Success {
				t.Errorf("%s: run %s is %s", tc.name, r.Composition, r.State)
			}
		}
		var board struct {
			Repository struct{ Live pipeline.CommitID }
		}
		if err := s.Get("/board", &board); err != nil || board.Repository.Live != first {
			t.Errorf("%s: live is %s, want the last good %s (%v)", tc.name, board.Repository.Live.Short(), first.Short(), err)
		}
		repo.Write(map[string]string{"compositions/" + tc.name: ""})
	}
}

func TestEvaluationThatNeverEndsIsStopped(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	body := "package ops\n\nimport \"list\"\n\n_l: list.Range(0, 1000, 1)\ncompositions: bomb: description: \"\\(len([for a in _l for b in _l for c in _l if a*b*c == -1 {a}]))\"\n"
	commit := repo.Push("main", testkit.Files(testkit.Ops(), good(), composition("bomb", body)))
	status := repo.AwaitStatus(commit, "maestro", "failure")
	if !strings.Contains(status.Description, "compositions/bomb") {
		t.Errorf("status says %q", status.Description)
	}
	if runs := s.AwaitRuns(t, commit, 1); runs[0].State != pipeline.Success {
		t.Errorf("the good composition is %s", runs[0].State)
	}
}

func TestRepositoriesThatCannotBeReadSaySo(t *testing.T) {
	real(t)
	dir := t.TempDir()
	empty := testkit.NewRepo(t)
	notGit := filepath.Join(dir, "folder")
	if err := os.Mkdir(notGit, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ repo, want string }{
		{filepath.Join(dir, "missing"), "missing"},
		{notGit, "not a Git repository"},
	} {
		out, exit := testkit.Run(t, "reconciler", "serve", "--repo", tc.repo, "--data", testkit.ShortDir(t), "--listen", "127.0.0.1:0", "--intake", "127.0.0.1:0")
		if exit != 2 || !strings.Contains(out, tc.want) {
			t.Errorf("serve on %s: exit %d, %s", tc.repo, exit, out)
		}
	}
	s := testkit.Serve(t, empty.Bare, nil)
	testkit.Eventually(t, "the empty repository is named as such", func() (bool, string) {
		var b struct{ Repository struct{ Problem string } }
		err := s.Get("/board", &b)
		return strings.Contains(b.Repository.Problem, "main"), fmt.Sprint(b, err)
	})
	commit := empty.Push("main", map[string]string{"README": "no ops.cue here"})
	if st := empty.AwaitStatus(commit, "maestro", "failure"); !strings.Contains(st.Description, "the repository has no") {
		t.Errorf("status says %q", st.Description)
	}
}

func TestJoinTokenIsGoodOnce(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	token := s.Invite(t, "default")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	first := s.StartAgentWith(t, "first", file)
	s.AwaitAgent(t, "first")
	out, exit := testkit.Run(t, "agentd", "--server", s.Intake, "--data", testkit.ShortDir(t), "--name", "second", "--token-file", file)
	if exit == 0 || !strings.Contains(out, "token") {
		t.Errorf("second use: exit %d, %s", exit, out)
	}
	if first.Ended() {
		t.Error("the first agent ended")
	}
	out, exit = testkit.Run(t, "agentd", "--server", s.Intake, "--data", testkit.ShortDir(t), "--token", "no-such-token")
	if exit == 0 || !strings.Contains(out, "token") {
		t.Errorf("unknown token: exit %d, %s", exit, out)
	}
}

// plugin is a plugin of the repository with one task that has no fields.
func plugin(name, program, outputs string) map[string]string {
	return map[string]string{"plugins/" + name + "/plugin.cue": fmt.Sprintf(`package %s

import "github.com/maestro-cd/maestro"

manifest: maestro.#Plugin & {
	description: "for a test"
	programs: [%s]
}

#Do: maestro.#Task & {
	uses: "%s/do"
	fields: {}
	outputs: {%s}
}
`, name, program, name, outputs)}
}

func uses(name string) map[string]string {
	return composition("use-"+name, fmt.Sprintf(`package ops

import "example.com/ops/plugins/%s"

compositions: "use-%s": {
	tasks: work: %s.#Do & {}
	triggers: [{push: {}}]
}
`, name, name, name))
}

func archive(t *testing.T, files map[string]string) (data []byte, sum string) {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(text)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(buf.Bytes())
	return buf.Bytes(), hex.EncodeToString(h[:])
}

func TestPluginsThatAreNotWhatTheManifestSaysDoNotRun(t *testing.T) {
	real(t)
	fine, fineSum := archive(t, map[string]string{"bin/do": "#!/bin/sh\necho ran from an archive\n"})
	evil, evilSum := archive(t, map[string]string{"../../escaped": "gotcha", "bin/do": "#!/bin/sh\necho evil ran\n"})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/fine.tar.gz", "/wrong.tar.gz":
			_, _ = w.Write(fine)
		case "/evil.tar.gz":
			_, _ = w.Write(evil)
		}
	}))
	t.Cleanup(web.Close)
	program := func(file, sum string) string {
		return fmt.Sprintf("{argv: [\"./bin/do\"], url: %q, sha256: %q}", web.URL+"/"+file, sum)
	}
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	a := s.StartAgent(t, "one", "default", "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(),
		plugin("fine", program("fine.tar.gz", fineSum), ""), uses("fine"),
		plugin("wrong", program("wrong.tar.gz", strings.Repeat("ab", 32)), ""), uses("wrong"),
		plugin("evil", program("evil.tar.gz", evilSum), ""), uses("evil"),
		plugin("absent", `{argv: ["./not-there"]}`, ""), uses("absent"),
	))
	want := map[pipeline.CompositionName]struct {
		state pipeline.State
		why   string
	}{
		"use-fine":  {pipeline.Success, ""},
		"use-wrong": {pipeline.Error, "abab"},
		"use-evil":  {pipeline.Error, "escaped"},
	}
	for _, r := range s.AwaitRuns(t, commit, len(want)) {
		w := want[r.Composition]
		if r.State != w.state || !strings.Contains(r.Task("work").Reason, w.why) {
			t.Errorf("%s is %s (%s), want %s with %q", r.Composition, r.State, r.Task("work").Reason, w.state, w.why)
		}
	}
	// What is not in the repository is found before anything runs.
	var answer struct{ Verdicts []pipeline.Verdict }
	if err := s.Get("/commits/"+string(commit), &answer); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(answer.Verdicts, func(v pipeline.Verdict) bool {
		return v.Outcome == pipeline.VerdictRejected && strings.Contains(v.Sentence, "has no file ./not-there")
	}) {
		t.Errorf("verdicts = %+v", answer.Verdicts)
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(a.Dir), "escaped")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file escaped from the agent's folder: %v", err)
	}
	err := filepath.WalkDir(a.Dir, func(path string, _ fs.DirEntry, err error) error {
		if filepath.Base(path) == "escaped" {
			t.Errorf("a file escaped: %s", path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the agent cleans up
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestTaskThatNoAgentCanTakeSaysSo(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(),
		plugin("elsewhere", `{os: "plan9", argv: ["./do"]}`, ""), map[string]string{"plugins/elsewhere/do": "#!/bin/rc\n"}, uses("elsewhere"),
		testkit.Shell("picky", "true", `agent: facts: role: "oracle"`)))
	s.AwaitTask(t, commit, "picky", "work", pipeline.Ready)
	for composition, want := range map[string]string{"use-elsewhere": "plan9", "picky": "role"} {
		out, exit := testkit.Run(t, "reconciler", "why", "--server", s.Web, composition)
		if exit != 0 || !strings.Contains(out, "blocked") || !strings.Contains(out, want) {
			t.Errorf("why %s: exit %d, %s", composition, exit, out)
		}
	}
}

func TestOutputsAreHeldToTheManifest(t *testing.T) {
	real(t)
	emit := func(line string) map[string]string {
		return map[string]string{"plugins/out/do": "#!/bin/sh\n" + line + "\n"}
	}
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	base := testkit.Files(testkit.Ops(), plugin("out", `{argv: ["./do"]}`, "count: int, name: string"), uses("out"))
	for _, tc := range []struct {
		name, program string
		state         pipeline.State
		why           string
	}{
		{"right", `"$MAESTRO_AGENTD" emit output-json count 3; "$MAESTRO_AGENTD" emit output name x`, pipeline.Success, ""},
		{"wrong type", `"$MAESTRO_AGENTD" emit output count three; "$MAESTRO_AGENTD" emit output name x`, pipeline.Error, "count"},
		{"missing", `"$MAESTRO_AGENTD" emit output-json count 3`, pipeline.Error, "name"},
		{"unknown", `"$MAESTRO_AGENTD" emit output-json count 3; "$MAESTRO_AGENTD" emit output name x; "$MAESTRO_AGENTD" emit output more x`, pipeline.Error, "more"},
		{"not JSON", `echo '{"output":' >> "$MAESTRO_EVENTS"`, pipeline.Error, "line 1"},
		{"too large", `v=$(head -c 140000 /dev/zero | tr '\0' x); printf '{"output":{"name":"name","value":"%s"}}\n' "$v" >> "$MAESTRO_EVENTS"; "$MAESTRO_AGENTD" emit output-json count 3`, pipeline.Error, "131072"},
		{"a link to a file", `rm -f "$MAESTRO_EVENTS"; ln -s /etc/passwd "$MAESTRO_EVENTS"`, pipeline.Error, ""},
	} {
		commit := repo.Push("main", testkit.Files(base, emit(tc.program)))
		r := s.AwaitRuns(t, commit, 1)[0]
		if got := r.Task("work"); r.State != tc.state || !strings.Contains(got.Reason, tc.why) {
			t.Errorf("%s: %s (%s), want %s with %q", tc.name, r.State, got.Reason, tc.state, tc.why)
		}
	}
}

func TestUnrulyTasksAreContained(t *testing.T) {
	real(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	s.StartAgent(t, "two", "default", "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(),
		testkit.Shell("binary", `head -c 100000 /dev/urandom`, ""),
		testkit.Shell("long-line", `head -c 50000000 /dev/zero | tr '\0' x`, ""),
		testkit.Shell("stubborn", `trap '' TERM; while :; do sleep 1; done`, `timeout: "1s"`),
		testkit.Shell("litter", fmt.Sprintf(`setsid sh -c 'trap "" TERM HUP; echo $$ > %s; while :; do sleep 1; done' & while [ ! -s %s ]; do sleep 0.05; done`, pidFile, pidFile), ""),
		testkit.Shell("failing", `echo oh no; exit 7`, ""),
	))
	want := map[pipeline.CompositionName]pipeline.State{
		"binary": pipeline.Success, "long-line": pipeline.Success, "stubborn": pipeline.Timeout,
		"litter": pipeline.Success, "failing": pipeline.Failure,
	}
	for _, r := range s.AwaitRuns(t, commit, len(want)) {
		work := r.Task("work")
		if r.State != want[r.Composition] {
			t.Errorf("%s is %s: %s", r.Composition, r.State, work.Reason)
		}
		switch r.Composition {
		case "binary":
			if n := len(s.Log(t, work.Attempt)); n != 100000 {
				t.Errorf("binary log has %d bytes", n)
			}
		case "long-line":
			if n := len(s.Log(t, work.Attempt)); n != 50000000 {
				t.Errorf("long line has %d bytes", n)
			}
		case "failing":
			if work.Exit == nil || *work.Exit != 7 || !strings.Contains(work.Reason, "7") {
				t.Errorf("failing says %q, exit %v", work.Reason, work.Exit)
			}
		}
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(b))
	testkit.Eventually(t, "what the task left behind is gone", func() (bool, string) {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z "), string(stat)
	})
}

func TestSecondReconcilerIsRefused(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	out, exit := testkit.Run(t, "reconciler", "serve", "--repo", repo.Bare, "--data", s.Data, "--listen", "127.0.0.1:0", "--intake", "127.0.0.1:0")
	if exit != 2 || !strings.Contains(out, fmt.Sprint(s.PID())) {
		t.Errorf("exit %d, %s; want the process %d named", exit, out, s.PID())
	}
	// The refused one must not have taken the running one's socket.
	s.Invite(t, "default")
}

func TestPortInUseIsNamed(t *testing.T) {
	real(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	repo := testkit.NewRepo(t)
	out, exit := testkit.Run(t, "reconciler", "serve", "--repo", repo.Bare, "--data", testkit.ShortDir(t), "--listen", ln.Addr().String(), "--intake", "127.0.0.1:0")
	if exit != 2 || !strings.Contains(out, ln.Addr().String()) || !strings.Contains(out, "--listen") {
		t.Errorf("exit %d, %s", exit, out)
	}
}

func TestRecordOfANewerVersionIsLeftAlone(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	if code := s.Stop(); code != 0 {
		t.Errorf("stop: exit %d\n%s", code, s.Said())
	}
	db := filepath.Join(s.Data, "maestro.db")
	if out, err := exec.Command("sqlite3", db, "INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)").CombinedOutput(); err != nil {
		t.Fatalf("sqlite3: %v: %s", err, out)
	}
	out, exit := testkit.Run(t, "reconciler", "serve", "--repo", repo.Bare, "--data", s.Data, "--listen", "127.0.0.1:0", "--intake", "127.0.0.1:0")
	if exit != 2 || !strings.Contains(out, "newer") {
		t.Errorf("exit %d, %s", exit, out)
	}
}

func TestFullDiskLosesNothingAndRecovers(t *testing.T) {
	real(t)
	if os.Getuid() != 0 {
		t.Skip("mounts a small file system, which only root may")
	}
	data := testkit.ShortDir(t)
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", data).CombinedOutput(); err != nil {
		t.Skipf("no small file system here: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", data).Run() })
	repo := testkit.NewRepo(t)
	s := testkit.ServeIn(t, data, repo.Bare, nil, "--low-water", "1KiB") // so that it is met at all
	t.Cleanup(s.Kill)
	s.StartAgent(t, "one", "default", "")
	gate := filepath.Join(t.TempDir(), "gate")
	commit := repo.Push("main", testkit.Files(testkit.Ops(),
		testkit.Shell("slow", fmt.Sprintf("while [ ! -e %s ]; do sleep 0.1; done; echo done", gate), "")))
	s.AwaitTask(t, commit, "slow", "work", pipeline.Running)
	ballast := filepath.Join(data, "ballast")
	fill := exec.Command("dd", "if=/dev/zero", "of="+ballast, "bs=64k")
	_ = fill.Run() // ends with "no space left"
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the reconciler notices", func() (bool, string) {
		return strings.Contains(s.Said(), "full") || strings.Contains(s.Said(), "no space") || s.Ended(), s.Said()
	})
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if s.Ended() {
		t.Fatalf("the reconciler ended:\n%s", s.Said())
	}
	r := s.AwaitRuns(t, commit, 1)[0]
	if r.State != pipeline.Success || s.Log(t, r.Task("work").Attempt) != "done\n" {
		t.Errorf("run is %s (%s), log %q", r.State, r.Reason, s.Log(t, r.Task("work").Attempt))
	}
}
