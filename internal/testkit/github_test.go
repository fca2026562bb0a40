package testkit_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

func TestStatusesReachGitHubInOrder(t *testing.T) {
	real(t)
	g := testkit.NewGitHub(t)
	s := g.Serve(t)
	a := s.StartAgent(t, "one", "default", "")
	gate := filepath.Join(t.TempDir(), "gate")
	commit := g.Repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("bad", "exit 3", ""),
		testkit.Shell("good", fmt.Sprintf("while [ ! -e %s ]; do sleep 0.1; done", gate), "")))
	g.AwaitStatus(commit, "maestro/run/good", "pending", "")
	g.AwaitStatus(commit, "maestro/run/bad", "failure", "")
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g.AwaitStatus(commit, "maestro/run/good", "success", "")
	if st := g.AwaitStatus(commit, "maestro", "failure", ""); !strings.HasPrefix(st.URL, "https://maestro.example/") {
		t.Errorf("the status leads to %s", st.URL)
	}
	for _, context := range []string{"maestro/run/good", "maestro/run/bad"} {
		got := g.States(commit, context)
		if i := slices.IndexFunc(got, func(s string) bool { return s != "pending" }); slices.Contains(got[i:], "pending") {
			t.Errorf("%s went %v", context, got)
		}
	}
	if notes := g.Repo.Statuses(commit); notes != nil {
		t.Errorf("notes were written besides: %v", notes)
	}
	s.CheckNoLeak(t, g.Token, a)
}

