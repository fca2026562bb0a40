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

// checked is a check that leaves a mark where it ran.
func checked(mark string) map[string]string {
	return map[string]string{"compositions/check/check.cue": fmt.Sprintf(`package ops

import "github.com/maestro-cd/maestro/plugins/shell"

compositions: check: {
	tasks: work: shell.#Run & {fields: script: "touch %s; echo checked"}
	triggers: [{pullRequest: {}}]
}
`, mark), "pools/outside/outside.cue": "package ops\n\npools: outside: untrusted: true\n"}
}

func TestForkRunsOnceSomebodyWhoMayLooksAtItsHead(t *testing.T) {
	real(t)
	dir := t.TempDir()
	mark := filepath.Join(dir, "ran")
	o := openGitHub(t, testkit.Files(pullFiles(), checked(filepath.Join(dir, "base"))))
	o.s.StartAgent(t, "trusted", "default", "")
	o.s.StartAgent(t, "insider", "outside", "") // trusted, in the pool that the fork goes to

	// The change plans, raises its own trust in vain, and runs nothing.
	open := strings.Replace(policy, "count: 1", "count: 1, paths: [\"nothing\"]", 1)
	n, head := o.OpenFork("mallory", "main", "trust me", testkit.Files(checked(mark), map[string]string{
		"policy/policy.cue": strings.Replace(open, `"ana", `, `"mallory", "ana", `, 1), "README": "trust me",
	}))
	name := fmt.Sprintf("pull/%d", n)
	o.planned(name, head)
	o.says(name, pipeline.ApprovalWaiting, "needs 1 approval of ops")
	o.AwaitStatus(head, "maestro", "pending", "needs 1 approval of ops")

	o.AwaitComment(n, "comments `/maestro ok-to-test "+head.Short())

	// Nobody but who may write says that it may run, and only of the head as it is.
	refusals := map[int64]string{
		o.Comment("mallory", n, "/maestro ok-to-test "+string(head)):        "confused",
		o.Comment("ana", n, "/maestro ok-to-test"):                          "confused",
		o.Comment("ana", n, "/maestro ok-to-test "+string(head[:11])):       "confused",
		o.Comment("ana", n, "/maestro ok-to-test "+strings.Repeat("0", 40)): "confused",
	}
	edited := o.Comment("ana", n, "nice work")
	o.EditComment(edited, "/maestro ok-to-test "+string(head))
	o.Comment("ana", n, "> /maestro ok-to-test "+string(head))
	o.Comment("ana", n, "```\n/maestro ok-to-test "+string(head)+"\n```")
	o.Edit(n, true, "main", false) // somebody touches it, as by a label
	o.Edit(n, false, "main", false)
	for id, want := range refusals {
		testkit.Eventually(t, "an answer", func() (bool, string) {
			got := o.Reactions(id)
			return len(got) == 1 && got[0] == want, fmt.Sprint(got)
		})
	}
	if runs, err := o.s.Runs(head); err != nil || len(runs) != 0 {
		t.Errorf("%+v %v", runs, err)
	}

	// Another head in the same moment: what was looked at is not what would run.
	second := o.PushFork("mallory", n, map[string]string{"README": "trust me more"})
	late := o.Comment("ana", n, "/maestro ok-to-test "+string(head))
	testkit.Eventually(t, "an answer", func() (bool, string) {
		got := o.Reactions(late)
		return len(got) == 1 && got[0] == "confused", fmt.Sprint(got)
	})
	o.planned(name, second)
	ok := o.Comment("ana", n, "/maestro ok-to-test "+string(second[:12])+"\n\nlooks fine")
	testkit.Eventually(t, "an answer", func() (bool, string) {
		got := o.Reactions(ok)
		return len(got) == 1 && got[0] == "+1", fmt.Sprint(got)
	})
	run := o.s.AwaitTask(t, second, "check", "work", pipeline.Ready)
	if run.Ref != pipeline.PullRef(n) {
		t.Errorf("it runs for %s", run.Ref)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("a trusted agent ran it")
	}
	startUntrusted(t, o.s, "outside")
	if r := o.s.AwaitRuns(t, second, 1)[0]; r.State != pipeline.Success {
		t.Errorf("%s: %s", r.State, r.Reason)
	}
	if _, err := os.Stat(mark); err != nil {
		t.Error(err)
	}
	// What was said of one head does not hold for the next.
	third := o.PushFork("mallory", n, map[string]string{"README": "trust me once more"})
	o.planned(name, third)
	if runs, err := o.s.Runs(third); err != nil || len(runs) != 0 {
		t.Errorf("%+v %v", runs, err)
	}
}

// startUntrusted starts an agent for what nobody approved.
func startUntrusted(t *testing.T, s *testkit.Server, pool string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(s.Invite(t, pool, "--untrusted")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.StartAgentWith(t, "sandbox", file)
	s.AwaitAgent(t, "sandbox")
}
