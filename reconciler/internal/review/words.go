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

// Request is what somebody asks for.
type Request struct {
	Verb Verb
	// Run says what to run, for VerbRun alone.
	Run *RunRequest
	// Of names the run that the other verbs are about, and Task the task of it, "" for
	// the run as a whole.
	Of   RunName
	Task pipeline.TaskName
	// To is what VerbResolve says that the task came to: Success, Failure, or Ready to
	// have it started once more.
	To pipeline.State
	// Reason is the requester's own words, "" for none.
	Reason string
}

// Verb is what a request asks for.
type Verb string

const (
	// VerbRun starts a run of a composition.
	VerbRun Verb = "run"
	// VerbCancel ends a run, or one task of it.
	VerbCancel Verb = "cancel"
	// VerbCancelTree ends a run and all that it led to: what it called, what was called
	// because it failed, what followed it, and so on.
	VerbCancelTree Verb = "cancel-tree"
	// VerbRetry starts a run that goes on from one that has ended badly.
	VerbRetry Verb = "retry"
	// VerbResolve says how a task in doubt ended.
	VerbResolve Verb = "resolve"
)

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

// String names the run as people do.
func (n RunName) String() string { return fmt.Sprintf("%s#%d", n.Composition, n.Number) }

// verbs are what a request may begin with, and how it goes on.
const verbs = "run COMPOSITION [NAME=VALUE …], cancel RUN or RUN/TASK, cancel-tree RUN, retry RUN, " +
	"or resolve RUN/TASK success|failure|rerun, where RUN is COMPOSITION#N"

// ParseRequest reads the message of a request: "run COMPOSITION NAME=VALUE …", where
// each line that follows may be one more NAME=VALUE, its value up to the end of the
// line; or one of the other verbs with the name of a run, COMPOSITION#N, or of a task,
// COMPOSITION#N/TASK, and the requester's own words behind it.
func ParseRequest(message string) (Request, error) {
	first, more, _ := strings.Cut(strings.TrimSpace(message), "\n")
	words := strings.Fields(first)
	if len(words) < 2 {
		return Request{}, fmt.Errorf("want: %s", verbs)
	}
	r := Request{Verb: Verb(words[0])}
	switch r.Verb {
	case VerbRun:
		return parseRun(words[1:], more)
	case VerbCancel, VerbCancelTree, VerbRetry, VerbResolve:
	default:
		return Request{}, fmt.Errorf("%.40q is not known; want %s", words[0], verbs)
	}
	run, task, hasTask := strings.Cut(words[1], "/")
	rest := words[2:]
	if r.Verb == VerbResolve && !hasTask && len(rest) > 0 { // the task as a word of its own
		task, hasTask, rest = rest[0], true, rest[1:]
	}
	m := runNameRE.FindStringSubmatch(run)
	if m == nil {
		return Request{}, fmt.Errorf("%.80q is not a run; want COMPOSITION#N", run)
	}
	n, err := strconv.Atoi(m[2])
	if err != nil {
		return Request{}, fmt.Errorf("%.80q is not a run: %w", run, err)
	}
	r.Of, r.Task = RunName{pipeline.CompositionName(m[1]), n}, pipeline.TaskName(task)
	switch {
	case hasTask && !pipeline.ValidName(task):
		return Request{}, fmt.Errorf("%.80q is not the name of a task", task)
	case hasTask && (r.Verb == VerbRetry || r.Verb == VerbCancelTree):
		return Request{}, fmt.Errorf("%s is about a whole run; want: %s %s", r.Verb, r.Verb, run)
	case r.Verb == VerbResolve:
		if len(rest) == 0 || !hasTask || resolutions[rest[0]] == "" {
			return Request{}, fmt.Errorf("want: resolve %s/TASK success, failure or rerun", run)
		}
		r.To, rest = resolutions[rest[0]], rest[1:]
	}
	r.Reason = plain(strings.Join(rest, " "), mostComment)
	return r, nil
}

// resolutions are the words of VerbResolve.
var resolutions = map[string]pipeline.State{
	"success": pipeline.Success, "failure": pipeline.Failure, "rerun": pipeline.Ready,
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
	return Request{Verb: VerbRun, Run: r}, nil
}
