package testkit_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// opened is a repository on GitHub with a server, and a way to open pull requests.
type opened struct {
	*testkit.GitHub
	t *testing.T
	s *testkit.Server
	n int
}

func openGitHub(t *testing.T, files map[string]string, more ...string) *opened {
	t.Helper()
	g := testkit.NewGitHub(t)
	people(g)
	g.Repo.Push("main", files)
	o := &opened{GitHub: g, t: t, s: g.Serve(t, more...)}
	first := g.Repo.Push("main", map[string]string{"README": "in force"})
	g.AwaitStatus(first, "maestro", "", "")
	return o
}

// propose opens a pull request by eve and waits until it is planned.
func (o *opened) propose(files map[string]string) (number int, name string, head pipeline.CommitID) {
	o.t.Helper()
	o.n++
	branch := fmt.Sprintf("change-%d", o.n)
	head = o.Push("eve", branch, "main", files)
	number = o.Open("eve", branch, "main", "a change")
	name = fmt.Sprintf("pull/%d", number)
	o.planned(name, head)
	return number, name, head
}

func (o *opened) planned(name string, head pipeline.CommitID) {
	o.t.Helper()
	awaitChange(o.t, o.s, name, "is planned", func(p pipeline.Proposal) bool {
		return p.Head == head && p.Digest != "" && p.Sentence != "its reviews have not been read"
	})
}

// says waits until a change is in a state and its sentence or the reasons of its reviews
// hold a text.
func (o *opened) says(name string, approval pipeline.Approval, text string) {
	o.t.Helper()
	awaitChange(o.t, o.s, name, fmt.Sprintf("is %s: %s", approval, text), func(p pipeline.Proposal) bool {
		all := p.Sentence
		for _, r := range p.Reviews {
			all += "\n" + r.Why
		}
		return p.Approval == approval && strings.Contains(all, text)
	})
}

func (o *opened) approved(name string, number int, by string) {
	o.t.Helper()
	o.Review(by, number, "APPROVED", "")
	o.says(name, pipeline.ApprovalGiven, "approved by "+by)
}

const teamPolicy = `package ops

policy: {
	groups: ops: ["ana", "bo", "eve", "@octo/platform"]
	changes: "everything needs ops": {approvers: ["ops"], count: 1}
}
`

func TestApprovalsAtGitHubAreVoidedByWhatComesAfter(t *testing.T) {
	real(t)
	files := pullFiles()
	files["policy/policy.cue"] = teamPolicy
	o := openGitHub(t, files)
	o.Person("tim", "write")
	o.Person("robot[bot]", "write")
	o.Team("octo/platform", "tim")
	n, name, _ := o.propose(testkit.Shell("build", "echo 1", ""))

	// A member of the team that the policy names counts, and dismissed does not any more.
	id := o.Review("tim", n, "APPROVED", "")
	o.says(name, pipeline.ApprovalGiven, "approved by tim")
	o.Dismiss(id)
	o.says(name, pipeline.ApprovalWaiting, "it was dismissed")
	o.Review("robot[bot]", n, "APPROVED", "")
	o.says(name, pipeline.ApprovalWaiting, "it is not a person's")

	// Who asks for changes stops it, whatever others say and whatever the head is.
	o.Review("bo", n, "CHANGES_REQUESTED", "not like this")
	o.approved2(name, n, "ana", pipeline.ApprovalRefused, "refused by bo: not like this")
	second := o.Push("eve", "change-1", "", map[string]string{"README": "more"})
	o.planned(name, second)
	o.says(name, pipeline.ApprovalRefused, "refused by bo")
	o.AwaitStatus(second, "maestro", "failure", "refused by bo")
	o.Review("bo", n, "APPROVED", "now it is")
	o.says(name, pipeline.ApprovalGiven, "approved by bo")

	// Another head voids it, and forcing the approved one back does not help.
	third := o.Push("eve", "change-1", "", map[string]string{"README": "still more"})
	o.planned(name, third)
	o.says(name, pipeline.ApprovalWaiting, "it is of another head")
	o.PushTo("eve", "change-1", second)
	o.planned(name, second)
	o.says(name, pipeline.ApprovalWaiting, "the head was another one meanwhile")
	o.AwaitStatus(second, "maestro", "pending", "needs 1 approval of ops")

	// So do closing and opening again, and another target.
	o.approved(name, n, "ana")
	o.Edit(n, false, "main", true)
	awaitChange(t, o.s, name, "is closed", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalClosed })
	o.Review("tim", n, "APPROVED", "while it is closed")
	o.Edit(n, false, "main", false)
	awaitChange(t, o.s, name, "is open", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalOpen })
	o.says(name, pipeline.ApprovalWaiting, "review again")
	o.approved(name, n, "tim")
	o.PushTo("ana", "release", pipeline.CommitID(o.Repo.Git(o.Repo.Bare, "rev-parse", "refs/heads/main")))
	o.Edit(n, false, "release", false)
	o.says(name, pipeline.ApprovalWaiting, "it was for another branch when it was given; review again")
}

