// Package wsconn is one websocket connection that carries wire messages. It owns
// what is easy to get wrong about a socket: one goroutine writes, queues and
// frames are bounded, a silent peer is found, and the connection ends with a code
// and a sentence. It knows nothing of agents or attempts; fleet and session do.
//
// Each connection has one goroutine, which writes; it ends with the connection
// and Done tells when. Reading happens in the caller of Receive. Nothing here
// holds a mutex across I/O, so that the package runs under a false clock.
package wsconn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/wire"
)

// Codes with which a connection ends.
const (
	CodeNormal    = websocket.CloseNormalClosure           // 1000
	CodeGoingAway = websocket.CloseGoingAway               // 1001, the program stops
	CodeProtocol  = websocket.CloseProtocolError           // 1002, the peer breaks the websocket rules
	CodePayload   = websocket.CloseInvalidFramePayloadData // 1007, a message that cannot be read
	CodePolicy    = websocket.ClosePolicyViolation         // 1008, refused, revoked or flooding
	CodeTooBig    = websocket.CloseMessageTooBig           // 1009
	CodeBusy      = websocket.CloseTryAgainLater           // 1013, a queue is full
	CodeReplaced  = 4001                                   // a newer connection of the same agent took over
)

const (
	// 5 s and 15 s: two pings may get lost before a peer counts as dead.
	defaultPing = 5 * time.Second
	defaultDead = 15 * time.Second
	// messageTime is how long one message may take from its first to its last
	// byte: the largest at 17 KiB/s. Without it a message in fragments never ends.
	messageTime = 30 * time.Second
	// rawPerMessage bounds the bytes on the wire for one message: honest framing
	// adds a few percent, a stream of empty fragments adds without end.
	rawPerMessage = 2 * wire.MaxFrame
	// flushTime bounds what is still written before the close frame, lingerTime the
	// wait for the peer to take it: closing with unread bytes would make the kernel
	// send a reset, which destroys the close frame on its way.
	flushTime  = 2 * time.Second
	lingerTime = time.Second
	lingerMost = 1 << 20
	// Messages and bytes that may wait for the writer; see TrySend. A reconnecting
	// agent is sent two messages for each attempt it holds, all at once.
	queueMessages = 1024
	queueBytes    = 16 << 20
	queueReady    = 32
	// A few log frames keep the socket busy; more would only delay what follows.
	queueLogs  = 4
	queuePongs = 4
	// Pings and pongs accepted in controlSpan; an honest peer sends four.
	controlMost = 100
	controlSpan = 10 * time.Second
	// keepBuffer is the read buffer that is kept between messages.
	keepBuffer = 128 << 10
)

// Options are the timings of a connection.
type Options struct {
	// Ping is the interval between pings, 5 s when zero.
	Ping time.Duration
	// Dead is the silence after which the peer counts as gone, 15 s when zero.
	Dead time.Duration
}

func (o Options) withDefaults() Options {
	if o.Ping == 0 {
		o.Ping = defaultPing
	}
	if o.Dead == 0 {
		o.Dead = defaultDead
	}
	return o
}

// Conn is an open connection. Its methods may be called from any goroutine, but
// only one Receive at a time makes sense.
type Conn struct {
	// Immutable after open.
	ws  *websocket.Conn
	raw *meter
	opt Options

	msgs   chan []byte
	logs   chan []byte
	pongs  chan []byte
	queued atomic.Int64 // bytes in msgs and over
	// spoke is when the peer last sent a message, in nanoseconds since opened.
	opened time.Time
	spoke  atomic.Int64

	mu sync.Mutex
	// over is what TrySend could not put into msgs, which is small because most
	// connections say little; more has an element when there is some.
	over [][]byte
	more chan struct{}

	// ending is closed by the first end, after which end, code and text are fixed.
	once   sync.Once
	ending chan struct{}
	err    error
	code   int
	text   string
	// done is closed when the writer has returned and the socket is closed.
	done chan struct{}

	// reading is held by whoever reads from the socket, who owns what follows.
	reading   chan struct{}
	buf       []byte
	inMessage bool
	controls  int
	since     time.Time
}

