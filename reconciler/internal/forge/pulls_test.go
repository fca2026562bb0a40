package forge_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// opened is a pull request of eve's.
func openedBy(t *testing.T, g *testkit.GitHub) (number int, head pipeline.CommitID) {
	t.Helper()
	head = g.Push("eve", "x", "main", map[string]string{"x": "1"})
	return g.Open("eve", "x", "main", "x"), head
}

func TestListsAreReadWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	g := octo(t)
	n, head := openedBy(t, g)
	for range 100 {
		g.Review("mallory", n, "COMMENTED", "hm")
	}
	g.Review("bo", n, "CHANGES_REQUESTED", "no")
	list, err := speaks(t, g, nil).Reviews(t.Context(), n)
	if err != nil || len(list) != 101 || list[100].State != "CHANGES_REQUESTED" || list[100].By.Login != "bo" || list[100].Commit != head {
		t.Fatalf("%d reviews, %v", len(list), err)
	}

	next := func(page string) string { return `<https://evil.example/x?page=` + page + `>; rel="next"` }
	for name, c := range map[string]struct {
		change func(*http.Request, *http.Response)
		kind   fault.Kind
	}{
		"the second page is an error": {func(r *http.Request, res *http.Response) {
			if r.URL.Query().Get("page") == "2" {
				become(res, http.StatusBadGateway, "<html>")
			}
		}, fault.Unavailable},
		"the second page is cut": {func(r *http.Request, res *http.Response) {
			if r.URL.Query().Get("page") == "2" {
				become(res, http.StatusOK, `[{"id": 1}`)
			}
		}, fault.Unavailable},
		"pages are left out": {func(_ *http.Request, res *http.Response) { res.Header.Set("Link", next("7")) }, fault.Unavailable},
		"a page leads back":  {func(_ *http.Request, res *http.Response) { res.Header.Set("Link", next("1")) }, fault.Unavailable},
		"pages without end": {func(r *http.Request, res *http.Response) {
			page := 1
			_, _ = fmt.Sscan(r.URL.Query().Get("page"), &page)
			become(res, http.StatusOK, `[]`)
			res.Header.Set("Link", next(fmt.Sprint(page+1)))
		}, fault.Invalid},
	} {
		asked := len(g.Asked())
		list, err := speaks(t, g, c.change).Reviews(t.Context(), n)
		if !fault.Is(err, c.kind) || len(list) != 0 {
			t.Errorf("%s: %d reviews, %v, want %s", name, len(list), err, c.kind)
		}
		if n := len(g.Asked()) - asked; n > 50 {
			t.Errorf("%s: %d pages were asked for", name, n)
		}
	}
}

