package fleet_test

import (
	"net/http/httptest"
	"testing"

	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
)

// BenchmarkHandshake is an agent that comes back: dial, challenge, hello, welcome, close.
func BenchmarkHandshake(b *testing.B) {
	w := newWorld()
	srv := httptest.NewServer(w.fleet.Handler())
	defer srv.Close()
	defer w.fleet.Close(b.Context())
	k := w.enrolled(b)
	for b.Loop() {
		closed(welcomed(b, srv.URL, k))
		for len(w.events.ch) > 0 {
			<-w.events.ch
		}
	}
}

// BenchmarkLogFrames is the stream of one attempt's log, acknowledged as it comes.
func BenchmarkLogFrames(b *testing.B) {
	w := newWorld()
	srv := httptest.NewServer(w.fleet.Handler())
	defer srv.Close()
	defer w.fleet.Close(b.Context())
	k := w.enrolled(b)
	c := welcomed(b, srv.URL, k)
	defer closed(c)
	<-w.events.ch
	go func() { // ends with the connection
		for {
			if _, err := c.Receive(b.Context()); err != nil {
				return
			}
		}
	}()
	w.fleet.Send(k.id, &wire.Go{Attempt: attempt, Token: token})
	data := make([]byte, wire.MaxLogFrame)
	b.SetBytes(int64(len(data)))
	off := int64(0)
	for b.Loop() {
		if err := c.SendLog(b.Context(), wire.LogFrame{Attempt: attempt, Token: token, Offset: off, Data: data}); err != nil {
			b.Fatal(err)
		}
		<-w.logs.taken
		off += int64(len(data))
		w.fleet.LogDurable(attempt, off, false)
	}
}

func welcomed(b *testing.B, url string, k key) *wsconn.Conn {
	b.Helper()
	c, err := wsconn.Dialer{}.Dial(b.Context(), url+wire.PathConnect)
	if err != nil {
		b.Fatal(err)
	}
	f, err := c.Receive(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Send(b.Context(), k.hello(f.Message.(*wire.Challenge))); err != nil {
		b.Fatal(err)
	}
	if f, err = c.Receive(b.Context()); err != nil {
		b.Fatal(err)
	}
	if _, ok := f.Message.(*wire.Welcome); !ok {
		b.Fatalf("answer to hello is %T", f.Message)
	}
	return c
}
