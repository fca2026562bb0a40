package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

func checkData(_ context.Context, opt options, _ *client) []finding {
	f := finding{what: "data"}
	if err := os.MkdirAll(opt.data, 0o700); err != nil {
		f.err = fault.New(fault.Invalid, "%s cannot be made: %w; name another folder with --data", opt.data, err)
		return []finding{f}
	}
	probe, err := os.CreateTemp(opt.data, "check-*")
	if err != nil {
		f.err = fault.New(fault.Invalid, "%s cannot be written: %w", opt.data, err)
		return []finding{f}
	}
	defer os.Remove(probe.Name())
	defer probe.Close()
	f.result = opt.data + " can be written"
	if _, err := os.Stat(filepath.Join(opt.data, "maestro.db")); err == nil {
		f.result += ", holds a record"
	}
	return []finding{f, checkSpace(opt)}
}

func checkSpace(opt options) finding {
	f := finding{what: "disk"}
	space, err := store.SpaceOf(opt.data)
	if err != nil {
		f.err = err
		return f
	}
	f.result = fmt.Sprintf("%s of %s free", size(space.Free), size(space.Total))
	if mark := opt.lowWater.mark(space); space.Free < mark {
		f.err = fault.New(fault.Unavailable, "%s, and below %s nothing is given to agents: make room", f.result, size(mark))
	}
	return f
}

// checkBackups looks for one that is as new as the server would have it.
func checkBackups(_ context.Context, opt options, _ *client) []finding {
	f := finding{what: "backups", warning: true}
	if opt.backupEvery == 0 {
		f.err = fault.New(fault.Invalid, "the server makes none: --backup-every is 0")
		return []finding{f}
	}
	list, err := store.Backups(opt.backups())
	switch {
	case err != nil:
		f.err = err
	case len(list) == 0:
		f.result = fmt.Sprintf("none in %s yet; the server makes one every %s", opt.backups(), opt.backupEvery)
	default:
		f.result = fmt.Sprintf("%s in %s, the newest of %s", counted(len(list), "backup"), opt.backups(), ago(list[0].MadeAt))
	}
	return []finding{f}
}

func openForCheck(ctx context.Context, opt options) (*gitrepo.Repo, gitrepo.Refs, error) {
	s := &server{opt: opt, log: slog.New(slog.DiscardHandler)}
	if opt.githubApp != 0 {
		var err error
		if s.github, err = forge.NewGitHub(newGitHub(opt, opt.githubRepo, s.log)); err != nil {
			return nil, gitrepo.Refs{}, err
		}
	}
	repo, err := gitrepo.Open(ctx, gitrepo.Options{
		URL: opt.repo, Dir: filepath.Join(os.TempDir(), fmt.Sprintf("maestro-check-%d", os.Getpid())), Credentials: s.credentials,
	})
	if err != nil {
		return nil, gitrepo.Refs{}, err
	}
	refs, err := repo.Fetch(ctx)
	return repo, refs, err
}

func checkGit(ctx context.Context, opt options, _ *client) []finding {
	f := finding{what: "git"}
	repo, refs, err := openForCheck(ctx, opt)
	if repo != nil {
		defer closeForCheck(repo)
	}
	if err != nil {
		f.err = err
		return []finding{f}
	}
	tip, ok := refs.Tips[opt.ref()]
	if !ok {
		f.err = fault.New(fault.NotFound, "%s has no branch %s; push one, or name another with --branch", repo, opt.branch)
		return []finding{f}
	}
	f.result = fmt.Sprintf("%s, %s at %s", repo, opt.branch, tip.Short())
	return []finding{f}
}

func closeForCheck(repo *gitrepo.Repo) {
	_ = repo.Close()
	_ = os.RemoveAll(filepath.Join(os.TempDir(), fmt.Sprintf("maestro-check-%d", os.Getpid())))
}

func checkForge(ctx context.Context, opt options, _ *client) []finding {
	f := finding{what: "forge"}
	switch opt.forge {
	case "github":
		return checkGitHub(ctx, opt)
	case "local":
		f.result = "local: statuses as Git notes, refs/notes/maestro/status"
	default:
		f.result = "none: statuses go nowhere"
	}
	return []finding{f}
}

// checkRepository evaluates the tip and looks at what its secrets name.
func checkRepository(ctx context.Context, opt options, _ *client) []finding {
	f := finding{what: "configuration"}
	found := []finding{f}
	err := atTip(ctx, opt, func(cfg pipeline.Config, values *secrets) {
		f.result = describe(&cfg)
		if n := count(cfg.Diagnostics, pipeline.SeverityError); n > 0 {
			f.err = fault.New(fault.Invalid, "%s; see with: reconciler vet, in a working copy", counted(n, "error"))
		}
		for i := range cfg.Secrets {
			found = append(found, checkSecret(&cfg.Secrets[i], values))
		}
	})
	if err != nil {
		f.err, f.warning = err, fault.Is(err, fault.NotFound)
	}
	found[0] = f
	return found
}

