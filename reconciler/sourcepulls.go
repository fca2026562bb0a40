package main

import (
	"context"
	"slices"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/sources"
)

// openPulls are the open pull requests of a source repository.
type openPulls []pipeline.Pull

// Equal reports whether they would start the same: what people say of them is no matter.
func (o openPulls) Equal(other openPulls) bool {
	return slices.EqualFunc(o, other, func(a, b pipeline.Pull) bool {
		return a.Number == b.Number && a.Head == b.Head && a.Target == b.Target && a.Ref() == b.Ref()
	})
}

// pullsOf reads them at GitHub.
type pullsOf struct{ github *forge.GitHub }

func (p pullsOf) Fetch(ctx context.Context) (openPulls, error) { return p.github.Pulls(ctx) }
func (p pullsOf) WatchDirs() []string                          { return nil }
func (p pullsOf) String() string                               { return p.github.Name() }

// watchPulls watches the pull requests of a source repository until ctx ends.
func (x *sourceWatch) watchPulls(ctx context.Context, f forge.Forge, src *loop.Source) {
	github := seesPulls(f)
	if github == nil {
		x.tell(ctx, &x.pullTrouble, unseen(&x.Repository))
		return
	}
	pulls := sources.New(sources.Config[openPulls]{
		Repo: pullsOf{github}, Poll: x.s.opt.poll, Log: x.log,
		Problem: func(ctx context.Context, err error) { x.tell(ctx, &x.pullTrouble, err) },
		Observe: func(ctx context.Context, open openPulls) error { return x.s.commits.ObservePulls(ctx, src, open) },
	})
	x.pulls.Store(pulls)
	_ = pulls.Run(ctx) // it ends with ctx alone
}

// reachPulls looks once whether the pull requests of a source repository can be read.
func (s *server) reachPulls(ctx context.Context, r *pipeline.Repository) error {
	name := s.opt.onGitHub(r.URL)
	if s.opt.forge != "github" || name == "" {
		return unseen(r)
	}
	github, err := forge.NewGitHub(newGitHub(s.opt, name, s.log))
	if err == nil {
		_, err = github.Pulls(ctx)
	}
	return err
}

// seesPulls is the GitHub that a forge is, nil when it is none.
func seesPulls(f any) *forge.GitHub {
	github, _ := f.(*forge.GitHub)
	return github
}

// unseen says that a source repository shows no pull requests: refs that keep their heads
// elsewhere say neither which branch one is for, nor whether it is open, nor whether it
// comes from a fork.
func unseen(r *pipeline.Repository) error {
	return fault.New(fault.Invalid,
		"its pull requests cannot be seen: %s is not at the GitHub that --forge github and --github-api name; a trigger push: repo: %q sees branches", r.Name, r.Name)
}
