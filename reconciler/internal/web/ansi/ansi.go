// Package ansi turns one line of a task's log into HTML that is safe to put on a
// page: text is escaped, colours become class names, and every other thing that
// a terminal would obey is dropped or made visible.
//
// It is not a terminal. A line stands alone: a colour that is not reset ends with
// its line, so that any line can be rendered without those before it. Of cursor
// movements only those that progress bars use are followed (carriage return,
// backspace, erase in line).
//
// The classes are f0…f255 and b0…b255 for the xterm palette, bold, dim, ital,
// ul, strike, and hid for a character that was made visible. A colour given as
// red, green and blue becomes the nearest of the palette, because the pages allow
// no inline style.
package ansi

import (
	"bytes"
	"html"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxLine is how many bytes of a line are looked at; the rest is cut off, and
// said to be.
const MaxLine = 8 << 10

// mostLink bounds the address of a link.
const mostLink = 2 << 10

const cutMark = " … (line cut at 8 KiB)"

// HTML renders a line without its newline. The result is well-formed: it may
// stand inside any element that takes phrasing content.
func HTML(line []byte) string {
	s := screenOf(line)
	var b strings.Builder
	b.Grow(len(s.cells) + 64)
	for i := 0; i < len(s.cells); {
		link := s.cells[i].link
		end := i
		for end < len(s.cells) && s.cells[end].link == link {
			end++
		}
		if link > 0 {
			b.WriteString(`<a href="`)
			b.WriteString(html.EscapeString(s.links[link-1]))
			b.WriteString(`" rel="noopener noreferrer nofollow" target="_blank">`)
		}
		writeRuns(&b, s.cells[i:end])
		if link > 0 {
			b.WriteString("</a>")
		}
		i = end
	}
	if s.cut {
		b.WriteString(`<span class="hid">` + cutMark + `</span>`)
	}
	return b.String()
}

// Text renders a line as plain text: what HTML shows, without colours and links.
func Text(line []byte) string {
	s := screenOf(line)
	var b strings.Builder
	for _, c := range s.cells {
		if hidden(c.r) {
			b.WriteString(named(c.r))
		} else {
			b.WriteRune(c.r)
		}
	}
	if s.cut {
		b.WriteString(cutMark)
	}
	return b.String()
}

// style is how a cell looks; the zero style is plain. Colours count from 1.
type style struct {
	fg, bg                               uint16
	bold, dim, italic, under, strike, in bool
}

type cell struct {
	r     rune
	style style
	link  int // 1-based index into links; 0 is none
}

type screen struct {
	cells []cell
	col   int
	style style
	link  int
	links []string
	cut   bool
}

func screenOf(line []byte) *screen {
	s := &screen{}
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) > MaxLine {
		line, s.cut = line[:MaxLine], true
		for len(line) > 0 && !utf8.RuneStart(line[len(line)-1]) {
			line = line[:len(line)-1]
		}
		if len(line) > 0 && line[len(line)-1] >= utf8.RuneSelf {
			line = line[:len(line)-1]
		}
	}
	s.cells = make([]cell, 0, len(line))
	for len(line) > 0 {
		if line[0] == 0x1b {
			line = s.escape(line)
			continue
		}
		r, n := utf8.DecodeRune(line)
		line = line[n:]
		switch r {
		case '\r':
			s.col = 0
		case '\b':
			s.col = max(0, s.col-1)
		case '\a', '\n':
		default:
			s.put(r)
		}
	}
	return s
}

func (s *screen) put(r rune) {
	c := cell{r: r, style: s.style, link: s.link}
	if s.col < len(s.cells) {
		s.cells[s.col] = c
	} else {
		s.cells = append(s.cells, c)
	}
	s.col++
}

