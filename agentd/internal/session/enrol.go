package session

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

const (
	enrolledFile = "enrolled.json"
	enrolTime    = 30 * time.Second
	mostAnswer   = 64 << 10
)

// memory is what the agent remembers of servers, in enrolled.json. Losing it
// costs a needless attempt to enrol and the check of the record's age.
type memory struct {
	Agent   pipeline.AgentID   `json:"agent"`
	Servers map[string]*server `json:"servers"` // by identity of the record
}

// server is one record that this agent was welcomed by or enrolled with.
type server struct {
	URL  string            `json:"url"`
	Pool pipeline.PoolName `json:"pool,omitempty"`
	// Incarnation and Seq are the highest seen: a lower one means that the record
	// was put back to an older state.
	Incarnation int64        `json:"incarnation"`
	Seq         pipeline.Seq `json:"seq"`
}

// recall reads the memory of that agent. One that cannot be read, or is about
// another key, is left aside; the next remember replaces it.
func (s *Session) recall() {
	s.memory = memory{Agent: s.id.ID, Servers: map[string]*server{}}
	b, err := os.ReadFile(filepath.Join(s.cfg.Dir, enrolledFile))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var m memory
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		s.cfg.Log.Warn("memory of servers not read", "file", enrolledFile, "err", err)
		return
	}
	if m.Agent != s.id.ID {
		return
	}
	for id, known := range m.Servers {
		if known != nil {
			s.memory.Servers[id] = known
		}
	}
}

func (s *Session) remember() {
	b, err := json.MarshalIndent(s.memory, "", "  ")
	if err == nil {
		err = durable.WriteFile(filepath.Join(s.cfg.Dir, enrolledFile), append(b, '\n'), 0o600)
	}
	if err != nil {
		s.cfg.Log.Warn("memory of servers not written", "file", enrolledFile, "err", err)
	}
}

// enrolledHere tells whether a server at this URL is known.
func (s *Session) enrolledHere() bool {
	for _, known := range s.memory.Servers {
		if known.URL == s.cfg.Server {
			return true
		}
	}
	return false
}

// welcomed compares the server's record with what was seen of it and remembers it.
func (s *Session) welcomed(w *wire.Welcome) {
	known := s.memory.Servers[w.Server]
	if known == nil {
		known = &server{}
		s.memory.Servers[w.Server] = known
	}
	older := w.Incarnation < known.Incarnation || w.Incarnation == known.Incarnation && w.Seq < known.Seq
	if older {
		s.cfg.Log.Warn("the server's record is older than it was; it was restored from a backup without saying so",
			"server", w.Server, "incarnation", w.Incarnation, "seq", w.Seq,
			"seen_incarnation", known.Incarnation, "seen_seq", known.Seq)
	} else {
		known.Incarnation, known.Seq = w.Incarnation, w.Seq
	}
	known.URL = s.cfg.Server
	s.here, s.remembered = known, time.Now()
	s.remember()
}

// seen is how far the agent knows a record to have been.
func (s *Session) seen(record string) wire.Seen {
	known := s.memory.Servers[record]
	if known == nil {
		return wire.Seen{}
	}
	return wire.Seen{Server: record, Incarnation: known.Incarnation, Seq: known.Seq}
}

// rememberEvery bounds the writes of what heartbeats tell.
const rememberEvery = 30 * time.Second

// reached notes how far the server's record is. What is not written yet is when the
// connection ends.
func (s *Session) reached(m *wire.BeatAck) {
	known := s.here
	if known == nil || m.Incarnation < known.Incarnation || m.Incarnation == known.Incarnation && m.Seq <= known.Seq {
		return
	}
	known.Incarnation, known.Seq = m.Incarnation, m.Seq
	s.unwritten = true
	if time.Since(s.remembered) >= rememberEvery {
		s.writeReached()
	}
}

func (s *Session) writeReached() {
	if s.unwritten {
		s.unwritten, s.remembered = false, time.Now()
		s.remember()
	}
}

// enrol uses the join token. A final refusal is fault.Invalid, anything that may
// pass is fault.Unavailable.
func (s *Session) enrol(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, enrolTime)
	defer cancel()
	body, err := json.Marshal(wire.EnrolRequest{
		PublicKey: s.id.PublicKey(), Name: s.cfg.Name, Signature: s.id.sign(wire.SignedEnrol(s.cfg.Token)),
	})
	if err != nil {
		return fault.New(fault.Internal, "enrol: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.cfg.Server+wire.PathEnrol, bytes.NewReader(body))
	if err != nil {
		return fault.New(fault.Invalid, "enrol: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+s.cfg.Token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.http.Do(req)
	if err != nil {
		return fault.New(fault.Unavailable, "enrol: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, mostAnswer))
	if err != nil {
		return fault.New(fault.Unavailable, "enrol at %s: %w", s.cfg.Server, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fault.New(enrolKind(resp.StatusCode), "enrol at %s: %s", s.cfg.Server, sentence(resp, answer))
	}
	var e wire.EnrolResponse
	if err := json.Unmarshal(answer, &e); err != nil || e.Agent != s.id.ID || e.Server == "" {
		return fault.New(fault.Unavailable, "enrol at %s: it does not answer like a Maestro server; is the address right?", s.cfg.Server)
	}
	s.cfg.Log.Info("agent enrolled", "agent_id", e.Agent, "pool", e.Pool, "untrusted", e.Untrusted, "server", e.Server)
	known := s.memory.Servers[e.Server]
	if known == nil {
		known = &server{}
		s.memory.Servers[e.Server] = known
	}
	known.URL, known.Pool = s.cfg.Server, e.Pool
	s.remember()
	return nil
}

// enrolKind tells a refusal of the token from an answer that says nothing about it.
func enrolKind(status int) fault.Kind {
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return fault.Invalid
	}
	return fault.Unavailable
}

// sentence is what a response says of itself.
func sentence(resp *http.Response, body []byte) string {
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(body, &said) == nil && said.Error != "" {
		return said.Error
	}
	return resp.Status
}
