package review

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// mostComment bounds a comment, in characters.
const mostComment = 400

// userRE is what may follow as a user in a ref. It has no slash, and nothing that a
// terminal, a page or a list of names could take for something else.
var userRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$`)

// ValidUser reports whether s may name a person in a ref.
func ValidUser(s string) bool { return userRE.MatchString(s) }

// OfReview reads the name of a ref that holds a review: refs/reviews/HEAD/USER.
func OfReview(ref pipeline.Ref) (head pipeline.CommitID, user string, ok bool) {
	rest, ok := strings.CutPrefix(string(ref), "refs/reviews/")
	id, user, found := strings.Cut(rest, "/")
	return pipeline.CommitID(id), user, ok && found && ValidUser(user)
}

// OfRequest reads the name of a ref that holds a request:
// refs/maestro/requests/USER/ANYTHING.
func OfRequest(ref pipeline.Ref) (user string, ok bool) {
	rest, ok := strings.CutPrefix(string(ref), "refs/maestro/requests/")
	user, _, found := strings.Cut(rest, "/")
	return user, ok && found && ValidUser(user)
}

// Parse reads the message of a review. Its first word is approve or refuse; the
// rest of it is a comment, but for a line "plan: DIGEST", which names the plan that
// was looked at. The empty message approves: a ref may point at the head itself.
func Parse(message string) (r pipeline.Review, plan pipeline.Digest, err error) {
	text := strings.TrimSpace(message)
	if text == "" {
		r.Approve = true
		return r, "", nil
	}
	verb, rest := text, ""
	if at := strings.IndexFunc(text, func(c rune) bool { return unicode.IsSpace(c) || c == ':' || c == ',' }); at >= 0 {
		verb, rest = text[:at], strings.TrimLeft(text[at:], ":, \t\r\n")
	}
	switch strings.ToLower(verb) {
	case "approve":
		r.Approve = true
	case "refuse":
	default:
		return r, "", fmt.Errorf("its message begins with %.40q; begin it with approve or refuse", verb)
	}
	var comment []string
	for line := range strings.Lines(rest) {
		line = strings.TrimSpace(line)
		if digest, ok := strings.CutPrefix(line, "plan: "); ok {
			plan = pipeline.Digest(strings.TrimSpace(digest))
		} else if line != "" {
			comment = append(comment, line)
		}
	}
	r.Comment = plain(strings.Join(comment, " "), mostComment)
	return r, plan, nil
}

// plain makes text from outside one line of at most most characters.
func plain(s string, most int) string {
	var out []rune
	for _, c := range strings.ToValidUTF8(s, "\uFFFD") {
		switch {
		case unicode.IsSpace(c):
			c = ' '
		case unicode.IsControl(c) || unicode.In(c, unicode.Cf, unicode.Co):
			continue
		}
		if len(out) == most {
			return string(out[:most-1]) + "…"
		}
		out = append(out, c)
	}
	return string(out)
}

// Request is what somebody asks for. Exactly one of Run and Cancel is set.
type Request struct {
	Run *RunRequest
	// Cancel names a run, with its number.
	Cancel *RunName
	Reason string
}

// RunRequest asks for a run of a composition. Params are text; what it means is for
// the composition to say.
type RunRequest struct {
	Composition pipeline.CompositionName
	Params      []Param
}

// Param is one that a request gives.
type Param struct{ Name, Value string }

// RunName names a run as people do.
type RunName struct {
	Composition pipeline.CompositionName
	Number      int
}

// mostParams bounds a request.
const mostParams = 100

var (
	runNameRE = regexp.MustCompile(`^([a-z][a-z0-9-]{0,62})#([1-9][0-9]{0,8})$`)
	paramRE   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,62}$`)
)

// ParseRequest reads the message of a request: "run COMPOSITION NAME=VALUE …", where
// each line that follows may be one more NAME=VALUE, its value up to the end of the
// line; or "cancel COMPOSITION#N REASON…".
func ParseRequest(message string) (Request, error) {
	first, more, _ := strings.Cut(strings.TrimSpace(message), "\n")
	words := strings.Fields(first)
	if len(words) < 2 {
		return Request{}, fmt.Errorf("want: run COMPOSITION [NAME=VALUE …], or cancel COMPOSITION#N")
	}
	switch words[0] {
	case "run":
		return parseRun(words[1:], more)
	case "cancel":
		m := runNameRE.FindStringSubmatch(words[1])
		if m == nil {
			return Request{}, fmt.Errorf("%.80q is not a run; want COMPOSITION#N", words[1])
		}
		n, err := strconv.Atoi(m[2])
		if err != nil {
			return Request{}, fmt.Errorf("%.80q is not a run: %w", words[1], err)
		}
		return Request{
			Cancel: &RunName{pipeline.CompositionName(m[1]), n}, Reason: plain(strings.Join(words[2:], " "), mostComment),
		}, nil
	}
	return Request{}, fmt.Errorf("%.40q is not known; want run or cancel", words[0])
}

func parseRun(words []string, more string) (Request, error) {
	r := &RunRequest{Composition: pipeline.CompositionName(words[0])}
	if !pipeline.ValidName(words[0]) {
		return Request{}, fmt.Errorf("%.80q is not the name of a composition", words[0])
	}
	given := words[1:]
	for line := range strings.Lines(more) {
		if line = strings.TrimSpace(line); line != "" {
			given = append(given, line)
		}
	}
	seen := map[string]bool{}
	for _, g := range given {
		name, value, ok := strings.Cut(g, "=")
		switch {
		case !ok || !paramRE.MatchString(name):
			return Request{}, fmt.Errorf("%.80q is not NAME=VALUE", g)
		case seen[name]:
			return Request{}, fmt.Errorf("param %s is given twice", name)
		case len(r.Params) == mostParams:
			return Request{}, fmt.Errorf("there are more than %d params", mostParams)
		}
		seen[name] = true
		r.Params = append(r.Params, Param{name, value})
	}
	return Request{Run: r}, nil
}
