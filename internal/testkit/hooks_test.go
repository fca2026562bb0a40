package testkit_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

const hookCanary = "canary-hook-9c7e5a3b1d"

// hooked is a composition that the manual's example posts to.
const hooked = `package ops

import "github.com/maestro-cd/maestro/plugins/shell"

compositions: release: {
	params: version: string
	tasks: tell: shell.#Run & {fields: {
		script: "echo \"it is $VERSION\""
		env: VERSION: params.version
	}}
	triggers: [{
		webhook: {id: "release", secret: secret: "release-hook", payload: version: string}
		params: version: event.payload.version
	}]
}
`

// post sends a signed post, as it stands, to the server's intake.
func post(t *testing.T, s *testkit.Server, path, secret, body, delivery string) (status int, answer string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.Intake+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	req.Header.Set("X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
	if delivery != "" {
		req.Header.Set("X-GitHub-Delivery", delivery)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

type posted struct {
	Runs     []pipeline.RunID
	Repeated bool
}

func TestPostsStartRunsOnce(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	env := []string{"RELEASE_HOOK=" + hookCanary}
	s := testkit.Serve(t, repo.Bare, env, "--verbose")
	a := s.StartAgent(t, "one", "default", "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), composition("release", hooked), map[string]string{
		"secrets/hook.cue": "package ops\n\nsecrets: \"release-hook\": from: env: \"RELEASE_HOOK\"\n",
	}))
	testkit.Eventually(t, "the commit is in force", func() (bool, string) {
		status, answer := post(t, s, "/hooks/release", "guess", "{}", "")
		return status == http.StatusUnauthorized, answer
	})

	script := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindStringSubmatch(document(t, "docs/compositions.md"))
	if script == nil {
		t.Fatal("the manual shows no post")
	}
	out, exit := testkit.RunShell(t, t.TempDir(), append(env, "INTAKE="+s.Intake), script[1])
	var first posted
	if err := json.Unmarshal([]byte(out), &first); err != nil || exit != 0 || len(first.Runs) != 1 || first.Repeated {
		t.Fatalf("exit %d, %v: %s", exit, err, out)
	}
	r := s.AwaitRuns(t, commit, 1)[0]
	if r.ID != first.Runs[0] || r.State != pipeline.Success || r.Event.ID != "ticket-7" || string(r.Params) != `{"version":"1.4"}` {
		t.Errorf("run is %s: %s, %s of %+v", r.State, r.Reason, r.Params, r.Event)
	}
	if log := s.Log(t, r.Task("tell").Attempt); log != "it is 1.4\n" {
		t.Errorf("log is %q", log)
	}

	// The same again, by the name GitHub gives it: after a kill, and on another commit.
	again := func(when string) {
		t.Helper()
		status, answer := post(t, s, "/hooks/release", hookCanary, `{"version":"1.4"}`, "ticket-7")
		var p posted
		if err := json.Unmarshal([]byte(answer), &p); err != nil || status != http.StatusAccepted || !p.Repeated || len(p.Runs) != 1 || p.Runs[0] != r.ID {
			t.Errorf("%s: %d %s", when, status, answer)
		}
	}
	again("at once")
	s.Kill()
	s.Restart(t)
	testkit.Eventually(t, "the commit is in force again", func() (bool, string) {
		status, answer := post(t, s, "/hooks/release", "guess", "{}", "")
		return status == http.StatusUnauthorized, answer
	})
	again("after a kill")
	next := repo.Push("main", map[string]string{"README.md": "more\n"})
	repo.AwaitStatus(next, "maestro", "success")
	again("on another commit")

	status, answer := post(t, s, "/hooks/release", hookCanary, `{"version":"1.5"}`, "")
	if status != http.StatusAccepted {
		t.Fatalf("%d %s", status, answer)
	}
	if r := s.AwaitRuns(t, next, 1)[0]; r.Number != 2 || string(r.Params) != `{"version":"1.5"}` {
		t.Errorf("%s#%d %s", r.Composition, r.Number, r.Params)
	}
	why, _ := testkit.RunIn(t, "", nil, "reconciler", "why", string(next), "release", "--server", s.Web)
	if !regexp.MustCompile(`(?m)^release +webhook +run +webhook release$`).MatchString(why) ||
		!regexp.MustCompile(`(?m)^release +push +skipped +no push trigger; it starts on webhook$`).MatchString(why) {
		t.Errorf("why says\n%s", why)
	}
	s.CheckNoLeak(t, hookCanary, a)
}

func TestHostilePostsStartNothing(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, []string{"RELEASE_HOOK=" + hookCanary})
	commit := repo.Push("main", testkit.Files(testkit.Ops(), composition("release", hooked), map[string]string{
		"secrets/hook.cue": "package ops\n\nsecrets: \"release-hook\": from: env: \"RELEASE_HOOK\"\n",
	}))
	testkit.Eventually(t, "the commit is in force", func() (bool, string) {
		status, answer := post(t, s, "/hooks/release", "guess", "{}", "")
		return status == http.StatusUnauthorized, answer
	})
	for name, c := range map[string]struct {
		path, secret, body string
		want               int
		says               string
	}{
		"a guess":         {"/hooks/release", "guess", `{"version":"1"}`, 401, "not signed"},
		"another id":      {"/hooks/other", hookCanary, `{"version":"1"}`, 404, "nothing here"},
		"another path":    {"/hooks/release/../release", hookCanary, `{"version":"1"}`, 404, "nothing here"},
		"another type":    {"/hooks/release", hookCanary, `{"version":{"a":1}}`, 400, "is not a string"},
		"more":            {"/hooks/release", hookCanary, `{"version":"1","x":"</script>\u0000"}`, 400, "is not declared"},
		"less":            {"/hooks/release", hookCanary, `{}`, 400, "version: is missing"},
		"no object":       {"/hooks/release", hookCanary, `"1"`, 400, "not a JSON object"},
		"a vast number":   {"/hooks/release", hookCanary, `{"version":1e999999999}`, 400, "400 digits"},
		"a deep one":      {"/hooks/release", hookCanary, strings.Repeat("[", 30_000), 400, "not JSON"},
		"a very long one": {"/hooks/release", hookCanary, `{"version":"` + strings.Repeat("1", 64<<10) + `"}`, 413, "64 KiB"},
		"an agent's path": {"/agent/v1/enrol", hookCanary, `{}`, 401, "join token"},
	} {
		status, answer := post(t, s, c.path, c.secret, c.body, "d-"+strings.ReplaceAll(name, " ", "-"))
		if status != c.want || !strings.Contains(answer, c.says) {
			t.Errorf("%s: %d %s, want %d", name, status, answer, c.want)
		}
	}
	var list struct{ Runs []pipeline.Run }
	if err := s.Get("/runs?commit="+string(commit), &list); err != nil || len(list.Runs) > 0 {
		t.Errorf("runs = %+v, %v", list.Runs, err)
	}
	// A text that a shell or CUE would take for its own is a text.
	text, err := json.Marshal(`1"\(params)"; $(touch x) #{}` + "\n\u2028")
	if err != nil {
		t.Fatal(err)
	}
	if status, answer := post(t, s, "/hooks/release", hookCanary, `{"version":`+string(text)+`}`, ""); status != http.StatusAccepted {
		t.Fatalf("%d %s", status, answer)
	}
	testkit.Eventually(t, "the run", func() (bool, string) {
		err := s.Get("/runs?commit="+string(commit), &list)
		return err == nil && len(list.Runs) == 1, "no run yet"
	})
	var want, got struct{ Version string }
	if err := json.Unmarshal(text, &want.Version); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(bytes.TrimSpace(list.Runs[0].Params), &got); err != nil || got != want {
		t.Errorf("params = %s, %v", list.Runs[0].Params, err)
	}
}
