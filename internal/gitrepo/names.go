package gitrepo

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// maxNameBytes is what file systems allow for one name.
const maxNameBytes = 255

// suspicious says why a name in a tree is refused, "" for an ordinary one. The
// refused ones mean something else, or nothing, on some file system: an agent
// that unpacks the tree there would write outside of it or into its .git.
func suspicious(name string) string {
	switch {
	case name == "":
		return "a name is empty"
	case name == "." || name == "..":
		return "it leads out of its directory"
	case len(name) > maxNameBytes:
		return "the name is longer than 255 bytes"
	case !utf8.ValidString(name):
		return "the name is not UTF-8"
	case strings.ContainsAny(name, `/\`):
		return "the name holds a path separator"
	case isDotGit(name):
		return "the name stands for a Git folder"
	}
	for _, c := range name {
		if unicode.IsControl(c) || unicode.In(c, unicode.Cf, unicode.Zl, unicode.Zp) {
			return "the name holds an invisible or control character"
		}
	}
	return ""
}

// isDotGit covers the ways to write .git that Windows takes for the same: any
// case, trailing dots and spaces, a stream after a colon, the short name.
func isDotGit(name string) bool {
	s, _, _ := strings.Cut(name, ":")
	s = strings.ToLower(strings.TrimRight(s, ". "))
	if s == ".git" {
		return true
	}
	short, ok := strings.CutPrefix(s, "git~")
	return ok && short != "" && strings.Trim(short, "0123456789") == ""
}

// foldKey maps names to one key that a file system may take for the same name:
// equal but for case, or for how their accents are composed.
func foldKey(name string) string {
	ascii := true
	for i := range len(name) {
		if name[i] >= utf8.RuneSelf {
			ascii = false
			break
		}
	}
	if ascii {
		return strings.ToLower(name)
	}
	return norm.NFC.String(cases.Fold().String(norm.NFC.String(name)))
}
