package web_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/web"
)

// pages are the addresses of the sample that a person opens.
var pages = []string{
	"/", "/c/acceptance", "/c/hello", "/c/acceptance/128", "/c/acceptance/126", "/c/hello/57",
	"/c/acceptance/128/t/checkout", "/c/acceptance/128/t/lint", "/c/acceptance/128/t/lint?attempt=1", "/c/acceptance/128/t/unit",
	"/c/acceptance/128/t/start-vm", "/c/acceptance/128/t/deploy-war", "/c/acceptance/128/t/acceptance", "/c/acceptance/128/t/load",
	"/c/acceptance/128/t/confirm-deploy", "/c/acceptance/128/t/windows-smoke", "/c/acceptance/128/t/migrate", "/c/acceptance/128/t/docs",
	"/c/acceptance/128/t/publish-docs", "/c/acceptance/128/t/notify", "/c/acceptance/128/t/destroy-vm",
	"/c/acceptance/128/t/checkout?q=case&line=3", "/c/acceptance?before=" + string(runIDOf(120)),
	"/queue", "/agents", "/agents/a-3", "/agents/a-8", "/commits", "/commits/" + string(shaLive), "/commits/" + string(shaBad), "/problems", "/plugins",
	"/changes", "/changes/feature/louder", "/changes/merged", "/changes?branch=feature/louder",
}

func TestEveryPageIsWellMade(t *testing.T) {
	t.Parallel()
	for name, src := range map[string]*fakeSource{"sample": sample(), "hostile": hostile()} {
		h := handler(t, src)
		for _, p := range pages {
			t.Run(name+" "+p, func(t *testing.T) {
				t.Parallel()
				res, body := get(t, h, p)
				if res.StatusCode != http.StatusOK {
					t.Fatalf("status %d\n%s", res.StatusCode, body)
				}
				checkHTML(t, body)
				fragment, _ := get(t, h, p+map[bool]string{true: "&", false: "?"}[strings.Contains(p, "?")]+"fragment=1")
				if fragment.StatusCode != http.StatusOK {
					t.Errorf("fragment: status %d", fragment.StatusCode)
				}
			})
		}
	}
}

func TestEmptyPagesSayWhatToDo(t *testing.T) {
	t.Parallel()
	h := handler(t, &fakeSource{})
	for path, want := range map[string]string{
		"/": "push it", "/queue": "Nothing waits", "/agents": "agents invite", "/commits": "No commit", "/changes": "Push a branch", "/plugins": "declares no plugin", "/problems": "None.",
	} {
		res, body := get(t, h, path)
		if res.StatusCode != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: status %d, want it to say %q", path, res.StatusCode, want)
		}
		checkHTML(t, body)
	}
}

// checkHTML walks a page: what is not there for all readers is an error.
func checkHTML(t *testing.T, body string) {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	ids, used, headings := map[string]bool{}, map[string]string{}, []int{}
	labels := map[string]bool{}
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		attr := map[string]string{}
		for _, a := range n.Attr {
			attr[a.Key] = a.Val
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" || a.Key == "srcdoc" {
				t.Errorf("<%s %s>: the policy forbids it", n.Data, a.Key)
			}
		}
		if id, ok := attr["id"]; ok {
			if ids[id] || id == "" {
				t.Errorf("id %q is there twice", id)
			}
			ids[id] = true
		}
		for _, key := range []string{"aria-labelledby", "for"} {
			if attr[key] != "" {
				used[attr[key]] = n.Data + " " + key
			}
		}
		if n.Data == "label" {
			labels[attr["for"]] = true
		}
		if href := attr["href"]; href != "" && n.Data == "a" && !strings.HasPrefix(href, "/") && !strings.HasPrefix(href, "#") && !strings.HasPrefix(href, "https://") && !strings.HasPrefix(href, "http://") {
			t.Errorf("link to %q", href)
		}
		switch n.Data {
		case "h1", "h2", "h3":
			headings = append(headings, int(n.Data[1]-'0'))
		case "img":
			if _, ok := attr["alt"]; !ok {
				t.Errorf("image %s without alt", attr["src"])
			}
		case "script":
			if attr["src"] == "" || n.FirstChild != nil {
				t.Error("inline script")
			}
		case "style", "iframe", "object", "base", "foreignobject":
			t.Errorf("<%s>", n.Data)
		case "a", "button", "summary":
			if name(n) == "" {
				t.Errorf("<%s href=%s> says nothing", n.Data, attr["href"])
			}
		case "svg":
			if !hiddenHere(n) && attr["aria-label"] == "" && attr["class"] != "graph" && n.Parent.Data != "g" {
				t.Errorf("picture %q without a name", attr["class"])
			}
		case "th":
			if attr["scope"] == "" {
				t.Errorf("heading of a table without scope: %s", name(n))
			}
		}
	}
	for id, by := range used {
		if !ids[id] {
			t.Errorf("%s names %q, which is not there", by, id)
		}
	}
	for n := range doc.Descendants() {
		if n.Type == html.ElementNode && (n.Data == "input" || n.Data == "select") {
			id, kind, labelled := attrOf(n, "id"), attrOf(n, "type"), n.Parent.Data == "label"
			if kind != "hidden" && !labels[id] && !labelled {
				t.Errorf("input %q without label", id)
			}
		}
	}
	if len(headings) == 0 || headings[0] != 1 {
		t.Errorf("headings %v, want h1 first", headings)
	}
	for i := 1; i < len(headings); i++ {
		if headings[i] > headings[i-1]+1 || headings[i] == 1 {
			t.Errorf("headings %v skip a level", headings)
		}
	}
}

