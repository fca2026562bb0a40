// Package wsconntest helps to test what talks over wsconn: an HTTP server on an
// in-memory network, which runs under the false clock of testing/synctest, and a
// websocket peer that writes its frames by hand and so can break every rule. It
// is for tests only and has no other way to tell of trouble than errors.
package wsconntest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// Pipe is a network with one HTTP server on it, at any address.
type Pipe struct {
	server *http.Server
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	served chan struct{}
}

// NewPipe serves h until Close.
func NewPipe(h http.Handler) *Pipe {
	p := &Pipe{server: &http.Server{Handler: h}, conns: make(chan net.Conn), closed: make(chan struct{}), served: make(chan struct{})}
	go func() { // ends with Close
		defer close(p.served)
		_ = p.server.Serve(listener{p})
	}()
	return p
}

// Dial connects to the server.
func (p *Pipe) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.closed:
		return nil, errors.New("network is closed")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close stops the server; connections that became websockets are left alone.
func (p *Pipe) Close() {
	_ = p.server.Close()
	<-p.served
}

type listener struct{ p *Pipe }

func (l listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.p.conns:
		return c, nil
	case <-l.p.closed:
		return nil, net.ErrClosed
	}
}

func (l listener) Close() error {
	l.p.once.Do(func() { close(l.p.closed) })
	return nil
}

func (listener) Addr() net.Addr { return &net.IPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// Opcodes of frames.
const (
	Continuation = 0x0
	Text         = 0x1
	Binary       = 0x2
	CloseFrame   = 0x8
	Ping         = 0x9
	Pong         = 0xA
)

// Bits of the first byte of a frame, beside the opcode.
const (
	Fin  = 0x80
	RSV1 = 0x40
)

// Raw is a client that writes frames by hand.
type Raw struct {
	net.Conn
	r *bufio.Reader
}

// Upgrade asks for a websocket at path on conn, and is the client when the server agrees.
func Upgrade(conn net.Conn, path, subprotocol string) (*Raw, error) {
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"+
		"Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: %s\r\n\r\n", path, subprotocol)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("upgrade: %s", resp.Status)
	}
	return &Raw{conn, r}, nil
}

// Header is the beginning of a masked frame whose payload would have that length;
// the mask is zero, so that payloads stay readable.
func Header(first byte, length uint64) []byte {
	const masked = 0x80
	b := []byte{first}
	switch {
	case length < 126:
		b = append(b, masked|byte(length))
	case length < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(length))
	default:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), length)
	}
	return append(b, 0, 0, 0, 0)
}

// Frame is a masked frame.
func Frame(first byte, payload []byte) []byte {
	return append(Header(first, uint64(len(payload))), payload...)
}

// Next reads a frame of the server.
func (r *Raw) Next() (op byte, payload []byte, err error) {
	var h [2]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		return 0, nil, err
	}
	length := uint64(h[1])
	switch length {
	case 126:
		var n [2]byte
		if _, err := io.ReadFull(r.r, n[:]); err != nil {
			return 0, nil, err
		}
		length = uint64(binary.BigEndian.Uint16(n[:]))
	case 127:
		var n [8]byte
		if _, err := io.ReadFull(r.r, n[:]); err != nil {
			return 0, nil, err
		}
		length = binary.BigEndian.Uint64(n[:])
	}
	const most = 16 << 20
	if length > most {
		return 0, nil, fmt.Errorf("frame of %d bytes", length)
	}
	payload = make([]byte, length)
	_, err = io.ReadFull(r.r, payload)
	return h[0] & 0xf, payload, err
}

// CloseCode reads until the server closes and returns its code and sentence.
func (r *Raw) CloseCode() (code int, text string, err error) {
	for {
		op, payload, err := r.Next()
		if err != nil {
			return 0, "", err
		}
		if op == CloseFrame && len(payload) >= 2 {
			return int(binary.BigEndian.Uint16(payload)), string(payload[2:]), nil
		}
	}
}
