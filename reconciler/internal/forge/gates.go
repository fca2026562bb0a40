package forge

import (
	"context"
	"fmt"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const needsPush = "write access to contents and pull requests of the repository"

// RepositoryID returns the number of the repository, which no other one ever has.
func (g *GitHub) RepositoryID(ctx context.Context) (int64, error) {
	r, _, err := g.client.Repositories.Get(ctx, g.cfg.Owner, g.cfg.Repo)
	if err == nil && r.GetID() <= 0 {
		err = fault.New(fault.Unavailable, "the answer is not a repository")
	}
	if err != nil {
		return 0, g.explain("read the repository", "read access to metadata of the repository", err)
	}
	return r.GetID(), nil
}

// PullsOf returns the pull requests of a branch of the repository itself, open or not,
// the newest first, or none with an error. One that was just opened may be missing.
func (g *GitHub) PullsOf(ctx context.Context, branch string) ([]pipeline.Pull, error) {
	doing := "list pull requests of " + branch
	list, err := every(g, doing, needsPulls, func(o github.ListOptions) ([]*github.PullRequest, *github.Response, error) {
		return g.client.PullRequests.List(ctx, g.cfg.Owner, g.cfg.Repo, &github.PullRequestListOptions{
			State: "all", Head: g.cfg.Owner + ":" + branch, Sort: "created", Direction: "desc", ListOptions: o,
		})
	})
	out := make([]pipeline.Pull, 0, len(list))
	for _, p := range list {
		pull, bad := pullOf(p)
		if bad != nil {
			return nil, g.explain(doing, needsPulls, bad)
		}
		if pull.Branch == branch && !pull.Fork {
			out = append(out, pull)
		}
	}
	return out, err
}

// OpenPull opens a pull request and returns its number. After fault.Unavailable it may
// be open all the same; GitHub opens no second one for a branch.
func (g *GitHub) OpenPull(ctx context.Context, branch, target, title, body string) (int, error) {
	p, _, err := g.client.PullRequests.Create(ctx, g.cfg.Owner, g.cfg.Repo, &github.NewPullRequest{
		Title: &title, Head: &branch, Base: &target, Body: &body,
	})
	if err == nil && p.GetNumber() <= 0 {
		err = fault.New(fault.Unavailable, "the answer is not a pull request")
	}
	if err != nil {
		return 0, g.explain("open a pull request of "+branch, needsPush, err)
	}
	return p.GetNumber(), nil
}

// EditPull gives a pull request a text, and makes it "open" or "closed", or "" to leave
// that as it is. Doing it twice is harmless. fault.NotFound when there is none of the
// number.
func (g *GitHub) EditPull(ctx context.Context, number int, title, body, state string) error {
	doing := fmt.Sprintf("edit pull request %d", number)
	ask := &github.PullRequest{Title: &title, Body: &body}
	if state != "" {
		ask.State = &state
	}
	_, _, err := g.client.PullRequests.Edit(ctx, g.cfg.Owner, g.cfg.Repo, number, ask)
	if missing(err) {
		return fault.New(fault.NotFound, "%s at %s: there is none", doing, g.Name())
	}
	if err != nil {
		return g.explain(doing, needsPush, err)
	}
	return nil
}

// Introduced returns the numbers of the merged pull requests that brought a commit of a
// branch there, as it is or squashed or rebased.
func (g *GitHub) Introduced(ctx context.Context, id pipeline.CommitID) ([]int, error) {
	list, err := every(g, "list pull requests of commit "+id.Short(), needsPulls, func(o github.ListOptions) ([]*github.PullRequest, *github.Response, error) {
		return g.client.PullRequests.ListPullRequestsWithCommit(ctx, g.cfg.Owner, g.cfg.Repo, string(id), &o)
	})
	var out []int
	for _, p := range list {
		if p.MergedAt != nil {
			out = append(out, p.GetNumber())
		}
	}
	return out, err
}

// ClosedBy returns who closed a pull request and when, nobody when that is not said.
func (g *GitHub) ClosedBy(ctx context.Context, number int) (pipeline.Account, time.Time, error) {
	i, _, err := g.client.Issues.Get(ctx, g.cfg.Owner, g.cfg.Repo, number)
	if err != nil {
		return pipeline.Account{}, time.Time{}, g.explain(fmt.Sprintf("read who closed pull request %d", number), needsPulls, err)
	}
	if i.ClosedBy == nil {
		return pipeline.Account{}, i.GetClosedAt().UTC(), nil
	}
	return accountOf(i.ClosedBy), i.GetClosedAt().UTC(), nil
}

// Behind returns who brought about what head has that base has not; without a base,
// head itself. branch is the one that was pushed to, "" when none was.
func (g *GitHub) Behind(ctx context.Context, branch string, base, head pipeline.CommitID) (pipeline.PullPeople, error) {
	var out pipeline.PullPeople
	commits, err := g.between(ctx, base, head)
	if err != nil {
		return out, g.explain("read who wrote "+head.Short(), needsContents, err)
	}
	if len(commits) >= mostCommits {
		out.Unknown = fmt.Sprintf("it has %d commits or more", mostCommits)
	}
	wrote(&out, commits)
	if branch == "" {
		return out, nil
	}
	pusher, err := g.pusher(ctx, branch, head)
	if err != nil {
		return out, err
	}
	if pusher.ID == 0 && out.Unknown == "" {
		out.Unknown = "GitHub does not say who pushed " + head.Short()
	}
	out.Accounts = append(out.Accounts, pusher)
	return out, nil
}

// between lists at most mostCommits commits.
func (g *GitHub) between(ctx context.Context, base, head pipeline.CommitID) ([]*github.RepositoryCommit, error) {
	var out []*github.RepositoryCommit
	opts := &github.ListOptions{PerPage: perPage, Page: 1}
	for base != "" && len(out) < mostCommits {
		c, _, err := g.client.Repositories.CompareCommits(ctx, g.cfg.Owner, g.cfg.Repo, string(base), string(head), opts)
		if missing(err) {
			break // the base is gone, as after a force-push
		}
		if err != nil {
			return nil, err
		}
		out = append(out, c.Commits...)
		if len(out) >= c.GetTotalCommits() {
			return out, nil
		}
		if len(c.Commits) == 0 {
			return nil, fault.New(fault.Unavailable, "it lists %d commits of %d", len(out), c.GetTotalCommits())
		}
		opts.Page++
	}
	if len(out) > 0 {
		return out, nil
	}
	c, _, err := g.client.Repositories.GetCommit(ctx, g.cfg.Owner, g.cfg.Repo, string(head), &github.ListOptions{PerPage: 1})
	return append(out, c), err
}

// wrote adds who wrote, co-wrote or committed the commits.
func wrote(p *pipeline.PullPeople, commits []*github.RepositoryCommit) {
	for _, c := range commits {
		for _, u := range []*github.User{c.Author, c.Committer} {
			if u.GetID() != 0 {
				p.Accounts = append(p.Accounts, accountOf(u))
			}
		}
		for _, m := range coauthorRE.FindAllStringSubmatch(c.GetCommit().GetMessage(), -1) {
			p.Named = append(p.Named, m[1])
		}
	}
}
