package config

import (
	"fmt"
	"regexp"
	"strings"

	"cuelang.org/go/cue/errors"
	"cuelang.org/go/cue/scanner"
	"cuelang.org/go/cue/token"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// syntaxDiagnostics explains why a file is not CUE. Its authors mostly know YAML,
// HCL or shell; what they brought from there is recognised in the line.
func syntaxDiagnostics(name string, text []byte, err error) []pipeline.Diagnostic {
	var out []pipeline.Diagnostic
	lines := strings.Split(string(text), "\n")
	for _, e := range errors.Errors(err) {
		pos := position(e.Position())
		if pos.File == "" {
			pos.File = name
		}
		format, args := e.Msg()
		said := plain(errors.Newf(token.NoPos, format, args...).Error())
		if len(out) > 0 && (strings.Contains(said, "'EOF'") || pos.Line <= out[len(out)-1].Pos.Line) {
			continue // it follows from the one before
		}
		h := habit{lines: lines, pos: pos, said: said}
		out = append(out, h.explain(text))
		const most = 3 // after a few, the rest are consequences
		if len(out) == most || strings.HasPrefix(out[len(out)-1].Message, "this string") {
			break
		}
	}
	return out
}

// A habit is a place where CUE could not go on reading.
type habit struct {
	lines []string
	pos   pipeline.Position
	said  string // by CUE's parser
}

// line is a line of the file, counted from the one with the error.
func (h *habit) line(offset int) string {
	i := h.pos.Line - 1 + offset
	if i < 0 || i >= len(h.lines) {
		return ""
	}
	return strings.TrimRight(h.lines[i], "\r")
}

func (h *habit) around() (before, after string) {
	line := h.line(0)
	i := min(max(h.pos.Column-1, 0), len(line))
	return line[:i], line[i:]
}

var (
	yamlItem     = regexp.MustCompile(`^\s*-\s+\S`)
	hashComment  = regexp.MustCompile(`(^|[\s"}\])])#+(\s|$)`)
	assignment   = regexp.MustCompile(`(?:^|[{,])\s*([A-Za-z_][\w-]*|"[^"]+")\s*=\s*([^=~][^,}]*)`)
	hyphenLabel  = regexp.MustCompile(`(^|[\s{,:])([A-Za-z_]\w*(-\w+)+)\s*$`)
	endsInDef    = regexp.MustCompile(`([A-Za-z_]\w*\.)?#\w+\s*$`)
	labelAhead   = regexp.MustCompile(`^("[^"]*"|[\w-]+)\s*[?!]?\s*:`)
	bareWords    = regexp.MustCompile(`([A-Za-z_][\w-]*)\s*:\s*([A-Za-z_./$][\w./$-]*(\s+[\w./$-]+)*)\s*$`)
	wordsAhead   = regexp.MustCompile(`^[\w./$ -]+`)
	blockScalar  = regexp.MustCompile(`:\s*[|>][+-]?\s*$`)
	bareImport   = regexp.MustCompile(`^\s*import\s+[^"(\s]|^\s*[a-z0-9.-]+\.[a-z]+/[\w./-]+\s*$`)
	openedString = regexp.MustCompile(`\\\([^)"]*"?\s*[})\]]*\s*$`)
)

func (h *habit) explain(text []byte) pipeline.Diagnostic {
	d := diag(codeSyntax, h.pos, "this cannot be read as CUE")
	for _, look := range []func(*pipeline.Diagnostic) bool{h.yaml, h.comment, h.assigned, h.strings, h.braces(text), h.comma, h.imported, h.operand} {
		if look(&d) {
			return d
		}
	}
	d.Note = "it stops here: " + h.said
	return d
}

func (h *habit) yaml(d *pipeline.Diagnostic) bool {
	before, _ := h.around()
	first := strings.TrimSpace(h.lines[0])
	switch {
	case first == "---" || strings.HasPrefix(first, "%YAML"):
		d.Pos.Line, d.Pos.Column = 1, 1
		d.Message = "this is YAML, and compositions are CUE"
		d.Help = "begin with package ops, write structs as {name: value}, lists as [a, b], and strings in double quotes"
	case yamlItem.MatchString(h.line(0)) || yamlItem.MatchString(before):
		d.Pos.Column = strings.IndexByte(h.line(0), '-') + 1
		d.Message = `"- " begins an item of a list in YAML; this is CUE`
		d.Help = `a list is written ["a", "b"]; tasks are no list but have names: tasks: {NAME: shell.#Run & {…}}`
	case blockScalar.MatchString(h.line(0)):
		d.Message = "a block of text is written in another way in CUE"
		d.Help = `put the lines between """ and """: the first stands behind the colon, the second alone on its line`
	default:
		return false
	}
	return true
}

func (h *habit) comment(d *pipeline.Diagnostic) bool {
	for _, offset := range []int{0, -1} {
		line := h.line(offset)
		at := hashComment.FindStringIndex(line)
		if at == nil || strings.Count(line[:at[0]], `"`)%2 == 1 || offset == -1 && !strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		d.Pos.Line += offset
		d.Pos.Column = at[0] + strings.IndexByte(line[at[0]:], '#') + 1
		d.Message = "# begins no comment in CUE"
		d.Help = "comments begin with //"
		return true
	}
	return false
}

func (h *habit) assigned(d *pipeline.Diagnostic) bool {
	for _, offset := range []int{0, -1} {
		line := h.line(offset)
		m := assignment.FindStringSubmatchIndex(line)
		if m == nil || strings.HasPrefix(strings.TrimSpace(line), "let ") || strings.Count(line[:m[2]], `"`)%2 == 1 {
			continue
		}
		d.Pos.Line += offset
		d.Pos.Column = m[3] + strings.IndexByte(line[m[3]:], '=') + 1
		d.Message = "a value is given with a colon, not with ="
		d.Help = plain("write " + line[m[2]:m[3]] + ": " + strings.TrimSpace(line[m[4]:m[5]]))
		return true
	}
	return false
}

func (h *habit) strings(d *pipeline.Diagnostic) bool {
	switch {
	case strings.Contains(h.said, "escape"):
		d.Message = `\ begins an escape in a string, and this is none`
		d.Help = `write \\ for a backslash, or write the string as #"…"#, where \ means itself`
	case !strings.Contains(h.said, "not terminated"):
		return false
	case strings.Contains(h.line(0), `"""`):
		d.Message = "this string of several lines is not ended"
		d.Help = `its text begins on the line after """, and the """ that ends it stands alone on its line`
	case openedString.MatchString(h.line(0)):
		d.Message = `\( is not closed in this string`
		d.Help = `a value within a string is written \(tasks.NAME.outputs.NAME), with its closing parenthesis, and then the string's closing "`
	default:
		d.Message = "this string is not ended"
		d.Help = `add the closing "; a string of several lines is written between """ and """`
	}
	return true
}

// operators are words of other languages for those of CUE.
var operators = map[string]string{"and": "&&", "or": "||", "AND": "&&", "OR": "||", "not": "!", "eq": "==", "ne": "!="}

func (h *habit) comma(d *pipeline.Diagnostic) bool {
	before, after := h.around()
	if !strings.HasPrefix(h.said, "missing ','") {
		return false
	}
	word, _, _ := strings.Cut(after, " ")
	switch {
	case operators[word] != "":
		d.Message = fmt.Sprintf("%q is written %s in CUE", word, operators[word])
		d.Help = "write && for and, || for or, and ! for not"
	case strings.HasPrefix(after, "=") && !strings.HasPrefix(after, "=="):
		d.Message = "two values are compared with =="
		d.Help = `write NAME == "VALUE"`
	case strings.HasPrefix(after, "{") && endsInDef.MatchString(before):
		def := strings.TrimSpace(endsInDef.FindString(before))
		d.Message = "an & is missing between " + def + " and {"
		d.Help = "write " + def + " & {…}"
	case strings.HasPrefix(after, ":") && hyphenLabel.MatchString(before):
		name := hyphenLabel.FindStringSubmatch(before)[2]
		d.Pos.Column = strings.LastIndex(before, name) + 1
		d.Message = "a name with a hyphen is written in quotes"
		d.Help = fmt.Sprintf("write %q:", name)
	case labelAhead.MatchString(after):
		d.Message = "a comma is missing before this"
		d.Help = "put a comma between two fields, or write each on a line of its own"
	case bareWords.MatchString(before):
		m := bareWords.FindStringSubmatch(before)
		d.Pos.Column = strings.LastIndex(before, m[2]) + 1
		d.Message = "a string is written in quotes"
		d.Help = plain(fmt.Sprintf("write %s: %q", m[1], strings.TrimSpace(m[2]+" "+strings.TrimSpace(wordsAhead.FindString(after)))))
	case strings.HasSuffix(strings.TrimSpace(before), `"`) && len(strings.Fields(before)) > 0 && after != "":
		d.Message = "a colon or a comma is missing before this"
		d.Help = `a field is written NAME: VALUE; two of them have a comma between them, or a line each`
	default:
		d.Message = "a comma, a colon or an & is missing before this"
		d.Help = "a field is written NAME: VALUE, on a line of its own or with a comma behind it"
	}
	return true
}

func (h *habit) imported(d *pipeline.Diagnostic) bool {
	if !bareImport.MatchString(h.line(0)) {
		return false
	}
	path := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(h.line(0)), "import"))
	d.Pos.Column = strings.Index(h.line(0), path) + 1
	d.Message = "an import path is written in quotes"
	d.Help = plain(fmt.Sprintf("write import %q", path))
	return true
}

