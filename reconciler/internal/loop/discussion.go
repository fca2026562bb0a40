package loop

import (
	"context"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/plan"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
)

// Span is what one commit has that another has not.
type Span struct {
	// Commits of it; none when the other contains it. Truncated: there are more.
	Commits   int
	Truncated bool
	// Fork and Others are the commits that both have and that no other such commit leads
	// to, "" for none. There are others where each was merged into the other.
	Fork   pipeline.CommitID
	Others []pipeline.CommitID
	// People wrote or committed them.
	People []review.Person
	// List are those that could be listed, newest first.
	List []Commit
}

// movedFrom reports whether a plan that was made with a fork may be of another span.
func (s *Span) movedFrom(fork pipeline.CommitID) bool { return s.Fork != fork || len(s.Others) > 0 }

// Commit is one of a Span. Merges: it has several parents.
type Commit struct {
	ID     pipeline.CommitID
	Merges bool
}

// Statement is what somebody's ref points at.
type Statement struct {
	// Target is the commit that it is about.
	Target  pipeline.CommitID
	Message string
	// At is when it says that it was made, zero when it does not.
	At time.Time
	// Signers are the names of whoever signed it, none when it is not signed. Forged
	// says why a signature that is there proves nothing.
	Signers []string
	Forged  string
}

// Draft is a file that is to be reviewed as a commit of its own. Equal drafts have
// the same head.
type Draft struct {
	// File may be "", for a commit that has none.
	File, Text, Message string
	At                  time.Time
	// Onto is the commit that it stands on, which is published with it; nil for none.
	Onto *Draft
}

// Discussion is the side of a repository where people and Maestro talk about its
// commits. What cannot be read or written now is fault.Unavailable.
type Discussion interface {
	Repository
	// Between tells what head has that base has not; an empty base has all but head
	// itself. BetweenIn is Between for a source repository, fault.NotFound when it is
	// not declared any more.
	Between(ctx context.Context, base, head pipeline.CommitID) (Span, error)
	BetweenIn(ctx context.Context, repo string, base, head pipeline.CommitID) (Span, error)
	// Statement reads the object of a ref, its signature by the keys that are allowed
	// at base. An object that says nothing to us is fault.Invalid or fault.NotFound.
	Statement(ctx context.Context, object string, base pipeline.CommitID) (Statement, error)
	// FillPlanned computes a deferred value of a composition before there is a run.
	FillPlanned(ctx context.Context, at pipeline.CommitID, c *pipeline.Composition, b plan.Blank, e pipeline.Event) ([]byte, error)
	// WritePlan attaches the text of a plan to a commit; TellRequester adds a line to
	// what a commit says of requests.
	WritePlan(ctx context.Context, head pipeline.CommitID, text string) error
	TellRequester(ctx context.Context, target pipeline.CommitID, line string) error
	// Head is the commit that a draft has; Publish makes a ref point at it. Remove
	// takes a ref away that points at the object.
	Head(d Draft) (pipeline.CommitID, error)
	Publish(ctx context.Context, ref pipeline.Ref, d Draft) error
	Remove(ctx context.Context, ref pipeline.Ref, object string) error
}
