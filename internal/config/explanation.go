package config

import (
	"embed"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"sync"
)

// An Explanation says what the code of a diagnostic means, for "reconciler explain".
type Explanation struct {
	Code  string
	Title string
	// Text is one paragraph of lines for a terminal, or "".
	Text string
	// Wrong gives a diagnostic of the code, and Right is the same without any: files
	// on top of those of "reconciler init". Both are empty for what no text shows.
	Wrong, Right []ExampleFile
}

// ExampleFile is a file of an example. One without text takes a file away.
type ExampleFile struct {
	// Name from the root of the repository.
	Name string
	Text string
}

// exampleFile is where the composition of an example is. An example leaves out
// what it begins with.
const exampleFile = "compositions/example/example.cue"

//go:embed codes
var explanationFiles embed.FS

// Explain returns what a code such as RC0107 means; ok is false for any other word.
func Explain(code string) (e Explanation, ok bool) {
	for _, e := range Explanations() {
		if strings.EqualFold(e.Code, code) {
			return e, true
		}
	}
	return Explanation{}, false
}

// Explanations returns what every code means, in the order of the codes. The result
// is shared and must only be read.
func Explanations() []Explanation { return explanations() }

var explanations = sync.OnceValue(func() []Explanation {
	byCode := map[string]Explanation{}
	_ = fs.WalkDir(explanationFiles, "codes", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := explanationFiles.ReadFile(p)
		if err != nil {
			return err
		}
		for _, part := range strings.Split("\n"+string(text), "\n== ")[1:] {
			e := parseExplanation(part)
			byCode[e.Code] = e
		}
		return nil
	})
	out := make([]Explanation, 0, len(byCode))
	for _, code := range sortedKeys(byCode) {
		out = append(out, byCode[code])
	}
	return out
})

var exampleHead = regexp.MustCompile(`^-- (wrong|right)(?: (.+))? --$`)

// parseExplanation reads one entry: a line with code and title, text, and files.
func parseExplanation(s string) Explanation {
	var e Explanation
	head, rest, _ := strings.Cut(s, "\n")
	e.Code, e.Title, _ = strings.Cut(head, " ")
	var text strings.Builder
	var into *[]ExampleFile
	for _, line := range strings.Split(strings.TrimRight(rest, "\n"), "\n") {
		m := exampleHead.FindStringSubmatch(line)
		switch {
		case m != nil:
			into = &e.Wrong
			if m[1] == "right" {
				into = &e.Right
			}
			name := m[2]
			if name == "" {
				name = exampleFile
			}
			*into = append(*into, ExampleFile{Name: name})
		case into == nil:
			text.WriteString(line + "\n")
		default:
			f := &(*into)[len(*into)-1]
			f.Text += line + "\n"
		}
	}
	e.Text = strings.TrimSpace(text.String())
	for _, files := range [][]ExampleFile{e.Wrong, e.Right} {
		for i := range files {
			files[i].complete()
		}
	}
	return e
}

var usedPlugin = regexp.MustCompile(`\b(git|shell|maestro)\.#`)

// complete writes what every composition begins with.
func (f *ExampleFile) complete() {
	if f.Name != exampleFile || f.Text == "" || strings.HasPrefix(f.Text, "package ") {
		return
	}
	head := "package ops\n\n"
	seen := map[string]bool{}
	for _, m := range usedPlugin.FindAllStringSubmatch(f.Text, -1) {
		importPath := pluginsPath + m[1]
		if m[1] == "maestro" {
			importPath = schemaPath
		}
		seen[importPath] = true
	}
	switch paths := sortedKeys(seen); len(paths) {
	case 0:
	case 1:
		head += fmt.Sprintf("import %q\n\n", paths[0])
	default:
		head += "import (\n"
		for _, p := range paths {
			head += fmt.Sprintf("\t%q\n", p)
		}
		head += ")\n\n"
	}
	f.Text = head + f.Text
}
