package testkit_test

import (
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

var (
	tellStory = flag.Bool("story", false, "tell TestStoryOnGitHub as it goes, for make demo-github")
	stayUp    = flag.Bool("story.stay", false, "leave it up at its end, until interrupted")
)

// story is told as it goes when somebody reads it.
type story struct {
	*testkit.GitHub
	t    *testing.T
	out  io.Writer
	step int
}

func (y *story) say(format string, args ...any) {
	y.step++
	fmt.Fprintf(y.out, "\n%d %s\n", y.step, fmt.Sprintf(format, args...))
}

// status waits for a status and shows it.
func (y *story) status(commit pipeline.CommitID, context, state, text string) pipeline.Status {
	y.t.Helper()
	s := y.AwaitStatus(commit, context, state, text)
	fmt.Fprintf(y.out, "    %s  %s %s: %s\n", commit.Short(), s.Context, s.State, s.Description)
	return s
}

// comment waits for the comment on a pull request and shows it.
func (y *story) comment(number int, texts ...string) {
	y.t.Helper()
	y.show(fmt.Sprintf("the comment of Maestro on #%d:", number), y.AwaitComment(number, texts...))
}

// show prints what Maestro wrote, but for what is folded.
func (y *story) show(what, body string) {
	fmt.Fprintf(y.out, "    %s\n", what)
	folded := false
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)
		folded = folded && line != "</details>" || strings.HasPrefix(line, "<details>")
		if line != "" && !folded && !strings.HasPrefix(line, "<") {
			fmt.Fprintf(y.out, "    ┆ %s\n", line)
		}
	}
}

// TestStoryOnGitHub is the main job at GitHub: a pull request is opened, planned,
// reviewed and merged, a deployment waits for a review, and what came is held against
// what was predicted.
func TestStoryOnGitHub(t *testing.T) {
	y := &story{t: t, out: io.Discard}
	if *tellStory {
		y.out = os.Stdout
	} else {
		real(t)
	}
	g := testkit.NewGitHub(t)
	y.GitHub = g
	people(g)
	careful := strings.Replace(ship, `expire: "1h"`, `expire: "1h", sha_echo: true`, 1)
	g.Repo.Push("main", testkit.Files(pullFiles(), map[string]string{"compositions/ship/ship.cue": careful}))
	y.say("a GitHub that is made up, with the repository octo/ops\n    %s", g.Page(0))
	s := g.Serve(t, y.reachable()...)
	y.say("reconciler serve --forge github --github-repo octo/ops\n    %s", s.Web)
	a := s.StartAgent(t, "one", "default", "")
	y.say("agentd: its agent is online")
	inForce := g.Push("ada", "main", "", map[string]string{"README": "in force"})
	y.letGo(s, inForce, "ana")

	head := g.Push("eve", "louder", "main", testkit.Files(testkit.Shell("build", "echo NEW", ""), testkit.Shell("deploy", "echo deploying", "")))
	n := g.Open("eve", "louder", "main", "louder")
	y.say("eve opens pull request #%d: it changes build and adds deploy", n)
	y.status(head, "maestro", "pending", "plan: 3 runs on merge; needs 1 approval of ops")
	y.comment(n, "**maestro plan: ", "`deploy`", "needs 1 approval of ops", "`check` 1")
	y.status(head, "maestro/run/check", "success", "")

	g.Review("eve", n, "APPROVED", "")
	g.Review("mallory", n, "APPROVED", "")
	g.Review("bo", n, "COMMENTED", "hm")
	y.say("eve approves her own change, and so does mallory, who may not write")
	y.comment(n, "`eve` approves, which does not count: who wrote", "`mallory` approves, which does not count: mallory may not write")
	y.status(head, "maestro", "pending", "needs 1 approval of ops")

	g.Review("ana", n, "APPROVED", "fine")
	y.say("ana of ops approves it")
	y.status(head, "maestro", "success", "approved by ana")

	merge := g.Merge("ana", n, false)
	y.say("ana merges it as %s", merge.Short())
	y.status(merge, "maestro/run/build", "success", "")
	y.status(merge, "maestro/run/deploy", "success", "")
	run := s.AwaitTask(t, merge, "ship", "confirm", pipeline.Held)
	y.comment(n, "a gate waits: review this pull request again")
	laterThan(t, &run)
	g.Review("bo", n, "APPROVED", "looks right")
	y.say("bo reviews again, and does not say what: this gate wants the commit to be named")
	testkit.Eventually(t, "it is said that the commit is to be named", func() (bool, string) {
		run := s.AwaitTask(t, merge, "ship", "confirm", pipeline.Held)
		why := run.Task("confirm").Reason
		return strings.Contains(why, "does not name the commit"), why
	})
	g.Review("bo", n, "APPROVED", string(merge[:7])+" looks right")
	y.say("bo names %s: the deployment may go on", merge[:7])
	run = s.AwaitTask(t, merge, "ship", "deploy", pipeline.Success)
	if log := s.Log(t, run.Task("deploy").Attempt); !strings.Contains(log, "looks right by bo") {
		t.Errorf("the tasks after the gate see %q", log)
	}

	y.say("what was predicted, and what came")
	y.comment(n, "predicted 3 runs, started 3; all green")
	p := awaitChange(t, s, fmt.Sprintf("pull/%d", n), "is merged", func(p pipeline.Proposal) bool { return p.State == pipeline.ProposalMerged })
	if p.Merge == nil || p.Merge.Sentence != "predicted 3 runs, started 3" || p.Merge.Commit != merge {
		t.Errorf("%+v", p.Merge)
	}
	st := y.status(merge, "maestro", "success", "")
	y.status(head, "maestro", "success", "merged as")
	for _, address := range []string{g.Page(n), strings.Replace(st.URL, "https://maestro.example", s.Web, 1)} {
		if res, err := http.Get(address); err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("%s: %v %v", address, res, err)
		} else {
			_ = res.Body.Close()
		}
	}
	s.CheckNoLeak(t, g.Token, a)
	y.stay(s)
}

