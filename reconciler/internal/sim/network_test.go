package sim_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// network joins one server with its agents. It carries bytes in order, as TCP does,
// and frames as often as it is told to.
type network struct {
	// sent is told each data frame that either side writes, before it goes anywhere, and
	// reports whether it is the last that the cable carries.
	sent func(d direction, payload []byte, on *cable) (last bool)

	mu    sync.Mutex
	ln    *listener // nil while the server is down
	sides map[int]*side
}

// side is an agent's part of the network. Guarded by network.mu.
type side struct {
	// silent: what goes to the server, or comes from it, stays on its way.
	silent map[direction]bool
	// cut: the agent is dead.
	cut    bool
	slow   time.Duration
	tamed  map[direction]*trick
	cables []*cable
	// old are frames that the agent once sent.
	old     [][]byte
	changed chan struct{} // closed and replaced when something of the above changes
}

type direction string

const (
	toServer direction = "to server"
	toAgent  direction = "to agent"
)

// trick is what is done to the next frames of a direction.
type trick struct{ twice, swap, replay int }

// cable is one connection: two pipes and what carries bytes between them.
type cable struct {
	ends []net.Conn
	gone chan struct{}
	once sync.Once
}

func (w *cable) cut() {
	w.once.Do(func() {
		close(w.gone)
		for _, c := range w.ends {
			_ = c.Close()
		}
	})
}

func newNetwork(agents int, sent func(direction, []byte, *cable) bool) *network {
	n := &network{sent: sent, sides: map[int]*side{}}
	for i := range agents {
		n.sides[i] = &side{
			silent: map[direction]bool{}, changed: make(chan struct{}),
			tamed: map[direction]*trick{toServer: {}, toAgent: {}},
		}
	}
	return n
}

// change does f to an agent's side and wakes who waits for a change.
func (n *network) change(agent int, f func(*side)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.sides[agent]
	f(s)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (n *network) silence(agent int, silent bool, dirs ...direction) {
	n.change(agent, func(s *side) {
		for _, d := range dirs {
			s.silent[d] = silent
		}
	})
}

// cutAgent ends an agent's connections, and lets it have none until revived.
func (n *network) cutAgent(agent int, dead bool) {
	var cables []*cable
	n.change(agent, func(s *side) {
		s.cut = dead
		if dead {
			cables, s.cables = s.cables, nil
		}
	})
	for _, w := range cables {
		w.cut()
	}
}

// serve lets a new server be dialled.
func (n *network) serve() *listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ln = &listener{conns: make(chan net.Conn), closed: make(chan struct{})}
	return n.ln
}

// cutServer ends every connection but one, which may be nil; dials are refused until serve.
func (n *network) cutServer(except *cable) {
	n.mu.Lock()
	var cables []*cable
	for _, s := range n.sides {
		cables = append(cables, slices.DeleteFunc(s.cables, func(w *cable) bool { return w == except })...)
		s.cables = nil
	}
	ln := n.ln
	n.ln = nil
	n.mu.Unlock()
	for _, w := range cables {
		w.cut()
	}
	if ln != nil {
		_ = ln.Close()
	}
}

type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (*listener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

var errRefused = errors.New("connection refused")

// dial connects an agent, once nothing is silent between it and the server.
func (n *network) dial(ctx context.Context, agent int) (net.Conn, error) {
	for {
		n.mu.Lock()
		s, ln := n.sides[agent], n.ln
		changed := s.changed
		blocked := s.silent[toServer] || s.silent[toAgent]
		switch {
		case s.cut, ln == nil && !blocked:
			n.mu.Unlock()
			return nil, errRefused
		case blocked:
			n.mu.Unlock()
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		client, near := net.Pipe()
		far, server := net.Pipe()
		w := &cable{ends: []net.Conn{client, near, far, server}, gone: make(chan struct{})}
		s.cables = append(s.cables, w)
		n.mu.Unlock()
		select {
		case ln.conns <- addressed{server, agent}:
		case <-ln.closed:
			w.cut()
			return nil, errRefused
		case <-ctx.Done():
			w.cut()
			return nil, ctx.Err()
		}
		// Each ends with the cable, which ends with either side's Close.
		go n.carry(agent, toServer, w, near, far)
		go n.carry(agent, toAgent, w, far, near)
		return client, nil
	}
}

// addressed is a connection whose agents do not all come from one address.
type addressed struct {
	net.Conn
	agent int
}

func (a addressed) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(10, 0, 0, byte(a.agent+1)), Port: 1}
}

// window is what may be under way before a writer has to wait, as in a kernel.
const window = 64

