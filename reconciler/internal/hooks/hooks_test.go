package hooks_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/hooks"
)

const secret = "canary-hook-2b4d6f8a0c"

// world has one webhook, "deploy", and notes what is delivered.
type world struct {
	mu     sync.Mutex
	got    []string // id, delivery and payload
	fail   error    // of Deliver
	logged bytes.Buffer
}

func (w *world) handler() http.Handler {
	return hooks.New(hooks.Config{
		Log: slog.New(slog.NewTextHandler(&w.logged, nil)),
		Secret: func(id string) (string, error) {
			switch id {
			case "deploy":
				return secret, nil
			case "unreadable":
				return "", fault.New(fault.Invalid, "there is no variable HOOK")
			case "empty":
				return "", nil
			case "early":
				return "", fault.New(fault.Unavailable, "nothing is in force")
			}
			return "", fault.New(fault.NotFound, "no webhook")
		},
		Deliver: func(_ context.Context, id, delivery string, payload json.RawMessage) ([]pipeline.RunID, bool, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.fail != nil {
				return nil, false, w.fail
			}
			w.got = append(w.got, fmt.Sprintf("%s %s %s", id, delivery, payload))
			return []pipeline.RunID{"01RUN"}, len(w.got) > 1, nil
		},
	})
}

func sign(key, body string) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// post sends a post as it stands; headers are name, value, name, value.
func post(t testing.TB, url, path, body string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestASignedPostIsDelivered(t *testing.T) {
	t.Parallel()
	const body = `{"version":"1.4","again":1,"again":2}`
	for name, c := range map[string]struct {
		headers []string
		want    string
	}{
		"named": {[]string{"X-Maestro-Signature", sign(secret, body), "X-Maestro-Delivery", "d-1"}, "d-1"},
		"as GitHub sends it": {
			[]string{"X-Hub-Signature-256", sign(secret, body), "X-GitHub-Delivery", "72d3162e", "Content-Type", "application/json"}, "72d3162e",
		},
		"in capitals":    {[]string{"X-Maestro-Signature", "sha256=" + strings.ToUpper(sign(secret, body)[7:]), "X-Maestro-Delivery", "d-1"}, "d-1"},
		"without a name": {[]string{"X-Maestro-Signature", sign(secret, body)}, string(pipeline.DigestOf([]byte(body)))},
	} {
		w := &world{}
		s := httptest.NewServer(w.handler())
		t.Cleanup(s.Close)
		resp, answer := post(t, s.URL, "/hooks/deploy", body, c.headers...)
		if want := "deploy " + c.want + ` {"again":2,"version":"1.4"}`; len(w.got) != 1 || w.got[0] != want {
			t.Errorf("%s: delivered %q, want %q", name, w.got, want)
		}
		if resp.StatusCode != http.StatusAccepted || strings.TrimSpace(answer) != `{"runs":["01RUN"]}` {
			t.Errorf("%s: %d %s", name, resp.StatusCode, answer)
		}
	}
}

func TestAPostInAnyOtherWayIsRefused(t *testing.T) {
	t.Parallel()
	const body = `{"version":"1.4"}`
	good := sign(secret, body)
	mine := func(b string) []string { return []string{"X-Maestro-Signature", sign(secret, b)} }
	deep := strings.Repeat(`{"a":`, 70) + "1" + strings.Repeat("}", 70)
	abyss := strings.Repeat("[", 60_000)
	big := `{"a":"` + strings.Repeat("x", 64<<10) + `"}`
	w := &world{}
	s := httptest.NewServer(w.handler())
	t.Cleanup(s.Close)
	for name, c := range map[string]struct {
		path, body string
		headers    []string
		want       int
	}{
		"no signature":           {"/hooks/deploy", body, nil, 401},
		"an empty signature":     {"/hooks/deploy", body, []string{"X-Maestro-Signature", ""}, 401},
		"an empty sum":           {"/hooks/deploy", body, []string{"X-Maestro-Signature", "sha256="}, 401},
		"no hexadecimal":         {"/hooks/deploy", body, []string{"X-Maestro-Signature", good + "zz"}, 401},
		"a piece of it":          {"/hooks/deploy", body, []string{"X-Maestro-Signature", good[:40]}, 401},
		"another algorithm":      {"/hooks/deploy", body, []string{"X-Maestro-Signature", "sha1=" + good[7:]}, 401},
		"no algorithm":           {"/hooks/deploy", body, []string{"X-Maestro-Signature", good[7:]}, 401},
		"twice":                  {"/hooks/deploy", body, []string{"X-Maestro-Signature", good, "X-Maestro-Signature", good}, 401},
		"of another body":        {"/hooks/deploy", body + " ", []string{"X-Maestro-Signature", good}, 401},
		"by another secret":      {"/hooks/deploy", body, []string{"X-Maestro-Signature", sign("guess", body)}, 401},
		"by no secret":           {"/hooks/empty", body, []string{"X-Maestro-Signature", sign("", body)}, 401},
		"a bad one before":       {"/hooks/deploy", body, []string{"X-Maestro-Signature", "sha256=00", "X-Hub-Signature-256", good}, 401},
		"an unreadable secret":   {"/hooks/unreadable", body, []string{"X-Maestro-Signature", good}, 401},
		"before a configuration": {"/hooks/early", body, mine(body), 503},
		"another webhook":        {"/hooks/other", body, mine(body), 404},
		"no id":                  {"/hooks/", body, mine(body), 404},
		"a longer path":          {"/hooks/deploy/", body, mine(body), 404},
		"an escaped path":        {"/hooks/deplo%79", body, mine(body), 404},
		"dots":                   {"/hooks/../hooks/deploy", body, mine(body), 404},
		"an id that is long":     {"/hooks/" + strings.Repeat("a", 5000), body, mine(body), 404},
		"a query":                {"/hooks/deploy?x=1", body, mine(body), 400},
		"an empty query":         {"/hooks/deploy?", body, mine(body), 400},
		"nothing":                {"/hooks/deploy", "", mine(""), 400},
		"no JSON":                {"/hooks/deploy", "version=1", mine("version=1"), 400},
		"a form":                 {"/hooks/deploy", "payload=%7B%7D", mine("payload=%7B%7D"), 400},
		"no object":              {"/hooks/deploy", `["version"]`, mine(`["version"]`), 400},
		"null":                   {"/hooks/deploy", `null`, mine(`null`), 400},
		"two values":             {"/hooks/deploy", body + body, mine(body + body), 400},
		"more after it":          {"/hooks/deploy", body + "}", mine(body + "}"), 400},
		"deep":                   {"/hooks/deploy", deep, mine(deep), 400},
		"bottomless":             {"/hooks/deploy", abyss, mine(abyss), 400},
		"a vast number":          {"/hooks/deploy", `{"n":[1e999999999]}`, mine(`{"n":[1e999999999]}`), 400},
		"too much":               {"/hooks/deploy", big, mine(big), 413},
		"too much of a stranger": {"/hooks/other", big, nil, 413},
		"an odd delivery":        {"/hooks/deploy", body, append(mine(body), "X-Maestro-Delivery", "a b"), 400},
		"a long delivery":        {"/hooks/deploy", body, append(mine(body), "X-Maestro-Delivery", strings.Repeat("a", 129)), 400},
		"two deliveries":         {"/hooks/deploy", body, append(mine(body), "X-Maestro-Delivery", "a", "X-Maestro-Delivery", "b"), 400},
	} {
		resp, answer := post(t, s.URL, c.path, c.body, c.headers...)
		if resp.StatusCode != c.want {
			t.Errorf("%s: %d %s, want %d", name, resp.StatusCode, answer, c.want)
		}
		if c.want == 401 && strings.TrimSpace(answer) != `{"error":"the post is not signed as it should be"}` {
			t.Errorf("%s: says %s", name, answer)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/hooks/deploy", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != "POST" {
		t.Errorf("GET: %d, allowed %q", resp.StatusCode, resp.Header.Get("Allow"))
	}
	if len(w.got) > 0 {
		t.Errorf("delivered %q", w.got)
	}
	if log := w.logged.String(); strings.Contains(log, secret) || strings.Contains(log, good[7:]) || strings.Count(log, "\n") > 40 {
		t.Errorf("the log says too much:\n%s", log)
	}
}

func TestTheSenderIsToldWhyNothingStarts(t *testing.T) {
	t.Parallel()
	const body = `{"version":3}`
	for _, c := range []struct {
		err  error
		want int
		says string
	}{
		{fault.New(fault.Invalid, "payload: version: 3 is not a string"), 400, "version: 3 is not a string"},
		{fault.New(fault.Conflict, "deploy: suspended"), 409, "suspended"},
		{fault.New(fault.Unavailable, "git does not answer"), 503, "git does not answer"},
		{fault.New(fault.NotFound, "nothing waits"), 404, "there is nothing here"},
		{fmt.Errorf("disk /var/lib/x"), 500, "send it again"},
	} {
		w := &world{fail: c.err}
		s := httptest.NewServer(w.handler())
		t.Cleanup(s.Close)
		resp, answer := post(t, s.URL, "/hooks/deploy", body, "X-Maestro-Signature", sign(secret, body))
		if resp.StatusCode != c.want || !strings.Contains(answer, c.says) || strings.Contains(answer, "/var/lib") {
			t.Errorf("%v: %d %s", c.err, resp.StatusCode, answer)
		}
	}
}

func TestStrangersDoNotUseUpWhatTheSenderMaySend(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{}
		h := w.handler()
		send := func(key string) int {
			r := httptest.NewRequest(http.MethodPost, "/hooks/deploy", strings.NewReader(`{}`))
			r.Header.Set("X-Maestro-Signature", sign(key, `{}`))
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			if rec.Code == http.StatusTooManyRequests && rec.Header().Get("Retry-After") == "" {
				t.Error("429 does not say when to come again")
			}
			return rec.Code
		}
		for range 1000 {
			if got := send("guess"); got != http.StatusUnauthorized {
				t.Fatalf("a stranger gets %d", got)
			}
		}
		if n := bytes.Count(w.logged.Bytes(), []byte("\n")); n > 40 {
			t.Errorf("strangers wrote %d lines into the log", n)
		}
		taken := 0
		for ; send(secret) == http.StatusAccepted; taken++ {
		}
		if taken != 30 {
			t.Errorf("%d at once", taken)
		}
		time.Sleep(2 * time.Second)
		if got := []int{send(secret), send(secret), send(secret)}; fmt.Sprint(got) != "[202 202 429]" {
			t.Errorf("after two seconds: %v", got)
		}
	})
}

