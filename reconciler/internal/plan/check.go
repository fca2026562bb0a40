package plan

import (
	"fmt"
	"slices"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// MostRemarks is how many remarks a check has; more than that nobody reads, and forges
// take a few with each request.
const MostRemarks = 200

// Check is what the head of the change comes to: whether it is sound and how its runs
// went. It says nothing of who has to approve.
func (t *Talk) Check() pipeline.PullCheck {
	p := t.Proposal
	c := pipeline.PullCheck{Done: true, Good: true, Again: t.Again}
	if t.URL != "" {
		c.URL = t.URL + ProposalPath(p.Branch)
	}
	ds := slices.Clone(p.Diagnostics)
	pipeline.SortDiagnostics(ds)
	mistakes := 0
	for _, d := range ds {
		if d.Severity == pipeline.SeverityError {
			mistakes++
		}
		if d.Pos.File != "" && len(c.Remarks) < MostRemarks {
			c.Remarks = append(c.Remarks, d)
		}
	}
	runs := newest(t.Runs)
	done, bad := 0, 0
	for _, r := range runs {
		if r.State.Terminal() {
			done++
		}
		if s := forgeState(r.State); s == statusFailure || s == statusError {
			bad++
		}
	}
	switch {
	case mistakes > 0:
		c.Good, c.Title = false, plural(mistakes, "mistake")
	case bad > 0:
		c.Good, c.Title = false, fmt.Sprintf("%d of %s failed", bad, plural(len(runs), "run"))
	case done < len(runs):
		c.Title = fmt.Sprintf("%d of %s done", done, plural(len(runs), "run"))
	case len(runs) > 0:
		c.Title = "sound, and all green"
	default:
		c.Title = "sound"
	}
	c.Done = done == len(runs)
	m := &markdown{Plan: &Plan{}, MarkdownOptions: MarkdownOptions{URL: t.URL}, most: mostShownRuns}
	t.runs(m)
	if left := len(ds) - len(c.Remarks); left > 0 {
		m.line("%s not shown on a line.", plural(left, "more remark"))
	}
	c.Summary = m.b.String()
	if room := MaxMarkdown - len(c.Summary); len(p.Markdown) <= room {
		c.Summary = p.Markdown + "\n" + c.Summary
	}
	if c.Summary == "" {
		c.Summary = c.Title
	}
	if t.Again != "" {
		c.Summary = prose(t.AgainAnswer) + "\n\n" + c.Summary
	}
	return c
}