// carry brings what is read from one end to the other.
func (n *network) carry(agent int, d direction, w *cable, from, to net.Conn) {
	queue := make(chan []byte, window)
	go func() { // ends with the cable, or with the queue
		defer w.cut()
		for b := range queue {
			if !n.pass(agent, d, w) {
				return
			}
			if _, err := to.Write(b); err != nil {
				return
			}
		}
	}()
	defer close(queue)
	var f framer
	buf := make([]byte, 128<<10)
	for {
		k, err := from.Read(buf)
		for _, piece := range f.take(buf[:k]) {
			out, last := n.play(agent, d, &f, piece, w)
			for _, b := range out {
				select {
				case queue <- b:
				case <-w.gone:
					return
				}
			}
			if last {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// pass waits until bytes may go on; false when the connection has ended.
func (n *network) pass(agent int, d direction, w *cable) bool {
	n.mu.Lock()
	slow := n.sides[agent].slow
	n.mu.Unlock()
	if slow > 0 {
		t := time.NewTimer(slow)
		defer t.Stop()
		select {
		case <-t.C:
		case <-w.gone:
			return false
		}
	}
	for {
		n.mu.Lock()
		silent, changed := n.sides[agent].silent[d], n.sides[agent].changed
		n.mu.Unlock()
		if !silent {
			return true
		}
		select {
		case <-changed:
		case <-w.gone:
			return false
		}
	}
}

// play returns what goes on its way for one piece of a stream.
func (n *network) play(agent int, d direction, f *framer, p piece, w *cable) (out [][]byte, last bool) {
	if !p.data {
		return [][]byte{p.bytes}, false
	}
	last = n.sent(d, p.payload, w)
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.sides[agent]
	t := s.tamed[d]
	out = [][]byte{p.bytes}
	switch {
	case t.twice > 0:
		t.twice--
		out = append(out, p.bytes)
	case t.replay > 0 && d == toServer && len(s.old) > 0:
		t.replay--
		out = append(out, s.old[t.replay%len(s.old)])
	case t.swap > 0 && f.held == nil && !last:
		t.swap--
		f.held = p.bytes
		return nil, false
	}
	if d == toServer {
		const most = 24
		s.old = append(s.old, slices.Clone(p.bytes))
		s.old = s.old[max(0, len(s.old)-most):]
	}
	if f.held != nil {
		out, f.held = append(out, f.held), nil
	}
	return out, last
}

// framer cuts a stream into the head of its HTTP request or answer and frames.
type framer struct {
	upgraded bool
	plain    bool // it is not a websocket
	rest     []byte
	held     []byte // a frame that the next one overtakes
}

// piece is a frame, or bytes that are none.
type piece struct {
	bytes   []byte
	payload []byte // unmasked; of a data frame
	data    bool
}

func (f *framer) take(b []byte) []piece {
	if f.plain {
		return []piece{{bytes: slices.Clone(b)}}
	}
	f.rest = append(f.rest, b...)
	var out []piece
	if !f.upgraded {
		end := bytes.Index(f.rest, []byte("\r\n\r\n"))
		if end < 0 {
			return nil
		}
		head := f.rest[:end+4]
		if !bytes.Contains(bytes.ToLower(head), []byte("upgrade: websocket")) {
			// Plain HTTP, as for enrolment: nothing of it is a frame.
			out = append(out, piece{bytes: slices.Clone(f.rest)})
			f.rest, f.plain = nil, true
			return out
		}
		f.upgraded = true
		out = append(out, piece{bytes: slices.Clone(head)})
		f.rest = f.rest[end+4:]
	}
	for {
		p, n := cutFrame(f.rest)
		if n == 0 {
			return out
		}
		out = append(out, p)
		f.rest = f.rest[n:]
	}
}

// cutFrame returns the first frame of b and its length, 0 when it is not whole.
func cutFrame(b []byte) (piece, int) {
	if len(b) < 2 {
		return piece{}, 0
	}
	at, length := 2, int(b[1]&0x7f)
	switch length {
	case 126:
		if len(b) < 4 {
			return piece{}, 0
		}
		at, length = 4, int(binary.BigEndian.Uint16(b[2:]))
	case 127:
		if len(b) < 10 {
			return piece{}, 0
		}
		at, length = 10, int(binary.BigEndian.Uint64(b[2:]))
	}
	mask := []byte{0, 0, 0, 0}
	if b[1]&0x80 != 0 {
		if len(b) < at+4 {
			return piece{}, 0
		}
		mask = b[at : at+4]
		at += 4
	}
	if len(b) < at+length {
		return piece{}, 0
	}
	const text, binary = 1, 2
	op := b[0] & 0xf
	p := piece{bytes: slices.Clone(b[:at+length]), data: b[0]&0x80 != 0 && (op == text || op == binary)}
	if p.data && op == text {
		p.payload = slices.Clone(b[at : at+length])
		for i := range p.payload {
			p.payload[i] ^= mask[i%4]
		}
	}
	return p, at + length
}
