package sshsig

import (
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// mostSigners bounds a list; a line more is refused with all that follow.
const mostSigners = 10_000

// ParseSigners reads a file of allowed signers, as ssh-keygen(1) describes it: on
// each line names with commas, options if any, and a key. A line that holds what
// is not understood is refused as a whole, because what it leaves out might have
// been a restriction.
func ParseSigners(text string) Signers {
	var l Signers
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		s, why := parseSigner(line)
		if why == "" && len(l.lines) == mostSigners {
			why = fmt.Sprintf("there are more than %d", mostSigners)
		}
		if why == "" {
			l.lines = append(l.lines, s)
			continue
		}
		l.Refused = append(l.Refused, fmt.Sprintf("line %d: %s", n, why))
		if len(l.lines) == mostSigners {
			break
		}
	}
	return l
}

// parseSigner returns a line's meaning, or why it is refused.
func parseSigner(line string) (s signer, why string) {
	names, rest := word(line)
	if inner, ok := strings.CutPrefix(names, `"`); ok {
		names = strings.TrimSuffix(inner, `"`)
		if len(names) == len(inner) {
			return s, "a quote is not closed"
		}
	}
	for name := range strings.SplitSeq(names, ",") {
		if name == "" || strings.ContainsAny(name, "*?!\" \t") {
			return s, "names must be written out, without patterns"
		}
		s.names = append(s.names, name)
	}
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(rest))
	if err != nil {
		return s, "it holds no key"
	}
	if _, isCertificate := key.(*ssh.Certificate); isCertificate {
		return s, "certificates are not supported"
	}
	s.key = key.Marshal()
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		value = strings.Trim(value, `"`)
		switch strings.ToLower(name) {
		case "namespaces":
			s.namespaces = strings.Split(value, ",")
			if strings.ContainsAny(value, "*?!") {
				return s, "namespaces must be written out, without patterns"
			}
		case "valid-after":
			s.after, err = parseTime(value)
		case "valid-before":
			s.before, err = parseTime(value)
		default:
			return s, fmt.Sprintf("option %.40q is not supported", name)
		}
		if err != nil {
			return s, fmt.Sprintf("%s is not a time", name)
		}
	}
	return s, ""
}

// word splits off the first word, which may be quoted.
func word(line string) (first, rest string) {
	at := strings.IndexAny(line, " \t")
	if strings.HasPrefix(line, `"`) {
		if end := strings.IndexByte(line[1:], '"'); end >= 0 {
			at = end + 2
		}
	}
	if at < 0 || at > len(line) {
		return line, ""
	}
	return line[:at], strings.TrimLeft(line[at:], " \t")
}

// parseTime reads YYYYMMDD[HHMM[SS]][Z]; ssh-keygen takes one without Z for the
// machine's own time, which is UTC here, so that machines agree.
func parseTime(s string) (time.Time, error) {
	s = strings.TrimSuffix(s, "Z")
	for _, layout := range []string{"20060102", "200601021504", "20060102150405"} {
		if len(s) == len(layout) {
			return time.Parse(layout, s)
		}
	}
	return time.Time{}, fmt.Errorf("%.20q has another form", s)
}