func open(ws *websocket.Conn, raw *meter, opt Options) *Conn {
	c := &Conn{
		ws: ws, raw: raw, opt: opt.withDefaults(),
		msgs: make(chan []byte, queueReady), more: make(chan struct{}, 1), opened: time.Now(), logs: make(chan []byte, queueLogs), pongs: make(chan []byte, queuePongs),
		ending: make(chan struct{}), done: make(chan struct{}), reading: make(chan struct{}, 1),
	}
	ws.SetReadLimit(wire.MaxFrame)
	ws.SetPingHandler(func(data string) error {
		select {
		case c.pongs <- []byte(data):
		default: // an answer is on its way already
		}
		return c.heard()
	})
	ws.SetPongHandler(func(string) error { return c.heard() })
	// The writer ends with the connection: end wakes it, and it closes done.
	go c.write()
	return c
}

// Send queues m and waits while the queue is full. m that is too large is
// fault.Invalid; a connection that has ended is fault.Unavailable.
func (c *Conn) Send(ctx context.Context, m wire.Message) error {
	b, err := wire.Encode(m)
	if err != nil {
		return err
	}
	return c.put(ctx, c.msgs, b)
}

// TrySend is Send without waiting: a queue that is full, because the peer does
// not read, ends the connection with CodeBusy and is fault.Unavailable.
func (c *Conn) TrySend(m wire.Message) error {
	b, err := wire.Encode(m)
	if err != nil {
		return err
	}
	if c.ended() {
		return c.err
	}
	if c.queued.Add(int64(len(b))) <= queueBytes && c.tryPut(b) {
		return nil
	}
	c.end(CodeBusy, "the queue of messages is full", fault.New(fault.Unavailable, "peer does not read its messages"))
	return c.err
}

// tryPut queues b behind all that TrySend has queued, unless that is too much.
func (c *Conn) tryPut(b []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.over) == 0 {
		select {
		case c.msgs <- b:
			return true
		default:
		}
	}
	if len(c.over) >= queueMessages {
		return false
	}
	c.over = append(c.over, b)
	select {
	case c.more <- struct{}{}:
	default: // the writer knows
	}
	return true
}

// refill moves what is over into the queue that is written, as far as there is room.
func (c *Conn) refill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.over) > 0 {
		select {
		case c.msgs <- c.over[0]:
			c.over = c.over[1:]
			continue
		default:
		}
		select {
		case c.more <- struct{}{}:
		default:
		}
		return
	}
	c.over = nil
}

// SendLog queues f and waits while the queue is full; messages overtake log
// bytes. f.Data may be reused afterwards. Errors are those of Send.
func (c *Conn) SendLog(ctx context.Context, f wire.LogFrame) error {
	b, err := wire.EncodeLog(f)
	if err != nil {
		return err
	}
	return c.put(ctx, c.logs, b)
}

func (c *Conn) put(ctx context.Context, queue chan []byte, b []byte) error {
	if c.ended() {
		return c.err
	}
	if queue == c.msgs {
		c.queued.Add(int64(len(b)))
	}
	select {
	case queue <- b:
		return nil
	case <-c.ending:
		return c.err
	case <-ctx.Done():
		if queue == c.msgs {
			c.queued.Add(-int64(len(b)))
		}
		return fault.New(fault.Unavailable, "wait for the peer to read: %w", context.Cause(ctx))
	}
}

// Close ends the connection with a code and a sentence for the peer, after what
// is queued. It returns at once; Done tells when all is written and closed, which
// takes at most a few seconds. Later calls do nothing.
func (c *Conn) Close(code int, text string) {
	c.end(code, text, fault.New(fault.Unavailable, "connection was closed here: %d %s", code, text))
}

// Done is closed when the connection has ended and its goroutine returned.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Ending is closed as soon as the connection begins to end; sends fail from then on.
func (c *Conn) Ending() <-chan struct{} { return c.ending }

// RemoteAddr is the peer's network address, for log lines.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

func (c *Conn) ended() bool {
	select {
	case <-c.ending:
		return true
	default:
		return false
	}
}

