package pipeline

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Position is a place in a file of the repository. Line and Column count from 1;
// zero means that only the file is known.
type Position struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
}

func (p Position) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Severity of a diagnostic.
type Severity string

const (
	SeverityError   Severity = "error"
	SeverityWarning Severity = "warning"
)

// Diagnostic is one thing wrong with a commit's configuration, in words for its
// author: what, where, why and the next step.
type Diagnostic struct {
	Severity Severity `json:"severity"`
	// Code is stable and names the kind of mistake, such as RC0107.
	Code string `json:"code"`
	// Pos is in the author's file whenever there is one to blame.
	Pos     Position `json:"pos"`
	Message string   `json:"message"`
	// Note says where the rule comes from; Help what to write instead.
	Note string `json:"note,omitempty"`
	Help string `json:"help,omitempty"`
	// Unit is the directory that was evaluated and is blamed; "" blames the commit.
	Unit string `json:"unit,omitempty"`
	// Follows: it is there because of another mistake, and may go away with that one.
	Follows bool `json:"follows,omitempty"`
}

func (d Diagnostic) String() string {
	s := fmt.Sprintf("%s[%s]: %s", d.Severity, d.Code, d.Message)
	if d.Pos.File != "" {
		s = d.Pos.String() + ": " + s
	}
	return s
}

// SortDiagnostics orders errors before warnings and causes before what follows from
// them, then by file and place.
func SortDiagnostics(ds []Diagnostic) {
	slices.SortStableFunc(ds, func(a, b Diagnostic) int {
		return cmp.Or(
			cmp.Compare(a.Severity, b.Severity),
			compareBool(a.Follows, b.Follows),
			strings.Compare(a.Pos.File, b.Pos.File),
			cmp.Compare(a.Pos.Line, b.Pos.Line),
			cmp.Compare(a.Pos.Column, b.Pos.Column),
			strings.Compare(a.Message, b.Message),
		)
	})
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// HasErrors reports whether any diagnostic is an error.
func HasErrors(ds []Diagnostic) bool {
	return slices.ContainsFunc(ds, func(d Diagnostic) bool { return d.Severity == SeverityError })
}
