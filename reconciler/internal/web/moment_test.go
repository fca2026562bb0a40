package web_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/web"
)

// under is one run of one task in the given state.
func under(state pipeline.State) *fakeSource {
	t := task("greet", "shell/run")
	t.Requirement.Pool = "windows"
	run := pipeline.Run{
		ID: runIDOf(1), Number: 1, Composition: "hello", Commit: shaLive, State: pipeline.Running, CreatedAt: ago(time.Minute),
		Reason: "0 of 1 tasks, as it is recorded", Tasks: []pipeline.RunTask{{Name: "greet", Spec: t, State: state, Agent: "a-3", Attempt: attemptID(1), StartedAt: ago(time.Minute)}},
	}
	f := &fakeSource{runs: []pipeline.Run{run}, agents: []web.AgentView{{Agent: pipeline.Agent{ID: "a-3", Name: "vm-3"}}}}
	f.board.Compositions = []web.CompositionSummary{{Name: "hello"}}
	f.attempts = []pipeline.Attempt{{ID: attemptID(1), Run: run.ID, Task: "greet", Agent: "a-3", State: pipeline.AttemptRunning}}
	return f
}

// everywhere wants the texts on each page and in each answer that shows the run.
func everywhere(t *testing.T, h http.Handler, texts ...string) {
	t.Helper()
	for _, path := range []string{
		"/", "/c/hello", "/c/hello/1", "/c/hello/1/t/greet", "/api/v1/board", "/api/v1/runs", "/api/v1/runs/" + string(runIDOf(1)),
		"/api/v1/compositions/hello/runs/1", "/api/v1/why?task=greet&run=" + string(runIDOf(1)),
	} {
		res, body := get(t, h, path)
		for _, text := range texts {
			if res.StatusCode != http.StatusOK || !strings.Contains(body, text) {
				t.Errorf("%s: status %d, want it to say %q\n%s", path, res.StatusCode, text, body)
			}
		}
	}
}

func TestWhatATaskSaysOfItselfIsShownWhileItRuns(t *testing.T) {
	t.Parallel()
	f := under(pipeline.Running)
	part := 0.4
	f.note(runIDOf(1), attemptID(1), pipeline.Note{
		Progress: &part, Waiting: "the lock", Text: "copying", Links: []pipeline.Link{{Name: "report", URL: "https://ci.example.org/r"}, {Name: "evil", URL: "javascript:1"}},
	})
	h := handler(t, f)
	everywhere(t, h, "runs on agent vm-3: 40% done, waits for the lock, copying")
	for _, path := range []string{"/c/hello/1", "/c/hello/1/t/greet"} {
		if _, body := get(t, h, path); !strings.Contains(body, `href="https://ci.example.org/r"`) || strings.Contains(body, "javascript:1") {
			t.Errorf("%s: want the link that is a web page, and no other\n%s", path, body)
		}
	}
	var run struct {
		Tasks []struct{ Now pipeline.Note }
	}
	_, body := get(t, h, "/api/v1/runs/"+string(runIDOf(1)))
	if err := json.Unmarshal([]byte(body), &run); err != nil || len(run.Tasks) != 1 || *run.Tasks[0].Now.Progress != 0.4 || run.Tasks[0].Now.Waiting != "the lock" {
		t.Errorf("%v\n%s", err, body)
	}
}

func TestPagesAndFollowersHearWhatATaskSays(t *testing.T) {
	t.Parallel()
	f := under(pipeline.Running)
	s := serve(t, f)
	events, _ := open(t, s.URL+"/events")
	next(t, events)
	changes, _ := open(t, s.URL+"/api/v1/events?follow=1&notes=1")
	before, _ := get(t, s.Config.Handler, "/c/hello/1")
	f.note(runIDOf(1), attemptID(1), pipeline.Note{Text: "copying"})
	hasTopics(t, next(t, events), "r:"+string(runIDOf(1)))
	line, err := changes.ReadString('\n')
	var c pipeline.Change
	if err != nil || json.Unmarshal([]byte(line), &c) != nil || c.Kind != "note" || c.Run != runIDOf(1) {
		t.Errorf("%q, %v: want a note", line, err)
	}
	// The page is built anew although the record has not changed.
	if res, body := get(t, s.Config.Handler, "/c/hello/1", "If-None-Match", before.Header.Get("ETag")); res.StatusCode != http.StatusOK || !strings.Contains(body, "copying") {
		t.Errorf("status %d\n%s", res.StatusCode, body)
	}
}

