package plan

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Ranks of a comment, from what nobody has to look at.
const (
	RankFine   = iota
	RankBroken // the change cannot go on as it is
	RankAsked  // what it started once merged waits for somebody
	RankAfter  // what it did once merged needs somebody
)

// Talk is what the one comment on a change tells.
type Talk struct {
	Proposal *pipeline.Proposal
	// Runs of its head, or of what it was merged by, those that others called left out.
	Runs []*pipeline.Run
	// Answers to what people asked, the newest first.
	Answers []string
	// Again is what the last press of the button of the check is known by, "" when nobody
	// pressed it, and AgainAnswer the answer to it.
	Again, AgainAnswer string
	// URL of the web view, "" leaves links out.
	URL string
}

// Silent reports whether there is nothing to tell: the change has no effect, nobody has
// to approve it, nothing ran, and nobody asked.
func (t *Talk) Silent() bool {
	p := t.Proposal
	if len(t.Runs)+len(t.Answers)+len(p.Predicted)+len(p.Needs)+len(p.Diagnostics)+len(p.Reviews) > 0 {
		return false
	}
	var on struct {
		Changes, Breaks, Secrets, Firings []json.RawMessage
	}
	err := json.Unmarshal(p.Plan, &on)
	return err == nil && len(on.Changes)+len(on.Breaks)+len(on.Secrets)+len(on.Firings) == 0
}

// Rank is how much the comment wants somebody to look at it.
func (t *Talk) Rank() int {
	p := t.Proposal
	failed := slices.ContainsFunc(newest(t.Runs), func(r *pipeline.Run) bool {
		s := forgeState(r.State)
		return s == statusFailure || s == statusError
	})
	switch {
	case p.State == pipeline.ProposalMerged && failed:
		return RankAfter
	case p.State == pipeline.ProposalMerged && t.waits():
		return RankAsked
	case p.State == pipeline.ProposalOpen && (failed || pipeline.HasErrors(p.Diagnostics) || p.Approval == pipeline.ApprovalRefused):
		return RankBroken
	}
	return RankFine
}

// waits reports whether a run is held by a gate that is reviewed here.
func (t *Talk) waits() bool {
	return slices.ContainsFunc(t.Runs, func(r *pipeline.Run) bool { return r.State == pipeline.Held && t.led(r) })
}

// led reports whether the change led to a run. What somebody asked for, a clock or another
// system started has the same commit, but its gates are not reviewed here.
func (t *Talk) led(r *pipeline.Run) bool {
	for range t.Runs {
		if r.Event.Cause == nil {
			break
		}
		i := slices.IndexFunc(t.Runs, func(o *pipeline.Run) bool { return o.ID == r.Event.Cause.Run })
		if i < 0 {
			break
		}
		r = t.Runs[i]
	}
	return !slices.Contains([]string{pipeline.EventManual, pipeline.EventCron, pipeline.EventWebhook}, r.Event.Kind)
}

const (
	// mostShownRuns is how many runs a comment lists, the worst first.
	mostShownRuns = 20
	// mostTalk leaves the plan the rest of MaxMarkdown.
	mostTalk = 12_000
)

// Markdown is the comment, without the marker by which it is found: what merging will
// do or has done, who has to approve, what ran, and what people asked. It is at most
// MaxMarkdown long.
func (t *Talk) Markdown() string {
	m := &markdown{Plan: &Plan{}, MarkdownOptions: MarkdownOptions{URL: t.URL}, most: mostShownRuns}
	p := t.Proposal
	switch p.State {
	case pipeline.ProposalMerged:
		t.merged(m)
	case pipeline.ProposalClosed:
		m.line("**maestro: closed** · %s", prose(p.Sentence))
		m.line("")
	}
	after := &markdown{Plan: &Plan{}, MarkdownOptions: m.MarkdownOptions, most: mostShownRuns}
	if p.State == pipeline.ProposalOpen {
		t.reviews(after)
	}
	t.runs(after)
	t.answers(after)
	if p.State != pipeline.ProposalOpen {
		return m.b.String() + after.b.String()
	}
	rest := after.b.String()
	if len(rest) > mostTalk {
		rest = strings.ToValidUTF8(rest[:mostTalk], "") + "\n…\n"
	}
	plan := p.Markdown
	if p.Digest == "" {
		plan = "**maestro: the plan is being made**\n\n"
	}
	if len(plan)+len(rest) > MaxMarkdown {
		plan = fmt.Sprintf("**maestro plan: too large to be shown here** · %s\n\n%s\n\n", code(p.Head.Short()), link("the whole plan", t.URL+ProposalPath(p.Branch), t.URL != ""))
	}
	return strings.TrimRight(plan, "\n") + "\n\n" + rest
}

