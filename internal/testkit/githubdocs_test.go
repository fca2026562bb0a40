package testkit_test

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// TestGitHubGuideLeadsToAPlannedPullRequest does what docs/github.md says, in its order.
// The poll is an hour, so that the webhook is what tells.
func TestGitHubGuideLeadsToAPlannedPullRequest(t *testing.T) {
	real(t)
	g := testkit.NewGitHub(t)
	people(g)
	g.Team("octo/platform")
	r := openManual(t, "docs/github.md")
	r.install()
	r.env = append(r.env, "RECONCILER_GITHUB_API="+g.URL+"/api/v3/", "RECONCILER_GIT_USER=x-access-token", "RECONCILER_POLL=1h")
	if len(r.blocks) != 7 {
		t.Fatalf("docs/github.md has %d blocks of commands; this test runs 7", len(r.blocks))
	}
	const repository = "https://github.com/octo/ops.git"
	work := filepath.Join(r.home, "ops")
	file := func(name, text string) {
		t.Helper()
		path := filepath.Join(work, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r.sh(r.home, strings.Replace(r.blocks[0], repository, g.Repo.Bare, 1))
	for _, m := range blockRE.FindAllStringSubmatch(r.text, -1) {
		if m[1] == "cue" {
			file(m[2], m[3])
		}
	}
	r.sh(work, r.blocks[1])

	// What is secret is beside the working copy.
	work = r.home
	serves := func(block string) string { return strings.Replace(block, repository, g.Address(), 1) }
	file("token", g.Token)
	r.says("github octo/ops, as "+testkit.MaestroLogin, r.sh(work, serves(r.blocks[3])))
	g.UseApp(r.permissions())
	file("maestro.pem", string(g.AppKey()))
	r.says("github octo/ops, as "+testkit.MaestroLogin, r.sh(work, serves(r.blocks[2])))
	file("webhook-secret", "the webhook's secret")
	issued := g.Issued()
	block := strings.TrimSpace(serves(r.blocks[4])) + " " + r.quoted("--github-webhook-secret-file")
	s := r.server(testkit.StartShell(t, "docs/github.md: serve", work, r.env, block), "reconciler")
	g.Hook(s.Intake+strings.TrimPrefix(r.quoted("https://maestro-intake.example/"), "https://maestro-intake.example"), "the webhook's secret", 1)
	join := strings.SplitAfterN(r.blocks[5], "\n", 2)
	r.sh(work, join[0])
	agent := testkit.StartShell(t, "docs/github.md: agentd", work, r.env, strings.Replace(join[1], "http://127.0.0.1:8421", s.Intake, 1))
	first := g.Push("ana", "main", "", map[string]string{"README": "once more"})
	g.AwaitStatus(first, r.quoted("maestro/run/hello"), "success", "")
	g.AwaitStatus(first, "maestro", "failure", r.quoted("merged without the approval"))

	work = filepath.Join(r.home, "ops")
	r.sh(work, r.blocks[6])
	head := pipeline.CommitID(strings.TrimSpace(r.sh(work, "git rev-parse HEAD")))
	g.PushTo("eve", "louder", head)
	n := g.Open("eve", "louder", "main", "louder")
	needs := r.quoted("plan: 1 run on merge; ")
	g.AwaitStatus(head, "maestro", "pending", needs)
	g.AwaitComment(n, "needs 1 approval of ops")
	(&opened{GitHub: g, t: t}).ask("ana", n, r.quoted("/maestro "), "+1")
	g.Review("eve", n, "APPROVED", "")
	g.AwaitComment(n, "`eve` approves, which does not count: who wrote")
	g.Review("ana", n, "APPROVED", "")
	g.AwaitStatus(head, "maestro", "success", r.quoted("approved by"))
	merge := g.Merge("ana", n, false)
	g.AwaitComment(n, r.quoted("predicted "))
	r.says("merged", r.sh(work, r.quoted("reconciler change ")))
	if run := s.AwaitRuns(t, merge, 1)[0]; run.State != pipeline.Success {
		t.Errorf("the run is %s: %s\n%s", run.State, run.Reason, agent.Said())
	}
	if n := g.Issued() - issued; n != 1 {
		t.Errorf("%d tokens were issued to the server", n)
	}
	s.CheckNoLeak(t, g.Token)
}

func (r *manual) says(want, got string) {
	r.t.Helper()
	if !strings.Contains(got, want) {
		r.t.Errorf("no %q in\n%s", want, got)
	}
}

var codeRE = regexp.MustCompile("`([^`\n]+)`")

// quoted returns what the text shows as code that begins so, outside of its blocks.
func (r *manual) quoted(begin string) string {
	r.t.Helper()
	for _, m := range codeRE.FindAllStringSubmatch(blockRE.ReplaceAllString(r.text, ""), -1) {
		if strings.HasPrefix(m[1], begin) {
			return m[1]
		}
	}
	r.t.Errorf("the document shows no `%s…`", begin)
	return begin
}

var grantRE = regexp.MustCompile("(?m)^ +\\| [A-Z][^|]* \\| `([a-z_]+)` \\| (read|write) \\|$")

// permissions are those of the table.
func (r *manual) permissions() map[string]string {
	out := map[string]string{}
	for _, m := range grantRE.FindAllStringSubmatch(r.text, -1) {
		out[m[1]] = m[2]
	}
	return out
}

// TestGitHubGuideKnowsWhatCheckSays provokes each sentence that docs/github.md explains,
// and finds none that asks for another permission than its table.
func TestGitHubGuideKnowsWhatCheckSays(t *testing.T) {
	real(t)
	r := openManual(t, "docs/github.md")
	refused := func(code int, header map[string]string, body string) func(*testkit.GitHub) []string {
		return func(g *testkit.GitHub) []string {
			g.Fail(func(_, path string) testkit.Fault { return testkit.Fault{Status: code, Body: body, Header: header} })
			return nil
		}
	}
	reset := strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)
	provoke := map[string]func(*testkit.GitHub) []string{
		"grant the App PERMISSION: LEVEL": func(g *testkit.GitHub) []string {
			g.UseApp(map[string]string{"metadata": "read"})
			return nil
		},
		"find the App's installation": func(g *testkit.GitHub) []string {
			g.UseApp(r.permissions())
			g.Fail(func(_, path string) testkit.Fault {
				if strings.HasSuffix(path, "/installation") {
					return testkit.Fault{Status: http.StatusNotFound, Body: `{"message": "Not Found"}`}
				}
				return testkit.Fault{}
			})
			return nil
		},
		"the key of the GitHub App is not": func(g *testkit.GitHub) []string {
			g.UseApp(r.permissions())
			none := filepath.Join(t.TempDir(), "none")
			if err := os.WriteFile(none, []byte("-----BEGIN"), 0o600); err != nil {
				t.Error(err)
			}
			return []string{"--github-app-key-file", none}
		},
		"it does not accept the token (HTTP 401": refused(http.StatusUnauthorized, nil, `{"message": "Bad credentials"}`),
		"grant the token write access to commit statuses, pull requests and issues": func(g *testkit.GitHub) []string {
			g.Person(testkit.MaestroLogin, "read")
			return nil
		},
		"grant it read access to pull requests of the repository": func(g *testkit.GitHub) []string {
			g.Fail(func(_, path string) testkit.Fault {
				if strings.HasSuffix(path, "/pulls") {
					return testkit.Fault{Status: http.StatusForbidden, Body: `{"message": "Resource not accessible"}`}
				}
				return testkit.Fault{}
			})
			return nil
		},
		"it has no such repository or commit, or hides it from this token (HTTP 404)": refused(http.StatusNotFound, nil, `{"message": "Not Found"}`),
		"that there is no team @octo/platform, or hides it": func(g *testkit.GitHub) []string {
			g.Repo.Push("main", testkit.Files(testkit.Ops(), good(), map[string]string{"policy/team.cue": "package ops\n\npolicy: groups: teams: [\"@octo/platform\"]\n"}))
			return nil
		},
		"read who pushes to": func(g *testkit.GitHub) []string {
			g.Fail(func(_, path string) testkit.Fault {
				if strings.HasSuffix(path, "/activity") {
					return testkit.Fault{Status: http.StatusNotFound, Body: `{"message": "Not Found"}`}
				}
				return testkit.Fault{}
			})
			return nil
		},
		"the repository has moved (HTTP 301)": refused(http.StatusMovedPermanently, map[string]string{"Location": "https://evil.example/"}, `{}`),
		"is there a login page or a proxy in between, or is this not the address of the API?": refused(http.StatusOK,
			map[string]string{"Content-Type": "text/html"}, "<html>log in</html>"),
		"check the network, it will be tried again": func(*testkit.GitHub) []string { return []string{"--github-api", "http://127.0.0.1:1/"} },
		"its rate limit is used up until": refused(http.StatusForbidden, map[string]string{
			"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset,
		}, `{"message": "API rate limit exceeded"}`),
	}
	_, table, _ := strings.Cut(r.text, "\n| it says | do this |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var explained []string
	for line := range strings.Lines(table) {
		if m := codeRE.FindStringSubmatch(line); m != nil {
			explained = append(explained, m[1])
		}
	}
	var provoked []string
	for sentence := range provoke {
		provoked = append(provoked, sentence)
	}
	slices.Sort(explained)
	slices.Sort(provoked)
	if d := cmp.Diff(explained, provoked); d != "" {
		t.Errorf("sentences that are explained (-) and provoked (+):\n%s", d)
	}
	for sentence, wrong := range provoke {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			g := testkit.NewGitHub(t)
			g.Repo.Push("main", testkit.Files(testkit.Ops(), good()))
			more := wrong(g)
			args := append([]string{"check", "--repo", g.Repo.Bare, "--data", t.TempDir()}, append(g.Flags(t), more...)...)
			out, exit := testkit.Run(t, "reconciler", args...)
			want, _, perPermission := strings.Cut(sentence, " PERMISSION: LEVEL")
			if exit != 1 || !strings.Contains(out, want) {
				t.Errorf("exit %d, want 1 and %q\n%s", exit, want, out)
			}
			if !perPermission {
				return
			}
			asked := map[string]string{"metadata": "read"}
			for _, m := range regexp.MustCompile(want+` ([a-z_]+): (\w+)`).FindAllStringSubmatch(out, -1) {
				asked[m[1]] = m[2]
			}
			if d := cmp.Diff(asked, r.permissions()); d != "" {
				t.Errorf("permissions that are asked for (-) and documented (+):\n%s", d)
			}
		})
	}
}

// TestGitHubGuideNamesFlagsThatExist looks up every flag and variable that docs/github.md
// names.
func TestGitHubGuideNamesFlagsThatExist(t *testing.T) {
	real(t)
	r := openManual(t, "docs/github.md")
	var help string
	for _, args := range [][]string{{"reconciler", "serve"}, {"reconciler", "agents", "invite"}, {"agentd"}} {
		out, _ := testkit.Run(t, args[0], append(args[1:], "--help")...)
		help += out
	}
	flags := regexp.MustCompile(`[ \x60](--[a-z][a-z-]+)`).FindAllStringSubmatch(r.text, -1)
	for _, m := range regexp.MustCompile(`RECONCILER_([A-Z_]+)`).FindAllStringSubmatch(r.text, -1) {
		flags = append(flags, []string{"", "--" + strings.ReplaceAll(strings.ToLower(m[1]), "_", "-")})
	}
	if len(flags) < 20 {
		t.Errorf("it names %d flags", len(flags))
	}
	for _, m := range flags {
		if !strings.Contains(help, m[1]+" ") {
			t.Errorf("%s is no flag", m[1])
		}
	}
}
