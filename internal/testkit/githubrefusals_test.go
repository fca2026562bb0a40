package testkit_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/testkit"
)

func TestWhatGitHubRefusesIsShownWithWhatToGrant(t *testing.T) {
	real(t)
	o := openGitHub(t, pullFiles())
	n, _, head := o.propose(testkit.Shell("build", "echo 1", ""))
	forbidden := testkit.Fault{Status: http.StatusForbidden, Body: `{"message": "Resource not accessible by integration"}`}
	for _, c := range []struct {
		where func(method, path string) bool
		fault testkit.Fault
		says  string
	}{
		{
			func(string, string) bool { return true },
			testkit.Fault{Status: http.StatusUnauthorized, Body: `{"message": "Bad credentials"}`},
			"it does not accept the token (HTTP 401, Bad credentials); set one that is valid and has not expired",
		},
		{
			func(_, path string) bool { return path == "/repos/octo/ops" },
			testkit.Fault{Status: http.StatusNotFound, Body: `{"message": "Not Found"}`},
			"check owner and name, and grant the token read access to metadata of the repository",
		},
		{
			func(method, path string) bool {
				return method == http.MethodPost && strings.Contains(path, "/statuses/")
			},
			forbidden, "its statuses cannot be written: post status maestro",
		},
		{
			func(method, path string) bool {
				return method == http.MethodPatch || strings.HasSuffix(path, "/1/comments")
			},
			forbidden, "its pull requests cannot be commented on: ",
		},
	} {
		o.Fail(func(method, path string) testkit.Fault {
			if c.where(method, path) {
				return c.fault
			}
			return testkit.Fault{}
		})
		head = o.Push("eve", "change-1", "", map[string]string{"README": c.says}) // so that there is something to be said
		o.shows(c.says)
		if c.says == "its statuses cannot be written: post status maestro" {
			o.shows("grant it write access to commit statuses of the repository")
		}
		o.Fail(nil)
		o.shows("")
		o.AwaitStatus(head, "maestro", "pending", "needs 1 approval of ops")
	}
	o.AwaitComment(n, "needs 1 approval of ops", "`"+head.Short()+"`")
}

// shows waits until the page of what is wrong shows a text, "" for none.
func (o *opened) shows(want string) {
	o.t.Helper()
	testkit.Eventually(o.t, "it is shown that "+want, func() (bool, string) {
		var b struct{ Repository struct{ Problem string } }
		err := o.s.Get("/board", &b)
		got := b.Repository.Problem
		if err != nil || want == "" && got != "" || !strings.Contains(got, want) {
			return false, fmt.Sprint(got, err)
		}
		html := page(o.t, o.s, "/problems")
		return want == "" || strings.Contains(html, strings.ReplaceAll(want, "'", "&#39;")), html
	})
}
