package fleet

import (
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
)

const (
	// logCredit is what an agent may send of one attempt before the next
	// acknowledgement: the window, and a few frames for one that just crossed it.
	logCredit = wire.LogWindow + 1<<20
	// mostFenced bounds how many unknown attempts one session may stream about.
	mostFenced = 256
	askAgain   = time.Second
)

// stream is an attempt whose log a session may send. Guarded by Fleet.mu.
type stream struct {
	session *session
	token   pipeline.Token
	// durable is the length last acknowledged.
	durable int64
	// credit counts bytes, not offsets: sending the same bytes for ever uses it up.
	credit int64
	// broken: bytes are missing, so what follows them is dropped until the sweep
	// asks for all of it again.
	broken bool
	asked  time.Time // when it was last asked for again
}

// followLocked keeps the streams in step with what the loop tells an agent.
func (f *Fleet) followLocked(s *session, m wire.Message) {
	switch m := m.(type) {
	case *wire.Go:
		f.allowLocked(s, m.Attempt, m.Token)
	case *wire.LogAck:
		st := f.allowLocked(s, m.Attempt, m.Token)
		st.ackLocked(m.Length, m.Resend)
	case *wire.Ack:
		f.forgetLocked(s, m.Attempt)
	case *wire.Fenced:
		f.forgetLocked(s, m.Attempt)
	}
}

func (f *Fleet) allowLocked(s *session, attempt pipeline.AttemptID, token pipeline.Token) *stream {
	st := f.streams[attempt]
	if st == nil || st.session != s || st.token != token {
		st = &stream{session: s, token: token, credit: logCredit}
		f.streams[attempt] = st
	}
	return st
}

func (f *Fleet) forgetLocked(s *session, attempt pipeline.AttemptID) {
	if st := f.streams[attempt]; st != nil && st.session == s {
		delete(f.streams, attempt)
	}
}

func (st *stream) ackLocked(length int64, resend bool) {
	if length > st.durable {
		st.credit = min(st.credit+length-st.durable, logCredit)
		st.durable = length
	}
	if resend {
		st.credit, st.broken, st.asked = logCredit, false, time.Now()
	}
}

// LogDurable tells the agent that streams an attempt how much of its log is on
// disk; gap asks it to go on from there, because bytes are missing. It does not
// block, and does nothing when no session streams the attempt. It asks for missing
// bytes at most once in askAgain, so that a full disk does not make agents send
// the same window over and over.
func (f *Fleet) LogDurable(attempt pipeline.AttemptID, length int64, gap bool) {
	f.mu.Lock()
	st := f.streams[attempt]
	if st == nil {
		f.mu.Unlock()
		return
	}
	if gap && time.Since(st.asked) < askAgain {
		gap, st.broken = false, true
	}
	st.ackLocked(length, gap)
	a := st.ackOfLocked(attempt, gap)
	f.mu.Unlock()
	a.send()
}

// logAck is an acknowledgement on its way to a session.
type logAck struct {
	session *session
	ack     *wire.LogAck
}

func (st *stream) ackOfLocked(attempt pipeline.AttemptID, resend bool) logAck {
	return logAck{st.session, &wire.LogAck{Attempt: attempt, Token: st.token, Length: st.durable, Resend: resend}}
}

// send needs no answer: a session that cannot be told is ending, and the loop
// tells the next one anew.
func (a logAck) send() { _ = a.session.conn.TrySend(a.ack) }

// brokenLocked repairs the broken streams and returns what their agents are to be told.
func (f *Fleet) brokenLocked() []logAck {
	var acks []logAck
	for attempt, st := range f.streams {
		if st.broken {
			st.ackLocked(st.durable, true)
			acks = append(acks, st.ackOfLocked(attempt, true))
		}
	}
	return acks
}

// takeLog passes on a log frame, or says why not; false ends the session.
func (f *Fleet) takeLog(s *session, l wire.LogFrame) bool {
	f.mu.Lock()
	st := f.streams[l.Attempt]
	if st == nil || st.session != s || st.token != l.Token {
		f.mu.Unlock()
		return s.fence(l)
	}
	drop := st.broken
	if !drop {
		st.credit -= int64(len(l.Data))
	}
	over := st.credit < 0
	f.mu.Unlock()
	if over {
		s.log.Warn("agent ignores the log window", "audit", true, "attempt", l.Attempt, "offset", l.Offset)
		s.end(wsconn.CodePolicy, "more log bytes than the window allows")
		return false
	}
	if drop {
		return true
	}
	if err := f.cfg.Logs.Append(l.Attempt, l.Offset, l.Data); err != nil {
		s.log.Warn("log bytes not taken", "attempt", l.Attempt, "offset", l.Offset, "err", err)
		f.mu.Lock()
		st.broken = true
		f.mu.Unlock()
	}
	return true
}

// fence answers log bytes of an attempt that is not this session's. An attempt
// that the agent said it holds, and of which the loop has not spoken yet, is left
// in peace: the loop's answer tells it where to go on.
func (s *session) fence(l wire.LogFrame) bool {
	if token, holds := s.held[l.Attempt]; holds && token == l.Token {
		return true
	}
	if s.fenced[l.Attempt] {
		return true // frames that were on their way
	}
	if len(s.fenced) >= mostFenced {
		s.end(wsconn.CodePolicy, "log bytes of too many attempts that are not this agent's")
		return false
	}
	s.fenced[l.Attempt] = true
	s.log.Warn("log bytes of an attempt that is not this agent's", "audit", true,
		"attempt", l.Attempt, "incarnation", l.Token.Incarnation, "epoch", l.Token.Epoch)
	s.reply(&wire.Fenced{Attempt: l.Attempt, Token: l.Token, Reason: "this attempt is not assigned to you"})
	return true
}
