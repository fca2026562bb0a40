// Package plan decides what a commit causes: which runs start, which compositions
// do not and by which clause, and what the forge is to be told. It is pure. The
// runs that are made are those of the plan, because the same function answers both
// the question and the deed.
package plan

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Push is a branch that moved, or was made.
type Push struct {
	Event pipeline.Event
	// Paths changed between Base and Head. PathsUnknown: they could not be listed
	// (too many, or the base is gone), so that every paths clause is met.
	Paths        []string
	PathsUnknown bool
}

// Plan is what an event causes.
type Plan struct {
	Runs     []Run
	Verdicts []pipeline.Verdict
}

// Run is a run to be made, from the composition of that name.
type Run struct {
	Composition *pipeline.Composition
	Key         pipeline.RunKey
	Event       pipeline.Event
	Params      json.RawMessage
	Why         string
}

// OfPush plans a moved branch: one verdict for each composition, and a run for
// each that starts. cfg is the configuration in force for the event; compositions
// that could not be evaluated get the verdict "rejected". Order is by name.
func OfPush(cfg *pipeline.Config, p Push) Plan {
	var out Plan
	for i := range cfg.Compositions {
		c := &cfg.Compositions[i]
		v := pipeline.Verdict{Commit: p.Event.Head, Ref: p.Event.Ref, Composition: c.Name, Outcome: pipeline.VerdictSkipped}
		trigger, sentence := match(c, p)
		if trigger != nil {
			params, err := Params(c, trigger.Params.Value)
			if err != nil {
				v.Outcome, sentence = pipeline.VerdictRejected, err.Error()
			} else {
				v.Outcome = pipeline.VerdictRun
				out.Runs = append(out.Runs, Run{c, Key(p.Event, c, params, 0), p.Event, params, sentence})
			}
		}
		v.Sentence = sentence
		out.Verdicts = append(out.Verdicts, v)
	}
	for _, d := range blamed(cfg) {
		out.Verdicts = append(out.Verdicts, pipeline.Verdict{
			Commit: p.Event.Head, Ref: p.Event.Ref, Composition: blame(d),
			Outcome: pipeline.VerdictRejected, Sentence: d.Pos.String() + ": " + d.Message,
		})
	}
	return out
}

// blamed returns the first error of each unit that has one.
func blamed(cfg *pipeline.Config) []pipeline.Diagnostic {
	var out []pipeline.Diagnostic
	seen := map[string]bool{}
	for _, d := range cfg.Diagnostics {
		if d.Severity == pipeline.SeverityError && !seen[d.Unit] {
			seen[d.Unit] = true
			out = append(out, d)
		}
	}
	return out
}

// blame names what a diagnostic without a composition is about.
func blame(d pipeline.Diagnostic) pipeline.CompositionName {
	if d.Unit == "" {
		return "repository"
	}
	return pipeline.CompositionName(d.Unit)
}

// match returns the trigger of c that the push fires, and a sentence; without one
// the sentence names the clause that came nearest to being met.
func match(c *pipeline.Composition, p Push) (*pipeline.Trigger, string) {
	if c.Suspend {
		return nil, "suspended"
	}
	branch := p.Event.Ref.Branch()
	nearest, near := "no push trigger", 0
	miss := func(how int, format string, args ...any) {
		if how > near {
			near, nearest = how, fmt.Sprintf(format, args...)
		}
	}
	for i := range c.Triggers {
		t := &c.Triggers[i]
		if t.Push == nil {
			continue
		}
		switch {
		case t.Push.Repo != "" && t.Push.Repo != p.Event.Repo:
			miss(1, "watches repository %s", t.Push.Repo)
		case !anyMatch(t.Push.Branches, branch):
			miss(2, "branch %s is not %s", branch, strings.Join(t.Push.Branches, " or "))
		case len(t.Push.Paths) > 0 && !p.PathsUnknown && !anyPath(t.Push.Paths, p.Paths):
			miss(3, "no changed path matches %s", strings.Join(t.Push.Paths, " or "))
		default:
			return t, "push to " + branch
		}
	}
	return nil, nearest
}

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

// Params fills in the composition's defaults and checks the result against its
// declared types. given is a JSON object or empty. The error lists all that is wrong.
func Params(c *pipeline.Composition, given json.RawMessage) (json.RawMessage, error) {
	have := map[string]json.RawMessage{}
	if len(given) > 0 && !bytes.Equal(given, []byte("null")) {
		if err := json.Unmarshal(given, &have); err != nil {
			return nil, fmt.Errorf("params of %s are not a JSON object: %w", c.Name, err)
		}
	}
	var wrong []string
	for _, f := range c.Params {
		v, ok := have[f.Name]
		switch {
		case ok:
			for _, w := range f.Type.CheckJSON(v) {
				wrong = append(wrong, f.Name+": "+w)
			}
		case f.Default != nil:
			have[f.Name] = f.Default
		case !f.Optional:
			wrong = append(wrong, f.Name+": is missing")
		}
	}
	for _, name := range undeclared(c, have) {
		wrong = append(wrong, name+": is not declared")
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("params of %s: %s", c.Name, strings.Join(wrong, "; "))
	}
	return json.Marshal(have) // map keys are sorted, so equal params are equal bytes
}