func TestBadDaysOfGitHubAreSurvived(t *testing.T) {
	real(t)
	for name, bad := range map[string]func() testkit.Fault{
		"bad gateway": func() testkit.Fault {
			return testkit.Fault{Status: http.StatusBadGateway, Body: "<html>unicorn</html>", Header: map[string]string{"Content-Type": "text/html"}}
		},
		"rate limit": func() testkit.Fault {
			return testkit.Fault{Status: http.StatusForbidden, Body: `{"message": "API rate limit exceeded"}`, Header: map[string]string{
				"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "0",
				"X-RateLimit-Reset": strconv.FormatInt(time.Now().Add(2*time.Second).Unix(), 10),
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := testkit.NewGitHub(t)
			g.Fail(func(string, string) testkit.Fault { return bad() })
			s := g.Serve(t)
			s.StartAgent(t, "one", "default", "")
			commit := g.Repo.Push("main", testkit.Files(testkit.Ops(), good()))
			if r := s.AwaitRuns(t, commit, 1)[0]; r.State != pipeline.Success {
				t.Errorf("the run is %s: %s", r.State, r.Reason)
			}
			testkit.Eventually(t, "a few refusals", func() (bool, string) {
				n := len(g.Asked())
				return n >= 3, fmt.Sprint(n)
			})
			// Nothing is sent in a tight loop.
			if n := len(g.Asked()); n > 60 {
				t.Errorf("%d requests were made in vain", n)
			}
			g.Fail(nil)
			for _, context := range []string{"maestro", "maestro/run/good"} {
				g.AwaitStatus(commit, context, "success", "")
				if got := g.States(commit, context); !slices.Equal(got, []string{"success"}) {
					t.Errorf("%s went %v, want the last state only", context, got)
				}
			}
		})
	}
}

// pullFiles are an ops repository that wants approvals and checks pull requests.
func pullFiles() map[string]string {
	return testkit.Files(testkit.Ops(), testkit.Shell("build", "echo old", ""), map[string]string{"policy/policy.cue": policy},
		map[string]string{"compositions/check/check.cue": `package ops

import "github.com/maestro-cd/maestro/plugins/shell"

compositions: check: {
	tasks: work: shell.#Run & {fields: script: "echo checked"}
	triggers: [{pullRequest: {}}]
}
`})
}

// people makes the accounts of the tests.
func people(g *testkit.GitHub) {
	for login, may := range map[string]string{"ana": "write", "bo": "write", "eve": "write", "mallory": "read", "ada": "write"} {
		g.Person(login, may)
	}
}

func TestWebhooksOfGitHubSayWhenToLook(t *testing.T) {
	real(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the webhook's secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := testkit.NewGitHub(t)
	people(g)
	g.Repo.Push("main", pullFiles())
	s := g.Serve(t, "--poll", "1h", "--github-webhook-secret-file", secret)
	g.Hook(s.Intake+"/github", "the webhook's secret", 2)
	first := g.Push("ana", "main", "main", map[string]string{"README": "in force"})
	g.AwaitStatus(first, "maestro", "", "")
	head := g.Push("eve", "louder", "main", testkit.Shell("build", "echo NEW", ""))
	began := time.Now()
	n := g.Open("eve", "louder", "main", "louder")
	g.AwaitStatus(head, "maestro", "pending", "needs 1 approval of ops")
	status := time.Since(began)
	g.AwaitComment(n, "needs 1 approval of ops")
	t.Logf("status after %s, comment after %s", status, time.Since(began))
	g.Review("ana", n, "APPROVED", "")
	awaitChange(t, s, "pull/1", "is approved", func(p pipeline.Proposal) bool { return p.Approval == pipeline.ApprovalGiven })
	merge := g.Merge("ana", n, true)
	t.Logf("approved after %s in all", time.Since(began))
	p := awaitChange(t, s, "pull/1", "is merged", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
	if p.Merge.Commit != merge || p.Merge.Sentence != "predicted 1 run, started 1" {
		t.Errorf("a squashed change: %+v", p.Merge)
	}
	for _, forged := range []string{"another secret", ""} {
		res, err := http.Post(s.Intake+"/github", "application/json", strings.NewReader(forged))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusUnauthorized {
			t.Errorf("a forged post: %s", res.Status)
		}
	}
}

func TestPollingCostsNothingWhileNothingChanges(t *testing.T) {
	real(t)
	o := openGitHub(t, pullFiles())
	for i := range 3 {
		n, name, _ := o.propose(testkit.Shell("build", fmt.Sprint("echo ", i), ""))
		o.approved(name, n, "ana")
	}
	// A change is followed up for some seconds, because GitHub tells times in seconds.
	looks := func() int {
		n := 0
		for _, asked := range o.Asked() {
			if asked == "GET /repos/octo/ops/pulls" {
				n++
			}
		}
		return n
	}
	quiet, paid := looks(), o.Paid()
	testkit.Eventually(t, "ten looks in a row that cost nothing", func() (bool, string) {
		now := o.Paid()
		if now != paid {
			quiet, paid = looks(), now
		}
		return looks()-quiet >= 10, fmt.Sprintf("%d looks, %d requests that count", looks()-quiet, now-paid)
	})
}

func TestSilenceThatGitHubAsksForIsKeptOverARestart(t *testing.T) {
	real(t)
	g := testkit.NewGitHub(t)
	people(g)
	until := time.Now().Add(6 * time.Second).Truncate(time.Second)
	g.Fail(func(string, string) testkit.Fault {
		return testkit.Fault{Status: http.StatusForbidden, Body: `{"message": "API rate limit exceeded"}`, Header: map[string]string{
			"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": strconv.FormatInt(until.Unix(), 10),
		}}
	})
	g.Repo.Push("main", pullFiles())
	s := g.Serve(t, "--public-url=")
	testkit.Eventually(t, "it is told to be silent", func() (bool, string) {
		return strings.Contains(s.Said(), "GitHub asks for silence"), ""
	})
	s.Kill()
	asked := len(g.Asked())
	s.Restart(t)
	commit := g.Repo.Push("main", map[string]string{"README": "in force"})
	testkit.Eventually(t, "the commit is evaluated", func() (bool, string) {
		var rec pipeline.CommitRecord
		err := s.Get("/commits/"+string(commit), &rec)
		return err == nil, fmt.Sprint(err)
	})
	if n := len(g.Asked()); time.Now().Before(until) && n != asked {
		t.Errorf("%d requests were made before %s", n-asked, until)
	}
	g.Fail(nil)
	testkit.Eventually(t, "a status is posted", func() (bool, string) {
		s := g.Status(commit, "maestro")
		return s.State != "", fmt.Sprintf("%+v", s)
	})
	if time.Now().Before(until) {
		t.Error("a status was posted before the silence ended")
	}
	if url := g.Status(commit, "maestro").URL; url != "" || !strings.Contains(s.Said(), "give --public-url") {
		t.Errorf("nobody said where the web view is, and a status leads to %q; the server said:\n%s", url, s.Said())
	}
}
