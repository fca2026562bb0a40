package wsconn_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
	"github.com/maestro-cd/maestro/internal/wsconn/wsconntest"
)

const attempt = pipeline.AttemptID("01JDXXXXXXXXXXXXXXXXXXXXXX")

// serving returns a handler that gives each connection to serve and ends it afterwards.
func serving(serve func(*wsconn.Conn)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := wsconn.Upgrade(w, r, wsconn.Options{})
		if err != nil {
			return
		}
		serve(c)
		c.Close(wsconn.CodeNormal, "")
		<-c.Done()
	})
}

// echo returns messages and log bytes until the connection ends.
func echo(c *wsconn.Conn) {
	for {
		f, err := c.Receive(context.Background())
		var unknown *wire.UnknownError
		switch {
		case errors.As(err, &unknown):
			_ = c.TrySend(&wire.Unsupported{Kind: unknown.Kind})
		case err != nil:
			return
		case f.Message == nil:
			_ = c.SendLog(context.Background(), f.Log)
		default:
			_ = c.Send(context.Background(), f.Message)
		}
	}
}

func loopback(t *testing.T, h http.Handler) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL
}

func dial(t *testing.T, url string) *wsconn.Conn {
	t.Helper()
	c, err := wsconn.Dialer{}.Dial(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close(wsconn.CodeNormal, "")
		<-c.Done()
	})
	return c
}

func TestMessagesAndLogBytesArriveWhole(t *testing.T) {
	t.Parallel()
	c := dial(t, loopback(t, serving(echo)))
	long := strings.Repeat("x", wire.MaxFrame-200)
	data := bytes.Repeat([]byte{0, 0xff, '\n'}, wire.MaxLogFrame/3)
	if err := c.Send(t.Context(), &wire.Decline{Attempt: attempt, Reason: long}); err != nil {
		t.Fatal(err)
	}
	f, err := c.Receive(t.Context())
	if m, ok := f.Message.(*wire.Decline); err != nil || !ok || m.Reason != long {
		t.Fatalf("a message of the largest size came back as %T, %v", f.Message, err)
	}
	if err := c.SendLog(t.Context(), wire.LogFrame{Attempt: attempt, Offset: 7, Data: data}); err != nil {
		t.Fatal(err)
	}
	f, err = c.Receive(t.Context())
	if err != nil || f.Message != nil || f.Log.Offset != 7 || !bytes.Equal(f.Log.Data, data) {
		t.Fatalf("log bytes came back as %d bytes at %d, %v", len(f.Log.Data), f.Log.Offset, err)
	}
}

func TestManySendersShareOneWriter(t *testing.T) {
	t.Parallel()
	c := dial(t, loopback(t, serving(echo)))
	const senders, each = 20, 50
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for range each {
				_ = c.Send(t.Context(), &wire.Beat{N: 1})
				_ = c.SendLog(t.Context(), wire.LogFrame{Attempt: attempt, Data: []byte("line\n")})
			}
		})
	}
	beats, logs := 0, 0
	for beats+logs < 2*senders*each {
		f, err := c.Receive(t.Context())
		if err != nil {
			t.Fatalf("after %d messages and %d log frames: %v", beats, logs, err)
		}
		if f.Message != nil {
			beats++
		} else {
			logs++
		}
	}
	wg.Wait()
	if beats != senders*each || logs != senders*each {
		t.Errorf("got %d messages and %d log frames, want %d of each", beats, logs, senders*each)
	}
}

