package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

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
	// Repo as in pipeline.Event.
	Repo        string
	Commit      pipeline.CommitID
	Diagnostics []pipeline.Diagnostic
	Verdicts    []pipeline.Verdict
	// Runs of the commit; only the newest of each composition counts.
	Runs []*pipeline.Run
	// Proposals are the changes whose head the commit is, and those that it merged.
	// Planning: it is the head of one that has no plan yet.
	Proposals []pipeline.Proposal
	Planning  bool
	// Unread are the source repositories that cannot be read, of the commit in force.
	Unread []string
	// URL of the web view, without a slash at its end; "" leaves links out.
	URL string
}

// Statuses returns what the forge should say of the commit: the one status that
// rolls all up, which is always there, and one for each composition that ran.
func Statuses(f Facts) []pipeline.Status {
	out := []pipeline.Status{RollUp(f)}
	runs := newest(f.Runs)
	slices.SortFunc(runs, func(a, b *pipeline.Run) int { return cmp.Compare(a.Composition, b.Composition) })
	for _, r := range runs {
		out = append(out, OfRun(r, f.URL))
	}
	return out
}

// Before reports whether, of two runs of a composition at one commit, a is the one that
// speaks for it: the later, but never one of a fork where there is one of the repository
// itself. Anybody may propose a commit that is there already, and what agents for
// untrusted work say of it does not take the place of what others said.
func Before(a, b *pipeline.Run) bool {
	if a.Ref.Fork() != b.Ref.Fork() {
		return b.Ref.Fork()
	}
	return a.ID > b.ID
}

// newest returns the run of each composition that speaks for it, in no order. Runs that
// others have called do not count: what came of them is in their callers.
func newest(all []*pipeline.Run) []*pipeline.Run {
	latest := make(map[pipeline.CompositionName]*pipeline.Run, len(all))
	for _, r := range all {
		if r.Called() {
			continue
		}
		if n := latest[r.Composition]; n == nil || Before(r, n) {
			latest[r.Composition] = r
		}
	}
	runs := make([]*pipeline.Run, 0, len(latest))
	for _, r := range latest {
		runs = append(runs, r)
	}
	return runs
}

// OfRun is the status of one run.
func OfRun(r *pipeline.Run, url string) pipeline.Status {
	s := pipeline.Status{Repo: r.Head().Repo, Commit: r.Head().Commit, Context: contextRun + string(r.Composition), State: forgeState(r.State)}
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
	s := ofRuns(f)
	f.propose(&s)
	if len(f.Unread) > 0 {
		const most = 60 // characters, so that what comes before is seen too
		more := cutTo("; cannot read "+strings.Join(f.Unread, ", "), most)
		s.Description = cutTo(s.Description, maxDescription-len([]rune(more))) + more
	}
	return s
}

// ofRuns rolls up what the commit declares and started.
func ofRuns(f Facts) pipeline.Status {
	runs := newest(f.Runs)
	s := pipeline.Status{Repo: f.Repo, Commit: f.Commit, Context: ContextAll, State: statusSuccess}
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
		if st == statusSuccess {
			continue
		}
		if worst == nil || cmp.Or(cmp.Compare(rank(st), rank(forgeState(worst.State))), cmp.Compare(worst.Composition, r.Composition)) > 0 {
			worst = r
		}
	}
	refused := slices.IndexFunc(f.Verdicts, func(v pipeline.Verdict) bool {
		return v.Repo != "" && v.Ref.Fork() && v.Outcome == pipeline.VerdictRejected
	})
	switch {
	case len(runs) == 0 && refused >= 0: // or it would look as if it had been tried
		s.State, s.Description = statusFailure, cut(fmt.Sprintf("%s: %s", f.Verdicts[refused].Composition, f.Verdicts[refused].Sentence))
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

// nothing says why a commit started no run. Where a push, a tag or a change was
// answered, that is why, whatever the clock or a person was answered later.
func nothing(all []pipeline.Verdict) string {
	vs := slices.DeleteFunc(slices.Clone(all), func(v pipeline.Verdict) bool { return !everybody(v.Kind) })
	if len(vs) == 0 {
		vs = slices.Clone(all)
	}
	slices.SortStableFunc(vs, func(a, b pipeline.Verdict) int { return cmp.Compare(a.Composition, b.Composition) })
	vs = slices.CompactFunc(vs, func(a, b pipeline.Verdict) bool { return a.Composition == b.Composition })
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
