package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/fleet"
)

// The admin socket is how the operator of the machine speaks to a running server:
// a Unix socket that only the server's own user can open. It never listens on a
// network, and nothing in Git can reach it.

const adminSocket = "admin.sock"

// tokenLife is how long a join token may lie around before it is used.
const tokenLife = 15 * time.Minute

// listenAdmin opens the socket, replacing what a killed server left there. The
// lock on the data folder has made sure that no other server is alive.
func listenAdmin(data string) (net.Listener, error) {
	path := filepath.Join(data, adminSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("admin socket: %w", err)
	}
	// The folder is 0700; the mask closes the instant before chmod all the same.
	old := syscall.Umask(0o177)
	ln, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fault.New(fault.Invalid, "admin socket %s: %w; a shorter --data path may help", path, err)
	}
	return ln, nil
}

type inviteRequest struct {
	Pool      pipeline.PoolName `json:"pool"`
	Untrusted bool              `json:"untrusted"`
}

type inviteResponse struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
	Intake  string    `json:"intake"`
	// Warning is why the agent may wait for ever, "" when nothing speaks for that.
	Warning string `json:"warning,omitempty"`
}

func (s *server) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /invite", s.invite)
	mux.HandleFunc("POST /backup", s.backup)
	mux.HandleFunc("POST /gc", s.gc)
	mux.HandleFunc("POST /accept-rollback", s.acceptRollback)
	mux.HandleFunc("POST /agents/pause", s.pauseAgent)
	mux.HandleFunc("POST /agents/revoke", s.revokeAgent)
	return mux
}

func (s *server) invite(w http.ResponseWriter, r *http.Request) {
	var req inviteRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<10)).Decode(&req); err != nil {
		http.Error(w, "not an invitation: "+err.Error(), http.StatusBadRequest)
		return
	}
	if !pipeline.ValidName(string(req.Pool)) {
		http.Error(w, fmt.Sprintf("%q cannot name a pool: a lower-case letter, then a-z, 0-9 and -", req.Pool), http.StatusBadRequest)
		return
	}
	token, hash := fleet.NewJoinToken()
	expires := time.Now().Add(tokenLife).UTC()
	if err := s.db.CreateJoinToken(r.Context(), hash, req.Pool, req.Untrusted, expires); err != nil {
		s.log.Error("join token not recorded", "err", err)
		http.Error(w, "the record could not be written", http.StatusInternalServerError)
		return
	}
	s.log.Info("agent invited", "pool", req.Pool, "untrusted", req.Untrusted, "expires", expires)
	answerJSON(w, inviteResponse{token, expires, "http://" + s.intake.Addr().String(), s.undeclared(req.Pool)})
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// pauseRequest keeps new work from an agent, or gives it work again.
type pauseRequest struct {
	// Agent is an id or a name.
	Agent string `json:"agent"`
	// Resume: give it work again; the rest is for keeping it away.
	Resume bool              `json:"resume,omitempty"`
	Drain  bool              `json:"drain,omitempty"`
	Reason string            `json:"reason,omitempty"`
	For    pipeline.Duration `json:"for,omitempty"`
}

// mostPauseReason bounds what people read on every page that shows the agent.
const mostPauseReason = 200

func (s *server) pauseAgent(w http.ResponseWriter, r *http.Request) {
	var req pauseRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 8<<10)).Decode(&req); err != nil {
		http.Error(w, "not a request about an agent: "+err.Error(), http.StatusBadRequest)
		return
	}
	if len(req.Reason) > mostPauseReason || req.For < 0 {
		http.Error(w, fmt.Sprintf("the reason has to be of at most %d bytes, and the time not negative", mostPauseReason), http.StatusBadRequest)
		return
	}
	a, err := s.findAgent(r.Context(), req.Agent)
	if err == nil {
		a.Pause = nil
		if now := time.Now().UTC(); !req.Resume {
			a.Pause = &pipeline.Pause{Drain: req.Drain, Reason: oneLine(req.Reason), At: now}
			if req.For > 0 {
				a.Pause.Until = now.Add(time.Duration(req.For))
			}
		}
		err = s.runs.Pause(r.Context(), a.ID, a.Pause)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.log.Info("agent paused or resumed", "agent_id", a.ID, "name", a.Name, "pause", a.Pause)
	answerJSON(w, a)
}

// revokeRequest ends an agent's right to connect, for ever.
type revokeRequest struct {
	// Agent is an id or a name.
	Agent string `json:"agent"`
}