func TestBrowsersAndOtherProtocolsAreRefused(t *testing.T) {
	t.Parallel()
	url := loopback(t, serving(echo))
	for name, c := range map[string]struct {
		header string
		value  string
		want   int
	}{
		"origin of a stranger":      {"Origin", "https://evil", 403},
		"origin null":               {"Origin", "null", 403},
		"origin empty":              {"Origin", "", 403},
		"origin of a subdomain":     {"Origin", "https://app.evil", 403},
		"origin with our prefix":    {"Origin", "https://app.example.evil", 403},
		"origin of the server":      {"Origin", url, 403},
		"no subprotocol":            {"Sec-Websocket-Protocol", "", 400},
		"an unknown subprotocol":    {"Sec-Websocket-Protocol", "chat", 400},
		"a prefix of the protocol":  {"Sec-Websocket-Protocol", "maestro.agent", 400},
		"no websocket":              {"Upgrade", "h2c", 400},
		"an old websocket":          {"Sec-Websocket-Version", "8", 400},
		"a key of the wrong length": {"Sec-Websocket-Key", "AAAA", 400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range map[string]string{
				"Connection": "Upgrade", "Upgrade": "websocket", "Sec-Websocket-Version": "13",
				"Sec-Websocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-Websocket-Protocol": wire.Subprotocol,
			} {
				req.Header.Set(k, v)
			}
			req.Header.Set(c.header, c.value)
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != c.want {
				t.Errorf("status %d, want %d", resp.StatusCode, c.want)
			}
		})
	}
}

func TestRefusedDialSaysWhyAndWhetherToTryAgain(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]fault.Kind{404: fault.Invalid, 403: fault.Invalid, 429: fault.Unavailable, 503: fault.Unavailable} {
		url := loopback(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(`{"error":"the moon is full"}`))
		}))
		_, err := wsconn.Dialer{}.Dial(t.Context(), url)
		if !fault.Is(err, want) || !strings.Contains(err.Error(), "the moon is full") {
			t.Errorf("dial answered with %d = %v, want %s with the sentence", status, err, want)
		}
	}
	if _, err := (wsconn.Dialer{}).Dial(t.Context(), "http://127.0.0.1:1"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("dial where nobody listens = %v, want unavailable", err)
	}
}

func TestUnknownKindLeavesTheConnectionOpen(t *testing.T) {
	t.Parallel()
	raw := rawTo(t, loopback(t, serving(echo)))
	write(t, raw, wsconntest.Frame(wsconntest.Fin|wsconntest.Text, []byte(`{"kind":"dance","body":{}}`)))
	if _, b, err := raw.Next(); err != nil || !strings.Contains(string(b), `"unsupported"`) {
		t.Fatalf("answer to an unknown kind = %q, %v", b, err)
	}
	write(t, raw, wsconntest.Frame(wsconntest.Fin|wsconntest.Text, []byte(`{"kind":"beat","body":{"n":4}}`)))
	if _, b, err := raw.Next(); err != nil || !strings.Contains(string(b), `"beat"`) {
		t.Fatalf("answer to what followed = %q, %v", b, err)
	}
}

func TestCloseReasonArrivesThoughThePeerKeepsTalking(t *testing.T) {
	t.Parallel()
	url := loopback(t, serving(func(c *wsconn.Conn) {
		_ = c.TrySend(&wire.Refused{Reason: "no", Final: true})
		c.Close(wsconn.CodePolicy, "we do not like you")
	}))
	c := dial(t, url)
	for range 200 { // unread when the server closes
		_ = c.SendLog(t.Context(), wire.LogFrame{Attempt: attempt, Data: make([]byte, 4<<10)})
	}
	f, err := c.Receive(t.Context())
	if m, ok := f.Message.(*wire.Refused); err != nil || !ok || m.Reason != "no" {
		t.Fatalf("what was queued before the close = %T, %v", f.Message, err)
	}
	_, err = c.Receive(t.Context())
	if wsconn.CodeOf(err) != wsconn.CodePolicy || !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "we do not like you") {
		t.Errorf("Receive = %v, want the server's close", err)
	}
	if err := c.Send(t.Context(), &wire.Beat{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Send after the end = %v, want unavailable", err)
	}
}