func TestARunThatNoAgentCanTakeIsBlockedEverywhere(t *testing.T) {
	t.Parallel()
	f := under(pipeline.Ready)
	f.board.Queue = []web.Waiting{{TaskRef: web.TaskRef{Run: runIDOf(1), Composition: "hello", Number: 1, Task: "greet"}, Blocked: true, Sentence: "no agent fits: 1 of 1 lack pool windows"}}
	h := handler(t, f)
	everywhere(t, h, "blocked", "no agent fits: 1 of 1 lack pool windows")
	for _, path := range []string{"/", "/c/hello", "/c/hello/1"} {
		if _, body := get(t, h, path); strings.Contains(body, `"st st-running"`) || !strings.Contains(body, `"st st-blocked"`) {
			t.Errorf("%s shows the run as running\n%s", path, body)
		}
	}
	// While another task runs, the run goes on.
	f.runs[0].Tasks = append(f.runs[0].Tasks, pipeline.RunTask{Name: "other", State: pipeline.Running, Agent: "a-3", Spec: task("other", "shell/run")})
	_, body := get(t, h, "/api/v1/runs/"+string(runIDOf(1)))
	var run struct{ Shown, Sentence string }
	if err := json.Unmarshal([]byte(body), &run); err != nil || run.Shown != "running" || !strings.Contains(run.Sentence, "greet is blocked") || !strings.Contains(run.Sentence, "other is running") {
		t.Errorf("%v: %+v", err, run)
	}
}

func TestASilentAgentIsNamedWithWhatEndsTheWait(t *testing.T) {
	t.Parallel()
	f := under(pipeline.Running)
	f.board.Silent = map[pipeline.AgentID]time.Time{"a-3": time.Date(2026, 3, 14, 10, 20, 0, 0, time.UTC)}
	everywhere(t, handler(t, f), "agent vm-3, which is silent since 10:20:00Z", "counts as lost at 10:30:00Z", "started on another agent")
	f.runs[0].Tasks[0].Spec.Effect, f.runs[0].Tasks[0].Spec.LostAfter = pipeline.Once, pipeline.Duration(time.Hour)
	everywhere(t, handler(t, f), "counts as lost at 11:20:00Z", "in doubt")
}

func TestOnlyACompositionThatHasAPageIsLinkedFromItsVerdict(t *testing.T) {
	t.Parallel()
	f := sample()
	f.verdicts = []pipeline.Verdict{
		{Commit: shaLive, Composition: "compositions/broken", Kind: pipeline.EventPush, Outcome: pipeline.VerdictRejected, Sentence: "a mistake"},
		{Commit: shaLive, Composition: "never-live", Kind: pipeline.EventPush, Outcome: pipeline.VerdictSkipped, Sentence: "no trigger"},
		{Commit: shaLive, Composition: "hello", Kind: pipeline.EventPush, Outcome: pipeline.VerdictRejected, Sentence: "a mistake"},
	}
	h := handler(t, f)
	_, body := get(t, h, "/commits/"+string(shaLive))
	for path, want := range map[string]bool{"/c/compositions/broken": false, "/c/never-live": false, "/c/hello": true} {
		if got := strings.Contains(body, `href="`+path+`"`); got != want {
			t.Errorf("%s is linked: %t, want %t", path, got, want)
		}
		if res, _ := get(t, h, path); (res.StatusCode == http.StatusOK) != want {
			t.Errorf("%s: status %d", path, res.StatusCode)
		}
	}
	if !strings.Contains(body, "compositions/broken") {
		t.Error("the folder is not named")
	}
}

func TestATaskThatNeverStartedHasAWholeSentence(t *testing.T) {
	t.Parallel()
	f := under(pipeline.Skipped)
	f.attempts = nil
	f.runs[0].State, f.runs[0].Tasks[0].Reason = pipeline.Failure, "needs lint: failure"
	_, body := get(t, handler(t, f), "/c/hello/1/t/greet")
	if want := "No agent was given this task, so there is no log. Needs lint: failure.</p>"; !strings.Contains(body, want) {
		t.Errorf("want %q\n%s", want, body)
	}
}

func TestBoardCountsTheRunsThatItDoesNotList(t *testing.T) {
	t.Parallel()
	f := &fakeSource{}
	for i := range 250 {
		f.runs = append(f.runs, pipeline.Run{ID: pipeline.RunID(fmt.Sprintf("01%024d", i)), Composition: "c", Number: i + 1, State: pipeline.Running})
	}
	h := handler(t, f)
	if _, body := get(t, h, "/"); !strings.Contains(body, "250 running") || !strings.Contains(body, "and 50 more") {
		t.Errorf("the page does not tell of 50 more:\n%.2000s", body)
	}
	var b struct {
		Unfinished []json.RawMessage `json:"unfinished"`
		More       int               `json:"unfinished_more"`
	}
	if _, body := get(t, h, "/api/v1/board"); json.Unmarshal([]byte(body), &b) != nil || len(b.Unfinished) != 200 || b.More != 50 {
		t.Errorf("the API lists %d and tells of %d more", len(b.Unfinished), b.More)
	}
}