// hiddenHere reports whether a screen reader skips the element.
func hiddenHere(n *html.Node) bool {
	for ; n != nil; n = n.Parent {
		if attrOf(n, "aria-hidden") == "true" {
			return true
		}
	}
	return false
}

func attrOf(n *html.Node, key string) string {
	for _, a := range n.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

// name is what a screen reader would call an element, roughly.
func name(n *html.Node) string {
	if l := attrOf(n, "aria-label"); l != "" {
		return l
	}
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data)
		} else if l := attrOf(d, "aria-label"); l != "" {
			b.WriteString(l)
		}
	}
	return strings.TrimSpace(b.String())
}

const (
	attack = `"><script>alert(1)</script><img src=x onerror=alert(1)>'</title></textarea>{{.}}` + "\u202egnp.exe\u200b\x00"
	jsURL  = "javascript:alert(1)"
)

// hostile is the sample with an attack wherever text comes from outside.
func hostile() *fakeSource {
	f := sample()
	f.board.Repository.Subject, f.board.Repository.Author, f.board.Repository.Problem, f.board.Repository.URL = attack, attack, attack, attack
	f.board.Repository.Sources = []web.SourceRepository{{Name: "app", URL: attack, Problem: attack, SeenAt: epoch}, {Name: "lib", URL: attack}}
	for i := range f.board.Compositions {
		f.board.Compositions[i].Description = attack
	}
	for i := range f.board.Queue {
		f.board.Queue[i].Sentence = attack
	}
	f.board.Newest.Subject = attack
	for i := range f.runs {
		run := &f.runs[i]
		run.Event.Subject, run.Event.Author, run.Event.Repo, run.Event.Ref, run.Ref = attack, attack, attack, attack, attack
		run.Event.Head = run.Commit
		run.Reason = attack
		run.Params = []byte(fmt.Sprintf(`{%q:%q}`, `<marquee>`, "</script>"))
		for k := range run.Tasks {
			t := &run.Tasks[k]
			t.Reason = attack
			t.Links = []pipeline.Link{{Name: attack, URL: jsURL}, {Name: attack, URL: "https://e.org/\"onclick=x"}}
			t.Spec.Uses, t.Spec.Description, t.Spec.Pos.File = attack, attack, attack
			if t.Outputs != nil {
				t.Outputs = []byte(`{"<script>":"</script>\u202e","<i>":{"a":"<marquee>"}}`)
			}
		}
	}
	for i := range f.commits {
		c := &f.commits[i]
		c.Subject, c.Author, c.Ref = attack, attack, attack
		for k := range c.Diagnostics {
			d := &c.Diagnostics[k]
			d.Message, d.Note, d.Help, d.Pos.File, d.Code = attack, attack, attack, attack, attack
		}
	}
	for i := range f.verdicts {
		f.verdicts[i].Sentence, f.verdicts[i].Ref = attack, attack
	}
	for i := range f.agents {
		f.agents[i].Name, f.agents[i].Build = attack, attack
		f.agents[i].Facts = []byte(`{"<script>":"</script>","os":{"name":"<marquee>"},"cpus":{"count":"many"},"list":[{"<i>":"<u>"}]}`)
	}
	for i := range f.plugins {
		p := &f.plugins[i]
		p.Description, p.Dir, p.Tree = attack, attack, attack
		for k := range p.Tasks {
			p.Tasks[k].Description, p.Tasks[k].Definition = attack, attack
		}
	}
	for i := range f.live {
		f.live[i].Description, f.live[i].Pos.File = attack, attack
		for k := range f.live[i].Triggers {
			f.live[i].Triggers[k].Push.Branches = []string{attack}
		}
	}
	for _, l := range f.logs {
		l.text = []byte(attack + "\n\x1b]8;;" + jsURL + "\x07click\x1b]8;;\x07\n\x1b]0;title\x07\n" + attack)
	}
	return f
}

