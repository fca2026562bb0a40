package forge

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	perPage = 100
	// mostPages bounds a list: what is longer is refused as a whole, because half of
	// it could mean the opposite.
	mostPages = 50
)

// What a request needs, for who has to grant it.
const (
	needsStatuses = "write access to commit statuses of the repository"
	needsPulls    = "read access to pull requests of the repository"
	needsComments = "write access to pull requests (and issues) of the repository"
	needsMembers  = "read access to the organization's members"
	needsContents = "read access to contents of the repository"
	needsPeople   = "write access to the repository, without which it does not say what people may do there"
)

// every reads all pages of a list, or none.
func every[T any](
	g *GitHub, doing, needs string, page func(github.ListOptions) ([]T, *github.Response, error),
) ([]T, error) {
	var out []T
	opts := github.ListOptions{PerPage: perPage}
	for range mostPages {
		list, res, err := page(opts)
		if err != nil {
			return nil, g.explain(doing, needs, err)
		}
		out = append(out, list...)
		// The page number is all that is taken from the link header; the host stays
		// ours.
		switch {
		case res.NextPage == 0:
			return out, nil
		case res.NextPage != max(opts.Page, 1)+1:
			return nil, fault.New(fault.Unavailable, "%s at %s: page %d is followed by page %d; it will be asked again", doing, g.Name(), max(opts.Page, 1), res.NextPage)
		}
		opts.Page = res.NextPage
	}
	return nil, fault.New(fault.Invalid, "%s at %s: there are more than %d; close what is done with", doing, g.Name(), mostPages*perPage)
}

// Pulls returns all open pull requests, or none with an error. One that others are
// opened or closed beside may be missing: Pull tells what became of it.
func (g *GitHub) Pulls(ctx context.Context) ([]pipeline.Pull, error) {
	list, err := every(g, "list pull requests", needsPulls, func(o github.ListOptions) ([]*github.PullRequest, *github.Response, error) {
		return g.client.PullRequests.List(ctx, g.cfg.Owner, g.cfg.Repo, &github.PullRequestListOptions{
			State: "open", Sort: "created", Direction: "asc", ListOptions: o,
		})
	})
	out := make([]pipeline.Pull, 0, len(list))
	for _, p := range list {
		pull, bad := pullOf(p)
		if bad != nil {
			return nil, g.explain("list pull requests", needsPulls, bad)
		}
		out = append(out, pull)
	}
	return out, err
}

// Pull returns one pull request, fault.NotFound when there is none of the number.
func (g *GitHub) Pull(ctx context.Context, number int) (pipeline.Pull, error) {
	doing := fmt.Sprintf("read pull request %d", number)
	p, _, err := g.client.PullRequests.Get(ctx, g.cfg.Owner, g.cfg.Repo, number)
	if missing(err) {
		return pipeline.Pull{}, fault.New(fault.NotFound, "%s at %s: there is none", doing, g.Name())
	}
	var pull pipeline.Pull
	if err == nil {
		pull, err = pullOf(p)
	}
	if err == nil && pull.Number != number {
		err = fault.New(fault.Unavailable, "the answer is about pull request %d", pull.Number)
	}
	if err != nil {
		return pipeline.Pull{}, g.explain(doing, needsPulls, err)
	}
	return pull, nil
}

// pullOf takes what is understood of a pull request. One without a head is no answer.
func pullOf(p *github.PullRequest) (pipeline.Pull, error) {
	out := pipeline.Pull{
		Number: p.GetNumber(), Title: p.GetTitle(), Author: accountOf(p.User), Head: pipeline.CommitID(p.GetHead().GetSHA()),
		Branch: p.GetHead().GetRef(), Target: p.GetBase().GetRef(), Draft: p.GetDraft(), Closed: p.GetState() != "open",
		UpdatedAt: p.GetUpdatedAt().UTC(),
	}
	// A fork may be gone by now. What is not known to be ours is not ours.
	from, to := p.GetHead().GetRepo(), p.GetBase().GetRepo()
	out.Fork = from == nil || from.GetID() == 0 || from.GetID() != to.GetID()
	if p.MergedAt != nil {
		out.Merge = pipeline.CommitID(p.GetMergeCommitSHA())
	}
	if out.Number <= 0 || !commitRE.MatchString(string(out.Head)) || out.Target == "" || out.Merge != "" && !commitRE.MatchString(string(out.Merge)) {
		return out, fault.New(fault.Unavailable, "the answer is not a pull request")
	}
	return out, nil
}

func accountOf(u *github.User) pipeline.Account {
	return pipeline.Account{ID: u.GetID(), Login: u.GetLogin(), Bot: u.GetType() != "User"}
}

