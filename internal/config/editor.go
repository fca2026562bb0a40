package config

import (
	"unicode/utf16"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// EditorDiagnostic is a diagnostic with the range of text that it is about, for
// editors.
type EditorDiagnostic struct {
	pipeline.Diagnostic
	// Range is nil when no line is blamed.
	Range *Range `json:"range,omitempty"`
}

// Range is a piece of a line as the Language Server Protocol counts (its version
// 3.17): lines and characters from zero, characters in UTF-16 code units, the end
// behind the last one.
type Range struct {
	Start EditorPosition `json:"start"`
	End   EditorPosition `json:"end"`
}

// EditorPosition is a place in a file, both parts counted from zero.
type EditorPosition struct {
	Line      int `json:"line"`
	Character int `json:"character"`
}

// ForEditors adds the ranges to diagnostics: what RenderDiagnostics puts a mark under.
// source is as there; of a file that is not at hand, the range has no length.
func ForEditors(ds []pipeline.Diagnostic, source func(file string) []byte) []EditorDiagnostic {
	out := make([]EditorDiagnostic, len(ds))
	for i, d := range ds {
		out[i].Diagnostic = d
		if d.Pos.Line > 0 {
			out[i].Range = rangeOf(d.Pos, source(d.Pos.File))
		}
	}
	return out
}

func rangeOf(pos pipeline.Position, text []byte) *Range {
	line, _ := lineOf(text, pos.Line)
	start := min(max(pos.Column-1, 0), len(line))
	end := start + tokenLength(line[start:])
	at := func(bytes int) EditorPosition {
		return EditorPosition{Line: pos.Line - 1, Character: len(utf16.Encode([]rune(line[:bytes])))}
	}
	return &Range{Start: at(start), End: at(end)}
}