// checkSecret reads a secret, as a task that names it would get it.
func checkSecret(d *pipeline.Secret, values *secrets) finding {
	f := finding{what: "secret", result: fmt.Sprintf("%s from %s", d.Name, d.Source())}
	if _, f.err = values.Secret(d.Name); f.err != nil && d.Env != "" {
		f.warning = os.Getenv(d.Env) == "" // the server may have another environment
	}
	return f
}

// checkSources looks whether each source repository of the tip can be read.
func checkSources(ctx context.Context, opt options, _ *client) (found []finding) {
	_ = atTip(ctx, opt, func(cfg pipeline.Config, values *secrets) { // its error is said of the configuration
		s := &server{opt: opt, log: slog.New(slog.DiscardHandler), secrets: values}
		for i := range cfg.Repositories {
			r := &cfg.Repositories[i]
			f := finding{what: "source", result: fmt.Sprintf("%s at %s", r.Name, r.URL)}
			f.err = s.reachSource(ctx, r)
			found = append(found, f)
			if f.err == nil && loop.AsksForPulls(&cfg, r.Name) {
				f.result = "pull requests of " + r.Name
				f.err = s.reachPulls(ctx, r)
				found = append(found, f)
			}
		}
	})
	return found
}

func (s *server) reachSource(ctx context.Context, r *pipeline.Repository) error {
	if r.Credentials != "" {
		if _, err := s.secrets.Secret(r.Credentials); err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
	}
	mirror, err := os.MkdirTemp("", "maestro-check-")
	if err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	defer os.RemoveAll(mirror)
	git, err := s.openSource(ctx, r, mirror)
	if err != nil {
		return err
	}
	defer git.Close()
	if err := git.Reach(ctx); err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	return nil
}

// atTip evaluates what the branch has, and shows it with the values of its secrets.
func atTip(ctx context.Context, opt options, use func(pipeline.Config, *secrets)) error {
	repo, refs, err := openForCheck(ctx, opt)
	if repo != nil {
		defer closeForCheck(repo)
	}
	tip, ok := refs.Tips[opt.ref()]
	if err != nil || !ok {
		return fault.New(fault.NotFound, "not looked at: there is no commit to evaluate")
	}
	tree, err := repo.Tree(ctx, tip)
	if err != nil {
		return err
	}
	e, err := newEvaluator(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer e.Close()
	cfg, err := e.Evaluate(ctx, tip, tree)
	if err != nil {
		return err
	}
	values := valuesOf(repo, opt)
	values.declare(cfg)
	use(cfg, values)
	return nil
}

func describe(cfg *pipeline.Config) string {
	return strings.Join([]string{
		counted(len(cfg.Compositions), "composition"), counted(len(cfg.Pools), "pool"),
		counted(len(cfg.Plugins), "plugin"), counted(len(cfg.Secrets), "secret"),
	}, ", ")
}

func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func count(ds []pipeline.Diagnostic, s pipeline.Severity) int {
	n := 0
	for _, d := range ds {
		if d.Severity == s {
			n++
		}
	}
	return n
}

func newEvaluator(log *slog.Logger) (*config.Evaluator, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	return config.New(config.Options{Child: []string{self, evaluateCommand}, Log: log}), nil
}

func checkServer(ctx context.Context, _ options, c *client) []finding {
	f := finding{what: "server"}
	if _, err := c.lastSeq(ctx); err != nil {
		f.err, f.warning = err, true
		return []finding{f}
	}
	f.result = "answers at " + c.base
	return []finding{f}
}

func checkAgents(ctx context.Context, _ options, c *client) []finding {
	f := finding{what: "agents"}
	var list struct {
		Agents []struct {
			Name   string `json:"name"`
			Online bool   `json:"online"`
		} `json:"agents"`
	}
	if err := c.get(ctx, "/agents", nil, &list); err != nil {
		f.err, f.warning = fault.New(fault.Unavailable, "not looked at: no server answers"), true
		return []finding{f}
	}
	online := 0
	for _, a := range list.Agents {
		if a.Online {
			online++
		}
	}
	f.result = fmt.Sprintf("%d of %d online", online, len(list.Agents))
	if online == 0 {
		f.err, f.warning = fault.New(fault.Unavailable, "%s: nothing can run; invite one with: reconciler agents invite", f.result), true
	}
	return []finding{f}
}
