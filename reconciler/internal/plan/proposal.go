package plan

import (
	"net/url"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// propose adds to the status of a commit what the changes say that it proposes or
// merged.
func (f *Facts) propose(s *pipeline.Status) {
	planned, merged := false, false
	var passed []string
	for i := range f.Proposals {
		p := &f.Proposals[i]
		switch {
		case p.State == pipeline.ProposalOpen && p.Head == f.Commit:
			planned = true
			f.open(s, p)
		case p.State != pipeline.ProposalMerged || p.Merge == nil:
		case p.Head == f.Commit && p.Merge.Commit != f.Commit:
			merged = true
			f.mergedBy(s, p)
		case passedOver[p.Merge.Approval] != "":
			passed = append(passed, passedOver[p.Merge.Approval])
			f.link(s, p)
		}
		if p.Merge != nil && passedOver[p.Merge.Approval] != "" {
			raise(s, statusFailure) // somebody is to notice; the runs go on
		}
	}
	switch {
	case !f.Planning || planned:
	case merged:
		// Squashed or rebased, it could be proposed once more, and is not green until that
		// has a plan.
		if raise(s, statusPending); s.State == statusPending {
			s.Description = cut("pending until its branch is deleted; " + s.Description)
		}
	default:
		raise(s, statusPending)
		f.join(s, "there is no plan yet")
	}
	if slices.Sort(passed); len(passed) > 0 {
		s.Description = cut(passed[0] + "; " + s.Description)
	}
}

// passedOver says that a change was merged against the policy. Where two were, the
// first in order is said: a refusal.
var passedOver = map[pipeline.Approval]string{
	pipeline.ApprovalRefused: "merged although it was refused",
	pipeline.ApprovalWaiting: "merged without the approval it needed",
}

func (f *Facts) link(s *pipeline.Status, p *pipeline.Proposal) {
	if f.URL != "" {
		s.URL = f.URL + ProposalPath(p.Branch)
	}
}

// open says what merging will do, and whose turn it is.
func (f *Facts) open(s *pipeline.Status, p *pipeline.Proposal) {
	f.link(s, p)
	if pipeline.HasErrors(f.Diagnostics) {
		return // the first mistake is what its author needs
	}
	switch p.Approval {
	case pipeline.ApprovalWaiting:
		raise(s, statusPending)
	case pipeline.ApprovalRefused:
		raise(s, statusFailure)
	}
	f.join(s, "plan: "+p.Runs()+" on merge; "+p.Sentence)
}

// mergedBy is for a head that was merged by another commit.
func (f *Facts) mergedBy(s *pipeline.Status, p *pipeline.Proposal) {
	f.link(s, p)
	f.join(s, "merged as "+p.Merge.Commit.Short()+": "+p.Merge.Sentence)
}

// join puts a sentence before what the runs of the commit say.
func (f *Facts) join(s *pipeline.Status, sentence string) {
	if len(f.Runs) > 0 || pipeline.HasErrors(f.Diagnostics) {
		sentence += "; " + s.Description
	}
	s.Description = cut(sentence)
}

func raise(s *pipeline.Status, state string) {
	if rank(state) > rank(s.State) {
		s.State = state
	}
}

// ProposalPath is the address of the page of a proposed change, without the host. A
// branch with a name that no path can hold as it is goes into the query.
func ProposalPath(branch string) string {
	for _, c := range branch {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-._/@+", c) {
			return "/changes?branch=" + url.QueryEscape(branch)
		}
	}
	return "/changes/" + branch
}
