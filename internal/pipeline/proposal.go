package pipeline

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ProposalState is where a proposed change stands.
type ProposalState string

const (
	// ProposalOpen: its branch has commits that the default branch has not.
	ProposalOpen ProposalState = "open"
	// ProposalMerged: the default branch contains its head.
	ProposalMerged ProposalState = "merged"
	// ProposalClosed: its branch is gone, and what it proposed is not in force.
	ProposalClosed ProposalState = "closed"
)

// Approval is what the reviews of a change or a gate come to.
type Approval string

const (
	// ApprovalNone: no rule asks for a review.
	ApprovalNone Approval = "not needed"
	// ApprovalWaiting: more people must approve.
	ApprovalWaiting Approval = "waiting"
	// ApprovalGiven: everybody that the rules ask for has approved.
	ApprovalGiven Approval = "approved"
	// ApprovalRefused: somebody who may review has refused.
	ApprovalRefused Approval = "refused"
)

// Proposal is a change that somebody proposes: a pull request, or on a repository
// without a forge a branch of the ops repository other than the default one. People
// call it a change.
type Proposal struct {
	// Branch names it, a pull request as PullName does; Target is the branch that it is to be merged into.
	Branch string   `json:"branch"`
	Target string   `json:"target"`
	Head   CommitID `json:"head"`
	// Base is the tip of the target that it was planned against, Fork the newest
	// commit that both have.
	Base CommitID `json:"base,omitempty"`
	Fork CommitID `json:"fork,omitempty"`
	// Author and Subject describe the head; they are text from outside.
	Author  string        `json:"author,omitempty"`
	Subject string        `json:"subject,omitempty"`
	State   ProposalState `json:"state"`
	// Draft: its author says that it is not ready.
	Draft bool `json:"draft,omitempty"`
	// Approval, and in Sentence what it waits for and whose turn it is.
	Approval Approval `json:"approval"`
	Sentence string   `json:"sentence"`
	// Digest names what merging it means; reviews count for this head and this
	// digest. "" until it is planned.
	Digest Digest `json:"digest,omitempty"`
	// Plan is the whole plan as JSON; Text and Markdown are what people read.
	Plan     json.RawMessage `json:"plan,omitempty"`
	Text     string          `json:"text,omitempty"`
	Markdown string          `json:"markdown,omitempty"`
	// Needs is what the policy in force asks for.
	Needs   []Need    `json:"needs,omitempty"`
	Reviews []Opinion `json:"reviews,omitempty"`
	// Decisions were made about it, at any of its heads: the latest MostDecisions, the
	// oldest first.
	Decisions []Decision `json:"decisions,omitempty"`
	// Predicted are the compositions of the runs that merging it starts, sorted. The
	// runs that these make in turn are not counted: Called are their compositions.
	Predicted   []CompositionName `json:"predicted,omitempty"`
	Called      []CompositionName `json:"called,omitempty"`
	Diagnostics []Diagnostic      `json:"diagnostics,omitempty"`
	// Merge is there once it is merged.
	Merge *Merge `json:"merge,omitempty"`

	OpenedAt time.Time `json:"opened_at"`
	// HeadAt is when this head was first seen, PlannedAt when the plan of this digest
	// was made.
	HeadAt    time.Time `json:"head_at"`
	PlannedAt time.Time `json:"planned_at,omitzero"`
	// ChangedAt is when anything of it last changed.
	ChangedAt time.Time `json:"changed_at"`
}

// Runs says how many runs merging it starts, in words.
func (p *Proposal) Runs() string { return CountRuns(len(p.Predicted), len(p.Called)) }

// CountRuns says how many runs something starts. What they call is not counted, and
// where they call something that is said.
func CountRuns(n, called int) string {
	s, calls := fmt.Sprintf("%d runs", n), "they call"
	if n == 1 {
		s, calls = "1 run", "it calls"
	}
	if called > 0 {
		s += " and what " + calls
	}
	return s
}

// Standing is where the change stands, in a sentence: its first mistake while it has
// one, else what its reviews come to.
func (p *Proposal) Standing() string {
	i := slices.IndexFunc(p.Diagnostics, func(d Diagnostic) bool { return d.Severity == SeverityError })
	if p.State != ProposalOpen || i < 0 {
		return p.Sentence
	}
	errs := 0
	for _, d := range p.Diagnostics[i:] {
		if d.Severity == SeverityError {
			errs++
		}
	}
	s := "has an error: "
	if errs > 1 {
		s = fmt.Sprintf("has %d errors: ", errs)
	}
	return s + p.Diagnostics[i].String()
}

