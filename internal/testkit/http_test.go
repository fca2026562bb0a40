package testkit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// httpCanary is a password that must not be seen anywhere.
const httpCanary = "canary-git-7f3a1c9e5b"

// overHTTP is an ops repository behind a login, with a server and an agent on it.
type overHTTP struct {
	*testkit.Server
	repo      *testkit.Repo
	git       *testkit.GitServer
	agent     *testkit.Agent
	tokenFile string
}

func serveOverHTTP(t *testing.T) *overHTTP {
	t.Helper()
	h := &overHTTP{repo: testkit.NewRepo(t), tokenFile: filepath.Join(t.TempDir(), "token")}
	h.git = testkit.ServeGit(t, h.repo.Bare, "robot", httpCanary)
	h.repo.Remote = h.git.Login()
	h.mend(t, httpCanary)
	h.Server = testkit.Serve(t, h.git.URL, nil, "--git-user", "robot", "--git-token-file", h.tokenFile)
	h.agent = h.StartAgent(t, "one", "default", "")
	return h
}

func (h *overHTTP) mend(t *testing.T, password string) {
	t.Helper()
	if err := os.WriteFile(h.tokenFile, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// succeeds waits for the commit's run and its status in the repository.
func (h *overHTTP) succeeds(t *testing.T, commit pipeline.CommitID) {
	t.Helper()
	if r := h.AwaitRuns(t, commit, 1)[0]; r.State != pipeline.Success {
		t.Errorf("run is %s: %s", r.State, r.Reason)
	}
	h.repo.AwaitStatus(commit, "maestro", "success")
}

func (h *overHTTP) awaitProblem(t *testing.T, want string) {
	t.Helper()
	testkit.Eventually(t, fmt.Sprintf("the board's problem has %q", want), func() (bool, string) {
		var b struct{ Repository struct{ Problem string } }
		err := h.Get("/board", &b)
		got := b.Repository.Problem
		return err == nil && (want == "" && got == "" || want != "" && strings.Contains(got, want)), fmt.Sprint(got, err)
	})
}

func TestRepositoryIsFollowedOverHTTP(t *testing.T) {
	real(t)
	h := serveOverHTTP(t)
	h.succeeds(t, h.repo.Push("main", testkit.Files(testkit.Ops(), good())))

	h.repo.Git(h.repo.Work, "commit", "--quiet", "--amend", "--allow-empty", "-m", "other history")
	amended := h.repo.Push("main", testkit.Shell("good", "echo rewritten", ""))
	h.succeeds(t, amended)

	branches := strings.Replace(testkit.Shell("topical", "true", "")["compositions/topical/topical.cue"], "push: {}", `push: branches: ["topic"]`, 1)
	topic := h.repo.Push("topic", composition("topical", branches))
	h.succeeds(t, topic)
	h.repo.Git(h.repo.Work, "push", "--quiet", h.repo.Remote, ":topic")
	h.repo.Git(h.repo.Work, "reset", "--quiet", "--hard", string(amended))
	h.succeeds(t, h.repo.Push("main", testkit.Shell("good", "echo after a branch is gone", "")))

	h.repo.Git(h.repo.Bare, "config", "receive.denyDeleteCurrent", "ignore")
	h.repo.Git(h.repo.Work, "push", "--quiet", h.repo.Remote, ":main")
	h.awaitProblem(t, "branch main does not exist")
	h.succeeds(t, h.repo.Push("main", testkit.Shell("good", "echo main is back", "")))
	h.awaitProblem(t, "")
	h.CheckNoLeak(t, httpCanary, h.agent)
}

func TestWrongGitPasswordIsShownAndMended(t *testing.T) {
	real(t)
	h := serveOverHTTP(t)
	h.succeeds(t, h.repo.Push("main", testkit.Files(testkit.Ops(), good())))
	const wrong = "canary-wrong-2b8d6e4f0a"
	h.mend(t, wrong)
	h.awaitProblem(t, "refuses the credentials")
	if h.git.Refused() == 0 {
		t.Error("the wrong password was never tried")
	}
	commit := h.repo.Push("main", testkit.Shell("good", "echo pushed meanwhile", ""))
	h.mend(t, httpCanary)
	h.succeeds(t, commit)
	h.awaitProblem(t, "")
	h.CheckNoLeak(t, httpCanary, h.agent)
	h.CheckNoLeak(t, wrong, h.agent)
}

func TestGitServerMayGoAwayAndComeBack(t *testing.T) {
	real(t)
	h := serveOverHTTP(t)
	gate := filepath.Join(t.TempDir(), "gate")
	script := fmt.Sprintf("while [ ! -e %s ]; do sleep 0.1; done; echo through", gate)
	commit := h.repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("good", script, "")))
	h.AwaitTask(t, commit, "good", "work", pipeline.Running)
	h.repo.AwaitStatus(commit, "maestro/run/good", "pending")
	h.git.Stop()
	h.awaitProblem(t, "connection refused")
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The run goes on; what it has to say waits until somebody listens.
	if r := h.AwaitRuns(t, commit, 1)[0]; r.State != pipeline.Success {
		t.Errorf("run is %s: %s", r.State, r.Reason)
	}
	if got := h.repo.Statuses(commit)["maestro/run/good"].State; got != "pending" {
		t.Errorf("status is %s while nobody could write it", got)
	}
	h.repo.Remote = h.repo.Bare
	next := h.repo.Push("main", testkit.Shell("good", "echo pushed meanwhile", ""))
	h.git.Start()
	h.succeeds(t, commit)
	h.succeeds(t, next)
	h.awaitProblem(t, "")
}
