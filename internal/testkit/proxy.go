package testkit

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP proxy in front of a server, whose network goes wrong on demand.
type Proxy struct {
	// URL is where to connect instead of the server.
	URL    string
	target string
	ln     net.Listener
	all    sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when one of the next changes
	closed  bool
	silent  bool          // nothing is carried
	slow    time.Duration // a pause after each byte
	conns   map[*proxied]bool
	last    []byte // what the newest connection's client has sent
}

// proxied is one connection through a proxy.
type proxied struct{ client, server net.Conn }

// NewProxy starts a proxy in front of an address like http://host:port.
func NewProxy(t testing.TB, url string) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		URL: "http://" + ln.Addr().String(), target: strings.TrimPrefix(url, "http://"), ln: ln,
		changed: make(chan struct{}), conns: map[*proxied]bool{},
	}
	p.all.Go(p.accept) // ends when ln is closed
	t.Cleanup(func() {
		_ = ln.Close()
		p.change(func() { p.closed, p.silent = true, false })
		p.Reset()
		p.all.Wait()
	})
	return p
}

func (p *Proxy) accept() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.all.Go(func() { p.serve(client) }) // ends with either side
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	if !p.wait() {
		return
	}
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer server.Close()
	c := &proxied{client, server}
	p.change(func() {
		p.conns[c] = true
		p.last = nil
	})
	defer p.change(func() { delete(p.conns, c) })
	p.all.Go(func() {
		p.carry(client, server, nil)
		_ = server.Close() // which ends the other direction
	})
	p.carry(server, client, func(b []byte) { p.change(func() { p.last = append(p.last, b...) }) })
}

// carry brings bytes from one side to the other until either ends.
func (p *Proxy) carry(to, from net.Conn, sent func([]byte)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && sent != nil {
			sent(buf[:n])
		}
		for rest := buf[:n]; len(rest) > 0; {
			if !p.wait() {
				return
			}
			k, pause := len(rest), p.pause()
			if pause > 0 {
				k = 1
				time.Sleep(pause) // it is the network that is slow, not the test
			}
			if _, err := to.Write(rest[:k]); err != nil {
				return
			}
			rest = rest[k:]
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) pause() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.slow
}

// wait returns when bytes may go on, false when the proxy has ended.
func (p *Proxy) wait() bool {
	for {
		p.mu.Lock()
		silent, closed, changed := p.silent, p.closed, p.changed
		p.mu.Unlock()
		if closed || !silent {
			return !closed
		}
		<-changed
	}
}

// BlackHole swallows nothing and carries nothing, or goes on: what is under way
// arrives late, as after a partition.
func (p *Proxy) BlackHole(on bool) { p.change(func() { p.silent = on }) }

// Slow makes each byte take so long.
func (p *Proxy) Slow(perByte time.Duration) { p.change(func() { p.slow = perByte }) }

// Reset ends all connections with a TCP reset to both sides.
func (p *Proxy) Reset() {
	p.each(func(c *proxied) {
		for _, side := range []net.Conn{c.client, c.server} {
			if tcp, ok := side.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // fails when it is closed already
			}
			_ = side.Close()
		}
	})
}

// HalfOpen ends all connections on the server's side. Their clients hear nothing of it
// while the proxy is a black hole.
func (p *Proxy) HalfOpen() {
	p.BlackHole(true)
	p.each(func(c *proxied) { _ = c.server.Close() })
}

func (p *Proxy) each(f func(*proxied)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		f(c)
	}
}

// Recorded is what the client of the newest connection has sent so far.
func (p *Proxy) Recorded() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]byte(nil), p.last...)
}