func FuzzNothingUnsignedIsDelivered(f *testing.F) {
	f.Add("/hooks/deploy", sign(secret, `{"a":1}`), "d", []byte(`{"a":1}`))
	f.Add("/hooks/deploy", sign(secret, `{}`), "", []byte(`{}`))
	f.Add("/hooks/empty", sign("", `{}`), "", []byte(`{}`))
	f.Add("/hooks/deploy", "sha256=", "\x00", []byte(`{"n":1e999999999}`))
	f.Add("//hooks/deploy", "sha256=00", "d d", []byte("{\"\xff\":\"\\u0000\\ud800\"}}"))
	w := &world{}
	f.Fuzz(func(t *testing.T, path, signature, delivery string, body []byte) {
		w.got = nil
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		r.URL.Path, r.URL.RawPath = path, ""
		r.Header["X-Maestro-Signature"] = []string{signature}
		r.Header["X-Maestro-Delivery"] = []string{delivery}
		rec := httptest.NewRecorder()
		w.handler().ServeHTTP(rec, r)
		if (rec.Code == http.StatusAccepted) != (len(w.got) == 1) {
			t.Fatalf("%d, delivered %q", rec.Code, w.got)
		}
		if len(w.got) == 0 {
			return
		}
		if path != "/hooks/deploy" || !strings.EqualFold(signature, sign(secret, string(body))) {
			t.Errorf("%s signed %q is delivered: %q", path, signature, w.got)
		}
		payload := strings.TrimPrefix(w.got[0], "deploy "+delivery+" ")
		var object map[string]any
		if err := json.Unmarshal([]byte(payload), &object); err != nil || object == nil {
			t.Errorf("payload %q: %v", payload, err)
		}
	})
}
