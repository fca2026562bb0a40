package testkit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/sops"
	"github.com/maestro-cd/maestro/internal/testkit"
)

func TestSecretsReachTheirTaskAndNothingElse(t *testing.T) {
	real(t)
	const byEnv, byFile, sealed, public = "canary-env-5a7c9e1b3d", "canary-file-8f6d4b2a0c", "canary-sealed-2c4e6f8a1b", "marker-that-is-public"
	const unused = "canary-neighbour-7d5b3f1e9c"
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(byFile+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	private, to, err := sops.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(private), 0o600); err != nil {
		t.Fatal(err)
	}
	const encrypted = "secrets/all.sops.yaml"
	text, err := sops.Seal(encrypted, []byte("three: "+sealed+"\nfour: "+unused+"\n"), sops.How{Recipients: []string{to}})
	if err != nil {
		t.Fatal(err)
	}
	m := newMarks(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, []string{"CANARY=" + byEnv}, "--verbose", "--secrets-key-file", key)
	a := s.StartAgent(t, "one", "default", "")
	script := fmt.Sprintf(`printf '%%s %%s %%s' "$ONE" "$TWO" "$THREE" > %s
echo %s "plain $ONE $TWO $THREE"
for v in "$ONE" "$TWO" "$THREE"; do
	printf %%s "$v" | base64
	printf 'user:%%s' "$v" | base64
	printf 'us:%%s\n' "$v" | base64
	printf %%s "$v" | od -An -tx1 | tr -d ' \n'; echo
done
printf %%.9s "$ONE"; sleep 0.3; printf %%s\\n "${ONE#canary-en}"
"$MAESTRO_AGENTD" emit output leak "$ONE"
"$MAESTRO_AGENTD" emit text "working with $TWO"
"$MAESTRO_AGENTD" emit link Leak "https://example.com/?token=$ONE"
echo "$TWO" >&2
exit 3`, m, public)
	commit := repo.Push("main", testkit.Files(testkit.Ops(), map[string]string{encrypted: string(text), "secrets/all.cue": fmt.Sprintf(`package ops

secrets: {
	"by-env": from: env: "CANARY"
	"by-file": from: file: %q
	sealed: from: {sops: %q, key: "three"}
}
`, file, encrypted)}, workflow("open", fmt.Sprintf(`
tasks: {
	tell: shell.#Run & {
		fields: {
			script: %q
			env: {ONE: secret: "by-env", TWO: secret: "by-file", THREE: secret: "sealed"}
		}
		outputs: leak: string
		onFailure: "continue"
	}
	other: shell.#Run & {needs: ["tell"], fields: script: "env; cat /proc/$PPID/environ || true"}
}`, script))))
	r := s.AwaitRuns(t, commit, 1)[0]
	if got := states(&r); got != "tell:failure other:success" {
		t.Errorf("tasks are %s: %s", got, r.Task("tell").Reason)
	}
	if got := strings.Join(m.lines(t), " "); got != byEnv+" "+byFile+" "+sealed {
		t.Errorf("the task got %q", got)
	}
	log := s.Log(t, r.Task("tell").Attempt)
	if !strings.Contains(log, public) || strings.Contains(log, "canary-env-5") {
		t.Errorf("log is %q", log)
	}
	if limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", s.PID())); err == nil && !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(limits) {
		t.Errorf("a crash of the reconciler would write its memory to disk:\n%s", limits)
	}
	if out, exit := testkit.Run(t, "reconciler", "backup", "--data", s.Data); exit != 0 {
		t.Errorf("backup: exit %d\n%s", exit, out)
	}
	objects, err := exec.Command("git", "-C", repo.Bare, "cat-file", "--batch", "--batch-all-objects").Output()
	if err != nil || !bytes.Contains(objects, []byte("ENC[")) {
		t.Fatalf("the objects of the repository: %d bytes, %v", len(objects), err)
	}
	for _, canary := range []string{byEnv, byFile, sealed, unused, private} {
		s.CheckNoLeak(t, canary, a)
		if bytes.Contains(objects, []byte(canary)) {
			t.Error("a secret is in the repository, or its notes")
		}
	}
}

