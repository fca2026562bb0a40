// Package codeowners reads the file CODEOWNERS as GitHub documents it, and says whose a
// path is. It is pure, and knows neither people nor approvals: who an owner is, and what
// that person has to say, is for others.
package codeowners

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Places are where the file may lie, as paths from the root. The first that is there is
// the one that counts, whatever it holds.
func Places() []string { return []string{".github/CODEOWNERS", "CODEOWNERS", "docs/CODEOWNERS"} }

// Mistake is a line that is skipped, as if it was not there.
type Mistake struct {
	// Line and Col count from 1.
	Line, Col int
	Why       string
}

// ownerRE finds what may be an owner: a user, a team, or an address.
var ownerRE = regexp.MustCompile(`^(?:@([A-Za-z0-9][A-Za-z0-9_-]*)|(@[A-Za-z0-9][A-Za-z0-9_-]*/[A-Za-z0-9][A-Za-z0-9_.-]*)|([^\s@#]+@[A-Za-z0-9][A-Za-z0-9.-]*))$`)

// Parse reads the text of a file. Of a line that is wrong nothing counts, and it is
// among the mistakes; the others do.
func Parse(text string) (rules []pipeline.OwnerRule, mistakes []Mistake) {
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(text, "\uFEFF")) {
		number++
		rule, col, why := parseLine(strings.TrimRight(line, "\r\n"))
		switch {
		case why != "":
			mistakes = append(mistakes, Mistake{number, col, why})
		case rule != nil:
			rule.Line = number
			rules = append(rules, *rule)
		}
	}
	return rules, mistakes
}

// parseLine returns the rule of a line, nil when it has none, or why it is wrong and at
// which column.
func parseLine(line string) (rule *pipeline.OwnerRule, col int, why string) {
	for _, w := range words(line) {
		if rule == nil {
			if why := wrongPattern(w.text); why != "" {
				return nil, w.col, why
			}
			rule = &pipeline.OwnerRule{Pattern: w.text}
			continue
		}
		m := ownerRE.FindStringSubmatch(w.text)
		if m == nil {
			return nil, w.col, fmt.Sprintf("%.80q is no owner: write @USER, @ORG/TEAM or an e-mail address", w.text)
		}
		// People have their name as a group of the policy has it; teams are found by small
		// letters.
		owner := m[1] + strings.ToLower(m[2]) + m[3]
		rule.Owners = append(rule.Owners, owner)
	}
	return rule, 0, ""
}

type word struct {
	text string
	col  int
}

// words splits a line at blanks that no backslash precedes, up to a word that begins
// with #.
func words(line string) []word {
	var out []word
	for i := 0; i < len(line); {
		if line[i] == ' ' || line[i] == '\t' {
			i++
			continue
		}
		if line[i] == '#' {
			break
		}
		from := i
		for i < len(line) && line[i] != ' ' && line[i] != '\t' {
			if line[i] == '\\' && len(out) == 0 {
				i++ // of a pattern it keeps what follows
			}
			i++
		}
		i = min(i, len(line))
		out = append(out, word{line[from:i], from + 1})
	}
	return out
}

// wrongPattern says why a pattern means nothing, "" when it means something.
func wrongPattern(p string) string {
	switch {
	case strings.HasPrefix(p, "!"):
		return "a pattern cannot be taken back with !; write the path below, with no owners"
	case strings.HasPrefix(p, `\#`):
		return `a pattern cannot begin with #, with \ before it or not`
	case strings.ContainsAny(p, "[]"):
		return "a pattern has no ranges of characters: write * or ? in their place"
	case strings.Contains(p, "***"):
		return "a pattern has two * in a row at most"
	case strings.Trim(p, "/") == "" || strings.Contains(p, "//"):
		return "no path is meant by this pattern"
	case strings.HasSuffix(p, `\`) && !strings.HasSuffix(p, `\\`):
		return `a pattern does not end in \`
	case strings.ContainsFunc(p, func(c rune) bool { return c < ' ' || c == 0x7f || c == '\uFFFD' }):
		return "a pattern has no control characters, and is UTF-8"
	}
	return ""
}
