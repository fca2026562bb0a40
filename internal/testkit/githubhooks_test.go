package testkit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// TestWebhooksInAnyOrderLeadToTheSameEnd tells the same story twice: once each webhook
// comes as things happen, and once those of each step come late, the latest first, each
// three times. Nothing is polled meanwhile.
func TestWebhooksInAnyOrderLeadToTheSameEnd(t *testing.T) {
	real(t)
	ends := make([][]string, 2)
	t.Run("told", func(t *testing.T) {
		for i := range ends {
			t.Run([]string{"in order", "out of order"}[i], func(t *testing.T) {
				t.Parallel()
				ends[i] = tale(t, i == 1)
			})
		}
	})
	if d := cmp.Diff(ends[0], ends[1]); d != "" || len(ends[0]) == 0 {
		t.Errorf("in order (-) and out of order (+):\n%s", d)
	}
}

var runNumberRE = regexp.MustCompile(`#\d+ ?`)

// tale returns what there is in the end, without what differs from day to day.
func tale(t *testing.T, late bool) []string {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the webhook's secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := testkit.NewGitHub(t)
	people(g)
	g.Repo.Push("main", pullFiles())
	s := g.Serve(t, "--poll", "1h", "--github-webhook-secret-file", secret)
	s.StartAgent(t, "one", "default", "")
	times := 1
	if late {
		times = 3
	}
	g.Hook(s.Intake+"/github", "the webhook's secret", times)
	step := func(do func()) {
		if late {
			g.Hold()
		}
		do()
		g.Release()
	}
	first := g.Push("ana", "main", "main", map[string]string{"README": "in force"})
	g.AwaitStatus(first, "maestro", "", "")

	var n int
	var head pipeline.CommitID
	step(func() {
		g.Push("eve", "louder", "main", testkit.Shell("build", "echo NEW", ""))
		n = g.Open("eve", "louder", "main", "louder")
		head = g.Push("eve", "louder", "", testkit.Shell("build", "echo NEWER", ""))
	})
	g.AwaitStatus(head, "maestro/run/check", "success", "")
	g.AwaitStatus(head, "maestro", "pending", "needs 1 approval of ops")
	step(func() {
		g.Review("ana", n, "CHANGES_REQUESTED", "no")
		g.Review("ana", n, "APPROVED", "yes")
		g.Comment("bo", n, "/maestro hold")
		g.Comment("bo", n, "/maestro hold off")
	})
	awaitChange(t, s, "pull/1", "is approved and answered", func(p pipeline.Proposal) bool {
		return p.Approval == pipeline.ApprovalGiven && len(g.Comments(testkit.MaestroLogin, n)) == 1 &&
			strings.Count(g.Comments(testkit.MaestroLogin, n)[0], "bo: holds it") == 2
	})
	g.AwaitStatus(head, "maestro", "success", "approved by ana")
	var merge pipeline.CommitID
	step(func() { merge = g.Merge("ana", n, false) })
	g.AwaitStatus(merge, "maestro", "success", "")
	g.AwaitStatus(head, "maestro", "success", "merged as")
	p := awaitChange(t, s, "pull/1", "is merged", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
	g.AwaitComment(n, "all green")

	var out []string
	say := func(what string, parts ...any) {
		// The head that was proposed first is checked too when it is seen.
		line := runNumberRE.ReplaceAllString(what+": "+fmt.Sprint(parts...), "")
		for id, name := range map[pipeline.CommitID]string{head: "HEAD", merge: "MERGE"} {
			line = strings.ReplaceAll(line, id.Short(), name)
		}
		out = append(out, line)
	}
	say("change", p.State, " ", p.Approval, " ", p.Sentence, " ", p.Merge.Sentence, " ", p.Merge.Approval)
	for _, r := range p.Reviews {
		say("review", r.By, " ", r.Approve, " ", r.Counts, " ", r.Why)
	}
	for _, commit := range []pipeline.CommitID{head, merge} {
		for _, context := range g.Contexts(commit) {
			st := g.Status(commit, context)
			say("status", context, " ", st.State, " ", st.Description)
		}
		runs, err := s.Runs(commit)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range runs {
			say("run", r.Composition, " ", r.State, " ", r.Ref)
		}
	}
	return out
}
