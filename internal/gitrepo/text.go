package gitrepo

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// display makes a text from a repository safe to show: at most most runes,
// control and formatting characters (line breaks, terminal sequences, direction
// overrides) written out as escapes, invalid UTF-8 replaced.
func display(s string, most int) string {
	var b strings.Builder
	n := 0
	for _, c := range s {
		if n == most {
			b.WriteString("…")
			break
		}
		n++
		switch {
		case c == utf8.RuneError:
			b.WriteRune(utf8.RuneError)
		case unsafeToShow(c):
			fmt.Fprintf(&b, `\u%04x`, c)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

func unsafeToShow(c rune) bool {
	return unicode.IsControl(c) || unicode.In(c, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co, unicode.Cs)
}

// quote is for values in messages: quoted, escaped, and never long.
func quote(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.QuoteToGraphic(strings.ToValidUTF8(s, "\uFFFD"))
}
