package config

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func diag(code string, pos pipeline.Position, format string, args ...any) pipeline.Diagnostic {
	return pipeline.Diagnostic{
		Severity: pipeline.SeverityError, Code: code, Pos: pos, Message: fmt.Sprintf(format, args...),
	}
}

func warn(code string, pos pipeline.Position, format string, args ...any) pipeline.Diagnostic {
	d := diag(code, pos, format, args...)
	d.Severity = pipeline.SeverityWarning
	return d
}

// withHelp adds a help line, if there is one.
func withHelp(d pipeline.Diagnostic, help string) pipeline.Diagnostic {
	if help != "" {
		d.Help = help
	}
	return d
}

// DidYouMean suggests the known name nearest to what a person wrote, as a question,
// or nothing when none is near.
func DidYouMean(written string, known []string) string { return didYouMean(written, known) }

// didYouMean suggests the known name nearest to what was written, or nothing when
// none is near.
func didYouMean(written string, known []string) string {
	if best := nearest(written, known); best != "" {
		return fmt.Sprintf("did you mean %s?", quoted(best))
	}
	return ""
}

// nearest is the known name most like what was written, or "" when none is near.
func nearest(written string, known []string) string {
	best, least := "", len(written)/3+2
	for _, k := range known {
		if k == written {
			continue
		}
		if d := distance(strings.ToLower(written), strings.ToLower(k)); d < least && d < len(k) {
			best, least = k, d
		}
	}
	return best
}

// quoted puts a name in quotes, but not an attribute or a definition.
func quoted(s string) string {
	if strings.HasPrefix(s, "@") || strings.HasPrefix(s, "#") {
		return s
	}
	return fmt.Sprintf("%q", s)
}

// distance is the number of insertions, deletions, replacements and swaps of
// neighbours that lead from a to b.
func distance(a, b string) int {
	const longest = 80 // names are shorter; text from outside must not cost more
	if len(a) > longest || len(b) > longest {
		return longest
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// plain makes text from outside safe and short enough for one line of a message.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	const most = 240
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// listed joins names as a person would: a, b and c.
func listed[S ~string](names []S) string {
	parts := make([]string, len(names))
	for i, n := range names {
		parts[i] = fmt.Sprintf("%q", string(n))
	}
	switch len(parts) {
	case 0:
		return ""
	case 1:
		return parts[0]
	}
	return strings.Join(parts[:len(parts)-1], ", ") + " and " + parts[len(parts)-1]
}