func TestSecretsAreRefusedToOtherBranches(t *testing.T) {
	real(t)
	const canary = "canary-branch-1f3e5d7c9b"
	m := newMarks(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, []string{"CANARY=" + canary, "GRANTED=a value for releases"})
	a := s.StartAgent(t, "one", "default", "")
	repo.Push("main", testkit.Files(testkit.Ops(), map[string]string{"secrets/all.cue": `package ops

secrets: "by-env": from: env: "CANARY"
secrets: granted: from: env: "GRANTED"
policy: secrets: granted: branches: ["main", "release/*"]
`}))
	body := func(name string) string {
		return fmt.Sprintf(`
triggers: [{push: branches: ["**"]}]
tasks: {
	take: shell.#Run & {fields: {script: %q, env: T: secret: %q}}
	plain: shell.#Run & {fields: script: "true"}
}`, m.leave("$T"), name)
	}
	commit := repo.Push("feature", workflow("greedy", body("by-env")))
	r := s.AwaitRuns(t, commit, 1)[0]
	if got := states(&r); got != "take:error plain:success" {
		t.Errorf("tasks are %s", got)
	}
	if why := r.Task("take").Reason; !strings.Contains(why, "by-env") || !strings.Contains(why, "for branch main, not for feature") {
		t.Errorf("the reason is %q", why)
	}
	// A branch cannot declare one for itself either.
	commit = repo.Push("feature", testkit.Files(workflow("greedy", body("own")), map[string]string{"secrets/own.cue": "package ops\n\nsecrets: own: from: env: \"CANARY\"\n"}))
	if r := s.AwaitRuns(t, commit, 1)[0]; r.Task("take").State != pipeline.Error {
		t.Errorf("tasks are %s", states(&r))
	}
	if _, err := os.Stat(string(m)); err == nil {
		t.Errorf("the task ran and left %q", m.lines(t))
	}
	// What the default branch gives to branches of a name they have, and tags have not.
	r = s.AwaitRuns(t, repo.Push("release/1", workflow("greedy", body("granted"))), 1)[0]
	if got := strings.Join(m.lines(t), " "); got != "a value for releases" || r.State != pipeline.Success {
		t.Errorf("the run of the branch is %s: %s; its task got %q", r.State, r.Task("take").Reason, got)
	}
	// The audit tells who had which.
	var audit struct {
		Secrets []struct {
			Name, Declared, For string
			Delivered           []struct{ Run, Task, Ref string }
		}
	}
	out, exit := testkit.Run(t, "reconciler", "secrets", "audit", repo.Work, "--server", s.Web, "--json")
	if err := json.Unmarshal([]byte(out), &audit); err != nil || exit != 0 {
		t.Fatalf("exit %d, %v\n%s", exit, err, out)
	}
	got := map[string]string{}
	for _, s := range audit.Secrets {
		got[s.Name] = fmt.Sprintf("%s, %s: %v", s.Declared, s.For, s.Delivered)
	}
	want := map[string]string{
		"by-env":  "secrets/all.cue:3:10, every composition, on the default branch: []",
		"own":     "secrets/own.cue:3:10, every composition, on the default branch: []",
		"granted": "secrets/all.cue:4:10, every composition, on main, release/* (secrets/all.cue:5:18): [{greedy#3 take refs/heads/release/1}]",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the audit (-want +got):\n%s", diff)
	}
	if out, exit := testkit.Run(t, "reconciler", "secrets", "audit", repo.Work, "--server", s.Web); exit != 0 || !strings.Contains(out, "to greedy#3 take on ") {
		t.Errorf("exit %d\n%s", exit, out)
	}
	s.CheckNoLeak(t, canary, a)
}

