package web_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// browser starts Chromium with a fresh profile, which goes with it. Without one the test fails, and
// says what to do: a journey that is skipped in silence proves nothing.
func browser(t *testing.T) context.Context {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a browser; left out with -short")
	}
	path := ""
	for _, name := range []string{"/usr/bin/chromium", "chromium", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		t.Fatal("no Chromium found: install chromium or google-chrome, or run go test -short to leave the browser out")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.WindowSize(1280, 900),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 90*time.Second)
	t.Cleanup(cancel)
	if err := chromedp.Run(ctx); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	return ctx
}

// watchConsole fails the test for anything that a page complains of: an error in
// a script, or something that the content policy stopped.
func watchConsole(t *testing.T, ctx context.Context) {
	t.Helper()
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("the page threw: %s", e.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			if e.Type == runtime.APITypeError || e.Type == runtime.APITypeWarning || e.Type == runtime.APITypeAssert {
				for _, a := range e.Args {
					t.Errorf("console %s: %s", e.Type, a.Value)
				}
			}
		case *log.EventEntryAdded:
			if e.Entry.Level == log.LevelError || e.Entry.Level == log.LevelWarning {
				t.Errorf("the browser says: %s %s", e.Entry.Text, e.Entry.URL)
			}
		}
	})
	if err := chromedp.Run(ctx, log.Enable(), runtime.Enable()); err != nil {
		t.Fatal(err)
	}
}

// text waits until the page's text holds what is wanted.
func text(want string) chromedp.Action {
	return chromedp.Poll(fmt.Sprintf("document.body.innerText.includes(%q)", want), nil, chromedp.WithPollingTimeout(20*time.Second))
}

// within waits until an expression is true.
func within(expression string) chromedp.Action {
	return chromedp.Poll("!!("+expression+")", nil, chromedp.WithPollingTimeout(20*time.Second))
}

