package store

import "bytes"

// escapes takes the terminal's sequences out of a text that comes in pieces, so that
// a search finds what a person reads. The zero value is at the beginning of a line.
type escapes struct{ state escapeState }

type escapeState int

const (
	inText       escapeState = iota
	afterEscape              // ESC
	inControl                // ESC [ up to a letter
	inString                 // ESC ] and the like, up to BEL or ESC \
	inStringLast             // ESC within such a string
)

const esc = 0x1b

// appendPlain appends the text of piece to dst.
func (e *escapes) appendPlain(dst, piece []byte) []byte {
	for len(piece) > 0 {
		if e.state == inText {
			i := bytes.IndexByte(piece, esc)
			if i < 0 {
				return append(dst, piece...)
			}
			dst = append(dst, piece[:i]...)
			piece, e.state = piece[i+1:], afterEscape
			continue
		}
		e.step(piece[0])
		piece = piece[1:]
	}
	return dst
}

func (e *escapes) step(b byte) {
	switch e.state {
	case afterEscape:
		switch b {
		case '[':
			e.state = inControl
		case ']', 'P', 'X', '^', '_':
			e.state = inString
		default:
			e.state = inText
		}
	case inControl:
		if b >= 0x40 && b <= 0x7e {
			e.state = inText
		}
	case inString:
		switch b {
		case 0x07:
			e.state = inText
		case esc:
			e.state = inStringLast
		}
	default:
		e.state = inText
	}
}