// Reviews returns all reviews of a pull request in the order in which they were given,
// or none with an error.
func (g *GitHub) Reviews(ctx context.Context, number int) ([]pipeline.PullReview, error) {
	list, err := every(g, fmt.Sprintf("list reviews of pull request %d", number), needsPulls,
		func(o github.ListOptions) ([]*github.PullRequestReview, *github.Response, error) {
			return g.client.PullRequests.ListReviews(ctx, g.cfg.Owner, g.cfg.Repo, number, &o)
		})
	out := make([]pipeline.PullReview, 0, len(list))
	for _, r := range list {
		out = append(out, pipeline.PullReview{
			ID: r.GetID(), By: accountOf(r.User), State: strings.ToUpper(r.GetState()), Commit: pipeline.CommitID(r.GetCommitID()),
			Body: r.GetBody(), At: r.GetSubmittedAt().UTC(),
		})
	}
	return out, err
}

// mostCommits is how many commits of a pull request GitHub lists at most.
const mostCommits = 250

var coauthorRE = regexp.MustCompile(`(?im)^[ \t]*co-authored-by:[ \t]*(.+?)[ \t\r]*$`)

// People returns who brought about what a pull request proposes: authors, co-authors
// and committers of its commits, and whoever pushed its head.
func (g *GitHub) People(ctx context.Context, p *pipeline.Pull) (pipeline.PullPeople, error) {
	out := pipeline.PullPeople{Accounts: []pipeline.Account{p.Author}}
	commits, err := every(g, fmt.Sprintf("list commits of pull request %d", p.Number), needsPulls,
		func(o github.ListOptions) ([]*github.RepositoryCommit, *github.Response, error) {
			return g.client.PullRequests.ListCommits(ctx, g.cfg.Owner, g.cfg.Repo, p.Number, &o)
		})
	if err != nil {
		return out, err
	}
	if len(commits) >= mostCommits {
		out.Unknown = fmt.Sprintf("it has %d commits or more, and GitHub lists no more", mostCommits)
	}
	wrote(&out, commits)
	if p.Fork {
		return out, nil // GitHub does not say who pushes to another repository
	}
	pusher, err := g.pusher(ctx, p.Branch, p.Head)
	if err != nil {
		return out, err
	}
	if pusher.ID == 0 && out.Unknown == "" {
		out.Unknown = "GitHub does not say who pushed " + p.Head.Short()
	}
	out.Accounts = append(out.Accounts, pusher)
	return out, nil
}

// pusher is who made a branch point at a commit, nobody when that is not said.
func (g *GitHub) pusher(ctx context.Context, branch string, head pipeline.CommitID) (pipeline.Account, error) {
	list, err := g.activity(ctx, "read who pushed "+head.Short(), branch)
	if err != nil {
		return pipeline.Account{}, err
	}
	for _, a := range list {
		if a.After == string(head) {
			return accountOf(a.Actor), nil
		}
	}
	return pipeline.Account{}, nil
}

// moved is what somebody did to a branch.
type moved struct {
	After string       `json:"after"`
	Actor *github.User `json:"actor"`
}

// activity is what was done to a branch lately, the newest first.
func (g *GitHub) activity(ctx context.Context, doing, branch string) (list []moved, err error) {
	req, err := g.client.NewRequest(http.MethodGet, fmt.Sprintf("repos/%s/%s/activity?per_page=%d&ref=%s",
		g.cfg.Owner, g.cfg.Repo, perPage, url.QueryEscape("refs/heads/"+branch)), nil)
	if err == nil {
		_, err = g.client.Do(ctx, req, &list)
	}
	if err != nil {
		return nil, g.explain(doing, needsContents, err)
	}
	return list, nil
}

// MayWrite reports whether the account may push to the repository as it is.
func (g *GitHub) MayWrite(ctx context.Context, a pipeline.Account) (bool, error) {
	if !loginRE.MatchString(a.Login) {
		return false, nil
	}
	l, _, err := g.client.Repositories.GetPermissionLevel(ctx, g.cfg.Owner, g.cfg.Repo, a.Login)
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, g.explain("read what "+a.Login+" may do", needsPeople, err)
	}
	may := l.GetPermission() == "admin" || l.GetPermission() == "write"
	return may && l.GetUser().GetID() == a.ID, nil
}

