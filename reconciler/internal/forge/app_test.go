package forge_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/testkit"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
)

func TestPermissionsAreDocumentedAsTheyAreAsked(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../../docs/forges.md")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `") && strings.Count(line, "|") == 4 && !strings.Contains(line, "/maestro") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	if want := forge.PowerRows(); !slices.Equal(found, want) {
		t.Errorf("docs/forges.md has\n%s\nwant\n%s", strings.Join(found, "\n"), strings.Join(want, "\n"))
	}
}

func TestKeyThatIsNoneIsSaidSoWithoutShowingIt(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"", "canary", "-----BEGIN RSA PRIVATE KEY-----\nY2FuYXJ5\n-----END RSA PRIVATE KEY-----\n", "-----BEGIN CERTIFICATE-----\nY2FuYXJ5\n-----END CERTIFICATE-----\n"} {
		g, err := forge.NewGitHub(forge.GitHubConfig{
			Owner: "octo", Repo: "ops", BaseURL: "http://127.0.0.1:1/", App: &forge.App{ID: 42, Key: func() ([]byte, error) { return []byte(key), nil }},
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = g.Pulls(t.Context())
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "the key of the GitHub App is not") || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "Y2Fu") {
			t.Errorf("%q: %v", key, err)
		}
	}
}

func TestAppTokenIsForOneRepositoryAndWhatIsUsed(t *testing.T) {
	t.Parallel()
	g := octo(t)
	grants := powers()
	grants["administration"], grants["secrets"], grants["members"], grants["contents"] = "write", "write", "write", "read"
	g.UseApp(grants)
	var asked []map[string]any
	c, err := forge.NewGitHub(forge.GitHubConfig{
		Owner: "octo", Repo: "ops", BaseURL: g.URL + "/api/v3", App: &forge.App{ID: 42, Key: func() ([]byte, error) { return g.AppKey(), nil }},
		HTTP: roundTrip(func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/access_tokens") {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					return nil, err
				}
				var ask map[string]any
				if err := json.Unmarshal(body, &ask); err != nil {
					t.Error(err)
				}
				asked = append(asked, ask)
				r.Body = io.NopCloser(bytes.NewReader(body))
			}
			return http.DefaultTransport.RoundTrip(r)
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.Pulls(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]any{}
	for name, level := range powers() {
		want[name] = level
	}
	if len(asked) != 1 || g.Issued() != 1 {
		t.Fatalf("%d tokens for three requests: %v", g.Issued(), asked)
	}
	if d := cmp.Diff(map[string]any{"repositories": []any{"ops"}, "permissions": want}, asked[0]); d != "" {
		t.Errorf("the token asks for (-want +got):\n%s", d)
	}
}

func TestAppTokenThatIsNotAcceptedIsReplaced(t *testing.T) {
	t.Parallel()
	g := octo(t)
	g.UseApp(powers())
	c := asApp(t, g, nil)
	first, err := c.Token(t.Context())
	if err != nil || first == "" {
		t.Fatal(err)
	}
	g.Revoke()
	if _, err := c.Pulls(t.Context()); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "does not accept the token") || strings.Contains(err.Error(), first) {
		t.Errorf("with a token that was revoked: %v", err)
	}
	if _, err := c.Pulls(t.Context()); err != nil || g.Issued() != 2 {
		t.Errorf("with another one: %v, %d were issued", err, g.Issued())
	}
}

