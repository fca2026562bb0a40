package review

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// echoRE finds what may be the beginning of a commit's id. Seven digits are what people
// see and copy; whoever could make another commit that begins so would have to do it
// between a look and a click.
var echoRE = regexp.MustCompile(`\b[0-9a-fA-F]{7,40}\b`)

// echoes reports whether the text of a review names the commit that it is of. The text is
// never longer than what is kept of it.
func (in *Input) echoes(r *Review) bool {
	return slices.ContainsFunc(echoRE.FindAllString(r.Comment, -1), func(word string) bool {
		word = strings.ToLower(word)
		return strings.HasPrefix(string(in.Head), word) || in.Commit != "" && strings.HasPrefix(string(in.Commit), word)
	})
}

// named is the commit that people are asked to name.
func (in *Input) named() pipeline.CommitID { return cmp.Or(in.Commit, in.Head) }
