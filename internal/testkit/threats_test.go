package testkit_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3"

	"github.com/maestro-cd/maestro/internal/testkit"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
	"github.com/maestro-cd/maestro/internal/wsconn/wsconntest"
)

// stranger is a client of the intake that keeps no rule it does not want to keep.
type stranger struct {
	t   *testing.T
	s   *testkit.Server
	key ed25519.PrivateKey
}

func newStranger(t *testing.T, s *testkit.Server) *stranger {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &stranger{t, s, key}
}

func (x *stranger) public() []byte { return x.key.Public().(ed25519.PublicKey) }

// enrol uses a token and returns the status of the answer.
func (x *stranger) enrol(token string) int {
	b, err := json.Marshal(wire.EnrolRequest{PublicKey: x.public(), Name: "stranger", Signature: ed25519.Sign(x.key, wire.SignedEnrol(token))})
	if err != nil {
		x.t.Error(err)
	}
	return x.ask(http.MethodPost, wire.PathEnrol, map[string]string{"Authorization": "Bearer " + token}, b)
}

// ask makes a request and returns the status of the answer, 0 for none. The path is
// sent as it is.
func (x *stranger) ask(method, path string, header map[string]string, body []byte) int {
	c, err := net.DialTimeout("tcp", strings.TrimPrefix(x.s.Intake, "http://"), 5*time.Second)
	if err != nil {
		x.t.Error(err)
		return 0
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // of a socket that is open
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: maestro\r\nConnection: close\r\nContent-Length: %d\r\n", method, path, len(body))
	for k, v := range header {
		fmt.Fprintf(&b, "%s: %s\r\n", k, v)
	}
	b.WriteString("\r\n")
	b.Write(body)
	if _, err := c.Write(b.Bytes()); err != nil {
		return 0
	}
	answer, _ := io.ReadAll(io.LimitReader(c, 64<<10))
	status := 0
	_, _ = fmt.Sscanf(string(answer), "HTTP/1.1 %d", &status)
	return status
}

// dial opens a connection and returns the server's challenge.
func (x *stranger) dial() (*wsconn.Conn, *wire.Challenge, error) {
	c, err := wsconn.Dialer{}.Dial(x.t.Context(), x.s.Intake+wire.PathConnect)
	if err != nil {
		return nil, nil, err
	}
	f, err := c.Receive(x.t.Context())
	challenge, ok := f.Message.(*wire.Challenge)
	if err != nil || !ok {
		return c, nil, fmt.Errorf("the server began with %T, %w", f.Message, err)
	}
	return c, challenge, nil
}

// hello answers a challenge, which may be that of another connection.
func (x *stranger) hello(c *wsconn.Conn, to *wire.Challenge) wire.Message {
	err := c.Send(x.t.Context(), &wire.Hello{
		Versions: [2]int{wire.MinVersion, wire.Version}, PublicKey: x.public(), Name: "stranger",
		Signature: ed25519.Sign(x.key, wire.SignedHello(to.Nonce, to.Server)), BootID: "boot",
	})
	if err != nil {
		x.t.Error(err)
	}
	f, err := c.Receive(x.t.Context())
	if err != nil {
		x.t.Error(err)
	}
	return f.Message
}

// connect is an enrolled agent's session.
func (x *stranger) connect() *wsconn.Conn {
	x.t.Helper()
	c, challenge, err := x.dial()
	if err != nil {
		x.t.Fatal(err)
	}
	if w, ok := x.hello(c, challenge).(*wire.Welcome); !ok {
		x.t.Fatalf("not welcome: %+v", w)
	}
	x.t.Cleanup(func() { c.Close(wsconn.CodeNormal, "") })
	return c
}

// next returns the first message of the type, or how the connection ended.
func next[M wire.Message](ctx context.Context, c *wsconn.Conn) (M, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		f, err := c.Receive(ctx)
		if m, ok := f.Message.(M); ok || err != nil {
			return m, err
		}
	}
}

