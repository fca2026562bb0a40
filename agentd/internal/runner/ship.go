package runner

import (
	"os"
	"path/filepath"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/shim"
	"github.com/maestro-cd/maestro/internal/wire"
)

// patience is how long a new connection is given to tell how much of a log it has.
// After that we go on from what we know; the other side compares what it has.
const patience = 3 * time.Second

// shipment is how far a log has come. The attempt's mutex guards it.
type shipment struct {
	size  int64 // known length of the file
	sent  int64
	acked int64
	// waitUntil is set while the control plane has yet to tell how much it has.
	waitUntil time.Time
}

// restart begins over a new link; known means that the control plane knows the log.
func (s *shipment) restart(known bool) {
	s.sent, s.waitUntil = s.acked, time.Time{}
	if known {
		s.waitUntil = time.Now().Add(patience)
	}
}

func (s *shipment) acknowledge(length int64, resend bool) {
	s.waitUntil = time.Time{}
	if resend {
		s.acked, s.sent = length, length
		return
	}
	s.acked = max(s.acked, length)
	s.sent = max(s.sent, length)
}

// next returns which bytes may be sent, or how long to wait for leave to send.
func (s *shipment) next(now time.Time) (from int64, n int, wait time.Duration) {
	if wait = s.waitUntil.Sub(now); !s.waitUntil.IsZero() && wait > 0 {
		return 0, 0, wait
	}
	s.waitUntil = time.Time{}
	room := min(s.size-s.sent, s.acked+wire.LogWindow-s.sent, wire.MaxLogFrame)
	return s.sent, int(max(room, 0)), 0
}

// ship sends the log as it grows, as far as the window allows.
func (a *attempt) ship() {
	var file *os.File
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	buf := make([]byte, wire.MaxLogFrame)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		a.mu.Lock()
		link := a.link
		from, n, wait := a.log.next(time.Now())
		a.mu.Unlock()
		if link != nil && n > 0 {
			if file == nil {
				file = a.openLog()
			}
			if file != nil && a.sendLog(link, file, buf[:n], from) {
				continue
			}
			wait = time.Second // the link is gone, or the disk is ill
		}
		if wait > 0 {
			timer.Reset(wait)
		}
		select {
		case <-a.shipNews:
		case <-timer.C:
		case <-a.over:
			return
		case <-a.r.life.Done():
			return
		}
	}
}

func (a *attempt) openLog() *os.File {
	f, err := os.Open(filepath.Join(a.dir, shim.LogFile))
	if err != nil {
		a.r.cfg.Log.Error("log not opened", "attempt_id", a.id, "err", err)
		return nil
	}
	return f
}

// sendLog sends one frame and reports whether to go on.
func (a *attempt) sendLog(link Link, file *os.File, buf []byte, from int64) bool {
	if _, err := file.ReadAt(buf, from); err != nil {
		a.r.cfg.Log.Error("log not read", "attempt_id", a.id, "offset", from, "err", err)
		return false
	}
	err := link.SendLog(wire.LogFrame{Attempt: a.id, Token: a.token, Offset: from, Data: buf})
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		// The next link starts again from what was acknowledged.
		if a.link == link {
			a.link = nil
		}
		return false
	}
	// Unless an acknowledgement has moved the window meanwhile.
	if a.link == link && a.log.sent == from {
		a.log.sent = from + int64(len(buf))
	}
	return true
}
