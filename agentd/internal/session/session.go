// Package session is the agent's link to the control plane: it makes the agent's
// identity, enrols it, keeps one connection open, and comes back after every
// interruption. It knows nothing of tasks: what the server says goes to a Runner,
// which answers over the Link it was given.
//
// Losing a connection loses nothing that was promised, because the runner tells
// what it holds at each new one.
package session

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
)

const (
	// 0.5 s to 30 s, doubled each time: a thousand agents that lose their server
	// at once come back within a minute, spread evenly by full jitter.
	firstDelay = 500 * time.Millisecond
	mostDelay  = 30 * time.Second
	// steadyAfter is when a connection counts as working, so that the next loss
	// starts from the shortest delay. Shorter ones may be part of a quarrel.
	steadyAfter = 10 * time.Second
	// headerTime is how long a server may take before it starts to answer.
	headerTime = time.Minute
)

// Link is what a Runner answers over.
type Link = wire.Link

// Runner is what runs the tasks.
type Runner interface {
	// Held lists the attempts that were accepted and not yet acknowledged by that
	// incarnation of the server's record.
	Held(incarnation int64) []wire.Held
	// Warm lists the compositions that have a workspace.
	Warm() []pipeline.CompositionName
	// Connected hands over the link of a new connection; the one before is dead. The
	// welcome answers what was sent at the time asked, and renews like a heartbeat.
	// It and Handle are called from one goroutine, which reads nothing meanwhile.
	Connected(link Link, w wire.Welcome, asked time.Time)
	// Handle takes what the server sends: Offer, Go, Ack, Fenced, Cancel, LogAck,
	// Forget, Unsupported.
	Handle(m wire.Message)
	// Renewed: the server acknowledged the heartbeat that was sent at that time,
	// which has a monotonic reading.
	Renewed(sent time.Time)
}