func member(t *testing.T, s *testkit.Server) *stranger {
	t.Helper()
	x := newStranger(t, s)
	token := s.Invite(t, "default")
	testkit.Eventually(t, "enrolment", func() (bool, string) { // slowed down while somebody guesses from here
		status := x.enrol(token)
		return status == http.StatusOK, fmt.Sprint(status)
	})
	return x
}

// TestThreatsOfAgentsAndTransport gives a running server what an attacker would. Each
// is named by its number in the list of threats.
func TestThreatsOfAgentsAndTransport(t *testing.T) {
	real(t)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	for name, attack := range map[string]func(t *testing.T, s *testkit.Server){
		"T57-a-join-token-is-used-by-many":         joinTokenUsedByMany,
		"T58-an-answer-is-replayed-or-relayed":     answerReplayed,
		"T59-one-key-on-two-machines":              keyCloned,
		"T60-enrolment-by-a-weak-route":            weakEnrolment,
		"T61-an-agent-acts-for-another":            actsForAnother,
		"T62-an-agent-gives-orders":                givesOrders,
		"T63-parameters-and-paths-are-polluted":    pollutedPaths,
		"T64-one-agent-floods":                     floods,
		"T65-frames-against-the-rules":             brokenFrames,
		"T66-a-page-opens-a-websocket":             crossSite,
		"T67-authentication-is-led-past-its-paths": confusedPaths,
		"T68-an-agent-is-revoked-while-connected":  revokedMeanwhile,
	} {
		t.Run(name, func(t *testing.T) { attack(t, s) })
	}
}

