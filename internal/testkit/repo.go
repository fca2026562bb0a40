package testkit

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Repo is a bare Git repository with a working copy to push from.
type Repo struct {
	Bare, Work string
	// Remote is where Push pushes: Bare, unless a test says otherwise.
	Remote string
	t      testing.TB
}

// NewRepo makes an empty bare repository and a working copy.
func NewRepo(t testing.TB) *Repo {
	t.Helper()
	dir := t.TempDir()
	r := &Repo{Bare: filepath.Join(dir, "ops.git"), Work: filepath.Join(dir, "work"), t: t}
	r.Remote = r.Bare
	r.Git("", "init", "--quiet", "--bare", "-b", "main", r.Bare)
	r.Git("", "init", "--quiet", "-b", "main", r.Work)
	return r
}

// Git runs git in a folder and returns what it printed.
func (r *Repo) Git(dir string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com")
	b, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, b)
	}
	return strings.TrimSpace(string(b))
}

// Write puts files into the working copy; "" removes one. A program, which begins
// with #!, is made executable.
func (r *Repo) Write(files map[string]string) {
	r.t.Helper()
	for name, text := range files {
		path := filepath.Join(r.Work, name)
		if text == "" {
			if err := os.RemoveAll(path); err != nil {
				r.t.Fatal(err)
			}
			continue
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			r.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			r.t.Fatal(err)
		}
	}
}

// Push commits files to the working copy's branch and pushes it.
func (r *Repo) Push(branch string, files map[string]string) pipeline.CommitID {
	r.t.Helper()
	commit := r.Commit(files)
	r.Git(r.Work, "push", "--quiet", "--force", r.Remote, "HEAD:refs/heads/"+branch)
	return commit
}

// Commit commits files to the working copy without pushing.
func (r *Repo) Commit(files map[string]string) pipeline.CommitID {
	r.t.Helper()
	r.Write(files)
	r.Git(r.Work, "add", "-A")
	r.Git(r.Work, "commit", "--quiet", "--allow-empty", "-m", "change")
	return pipeline.CommitID(r.Git(r.Work, "rev-parse", "HEAD"))
}

// Statuses reads a commit's statuses back from Git, by context.
func (r *Repo) Statuses(commit pipeline.CommitID) map[string]pipeline.Status {
	r.t.Helper()
	cmd := exec.Command("git", "notes", "--ref=refs/notes/maestro/status", "show", string(commit))
	cmd.Dir = r.Bare
	b, err := cmd.Output()
	if err != nil {
		return nil
	}
	out := map[string]pipeline.Status{}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		var s pipeline.Status
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			r.t.Fatalf("status note %q: %v", line, err)
		}
		out[s.Context] = s
	}
	return out
}

// AwaitStatus waits until the commit's status in the context has the state.
func (r *Repo) AwaitStatus(commit pipeline.CommitID, context, state string) pipeline.Status {
	r.t.Helper()
	var s pipeline.Status
	Eventually(r.t, fmt.Sprintf("status %s %s of %s", context, state, commit.Short()), func() (bool, string) {
		var ok bool
		s, ok = r.Statuses(commit)[context]
		return ok && s.State == state, fmt.Sprintf("%+v", s)
	})
	return s
}

// Ops is the least that an ops repository has.
func Ops() map[string]string {
	return map[string]string{
		"cue.mod/module.cue": "module: \"example.com/ops@v0\"\nlanguage: version: \"v0.13.0\"\n",
		"ops.cue": `package ops

import "github.com/maestro-cd/maestro"

compositions: [Name=_]: maestro.#Composition & {name: Name}
pools: [Name=_]: maestro.#Pool & {name: Name}
secrets: [Name=_]: maestro.#Secret & {name: Name}

event: maestro.#Event
`,
		"pools/default/default.cue": "package ops\n\npools: default: {}\n",
	}
}

// Shell is a composition of one shell task that runs on every push to main. more is
// CUE inside of the task.
func Shell(name, script, more string) map[string]string {
	quoted, err := json.Marshal(script)
	if err != nil {
		panic(err)
	}
	return map[string]string{
		"compositions/" + name + "/" + name + ".cue": fmt.Sprintf(`package ops

import "github.com/maestro-cd/maestro/plugins/shell"

compositions: %q: {
	tasks: work: shell.#Run & {
		fields: script: %s
		%s
	}
	triggers: [{push: {}}]
}
`, name, quoted, more),
	}
}

// Files joins several sets of files; later ones win.
func Files(sets ...map[string]string) map[string]string {
	out := map[string]string{}
	for _, s := range sets {
		for k, v := range s {
			out[k] = v
		}
	}
	return out
}