// Merge is what became of a proposal.
type Merge struct {
	// Commit is where the target was when it first contained the head.
	Commit CommitID `json:"commit"`
	// Approval as it was before the merge.
	Approval Approval `json:"approval"`
	// Predicted before and Started by the push that merged it, by composition.
	Predicted []CompositionName `json:"predicted,omitempty"`
	Started   []CompositionName `json:"started,omitempty"`
	// Sentence compares them, and says when the policy was passed over.
	Sentence string    `json:"sentence"`
	At       time.Time `json:"at"`
}

// Need is how many approvals a rule asks for, and how many there are.
type Need struct {
	Rule string `json:"rule"`
	// Approvers are groups, none for everybody; People are their members but for those
	// who wrote what is reviewed.
	Approvers []string `json:"approvers,omitempty"`
	People    []string `json:"people,omitempty"`
	// Owners are asked in their place where the rule is about what they own: Paths, and
	// More besides. Nobody says why nobody can be asked, "" when somebody can.
	Owners []string `json:"owners,omitempty"`
	Paths  []string `json:"paths,omitempty"`
	More   int      `json:"more_paths,omitempty"`
	Nobody string   `json:"nobody,omitempty"`
	Want   int      `json:"want"`
	Have   int      `json:"have"`
	// Echo as in Gate.
	Echo bool `json:"sha_echo,omitempty"`
}

// Asked says who is asked, and for what of theirs, in words.
func (n *Need) Asked() string {
	switch {
	case len(n.Owners) > 0:
		return EitherOf(n.Owners) + n.of()
	case n.Nobody != "":
		return "an owner"
	case len(n.Approvers) > 0:
		return strings.Join(n.Approvers, " or ")
	}
	return "anybody else"
}

// of says what the owners own.
func (n *Need) of() string {
	if len(n.Paths) == 0 {
		return ""
	}
	s := " for " + strings.Join(n.Paths, ", ")
	if n.More > 0 {
		s += fmt.Sprintf(" and %d more", n.More)
	}
	return s
}

// EitherOf names people of whom one is enough. Of many it counts the rest.
func EitherOf(people []string) string {
	const most = 5
	if left := len(people) - most; left > 1 {
		return fmt.Sprintf("%s or one of %d others", strings.Join(people[:most], ", "), left)
	}
	return strings.Join(people, " or ")
}

// MostDecisions bounds the decisions that are kept of a change.
const MostDecisions = 50

// Decision is what the reviews of a change came to at one moment, so that it can be
// found out later what an approval was made of.
type Decision struct {
	At   time.Time `json:"at"`
	Head CommitID  `json:"head"`
	// Plan is the digest of the plan that was decided about.
	Plan     Digest   `json:"plan,omitempty"`
	Approval Approval `json:"approval"`
	Sentence string   `json:"sentence"`
	// Rules are those that asked, with what they had: "NAME: 1 of 2".
	Rules []string `json:"rules,omitempty"`
	// By are those whose reviews counted, with the numbers of their accounts where the
	// forge has such: "ana (id:583231)".
	By []string `json:"by,omitempty"`
	// Inputs names all that was looked at: rules, groups, who had a hand in it, and
	// every review with its text. The same inputs have the same digest.
	Inputs Digest `json:"inputs"`
}

// Same reports whether it says the same as another one, whenever that was and whatever
// it was made of.
func (d *Decision) Same(o *Decision) bool {
	return d.Head == o.Head && d.Plan == o.Plan && d.Approval == o.Approval && d.Sentence == o.Sentence &&
		slices.Equal(d.Rules, o.Rules) && slices.Equal(d.By, o.By)
}

// Decided reports whether the last decision says the same as d.
func (p *Proposal) Decided(d *Decision) bool {
	n := len(p.Decisions)
	return n > 0 && p.Decisions[n-1].Same(d)
}

// Decide appends a decision, and drops the oldest beyond MostDecisions. What others hold
// of them does not change.
func (p *Proposal) Decide(d Decision) {
	all := append(slices.Clone(p.Decisions), d)
	p.Decisions = all[max(0, len(all)-MostDecisions):]
}

// Opinion is a review that somebody gave, with whether it counts.
type Opinion struct {
	Review
	// Signed: a key that the default branch allows proves who gave it.
	Signed bool `json:"signed"`
	Counts bool `json:"counts"`
	// Why it does not count.
	Why string `json:"why,omitempty"`
}
