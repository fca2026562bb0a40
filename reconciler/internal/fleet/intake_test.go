package fleet_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
	"github.com/maestro-cd/maestro/internal/wsconn/wsconntest"
	"github.com/maestro-cd/maestro/reconciler/internal/fleet"
)

// invite records a join token.
func (w *world) invite() string {
	token, hash := fleet.NewJoinToken()
	w.registry.mu.Lock()
	defer w.registry.mu.Unlock()
	w.registry.tokens[hash] = ""
	return token
}

func (k key) enrolment(token string) []byte {
	b, err := json.Marshal(wire.EnrolRequest{PublicKey: k.public, Name: "machine", Signature: ed25519.Sign(k.private, wire.SignedEnrol(token))})
	if err != nil {
		panic(err) // plain bytes and strings
	}
	return b
}

func post(t *testing.T, url, token string, body []byte) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+wire.PathEnrol, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return do(t, req)
}

func do(t *testing.T, req *http.Request) (int, string) {
	t.Helper()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, "broken: " + err.Error()
	}
	return resp.StatusCode, string(b)
}

func TestJoinTokensAreLongAndDiffer(t *testing.T) {
	t.Parallel()
	a, hash := fleet.NewJoinToken()
	b, _ := fleet.NewJoinToken()
	if a == b || len(a) < 32 || hash != sha256.Sum256([]byte(a)) {
		t.Errorf("tokens %q and %q", a, b)
	}
}

