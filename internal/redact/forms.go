package redact

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// forms lists every text that gives value away and is masked, without repeats.
func forms(value string) []string {
	value = strings.Clone(value)
	core := strings.TrimSpace(value)
	if core == "" {
		return nil
	}
	if len(core) < MinLength {
		return []string{core}
	}
	var out []string
	for _, v := range wholes(value, core) {
		out = append(out, v)
		out = append(out, quoted(v)...)
		out = append(out, encoded(v)...)
	}
	for _, line := range lines(core) {
		out = append(out, line)
		out = append(out, quoted(line)...)
	}
	out = slices.DeleteFunc(out, func(f string) bool { return len(f) < minLine })
	slices.Sort(out)
	return slices.Compact(out)
}

// wholes are the spellings of the whole value: as it is, without the white space
// around it that $(cat FILE) loses, and with either kind of line end.
func wholes(value, core string) []string {
	out := []string{value, core}
	if strings.Contains(core, "\n") {
		unix := strings.ReplaceAll(value, "\r\n", "\n")
		out = append(out, unix, strings.ReplaceAll(unix, "\n", "\r\n"))
		unix = strings.ReplaceAll(core, "\r\n", "\n")
		out = append(out, unix, strings.ReplaceAll(unix, "\n", "\r\n"))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// lines are the lines of a multi-line value that are long enough to tell something.
func lines(core string) []string {
	var out []string
	for line := range strings.SplitSeq(core, "\n") {
		if line = strings.TrimSpace(line); len(line) >= minLine && len(line) < len(core) {
			out = append(out, line)
		}
	}
	return out
}

// quoted is what programs write when they quote v for a shell, a URL or JSON. Most
// of it equals v when v has no special characters.
func quoted(v string) []string {
	out := []string{
		strings.ReplaceAll(v, "'", `'\''`),
		strings.ReplaceAll(v, "'", `'"'"'`),
		doubleQuoted.Replace(v),
		backslashed(v),
		ansiC.Replace(v),
		jsonText(v, true), jsonText(v, false), inner(strconv.QuoteToASCII(v)), asciiJSON(v),
		strings.ReplaceAll(jsonText(v, false), "/", `\/`),
	}
	for _, u := range []string{url.QueryEscape(v), url.PathEscape(v), percent(v, "-_.~"), percent(v, "-_.!~*'()"), percent(v, "-_.~/")} {
		out = append(out, u, lowerPercent(u))
	}
	return out
}

var (
	doubleQuoted = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`")
	ansiC        = strings.NewReplacer(`\`, `\\`, `'`, `\'`, "\n", `\n`, "\r", `\r`, "\t", `\t`)
)

// backslashed is what printf %q makes of v.
func backslashed(v string) string {
	var b strings.Builder
	for i := range len(v) {
		if c := v[i]; c < 0x80 && !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+=", rune(c)) {
			b.WriteByte('\\')
		}
		b.WriteByte(v[i])
	}
	return b.String()
}

func jsonText(v string, escapeHTML bool) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(escapeHTML)
	if err := e.Encode(v); err != nil {
		return v
	}
	return inner(strings.TrimSuffix(b.String(), "\n"))
}

// asciiJSON is JSON as encoders write it that keep to ASCII: UTF-16 escapes.
func asciiJSON(v string) string {
	var b strings.Builder
	for _, r := range jsonText(v, false) {
		switch {
		case r < 0x80:
			b.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			r -= 0x10000
			fmt.Fprintf(&b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
	}
	return b.String()
}

func inner(quoted string) string { return quoted[1 : len(quoted)-1] }

// percent encodes every byte of v but letters, digits and those in keep.
func percent(v, keep string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(v) {
		c := v[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte(keep, c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', digits[c>>4], digits[c&15]})
	}
	return b.String()
}

func lowerPercent(u string) string {
	b := []byte(u)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], strings.ToLower(string(b[i+1:i+3])))
			i += 2
		}
	}
	return string(b)
}

// Column widths at which tools wrap what they encode: base64 and PEM; xxd -p.
var (
	base64Columns = []int{76, 64}
	hexColumns    = []int{60}
)

// encoded is v in base64 and hexadecimal, alone or in the middle of more text,
// in one line or wrapped.
func encoded(v string) []string {
	var out []string
	for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		out = append(out, e.EncodeToString([]byte(v)), e.WithPadding(base64.NoPadding).EncodeToString([]byte(v)))
		for offset := range 3 {
			out = append(out, within(e, v, offset))
		}
		for _, columns := range base64Columns {
			out = append(out, wrapped(within(e, v, 0), columns)...)
		}
	}
	lower := hex.EncodeToString([]byte(v))
	for _, h := range []string{lower, strings.ToUpper(lower)} {
		out = append(out, h)
		for _, columns := range hexColumns {
			out = append(out, wrapped(h, columns)...)
		}
	}
	return out
}

// within is the part of the base64 text that v alone decides when offset bytes
// (modulo 3) come before it and unknown ones after.
func within(e *base64.Encoding, v string, offset int) string {
	all := e.EncodeToString(append(make([]byte, offset, offset+len(v)), v...))
	// With 1 or 2 bytes before, v shares the second or third character with them.
	first := [3]int{0, 2, 3}[offset]
	return all[first : (offset+len(v))*8/6]
}

// wrapped cuts a text that does not fit in one line; no pieces when it does.
func wrapped(text string, columns int) []string {
	if len(text) <= columns {
		return nil
	}
	var out []string
	for ; len(text) > columns; text = text[columns:] {
		out = append(out, text[:columns])
	}
	if len(text) >= MinLength {
		out = append(out, text)
	}
	return out
}
