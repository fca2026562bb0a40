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

// TestNamesFromOutsideArriveAsTheyAre pushes branches, tags, subjects and authors that a
// shell, Git, a terminal or a page would take for something else.
func TestNamesFromOutsideArriveAsTheyAre(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	hacked := filepath.Join(t.TempDir(), "hacked")
	names := []string{
		"$(touch${IFS}HACKED)", "a;touch${IFS}HACKED;", "`touch${IFS}HACKED`", "--upload-pack=touch${IFS}HACKED", "x|touch${IFS}HACKED&", "'\"<b>100%", "party-\U0001F389",
		"ab\u202egnp.exe", "cd\u202egnp.exe",
	}
	repo.Push("main", testkit.Files(testkit.Ops(), workflow("values", `
triggers: [{push: branches: ["**"]}, {tag: tags: ["**"]}]
tasks: {
	code: git.#Checkout & {fields: ref: event.ref}
	say: shell.#Run & {needs: ["code"], fields: {
		script: "printf '%s|%s|%s|%s' \"$BRANCH\" \"$TAG\" \"$SUBJECT\" \"$AUTHOR\""
		env: {BRANCH: event.branch, TAG: event.tag, SUBJECT: event.subject, AUTHOR: event.author}
	}}
}`)))
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	testkit.Eventually(t, "the first look", func() (bool, string) {
		return s.Get("/board", new(struct{})) == nil && strings.Contains(s.Said(), "evaluated"), s.Said()
	})
	want := map[pipeline.CommitID]string{}
	for i, name := range names {
		name = strings.ReplaceAll(name, "HACKED", hacked)
		who := strings.NewReplacer("<", "", ">", "").Replace(name)
		repo.Git(repo.Work, "commit", "--quiet", "--allow-empty", "--author", who+" <x@example.com>", "-m", name+" "+strings.Repeat("z", 64<<10))
		commit := pipeline.CommitID(repo.Git(repo.Work, "rev-parse", "HEAD"))
		kind, parts := "refs/heads/", []string{name, ""}
		if i%2 == 1 {
			kind, parts = "refs/tags/", []string{"", name}
		}
		want[commit] = strings.Join(parts, "|")
		// What git push would not take somebody else's tool does.
		repo.Git(repo.Bare, "fetch", "--quiet", repo.Work, "HEAD")
		repo.Git(repo.Bare, "update-ref", kind+name, string(commit))
	}
	for commit, names := range want {
		r := s.AwaitRuns(t, commit, 1)[0]
		if r.State != pipeline.Success {
			t.Errorf("%q: %s: %s", names, r.State, r.Reason)
			continue
		}
		got := s.Log(t, r.Task("say").Attempt)
		if !strings.HasPrefix(got, names+"|") {
			t.Errorf("the task is told %.300q, want %q", got, names)
		}
		if rest := strings.TrimPrefix(got, names+"|"); strings.ContainsAny(rest, "\u202e\n") || len(rest) > 4<<10 {
			t.Errorf("subject and author are %d bytes: %.300q", len(rest), rest)
		}
		for _, path := range []string{fmt.Sprintf("/c/values/%d", r.Number), "/commits/" + string(commit), "/changes"} {
			if html := page(t, s, path); strings.Contains(html, "<b>100%") || strings.Contains(html, "\u202e") {
				t.Errorf("%s shows the name of %q as it is", path, names)
			}
		}
	}
	if _, err := os.Stat(hacked); err == nil {
		t.Error("a name was carried out")
	}
}