func TestJoinTokenEnrolsExactlyOneOfFifty(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	token := w.invite()
	var won, refused atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		k := newKey(t)
		wg.Go(func() {
			switch status, body := post(t, url, token, k.enrolment(token)); {
			case status == http.StatusOK && strings.Contains(body, string(k.id)) && strings.Contains(body, record):
				won.Add(1)
			case status == http.StatusForbidden && strings.Contains(body, "was used"):
				refused.Add(1)
			default:
				t.Errorf("enrolment = %d %s", status, body)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || refused.Load() != 49 {
		t.Errorf("%d enrolled and %d refused, want 1 and 49", won.Load(), refused.Load())
	}
}

func TestEnrolledAgentMayConnect(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	token, k := w.invite(), newKey(t)
	if status, body := post(t, url, token, k.enrolment(token)); status != http.StatusOK {
		t.Fatalf("enrolment = %d %s", status, body)
	}
	if status, body := post(t, url, token, k.enrolment(token)); status != http.StatusForbidden || !strings.Contains(body, "was used already") {
		t.Errorf("the token again = %d %s", status, body)
	}
	connect(t, url, k, nil)
	w.events.next(t, "connected", k.id)
}

func TestEnrolmentByAnyOtherWayFails(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	token, k := w.invite(), newKey(t)
	body := k.enrolment(token)
	other := newKey(t).enrolment(token)
	for name, c := range map[string]struct {
		method, path, auth string
		body               []byte
		header             [2]string
		want               int
	}{
		"GET":                     {"GET", wire.PathEnrol, "Bearer " + token, nil, [2]string{}, 405},
		"HEAD":                    {"HEAD", wire.PathEnrol, "Bearer " + token, nil, [2]string{}, 405},
		"PUT":                     {"PUT", wire.PathEnrol, "Bearer " + token, body, [2]string{}, 405},
		"token in the URL":        {"POST", wire.PathEnrol + "?token=" + token, "", body, [2]string{}, 400},
		"token in both":           {"POST", wire.PathEnrol + "?token=" + token, "Bearer " + token, body, [2]string{}, 400},
		"an empty query":          {"POST", wire.PathEnrol + "?", "Bearer " + token, body, [2]string{}, 400},
		"no token":                {"POST", wire.PathEnrol, "", body, [2]string{}, 401},
		"another scheme":          {"POST", wire.PathEnrol, "Basic " + token, body, [2]string{}, 401},
		"a short token":           {"POST", wire.PathEnrol, "Bearer secret", body, [2]string{}, 401},
		"an odd token":            {"POST", wire.PathEnrol, "Bearer " + token + "'; drop", body, [2]string{}, 401},
		"two tokens":              {"POST", wire.PathEnrol, "Bearer " + token, body, [2]string{"Authorization", "Bearer " + token}, 401},
		"a browser":               {"POST", wire.PathEnrol, "Bearer " + token, body, [2]string{"Origin", url}, 403},
		"signed for another":      {"POST", wire.PathEnrol, "Bearer " + token[:len(token)-1], body, [2]string{}, 400},
		"key and signature apart": {"POST", wire.PathEnrol, "Bearer " + token, bytes.Replace(body, body[14:50], other[14:50], 1), [2]string{}, 400},
		"not JSON":                {"POST", wire.PathEnrol, "Bearer " + token, []byte("public_key=x"), [2]string{}, 400},
		"two values":              {"POST", wire.PathEnrol, "Bearer " + token, append(body[:len(body):len(body)], body...), [2]string{}, 400},
		"nothing":                 {"POST", wire.PathEnrol, "Bearer " + token, nil, [2]string{}, 400},
		"a short key":             {"POST", wire.PathEnrol, "Bearer " + token, []byte(`{"public_key":"AAAA","signature":"AAAA"}`), [2]string{}, 400},
		"a very long body":        {"POST", wire.PathEnrol, "Bearer " + token, append(body[:len(body):len(body)], bytes.Repeat([]byte(" "), 20<<10)...), [2]string{}, 400},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, url+c.path, bytes.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.auth != "" {
			req.Header.Set("Authorization", c.auth)
		}
		if c.header[0] != "" {
			req.Header.Add(c.header[0], c.header[1])
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s: status %d, want %d", name, resp.StatusCode, c.want)
		}
		if allow := resp.Header.Get("Allow"); c.want == 405 && allow != "POST" {
			t.Errorf("%s: Allow is %q", name, allow)
		}
	}
	if w.registry.calls != 0 {
		t.Errorf("the registry was asked %d times", w.registry.calls)
	}
	if strings.Contains(w.logged.String(), token) {
		t.Error("the token is in the log")
	}
	if status, answer := post(t, url, token, body); status != http.StatusOK {
		t.Errorf("the token was used up: %d %s", status, answer)
	}
}

func TestGuessingTokensIsSlowedDown(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	k := newKey(t)
	for n := range 200 {
		guess, _ := fleet.NewJoinToken()
		status, _ := post(t, url, guess, k.enrolment(guess))
		if status == http.StatusTooManyRequests {
			if n < 50 {
				t.Errorf("fifty machines behind one address do not get in: refused after %d", n)
			}
			return
		}
		if status != http.StatusForbidden {
			t.Fatalf("a guess = %d", status)
		}
	}
	t.Error("200 guesses were answered")
}

func TestOnlyExactPathsAreThere(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	host := strings.TrimPrefix(url, "http://")
	for path, want := range map[string]string{
		"/":                             "404",
		"/agent/v1":                     "404",
		"/agent/v1/connect/":            "404",
		"//agent/v1/connect":            "404",
		"/agent//v1/connect":            "404",
		"/agent/../agent/v1/connect":    "404",
		"/agent/v1/./connect":           "404",
		"/agent/v1/connec%74":           "404",
		"/agent/v1/%2e%2e/v1/connect":   "404",
		"/agent/v1/connect;.jsp":        "404",
		"/agent/v1/connect%00":          "404",
		"/agent/v1/connect%2561":        "404",
		"/AGENT/v1/connect":             "404",
		"/agent/../admin":               "404",
		"/agent/v1/plugins/":            "404",
		"/agent/v1/plugins/x.tar":       "404",
		"/agent/v1/plugins/../connect":  "404",
		"/agent/v1/plugins/" + goodTree: "404",
		"/agent/v1/plugins/" + strings.ToUpper(goodTree) + ".tar":             "404",
		"/agent/v1/plugins/" + goodTree + ".tar/":                             "404",
		"/agent/v1/plugins/" + goodTree + ".tar%2f..":                         "404",
		"/agent/v1/archives/" + goodSum[:63]:                                  "404",
		"/agent/v1/archives/" + goodSum + "0":                                 "404",
		"/agent/v1/connect?repo=a&repo=b":                                     "400",
		"/agent/v1/plugins/" + goodTree + ".tar?x":                            "400",
		"/agent/v1/plugins/" + goodTree + ".tar":                              "401",
		"/agent/v1/archives/" + goodSum:                                       "401",
		"/agent/v1/connect":                                                   "400", // no websocket
		"/agent/v1/nothing\r\nX-Original-URL: /agent/v1/connect":              "404",
		"/agent/v1/nothing\r\nX-Forwarded-For: 127.0.0.1\r\nX-Rewrite-URL: /": "404",
	} {
		target, headers, _ := strings.Cut(path, "\r\n")
		conn, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		if headers != "" {
			headers += "\r\n"
		}
		if _, err := io.WriteString(conn, "GET "+target+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+headers+"\r\n"); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		conn.Close()
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 "+want) {
			t.Errorf("GET %q = %.40q (%v), want %s", path, answer, err, want)
		}
	}
}

func TestBrowsersMayNotConnect(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	for _, origin := range []string{"https://evil", "null", "", "https://app.evil", "https://app.example.evil", url} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+wire.PathConnect, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{
			"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"},
			"Sec-Websocket-Key": {"AAAAAAAAAAAAAAAAAAAAAA=="}, "Sec-Websocket-Protocol": {wire.Subprotocol}, "Origin": {origin},
		}
		if status, body := do(t, req); status != http.StatusForbidden {
			t.Errorf("origin %q: %d %s, want 403", origin, status, body)
		}
	}
}

