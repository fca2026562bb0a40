package testkit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/testkit"
)

// mistakes is a composition with n mistakes, each on a line of its own.
func mistakes(n int) map[string]string {
	var b strings.Builder
	b.WriteString("package ops\n\nimport \"github.com/maestro-cd/maestro/plugins/shell\"\n\ncompositions: wrong: tasks: {\n")
	for i := range n {
		fmt.Fprintf(&b, "\tt%d: shell.#Run & {fields: {script: \"true\", nonsense: %d}}\n", i, i)
	}
	b.WriteString("}\n")
	return map[string]string{"compositions/wrong/wrong.cue": b.String()}
}

func TestAnAppShowsMistakesOnTheirLinesAndRunsAgain(t *testing.T) {
	real(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the webhook's secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	g := testkit.NewGitHub(t)
	people(g)
	g.Person("dan", "write")
	g.UseApp(map[string]string{
		"metadata": "read", "contents": "read", "statuses": "write", "pull_requests": "write", "issues": "write", "members": "read", "checks": "write",
	})
	files := pullFiles()
	files["policy/policy.cue"] += "\npolicy: requests: \"again is for ops\": {verbs: [\"retry\"], by: [\"ops\"]}\n"
	files["compositions/check/check.cue"] = strings.Replace(files["compositions/check/check.cue"], "echo checked", "test ! -e FLAG || exit 3", 1)
	flag := filepath.Join(t.TempDir(), "flag")
	files["compositions/check/check.cue"] = strings.Replace(files["compositions/check/check.cue"], "FLAG", flag, 1)
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g.Repo.Push("main", files)
	s := g.Serve(t, "--github-webhook-secret-file", secret)
	s.StartAgent(t, "one", "default", "")
	g.Hook(s.Intake+"/github", "the webhook's secret", 2)
	g.AwaitStatus(g.Push("ada", "main", "", map[string]string{"README": "in force"}), "maestro", "", "")

	// Two of the answers never come.
	lost := map[string]bool{}
	g.Fail(func(method, path string) testkit.Fault {
		if strings.Contains(path, "/check-runs") && method != "GET" && !lost[method] {
			lost[method] = true
			return testkit.Fault{Lost: true}
		}
		return testkit.Fault{}
	})
	wrong := g.Push("eve", "wrong", "main", mistakes(120))
	g.Open("eve", "wrong", "main", "wrong")
	c := g.AwaitCheck(wrong, "failure", "mistakes")
	lines := map[int]int{}
	for _, a := range c.Annotations {
		if a.Path != "compositions/wrong/wrong.cue" || a.Level != "failure" || !strings.Contains(a.Message, "nonsense") {
			t.Errorf("%+v", a)
		}
		lines[a.Line]++
	}
	if _, all := g.Check(wrong); all != 1 || c.Name != "maestro/plan" || len(lines) != len(c.Annotations) || len(lines) < 51 {
		t.Errorf("%d check runs, the last %s with %d remarks on %d lines", all, c.Name, len(c.Annotations), len(lines))
	}
	g.AwaitStatus(wrong, "maestro", "failure", "")

	head := g.Push("eve", "fine", "main", testkit.Shell("build", "echo NEW", ""))
	n := g.Open("eve", "fine", "main", "fine")
	g.AwaitCheck(head, "failure", "1 of 1 run failed")
	if err := os.Remove(flag); err != nil {
		t.Fatal(err)
	}
	// Whose it is not to ask for does not get it, whoever signed the post.
	again := func(answer string) testkit.CheckRun {
		t.Helper()
		var c testkit.CheckRun
		testkit.Eventually(t, "a check run that says "+answer, func() (bool, string) {
			c, _ = g.Check(head)
			return c.Status == "completed" && strings.Contains(c.Summary, answer), fmt.Sprintf("%+v", c)
		})
		return c
	}
	first, _ := g.Check(head)
	g.Rerequest("mallory", head)
	g.AwaitComment(n, "mallory: not done: who asks may not write")
	if c := again("mallory: not done: who asks may not write"); c.ID == first.ID || c.Conclusion != "failure" {
		t.Errorf("after a press in vain GitHub shows %+v", c)
	}
	g.Rerequest("dan", head)
	g.AwaitComment(n, "dan: not done: ")
	if st := g.Status(head, "maestro/run/check"); st.State != "failure" {
		t.Errorf("it ran again: %+v", st)
	}
	g.Rerequest("bo", head)
	g.AwaitComment(n, "bo: retries check", "bo: starts check")
	g.AwaitStatus(head, "maestro/run/check", "success", "")
	c = g.AwaitCheck(head, "success", "all green")
	if !strings.Contains(c.Summary, "`build`") {
		t.Errorf("%s", c.Summary)
	}
	g.Rerequest("bo", head)
	if then := again("bo: nothing of it failed; the plan is made anew"); then.ID == c.ID || then.Conclusion != "success" {
		t.Errorf("after a press with nothing to do GitHub shows %+v", then)
	}
	if n := len(s.AwaitRuns(t, head, 2)); n != 2 { // each post came twice
		t.Errorf("%d runs", n)
	}
}
