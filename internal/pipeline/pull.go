package pipeline

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Account is somebody at a forge. The number is who it is: a login can be given up and
// taken by another person.
type Account struct {
	ID    int64  `json:"id"`
	Login string `json:"login"`
	Bot   bool   `json:"bot,omitempty"`
}

// Identity is the name of the account that nobody else can ever have.
func (a Account) Identity() string { return "id:" + strconv.FormatInt(a.ID, 10) }

// Pull is a pull request, as a forge shows it. Its texts come from anybody.
type Pull struct {
	Number int
	Title  string
	Author Account
	Head   CommitID
	// Branch of the head, and whether it is in a repository other than the target's:
	// what such a one holds was pushed by somebody who may not push here.
	Branch string
	Fork   bool
	// Target is the branch that it is to be merged into.
	Target string
	Draft  bool
	// Closed, and by which commit of the target it was merged, "" when it was not.
	Closed    bool
	Merge     CommitID
	UpdatedAt time.Time
}

const pullName = "pull/"

// PullName is the name of a proposed change that is a pull request.
func PullName(number int) string { return fmt.Sprintf("%s%d", pullName, number) }

// PullNumber reads such a name, 0 for one that is a branch.
func PullNumber(name string) int {
	digits, ok := strings.CutPrefix(name, pullName)
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || n <= 0 || PullName(n) != name {
		return 0
	}
	return n
}

// PullRef is the ref under which a forge keeps the head of a pull request, wherever
// that was pushed.
func PullRef(number int) Ref { return Ref(fmt.Sprintf("refs/pull/%d/head", number)) }

// OfEvent is what an event has of it.
func (p *Pull) OfEvent() *EventPull {
	return &EventPull{Number: p.Number, Title: p.Title, Author: p.Author, Fork: p.Fork}
}

// Ref is the ref that its runs are of: its branch, and of a fork that under which the
// forge keeps its head.
func (p *Pull) Ref() Ref {
	if p.Fork {
		return PullRef(p.Number)
	}
	return Ref("refs/heads/" + p.Branch)
}

// Fork reports whether the ref holds what came from outside the repository, which may
// be a source repository.
func (r Ref) Fork() bool {
	rest, ofSource := strings.CutPrefix(string(r), sourceRefs)
	if ofSource {
		_, rest, _ = strings.Cut(rest, "/")
		return strings.HasPrefix(rest, "pull/")
	}
	return strings.HasPrefix(rest, "refs/pull/")
}

// PullReview is a review of a pull request as a forge shows it.
type PullReview struct {
	ID int64
	By Account
	// State is APPROVED, CHANGES_REQUESTED, COMMENTED, DISMISSED or PENDING.
	State string
	// Commit is the head that it was given for.
	Commit CommitID
	Body   string
	At     time.Time
}

// PullComment is a comment on a pull request.
type PullComment struct {
	ID   int64
	Pull int
	By   Account
	Body string
	// At is when it was made; Edited when it is not as it was then.
	At        time.Time
	UpdatedAt time.Time
}

// Edited reports whether the comment was changed after it was made.
func (c *PullComment) Edited() bool { return !c.UpdatedAt.Equal(c.At) }

// PullPeople are who brought about what a pull request proposes.
type PullPeople struct {
	// Accounts are those of authors, committers and whoever pushed last.
	Accounts []Account
	// Named are people whom commits only name, as "Name <address>".
	Named []string
	// Unknown says why they cannot all be told, "" when they can.
	Unknown string
}

// PullCheck is what the head of a pull request is shown to come to, with remarks on the
// lines that they are about.
type PullCheck struct {
	// Done: nothing of it is under way. Good: so far nothing is wrong.
	Done, Good bool
	Title      string
	Summary    string // Markdown
	URL        string // of the whole, "" for none
	Remarks    []Diagnostic
	// Again tells a check that somebody asked to be run again from the one before; it is
	// shown as another one.
	Again string `json:",omitempty"`
}
