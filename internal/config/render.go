package config

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// RenderDiagnostics writes diagnostics for people: what is wrong, the line of the
// source with a mark under the place, where the rule comes from and what to write
// instead. source returns a file's text, nil when it is not at hand. color adds
// terminal colours. Text of the repository is made safe for a terminal.
func RenderDiagnostics(w io.Writer, ds []pipeline.Diagnostic, source func(file string) []byte, color bool) error {
	p := painter{on: color}
	for i, d := range ds {
		var b strings.Builder
		if i > 0 {
			b.WriteByte('\n')
		}
		p.one(&b, d, source)
		if _, err := io.WriteString(w, b.String()); err != nil {
			return err
		}
	}
	return nil
}

type painter struct{ on bool }

const (
	red    = "\x1b[1;31m"
	yellow = "\x1b[1;33m"
	blue   = "\x1b[1;34m"
	green  = "\x1b[1;32m"
	bold   = "\x1b[1m"
)

func (p painter) paint(color, s string) string {
	if !p.on || s == "" {
		return s
	}
	return color + s + "\x1b[0m"
}

func (p painter) one(b *strings.Builder, d pipeline.Diagnostic, source func(string) []byte) {
	level := red
	if d.Severity == pipeline.SeverityWarning {
		level = yellow
	}
	fmt.Fprintf(b, "%s%s\n", p.paint(level, fmt.Sprintf("%s[%s]", d.Severity, d.Code)), p.paint(bold, ": "+visible(d.Message)))
	if d.Pos.File != "" {
		fmt.Fprintf(b, "  %s %s\n", p.paint(blue, "-->"), visible(d.Pos.String()))
		p.excerpt(b, d.Pos, source, level)
	}
	if d.Note != "" {
		fmt.Fprintf(b, "%s %s\n", p.paint(blue, "note:"), visible(d.Note))
	}
	if d.Help != "" {
		fmt.Fprintf(b, "%s %s\n", p.paint(green, "help:"), visible(d.Help))
	}
}

func (p painter) excerpt(b *strings.Builder, pos pipeline.Position, source func(string) []byte, level string) {
	if pos.Line == 0 || source == nil {
		return
	}
	line, ok := lineOf(source(pos.File), pos.Line)
	if !ok {
		return
	}
	number := fmt.Sprint(pos.Line)
	margin := strings.Repeat(" ", len(number))
	start := min(max(pos.Column-1, 0), len(line))
	before, marked := expand(line[:start]), expand(line[start:start+tokenLength(line[start:])])
	rest := expand(line[start:])
	const most = 160
	if n := utf8.RuneCountInString(before); n > most/2 {
		r := []rune(before)
		before = "…" + string(r[n-most/2:])
	}
	if r := []rune(rest); len(r) > most {
		rest = string(r[:most]) + "…"
	}
	bar := p.paint(blue, "|")
	carets := strings.Repeat("^", max(1, min(utf8.RuneCountInString(marked), most)))
	fmt.Fprintf(b, "%s %s\n", margin, bar)
	fmt.Fprintf(b, "%s %s %s%s\n", p.paint(blue, number), bar, before, rest)
	fmt.Fprintf(b, "%s %s %s%s\n", margin, bar, strings.Repeat(" ", utf8.RuneCountInString(before)), p.paint(level, carets))
}

func lineOf(text []byte, n int) (string, bool) {
	lines := strings.Split(string(text), "\n")
	if n < 1 || n > len(lines) || text == nil {
		return "", false
	}
	return strings.TrimSuffix(lines[n-1], "\r"), true
}

// tokenLength is how many bytes the mark covers: a quoted text, or a word.
func tokenLength(s string) int {
	if s == "" {
		return 0
	}
	if s[0] == '"' || s[0] == '\'' {
		if end := strings.IndexByte(s[1:], s[0]); end >= 0 {
			return end + 2
		}
		return len(s)
	}
	end := strings.IndexFunc(s, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("_#$-@", r)
	})
	switch end {
	case -1:
		return len(s)
	case 0:
		_, size := utf8.DecodeRuneInString(s)
		return size
	}
	return end
}

func expand(s string) string { return visible(strings.ReplaceAll(s, "\t", "    ")) }

// visible replaces what would move a terminal's cursor or reorder its text.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == ' ' {
			return r
		}
		return '\uFFFD'
	}, s)
}