// reachable makes links lead to the server for who reads along. Between the choice of
// the port and its use another program could take it, so tests do without.
func (y *story) reachable() []string {
	if !*tellStory {
		return nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		y.t.Fatal(err)
	}
	defer l.Close()
	return []string{"--listen", l.Addr().String(), "--public-url", "http://" + l.Addr().String()}
}

// letGo waits for the gate of the first push, which no pull request led to, and reviews
// the pull request that Maestro opens for it.
func (y *story) letGo(s *testkit.Server, commit pipeline.CommitID, by string) {
	y.t.Helper()
	y.say("ada pushes to main: the composition ship waits for a word, and Maestro opens a pull request for it")
	n := y.AwaitGate("maestro-gate/ship/1/confirm", "Needs 1 approval of ops")
	body, _ := y.Body(n)
	y.show(fmt.Sprintf("what it says, #%d:", n), body)
	y.Review(by, n, "APPROVED", "go, "+string(commit[:7]))
	y.say("%s approves #%d for %s, and ship goes on", by, n, commit[:7])
	y.AwaitSettled(n, "`confirm` success: approved by "+by)
	y.status(commit, "maestro/run/ship", "success", "")
	y.status(commit, "maestro", "failure", "merged without the approval it needed; ")
}

// stay leaves everything up, when it was asked to, until it is interrupted.
func (y *story) stay(s *testkit.Server) {
	if !*stayUp || y.t.Failed() {
		return
	}
	done := make(chan os.Signal, 1)
	signal.Notify(done, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(done)
	fmt.Fprintf(y.out, "\nGitHub:     %s\nMaestro:    %s\nPush more:  git clone %s\nCtrl-C ends it.\n", y.Page(0), s.Web, y.Repo.Bare)
	<-done
}