func TestDownloadsNeedALiveSessionsToken(t *testing.T) {
	t.Parallel()
	w := newWorld()
	url := w.serve(t)
	k := w.enrolled(t)
	c, welcome := connect(t, url, k, nil)
	plugin, archive := wire.PathPlugin+goodTree+".tar", wire.PathArchive+goodSum
	get := func(path, auth string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if auth != "" {
			req.Header.Set("Authorization", auth)
		}
		return do(t, req)
	}
	right := "Bearer " + welcome.FetchToken
	for _, c := range []struct {
		path, auth string
		want       int
		body       string
	}{
		{plugin, right, 200, "a tar stream"},
		{archive, right, 200, "an archive"},
		{wire.PathArchive + strings.Repeat("0", 64), right, 404, "no archive"},
		{wire.PathPlugin + strings.Repeat("0", 64) + ".tar", right, 404, "no plugin"},
		{wire.PathPlugin + brokenTree + ".tar", right, 200, "broken: unexpected EOF"},
		{plugin, "", 401, ""},
		{plugin, "Bearer ", 401, ""},
		{plugin, right + "x", 401, ""},
		{plugin, right[:len(right)-1], 401, ""},
		{plugin, welcome.FetchToken, 401, ""},
	} {
		if status, body := get(c.path, c.auth); status != c.want || !strings.Contains(body, c.body) {
			t.Errorf("GET %s with %q = %d %.60q, want %d %q", c.path, c.auth, status, body, c.want, c.body)
		}
	}
	closed(c)
	w.events.next(t, "disconnected", k.id)
	if status, _ := get(plugin, right); status != http.StatusUnauthorized {
		t.Errorf("the token of an ended session gets %d", status)
	}
}

// rawSession is an established session whose frames are written by hand.
func rawSession(t *testing.T, url string, k key) *wsconntest.Raw {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	raw, err := wsconntest.Upgrade(conn, wire.PathConnect, wire.Subprotocol)
	if err != nil {
		t.Fatal(err)
	}
	_, b, err := raw.Next()
	if err != nil {
		t.Fatal(err)
	}
	m, err := wire.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	hello, err := wire.Encode(k.hello(m.(*wire.Challenge)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := raw.Write(wsconntest.Frame(wsconntest.Fin|wsconntest.Text, hello)); err != nil {
		t.Fatal(err)
	}
	if _, b, err = raw.Next(); err != nil || !bytes.Contains(b, []byte(`"welcome"`)) {
		t.Fatalf("answer to hello = %s, %v", b, err)
	}
	return raw
}

func FuzzEnrol(f *testing.F) {
	w := newWorld()
	token := w.invite()
	k := newKey(f)
	f.Add(k.enrolment(token))
	f.Add([]byte(`{"public_key":null,"signature":[],"name":"\u0000"}`))
	f.Add([]byte(`[`))
	h := w.fleet.Handler()
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest(http.MethodPost, wire.PathEnrol, bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+token)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code >= 500 || rec.Code == 200 && !bytes.Contains(rec.Body.Bytes(), []byte(k.id)) {
			t.Errorf("enrolment = %d %s", rec.Code, rec.Body)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add([]byte(`{"kind":"hello","body":{"versions":[1,1],"public_key":"AAAA","signature":"AAAA"}}`))
	f.Add([]byte(`{"kind":"hello","body":{"versions":[1,1,1,1],"facts":{"a":[]}}}`))
	f.Add([]byte(`{"kind":"beat","body":{"n":1}}`))
	f.Add([]byte(`{}`))
	f.Add([]byte{0xff})
	w := newWorld()
	p := wsconntest.NewPipe(w.fleet.Handler())
	f.Cleanup(p.Close)
	f.Fuzz(func(t *testing.T, hello []byte) {
		conn, err := p.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := wsconntest.Upgrade(conn, wire.PathConnect, wire.Subprotocol)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := raw.Next(); err != nil {
			t.Fatal(err)
		}
		if len(hello) > wire.MaxFrame {
			return
		}
		if _, err := raw.Write(wsconntest.Frame(wsconntest.Fin|wsconntest.Text, hello)); err != nil {
			t.Fatal(err)
		}
		code, text, err := raw.CloseCode()
		if err != nil || code != wsconn.CodePolicy && code != wsconn.CodePayload {
			t.Errorf("closed with %d %q, %v", code, text, err)
		}
		if len(w.fleet.Online()) != 0 {
			t.Error("a stranger got in")
		}
	})
}