func joinTokenUsedByMany(t *testing.T, s *testkit.Server) {
	token := s.Invite(t, "default")
	var won atomic.Int32
	var all sync.WaitGroup
	for range 50 {
		x := newStranger(t, s)
		all.Go(func() {
			if x.enrol(token) == http.StatusOK {
				won.Add(1)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 50 were admitted by one token", won.Load())
	}
	// Guessing from this address is slowed down for a moment by now.
	testkit.Eventually(t, "a token that was never given", func() (bool, string) {
		status := newStranger(t, s).enrol("maestro-join-" + strings.Repeat("x", 32))
		return status == http.StatusForbidden, fmt.Sprint(status)
	})
}

func answerReplayed(t *testing.T, s *testkit.Server) {
	x := member(t, s)
	_, first, err := x.dial()
	if err != nil {
		t.Fatal(err)
	}
	c, _, err := x.dial()
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := x.hello(c, first).(*wire.Refused); !ok || !strings.Contains(r.Reason, "challenge") {
		t.Errorf("the answer to another connection's challenge: %+v", r)
	}
	c, own, err := x.dial()
	if err != nil {
		t.Fatal(err)
	}
	own.Server = "0123456789abcdef0123456789abcdef" // as one who relays to another server would have it signed
	if r, ok := x.hello(c, own).(*wire.Refused); !ok {
		t.Errorf("an answer for another server: %+v", r)
	}
}

func keyCloned(t *testing.T, s *testkit.Server) {
	x := member(t, s)
	older := x.connect()
	newer := x.connect()
	if _, err := next[*wire.Offer](t.Context(), older); wsconn.CodeOf(err) != wsconn.CodeReplaced {
		t.Errorf("the older connection: %v", err)
	}
	if err := newer.Send(t.Context(), &wire.Beat{N: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := next[*wire.BeatAck](t.Context(), newer); err != nil {
		t.Errorf("the newer connection: %v", err)
	}
	if !strings.Contains(s.Said(), "a newer connection") && !strings.Contains(s.Said(), "agent connected") {
		t.Error("nothing was said of it")
	}
}

func weakEnrolment(t *testing.T, s *testkit.Server) {
	x := newStranger(t, s)
	token := s.Invite(t, "default")
	bearer := map[string]string{"Authorization": "Bearer " + token}
	for what, c := range map[string]struct{ got, want int }{
		"GET":                  {x.ask(http.MethodGet, wire.PathEnrol, bearer, nil), 405},
		"a token in the query": {x.ask(http.MethodPost, wire.PathEnrol+"?token="+token, nil, []byte(`{}`)), 400},
		"a token in the body":  {x.ask(http.MethodPost, wire.PathEnrol, nil, []byte(`{"token":"`+token+`"}`)), 401},
		"another's signature":  {x.ask(http.MethodPost, wire.PathEnrol, bearer, []byte(`{"public_key":"`+strings.Repeat("A", 43)+`=","signature":"AA=="}`)), 400},
	} {
		if c.got != c.want {
			t.Errorf("%s: status %d, want %d", what, c.got, c.want)
		}
	}
	resp, err := http.Post(s.Web+wire.PathEnrol, "application/json", strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode < 400 {
		t.Errorf("at the web view: %s", resp.Status)
	}
	if status := x.enrol(token); status != http.StatusOK {
		t.Errorf("the token was used up by what was refused: %d", status)
	}
}

func actsForAnother(t *testing.T, s *testkit.Server) {
	c := member(t, s).connect()
	const other = "01JDXXXXXXXXXXXXXXXXXXXXXX"
	for _, m := range []wire.Message{
		&wire.Result{Attempt: other, Token: wire.Held{}.Token}, &wire.Accept{Attempt: other},
	} {
		if err := c.Send(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if f, err := next[*wire.Fenced](t.Context(), c); err != nil || f.Attempt != other {
			t.Errorf("%T for another's attempt: %+v, %v", m, f, err)
		}
	}
	if err := c.SendLog(t.Context(), wire.LogFrame{Attempt: other, Data: []byte("forged\n")}); err != nil {
		t.Fatal(err)
	}
	if f, err := next[*wire.Fenced](t.Context(), c); err != nil || f.Attempt != other {
		t.Errorf("log of another's attempt: %+v, %v", f, err)
	}
}

func givesOrders(t *testing.T, s *testkit.Server) {
	for _, m := range []wire.Message{&wire.Cancel{Attempt: "a"}, &wire.Forget{}, &wire.Go{Attempt: "a"}, &wire.Offer{Attempt: "a"}, &wire.Ack{Attempt: "a"}} {
		c := member(t, s).connect()
		if err := c.Send(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if _, err := next[*wire.BeatAck](t.Context(), c); wsconn.CodeOf(err) != wsconn.CodePolicy {
			t.Errorf("%T from an agent: %v", m, err)
		}
	}
}

func pollutedPaths(t *testing.T, s *testkit.Server) {
	x := newStranger(t, s)
	for _, path := range []string{
		wire.PathConnect + "?repo=a&repo=b", wire.PathConnect + "?", "/agent/v1/%63onnect", "/agent//v1/connect", "/agent/v1/connect;a=b",
		"/AGENT/v1/connect", "/agent/v1/./connect", "/agent/v1/x/../connect", "/agent/v1/connect/", wire.PathPlugin + "..%2f..%2fetc%2fpasswd.tar",
	} {
		if got := x.ask(http.MethodGet, path, nil, nil); got != 400 && got != 404 {
			t.Errorf("%s: status %d", path, got)
		}
	}
}

func floods(t *testing.T, s *testkit.Server) {
	quiet := member(t, s).connect()
	loud := member(t, s).connect()
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { // ends with ctx, or when the server has enough
		for n := int64(1); loud.Send(ctx, &wire.Beat{N: n}) == nil; n++ {
		}
	})
	all.Go(func() { // reads what comes back, so that it is the talking that counts
		for {
			if _, err := loud.Receive(ctx); err != nil {
				return
			}
		}
	})
	for n := range int64(10) {
		sent := time.Now()
		if err := quiet.Send(t.Context(), &wire.Beat{N: n + 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := next[*wire.BeatAck](t.Context(), quiet); err != nil {
			t.Fatal(err)
		}
		// The bound is that of the threat, with room for a machine that does much else.
		if took := time.Since(sent); took > 5*time.Second {
			t.Errorf("beside a flood, a heartbeat took %s", took)
		}
	}
}

func brokenFrames(t *testing.T, s *testkit.Server) {
	for what, c := range map[string]struct {
		bytes []byte
		want  int
	}{
		"a length of 2^63": {wsconntest.Header(wsconntest.Fin|wsconntest.Text, 1<<63), wsconn.CodeTooBig},
		"a frame of 1 GiB": {wsconntest.Header(wsconntest.Fin|wsconntest.Binary, 1<<30), wsconn.CodeTooBig},
		"not masked":       {append([]byte{wsconntest.Fin | wsconntest.Text, 2}, "{}"...), wsconn.CodeProtocol},
		"compressed":       {wsconntest.Frame(wsconntest.Fin|wsconntest.RSV1|wsconntest.Text, []byte("{}")), wsconn.CodeProtocol},
		"not UTF-8":        {wsconntest.Frame(wsconntest.Fin|wsconntest.Text, []byte("{\"\xff\"}")), wsconn.CodePayload},
		"not JSON":         {wsconntest.Frame(wsconntest.Fin|wsconntest.Text, []byte("hello")), wsconn.CodePayload},
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.Intake, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // of a socket that is open
		raw, err := wsconntest.Upgrade(conn, wire.PathConnect, wire.Subprotocol)
		if err == nil {
			_, err = raw.Write(c.bytes)
		}
		if err != nil {
			t.Fatal(err)
		}
		if code, text, err := raw.CloseCode(); code != c.want {
			t.Errorf("%s: closed with %d %q, %v, want %d", what, code, text, err, c.want)
		}
		conn.Close()
	}
}

func crossSite(t *testing.T, s *testkit.Server) {
	x := newStranger(t, s)
	for _, origin := range []string{"https://evil", "null", "", "https://app.evil", "https://app.example.evil", s.Web, s.Intake} {
		got := x.ask(http.MethodGet, wire.PathConnect, map[string]string{
			"Origin": origin, "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
			"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": wire.Subprotocol,
		}, nil)
		if got != http.StatusForbidden {
			t.Errorf("origin %q: status %d", origin, got)
		}
	}
}

func confusedPaths(t *testing.T, s *testkit.Server) {
	x := newStranger(t, s)
	for _, path := range []string{"/agent/../admin", "/invite", "/agent/v1/connect;.jsp", "/%2561gent", "/", "/api/v1/runs", "//agent/v1/connect", "/agents"} {
		header := map[string]string{"X-Original-URL": "/invite", "X-Rewrite-URL": "/invite", "X-Forwarded-For": "127.0.0.1"}
		if got := x.ask(http.MethodGet, path, header, nil); got != 401 && got != 404 && got != 400 {
			t.Errorf("%s: status %d", path, got)
		}
	}
	if got := x.ask(http.MethodGet, wire.PathPlugin+strings.Repeat("a", 40)+".tar", map[string]string{"X-Forwarded-For": "127.0.0.1"}, nil); got != 401 {
		t.Errorf("a download without a session: status %d", got)
	}
	// Two lengths at once: one request for the server, another for what is in front of it.
	if got := x.ask(http.MethodPost, wire.PathEnrol, map[string]string{"Transfer-Encoding": "chunked, identity"}, []byte("0\r\n\r\nGET / HTTP/1.1\r\n\r\n")); got != 400 && got != 501 {
		t.Errorf("two lengths: status %d", got)
	}
}

func revokedMeanwhile(t *testing.T, s *testkit.Server) {
	x := member(t, s)
	c := x.connect()
	db, err := sql.Open("sqlite3", "file:"+filepath.Join(s.Data, "maestro.db")+"?_busy_timeout=10000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`UPDATE agents SET revoked = 1 WHERE public_key = ?`, x.public()); err != nil {
		t.Fatal(err)
	}
	if r, err := next[*wire.Refused](t.Context(), c); err != nil || !r.Final || !strings.Contains(r.Reason, "revoked") {
		t.Errorf("within 20 s of it: %+v, %v", r, err)
	}
	again, challenge, err := x.dial()
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := x.hello(again, challenge).(*wire.Refused); !ok || !r.Final {
		t.Errorf("when it comes back: %+v", r)
	}
	if status := x.enrol(s.Invite(t, "default")); status != http.StatusForbidden {
		t.Errorf("with another token: %d", status)
	}
}