func link(text, to string, known bool) string {
	if !known {
		return text
	}
	return "[" + text + "](" + to + ")"
}

func (t *Talk) merged(m *markdown) {
	p := t.Proposal
	done, bad := 0, 0
	var last time.Time
	runs := newest(t.Runs)
	for _, r := range runs {
		if !r.State.Terminal() {
			continue
		}
		done++
		if forgeState(r.State) != statusSuccess {
			bad++
		}
		if r.FinishedAt.After(last) {
			last = r.FinishedAt
		}
	}
	went := "under way"
	switch {
	case len(runs) == 0:
		went = "nothing ran"
	case done < len(runs):
		went = fmt.Sprintf("%d of %s done", done, plural(len(runs), "run"))
	case bad > 0:
		went = fmt.Sprintf("%d of %s failed", bad, plural(len(runs), "run"))
	default:
		went = "all green"
	}
	took := ""
	if done == len(runs) && done > 0 && p.Merge != nil && last.After(p.Merge.At) {
		took = ", " + last.Sub(p.Merge.At).Round(time.Second).String()
	}
	sentence := p.Sentence
	by := p.Head
	if p.Merge != nil {
		sentence, by = p.Merge.Sentence, p.Merge.Commit
	}
	if t.waits() {
		went += "; a gate waits: review this pull request again, as it is"
	}
	m.line("**maestro: merged as %s: %s; %s%s**", code(by.Short()), prose(sentence), went, took)
	m.line("")
}

// reviews says who approved, and of the others why they do not count.
func (t *Talk) reviews(m *markdown) {
	p := t.Proposal
	gate := ""
	if t.waits() {
		gate = " A gate of its runs waits too, and hears reviews that are given after it was reached."
	}
	m.line("**Reviews:** %s.%s", prose(p.Sentence), gate)
	m.line("")
	m.owners(p.Needs)
	m.opinions(p.Reviews)
}

// owners lists which owners are asked for what, those who have approved struck out.
func (m *markdown) owners(needs []pipeline.Need) {
	list := slices.DeleteFunc(slices.Clone(needs), func(n pipeline.Need) bool { return len(n.Owners) == 0 })
	m.list("**Owners:**", len(list), func(i int) string {
		n := &list[i]
		if n.Have >= n.Want {
			return "~~" + prose(n.Asked()) + "~~"
		}
		return prose(n.Asked())
	})
}

// opinions lists what reviewers said, and of those that do not count why.
func (m *markdown) opinions(list []pipeline.Opinion) {
	for i, o := range list {
		if i == mostShownRuns {
			m.line("- … %d more", len(list)-i)
			break
		}
		verb := "refuses"
		if o.Approve {
			verb = "approves"
		}
		if o.Counts {
			m.line("- %s %s", code(o.By), verb)
		} else {
			m.line("- %s %s, which does not count: %s", code(o.By), verb, prose(o.Why))
		}
	}
	if len(list) > 0 {
		m.line("")
	}
}

func (t *Talk) runs(m *markdown) {
	runs := newest(t.Runs)
	if len(runs) == 0 {
		return
	}
	slices.SortFunc(runs, func(a, b *pipeline.Run) int {
		return cmp.Or(cmp.Compare(rank(forgeState(b.State)), rank(forgeState(a.State))), cmp.Compare(a.Composition, b.Composition))
	})
	m.line("#### Runs for %s", code(runs[0].Commit.Short()))
	m.line("")
	m.line("| | Composition | Now |")
	m.line("|---|---|---|")
	m.rows(len(runs), func(i int) {
		r := runs[i]
		name := link(code(string(r.Composition))+fmt.Sprintf(" %d", r.Number), fmt.Sprintf("%s/c/%s/%d", m.URL, r.Composition, r.Number), m.URL != "")
		m.line("| %s %s | %s | %s |", mark(r.State), r.State, name, prose(r.Reason))
	}, "| | %s | |")
	m.line("")
}

func mark(s pipeline.State) string {
	switch forgeState(s) {
	case statusSuccess:
		return "✓"
	case statusPending:
		return "…"
	}
	return "✗"
}

func (t *Talk) answers(m *markdown) {
	if len(t.Answers) == 0 {
		return
	}
	m.line("**Asked:**")
	m.line("")
	for _, a := range t.Answers {
		m.line("- %s", prose(a))
	}
	m.line("")
}
