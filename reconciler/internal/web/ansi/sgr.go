package ansi

import (
	"strconv"
	"strings"
)

func (st style) classes() string {
	if st == (style{}) {
		return ""
	}
	if st.in {
		st.fg, st.bg = st.bg, st.fg
		// Reverse of the default colours has no number in the palette.
		if st.fg == 0 {
			st.fg = 1
		}
		if st.bg == 0 {
			st.bg = 8
		}
	}
	var list []string
	if st.fg > 0 {
		list = append(list, "f"+strconv.Itoa(int(st.fg)-1))
	}
	if st.bg > 0 {
		list = append(list, "b"+strconv.Itoa(int(st.bg)-1))
	}
	for _, a := range []struct {
		on   bool
		name string
	}{{st.bold, "bold"}, {st.dim, "dim"}, {st.italic, "ital"}, {st.under, "ul"}, {st.strike, "strike"}} {
		if a.on {
			list = append(list, a.name)
		}
	}
	return strings.Join(list, " ")
}

// mostParams bounds the parameters of one sequence; terminals stop at about 16.
const mostParams = 64

func (s *screen) sgr(params string) {
	if strings.ContainsAny(params, "<=>?") {
		return
	}
	// A colon separates the parts of one parameter; read as if it were a semicolon,
	// the forms in use mean the same.
	parts := strings.SplitN(strings.ReplaceAll(params, ":", ";"), ";", mostParams+1)
	codes := make([]int, 0, len(parts))
	for _, p := range parts[:min(len(parts), mostParams)] {
		n, err := strconv.Atoi(p)
		if err != nil {
			n = 0
		}
		codes = append(codes, n)
	}
	for i := 0; i < len(codes); i++ {
		switch c := codes[i]; {
		case c == 38 || c == 48:
			colour, used := extended(codes[i+1:])
			if colour > 0 && c == 38 {
				s.style.fg = colour
			} else if colour > 0 {
				s.style.bg = colour
			}
			i += used
		default:
			s.style.apply(c)
		}
	}
}

func (st *style) apply(c int) {
	switch {
	case c == 0:
		*st = style{}
	case c == 1:
		st.bold = true
	case c == 2:
		st.dim = true
	case c == 3:
		st.italic = true
	case c == 4 || c == 21:
		st.under = true
	case c == 7:
		st.in = true
	case c == 9:
		st.strike = true
	case c == 22:
		st.bold, st.dim = false, false
	case c == 23:
		st.italic = false
	case c == 24:
		st.under = false
	case c == 27:
		st.in = false
	case c == 29:
		st.strike = false
	case c >= 30 && c <= 37:
		st.fg = uint16(c-30) + 1
	case c == 39:
		st.fg = 0
	case c >= 40 && c <= 47:
		st.bg = uint16(c-40) + 1
	case c == 49:
		st.bg = 0
	case c >= 90 && c <= 97:
		st.fg = uint16(c-90+8) + 1
	case c >= 100 && c <= 107:
		st.bg = uint16(c-100+8) + 1
	}
}

// extended reads what follows 38 or 48: "5;n" or "2;r;g;b". It returns the
// colour, 0 when it is none, and how many codes it used.
func extended(codes []int) (colour uint16, used int) {
	if len(codes) == 0 {
		return 0, 0
	}
	switch codes[0] {
	case 5:
		if len(codes) < 2 {
			return 0, 1
		}
		if codes[1] < 0 || codes[1] > 255 {
			return 0, 2
		}
		return uint16(codes[1]) + 1, 2
	case 2:
		if len(codes) < 4 {
			return 0, len(codes)
		}
		return nearest(codes[1], codes[2], codes[3]) + 1, 4
	}
	return 0, 1
}

// cube holds the six levels of a channel in the palette's colour cube.
var cube = [6]int{0, 95, 135, 175, 215, 255}

// Palette returns the colour of index 16 to 255 of the xterm palette. The first
// 16 are the theme's.
func Palette(i int) (r, g, b int) {
	if i >= 232 {
		v := 8 + 10*(i-232)
		return v, v, v
	}
	i -= 16
	return cube[i/36], cube[i/6%6], cube[i%6]
}

func nearest(r, g, b int) uint16 {
	r, g, b = min(max(r, 0), 255), min(max(g, 0), 255), min(max(b, 0), 255)
	best, least := 16, 1<<30
	for i := 16; i < 256; i++ {
		pr, pg, pb := Palette(i)
		if d := (r-pr)*(r-pr) + (g-pg)*(g-pg) + (b-pb)*(b-pb); d < least {
			best, least = i, d
		}
	}
	return uint16(best)
}