// Whoever may push a branch decides what its tasks do: they find another workspace and
// another home than those of the default branch, on the same agent.
func TestBranchLeavesNothingToTheDefaultBranch(t *testing.T) {
	real(t)
	m := newMarks(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	files := testkit.Files(testkit.Ops(), workflow("same", fmt.Sprintf(`
triggers: [{push: branches: ["**"]}]
tasks: work: shell.#Run & {fields: script: %q}`, fmt.Sprintf(`ls -a . "$HOME" | grep poison | wc -l >> %s
touch poison "$HOME/poison"`, m))))
	for _, branch := range []string{"main", "feature", "feature", "main"} {
		if r := s.AwaitRuns(t, repo.Push(branch, files), 1)[0]; r.State != pipeline.Success {
			t.Fatalf("%s: the run is %s: %s", branch, r.State, r.Reason)
		}
	}
	// The workspace of the default branch is warm: it finds what it has left itself.
	if got := strings.Join(m.lines(t), " "); got != "0 0 0 2" {
		t.Errorf("main, feature, feature and main found %s files of earlier runs, want 0 0 0 2", got)
	}
}

func TestMissingSecretFailsItsTaskAndSaysWhich(t *testing.T) {
	real(t)
	file := filepath.Join(t.TempDir(), "secret")
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	files := testkit.Files(testkit.Ops(), map[string]string{"secrets/all.cue": fmt.Sprintf("package ops\n\nsecrets: absent: from: file: %q\n", file)},
		workflow("asks", `tasks: take: shell.#Run & {fields: {script: "true", env: T: secret: "absent"}}`))
	r := s.AwaitRuns(t, repo.Push("main", files), 1)[0]
	if k := r.Task("take"); k.State != pipeline.Error || !strings.Contains(k.Reason, file) {
		t.Errorf("it is %s: %s", k.State, k.Reason)
	}
	if err := os.WriteFile(file, []byte("a-secret-that-came-late"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.AwaitRuns(t, repo.Push("main", nil), 1)[0]; r.State != pipeline.Success {
		t.Errorf("once the file is there the run is %s: %s", r.State, r.Reason)
	}
}

func TestPrivateRepositoryIsCheckedOutWithASecret(t *testing.T) {
	real(t)
	const password = "canary-checkout-6b8d0f2e4a"
	source := testkit.NewRepo(t)
	private := testkit.ServeGit(t, source.Bare, "reader", password)
	source.Remote = private.Login()
	head := source.Push("main", map[string]string{"data.txt": "from a private place\n"})
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, []string{"LOGIN=reader:" + password})
	a := s.StartAgent(t, "one", "default", "")
	body := func(credentials string) map[string]string {
		return workflow("private", fmt.Sprintf(`
tasks: {
	checkout: git.#Checkout & {fields: {url: %q, %s}}
	read: shell.#Run & {needs: ["checkout"], fields: {script: "cat data.txt; echo $COMMIT; cat .git/config", env: COMMIT: tasks.checkout.outputs.commit}}
}`, private.URL, credentials))
	}
	r := s.AwaitRuns(t, repo.Push("main", testkit.Files(testkit.Ops(), map[string]string{"secrets/all.cue": "package ops\n\nsecrets: login: from: env: \"LOGIN\"\n"}, body(""))), 1)[0]
	if log := s.Log(t, r.Task("checkout").Attempt); r.State != pipeline.Failure || !strings.Contains(log, "set the field credentials") {
		t.Errorf("without credentials the run is %s, the log %q", r.State, log)
	}
	r = s.AwaitRuns(t, repo.Push("main", body(`credentials: secret: "login"`)), 1)[0]
	if r.State != pipeline.Success {
		t.Fatalf("the run is %s: %s\n%s", r.State, r.Reason, s.Log(t, r.Task("checkout").Attempt))
	}
	if log := s.Log(t, r.Task("read").Attempt); !strings.HasPrefix(log, fmt.Sprintf("from a private place\n%s\n", head)) {
		t.Errorf("log is %q", log)
	}
	s.CheckNoLeak(t, password, a)
}

func TestTasksOfAFullAgentTakeTurns(t *testing.T) {
	real(t)
	m := newMarks(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	dir := testkit.ShortDir(t)
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(s.Invite(t, "default")), 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.StartShell(t, "narrow", dir, nil, fmt.Sprintf("exec %s --server %s --data %s --name narrow --token-file %s --seats 1",
		filepath.Join(testkit.Programs(t), "agentd"), s.Intake, dir, token))
	s.AwaitAgent(t, "narrow")
	script := m.leave("in") + "; sleep 0.1; " + m.leave("out")
	body := "tasks: {\n"
	const tasks = 6
	for i := range tasks {
		body += fmt.Sprintf("\tt%d: shell.#Run & {fields: script: %q}\n", i, script)
	}
	r := s.AwaitRuns(t, repo.Push("main", testkit.Files(testkit.Ops(), workflow("wide", body+"}"))), 1)[0]
	if want := strings.TrimSpace(strings.Repeat("in out ", tasks)); strings.Join(m.lines(t), " ") != want || r.State != pipeline.Success {
		t.Errorf("the run is %s, marks are %v", r.State, m.lines(t))
	}
	// An agent that declines because it is full is asked again when it is not. A
	// pause for each task instead adds up to most of a minute.
	if took := r.FinishedAt.Sub(r.CreatedAt); took.Seconds() > 15 {
		t.Errorf("it took %s", took)
	}
}
