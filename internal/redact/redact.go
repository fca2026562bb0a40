// Package redact keeps secret values out of a stream, however the stream is cut.
// It stands between a task's output and the first byte that reaches a disk or
// the network.
//
// A Writer looks for every form of every secret: the value itself, each of its
// lines, and what base64, hexadecimal, URL, JSON and shell quoting make of it
// (see forms.go). All forms are sought at once by an Aho-Corasick automaton. Its
// state tells exactly how many of the last bytes could be the beginning of a form;
// only those are held back, so that a log can be followed live.
//
// Masking is a safety net, not a boundary. A program that wants to tell a secret
// can reverse it, put a colour code between its letters or print half of it, and
// no masker will notice. What must not be known must not be given to the task.
package redact

import (
	"io"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
)

const (
	// MinLength is the least length of a secret. Shorter values turn up by chance
	// in any log, and masking them would both ruin the log and give them away.
	MinLength = 8
	// MaxLength bounds the automaton and the bytes held back. Keys and
	// certificate chains are far below it.
	MaxLength = 64 << 10
	// minLine is the least length of a line of a multi-line secret that is masked
	// on its own.
	minLine = 6
	// slice bounds what is scanned at a time, and with it the memory that one
	// large Write takes.
	slice = 64 << 10
)

// Secret is a value that must not be shown, and the name to show instead.
type Secret struct {
	Name, Value string
}

// String hides the value, so that a Secret may be printed by mistake.
func (s Secret) String() string { return placeholder(s.Name) }

// GoString hides the value as String does.
func (s Secret) GoString() string { return s.String() }

// Check reports whether s can be masked: its value has at least MinLength bytes
// besides surrounding white space, and at most MaxLength. The error is
// fault.Invalid and names the secret, never the value.
func Check(s Secret) error {
	switch n := len(strings.TrimSpace(s.Value)); {
	case n < MinLength:
		return fault.New(fault.Invalid, "secret %q has %d characters: a value shorter than %d cannot be masked; use a longer one, or a plain field if it is no secret", s.Name, n, MinLength)
	case len(s.Value) > MaxLength:
		return fault.New(fault.Invalid, "secret %q has %d bytes, most is %d; store a key to it instead", s.Name, len(s.Value), MaxLength)
	}
	return nil
}

// Writer masks secrets in what is written to it. It is not safe for concurrent
// use. The zero value is not usable, see New.
type Writer struct {
	w   io.Writer
	a   *automaton // nil: nothing to mask
	err error      // the first error of w; for ever

	state int32
	// held are the last bytes read and not yet written; spans are the forms found
	// in them, in order and apart from each other.
	held  []byte
	spans []span
	out   []byte
}

// span is a part of held to be masked.
type span struct {
	start, end int
	text       string // what replaces it
	told       bool   // text was written already
}

// New returns a Writer that passes to w all that is written to it, with every
// form of the secrets replaced by ***NAME***. Without secrets it is a
// pass-through that copies nothing. Secrets should have passed Check: of one that
// is too short only the value itself is masked, of one that is empty nothing.
// Forms of the same text take the name of the first secret that has it.
func New(w io.Writer, secrets []Secret) *Writer {
	return &Writer{w: w, a: compile(secrets)}
}

// Write masks p and passes on all of it that cannot be the beginning of a secret.
// It reports len(p) unless the underlying writer failed; that error is kept and
// returned by every later call.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.a == nil {
		n, err := w.w.Write(p)
		w.err = err
		return n, err
	}
	for done := 0; done < len(p); {
		n := min(slice, len(p)-done)
		if err := w.scan(p[done : done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

// Flush emits everything that cannot be the beginning of a secret. Write has done
// that already; Flush reports whether it worked.
func (w *Writer) Flush() error { return w.err }

// Close emits what was held back; it does not close the underlying writer. What
// is held is the beginning of a secret that did not go on: when it has MinLength
// bytes or more it is masked, because a task that was killed while it printed a
// secret should not show half of it.
func (w *Writer) Close() error {
	if w.err != nil || w.a == nil {
		return w.err
	}
	if depth := int(w.a.depth[w.state]); depth >= MinLength {
		w.add(span{start: len(w.held) - depth, end: len(w.held), text: w.a.texts[w.a.owner[w.state]]})
	}
	w.state = 0
	return w.emit(len(w.held))
}

// scan reads p after what is held, then emits what is safe.
func (w *Writer) scan(p []byte) error {
	first := len(w.held)
	if first == 0 && len(w.spans) == 0 {
		return w.scanFresh(p)
	}
	w.held = append(w.held, p...)
	w.search(w.held, first)
	return w.emit(len(w.held) - int(w.a.depth[w.state]))
}

// scanFresh is scan with nothing held: as long as no form is found, p goes
// through without a copy but for its last bytes.
func (w *Writer) scanFresh(p []byte) error {
	w.search(p, 0)
	safe := len(p) - int(w.a.depth[w.state])
	if len(w.spans) > 0 {
		w.held = append(w.held, p...)
		return w.emit(safe)
	}
	w.held = append(w.held, p[safe:]...)
	return w.put(p[:safe])
}

// search moves the automaton over b from index i on and records what it finds.
func (w *Writer) search(b []byte, i int) {
	a, s := w.a, w.state
	for ; i < len(b); i++ {
		s = a.next(s, b[i])
		if f := a.found[s]; f.length > 0 {
			w.add(span{start: i + 1 - int(f.length), end: i + 1, text: a.texts[f.owner]})
		}
	}
	w.state = s
}

// add records a span that ends where the automaton is. Spans that overlap become
// one: masking only the first of two secrets that share bytes would show the rest
// of the second.
func (w *Writer) add(s span) {
	for n := len(w.spans); n > 0; n = len(w.spans) {
		last := w.spans[n-1]
		if last.end <= s.start {
			break
		}
		if last.start <= s.start {
			s.start, s.text = last.start, last.text
		}
		s.told = s.told || last.told
		w.spans = w.spans[:n-1]
	}
	w.spans = append(w.spans, s)
}

// emit writes the first safe bytes of held, masked. A span that reaches beyond is
// told, and the rest of it stays recorded.
func (w *Writer) emit(safe int) error {
	if safe <= 0 {
		return nil
	}
	out, at, kept := w.out[:0], 0, w.spans[:0]
	for _, s := range w.spans {
		if s.start >= safe {
			kept = append(kept, span{s.start - safe, s.end - safe, s.text, s.told})
			continue
		}
		out = append(out, w.held[at:s.start]...)
		if !s.told {
			out = append(out, s.text...)
		}
		at = min(s.end, safe)
		if s.end > safe {
			kept = append(kept, span{0, s.end - safe, s.text, true})
		}
	}
	out = append(out, w.held[at:safe]...)
	w.spans = kept
	w.held = w.held[:copy(w.held, w.held[safe:])]
	w.out = out
	return w.put(out)
}

func (w *Writer) put(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	_, w.err = w.w.Write(b)
	return w.err
}

func placeholder(name string) string { return "***" + name + "***" }