// pair is a connection over an in-memory network: the dialled side, and what
// serves the other.
func pair(t *testing.T, serve func(*wsconn.Conn)) (c *wsconn.Conn, end func()) {
	t.Helper()
	p := wsconntest.NewPipe(serving(serve))
	c, err := wsconn.Dialer{NetDial: p.Dial}.Dial(t.Context(), "http://pipe")
	if err != nil {
		t.Fatal(err)
	}
	return c, func() {
		c.Close(wsconn.CodeNormal, "")
		<-c.Done()
		p.Close()
	}
}

func TestIdleConnectionLivesByPings(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, end := pair(t, echo)
		defer end()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_, err := c.Receive(ctx)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Receive on an idle connection = %v, want to wait for an hour", err)
		}
	})
}

func TestSilentPeerIsFoundInFifteenSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		p := wsconntest.NewPipe(serving(func(c *wsconn.Conn) {
			_, err := c.Receive(context.Background())
			ended <- err
		}))
		defer p.Close()
		conn, err := p.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := wsconntest.Upgrade(conn, "/", wire.Subprotocol)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		start := time.Now()
		go drain(raw) // reads the pings and answers none
		err = <-ended
		if took := time.Since(start); took != 15*time.Second || !fault.Is(err, fault.Unavailable) {
			t.Errorf("ended after %v with %v, want 15 s and unavailable", took, err)
		}
	})
}

func TestDribbledMessageEndsTheConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 1)
		p := wsconntest.NewPipe(serving(func(c *wsconn.Conn) {
			_, err := c.Receive(context.Background())
			ended <- err
		}))
		defer p.Close()
		conn, err := p.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := wsconntest.Upgrade(conn, "/", wire.Subprotocol)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		go drain(raw)
		start := time.Now()
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { // a byte and a pong each second, which ends when the server closes
			if _, err := raw.Write(wsconntest.Frame(wsconntest.Text, []byte("{"))); err != nil {
				return
			}
			for {
				time.Sleep(time.Second)
				if _, err := raw.Write(append(wsconntest.Frame(wsconntest.Continuation, []byte(" ")), wsconntest.Frame(wsconntest.Fin|wsconntest.Pong, nil)...)); err != nil {
					return
				}
			}
		})
		err = <-ended
		if took := time.Since(start); took != 30*time.Second || !fault.Is(err, fault.Unavailable) {
			t.Errorf("ended after %v with %v, want 30 s and unavailable", took, err)
		}
	})
}

func TestQueueThatNobodyReadsEndsTheConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		c, end := pair(t, func(*wsconn.Conn) { <-stop })
		defer end()
		defer close(stop)
		start, n := time.Now(), 0
		var err error
		for ; err == nil && n < 1<<20; n++ {
			err = c.TrySend(&wire.Decline{Reason: strings.Repeat("x", 1000)})
		}
		if !fault.Is(err, fault.Unavailable) || n > 2000 || time.Since(start) != 0 {
			t.Errorf("TrySend = %v after %d messages and %v, want unavailable soon and at once", err, n, time.Since(start))
		}
		<-c.Done()
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("closing took %v", took)
		}
	})
}

func TestLargeMessagesFillTheQueueByTheirBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		c, end := pair(t, func(*wsconn.Conn) { <-stop })
		defer end()
		defer close(stop)
		var err error
		n := 0
		for ; err == nil && n < 1000; n++ {
			err = c.TrySend(&wire.Decline{Reason: strings.Repeat("x", wire.MaxFrame-1000)})
		}
		if !fault.Is(err, fault.Unavailable) || n > 40 {
			t.Errorf("TrySend = %v after %d messages of half a MiB, want unavailable before 20 MiB", err, n)
		}
	})
}

