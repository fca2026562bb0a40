package forge_test

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
)

// octo is the stateful fake of GitHub, which fails the test for requests and answers that
// are off GitHub's description, with the people of the tests.
func octo(t *testing.T) *testkit.GitHub {
	t.Helper()
	g := testkit.NewGitHub(t)
	for login, may := range map[string]string{"ada": "write", "ana": "write", "bo": "admin", "eve": "write", "mallory": "read"} {
		g.Person(login, may)
	}
	g.Push("ada", "main", "", map[string]string{"README": "1"})
	return g
}

// speaks is a client of it. Answers may be changed on their way; change is nil for not.
func speaks(t *testing.T, g *testkit.GitHub, change func(*http.Request, *http.Response)) *forge.GitHub {
	t.Helper()
	c, err := forge.NewGitHub(forge.GitHubConfig{
		Owner: "octo", Repo: "ops", BaseURL: g.URL + "/api/v3", Token: func() string { return g.Token },
		HTTP: changed(change),
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func changed(change func(*http.Request, *http.Response)) roundTrip {
	return func(r *http.Request) (*http.Response, error) {
		res, err := http.DefaultTransport.RoundTrip(r)
		if err == nil && change != nil {
			change(r, res)
		}
		return res, err
	}
}

// become makes an answer another one.
func become(res *http.Response, code int, body string) {
	_ = res.Body.Close()
	res.StatusCode, res.Status, res.ContentLength = code, fmt.Sprint(code), int64(len(body))
	res.Body = io.NopCloser(strings.NewReader(body))
	res.Header.Del("ETag")
}

func logins(p pipeline.PullPeople) []string {
	var out []string
	for _, a := range p.Accounts {
		out = append(out, a.Login)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func TestRepositoryIsKnownByItsNumber(t *testing.T) {
	t.Parallel()
	g := octo(t)
	c := speaks(t, g, nil)
	if id, err := c.RepositoryID(t.Context()); id != 7 || err != nil {
		t.Errorf("%d %v", id, err)
	}
	g.Replace()
	if id, err := c.RepositoryID(t.Context()); id != 8 || err != nil {
		t.Errorf("%d %v", id, err)
	}
	for _, body := range []string{`{}`, `{"id": 0}`, `{"id": -3}`, `null`, `{"id": 9`} {
		c := speaks(t, g, func(_ *http.Request, res *http.Response) { become(res, http.StatusOK, body) })
		if id, err := c.RepositoryID(t.Context()); id != 0 || !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: %d %v", body, id, err)
		}
	}
	g.Fail(func(string, string) testkit.Fault {
		return testkit.Fault{Status: http.StatusNotFound, Body: `{"message": "Not Found"}`}
	})
	if _, err := c.RepositoryID(t.Context()); !fault.Is(err, fault.Invalid) || !strings.Contains(fmt.Sprint(err), "grant the token read access to metadata") {
		t.Errorf("a repository that is gone: %v", err)
	}
}

func TestDoorIsOpenedFoundEditedAndClosed(t *testing.T) {
	t.Parallel()
	g := octo(t)
	c := speaks(t, g, nil)
	g.Push(testkit.MaestroLogin, "maestro-gate/ship/1/confirm", "main", nil)
	g.Push("eve", "other", "main", nil)
	g.Open("eve", "other", "main", "another branch")
	g.OpenFork("mallory", "main", "of a fork", nil)
	const branch = "maestro-gate/ship/1/confirm"

	// The answer is lost: it is open all the same, is found, and there is no second one.
	g.Fail(func(method, path string) testkit.Fault { return testkit.Fault{Lost: method == http.MethodPost} })
	if _, err := c.OpenPull(t.Context(), branch, "main", "ship#1 waits", "look"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("an answer that is lost: %v", err)
	}
	g.Fail(nil)
	list, err := c.PullsOf(t.Context(), branch)
	if err != nil || len(list) != 1 || list[0].Branch != branch || list[0].Closed || list[0].Fork || list[0].Author.Login != testkit.MaestroLogin {
		t.Fatalf("%+v %v", list, err)
	}
	n := list[0].Number
	if _, err := c.OpenPull(t.Context(), branch, "main", "ship#1 waits", "look"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a second one: %v", err)
	}

	if err := c.EditPull(t.Context(), n, "ship#1 waits", "looked", ""); err != nil {
		t.Error(err)
	}
	if text, open := g.Body(n); text != "looked" || !open {
		t.Errorf("%q %v", text, open)
	}
	if who, at, err := c.ClosedBy(t.Context(), n); who.ID != 0 || !at.IsZero() || err != nil {
		t.Errorf("one that is open was closed by %+v at %s, %v", who, at, err)
	}
	for range 2 {
		if err := c.EditPull(t.Context(), n, "ship#1", "done", "closed"); err != nil {
			t.Error(err)
		}
	}
	if _, open := g.Body(n); open {
		t.Error("it is open")
	}
	if who, at, err := c.ClosedBy(t.Context(), n); who.Login != testkit.MaestroLogin || at.IsZero() || err != nil {
		t.Errorf("closed by %+v at %s, %v", who, at, err)
	}
	if err := c.EditPull(t.Context(), n, "ship#1", "again", "open"); err != nil {
		t.Error(err)
	}
	g.ClosePull("eve", n)
	if who, _, err := c.ClosedBy(t.Context(), n); who.Login != "eve" || who.Bot || err != nil {
		t.Errorf("closed by %+v, %v", who, err)
	}
	if err := c.EditPull(t.Context(), 99, "x", "y", "closed"); !fault.Is(err, fault.NotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	if _, err := c.OpenPull(t.Context(), "maestro-gate/nothing", "main", "x", "y"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a branch that is not there: %v", err)
	}
}

func TestAnswersThatAreNoPullRequestAreRefused(t *testing.T) {
	t.Parallel()
	g := octo(t)
	g.Push("eve", "x", "main", nil)
	n := g.Open("eve", "x", "main", "x")
	const head = `"head": {"sha": "1111111111111111111111111111111111111111", "ref": "x", "repo": {"id": 7}}, "base": {"ref": "main", "repo": {"id": 7}}`
	for _, one := range []string{
		`{}`, `{"number": 1}`, `{"number": -1, ` + head + `}`, `{"number": 1, "head": {"sha": "../../x", "ref": "x"}, "base": {"ref": "main"}}`,
		`{"number": 1, "head": {"sha": "1111", "ref": "x"}, "base": {"ref": "main"}}`, `{"number": 1, "head": {"sha": "1111111111111111111111111111111111111111"}}`,
		`{"number": 1, "merged_at": "2026-01-02T03:04:05Z", "merge_commit_sha": "$(id)", ` + head + `}`, `{"number": 1, ` + head, `<html>log in</html>`,
	} {
		c := speaks(t, g, func(_ *http.Request, res *http.Response) { become(res, http.StatusOK, one) })
		if p, err := c.Pull(t.Context(), n); !fault.Is(err, fault.Unavailable) || p.Number != 0 {
			t.Errorf("Pull takes %s for %+v, %v", one, p, err)
		}
		c = speaks(t, g, func(_ *http.Request, res *http.Response) { become(res, http.StatusOK, "["+one+"]") })
		if list, err := c.Pulls(t.Context()); !fault.Is(err, fault.Unavailable) || len(list) > 0 {
			t.Errorf("Pulls takes %s for %+v, %v", one, list, err)
		}
		if list, err := c.PullsOf(t.Context(), "x"); !fault.Is(err, fault.Unavailable) || len(list) > 0 {
			t.Errorf("PullsOf takes %s for %+v, %v", one, list, err)
		}
	}
	// One that is asked for by number and is another one is none either.
	c := speaks(t, g, func(_ *http.Request, res *http.Response) { become(res, http.StatusOK, `{"number": 2, `+head+`}`) })
	if p, err := c.Pull(t.Context(), n); err == nil || p.Number != 0 {
		t.Errorf("number 2 for %d: %+v %v", n, p, err)
	}
	// What does not say where it comes from comes from a fork.
	c = speaks(t, g, func(_ *http.Request, res *http.Response) {
		become(res, http.StatusOK, `{"number": 1, "state": "open", "head": {"sha": "1111111111111111111111111111111111111111", "ref": "x", "repo": null}, "base": {"ref": "main", "repo": null}}`)
	})
	if p, err := c.Pull(t.Context(), 1); err != nil || !p.Fork {
		t.Errorf("%+v %v", p, err)
	}
	// Nor is one of a fork, or of another branch, one of the branch.
	c = speaks(t, g, func(_ *http.Request, res *http.Response) {
		become(res, http.StatusOK, `[{"number": 1, `+strings.Replace(head, `"id": 7`, `"id": 8`, 1)+`}, {"number": 2, `+strings.Replace(head, `"ref": "x"`, `"ref": "y"`, 1)+`}]`)
	})
	if list, err := c.PullsOf(t.Context(), "x"); err != nil || len(list) != 0 {
		t.Errorf("%+v %v", list, err)
	}
}

func TestOnlyWhatWasMergedIntroducedACommit(t *testing.T) {
	t.Parallel()
	g := octo(t)
	g.Push("eve", "x", "main", map[string]string{"x": "1"})
	n := g.Open("eve", "x", "main", "x")
	merge := g.Merge("ana", n, true)
	c := speaks(t, g, nil)
	if got, err := c.Introduced(t.Context(), merge); !slices.Equal(got, []int{n}) || err != nil {
		t.Errorf("%v %v", got, err)
	}
	stray := g.Push("eve", "main", "", map[string]string{"x": "2"})
	if got, err := c.Introduced(t.Context(), stray); len(got) != 0 || err != nil {
		t.Errorf("of a push: %v %v", got, err)
	}
	c = speaks(t, g, func(_ *http.Request, res *http.Response) {
		become(res, http.StatusOK, `[{"number": 5}, {"number": 6, "merged_at": "2026-01-02T03:04:05Z"}]`)
	})
	if got, err := c.Introduced(t.Context(), stray); !slices.Equal(got, []int{6}) || err != nil {
		t.Errorf("with one that is open: %v %v", got, err)
	}
}

func TestPeopleBehindACommitAreAllWhoHadAHandInIt(t *testing.T) {
	t.Parallel()
	g := octo(t)
	c := speaks(t, g, nil)
	base := pipeline.CommitID(g.Repo.Git(g.Repo.Bare, "rev-parse", "main"))
	g.Push("eve", "main", "", map[string]string{"x": "1"})
	g.Repo.Git(g.Repo.Work, "commit", "--quiet", "--allow-empty", "--author", "Stranger <stranger@example.org>",
		"-m", "more\n\nCo-authored-by: Ana <ana@example.com>\nco-authored-by:  Zoe <zoe@example.org>  ")
	head := pipeline.CommitID(g.Repo.Git(g.Repo.Work, "rev-parse", "HEAD"))
	g.PushTo("bo", "main", head)
	got, err := c.Behind(t.Context(), "main", base, head)
	if err != nil || got.Unknown != "" {
		t.Fatalf("%+v %v", got, err)
	}
	// Ada is the committer of all that the fake commits.
	if d := cmp.Diff([]string{"ada", "bo", "eve"}, logins(got)); d != "" {
		t.Errorf("accounts (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"Ana <ana@example.com>", "Zoe <zoe@example.org>"}, got.Named); d != "" {
		t.Errorf("co-authors (-want +got):\n%s", d)
	}
	// Without a base, or with one that is gone, they are those of the head.
	g.Fail(func(_, path string) testkit.Fault {
		if strings.Contains(path, "/compare/") {
			return testkit.Fault{Status: http.StatusNotFound, Body: `{"message": "Not Found"}`}
		}
		return testkit.Fault{}
	})
	for _, base := range []pipeline.CommitID{"", "0000000000000000000000000000000000000001"} {
		got, err := c.Behind(t.Context(), "", base, head)
		if err != nil || !slices.Equal(logins(got), []string{"ada"}) || len(got.Named) != 2 {
			t.Errorf("from %q: %+v %v", base, got, err)
		}
	}
	g.Fail(nil)
	// Who pushed a commit of which GitHub does not say that is not known.
	silent := pipeline.CommitID(g.Repo.Git(g.Repo.Bare, "commit-tree", string(head)+"^{tree}", "-p", string(head), "-m", "x"))
	g.Repo.Git(g.Repo.Bare, "update-ref", "refs/heads/main", string(silent))
	if got, err := c.Behind(t.Context(), "main", head, silent); err != nil || !strings.Contains(got.Unknown, "does not say who pushed") {
		t.Errorf("%+v %v", got, err)
	}
}

func TestCommitsThatAreNotAllListedHaveUnknownPeople(t *testing.T) {
	t.Parallel()
	g := octo(t)
	base := pipeline.CommitID(g.Repo.Git(g.Repo.Bare, "rev-parse", "main"))
	head := g.Push("eve", "main", "", map[string]string{"x": "1"})
	commits := func(n int) string { return strings.TrimSuffix(strings.Repeat(`{"sha": "x"},`, n), ",") }
	for name, c := range map[string]struct {
		page          string
		kind          fault.Kind
		unknown, says string
	}{
		"fewer than there are": {`{"total_commits": 3, "commits": []}`, fault.Unavailable, "", "it lists 0 commits of 3"},
		"too many":             {fmt.Sprintf(`{"total_commits": 9000, "commits": [%s]}`, commits(100)), "", "250 commits or more", ""},
		"no list":              {`{"total_commits": 1, "commits": [`, fault.Unavailable, "", ""},
	} {
		pages := 0
		client := speaks(t, g, func(r *http.Request, res *http.Response) {
			if strings.Contains(r.URL.Path, "/compare/") {
				pages++
				become(res, http.StatusOK, c.page)
			}
		})
		got, err := client.Behind(t.Context(), "", base, head)
		if (err != nil) != (c.kind != "") || err != nil && !fault.Is(err, c.kind) || !strings.Contains(got.Unknown, c.unknown) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: %+v %v", name, got, err)
		}
		if pages > 3 {
			t.Errorf("%s: %d pages were asked for", name, pages)
		}
	}
}

func TestWhatAGateNeedsIsNamedWhenItIsMissing(t *testing.T) {
	t.Parallel()
	g := octo(t)
	g.Push("eve", "x", "main", nil)
	n := g.Open("eve", "x", "main", "x")
	head := pipeline.CommitID(g.Repo.Git(g.Repo.Bare, "rev-parse", "x"))
	g.Fail(func(string, string) testkit.Fault {
		return testkit.Fault{Status: http.StatusForbidden, Body: `{"message": "Resource not accessible by integration"}`}
	})
	c := speaks(t, g, nil)
	for grant, ask := range map[string]func() error{
		"write access to contents and pull requests": func() error { _, err := c.OpenPull(t.Context(), "x", "main", "x", "y"); return err },
		"write access to contents":                   func() error { return c.EditPull(t.Context(), n, "x", "y", "") },
		"read access to pull requests":               func() error { _, err := c.PullsOf(t.Context(), "x"); return err },
		"pull requests of the repository":            func() error { _, err := c.Introduced(t.Context(), head); return err },
		"access to pull requests":                    func() error { _, _, err := c.ClosedBy(t.Context(), n); return err },
		"read access to contents":                    func() error { _, err := c.Behind(t.Context(), "x", "", head); return err },
		"read access to metadata":                    func() error { _, err := c.RepositoryID(t.Context()); return err },
		"read access to the organization's members": func() error {
			_, err := c.IsMember(t.Context(), "@octo/ops", pipeline.Account{ID: 1, Login: "ana"})
			return err
		},
		"write access to pull requests (and issues)": func() error { _, err := c.Comments(t.Context(), n); return err },
	} {
		if err := ask(); !fault.Is(err, fault.Invalid) || !strings.Contains(fmt.Sprint(err), grant) {
			t.Errorf("want %q: %v", grant, err)
		}
	}
}