// end fixes why the connection ends; only the first call counts. Code 0 sends no
// close frame. A read that is under way is woken, a write has flushTime left.
func (c *Conn) end(code int, text string, err error) {
	c.once.Do(func() {
		c.code, c.text, c.err = code, text, err
		close(c.ending)
		c.raw.SetReadDeadline(past)
		c.raw.hurry(time.Now().Add(flushTime))
	})
}

var past = time.Unix(1, 0)

// write is the connection's goroutine and its only writer of data frames. It
// returns when the connection ends.
func (c *Conn) write() {
	defer close(c.done)
	defer c.raw.Close()
	ping := time.NewTicker(c.opt.Ping)
	defer ping.Stop()
	for {
		op, b := c.next(ping.C)
		switch {
		case op == 0:
			c.finish()
			return
		case op == nothing, op == websocket.PingMessage && time.Since(c.opened)-time.Duration(c.spoke.Load()) < c.opt.Ping:
			continue // a peer that has just said something lives
		}
		if err := c.writeFrame(op, b, messageTime); err != nil {
			c.giveUp(err)
			return
		}
	}
}

// giveUp ends the connection after a write that failed. A peer that closes makes
// writes fail, and the reader is about to find the close frame that says why.
func (c *Conn) giveUp(err error) {
	t := time.NewTimer(lingerTime)
	defer t.Stop()
	select {
	case <-c.ending:
	case <-t.C:
		c.end(0, "", fault.New(fault.Unavailable, "write to peer: %w", err))
	}
}

// nothing is what next returns when it has to be asked again.
const nothing = -1

// next waits for something to write; 0 means that the connection ends. Messages
// go before log bytes, so that no heartbeat waits behind megabytes of log.
func (c *Conn) next(ping <-chan time.Time) (op int, b []byte) {
	select {
	case <-c.ending:
		return 0, nil
	case b = <-c.pongs:
		return websocket.PongMessage, b
	case <-ping:
		return websocket.PingMessage, nil
	default:
	}
	select {
	case b = <-c.msgs:
		return websocket.TextMessage, b
	default:
	}
	select {
	case <-c.ending:
		return 0, nil
	case <-c.more:
		c.refill()
		return nothing, nil
	case b = <-c.pongs:
		return websocket.PongMessage, b
	case <-ping:
		return websocket.PingMessage, nil
	case b = <-c.msgs:
		return websocket.TextMessage, b
	case b = <-c.logs:
		return websocket.BinaryMessage, b
	}
}

func (c *Conn) writeFrame(op int, b []byte, within time.Duration) error {
	deadline := time.Now().Add(within)
	if op == websocket.PingMessage || op == websocket.PongMessage || op == websocket.CloseMessage {
		return c.ws.WriteControl(op, b, deadline)
	}
	if op == websocket.TextMessage {
		c.queued.Add(-int64(len(b)))
	}
	c.ws.SetWriteDeadline(deadline)
	return c.ws.WriteMessage(op, b)
}

// finish writes what is queued and the close frame, and waits a moment for the
// peer to close its side.
func (c *Conn) finish() {
	if c.code == 0 {
		return
	}
	for more := true; more; {
		c.refill()
		select {
		case b := <-c.msgs:
			more = c.writeFrame(websocket.TextMessage, b, flushTime) == nil
		default:
			more = false
		}
	}
	// An error means that the library has sent a close frame of its own, or that
	// the socket is gone; either way there is nothing left to say.
	_ = c.writeFrame(websocket.CloseMessage, websocket.FormatCloseMessage(c.code, clip(c.text)), flushTime)
	c.reading <- struct{}{} // end has woken the reader
	c.raw.SetReadDeadline(time.Now().Add(lingerTime))
	c.raw.linger(lingerMost)
}

// clip fits text into a close frame without cutting a letter in two.
func clip(text string) string {
	const most = 123
	if len(text) > most {
		text = text[:most]
		for !utf8.ValidString(text) {
			text = text[:len(text)-1]
		}
	}
	return text
}

// CloseError is what the peer said when it closed the connection.
type CloseError struct {
	Code int
	Text string
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("peer closed the connection: %d %s", e.Code, e.Text)
}

// CodeOf returns the code with which the peer closed, 0 when err is not about that.
func CodeOf(err error) int {
	var e *CloseError
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}