func undeclared(c *pipeline.Composition, have map[string]json.RawMessage) []string {
	var out []string
	for name := range have {
		if !slices.ContainsFunc(c.Params, func(f pipeline.Field) bool { return f.Name == name }) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Key identifies the run that an event asks for: SHA-256 over length-prefixed
// parts, so that no two lists of parts collide. Seeing the same event again, after
// a restart or by redelivery, gives the same key. generation tells runs apart that
// were asked for again.
func Key(e pipeline.Event, c *pipeline.Composition, params json.RawMessage, generation int64) pipeline.RunKey {
	h := sha256.New()
	for _, part := range []string{
		e.Kind, e.Repo, string(e.Ref), string(e.Head), string(c.Name), string(c.Digest), string(params), fmt.Sprint(generation),
	} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write([]byte(part))
	}
	return pipeline.RunKey(hex.EncodeToString(h.Sum(nil)))
}

// Contexts of commit statuses. They are few and never renamed, because branch
// protection names them.
const (
	ContextAll = "maestro"
	contextRun = "maestro/run/"
)

const (
	statusPending = "pending"
	statusSuccess = "success"
	statusFailure = "failure"
	statusError   = "error"
	// maxDescription is GitHub's limit, in characters.
	maxDescription = 140
)

// Facts are what the statuses of a commit are derived from.
type Facts struct {
	Commit      pipeline.CommitID
	Diagnostics []pipeline.Diagnostic
	Verdicts    []pipeline.Verdict
	// Runs of the commit; only the newest of each composition counts.
	Runs []*pipeline.Run
	// URL of the web view, without a slash at its end; "" leaves links out.
	URL string
}

// Statuses returns what the forge should say of the commit: the one status that
// rolls all up, which is always there, and one for each composition that ran.
func Statuses(f Facts) []pipeline.Status {
	out := []pipeline.Status{RollUp(f)}
	for _, r := range newest(f.Runs) {
		out = append(out, OfRun(r, f.URL))
	}
	return out
}

// newest returns the latest run of each composition, by name.
func newest(all []*pipeline.Run) []*pipeline.Run {
	latest := make(map[pipeline.CompositionName]*pipeline.Run, len(all))
	for _, r := range all {
		if n := latest[r.Composition]; n == nil || r.ID > n.ID {
			latest[r.Composition] = r
		}
	}
	runs := make([]*pipeline.Run, 0, len(latest))
	for _, r := range latest {
		runs = append(runs, r)
	}
	slices.SortFunc(runs, func(a, b *pipeline.Run) int { return cmp.Compare(a.Composition, b.Composition) })
	return runs
}

// OfRun is the status of one run.
func OfRun(r *pipeline.Run, url string) pipeline.Status {
	s := pipeline.Status{Commit: r.Commit, Context: contextRun + string(r.Composition), State: forgeState(r.State)}
	s.Description = cut(fmt.Sprintf("#%d %s: %s", r.Number, r.State, r.Reason))
	if r.Reason == "" || r.Reason == string(r.State) {
		s.Description = fmt.Sprintf("#%d %s", r.Number, r.State)
	}
	if url != "" {
		s.URL = fmt.Sprintf("%s/c/%s/%d", url, r.Composition, r.Number)
	}
	return s
}

// RollUp is the status of the whole commit, the one to require before a merge.
func RollUp(f Facts) pipeline.Status {
	runs := newest(f.Runs)
	s := pipeline.Status{Commit: f.Commit, Context: ContextAll, State: statusSuccess}
	if f.URL != "" {
		s.URL = f.URL + "/commits/" + string(f.Commit)
	}
	if broken := blamed(&pipeline.Config{Diagnostics: f.Diagnostics}); len(broken) > 0 {
		s.State = statusFailure
		d := broken[0]
		more := ""
		if n := len(f.Diagnostics); n > 1 {
			more = fmt.Sprintf(" (1 of %d problems)", n)
		}
		s.Description = cutTo(d.Pos.String()+": "+d.Message, maxDescription-len(more)) + more
		return s
	}
	count := map[string]int{}
	var worst *pipeline.Run
	for _, r := range runs {
		st := forgeState(r.State)
		count[st]++
		if st != statusSuccess && (worst == nil || rank(st) > rank(forgeState(worst.State))) {
			worst = r
		}
	}
	switch {
	case len(runs) == 0:
		s.Description = cut("0 runs: " + nothing(f.Verdicts))
	case worst == nil:
		s.Description = fmt.Sprintf("%s succeeded", plural(len(runs), "run"))
	default:
		s.State = forgeState(worst.State)
		s.Description = cut(fmt.Sprintf("%d of %s done: %s #%d %s: %s",
			count[statusSuccess]+count[statusFailure]+count[statusError], plural(len(runs), "run"),
			worst.Composition, worst.Number, worst.State, worst.Reason))
	}
	return s
}

// nothing says why a commit started no run.
func nothing(vs []pipeline.Verdict) string {
	switch len(vs) {
	case 0:
		return "the repository declares no composition"
	case 1:
		return fmt.Sprintf("%s: %s", vs[0].Composition, vs[0].Sentence)
	}
	return fmt.Sprintf("none of %d compositions applies (%s: %s, …)", len(vs), vs[0].Composition, vs[0].Sentence)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// rank orders forge states: what somebody must act on outranks what is under way.
func rank(s string) int {
	return slices.Index([]string{statusSuccess, statusPending, statusFailure, statusError}, s)
}

func forgeState(s pipeline.State) string {
	switch s {
	case pipeline.Success, pipeline.NotNeeded, pipeline.Skipped:
		return statusSuccess
	case pipeline.Failure, pipeline.Timeout, pipeline.Cancelled:
		return statusFailure
	case pipeline.Error:
		return statusError
	}
	return statusPending
}

func cut(s string) string { return cutTo(s, maxDescription) }

// cutTo shortens s to n characters, on one line.
func cutTo(s string, n int) string {
	r := []rune(strings.Join(strings.Fields(s), " "))
	if len(r) <= n {
		return string(r)
	}
	return string(r[:n-1]) + "…"
}
