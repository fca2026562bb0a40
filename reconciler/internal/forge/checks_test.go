package forge_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
)

// powers are what an App is granted as the guide says.
func powers() map[string]string {
	return map[string]string{
		"metadata": "read", "contents": "read", "statuses": "write", "pull_requests": "write", "issues": "write", "members": "read", "checks": "write",
	}
}

// asApp is a client that speaks as the App that is installed for the repository.
func asApp(t *testing.T, g *testkit.GitHub, change func(*http.Request, *http.Response)) *forge.GitHub {
	t.Helper()
	c, err := forge.NewGitHub(forge.GitHubConfig{
		Owner: "octo", Repo: "ops", BaseURL: g.URL + "/api/v3", HTTP: changed(change),
		App: &forge.App{ID: 42, Key: func() ([]byte, error) { return g.AppKey(), nil }},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func remarks(n int) []pipeline.Diagnostic {
	var out []pipeline.Diagnostic
	for i := range n {
		out = append(out, pipeline.Diagnostic{
			Severity: pipeline.SeverityError, Code: "unknown-field", Message: fmt.Sprint("mistake ", i),
			Pos: pipeline.Position{File: "compositions/a/a.cue", Line: i + 1, Column: 3}, Help: "remove it\x1b[2J",
		})
	}
	return out
}

func writes(g *testkit.GitHub) int {
	n := 0
	for _, asked := range g.Asked() {
		if strings.Contains(asked, "/check-runs") && !strings.HasPrefix(asked, "GET ") {
			n++
		}
	}
	return n
}

func TestCheckShowsEachRemarkOnceWhateverIsLost(t *testing.T) {
	t.Parallel()
	for lose := range 4 { // the answer to that write, none, counted from the first
		t.Run(fmt.Sprint(lose), func(t *testing.T) {
			t.Parallel()
			g := octo(t)
			head := g.Push("eve", "x", "main", nil)
			g.UseApp(powers())
			wrote := 0
			g.Fail(func(method, path string) testkit.Fault {
				if method == http.MethodGet || !strings.Contains(path, "/check-runs") {
					return testkit.Fault{}
				}
				wrote++
				return testkit.Fault{Lost: wrote == lose}
			})
			c := asApp(t, g, nil)
			want := pipeline.PullCheck{Done: true, Title: "mistakes\u202e", Summary: strings.Repeat("é", 40_000), URL: "https://ci.example/c", Remarks: remarks(120)}
			err := c.ShowCheck(t.Context(), head, want)
			if lose > 0 {
				if !fault.Is(err, fault.Unavailable) {
					t.Errorf("an answer that is lost: %v", err)
				}
				if now, _ := g.Check(head); lose < 3 && now.Status != "in_progress" {
					t.Errorf("it is %s while remarks are missing", now.Status)
				}
				err = c.ShowCheck(t.Context(), head, want)
			}
			if err != nil {
				t.Fatal(err)
			}
			got, all := g.Check(head)
			lines := map[int]bool{}
			for _, a := range got.Annotations {
				lines[a.Line] = true
				if a.Level != "failure" || a.Path != "compositions/a/a.cue" || !strings.HasSuffix(a.Message, "\nremove it[2J") {
					t.Errorf("%+v", a)
				}
			}
			if all != 1 || len(got.Annotations) != 120 || len(lines) != 120 {
				t.Errorf("%d check runs, %d remarks on %d lines", all, len(got.Annotations), len(lines))
			}
			if got.Name != forge.CheckName || got.Status != "completed" || got.Conclusion != "failure" || got.Title != "mistakes" {
				t.Errorf("%s is %s, %s: %q", got.Name, got.Status, got.Conclusion, got.Title)
			}
			if len(got.Summary) > 65_000 || !utf8.ValidString(got.Summary) {
				t.Errorf("a summary of %d bytes", len(got.Summary))
			}
			before := writes(g)
			if err := c.ShowCheck(t.Context(), head, want); err != nil || writes(g) != before {
				t.Errorf("the same again: %d more writes, %v", writes(g)-before, err)
			}
		})
	}
}

func TestCheckFollowsWhatItShows(t *testing.T) {
	t.Parallel()
	g := octo(t)
	head := g.Push("eve", "x", "main", nil)
	g.UseApp(powers())
	c := asApp(t, g, nil)
	if !c.Checks() {
		t.Error("an App shows check runs")
	}
	show := func(want pipeline.PullCheck, status, conclusion string, all int) {
		t.Helper()
		if err := c.ShowCheck(t.Context(), head, want); err != nil {
			t.Fatal(err)
		}
		if got, n := g.Check(head); got.Status != status || got.Conclusion != conclusion || n != all || got.Title != want.Title {
			t.Errorf("%+v, %d in all, want %s %s, %d in all", got, n, status, conclusion, all)
		}
	}
	show(pipeline.PullCheck{Title: "planned", Summary: "s"}, "in_progress", "", 1)
	show(pipeline.PullCheck{Title: "2 of 3", Summary: "s"}, "in_progress", "", 1)
	show(pipeline.PullCheck{Title: "all green", Done: true, Good: true}, "completed", "success", 1)
	// What has ended is not taken up again: another one says that something runs again.
	show(pipeline.PullCheck{Title: "again"}, "in_progress", "", 2)
	show(pipeline.PullCheck{Title: "wrong", Done: true, Remarks: remarks(1)}, "completed", "failure", 3)
	// So does one that somebody asked for and that comes to the same.
	show(pipeline.PullCheck{Title: "wrong", Done: true, Remarks: remarks(1), Again: "rerun/1"}, "completed", "failure", 4)
	show(pipeline.PullCheck{Title: "wrong", Done: true, Remarks: remarks(1), Again: "rerun/1"}, "completed", "failure", 4)
	show(pipeline.PullCheck{Title: "less wrong", Done: true, Remarks: remarks(1), Again: "rerun/1"}, "completed", "failure", 4)
}

func TestCheckThatNobodyFollowsIsEndedAndTakenUpByAnother(t *testing.T) {
	t.Parallel()
	g := octo(t)
	head := g.Push("eve", "x", "main", nil)
	g.UseApp(powers())
	c := asApp(t, g, nil)
	end := func() {
		t.Helper()
		if err := c.EndCheck(t.Context(), head, "another head took its place", "s"); err != nil {
			t.Fatal(err)
		}
	}
	end()
	if writes(g) != 0 {
		t.Error("a commit that shows nothing was made to show something")
	}
	want := pipeline.PullCheck{Title: "1 of 2 done", Remarks: remarks(1)}
	if err := c.ShowCheck(t.Context(), head, want); err != nil {
		t.Fatal(err)
	}
	end()
	end()
	if got, n := g.Check(head); n != 1 || writes(g) != 2 || got.Status != "completed" || got.Conclusion != "neutral" || got.Title != "another head took its place" || len(got.Annotations) != 1 {
		t.Errorf("%+v, %d in all, %d writes", got, n, writes(g))
	}
	if err := c.ShowCheck(t.Context(), head, want); err != nil {
		t.Fatal(err)
	}
	if got, n := g.Check(head); n != 2 || got.Status != "in_progress" {
		t.Errorf("when its head is back: %+v, %d in all", got, n)
	}
	if c := speaks(t, g, nil); !fault.Is(c.EndCheck(t.Context(), head, "t", "s"), fault.Invalid) {
		t.Error("a token ends no check runs")
	}
}

func TestCheckOfAnotherAppIsLeftAlone(t *testing.T) {
	t.Parallel()
	g := octo(t)
	head := g.Push("eve", "x", "main", nil)
	g.UseApp(powers())
	want := pipeline.PullCheck{Title: "planned"}
	if err := asApp(t, g, nil).ShowCheck(t.Context(), head, want); err != nil {
		t.Fatal(err)
	}
	own, _ := g.Check(head)
	for name, there := range map[string]string{
		"another App's":   `"name": "maestro/plan", "app": {"id": 43}`,
		"nobody's":        `"name": "maestro/plan"`,
		"of another name": `"name": "maestro", "app": {"id": 42}`,
	} {
		_, before := g.Check(head)
		c := asApp(t, g, func(r *http.Request, res *http.Response) {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/check-runs") {
				become(res, http.StatusOK, fmt.Sprintf(`{"total_count": 1, "check_runs": [{"id": 5, "external_id": %q, "status": "in_progress", %s}]}`, own.External, there))
			}
		})
		if err := c.ShowCheck(t.Context(), head, want); err != nil {
			t.Fatal(err)
		}
		if got, n := g.Check(head); n != before+1 || got.Title != "planned" {
			t.Errorf("%s was taken for its own: %+v, %d in all", name, got, n)
		}
	}
}

func TestCheckThatCannotBeShownSaysWhy(t *testing.T) {
	t.Parallel()
	g := octo(t)
	head := g.Push("eve", "x", "main", nil)
	if c := speaks(t, g, nil); c.Checks() || !fault.Is(c.ShowCheck(t.Context(), head, pipeline.PullCheck{}), fault.Invalid) {
		t.Error("a token shows no check runs")
	}
	asked := len(g.Asked())
	granted := powers()
	delete(granted, "checks")
	g.UseApp(granted)
	c := asApp(t, g, nil)
	if err := c.ShowCheck(t.Context(), "../../user", pipeline.PullCheck{}); !fault.Is(err, fault.Invalid) || len(g.Asked()) != asked {
		t.Errorf("no commit: %v, %q", err, g.Asked()[asked:])
	}
	g.Fail(func(method, path string) testkit.Fault {
		if strings.Contains(path, "/check-runs") && method == http.MethodPost {
			return testkit.Fault{Status: http.StatusForbidden, Body: `{"message": "Resource not accessible by integration"}`}
		}
		return testkit.Fault{}
	})
	if err := c.ShowCheck(t.Context(), head, pipeline.PullCheck{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "grant it write access to checks") {
		t.Errorf("without the permission: %v", err)
	}
	g.Fail(nil)
	for _, body := range []string{`{}`, `null`, `{"id": `} {
		c := asApp(t, g, func(r *http.Request, res *http.Response) {
			if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/check-runs") {
				become(res, http.StatusCreated, body)
			}
		})
		if err := c.ShowCheck(t.Context(), head, pipeline.PullCheck{}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("the answer %s: %v", body, err)
		}
	}
}
