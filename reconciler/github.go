package main

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
	"github.com/maestro-cd/maestro/reconciler/internal/hooks"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/review"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

var _ loop.Forge = (*forge.GitHub)(nil)

// newGitHub is how a repository there is reached, which is OWNER/NAME.
func newGitHub(opt options, repo string, log *slog.Logger) forge.GitHubConfig {
	owner, name, _ := strings.Cut(repo, "/")
	var app *forge.App
	if opt.githubApp != 0 {
		app = &forge.App{ID: opt.githubApp, Key: func() ([]byte, error) {
			key, err := secretFile(opt.githubKeyFile)
			return []byte(key), err
		}}
	}
	return forge.GitHubConfig{
		App:   app,
		Owner: owner, Repo: name, BaseURL: opt.githubAPI, Log: log,
		Token: func() string {
			t, err := secretFile(opt.githubTokenFile)
			if err != nil {
				log.Error("github token not read", "err", err)
			}
			return t
		},
	}
}

// quietUntil is where the record keeps until when GitHub asked for silence.
const quietUntil = "quiet-until"

// openGitHub opens OWNER/NAME.
func (s *server) openGitHub(repo string) (*forge.GitHub, error) {
	cfg := newGitHub(s.opt, repo, s.log)
	var err error
	if cfg.Host, err = s.gitHubHost(); err != nil {
		return nil, err
	}
	return forge.NewGitHub(cfg)
}

// openGitHubHost goes on with the silence that GitHub asked for before a restart: it is
// about the token, hence about all repositories.
func (s *server) openGitHubHost() (*forge.Host, error) {
	text, err := s.db.ForgeFact(context.Background(), quietUntil)
	if err != nil {
		return nil, err
	}
	var quiet time.Time
	if text != "" {
		if quiet, err = time.Parse(time.RFC3339, text); err != nil {
			s.log.Warn("the time until which GitHub asked for silence cannot be read", "err", err)
		}
	}
	return forge.NewHost(quiet, func(until time.Time) {
		s.log.Warn("GitHub asks for silence", "until", until)
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		err := s.db.Write(ctx, func(tx *store.Tx) error { return tx.SetForgeFact(quietUntil, until.UTC().Format(time.RFC3339)) })
		if err != nil {
			s.log.Error("silence not recorded", "err", err)
		}
	}), nil
}

// checkGitHub asks GitHub whether it lets us do all that is needed.
func checkGitHub(ctx context.Context, opt options) []finding {
	f := finding{what: "forge"}
	g, err := forge.NewGitHub(newGitHub(opt, opt.githubRepo, slog.New(slog.DiscardHandler)))
	var who string
	var lacks []string
	if err == nil {
		who, lacks, err = g.Check(ctx)
	}
	if err != nil {
		f.err = err
		return []finding{f}
	}
	f.result = "github " + opt.githubRepo + ", as " + who
	found := []finding{f}
	for _, l := range lacks {
		found = append(found, finding{what: "forge", err: fault.New(fault.Invalid, "%s", l)})
	}
	return found
}

// checkTeams asks for each team that the policy at the tip names whether it is there.
func checkTeams(ctx context.Context, opt options, _ *client) (found []finding) {
	if opt.forge != "github" {
		return nil
	}
	g, err := forge.NewGitHub(newGitHub(opt, opt.githubRepo, slog.New(slog.DiscardHandler)))
	if err != nil {
		return nil // it is said of the forge
	}
	_ = atTip(ctx, opt, func(cfg pipeline.Config, _ *secrets) { // its error is said of the configuration
		for _, team := range review.Teams(cfg.Policy.Groups) {
			found = append(found, finding{what: "team", result: team, err: g.TeamThere(ctx, team)})
		}
	})
	return found
}

// appToken is a token for Git, where a GitHub App is all that there is.
func (s *server) appToken() string {
	if s.opt.githubApp == 0 || s.github == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	t, err := s.github.Token(ctx)
	if err != nil {
		s.log.Error("no token of the GitHub App for git", "err", err)
	}
	return t
}

func (s *server) openPulls(github *forge.GitHub, talk *discussion) {
	s.pulls = loop.NewPulls(loop.PullsConfig{
		DB: s.db, Forge: github, Proposals: s.proposals, Commits: s.commits, Log: s.log, Name: s.opt.repo, Bring: s.repo.Bring,
		Poll: s.opt.poll, Problem: func(ctx context.Context, err error) { s.tell(ctx, &s.trouble, err) },
	})
	s.doorkeeper = loop.NewDoorkeeper(loop.DoorkeeperConfig{
		DB: s.db, Forge: github, Discussion: talk, Proposals: s.proposals, Look: s.pulls.Hint, Log: s.log, URL: s.opt.public,
	})
	s.commenter = loop.NewCommenter(loop.CommenterConfig{DB: s.db, Forge: github, Log: s.log, Name: s.opt.repo, URL: s.opt.public})
}

// introduced is nil where there are no pull requests.
func introduced(github *forge.GitHub) func(context.Context, pipeline.CommitID) ([]int, error) {
	if github == nil {
		return nil
	}
	return github.Introduced
}

// lookAtPulls looks at pull requests at once.
func (s *server) lookAtPulls() {
	if s.pulls != nil {
		s.pulls.Hint(0)
	}
}

// gitHubPosts receives GitHub's webhooks, nil when they are not configured.
func (s *server) gitHubPosts() *hooks.GitHub {
	if s.pulls == nil || s.opt.githubHookFile == "" {
		return nil
	}
	return hooks.NewGitHub(hooks.GitHubConfig{
		Secret:     func() (string, error) { return secretFile(s.opt.githubHookFile) },
		Repository: s.opt.githubRepo, ID: s.pulls.RepositoryID, App: s.opt.githubApp, Log: s.log,
		Hint: func(h hooks.Hint) {
			if h.Pull == 0 || h.Event == "pull_request" { // a branch moved, or will have
				s.watcher.Hint()
			}
			if r := h.Rerun; r != nil {
				s.pulls.Rerun(loop.Rerun{Head: r.Head, By: r.By, Body: r.Body})
			}
			s.pulls.Hint(h.Pull)
		},
		Elsewhere: s.sources.hint,
	})
}