func (s *server) revokeAgent(w http.ResponseWriter, r *http.Request) {
	var req revokeRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, 8<<10)).Decode(&req); err != nil {
		http.Error(w, "not a request about an agent: "+err.Error(), http.StatusBadRequest)
		return
	}
	a, err := s.findAgent(r.Context(), req.Agent)
	if err == nil {
		err = s.db.RevokeAgent(r.Context(), a.ID) // its session ends with the next heartbeat
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.log.Info("agent revoked", "audit", true, "agent_id", a.ID, "name", a.Name)
	a.Revoked = true
	answerJSON(w, a)
}

// findAgent returns the agent with that id, or the one of that name.
func (s *server) findAgent(ctx context.Context, name string) (pipeline.Agent, error) {
	agents, err := s.db.Agents(ctx)
	if err != nil {
		return pipeline.Agent{}, err
	}
	var found []pipeline.Agent
	var names, ids []string
	for _, a := range agents {
		if string(a.ID) == name {
			return a, nil
		}
		if a.Name == name && !a.Revoked {
			found, ids = append(found, a), append(ids, string(a.ID))
		}
		names = append(names, a.Name)
	}
	switch len(found) {
	case 0:
		return pipeline.Agent{}, fault.New(fault.NotFound, "no agent %q is enrolled%s", name, didYouMean(name, names))
	case 1:
		return found[0], nil
	}
	return pipeline.Agent{}, fault.New(fault.Invalid, "several agents are called %s; say which by its id: %s", name, strings.Join(ids, ", "))
}

// undeclared says that the configuration in force does not know a pool.
func (s *server) undeclared(pool pipeline.PoolName) string {
	cfg := s.commits.Live()
	if cfg == nil {
		return ""
	}
	names := make([]string, 0, len(cfg.Pools))
	for _, p := range cfg.Pools {
		if p.Name == pool {
			return ""
		}
		names = append(names, string(p.Name))
	}
	return fmt.Sprintf("the live configuration declares no pool %s%s; no composition can ask for it by name", pool, didYouMean(string(pool), names))
}

// runningData returns the data folder of the server that an operator means who named
// none: the one that runs, be it by serve or by dev.
func runningData(ctx context.Context) (string, error) {
	folders, _ := filepath.Glob(filepath.Join(devFolder(), "*", adminSocket)) // the pattern is well formed
	var running []string
	for _, socket := range append([]string{filepath.Join(defaultData(), adminSocket)}, folders...) {
		if conn, err := new(net.Dialer).DialContext(ctx, "unix", socket); err == nil {
			_ = conn.Close()
			running = append(running, filepath.Dir(socket))
		}
	}
	switch len(running) {
	case 0:
		return "", fault.New(fault.Unavailable, "no server runs on %s or below %s: start one with `reconciler serve` or `reconciler dev`, or name its folder with --data", defaultData(), devFolder())
	case 1:
		return running[0], nil
	}
	return "", fault.New(fault.Invalid, "several servers run; say which with --data: %s", strings.Join(running, ", "))
}

// askRunning is askAdmin with the only server that runs when no folder is named.
func askRunning(ctx context.Context, data, path string, req, resp any) error {
	if data == "" {
		var err error
		if data, err = runningData(ctx); err != nil {
			return err
		}
	}
	return askAdmin(ctx, data, path, req, resp)
}

// askAdmin posts a request to the server that runs on the data folder.
func askAdmin(ctx context.Context, data, path string, req, resp any) error {
	answer, err := openAdmin(ctx, data, path, req)
	if err != nil {
		return err
	}
	defer answer.Close()
	return json.NewDecoder(answer).Decode(resp)
}

// openAdmin is askAdmin for an answer that is read bit by bit. The caller closes it.
func openAdmin(ctx context.Context, data, path string, req any) (io.ReadCloser, error) {
	body, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("ask the server: %w", err)
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // the connection ends with the answer
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(data, adminSocket))
		},
	}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://admin"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask the server: %w", err)
	}
	answer, err := client.Do(r)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fault.New(fault.Unavailable, "no server runs on %s: start one with `reconciler serve`, or name its folder with --data (%w)", data, err)
	}
	if answer.StatusCode != http.StatusOK {
		defer answer.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
		return nil, fault.New(fault.Invalid, "%s", strings.TrimSpace(string(text)))
	}
	return answer.Body, nil
}