func (o *opened) approved2(name string, number int, by string, want pipeline.Approval, text string) {
	o.t.Helper()
	o.Review(by, number, "APPROVED", "")
	o.says(name, want, text)
}

func TestNobodyWhoHadAHandInItApproves(t *testing.T) {
	real(t)
	o := openGitHub(t, pullFiles())
	n, name, _ := o.propose(testkit.Shell("build", "echo 1", ""))

	// Bo pushes what Eve wrote: he has had the last word on what it is.
	head := o.Push("eve", "elsewhere", "change-1", map[string]string{"README": "by eve"})
	o.PushTo("bo", "change-1", head)
	o.planned(name, head)
	o.approved2(name, n, "bo", pipeline.ApprovalWaiting, "who wrote or asked for it does not review it")

	// A co-author is an author.
	o.Repo.Git(o.Repo.Work, "commit", "--quiet", "--allow-empty", "-m", "more\n\nCo-authored-by: Ana <ana@example.com>")
	head = pipeline.CommitID(o.Repo.Git(o.Repo.Work, "rev-parse", "HEAD"))
	o.PushTo("eve", "change-1", head)
	o.planned(name, head)
	o.approved2(name, n, "ana", pipeline.ApprovalWaiting, "who wrote or asked for it does not review it")

	// The login of somebody whom the policy names, taken over by somebody else.
	n, name, _ = o.propose(testkit.Shell("build", "echo 2", ""))
	o.approved(name, n, "ana")
	o.Rename("ana", "ana-maria")
	o.Person("ana", "write")
	n, name, _ = o.propose(testkit.Shell("build", "echo 3", ""))
	o.approved2(name, n, "ana", pipeline.ApprovalWaiting, "the login ana was another account's")

	// Who may not write any more does not approve any more.
	o.approved(name, n, "bo")
	o.Person("bo", "read")
	o.Comment("eve", n, "something happens")
	o.says(name, pipeline.ApprovalWaiting, "bo may not write to the repository")
}

// asked counts the requests whose path ends so.
func (o *opened) asked(end string) int {
	n := 0
	for _, asked := range o.Asked() {
		if strings.HasSuffix(asked, end) {
			n++
		}
	}
	return n
}

func TestWhatGitHubDoesNotTellApprovesNothing(t *testing.T) {
	real(t)
	o := openGitHub(t, pullFiles())
	n, name, head := o.propose(testkit.Shell("build", "echo 1", ""))
	for range 100 {
		o.Review("mallory", n, "COMMENTED", "hm")
	}
	o.Review("bo", n, "CHANGES_REQUESTED", "no") // the 101st
	o.says(name, pipeline.ApprovalRefused, "refused by bo: no")
	o.Review("bo", n, "APPROVED", "yes")
	o.says(name, pipeline.ApprovalGiven, "approved by bo")
	// The second page cannot be had: what was known of reviews may be another thing.
	o.Fail(func(method, path string) testkit.Fault {
		if strings.HasSuffix(path, "/reviews") {
			return testkit.Fault{Status: http.StatusBadGateway, Body: "<html>", Header: map[string]string{"Content-Type": "text/html"}}
		}
		return testkit.Fault{}
	})
	o.Comment("eve", n, "something happens")
	o.says(name, pipeline.ApprovalWaiting, "its standing cannot be read")
	o.AwaitStatus(head, "maestro", "pending", "needs 1 approval of ops")
	// Nor are they taken back by that, even when nothing is known of them any more.
	o.s.Kill()
	before := o.asked("/reviews")
	o.s.Restart(t)
	testkit.Eventually(t, "they are asked for twice in vain", func() (bool, string) {
		n := o.asked("/reviews") - before
		return n > 1, fmt.Sprint(n)
	})
	o.Fail(nil)
	o.says(name, pipeline.ApprovalGiven, "approved by bo")
	o.AwaitStatus(head, "maestro", "pending", "approved by bo")
	// An answer that is no list of pull requests closes none.
	for _, fault := range []testkit.Fault{
		{Status: http.StatusOK, Body: "<html>log in</html>", Header: map[string]string{"Content-Type": "text/html"}},
		{Status: http.StatusOK, Body: `[{"number": 1}]`},
		{Status: http.StatusOK, Body: `[{"number": 1`},
		{Status: http.StatusOK, Body: `null`, Header: map[string]string{"Link": `<https://evil.example/x?page=7>; rel="next"`}},
		{Status: http.StatusFound, Body: `{}`, Header: map[string]string{"Location": "https://evil.example/"}},
		{Status: http.StatusUnauthorized, Body: `{"message": "Bad credentials"}`},
	} {
		o.Fail(func(method, path string) testkit.Fault {
			if strings.HasSuffix(path, "/pulls") {
				return fault
			}
			return testkit.Fault{}
		})
		o.says(name, pipeline.ApprovalWaiting, "its standing cannot be read")
		o.Fail(nil)
		o.says(name, pipeline.ApprovalGiven, "approved by bo")
	}
	if p, err := proposal(o.s, name); err != nil || p.State != pipeline.ProposalOpen {
		t.Errorf("%+v %v", p, err)
	}
}
