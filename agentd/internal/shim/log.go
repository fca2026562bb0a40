package shim

import (
	"errors"
	"fmt"
	"os"
)

// sink appends a task's output to its log, up to a limit. A disk that is full or
// broken must not stop the task, so Write never fails: what cannot be kept is
// counted, and a line in the log tells how much is missing as soon as there is
// room for it. Only the goroutine that copies the output uses it.
type sink struct {
	file  *os.File
	spare string // a file that is removed to make room for the first such line
	size  int64
	limit int64
	full  bool

	lost   int64 // bytes that were not kept and that no line tells of yet
	total  int64 // bytes not kept in all
	reason error // of the first loss
}

// Write keeps p, or counts it. It always reports success.
func (s *sink) Write(p []byte) (int, error) {
	n := len(p)
	if s.full {
		s.total += int64(n)
		return n, nil
	}
	if s.lost > 0 && !s.tell() {
		s.lose(n, s.reason)
		return n, nil
	}
	if room := s.limit - s.size; int64(n) > room {
		s.put(p[:room])
		s.full = true
		s.reason = fmt.Errorf("the log reached its limit of %d bytes", s.limit)
		s.total += int64(n) - room
		s.put(fmt.Appendf(nil, "\n[maestro: the log reached its limit of %d bytes; what follows is not kept]\n", s.limit))
		return n, nil
	}
	s.put(p)
	return n, nil
}

// put writes p and counts what did not fit.
func (s *sink) put(p []byte) {
	n, err := s.file.Write(p)
	s.size += int64(n)
	if err == nil {
		return
	}
	first := s.total == 0 && !s.full
	s.lose(len(p)-n, err)
	if first {
		// Failing to remove it means only that the line comes later.
		_ = os.Remove(s.spare)
		s.tell()
	}
}

func (s *sink) lose(n int, err error) {
	s.lost += int64(n)
	s.total += int64(n)
	if s.reason == nil {
		s.reason = err
		// The path means nothing to who reads the log.
		if pe := (*os.PathError)(nil); errors.As(err, &pe) {
			s.reason = pe.Err
		}
	}
}

// tell writes the line about what is missing and reports whether it is there.
func (s *sink) tell() bool {
	line := fmt.Appendf(nil, "\n[maestro: %d bytes of output are missing here: %v]\n", s.lost, s.reason)
	n, err := s.file.Write(line)
	s.size += int64(n)
	if err != nil {
		return false
	}
	s.lost = 0
	return true
}

// end makes the last try to tell what is missing.
func (s *sink) end() {
	if s.lost > 0 && !s.full {
		s.tell()
	}
}
