package plan_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
)

func gateTalk(text string) *plan.GateTalk {
	out, err := json.Marshal(map[string]string{"seen": text, "used": "7"})
	if err != nil {
		panic(err)
	}
	r := &pipeline.Run{
		ID: "r", Composition: "release", Number: 7, Commit: "1111111111111111111111111111111111111111", Params: out,
		Event: pipeline.Event{Kind: pipeline.EventPush, Ref: "refs/heads/main", Subject: text, Author: text},
		Tasks: []pipeline.RunTask{
			{Name: "build", State: pipeline.Success, Reason: text, Outputs: out, Spec: pipeline.Task{Name: "build"}},
			{Name: "confirm", State: pipeline.Held, Message: text, Spec: pipeline.Task{Name: "confirm", Needs: []pipeline.TaskName{"build"}, Gate: &pipeline.Gate{Count: 2}}},
			{Name: "deploy", State: pipeline.Pending, Spec: pipeline.Task{
				Name: "deploy", Uses: "tomcat/deploy", Needs: []pipeline.TaskName{"confirm"}, Secrets: []pipeline.SecretName{"prod-key"},
				Requirement: pipeline.Requirement{Pool: "prod"}, Bindings: []pipeline.Binding{{Field: "n", From: "build", Output: "used"}},
			}},
			{Name: "undo", State: pipeline.Pending, Spec: pipeline.Task{Name: "undo", Uses: "vm/stop", Needs: []pipeline.TaskName{"deploy"}, When: pipeline.OnFailure}},
			{Name: "aside", State: pipeline.Running, Spec: pipeline.Task{Name: "aside"}},
		},
	}
	return &plan.GateTalk{
		Run: r, Task: &r.Tasks[1], URL: "https://ci.example", Expires: time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC),
		Need:     pipeline.Need{Approvers: []string{"ops"}, People: []string{"ana", "bo"}, Want: 2, Have: 1},
		Opinions: []pipeline.Opinion{{Review: pipeline.Review{By: text, Approve: true}, Why: text}},
	}
}

func TestGateSaysWhatIsAskedOfWhomAndWhatComesOfIt(t *testing.T) {
	t.Parallel()
	g := gateTalk("go?")
	text := g.Markdown()
	for _, want := range []string{
		"**maestro: [`release 7`](https://ci.example/c/release/7) waits at `confirm`: go?**\n", "Needs 2 approvals of ops (ana, bo), and has 1.",
		"by 2026-11-24T09:00:00Z, the task times out", "`go?` approves, which does not count: go?", "| ✓ success | `build` |", "| … running | `aside` |",
		"| `deploy` | `tomcat/deploy` | approved | `prod` | `prod-key` |", "| `undo` | `vm/stop` | refused |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	// What a task to come reads is shown first.
	if used, seen := strings.Index(text, "`used`"), strings.Index(text, "| `seen`"); used < 0 || seen < used {
		t.Errorf("used at %d, seen at %d", used, seen)
	}
	g.Task.State, g.Task.Reason = pipeline.Success, "approved by ana, bo"
	if text := g.Markdown(); !strings.HasPrefix(text, "**maestro: `confirm` success: approved by ana, bo**") || strings.Contains(text, "Needs") {
		t.Error(text)
	}
}

func TestNothingInAGateIsMarkupFromOutside(t *testing.T) {
	t.Parallel()
	for line := range strings.Lines(gateTalk(nasty).Markdown()) {
		parts := strings.Split(line, "````")
		for i := 0; i < len(parts); i += 2 {
			for _, bad := range []string{"@octo", "![", "<details", "x](", "a](", "Fixes #1", "\u202e"} {
				if strings.Contains(parts[i], bad) {
					t.Errorf("%q has %q", parts[i], bad)
				}
			}
		}
		if strings.HasPrefix(line, "# title") || strings.HasPrefix(line, "```") {
			t.Errorf("%q", line)
		}
	}
	if title := gateTalk(nasty).Title(); strings.ContainsAny(title, "\n\u202e") || len([]rune(title)) > 200 {
		t.Errorf("%q", title)
	}
}

func TestTextOfAGateIsNeverTooLong(t *testing.T) {
	t.Parallel()
	g := gateTalk(strings.Repeat("é", 5000))
	for i := range 500 {
		t := g.Run.Tasks[0]
		t.Name = pipeline.TaskName(fmt.Sprintf("build-%d", i))
		g.Run.Tasks = append(g.Run.Tasks, t)
		g.Opinions = append(g.Opinions, g.Opinions[0])
	}
	g.Task = g.Run.Task("confirm")
	if n := len(g.Markdown()); n > plan.MaxMarkdown {
		t.Errorf("%d bytes", n)
	}
}

func TestGateOfWhatSomebodyAskedForSaysWho(t *testing.T) {
	t.Parallel()
	g := gateTalk("go?")
	g.Run.Event = pipeline.Event{Kind: pipeline.EventManual, Ref: "refs/heads/main", Author: "ana"}
	if text := g.Markdown(); !strings.Contains(text, "Started by a request of `main` at `111111111111`\nby `ana`\n") {
		t.Error(text)
	}
}
