package wsconn

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/wire"
)

// Frame is what Receive returns: a message, or log bytes when Message is nil.
type Frame struct {
	Message wire.Message
	Log     wire.LogFrame // its Data belongs to the receiver
	// Size is the length of the frame, for those who limit rates.
	Size int
}

var (
	errFlood  = errors.New("too many control frames")
	errPadded = errors.New("message in too many fragments")
)

// Receive waits for the next message or log frame.
//
// A *wire.UnknownError is a message of a kind that this build does not know; the
// connection goes on. After every other error it has ended, and further calls
// return the same: fault.Invalid when the peer broke a rule (it has been told by
// the close code), fault.Unavailable when the connection was lost or closed by
// either side; CodeOf tells the peer's code. The end of ctx ends the connection.
func (c *Conn) Receive(ctx context.Context) (Frame, error) {
	select {
	case c.reading <- struct{}{}:
	case <-c.ending:
		return Frame{}, c.err
	}
	defer func() { <-c.reading }()
	stop := context.AfterFunc(ctx, func() {
		c.end(CodeGoingAway, "", fault.New(fault.Unavailable, "receive: %w", context.Cause(ctx)))
	})
	defer stop()

	op, b, err := c.read()
	if err != nil {
		c.fail(err)
		return Frame{}, c.err
	}
	f, err := decode(op, b)
	var unknown *wire.UnknownError
	if err != nil && !errors.As(err, &unknown) {
		c.end(CodePayload, err.Error(), err)
		return Frame{}, c.err
	}
	return f, err
}

// read returns one whole frame; b is good until the next call.
func (c *Conn) read() (op int, b []byte, err error) {
	c.allow(c.opt.Dead)
	op, r, err := c.ws.NextReader()
	if err != nil {
		return 0, nil, err
	}
	c.inMessage = true
	c.raw.left, c.raw.limited = rawPerMessage, true
	defer func() { c.inMessage, c.raw.limited = false, false }()
	c.allow(messageTime)
	if cap(c.buf) > keepBuffer {
		c.buf = nil
	}
	b = c.buf[:0]
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if errors.Is(err, io.EOF) {
			c.buf = b
			c.spoke.Store(int64(time.Since(c.opened)))
			return op, b, nil
		}
		if err != nil {
			return 0, nil, err
		}
	}
}

func decode(op int, b []byte) (Frame, error) {
	f := Frame{Size: len(b)}
	if op == websocket.BinaryMessage {
		log, err := wire.DecodeLog(append([]byte(nil), b...))
		f.Log = log
		return f, err
	}
	if !utf8.Valid(b) {
		return f, fault.New(fault.Invalid, "decode message: text of %d bytes is not UTF-8", len(b))
	}
	m, err := wire.Decode(b)
	f.Message = m
	return f, err
}

// heard is called for each ping and pong. They prove that the peer lives, except
// within a message, whose time is limited as a whole.
func (c *Conn) heard() error {
	now := time.Now()
	if now.Sub(c.since) > controlSpan {
		c.since, c.controls = now, 0
	}
	if c.controls++; c.controls > controlMost {
		return errFlood
	}
	if !c.inMessage {
		c.allow(c.opt.Dead)
	}
	return nil
}

// allow lets reads take until d from now, unless the connection ends.
func (c *Conn) allow(d time.Duration) {
	c.raw.SetReadDeadline(time.Now().Add(d))
	if c.ended() {
		c.raw.SetReadDeadline(past)
	}
}

// fail ends the connection after a read that went wrong, and tells a peer that
// broke the rules which one.
func (c *Conn) fail(err error) {
	var closed *websocket.CloseError
	var timeout net.Error
	switch {
	case errors.Is(err, errPadded), errors.Is(err, websocket.ErrReadLimit):
		c.end(CodeTooBig, "message is too large", fault.New(fault.Invalid, "read from peer: most is %d bytes: %w", wire.MaxFrame, err))
	case errors.Is(err, errFlood):
		c.end(CodePolicy, err.Error(), fault.New(fault.Invalid, "read from peer: %w", err))
	case errors.As(err, &closed) && closed.Code != websocket.CloseAbnormalClosure: // which the library makes up
		c.end(0, "", fault.New(fault.Unavailable, "%w", &CloseError{closed.Code, closed.Text}))
	case errors.As(err, &timeout) && timeout.Timeout():
		c.end(CodePolicy, "silent for too long", fault.New(fault.Unavailable, "read from peer: silent for too long: %w", err))
	case c.raw.err != nil:
		c.end(0, "", fault.New(fault.Unavailable, "connection was lost: %w", err))
	default: // the library found a broken frame
		c.end(CodeProtocol, err.Error(), fault.New(fault.Invalid, "read from peer: %w", err))
	}
}