func step(t *testing.T, ctx context.Context, what string, actions ...chromedp.Action) {
	t.Helper()
	if err := chromedp.Run(ctx, actions...); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// million is how many lines the long log has.
const million = 1_000_000

// TestJourney walks through the pages as a person does, in a real browser.
func TestJourney(t *testing.T) {
	t.Parallel()
	src := sample()
	long := &fakeLog{lines: million, sealed: true, line: func(n int64) []byte {
		if n%50_000 == 7 {
			return fmt.Appendf(nil, "\x1b[31mAssertionError\x1b[0m in case %d", n)
		}
		return fmt.Appendf(nil, "\x1b[90m10:41:02\x1b[0m \x1b[32mok\x1b[0m  case %07d shard=%d, somewhat like a line of a test", n, n%9)
	}}
	src.logs[attemptID(100)] = long
	s := serve(t, src)
	ctx := browser(t)
	watchConsole(t, ctx)
	step(t, ctx, "open the board", chromedp.EmulateViewport(1280, 900), chromedp.Navigate(s.URL+"/"), within(`document.querySelector('#feed[data-state="live"]')`))

	step(t, ctx, "mark the page and its focus", chromedp.Evaluate(`window.same = true; document.querySelector('a[href="/c/infra-dns"]').focus()`, nil))
	src.change(pipeline.Change{Kind: pipeline.ChangeRun, Run: runIDOf(128), State: pipeline.Cancelled}, func() {
		src.runs[0].State, src.runs[0].Reason, src.runs[0].FinishedAt = pipeline.Cancelled, "a newer commit came", epoch
		src.board.Queue = nil
	})
	step(t, ctx, "the board follows, is not loaded anew, and keeps the focus", text("Nothing needs a person"),
		within(`window.same && document.activeElement.getAttribute("href") === "/c/infra-dns"`))

	followLog(t, ctx, s.URL, src)
	longLog(t, ctx, s.URL)
	manyTabs(t, ctx, s.URL)
}

func followLog(t *testing.T, ctx context.Context, url string, src *fakeSource) {
	t.Helper()
	var id pipeline.AttemptID
	for _, a := range src.attempts {
		if a.Task == "acceptance" && a.Run == runIDOf(128) {
			id = a.ID
		}
	}
	const atEnd = `(p => p.scrollTop + p.clientHeight >= p.scrollHeight - 20)(document.querySelector(".log-pane"))`
	step(t, ctx, "open a log that grows", chromedp.Navigate(url+"/c/acceptance/128/t/acceptance"), text("AssertionError: tenant 12"), within(atEnd))
	src.write(id, strings.Repeat("a new line\n", 80)+"the newest li", false)
	step(t, ctx, "it follows", text("the newest li"), within(atEnd))
	src.write(id, "ne is whole\n", false)
	step(t, ctx, "a line that was a part is completed", text("the newest line is whole"))
	step(t, ctx, "scroll up", chromedp.Evaluate(`document.querySelector(".log-pane").scrollTop = 0`, nil), within(`!document.querySelector(".log-info").innerText.includes("following")`))
	src.write(id, "one more\n", true)
	step(t, ctx, "a reader who looks elsewhere is not moved", within(`!document.querySelector(".log-new").hidden && document.querySelector(".log-pane").scrollTop === 0`),
		within(`!document.querySelector(".log-info").innerText.includes("growing")`))
	step(t, ctx, "and can go to the end", chromedp.Evaluate(`document.querySelector(".log-new").click()`, nil), within(atEnd), text("one more"))
}

func longLog(t *testing.T, ctx context.Context, url string) {
	t.Helper()
	const page = "/c/acceptance/128/t/checkout"
	inView := func(line int) string {
		return fmt.Sprintf(`(e => { if (!e || !e.textContent.includes("case")) return false; const r = e.getBoundingClientRect(), p = document.querySelector(".log-pane").getBoundingClientRect(); return r.top >= p.top - 1 && r.bottom <= p.bottom + 1; })(document.getElementById("L%d"))`, line)
	}
	began := time.Now()
	step(t, ctx, "a link to a line of a million", chromedp.Navigate(url+page+"#L949322-L949324"), within(inView(949322)), within(`document.querySelectorAll(".ln.marked").length === 3`))
	t.Logf("opened at line 949322 of a million after %v", time.Since(began))

	var took []float64
	for _, line := range []int{1, 500_000, 833_334, 987_654, 999_990} {
		var ms float64
		step(t, ctx, fmt.Sprint("jump to line ", line), chromedp.Evaluate(fmt.Sprintf(`(async () => {
			const began = performance.now();
			location.hash = "L%d";
			while (!(%s)) await new Promise((r) => requestAnimationFrame(r));
			return performance.now() - began;
		})()`, line, inView(line)), &ms, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
		took = append(took, ms)
	}
	slices.Sort(took)
	t.Logf("jumps took %.0f ms", took)
	// The figure to hold is 60 ms; a machine that runs other tests gets more.
	if median := took[len(took)/2]; median > 250 {
		t.Errorf("a jump takes %.0f ms", median)
	}
	var nodes int
	step(t, ctx, "count the nodes", chromedp.Evaluate(`document.querySelectorAll("*").length`, &nodes))
	if nodes > 8000 {
		t.Errorf("%d nodes on the page", nodes)
	}
	t.Logf("%d nodes", nodes)

	var top, bottom float64
	wheel := `(async () => { const p = document.querySelector(".log-pane"); const n = () => Number(document.elementFromPoint(p.getBoundingClientRect().left + 30, p.getBoundingClientRect().top + 30).closest(".ln").id.slice(1)); const a = n(); p.scrollTop += %d; await new Promise((r) => setTimeout(r, 100)); return n() - a; })()`
	await := func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }
	step(t, ctx, "scroll by ten lines", chromedp.Evaluate(`location.hash = "L500000"`, nil), within(inView(500000)),
		chromedp.Evaluate(fmt.Sprintf(wheel, 180), &top, await), chromedp.Evaluate(fmt.Sprintf(wheel, -180), &bottom, await))
	if top != 10 || bottom != -10 {
		t.Errorf("ten rows of the wheel moved by %v and %v lines", top, bottom)
	}
	step(t, ctx, "the end is reached by the scroll bar", chromedp.Evaluate(`document.querySelector(".log-pane").scrollTop = 1e9`, nil), within(inView(million)))
	step(t, ctx, "search on the server", chromedp.SendKeys("#log-q", "AssertionError\r"), within(`document.querySelector(".log-count").innerText === "1/20"`))
	step(t, ctx, "the next match", chromedp.KeyEvent("n"), within(`document.querySelector(".log-count").innerText === "2/20" && document.querySelector(".ln.found").innerText.includes("AssertionError in case 50007")`))
	step(t, ctx, "a click on a number marks the line in the address", chromedp.Evaluate(`document.querySelector(".ln.found > a").click()`, nil), within(`location.hash === "#L50007"`))
}

// manyTabs opens more pages than a browser has connections to one host.
func manyTabs(t *testing.T, ctx context.Context, url string) {
	t.Helper()
	for range 8 {
		tab, cancel := chromedp.NewContext(ctx)
		defer cancel()
		step(t, tab, "open one more tab", chromedp.Navigate(url+"/c/acceptance/128"), within(`document.querySelector('#feed[data-state="live"]')`))
	}
}

// TestAttacksAreInert opens pages full of attacks: no dialog opens, nothing is
// blocked that the pages had wanted, no picture of theirs is asked for.
func TestAttacksAreInert(t *testing.T) {
	t.Parallel()
	s := serve(t, hostile())
	ctx := browser(t)
	watchConsole(t, ctx)
	chromedp.ListenTarget(ctx, func(event any) {
		if e, ok := event.(*page.EventJavascriptDialogOpening); ok {
			t.Errorf("a dialog opened: %s", e.Message)
		}
	})
	for _, p := range []string{"/", "/c/acceptance", "/c/acceptance/128", "/c/acceptance/128/t/checkout", "/commits/" + string(shaBad), "/agents/a-3", "/plugins"} {
		step(t, ctx, p, chromedp.Navigate(s.URL+p), within(`document.querySelector('#feed[data-state="live"]')`),
			within(`!document.querySelector("log-view") || document.querySelector(".ln > span:not(:empty)")`),
			within(`!document.querySelector("marquee, main script, a[href^=javascript]")`))
	}
}

// TestScreens writes pictures of the pages for a person to look at, when a
// folder for them is named.
func TestScreens(t *testing.T) {
	dir := os.Getenv("MAESTRO_SCREENS")
	if dir == "" {
		t.Skip("set MAESTRO_SCREENS to a folder to get pictures of the pages")
	}
	s := serve(t, sample())
	ctx := browser(t)
	watchConsole(t, ctx)
	// The pages' clocks tick from the time of the sample.
	clock := fmt.Sprintf("{ const began = performance.now(); Date.now = () => %d + performance.now() - began; }", epoch.UnixMilli())
	err := chromedp.Run(ctx, chromedp.ActionFunc(func(ctx context.Context) error {
		_, err := page.AddScriptToEvaluateOnNewDocument(clock).Do(ctx)
		return err
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range strings.Fields(os.Getenv("MAESTRO_PAGES")) {
		for _, view := range []struct {
			name  string
			width int64
			dark  string
		}{{"wide", 1280, "light"}, {"phone", 400, "light"}, {"dark", 1280, "dark"}} {
			var png []byte
			err := chromedp.Run(ctx,
				emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: view.dark}}),
				chromedp.EmulateViewport(view.width, 900),
				chromedp.Navigate(s.URL+p),
				chromedp.WaitVisible(`#feed[data-state="live"]`),
				chromedp.Poll(`!document.querySelector("log-view") || !!document.querySelector(".ln > span:not(:empty)")`, nil),
				chromedp.FullScreenshot(&png, 100))
			if err != nil {
				t.Fatalf("%s %s: %v", p, view.name, err)
			}
			name := fmt.Sprintf("%s-%s.png", strings.Trim(strings.NewReplacer("/", "_", "?", "_").Replace(p), "_"), view.name)
			if err := os.WriteFile(filepath.Join(dir, name), png, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}