func TestCheckSaysWhatToGrant(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(*testkit.GitHub)
		app   bool
		fault testkit.Fault
		at    string
		want  string // in what is lacking or in the error
	}{
		"all is granted to the App":   {app: true},
		"all is granted to the token": {},
		"the App lacks a permission":  {app: true, spoil: func(g *testkit.GitHub) { g.UseApp(map[string]string{"metadata": "read"}) }, want: "grant the App checks: write, to show mistakes on their lines"},
		"the App is not installed":    {app: true, at: "/installation", fault: testkit.Fault{Status: 404, Body: `{"message": "Not Found"}`}, want: "find the App's installation at github octo/ops: it has no such repository or commit, or hides it from this token (HTTP 404); check owner and name, and grant the token an installation"},
		"the key is of nobody":        {app: true, at: "/app", fault: testkit.Fault{Status: 401, Body: `{"message": "A JSON web token could not be decoded"}`}, want: "does not accept the token (HTTP 401"},
		"the token was revoked":       {spoil: func(g *testkit.GitHub) { g.Revoke() }, want: "it does not accept the token (HTTP 401, Bad credentials); set one that is valid"},
		"the repository was removed":  {at: "/repos/octo/ops", fault: testkit.Fault{Status: 404, Body: `{"message": "Not Found"}`}, want: "check owner and name, and grant the token read access to the repository"},
		"the repository has moved":    {at: "/repos/octo/ops", fault: testkit.Fault{Status: 301, Body: `{"message": "Moved Permanently"}`, Header: map[string]string{"Location": "https://evil.example/"}}, want: "the repository has moved (HTTP 301), and the token is not sent after it"},
		"the token may only read":     {spoil: func(g *testkit.GitHub) { g.Person(testkit.MaestroLogin, "read") }, want: "grant the token write access to commit statuses, pull requests and issues, and read access to contents"},
		"the token sees no pull":      {at: "/pulls", fault: testkit.Fault{Status: 403, Body: `{"message": "Resource not accessible by personal access token"}`}, want: "grant it read access to pull requests"},
		"comments are not shown":      {at: "/issues/comments", fault: testkit.Fault{Status: 403, Body: `{"message": "Resource not accessible by personal access token"}`}, want: "grant it write access to pull requests (and issues)"},
		"the server is an old one":    {at: "/activity", fault: testkit.Fault{Status: 404, Body: `{"message": "Not Found"}`}, want: "read who pushes to x at github octo/ops: it has no such repository"},
		"an old one, and an App":      {app: true, at: "/activity", fault: testkit.Fault{Status: 404, Body: `{"message": "Not Found"}`}, want: "read who pushes to x at github octo/ops"},
		"nobody's rights are told":    {at: "/permission", fault: testkit.Fault{Status: 403, Body: `{"message": "Must have push access to view collaborator permission."}`}, want: "read what maestro-bot may do at github octo/ops: the token may not do this"},
		"a login page is in between":  {at: "/user", fault: testkit.Fault{Status: 200, Body: "<html>", Header: map[string]string{"Content-Type": "text/html"}}, want: "is there a login page or a proxy in between"},
		"it is the web site":          {at: "/user", fault: testkit.Fault{Status: 404, Body: "<html>", Header: map[string]string{"Content-Type": "text/html"}}, want: "is this not the address of the API?"},
	} {
		g := octo(t)
		if c.app {
			g.UseApp(powers())
		}
		say := func() *forge.GitHub { return speaks(t, g, nil) }
		if c.app {
			say = func() *forge.GitHub { return asApp(t, g, nil) }
		}
		client := say()
		if c.spoil != nil {
			token := g.Token
			c.spoil(g)
			if !c.app {
				client = spokenWith(t, g, token)
			}
		}
		if c.at != "" {
			g.Fail(func(_, path string) testkit.Fault {
				if strings.HasSuffix(path, c.at) {
					return c.fault
				}
				return testkit.Fault{}
			})
		}
		_, lacks, err := client.Check(t.Context())
		all := strings.Join(lacks, "\n")
		if err != nil {
			all += err.Error()
		}
		if !strings.Contains(all, c.want) || c.want == "" && all != "" || strings.Count(all, "\n") > 6 {
			t.Errorf("%s: %q, want %q", name, all, c.want)
		}
	}
}

func TestATeamThatIsHiddenIsTold(t *testing.T) {
	t.Parallel()
	g := octo(t)
	g.Team("octo/platform", "ana")
	c := speaks(t, g, nil)
	if err := c.TeamThere(t.Context(), "@octo/platform"); err != nil {
		t.Error(err)
	}
	for team, want := range map[string]string{"@octo/other": "there is no team @octo/other, or hides it", "octo": "is no team"} {
		if err := c.TeamThere(t.Context(), team); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", team, err)
		}
	}
}

// spokenWith is a client with a token of its own.
func spokenWith(t *testing.T, g *testkit.GitHub, token string) *forge.GitHub {
	t.Helper()
	c, err := forge.NewGitHub(forge.GitHubConfig{Owner: "octo", Repo: "ops", BaseURL: g.URL + "/api/v3", Token: func() string { return token }})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
