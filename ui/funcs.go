package ui

import (
	"encoding/json"
	"html/template"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

func (u *UI) funcs(sprite template.HTML) template.FuncMap {
	return template.FuncMap{
		"asset":    u.URL,
		"sprite":   func() template.HTML { return sprite },
		"safe":     Visible,
		"lines":    visibleLines,
		"cut":      cut,
		"text":     func(raw json.RawMessage) string { return string(raw) },
		"duration": Duration,
		"rel":      relative,
		"since":    running,
		"at":       absolute,
		"word":     func(state any) string { return strings.ReplaceAll(asText(state), "_", " ") },
		"sentence": sentence,
		"isbad":    func(state any) bool { return isBad(asText(state)) },
		"count":    Count,
		"plural": func(n any, one, many string) string {
			if asInt(n) == 1 {
				return one
			}
			return many
		},
		"plus":    func(a, b int) int { return a + b },
		"minus":   func(a, b int) int { return a - b },
		"percent": func(thousandths int) string { return strconv.FormatFloat(float64(thousandths)/10, 'f', -1, 64) + "%" },
		"dict":    dict,
		// pull tells a pull request, which is reviewed at its forge, from a branch.
		"pull": func(change string) bool { return strings.HasPrefix(change, "pull/") },
	}
}

// sentence makes a clause stand on its own: it begins with a capital and ends.
func sentence(v any) string {
	s := strings.TrimSpace(asText(v))
	if s == "" {
		return ""
	}
	first, n := utf8.DecodeRuneInString(s)
	s = string(unicode.ToUpper(first)) + s[n:]
	if !strings.HasSuffix(s, ".") && !strings.HasSuffix(s, "!") && !strings.HasSuffix(s, "?") {
		s += "."
	}
	return s
}

func isBad(state string) bool {
	return state == "failure" || state == "error" || state == "timeout" || state == "in_doubt"
}

// The three ways in which an instant is written. Each is a time element whose
// datetime is exact, with UTC in its title; a script keeps the text current.
// They are made of digits and fixed words only.

func relative(now, t time.Time) template.HTML {
	return timeElement("rel", t, Ago(now, t))
}

func running(now, t time.Time) template.HTML {
	return timeElement("since", t, Duration(max(now.Sub(t), 0)))
}

func absolute(t time.Time) template.HTML {
	return timeElement("", t, utc(t))
}

func timeElement(class string, t time.Time, text string) template.HTML {
	if t.IsZero() {
		return ""
	}
	attr := ""
	if class != "" {
		attr = ` class="` + class + `" title="` + utc(t) + `"`
	}
	return template.HTML(`<time datetime="` + t.UTC().Format(time.RFC3339Nano) + `"` + attr + `>` + text + `</time>`) //nolint:gosec
}

func utc(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// cut shortens text to about n characters on one line.
func cut(v any, n int) string {
	s, _, more := strings.Cut(strings.TrimSpace(asText(v)), "\n")
	if runes := []rune(s); len(runes) > n {
		return string(runes[:n]) + "…"
	}
	if more {
		return s + " …"
	}
	return s
}

// visibleLines is Visible for text that may have lines.
func visibleLines(v any) string {
	list := strings.Split(asText(v), "\n")
	for i := range list {
		list[i] = Visible(list[i])
	}
	return strings.Join(list, "\n")
}

// Visible returns text from outside with everything in it made visible that
// could reorder, hide or overprint what stands beside it: control characters and
// the bidirectional and zero-width ones are written as U+XXXX. A tab or a
// newline becomes a space.
func Visible(v any) string {
	s := asText(v)
	if !strings.ContainsFunc(s, hidden) {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(s, "\uFFFD") {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			b.WriteByte(' ')
		case hidden(r):
			b.WriteString("‹U+")
			b.WriteString(strings.ToUpper(hex4(r)))
			b.WriteString("›")
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// hidden reports whether a character has no shape of its own.
func hidden(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029'
}

func hex4(r rune) string {
	s := strconv.FormatInt(int64(r), 16)
	return strings.Repeat("0", max(0, 4-len(s))) + s
}

// Duration writes a duration in at most two units, as "1h04m", "3m07s", "1.2s", "40ms".
func Duration(v any) string {
	d, ok := asDuration(v)
	switch {
	case !ok || d < 0:
		return ""
	case d > 0 && d < 100*time.Millisecond:
		return strconv.Itoa(int(max(d.Milliseconds(), 1))) + "ms"
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + "s"
	case d < time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < time.Hour:
		return strconv.Itoa(int(d.Minutes())) + "m" + two(int(d.Seconds())%60) + "s"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + "h" + two(int(d.Minutes())%60) + "m"
	}
	return strconv.Itoa(int(d.Hours())/24) + "d" + two(int(d.Hours())%24) + "h"
}

// Ago writes how long before now an instant was, in one unit.
func Ago(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case d < -time.Second:
		return "in " + oneUnit(-d)
	case d < 5*time.Second:
		return "just now"
	}
	return oneUnit(d) + " ago"
}

func oneUnit(d time.Duration) string {
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < time.Hour:
		return strconv.Itoa(int(d.Minutes())) + "m"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + "h"
	}
	return strconv.Itoa(int(d.Hours())/24) + "d"
}

// Count writes a number with thin spaces between its thousands.
func Count(v any) string {
	s := strconv.Itoa(asInt(v))
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "\u2009" + s[i:]
	}
	return s
}

func two(n int) string {
	if n < 10 {
		return "0" + strconv.Itoa(n)
	}
	return strconv.Itoa(n)
}
