package config

import (
	"fmt"
	"strings"

	"cuelang.org/go/cue/errors"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// at is the place to blame: where the author wrote the path, else the last of
// CUE's positions in a file of the repository, else any.
func (x *explainer) at(path []string, e errors.Error) pipeline.Position {
	if x.idx != nil && len(path) > 0 {
		if pos, exact := x.idx.value(path...); exact {
			return pos
		}
	}
	var best pipeline.Position
	if e != nil {
		for _, p := range append(e.InputPositions(), e.Position()) {
			pos := position(p)
			if pos.File == "" {
				continue
			}
			if best.File == "" || rank(pos) > rank(best) || rank(pos) == rank(best) && after(pos, best) {
				best = pos
			}
		}
	}
	if rank(best) < 2 && x.idx != nil && len(path) > 0 {
		if pos, _ := x.idx.label(path...); pos.File != "" {
			return pos
		}
	}
	return best
}

// rank prefers the author's own files to plugins, and those to what is embedded.
func rank(p pipeline.Position) int {
	switch {
	case !isAuthor(p.File):
		return 0
	case strings.HasPrefix(p.File, "plugins/"):
		return 1
	}
	return 2
}

func after(a, b pipeline.Position) bool {
	if a.File != b.File {
		return a.File > b.File
	}
	return a.Line > b.Line || a.Line == b.Line && a.Column > b.Column
}

// subject names what a path leads to, in the reader's terms.
func (x *explainer) subject(p []string) string {
	kind := ""
	if len(p) > 0 {
		kind = p[0]
	}
	switch {
	case kind == "compositions" && len(p) >= 4 && p[2] == "tasks":
		task := fmt.Sprintf("task %q", p[3])
		switch {
		case len(p) == 4:
			return task
		case p[4] == "fields" && len(p) > 5:
			return fmt.Sprintf("%s: field %q", task, dotted(p[5:]))
		}
		return fmt.Sprintf("%s: %s", task, dotted(p[4:]))
	case kind == "compositions" && len(p) == 2:
		return fmt.Sprintf("composition %q", p[1])
	case kind == "compositions" && len(p) > 2:
		return fmt.Sprintf("composition %q: %s", p[1], dotted(p[2:]))
	case (kind == "pools" || kind == "secrets" || kind == "repositories") && len(p) >= 2:
		s := fmt.Sprintf("%s %q", singular(kind), p[1])
		if len(p) > 2 {
			s += ": " + dotted(p[2:])
		}
		return s
	case len(p) == 0:
		return "this"
	}
	return dotted(p)
}

func dotted(p []string) string {
	var b strings.Builder
	for i, e := range p {
		if e != "" && e[0] >= '0' && e[0] <= '9' {
			b.WriteString("[" + e + "]")
			continue
		}
		if i > 0 {
			b.WriteByte('.')
		}
		b.WriteString(e)
	}
	return plain(b.String())
}