func TestOversizedMessageDoesNoHarm(t *testing.T) {
	t.Parallel()
	c := dial(t, loopback(t, serving(echo)))
	if err := c.TrySend(&wire.Decline{Reason: strings.Repeat("x", wire.MaxFrame)}); !fault.Is(err, fault.Invalid) {
		t.Errorf("TrySend = %v, want invalid", err)
	}
	if err := c.Send(t.Context(), &wire.Beat{N: 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Receive(t.Context()); err != nil {
		t.Errorf("Receive = %v after a message that was not sent", err)
	}
}

func TestMessagesOvertakeLogBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := make(chan struct{})
		var order []string
		c, end := pair(t, func(c *wsconn.Conn) {
			<-start
			for {
				f, err := c.Receive(context.Background())
				if err != nil {
					return
				}
				if f.Message != nil {
					order = append(order, "message")
				} else {
					order = append(order, "log")
				}
			}
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			for range 10 {
				_ = c.SendLog(context.Background(), wire.LogFrame{Attempt: attempt, Data: make([]byte, wire.MaxLogFrame)})
			}
		})
		synctest.Wait() // the writer is stuck in the first log frame, the queue is full
		if err := c.Send(t.Context(), &wire.Beat{}); err != nil {
			t.Fatal(err)
		}
		close(start)
		wg.Wait()
		synctest.Wait()
		end()
		synctest.Wait()
		if len(order) != 11 || order[0] != "log" || order[1] != "message" {
			t.Errorf("arrived as %v, want the message right after the frame under way", order)
		}
	})
}

func TestContextEndsReceiveAndTheConnection(t *testing.T) {
	t.Parallel()
	c := dial(t, loopback(t, serving(echo)))
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	got := make(chan error, 1)
	go func() {
		_, err := c.Receive(ctx)
		got <- err
	}()
	cancel(why)
	if err := <-got; !errors.Is(err, why) || !fault.Is(err, fault.Unavailable) {
		t.Errorf("Receive = %v, want the cause", err)
	}
	<-c.Done()
}

func TestLostConnectionIsUnavailable(t *testing.T) {
	t.Parallel()
	c := dial(t, loopback(t, serving(func(c *wsconn.Conn) {
		wsconn.Cut(c)
		_, _ = c.Receive(context.Background())
	})))
	if _, err := c.Receive(t.Context()); !fault.Is(err, fault.Unavailable) || wsconn.CodeOf(err) != 0 {
		t.Errorf("Receive = %v, want unavailable without a code", err)
	}
}

func drain(raw *wsconntest.Raw) {
	for {
		if _, _, err := raw.Next(); err != nil {
			return
		}
	}
}

func rawTo(t *testing.T, url string) *wsconntest.Raw {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	raw, err := wsconntest.Upgrade(conn, "/", wire.Subprotocol)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func write(t *testing.T, raw *wsconntest.Raw, b []byte) {
	t.Helper()
	if _, err := raw.Write(b); err != nil {
		t.Fatal(err)
	}
}

func TestManyMessagesAtOnceArriveInOrder(t *testing.T) {
	t.Parallel()
	const most = 1000 // an agent that comes back with all that it holds
	synctest.Test(t, func(t *testing.T) {
		start, done := make(chan struct{}), make(chan error, 1)
		c, end := pair(t, func(s *wsconn.Conn) {
			<-start
			for n := int64(1); n <= most; n++ {
				f, err := s.Receive(context.Background())
				if b, ok := f.Message.(*wire.Beat); err != nil || !ok || b.N != n {
					done <- fmt.Errorf("message %d is %+v, %w", n, f.Message, err)
					return
				}
			}
			done <- nil
		})
		defer end()
		for n := int64(1); n <= most; n++ {
			if err := c.TrySend(&wire.Beat{N: n}); err != nil {
				t.Fatal(err)
			}
		}
		close(start)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestPeerThatDoesNotReadIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stop := make(chan struct{})
		c, end := pair(t, func(*wsconn.Conn) { <-stop })
		defer end()
		defer close(stop)
		for n := range int64(2000) {
			if err := c.TrySend(&wire.Beat{N: n}); err != nil {
				if !fault.Is(err, fault.Unavailable) || n < 1000 {
					t.Errorf("after %d messages: %v", n, err)
				}
				return
			}
		}
		t.Error("2,000 messages wait for a peer that reads none")
	})
}
