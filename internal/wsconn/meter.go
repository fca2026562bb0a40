package wsconn

import (
	"io"
	"net"
	"sync"
	"time"
)

// meter is the socket under a connection. It counts what one message costs on the
// wire, remembers whether reading failed here or further up, and can put an end to
// a write that hangs.
type meter struct {
	net.Conn

	// Owned by whoever holds Conn.reading.
	limited bool
	left    int
	err     error

	mu   sync.Mutex // never held across I/O
	last time.Time  // no write may take longer, when not zero
}

func (m *meter) Read(b []byte) (int, error) {
	if m.limited && m.left <= 0 {
		return 0, errPadded
	}
	n, err := m.Conn.Read(b)
	m.left -= n
	if err != nil {
		m.err = err
	}
	return n, err
}

// SetWriteDeadline is called by the library before each write.
func (m *meter) SetWriteDeadline(t time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.last.IsZero() && (t.IsZero() || t.After(m.last)) {
		t = m.last
	}
	return m.Conn.SetWriteDeadline(t)
}

// hurry makes writes end by t, the one under way included.
func (m *meter) hurry(t time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = t
	// An error means that the socket is closed, and then nothing hangs.
	_ = m.Conn.SetWriteDeadline(t)
}

// linger tells the peer that no more comes, so that it closes too, and reads until
// it has, the read deadline, or so many bytes.
func (m *meter) linger(most int64) {
	if half, ok := m.Conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // fails when the peer was quicker
	}
	_, _ = io.CopyN(io.Discard, m.Conn, most)
}
