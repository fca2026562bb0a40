package testkit_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// ask writes a comment and waits for the sign on it.
func (o *opened) ask(by string, number int, text, sign string) {
	o.t.Helper()
	id := o.Comment(by, number, text)
	testkit.Eventually(o.t, text+" by "+by+" is answered with "+sign, func() (bool, string) {
		got := o.Reactions(id)
		return len(got) == 1 && got[0] == sign, fmt.Sprint(got)
	})
}

func TestCommentsAskAndAreAnsweredInPlace(t *testing.T) {
	real(t)
	files := testkit.Files(pullFiles(), map[string]string{"compositions/release/release.cue": release})
	o := openGitHub(t, files)
	o.s.StartAgent(t, "one", "default", "")
	n, name, head := o.propose(testkit.Shell("build", "echo 1", ""))
	o.AwaitComment(n, "needs 1 approval of ops")

	o.ask("ana", n, "/maestro help", "+1")
	o.AwaitComment(n, "ana: plan, run COMPOSITION")
	o.ask("ana", n, "/maestro frobnicate now", "confused")
	o.AwaitComment(n, "not done", "frobnicate", "/maestro help says what may be asked")
	o.ask("mallory", n, "/maestro run release", "confused")
	o.AwaitComment(n, "mallory: not done: who asks may not write to the repository")
	o.ask("ana", n, "/maestro why build", "+1")
	o.AwaitComment(n, "ana: build: on merge: push to main")
	o.ask("eve", n, "/maestro run release version=1.4", "confused")
	o.AwaitComment(n, "eve asked for it, who is not in ops")
	o.ask("ana", n, "/maestro run release version=1.4\n\nplease", "+1")
	o.AwaitComment(n, `ana: starts release\#`)
	main := pipeline.CommitID(o.Repo.Git(o.Repo.Bare, "rev-parse", "refs/heads/main"))
	var run pipeline.Run
	testkit.Eventually(t, "the run waits at its gate", func() (bool, string) {
		runs, err := o.s.Runs(main)
		for _, r := range runs {
			if r.Composition == "release" && string(r.Params) == `{"version":"1.4"}` && r.Event.Author == "ana" {
				run = r
			}
		}
		return run.ID != "", fmt.Sprint(len(runs), err)
	})
	o.ask("bo", n, fmt.Sprintf("/maestro cancel release#%d not today", run.Number), "+1")
	testkit.Eventually(t, "the run is cancelled", func() (bool, string) {
		runs, err := o.s.Runs(main)
		for _, r := range runs {
			if r.ID == run.ID {
				return r.State == pipeline.Cancelled && strings.Contains(r.Reason, "cancelled by bo: not today"), string(r.State) + r.Reason
			}
		}
		return false, fmt.Sprint(err)
	})
	o.ask("ana", n, "/maestro plan", "+1")
	o.approved(name, n, "ana")
	o.ask("bo", n, "/maestro hold", "+1")
	o.says(name, pipeline.ApprovalWaiting, "held by bo")
	o.AwaitStatus(head, "maestro", "pending", "held by bo")
	o.ask("bo", n, "/maestro hold off", "+1")
	o.says(name, pipeline.ApprovalGiven, "approved by ana")

	// What only looks like a command is none; Maestro's own words least of all.
	for _, text := range []string{"> /maestro hold", " /maestro hold", "/maestrohold", "please\n/maestro hold", "`/maestro hold`"} {
		o.Comment("bo", n, text)
	}
	o.Comment(testkit.MaestroLogin, n, "/maestro hold")
	o.ask("ana", n, "/maestro why check", "+1")
	o.says(name, pipeline.ApprovalGiven, "approved by ana")
	for _, body := range o.Comments(testkit.MaestroLogin, n) {
		if strings.Contains(body, "@octo") || len(body) > 60_000 {
			t.Errorf("%d bytes\n%s", len(body), body)
		}
	}
}

func TestOneCommentWhateverHappensToIt(t *testing.T) {
	real(t)
	o := openGitHub(t, pullFiles())
	o.s.StartAgent(t, "one", "default", "")

	// The answers to the first tries are lost, and the list lags: there is one all the same.
	lost := 0
	o.Fail(func(method, path string) testkit.Fault {
		if method == http.MethodPost && strings.HasSuffix(path, "/comments") && lost < 2 {
			lost++
			return testkit.Fault{Lost: true}
		}
		return testkit.Fault{}
	})
	o.Lag(2 * time.Second)
	n, name, _ := o.propose(testkit.Shell("build", "echo 1", ""))
	testkit.Eventually(t, "it is posted twice", func() (bool, string) {
		got := o.Comments(testkit.MaestroLogin, n)
		return o.posted() >= 2 && len(got) == 2, fmt.Sprint(o.posted(), len(got))
	})
	first := o.AwaitComment(n, "needs 1 approval of ops")
	if !strings.HasPrefix(first, "<!-- maestro:v1:plan:") {
		t.Error(first)
	}
	o.Fail(nil)

	// Somebody posts the marker, and a crash left two of our own.
	marker, _, _ := strings.Cut(first, "\n")
	o.Comment("mallory", n, marker+"\n**maestro plan: nothing to see**")
	o.Comment(testkit.MaestroLogin, n, first)
	o.s.Kill()
	o.s.Restart(t)
	// Ten pushes, every other one broken: people are notified of the first bad one.
	posted := o.posted()
	var head pipeline.CommitID
	for i := range 10 {
		script := testkit.Shell("build", fmt.Sprint("echo ", i), "")
		if i%2 == 0 {
			script = map[string]string{"compositions/build/build.cue": "package ops\n\ncompositions: build: nonsense: 1\n"}
		}
		head = o.Push("eve", "change-1", "", script)
		o.planned2(name, head)
		want := "`" + head.Short() + "`"
		o.AwaitComment(n, want)
	}
	if again := o.posted(); again-posted != 1 {
		t.Errorf("%d more comments were posted, want one for the first broken head", again-posted)
	}
	if got := o.Comments("mallory", n); len(got) != 1 {
		t.Errorf("%q", got)
	}
	o.AwaitStatus(head, "maestro/run/check", "success", "")
	if d := cmp.Diff([]string{"maestro", "maestro/run/check"}, o.Contexts(head)); d != "" {
		t.Errorf("contexts of the last head (-want +got):\n%s", d)
	}
}

func (o *opened) planned2(name string, head pipeline.CommitID) {
	o.t.Helper()
	awaitChange(o.t, o.s, name, "is looked at", func(p pipeline.Proposal) bool { return p.Head == head })
}

// posted is how many comments Maestro has made.
func (o *opened) posted() int {
	n := 0
	for _, asked := range o.Asked() {
		if strings.HasPrefix(asked, "POST /repos/octo/ops/issues/") && strings.HasSuffix(asked, "/comments") {
			n++
		}
	}
	return n
}