// Config is what a Session needs. Log, Dir, Server and Runner are required.
type Config struct {
	Server string // http(s)://host:port
	// CA is a file of PEM certificates to trust besides the system's, or "".
	CA    string
	Dir   string // for the key and what is remembered of servers
	Token string // join token, "" when the agent is enrolled
	Name  string
	Build string
	Log   *slog.Logger
	// Facts returns the agent's facts as a JSON object; nil for none. It is called
	// from the session's goroutines and may take its time.
	Facts  func() json.RawMessage
	Runner Runner
	// NetDial opens connections; nil dials TCP, through a proxy where the
	// environment names one.
	NetDial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Session is one agent's link to one server. Make it with New and run it with Run.
type Session struct {
	cfg Config
	// refresh has an element when the facts may have changed.
	refresh chan struct{}

	// Owned by Run, and not changed while a connection is up.
	id     Identity
	tls    *tls.Config
	http   *http.Client
	memory memory
	up     time.Time // of the last welcome
	// here is what is remembered of the server that is connected; unwritten: it is
	// newer than the file, which was written at remembered.
	here       *server
	unwritten  bool
	remembered time.Time

	mu   sync.Mutex
	link *link
	// moved is closed, and replaced, when link changes.
	moved chan struct{}
}

// New returns a session that has not started. It does no I/O.
func New(cfg Config) *Session {
	cfg.Server = strings.TrimRight(cfg.Server, "/")
	if cfg.Facts == nil {
		cfg.Facts = func() json.RawMessage { return nil }
	}
	return &Session{cfg: cfg, refresh: make(chan struct{}, 1), moved: make(chan struct{})}
}

// FactsChanged asks for the facts to be sent again, if they differ from what the
// server has. It does not block.
func (s *Session) FactsChanged() {
	select {
	case s.refresh <- struct{}{}:
	default:
	}
}

// Run keeps the agent connected until ctx ends, which is no error. It returns
// fault.Invalid when only a person can help: settings that are wrong, a token that
// was used, an agent that was revoked; the text says what to do.
func (s *Session) Run(ctx context.Context) error {
	if err := s.prepare(); err != nil {
		return err
	}
	defer s.http.CloseIdleConnections()
	tries := 0
	join := joining{}
	for {
		s.up = time.Time{}
		err := s.once(ctx, &join)
		if ctx.Err() != nil {
			return nil
		}
		var final *finalError
		if errors.As(err, &final) {
			return fault.New(fault.Invalid, "connect to %s: %w", s.cfg.Server, final)
		}
		if !s.up.IsZero() && time.Since(s.up) >= steadyAfter {
			tries = 0
		}
		delay := backOff(tries)
		tries++
		if wsconn.CodeOf(err) == wsconn.CodeReplaced {
			delay = mostDelay/2 + delay/2
			s.cfg.Log.Error("another agentd uses this identity; if its data folder was copied, delete the copy's identity.key and enrol it",
				"agent_id", s.id.ID)
		}
		s.cfg.Log.Warn("not connected", "server", s.cfg.Server, "retry_in", delay, "err", advise(err))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
	}
}

// advise adds what to do to an error that does not say it.
func advise(err error) error {
	if plain := new(tls.RecordHeaderError); errors.As(err, plain) || strings.Contains(err.Error(), "HTTP response to HTTPS client") {
		return fmt.Errorf("%w; the server does not speak TLS there: give --server as http://…, or put a TLS proxy in front of it", err)
	}
	return err
}

// backOff returns a delay between nothing and the limit of that try: full jitter.
func backOff(tries int) time.Duration {
	limit := mostDelay
	if tries < 6 { // 0.5 s << 6 is above the limit, and much more would overflow
		limit = firstDelay << tries
	}
	return rand.N(limit)
}

// joining is how far the join token has been tried.
type joining struct {
	tried bool
	// refused is why it was of no use. An agent that is enrolled already does not
	// mind, so it is told only when the connection is refused as well.
	refused error
}

// finalError is a refusal that trying again does not change.
type finalError struct{ reason string }

func (e *finalError) Error() string { return e.reason }

// once enrols if that is needed, connects and serves the connection to its end.
func (s *Session) once(ctx context.Context, join *joining) error {
	if s.cfg.Token != "" && !join.tried && !s.enrolledHere() {
		if err := s.tryJoin(ctx, join); err != nil {
			return err
		}
	}
	err := s.connect(ctx)
	var final *finalError
	if !errors.As(err, &final) {
		if join.refused != nil && fault.Is(err, fault.Invalid) {
			return &finalError{join.refused.Error()} // it is no server for agents, so nothing is lost by ending
		}
		return err
	}
	if join.refused != nil {
		return &finalError{join.refused.Error() + "; and the agent was not let in without it: " + final.reason}
	}
	if s.cfg.Token != "" && !join.tried {
		// The server at this address has another record than when we enrolled.
		if err := s.tryJoin(ctx, join); err != nil {
			return err
		}
		if join.refused != nil {
			return &finalError{join.refused.Error() + "; and the agent was not let in without it: " + final.reason}
		}
		return s.connect(ctx)
	}
	return err
}

// tryJoin uses the token once. Only an error that may pass is returned.
func (s *Session) tryJoin(ctx context.Context, join *joining) error {
	err := s.enrol(ctx)
	if fault.Is(err, fault.Unavailable) {
		return err
	}
	join.tried, join.refused = true, err
	return nil
}

// prepare reads what Run needs from disk and checks the settings.
func (s *Session) prepare() error {
	u, err := url.Parse(s.cfg.Server)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return fault.New(fault.Invalid, "server address %q is not like https://host:port", s.cfg.Server)
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		s.cfg.Log.Warn("the connection is not encrypted, and secrets travel over it; use https", "server", s.cfg.Server)
	}
	if s.id, err = LoadIdentity(s.cfg.Dir); err != nil {
		return err
	}
	s.recall()
	s.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	if s.cfg.CA != "" {
		if s.tls.RootCAs, err = roots(s.cfg.CA); err != nil {
			return err
		}
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: s.tls.Clone(),
		ResponseHeaderTimeout: headerTime, IdleConnTimeout: headerTime, MaxIdleConnsPerHost: 2,
	}
	if s.cfg.NetDial != nil {
		transport.Proxy, transport.DialContext = nil, s.cfg.NetDial
	}
	s.http = &http.Client{
		Transport: transport,
		// A redirect would carry tokens to wherever it points.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

func roots(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.New(fault.Invalid, "read trusted certificates: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a machine without any; the file is what counts
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.New(fault.Invalid, "read trusted certificates %s: no PEM certificate in it", file)
	}
	return pool, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
