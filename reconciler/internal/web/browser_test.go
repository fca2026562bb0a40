package web_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
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