func TestPageOfACompositionSaysAllThatStartsIt(t *testing.T) {
	t.Parallel()
	src := sample()
	i := slices.IndexFunc(src.live, func(c pipeline.Composition) bool { return c.Name == "acceptance" })
	src.live[i].Triggers = append(src.live[i].Triggers, []pipeline.Trigger{
		{PullRequest: &pipeline.PullRequestTrigger{Repo: "web", Branches: []string{"main"}, Paths: []string{"src/**"}}},
		{Tag: &pipeline.TagTrigger{Tags: []string{"v*"}}, Params: pipeline.Expr{Value: []byte(`{"shards":2}`)}},
		{Cron: &pipeline.CronTrigger{Schedule: "0 2 * * *", Zone: "UTC"}},
		{After: &pipeline.AfterTrigger{Composition: "hello", Result: "any"}},
		{Webhook: &pipeline.WebhookTrigger{ID: "ticket"}},
		{Manual: &pipeline.ManualTrigger{}},
	}...)
	_, body := get(t, handler(t, src), "/c/acceptance")
	for _, want := range []string{
		"a push to main that changes app/**; a change that is proposed for main of web that changes src/**; a tag like v*, with {",
		"; the clock, 0 2 * * * UTC; the end of a run of hello, any; a post to /hooks/ticket; a request</dd>",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

func TestTextFromOutsideStaysText(t *testing.T) {
	t.Parallel()
	h := handler(t, hostile())
	for _, p := range append([]string{"/c/acceptance/128/t/checkout/log?from=1&n=10", "/c/acceptance/128/t/checkout/log?q=script"}, pages...) {
		_, body := get(t, h, p)
		for _, bad := range []string{"<script>alert", "<img src=x", "<marquee>", "<i>", jsURL, "\u202e", "\u200b", "\x00"} {
			if strings.Contains(body, bad) {
				t.Errorf("%s holds %q", p, bad)
			}
		}
	}
	res, body := get(t, h, "/c/acceptance/128/t/checkout/log.txt")
	if !strings.Contains(body, jsURL) || !strings.HasPrefix(res.Header.Get("Content-Disposition"), "attachment") || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("the raw log is not a plain download: %v", res.Header)
	}
}

func TestEveryStateThatIsNoOutcomeHasItsSentence(t *testing.T) {
	t.Parallel()
	src := sample()
	run := &src.runs[0]
	src.board.Queue = nil
	for i := range run.Tasks {
		run.Tasks[i].Reason = ""
	}
	h := handler(t, src)
	_, whole := get(t, h, "/c/acceptance/128")
	for _, task := range run.Tasks {
		if task.State.Terminal() {
			continue
		}
		row := regexp.MustCompile(`(?s)<tr data-key="` + string(task.Name) + `".*?</tr>`).FindString(whole)
		if !regexp.MustCompile(`class="desc">[^<]+<`).MatchString(row) {
			t.Errorf("%s task %s has no sentence in the list of tasks", task.State, task.Name)
		}
		_, body := get(t, h, "/c/acceptance/128/t/"+string(task.Name))
		if !regexp.MustCompile(`class="lead why [^"]*">[^<]+<`).MatchString(body) {
			t.Errorf("%s task %s has no sentence on its page", task.State, task.Name)
		}
	}
	for _, state := range []pipeline.State{pipeline.Pending, pipeline.Ready, pipeline.Running, pipeline.InDoubt, pipeline.Offered} {
		run.State = state
		for i := range run.Tasks {
			run.Tasks[i].State = state
		}
		_, body := get(t, handler(t, src), "/c/acceptance/128")
		if !regexp.MustCompile(`class="lead why [^"]*">[^<]+<`).MatchString(body) {
			t.Errorf("%s run has no sentence", state)
		}
	}
}

func TestLogIsReadWithoutScripts(t *testing.T) {
	t.Parallel()
	src := sample()
	src.logs[attemptID(100)] = &fakeLog{lines: 1_000_000, sealed: true, line: func(n int64) []byte { return fmt.Appendf(nil, "this is line %d", n) }}
	h := handler(t, src)
	const page = "/c/acceptance/128/t/checkout"
	_, body := get(t, h, page)
	if !strings.Contains(body, "this is line 1000000<") || strings.Contains(body, "this is line 999500<") {
		t.Error("a log opens with its last 500 lines")
	}
	_, body = get(t, h, page+"?line=949322")
	if !strings.Contains(body, `id="L949322"`) || !strings.Contains(body, "this is line 949322<") {
		t.Error("line 949322 is not on its page")
	}
	if n := strings.Count(body, `class="ln"`); n != 500 {
		t.Errorf("%d lines on the page", n)
	}
	// Every line is reached by following the links from the first to the last.
	seen, at := 0, page+"?line=999000"
	for at != "" {
		_, body = get(t, h, at)
		for n := 999000; n <= 1_000_000; n++ {
			if strings.Contains(body, fmt.Sprintf(`id="L%d"`, n)) && n > seen {
				if seen > 0 && n != seen+1 {
					t.Fatalf("after line %d comes %d", seen, n)
				}
				seen = n
			}
		}
		at = ""
		if m := regexp.MustCompile(`href="([^"#]+)#L\d+">later lines`).FindStringSubmatch(body); m != nil {
			at = html.UnescapeString(m[1])
		}
	}
	if seen != 1_000_000 {
		t.Errorf("the links lead to line %d", seen)
	}
}

func TestPageOfARunUnderWayReloadsWithoutScripts(t *testing.T) {
	t.Parallel()
	h := handler(t, sample())
	for path, want := range map[string]bool{"/": true, "/c/acceptance/128": true, "/c/acceptance/126": false, "/plugins": false} {
		if _, body := get(t, h, path); strings.Contains(body, `<noscript><meta http-equiv="refresh"`) != want {
			t.Errorf("%s: reloads: %t, want %t", path, !want, want)
		}
	}
}

func TestTwoThousandTasksAreShownAtOnce(t *testing.T) {
	t.Parallel()
	src := sample()
	run := &src.runs[0]
	base := run.Tasks[0]
	run.Tasks = nil
	for i := range 2000 {
		rt := base
		rt.Name, rt.Index = pipeline.TaskName(fmt.Sprint("task-", i)), i
		rt.Spec.Needs = nil
		if i > 0 {
			rt.Spec.Needs = []pipeline.TaskName{pipeline.TaskName(fmt.Sprint("task-", (i-1)/3))}
		}
		run.Tasks = append(run.Tasks, rt)
	}
	h := handler(t, src)
	for _, p := range []string{"/c/acceptance/128", "/", "/c/acceptance"} {
		start := time.Now()
		_, body := get(t, h, p)
		took := time.Since(start)
		t.Logf("%s: %v, %d KiB", p, took, len(body)>>10)
		// Generous, because the machine of a test may be busy.
		if took > 20*time.Second {
			t.Errorf("%s took %v", p, took)
		}
	}
	if _, body := get(t, h, "/c/acceptance/128"); strings.Count(body, "data-row>") != 2000 {
		t.Error("not all tasks are in the list")
	}
}

func TestTasksLinkTheRunsThatTheirResultsAreFrom(t *testing.T) {
	t.Parallel()
	src := sample()
	run := &src.runs[0]
	called, found, taken, gate := &run.Tasks[0], &run.Tasks[1], &run.Tasks[2], &run.Tasks[3]
	for i, k := range []*pipeline.RunTask{called, found, taken, gate} {
		k.State, k.Reason, k.ReadyAt = pipeline.Success, "said of "+string(k.Name), time.Time{}
		k.StartedAt, k.FinishedAt = ago(time.Duration(300-i)*time.Second), ago(200*time.Second)
	}
	called.Spec.Plugin, called.Spec.Call, called.Child = pipeline.CorePlugin, &pipeline.Call{Composition: "hello"}, runIDOf(57)
	found.Spec.Plugin, found.Spec.Wait, found.Child = pipeline.CorePlugin, &pipeline.WaitFor{Composition: "hello"}, runIDOf(57)
	taken.Reused = &pipeline.Origin{Run: runIDOf(127), Number: 127}
	gate.Spec.Plugin, gate.Spec.Gate = pipeline.CorePlugin, &pipeline.Gate{}
	src.attempts = nil
	h := handler(t, src)
	_, whole := get(t, h, "/c/acceptance/128")
	for _, c := range []struct {
		task  *pipeline.RunTask
		run   pipeline.RunID
		drawn string
	}{{called, runIDOf(57), "seg-run"}, {found, runIDOf(57), "seg-wait"}, {taken, runIDOf(127), ""}, {gate, "", "seg-wait"}} {
		row := regexp.MustCompile(`(?s)<tr data-key="` + string(c.task.Name) + `".*?</tr>`).FindString(whole)
		link := fmt.Sprintf(`<a href="/run/%s">said of %s</a>`, c.run, c.task.Name)
		if (c.run != "") != strings.Contains(row, link) || !strings.Contains(row, "said of "+string(c.task.Name)) || (c.drawn != "") != strings.Contains(row, `class="seg `) || !strings.Contains(row, c.drawn) {
			t.Errorf("want the link %s and a %q in\n%s", link, c.drawn, row)
		}
		if _, page := get(t, h, "/c/acceptance/128/t/"+string(c.task.Name)); c.run != "" && !strings.Contains(page, `href="/run/`+string(c.run)) {
			t.Errorf("the page of %s has no link to %s", c.task.Name, c.run)
		}
	}
}

func TestAPullRequestIsReviewedAtTheForge(t *testing.T) {
	t.Parallel()
	f := sample()
	one := f.proposals[0]
	one.Branch = pipeline.PullName(7)
	f.proposals = append(f.proposals, one)
	h := handler(t, f)
	for path, want := range map[string]bool{"/changes/feature/louder": true, "/changes/pull/7": false} {
		_, body := get(t, h, path)
		if got := strings.Contains(body, "reconciler review"); got != want || strings.Contains(body, "Review the pull request") == want {
			t.Errorf("%s: commands of git %v, want %v", path, got, want)
		}
	}
}

func TestChangeSaysWhoIsAskedAsAnOwner(t *testing.T) {
	t.Parallel()
	_, body := get(t, handler(t, sample()), "/changes/feature/louder")
	for _, want := range []string{"@octo/web or zoe for web/a, web/b and 2 more", "an owner <span class=\"muted\">the repository has no CODEOWNERS"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
}

func TestChangeShowsWhatEachDecisionWasMadeOf(t *testing.T) {
	t.Parallel()
	h := handler(t, sample())
	_, body := get(t, h, "/changes/feature/louder")
	for _, want := range []string{"approved by &lt;bo&gt;", "pools need ops: 1 of 1", "bo (id:583231)", `title="sha256:0123456789abcdef">0123456789ab<`, "<code>5be0</code>"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in\n%s", want, body)
		}
	}
}

func TestRunIsFoundByItsID(t *testing.T) {
	t.Parallel()
	res, _ := get(t, handler(t, sample()), "/run/"+string(runIDOf(128)))
	if res.StatusCode != http.StatusPermanentRedirect || res.Header.Get("Location") != "/c/acceptance/128" {
		t.Errorf("status %d to %s", res.StatusCode, res.Header.Get("Location"))
	}
}

func TestAttemptIsChosenByNumber(t *testing.T) {
	t.Parallel()
	h := handler(t, sample())
	_, first := get(t, h, "/c/acceptance/128/t/lint?attempt=1")
	_, last := get(t, h, "/c/acceptance/128/t/lint")
	id := regexp.MustCompile(`data-attempt="([^"]+)"`)
	if a, b := id.FindStringSubmatch(first), id.FindStringSubmatch(last); a == nil || b == nil || a[1] == b[1] {
		t.Errorf("attempt 1 shows the log of %v, the latest that of %v", a, b)
	}
	if res, _ := get(t, h, "/c/acceptance/128/t/lint?attempt=3"); res.StatusCode != http.StatusNotFound {
		t.Errorf("an attempt that was not made: status %d", res.StatusCode)
	}
	if res, _ := get(t, h, "/c/acceptance/128/t/windows-smoke/log"); res.StatusCode != http.StatusNotFound {
		t.Errorf("the log of a task without attempt: status %d", res.StatusCode)
	}
}

// TestFragmentsReadAsTheyDid holds the parts that people read most to golden
// files. UPDATE=1 writes them anew.
func TestFragmentsReadAsTheyDid(t *testing.T) {
	t.Parallel()
	src := sample()
	src.board.Compositions = src.board.Compositions[:1]
	src.board.Compositions[0].Recent = src.board.Compositions[0].Recent[27:]
	run := finished(hello(), 7)
	run.Tasks[0].State, run.Tasks[0].Reason, run.State = pipeline.Failure, "exit 1", pipeline.Failure
	src.runs = append(src.runs, run)
	h := handler(t, src)
	for name, path := range map[string]string{"board": "/", "run": "/c/hello/7", "commit": "/commits/" + string(shaBad), "task": "/c/hello/7/t/greet", "queue": "/queue"} {
		_, body := get(t, h, path+"?fragment=1")
		file := filepath.Join("testdata", name+".html")
		if os.Getenv("UPDATE") != "" {
			if err := os.WriteFile(file, []byte(body), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(body, "\n")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

var _ web.Source = (*fakeSource)(nil)