func TestPeopleOfAPullRequestAreAllWhoHadAHandInIt(t *testing.T) {
	t.Parallel()
	g := octo(t)
	n, _ := openedBy(t, g)
	g.Repo.Git(g.Repo.Work, "commit", "--quiet", "--allow-empty", "--author", "Ana <ana@example.com>",
		"-m", "more\n\nCo-Authored-By: Zoe <zoe@example.org>")
	head := pipeline.CommitID(g.Repo.Git(g.Repo.Work, "rev-parse", "HEAD"))
	g.PushTo("bo", "x", head)
	c := speaks(t, g, nil)
	p, err := c.Pull(t.Context(), n)
	if err != nil || p.Head != head || p.Author.Login != "eve" || p.Fork || p.Closed || p.Target != "main" {
		t.Fatalf("%+v %v", p, err)
	}
	got, err := c.People(t.Context(), &p)
	if err != nil || got.Unknown != "" {
		t.Fatalf("%+v %v", got, err)
	}
	// Author of the request, author of a commit, committer, and who pushed last.
	if d := cmp.Diff([]string{"ada", "ana", "bo", "eve"}, logins(got)); d != "" {
		t.Errorf("accounts (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"Zoe <zoe@example.org>"}, got.Named); d != "" {
		t.Errorf("co-authors (-want +got):\n%s", d)
	}

	// Who pushed to a fork GitHub does not say, and it is nobody of the repository.
	fork, _ := g.OpenFork("mallory", "main", "of a fork", map[string]string{"y": "1"})
	if p, err = c.Pull(t.Context(), fork); err != nil || !p.Fork {
		t.Fatalf("%+v %v", p, err)
	}
	asked := len(g.Asked())
	if got, err := c.People(t.Context(), &p); err != nil || got.Unknown != "" || !slices.Contains(logins(got), "mallory") {
		t.Errorf("%+v %v", got, err)
	}
	if all := g.Asked()[asked:]; slices.ContainsFunc(all, func(a string) bool { return strings.Contains(a, "/activity") }) {
		t.Errorf("%q", all)
	}
	if _, err := c.Pull(t.Context(), 99); !fault.Is(err, fault.NotFound) {
		t.Errorf("one that is not there: %v", err)
	}
}

func TestWhoWroteAPullRequestOf250CommitsIsNotKnown(t *testing.T) {
	t.Parallel()
	g := octo(t)
	n, head := openedBy(t, g)
	c := speaks(t, g, func(r *http.Request, res *http.Response) {
		if !strings.HasSuffix(r.URL.Path, "/commits") {
			return
		}
		next, count := map[string]string{"": "2", "2": "3"}[r.URL.Query().Get("page")], 100
		if next == "" {
			count = 50
		}
		become(res, http.StatusOK, "["+strings.TrimSuffix(strings.Repeat(`{"sha": "x"},`, count), ",")+"]")
		if next != "" {
			res.Header.Set("Link", `<https://api.github.com/x?page=`+next+`>; rel="next"`)
		}
	})
	got, err := c.People(t.Context(), &pipeline.Pull{Number: n, Head: head, Branch: "x"})
	if err != nil || !strings.Contains(got.Unknown, "it has 250 commits or more") {
		t.Errorf("%+v %v", got, err)
	}
}

func TestWhoMayWriteIsAskedByNameAndComparedByNumber(t *testing.T) {
	t.Parallel()
	g := octo(t)
	n, _ := openedBy(t, g)
	for _, login := range []string{"ana", "bo", "mallory"} {
		g.Review(login, n, "APPROVED", "")
	}
	c := speaks(t, g, nil)
	list, err := c.Reviews(t.Context(), n)
	if err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	ana, bo, mallory := list[0].By, list[1].By, list[2].By
	may := func(a pipeline.Account) bool {
		t.Helper()
		yes, err := c.MayWrite(t.Context(), a)
		if err != nil {
			t.Errorf("%+v: %v", a, err)
		}
		return yes
	}
	if !may(ana) || !may(bo) || may(mallory) {
		t.Errorf("ana %v, bo %v, mallory %v", may(ana), may(bo), may(mallory))
	}
	// The login of hers is somebody else's since, who may write too.
	g.Rename("ana", "ana-maria")
	g.Person("ana", "write")
	if may(ana) {
		t.Error("the account that has the login since stands for the one that had it")
	}
	g.Person("bo", "read")
	if may(bo) {
		t.Error("bo may not write any more")
	}
	asked := len(g.Asked())
	for _, login := range []string{"", "../../user", "аna", "a/b", "ana?x=1", strings.Repeat("a", 200)} {
		if may(pipeline.Account{ID: ana.ID, Login: login}) {
			t.Errorf("%q may write", login)
		}
	}
	if n := len(g.Asked()); n != asked {
		t.Errorf("%q was asked", g.Asked()[asked:])
	}
	if may(pipeline.Account{ID: 1, Login: "nobody-of-that-name"}) {
		t.Error("nobody may write")
	}
}

func TestMembersOfATeamAreActiveOnes(t *testing.T) {
	t.Parallel()
	g := octo(t)
	g.Team("octo/ops", "ana")
	ana := pipeline.Account{ID: 1, Login: "ana"}
	for team, want := range map[string]bool{"@octo/ops": true, "@octo/web": false, "@evil/ops": false} {
		if got, err := speaks(t, g, nil).IsMember(t.Context(), team, ana); got != want || err != nil {
			t.Errorf("%s: %v %v", team, got, err)
		}
	}
	c := speaks(t, g, func(_ *http.Request, res *http.Response) {
		become(res, http.StatusOK, `{"state": "pending", "role": "member", "url": "https://api.github.com/x"}`)
	})
	if got, err := c.IsMember(t.Context(), "@octo/ops", ana); got || err != nil {
		t.Errorf("who was only invited: %v %v", got, err)
	}
	asked := len(g.Asked())
	for _, team := range []string{"", "ops", "octo/ops", "@octo", "@octo/", "@octo/../../user", "@octo/ops/x", "@octo/o ps"} {
		if got, err := c.IsMember(t.Context(), team, ana); got || err != nil {
			t.Errorf("%q: %v %v", team, got, err)
		}
	}
	if n := len(g.Asked()); n != asked {
		t.Errorf("%q was asked", g.Asked()[asked:])
	}
}

func TestCommentsAreWrittenEditedAndRemovedOnce(t *testing.T) {
	t.Parallel()
	g := octo(t)
	n, _ := openedBy(t, g)
	m, _ := g.OpenFork("mallory", "main", "of a fork", nil)
	began := time.Now().Add(-time.Minute)
	g.Comment("bo", m, "hello")
	c := speaks(t, g, nil)
	id, err := c.AddComment(t.Context(), n, "one")
	if err != nil || id == 0 {
		t.Fatal(id, err)
	}
	if err := c.EditComment(t.Context(), id, "two"); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := c.React(t.Context(), id, "+1"); err != nil {
			t.Error(err)
		}
	}
	list, err := c.Comments(t.Context(), n)
	if err != nil || len(list) != 1 || list[0].Body != "two" || list[0].By.Login != testkit.MaestroLogin || list[0].Pull != n {
		t.Errorf("%+v %v", list, err)
	}
	all, err := c.CommentsSince(t.Context(), began)
	if err != nil || len(all) != 2 || all[0].Pull != m || all[1].Pull != n {
		t.Errorf("%+v %v", all, err)
	}
	for range 2 { // one that is gone is no error
		if err := c.RemoveComment(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if err := c.EditComment(t.Context(), id, "three"); !fault.Is(err, fault.NotFound) {
		t.Errorf("one that is gone: %v", err)
	}
	if err := c.React(t.Context(), id, "+1"); err != nil {
		t.Errorf("one that is gone: %v", err)
	}
	c = speaks(t, g, func(_ *http.Request, res *http.Response) { become(res, http.StatusCreated, `{}`) })
	if id, err := c.AddComment(t.Context(), n, "x"); id != 0 || !fault.Is(err, fault.Unavailable) {
		t.Errorf("an answer that is no comment: %d %v", id, err)
	}
}
