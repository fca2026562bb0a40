package plan

import (
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// anyMatch matches with ** across slashes; a pattern that starts with ! takes
// back what an earlier one matched.
func anyMatch(patterns []string, s string) bool {
	matched := false
	for _, p := range patterns {
		if rest, not := strings.CutPrefix(p, "!"); not {
			if ok, _ := doublestar.Match(rest, s); ok {
				matched = false
			}
		} else if ok, _ := doublestar.Match(p, s); ok {
			matched = true
		}
	}
	return matched
}

func anyPath(patterns, paths []string) bool {
	return slices.ContainsFunc(paths, func(p string) bool { return anyMatch(patterns, p) })
}
