package web

import (
	"net/http"
	"net/url"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// mostProposals is how many changes the list shows.
const mostProposals = 200

// mostBranch bounds the name of a branch that is asked for, as Git does.
const mostBranch = 1024

type proposalsView struct {
	page
	Proposals []proposalRow
}

type proposalRow struct {
	pipeline.Proposal
	URL string
	// Look is the class that the row's state is shown with.
	Look string
}

func proposalRowOf(p pipeline.Proposal) proposalRow {
	return proposalRow{p, "/changes?branch=" + url.QueryEscape(p.Branch), lookOf(&p)}
}

// lookOf chooses how a change is shown, in the words of task states.
func lookOf(p *pipeline.Proposal) string {
	switch {
	case p.State == pipeline.ProposalClosed:
		return "skipped"
	case pipeline.HasErrors(p.Diagnostics) || p.Approval == pipeline.ApprovalRefused,
		p.State == pipeline.ProposalMerged && p.Approval == pipeline.ApprovalWaiting:
		return "failure"
	case p.Approval == pipeline.ApprovalWaiting:
		return "held"
	}
	return "success"
}

// proposalOrAll lists the changes; with a branch it shows that one.
func (s *server) proposalOrAll() http.Handler {
	all, one := s.show("changes", s.proposals), s.show("change", s.proposal)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("branch") {
			one.ServeHTTP(w, r)
			return
		}
		all.ServeHTTP(w, r)
	})
}

func (s *server) proposals(r *http.Request) (view, error) {
	list, err := s.src.Proposals(r.Context(), mostProposals)
	if err != nil {
		return nil, err
	}
	v := &proposalsView{page: s.plainPage("Changes", "changes")}
	v.Topics = []string{topicChanges}
	for _, p := range list {
		v.Proposals = append(v.Proposals, proposalRowOf(p))
	}
	return v, nil
}

type proposalView struct {
	page
	Proposal proposalRow
	Shown    []pipeline.Diagnostic
	Omitted  int
}

func (s *server) proposal(r *http.Request) (view, error) {
	branch, err := branchOf(r)
	if err != nil {
		return nil, err
	}
	p, err := s.src.Proposal(r.Context(), branch)
	if err != nil {
		return nil, err
	}
	v := &proposalView{page: s.plainPage("Change "+p.Branch, "changes"), Proposal: proposalRowOf(p)}
	v.Crumbs = []crumb{{"Changes", "/changes"}, {p.Branch, ""}}
	v.Topics = []string{topicChanges, topicRuns}
	v.Shown, v.Omitted = firstDiagnostics(p.Diagnostics)
	v.Mood = map[string]string{"failure": "bad", "success": "good"}[v.Proposal.Look]
	return v, nil
}

// branchOf reads the branch from the path, or from the query where its name has
// characters that the path of a page may not have.
func branchOf(r *http.Request) (string, error) {
	branch := r.PathValue("branch")
	if branch == "" {
		branch = r.URL.Query().Get("branch")
	}
	if branch == "" || len(branch) > mostBranch {
		return "", fault.New(fault.Invalid, "branch=%.80q is not a branch", branch)
	}
	return branch, nil
}

type proposalsAnswer struct {
	Changes []pipeline.Proposal `json:"changes"`
}

func (s *server) apiProposals(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Query().Has("branch") {
		branch, err := branchOf(r)
		if err != nil {
			return err
		}
		p, err := s.src.Proposal(r.Context(), branch)
		if err != nil {
			return err
		}
		return s.sendJSON(w, r, proposalsAnswer{[]pipeline.Proposal{p}})
	}
	list, err := s.src.Proposals(r.Context(), mostProposals)
	if err != nil {
		return err
	}
	return s.sendJSON(w, r, proposalsAnswer{filled(list)})
}