// escape consumes one escape sequence and returns what follows it. A sequence
// that is not known, or does not end, is dropped.
func (s *screen) escape(b []byte) []byte {
	if len(b) < 2 {
		return nil
	}
	switch b[1] {
	case '[':
		for i := 2; i < len(b); i++ {
			if b[i] >= 0x40 && b[i] <= 0x7e {
				s.control(b[2:i], b[i])
				return b[i+1:]
			}
			if b[i] < 0x20 || b[i] > 0x7e {
				return b[i:]
			}
		}
		return nil
	case ']', 'P', 'X', '^', '_':
		body, rest := stringEnd(b[2:])
		if b[1] == ']' {
			s.command(body)
		}
		return rest
	}
	i := 1
	for i < len(b) && b[i] >= 0x20 && b[i] <= 0x2f {
		i++
	}
	return b[min(i+1, len(b)):]
}

// stringEnd splits at the terminator of an OSC or DCS string: BEL, or ESC \.
func stringEnd(b []byte) (body, rest []byte) {
	for i, c := range b {
		switch {
		case c == '\a':
			return b[:i], b[i+1:]
		case c == 0x1b && i+1 < len(b) && b[i+1] == '\\':
			return b[:i], b[i+2:]
		case c == 0x1b:
			return b[:i], b[i:]
		}
	}
	return nil, nil
}

func (s *screen) control(params []byte, final byte) {
	switch final {
	case 'm':
		s.sgr(string(params))
	case 'K':
		switch string(params) {
		case "", "0":
			s.cells = s.cells[:min(s.col, len(s.cells))]
		case "1", "2":
			for i := range s.cells {
				if i < s.col || string(params) == "2" {
					s.cells[i] = cell{r: ' '}
				}
			}
		}
		s.col = min(s.col, len(s.cells))
	}
}

// command obeys OSC 8, which makes text a link, and nothing else.
func (s *screen) command(body []byte) {
	rest, ok := bytes.CutPrefix(body, []byte("8;"))
	if !ok {
		return
	}
	_, target, ok := bytes.Cut(rest, []byte(";"))
	if !ok {
		return
	}
	s.link = 0
	if u := SafeURL(string(target)); u != "" {
		s.links = append(s.links, u)
		s.link = len(s.links)
	}
}

// SafeURL returns the address when it is an absolute http or https one without
// credentials, and "" otherwise. It is the one test that any link from outside
// has to pass before it is put on a page.
func SafeURL(raw string) string {
	if len(raw) == 0 || len(raw) > mostLink || strings.ContainsFunc(raw, func(r rune) bool { return hidden(r) || r == ' ' }) {
		return ""
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || (u.Scheme != "http" && u.Scheme != "https") {
		return ""
	}
	return u.String()
}

func writeRuns(b *strings.Builder, cells []cell) {
	for i := 0; i < len(cells); {
		st := cells[i].style
		end := i
		for end < len(cells) && cells[end].style == st {
			end++
		}
		classes := st.classes()
		if classes != "" {
			b.WriteString(`<span class="` + classes + `">`)
		}
		for _, c := range cells[i:end] {
			writeRune(b, c.r)
		}
		if classes != "" {
			b.WriteString("</span>")
		}
		i = end
	}
}

func writeRune(b *strings.Builder, r rune) {
	switch {
	case r == '&':
		b.WriteString("&amp;")
	case r == '<':
		b.WriteString("&lt;")
	case r == '>':
		b.WriteString("&gt;")
	case r == '"':
		b.WriteString("&#34;")
	case r == '\'':
		b.WriteString("&#39;")
	case hidden(r):
		b.WriteString(`<span class="hid">` + named(r) + `</span>`)
	default:
		b.WriteRune(r)
	}
}

// hidden reports whether a character has no shape of its own, or would reorder
// those beside it. A tab has a width and stays.
func hidden(r rune) bool {
	return r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029')
}

func named(r rune) string {
	h := strings.ToUpper(strconv.FormatInt(int64(r), 16))
	return "‹U+" + strings.Repeat("0", max(0, 4-len(h))) + h + "›"
}
