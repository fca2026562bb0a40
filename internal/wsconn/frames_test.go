package wsconn_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
	"github.com/maestro-cd/maestro/internal/wsconn/wsconntest"
)

func TestBrokenFramesEndTheirConnectionWithACode(t *testing.T) {
	t.Parallel()
	const fin = wsconntest.Fin
	frame, header := wsconntest.Frame, wsconntest.Header
	beat := []byte(`{"kind":"beat","body":{"n":1}}`)
	unmasked := append([]byte{fin | wsconntest.Text, byte(len(beat))}, beat...)
	log, err := wire.EncodeLog(wire.LogFrame{Attempt: attempt, Data: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	log[len(log)-1] ^= 1

	url := loopback(t, serving(echo))
	healthy := dial(t, url)
	t.Run("cases", func(t *testing.T) {
		for name, c := range map[string]struct {
			bytes []byte
			want  int
		}{
			"length of 2^63":                {header(fin|wsconntest.Text, 1<<63), wsconn.CodeTooBig},
			"length of 2^64-1":              {header(fin|wsconntest.Text, 1<<64-1), wsconn.CodeTooBig},
			"a frame of 1 GiB":              {header(fin|wsconntest.Binary, 1<<30), wsconn.CodeTooBig},
			"one byte too many":             {header(fin|wsconntest.Text, wire.MaxFrame+1), wsconn.CodeTooBig},
			"fragments that never end":      {append(frame(wsconntest.Text, beat), bytes.Repeat(frame(wsconntest.Continuation, make([]byte, 1000)), 700)...), wsconn.CodeTooBig},
			"empty fragments for ever":      {append(frame(wsconntest.Text, beat), bytes.Repeat(frame(wsconntest.Continuation, nil), 200_000)...), wsconn.CodeTooBig},
			"not masked":                    {unmasked, wsconn.CodeProtocol},
			"compressed":                    {frame(fin|wsconntest.RSV1|wsconntest.Text, beat), wsconn.CodeProtocol},
			"a message within a message":    {append(frame(wsconntest.Text, beat), frame(fin|wsconntest.Text, beat)...), wsconn.CodeProtocol},
			"a continuation of nothing":     {frame(fin|wsconntest.Continuation, beat), wsconn.CodeProtocol},
			"a ping in fragments":           {frame(wsconntest.Ping, nil), wsconn.CodeProtocol},
			"a ping of 126 bytes":           {frame(fin|wsconntest.Ping, make([]byte, 126)), wsconn.CodeProtocol},
			"an opcode of the future":       {frame(fin|0x3, beat), wsconn.CodeProtocol},
			"a close with a code of no one": {frame(fin|wsconntest.CloseFrame, []byte{0, 1}), wsconn.CodeProtocol},
			"a close that is not UTF-8":     {frame(fin|wsconntest.CloseFrame, []byte{3, 0xe8, 0xff}), wsconn.CodeProtocol},
			"text that is not UTF-8":        {frame(fin|wsconntest.Text, []byte("{\"kind\":\"\xff\"}")), wsconn.CodePayload},
			"text that is not JSON":         {frame(fin|wsconntest.Text, []byte("hello")), wsconn.CodePayload},
			"JSON that is not a message":    {frame(fin|wsconntest.Text, []byte(`[[[[]]]]`)), wsconn.CodePayload},
			"JSON without a bottom":         {frame(fin|wsconntest.Text, bytes.Repeat([]byte("["), 100_000)), wsconn.CodePayload},
			"an empty message":              {frame(fin|wsconntest.Text, nil), wsconn.CodePayload},
			"bytes that are not a log":      {frame(fin|wsconntest.Binary, make([]byte, 100)), wsconn.CodePayload},
			"a damaged log frame":           {frame(fin|wsconntest.Binary, log), wsconn.CodePayload},
			"a flood of pings":              {bytes.Repeat(frame(fin|wsconntest.Ping, nil), 1000), wsconn.CodePolicy},
			"a flood of pongs":              {bytes.Repeat(frame(fin|wsconntest.Pong, nil), 1000), wsconn.CodePolicy},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				raw := rawTo(t, url)
				go func() { _, _ = raw.Write(c.bytes) }() // ends when the server closes
				code, text, err := raw.CloseCode()
				if err != nil || code != c.want {
					t.Errorf("closed with %d %q (%v), want %d", code, text, err, c.want)
				}
			})
		}
	})
	if err := healthy.Send(t.Context(), &wire.Beat{N: 2}); err != nil {
		t.Fatal(err)
	}
	if _, err := healthy.Receive(t.Context()); err != nil {
		t.Errorf("another connection was affected: %v", err)
	}
}

func FuzzReceive(f *testing.F) {
	const fin = wsconntest.Fin
	f.Add(wsconntest.Frame(fin|wsconntest.Text, []byte(`{"kind":"beat","body":{"n":1}}`)))
	f.Add(append(wsconntest.Frame(wsconntest.Text, []byte(`{"kind":`)), wsconntest.Frame(fin|wsconntest.Continuation, []byte(`"x"}`))...))
	f.Add(wsconntest.Header(fin|wsconntest.Binary, 1<<63))
	f.Add(wsconntest.Frame(fin|wsconntest.CloseFrame, []byte{3, 0xe8}))
	f.Add(bytes.Repeat(wsconntest.Frame(fin|wsconntest.Ping, []byte("p")), 101))
	f.Add([]byte{fin | wsconntest.RSV1 | wsconntest.Text, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		ended := make(chan error, 1)
		p := wsconntest.NewPipe(serving(func(c *wsconn.Conn) {
			for {
				_, err := c.Receive(context.Background())
				var unknown *wire.UnknownError
				if err != nil && !errors.As(err, &unknown) {
					ended <- err
					return
				}
			}
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
		go drain(raw)
		_, _ = raw.Write(b)
		raw.Close()
		select {
		case err := <-ended:
			if k := fault.KindOf(err); k != fault.Invalid && k != fault.Unavailable {
				t.Errorf("Receive = %v of kind %s", err, k)
			}
		case <-time.After(20 * time.Second):
			t.Error("Receive does not return")
		}
	})
}
