// Package fault is the closed list of error kinds. A kind says who has to act
// and what a loop does next; nothing else about an error is ever switched on.
// It is not for wording: the message belongs to whoever makes the error.
package fault

import (
	"errors"
	"fmt"
)

// Kind classes an error. The strings are stored and sent over the wire, so a
// value is never renamed or reused.
type Kind string

const (
	// Invalid: what was asked or written is wrong; a person must change it.
	Invalid Kind = "invalid"
	// NotFound: the thing named does not exist.
	NotFound Kind = "not_found"
	// Conflict: someone else moved it first; read again and decide again.
	Conflict Kind = "conflict"
	// Unavailable: something outside does not answer; try later.
	Unavailable Kind = "unavailable"
	// Internal: a bug, or the disk. The zero kind of every other error.
	Internal Kind = "internal"
)

// Error is an error with a kind.
type Error struct {
	Kind Kind
	err  error
}

func (e *Error) Error() string { return e.err.Error() }

// Unwrap returns the error that was wrapped, if the format had a %w.
func (e *Error) Unwrap() error { return errors.Unwrap(e.err) }

// New makes an error of a kind; format and args are those of fmt.Errorf, %w included.
func New(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, err: fmt.Errorf(format, args...)}
}

// KindOf returns the kind of the outermost fault in err's chain, Internal when
// there is none, and "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var f *Error
	if errors.As(err, &f) {
		return f.Kind
	}
	return Internal
}

// Is reports whether err is of the given kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
