package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/maestro-cd/maestro/internal/redact"
)

// events carries what the task reports from the file that the task writes, which
// may be anything by now, to files that the task does not know, with secrets
// masked. Only the supervisor uses it.
type events struct {
	from    string // written by the task
	live    string // copy while it runs
	final   string // copy once it has ended
	secrets []redact.Secret
	at      int64 // how far the live copy is
	off     bool  // the live copy was given up; the final one tells why
}

// follow brings the live copy up to date with the whole lines that are there. It
// is for display only: whatever goes wrong, it stops.
func (e *events) follow() {
	if e.off {
		return
	}
	// The common case is that nothing happened; a stat costs less than an open.
	if fi, err := os.Lstat(e.from); err != nil || fi.Size() == e.at {
		return
	}
	b, err := readRegular(e.from, e.at)
	if err != nil {
		e.off = true
		return
	}
	b = b[:bytes.LastIndexByte(b, '\n')+1]
	if len(b) == 0 {
		return
	}
	out, err := os.OpenFile(e.live, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		e.off = true
		return
	}
	_, err = out.Write(e.mask(b))
	e.off = errors.Join(err, out.Close()) != nil
	e.at += int64(len(b))
}

// finish makes the final copy. No process of the task is alive any more.
func (e *events) finish() error {
	b, err := readRegular(e.from, 0)
	if err != nil || len(b) == 0 {
		return err
	}
	masked := e.mask(b)
	if bytes.Equal(masked, b) {
		// Moving the file needs no space, so outputs survive a full disk.
		return os.Rename(e.from, e.final)
	}
	f, err := os.OpenFile(e.final, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(masked)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		// What the task wrote holds a secret; it is of no more use.
		err = os.Remove(e.from)
	}
	return err
}

func (e *events) mask(b []byte) []byte {
	if len(e.secrets) == 0 {
		return b
	}
	var out bytes.Buffer
	w := redact.New(&out, e.secrets)
	// A bytes.Buffer takes everything.
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

// readRegular returns the rest of a file from offset at. It refuses what is not a
// regular file, without following a link and without waiting for a FIFO's other
// end, and what is larger than MaxEvents. A file that is not there is empty.
func readRegular(path string, at int64) ([]byte, error) {
	f, err := openNoFollow(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		if fi, e := os.Lstat(path); e == nil && !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("it is not a regular file but %s", kindOf(fi.Mode()))
		}
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("it is not a regular file but %s", kindOf(fi.Mode()))
	}
	if fi.Size() > MaxEvents {
		return nil, fmt.Errorf("it has %d bytes, most is %d; write large things to files", fi.Size(), MaxEvents)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, at, MaxEvents-at+1))
	if err == nil && at+int64(len(b)) > MaxEvents {
		return nil, fmt.Errorf("it has more than %d bytes; write large things to files", MaxEvents)
	}
	return b, err
}

func kindOf(m os.FileMode) string {
	switch {
	case m&os.ModeSymlink != 0:
		return "a symbolic link"
	case m.IsDir():
		return "a directory"
	case m&os.ModeNamedPipe != 0:
		return "a FIFO"
	case m&os.ModeSocket != 0:
		return "a socket"
	}
	return "a device"
}
