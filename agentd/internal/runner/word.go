package runner

import (
	"fmt"
	"strings"

	"github.com/maestro-cd/maestro/agentd/internal/journal"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

// The functions of this file are called by the session's reader. They leave word
// for the attempt's own goroutines and return at once.

// goAhead lets the task start, or tells again that it has.
func (a *attempt) goAhead(secrets map[string]wire.Redacted) {
	if phase := a.at(); phase != wire.HeldAccepted && phase != phaseOffered {
		a.tellStatus()
		return
	}
	select {
	case a.gos <- secrets:
	default: // said twice
	}
}

func (a *attempt) cancel(reason string) { a.stop(reason, false, 0) }

// fenced stops the attempt and has it forgotten: its token is not that of the record,
// of that incarnation.
func (a *attempt) fenced(reason string, by int64) {
	a.r.cfg.Log.Warn("attempt fenced off", "attempt_id", a.id, "reason", reason)
	// A note will do: after a power cut nothing of it runs.
	err := a.r.journal.Note(journal.Record{Kind: journal.Fenced, Attempt: a.id, Token: a.token})
	if err != nil {
		a.r.cfg.Log.Warn("fence not noted", "attempt_id", a.id, "err", err)
	}
	a.stop(reason, true, by)
}

func (a *attempt) stop(reason string, disown bool, by int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.disowned, a.ackedBy = a.disowned || disown, max(a.ackedBy, by)
	poke(a.news)
	select {
	case <-a.stopped:
	default:
		a.reason = reason
		close(a.stopped)
	}
}

func (a *attempt) acknowledged(by int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// Only a result can be acknowledged; anything else is a mistake of the sender.
	if a.phase == wire.HeldEnded {
		a.acked, a.ackedBy = true, by
		poke(a.news)
	}
}

// ackedBefore returns the result of an attempt that only an earlier incarnation of the
// record has settled, nil otherwise.
func (a *attempt) ackedBefore(incarnation int64) *pipeline.Result {
	a.mu.Lock()
	defer a.mu.Unlock()
	settled := a.acked && !a.disowned || a.revived && a.disowned
	if !settled || a.ackedBy >= incarnation {
		return nil
	}
	return a.result
}

// logAcked moves the window of the log.
func (a *attempt) logAcked(length int64, resend bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if length < 0 {
		return
	}
	a.log.acknowledge(length, resend)
	a.asked = true
	if a.revived {
		a.result = without(a.result, length)
	}
	if resend {
		// A result that came before its log was not taken.
		a.told = false
	}
	poke(a.shipNews)
	poke(a.news)
}

// without says of a result that its log ends after length bytes, where more were
// written and are not here any more.
func without(res *pipeline.Result, length int64) *pipeline.Result {
	lost := res.LogBytes - length
	if lost <= 0 {
		return res
	}
	out := *res
	out.LogBytes = length
	said := fmt.Sprintf("the last %d bytes of its log were lost when the server's record was put back to a backup", lost)
	out.Reason = strings.TrimPrefix(res.Reason+"; "+said, "; ")
	return &out
}

// connected goes on over a new link.
func (a *attempt) connected(link Link) {
	a.mu.Lock()
	a.link, a.told, a.asked = link, false, false
	a.log.restart(a.phase != phaseOffered && a.phase != wire.HeldAccepted)
	note := a.note
	running := a.phase == wire.HeldRunning && !a.disowned
	a.mu.Unlock()
	poke(a.shipNews)
	poke(a.news)
	if running && (note.Waiting != nil || note.Progress != nil) {
		a.tellNote(note)
	}
}

// repeat has the result sent again.
func (a *attempt) repeat() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = false
	poke(a.news)
}

// tellStatus answers a message that was sent twice.
func (a *attempt) tellStatus() {
	a.mu.Lock()
	phase, at, disowned := a.phase, a.startedAt, a.disowned
	a.mu.Unlock()
	switch {
	case disowned:
	case phase == wire.HeldAccepted:
		a.r.send(&wire.Accept{Attempt: a.id, Token: a.token})
	case phase == wire.HeldRunning:
		a.r.send(&wire.Started{Attempt: a.id, Token: a.token, At: at})
	case phase == wire.HeldEnded:
		a.repeat()
	}
}

// tellNote sends what the task says of itself, and keeps what is worth repeating.
func (a *attempt) tellNote(n wire.Note) {
	n.Attempt, n.Token = a.id, a.token
	a.mu.Lock()
	if n.Waiting != nil {
		a.note.Waiting = n.Waiting
	}
	if n.Progress != nil {
		a.note.Progress = n.Progress
	}
	a.mu.Unlock()
	a.r.send(&n)
}