var (
	loginRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,99}(\[bot\])?$`)
	teamRE  = regexp.MustCompile(`^@([A-Za-z0-9][A-Za-z0-9-]{0,99})/([a-z0-9][a-z0-9_.-]{0,99})$`)
)

// IsMember reports whether the account is an active member of a team, @ORG/TEAM, as it
// is.
func (g *GitHub) IsMember(ctx context.Context, team string, a pipeline.Account) (bool, error) {
	m := teamRE.FindStringSubmatch(team)
	if m == nil || !loginRE.MatchString(a.Login) {
		return false, nil
	}
	got, _, err := g.client.Teams.GetTeamMembershipBySlug(ctx, m[1], m[2], a.Login)
	if missing(err) {
		return false, nil
	}
	if err != nil {
		return false, g.explain("read whether "+a.Login+" is in "+team, needsMembers, err)
	}
	return got.GetState() == "active", nil
}

func missing(err error) bool {
	var answer *github.ErrorResponse
	return errors.As(err, &answer) && answer.Response.StatusCode == http.StatusNotFound
}

// Self returns the account by which Maestro writes comments.
func (g *GitHub) Self(ctx context.Context) (pipeline.Account, error) {
	if g.app != nil {
		return g.app.Self(ctx, g.client)
	}
	u, _, err := g.client.Users.Get(ctx, "")
	if err != nil {
		return pipeline.Account{}, g.explain("read whose token it is", "nothing but a valid token", err)
	}
	return accountOf(u), nil
}

// Comments returns all comments of a pull request, oldest first, or none with an error.
func (g *GitHub) Comments(ctx context.Context, number int) ([]pipeline.PullComment, error) {
	return g.comments(ctx, fmt.Sprintf("list comments of pull request %d", number), number, github.IssueListCommentsOptions{})
}

// CommentsSince returns all comments of all pull requests and issues that were written
// or changed at that time or later, or none with an error.
func (g *GitHub) CommentsSince(ctx context.Context, since time.Time) ([]pipeline.PullComment, error) {
	sort, direction := "updated", "asc"
	return g.comments(ctx, "list comments", 0, github.IssueListCommentsOptions{Sort: &sort, Direction: &direction, Since: &since})
}

func (g *GitHub) comments(ctx context.Context, doing string, number int, opts github.IssueListCommentsOptions) ([]pipeline.PullComment, error) {
	list, err := every(g, doing, needsComments, func(o github.ListOptions) ([]*github.IssueComment, *github.Response, error) {
		opts.ListOptions = o
		return g.client.Issues.ListComments(ctx, g.cfg.Owner, g.cfg.Repo, number, &opts)
	})
	out := make([]pipeline.PullComment, 0, len(list))
	for _, c := range list {
		out = append(out, commentOf(c, number))
	}
	return out, err
}

var issueRE = regexp.MustCompile(`/issues/([1-9][0-9]{0,9})$`)

func commentOf(c *github.IssueComment, number int) pipeline.PullComment {
	if m := issueRE.FindStringSubmatch(c.GetIssueURL()); m != nil && number == 0 {
		_, _ = fmt.Sscan(m[1], &number)
	}
	return pipeline.PullComment{
		ID: c.GetID(), Pull: number, By: accountOf(c.User), Body: c.GetBody(), At: c.GetCreatedAt().UTC(), UpdatedAt: c.GetUpdatedAt().UTC(),
	}
}

// AddComment comments on a pull request and returns the comment's number. After
// fault.Unavailable it may be there all the same.
func (g *GitHub) AddComment(ctx context.Context, number int, body string) (int64, error) {
	c, _, err := g.client.Issues.CreateComment(ctx, g.cfg.Owner, g.cfg.Repo, number, &github.IssueComment{Body: &body})
	if err == nil && c.GetID() == 0 {
		err = fault.New(fault.Unavailable, "the answer is not a comment")
	}
	if err != nil {
		return 0, g.explain(fmt.Sprintf("comment on pull request %d", number), needsComments, err)
	}
	return c.GetID(), nil
}

// EditComment gives a comment another text, fault.NotFound when it is gone.
func (g *GitHub) EditComment(ctx context.Context, id int64, body string) error {
	_, _, err := g.client.Issues.EditComment(ctx, g.cfg.Owner, g.cfg.Repo, id, &github.IssueComment{Body: &body})
	if missing(err) {
		return fault.New(fault.NotFound, "comment %d at %s is gone", id, g.Name())
	}
	if err != nil {
		return g.explain(fmt.Sprintf("edit comment %d", id), needsComments, err)
	}
	return nil
}

// RemoveComment deletes a comment; one that is gone is no error.
func (g *GitHub) RemoveComment(ctx context.Context, id int64) error {
	_, err := g.client.Issues.DeleteComment(ctx, g.cfg.Owner, g.cfg.Repo, id)
	if err != nil && !missing(err) {
		return g.explain(fmt.Sprintf("delete comment %d", id), needsComments, err)
	}
	return nil
}

// React answers a comment with a sign: +1, -1, eyes or confused. Doing it twice is
// harmless; a comment that is gone is no error.
func (g *GitHub) React(ctx context.Context, id int64, sign string) error {
	_, _, err := g.client.Reactions.CreateIssueCommentReaction(ctx, g.cfg.Owner, g.cfg.Repo, id, sign)
	if err != nil && !missing(err) {
		return g.explain(fmt.Sprintf("react to comment %d", id), needsComments, err)
	}
	return nil
}
