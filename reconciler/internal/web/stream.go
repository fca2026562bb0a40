package web

import (
	"context"
	"net/http"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// pause is the least time between two messages on a stream, so that a busy
	// hour costs a viewer two looks a second and not thousands.
	pause = 400 * time.Millisecond
	// heartbeat keeps proxies from closing a quiet stream, and is the slow look
	// that makes up for a signal that was lost.
	heartbeat = 15 * time.Second
	// patience is how long a client may take to accept what is written. One that
	// takes longer is cut off and starts again from where it was.
	patience = 20 * time.Second
)

// stream is a response that is written while it happens.
type stream struct {
	w        http.ResponseWriter
	rc       *http.ResponseController
	patience time.Duration
}

// openStream takes one of the places for streams; release gives it back.
func (s *server) openStream(w http.ResponseWriter) (st *stream, release func(), err error) {
	select {
	case s.streams <- struct{}{}:
	default:
		return nil, nil, fault.New(fault.Unavailable, "%d streams are open, which is all there may be", mostStreams)
	}
	st = &stream{w, http.NewResponseController(w), s.patience}
	return st, func() { <-s.streams }, nil
}

// Write hands bytes to the client, or fails when it does not take them in time.
func (st *stream) Write(b []byte) (int, error) {
	// A server without deadlines is a test's recorder; it never blocks.
	_ = st.rc.SetWriteDeadline(time.Now().Add(st.patience))
	return st.w.Write(b)
}

func (st *stream) flush() error {
	_ = st.rc.SetWriteDeadline(time.Now().Add(st.patience))
	return st.rc.Flush()
}

// wait blocks until one of the signals, the next heartbeat or the end of the
// request; ok is false at the end. beat is true for a heartbeat.
func wait(ctx context.Context, beat *time.Ticker, signals ...<-chan struct{}) (isBeat, ok bool) {
	var s [3]<-chan struct{} // one that is nil never signals
	copy(s[:], signals)
	select {
	case <-ctx.Done():
		return false, false
	case <-s[0]:
		return false, true
	case <-s[1]:
		return false, true
	case <-s[2]:
		return false, true
	case <-beat.C:
		return true, true
	}
}

// rest waits out the pause between two messages.
func rest(ctx context.Context) bool {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// copyLog sends a log from an offset on; with follow it goes on while the log
// grows and ends when it is sealed.
func (s *server) copyLog(w http.ResponseWriter, r *http.Request, id pipeline.AttemptID, off int64, follow bool) error {
	ctx := r.Context()
	info, err := s.src.LogInfo(ctx, id)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "private, no-cache")
	h.Set("Maestro-Log-Bytes", i64toa(info.Bytes))
	h.Set("Maestro-Log-Sealed", boolText(info.Sealed))
	st, release, err := s.openStream(w)
	if err != nil {
		return err
	}
	defer release()
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	signal, stop := s.src.WatchLog(id)
	defer stop()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		// Whether it is sealed is read before the copy: what is then copied is all.
		if info, err = s.src.LogInfo(ctx, id); err != nil {
			return s.broken(r, err)
		}
		n, err := s.src.LogCopy(ctx, id, off, st)
		off += n
		if err != nil {
			return s.broken(r, err)
		}
		if !follow || info.Sealed {
			return nil
		}
		if err := st.flush(); err != nil {
			return s.broken(r, err)
		}
		if _, ok := wait(ctx, beat, signal); !ok {
			return nil
		}
	}
}

// broken ends a response that has begun: the connection is closed, so that the
// client does not take a part for the whole.
func (s *server) broken(r *http.Request, err error) error {
	if r.Context().Err() == nil {
		s.log.Info("stream ended early", "path", r.URL.Path, "err", err)
	}
	panic(http.ErrAbortHandler)
}

func boolText(b bool) string {
	if b {
		return "true"
	}
	return "false"
}