func (h *habit) operand(d *pipeline.Diagnostic) bool {
	switch before, after := h.around(); {
	case strings.HasPrefix(after, ",") && strings.Contains(h.said, "found ','"):
		d.Message = "there is a comma too many"
		d.Help = "remove it"
	case strings.Contains(h.said, "expected ')'") && strings.Contains(h.said, "found ':'"):
		d.Pos.Column = strings.LastIndexByte(before, '(') + 1
		d.Message = "fields are written in braces, not in parentheses"
		d.Help = "write {…}"
	case strings.Contains(h.said, "expected operand"):
		d.Message = "a value is missing before this"
		d.Help = "a field is written NAME: VALUE"
	default:
		return false
	}
	return true
}

// braces looks for what is opened and not closed, by the indentation of what closes.
func (h *habit) braces(text []byte) func(*pipeline.Diagnostic) bool {
	return func(d *pipeline.Diagnostic) bool {
		switch {
		case strings.Contains(h.said, "expected 'EOF'") && strings.Contains(h.said, "'}'"):
			d.Message = "there is a } too many"
			d.Help = "remove it, or look above for a { that is missing"
			return true
		case !strings.Contains(h.said, "found 'EOF'"):
			return false
		}
		open, ok := h.unclosed(text)
		if !ok {
			return false
		}
		d.Pos.Line, d.Pos.Column = open.line, open.column
		closing := map[token.Token]string{token.LBRACE: "}", token.LBRACK: "]", token.LPAREN: ")"}[open.tok]
		d.Message = fmt.Sprintf("this %s is never closed", open.tok)
		d.Help = "add the " + closing + " that belongs to it"
		return true
	}
}

type bracket struct {
	tok          token.Token
	line, column int
}

func (h *habit) unclosed(text []byte) (bracket, bool) {
	f := token.NewFile("", 0, len(text))
	var s scanner.Scanner
	s.Init(f, text, func(token.Pos, string, []any) {}, 0)
	var stack []bracket
	for {
		pos, tok, _ := s.Scan()
		switch tok {
		case token.EOF:
			if len(stack) == 0 {
				return bracket{}, false
			}
			return stack[len(stack)-1], true
		case token.LBRACE, token.LBRACK, token.LPAREN:
			stack = append(stack, bracket{tok, pos.Line(), pos.Column()})
		case token.RBRACE, token.RBRACK, token.RPAREN:
			if len(stack) == 0 {
				return bracket{}, false
			}
			top := stack[len(stack)-1]
			if h.opensLine(pos) && h.indent(pos.Line()) < h.indent(top.line) {
				return top, true
			}
			stack = stack[:len(stack)-1]
		}
	}
}

func (h *habit) indent(line int) int {
	s := h.lines[line-1]
	return len(s) - len(strings.TrimLeft(s, " \t"))
}

func (h *habit) opensLine(pos token.Pos) bool { return h.indent(pos.Line()) == pos.Column()-1 }
