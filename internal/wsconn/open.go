package wsconn

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/wire"
)

const (
	// handshakeTime bounds dialling, TLS and the upgrade together.
	handshakeTime = 15 * time.Second
	readBuffer    = 4 << 10
	// A log frame leaves an agent in one piece: a client has to mask, and so to copy.
	clientWriteBuffer = wire.MaxLogFrame + 128
	serverWriteBuffer = 4 << 10
)

// Dialer says how to reach a server.
type Dialer struct {
	Options
	// TLS holds the roots that are trusted; nil means those of the system.
	TLS *tls.Config
	// NetDial opens the connection under TLS, if any; nil dials TCP, through a
	// proxy where the environment names one.
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Dial connects to an http, https, ws or wss URL and asks for wire.Subprotocol.
// A server that cannot be reached, or answers 429 or 5xx, is fault.Unavailable;
// any other refusal is fault.Invalid with the server's sentence.
func (d Dialer) Dial(ctx context.Context, url string) (*Conn, error) {
	var raw *meter
	under := d.NetDial
	proxy := http.ProxyFromEnvironment
	if under == nil {
		under = new(net.Dialer).DialContext
	} else {
		proxy = nil
	}
	g := websocket.Dialer{
		NetDialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := under(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			raw = &meter{Conn: conn}
			return raw, nil
		},
		Proxy:            proxy,
		TLSClientConfig:  d.TLS,
		HandshakeTimeout: handshakeTime,
		ReadBufferSize:   readBuffer, WriteBufferSize: clientWriteBuffer,
		Subprotocols: []string{wire.Subprotocol},
	}
	// The scheme is the only part that differs: https://h becomes wss://h.
	if rest, ok := strings.CutPrefix(url, "http"); ok {
		url = "ws" + rest
	}
	ws, resp, err := g.DialContext(ctx, url, nil)
	if err != nil {
		return nil, dialError(url, resp, err)
	}
	if ws.Subprotocol() != wire.Subprotocol {
		ws.Close()
		return nil, fault.New(fault.Invalid, "connect to %s: it does not speak %s; is the address right?", url, wire.Subprotocol)
	}
	return open(ws, raw, d.Options), nil
}

func dialError(url string, resp *http.Response, err error) error {
	if resp == nil || !errors.Is(err, websocket.ErrBadHandshake) {
		return fault.New(fault.Unavailable, "connect to %s: %w", url, err)
	}
	kind := fault.Invalid
	if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests {
		kind = fault.Unavailable
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &said) != nil || said.Error == "" {
		said.Error = "it does not answer like a Maestro server; is the address right?"
	}
	return fault.New(kind, "connect to %s: %s: %s", url, resp.Status, said.Error)
}

// Upgrade takes over a request as a websocket. It refuses every request with an
// Origin header, because only browsers send one and no page has business here,
// and every request that does not ask for wire.Subprotocol. When it returns an
// error, which is fault.Invalid, the answer has been written.
//
// The server's own deadlines no longer apply; whoever calls limits the handshake
// that follows.
func Upgrade(w http.ResponseWriter, r *http.Request, opt Options) (*Conn, error) {
	if _, ok := r.Header["Origin"]; ok {
		answer(w, http.StatusForbidden, "requests from browsers are refused here")
		return nil, fault.New(fault.Invalid, "upgrade %s: request has an Origin header", r.RemoteAddr)
	}
	if !slices.Contains(websocket.Subprotocols(r), wire.Subprotocol) {
		answer(w, http.StatusBadRequest, "ask for the websocket subprotocol "+wire.Subprotocol)
		return nil, fault.New(fault.Invalid, "upgrade %s: request does not ask for %s", r.RemoteAddr, wire.Subprotocol)
	}
	g := websocket.Upgrader{
		HandshakeTimeout: handshakeTime,
		// A size of its own, because the server's reader would bypass the meter.
		ReadBufferSize: readBuffer, WriteBufferSize: serverWriteBuffer,
		Subprotocols: []string{wire.Subprotocol},
		Error: func(w http.ResponseWriter, _ *http.Request, status int, reason error) {
			answer(w, status, reason.Error())
		},
	}
	h := &hijacker{ResponseWriter: w}
	ws, err := g.Upgrade(h, r, nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "upgrade %s: %w", r.RemoteAddr, err)
	}
	return open(ws, h.raw, opt), nil
}

func answer(w http.ResponseWriter, status int, sentence string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": sentence})
}

// hijacker puts the meter under a connection that a server hands over.
type hijacker struct {
	http.ResponseWriter
	raw *meter
}

func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, brw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.raw = &meter{Conn: conn}
	return h.raw, brw, nil
}
