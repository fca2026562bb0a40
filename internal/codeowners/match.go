package codeowners

import (
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Owned are the rules of a file, ready to be asked. It only reads, and is safe for
// concurrent use.
type Owned struct {
	rules    []pipeline.OwnerRule
	patterns [][]*segment
}

// New makes rules ready. It keeps them.
func New(rules []pipeline.OwnerRule) *Owned {
	o := &Owned{rules: rules, patterns: make([][]*segment, len(rules))}
	for i := range rules {
		o.patterns[i] = compile(rules[i].Pattern)
	}
	return o
}

// Of returns the owners of a path from the root, none when nobody owns it. The last
// rule that matches says it alone.
func (o *Owned) Of(path string) []string {
	parts := strings.Split(path, "/")
	for i := len(o.patterns) - 1; i >= 0; i-- {
		if matches(o.patterns[i], parts, (*segment).isMany, (*segment).is) {
			return o.rules[i].Owners
		}
	}
	return nil
}

// segment is a part of a pattern between slashes. many: any number of parts of a path,
// none too.
type segment struct {
	many    bool
	literal string
	glob    []glyph // nil when it is literal
}

// glyph is a character of a segment, or a wildcard: star for any number of them, any
// for one.
type glyph struct {
	star, any bool
	c         rune
}

func (s *segment) isMany() bool { return s.many }

func (s *segment) is(part string) bool {
	if s.glob == nil {
		return s.literal == part
	}
	return matches(s.glob, []rune(part), func(g glyph) bool { return g.star }, func(g glyph, c rune) bool { return g.any || g.c == c })
}

// compile reads a pattern. One with a slash at the beginning or in the middle is meant
// from the root, any other at any depth. A slash at the end means what is below a
// folder, /* at the end what is in it and no deeper, and all else a file or a folder
// with what is below it.
func compile(pattern string) []*segment {
	rest, rooted := strings.CutPrefix(pattern, "/")
	rest, below := strings.CutSuffix(rest, "/")
	parts := strings.Split(rest, "/")
	many := &segment{many: true}
	var out []*segment
	if !rooted && len(parts) == 1 {
		out = append(out, many)
	}
	for _, p := range parts {
		if p == "**" {
			out = append(out, many)
			continue
		}
		out = append(out, compileSegment(p))
	}
	switch last := parts[len(parts)-1]; {
	case below, last == "**":
		return append(out, compileSegment("*"), many)
	case last == "*":
		return out
	}
	return append(out, many)
}

func compileSegment(p string) *segment {
	var glob []glyph
	var literal strings.Builder
	wild, escaped := false, false
	for _, c := range p {
		g := glyph{c: c}
		switch {
		case escaped:
			escaped = false
		case c == '\\':
			escaped = true
			continue
		case c == '*':
			g, wild = glyph{star: true}, true
		case c == '?':
			g, wild = glyph{any: true}, true
		}
		literal.WriteRune(c)
		glob = append(glob, g)
	}
	if !wild {
		return &segment{literal: literal.String()}
	}
	return &segment{glob: glob}
}

// matches compares a pattern with what it is to match as a whole: star reports the
// elements that match any number of others, is what the rest match. It goes back to the
// last star alone, so that it takes no longer than the product of both lengths.
func matches[P, S any](pattern []P, s []S, star func(P) bool, is func(P, S) bool) bool {
	p, i := 0, 0
	lastStar, resume := -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && star(pattern[p]):
			lastStar, resume = p, i
			p++
		case p < len(pattern) && is(pattern[p], s[i]):
			p, i = p+1, i+1
		case lastStar >= 0:
			resume++
			p, i = lastStar+1, resume
		default:
			return false
		}
	}
	for p < len(pattern) && star(pattern[p]) {
		p++
	}
	return p == len(pattern)
}
