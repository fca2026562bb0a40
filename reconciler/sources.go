package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/sources"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// sourceSet watches the source repositories that are in force, each by itself: one
// that cannot be read holds up nothing else.
type sourceSet struct {
	s    *server
	wake chan struct{}

	mu      sync.Mutex
	live    *pipeline.Config        // guarded by mu; nil before the first
	watched map[string]*sourceWatch // guarded by mu; by name
}

func newSourceSet(s *server) *sourceSet {
	return &sourceSet{s: s, wake: make(chan struct{}, 1), watched: map[string]*sourceWatch{}}
}

// declare says what is in force. It does not wait.
func (w *sourceSet) declare(cfg pipeline.Config) {
	w.mu.Lock()
	w.live = &cfg
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// inForce returns what was declared last; the caller must not change it.
func (w *sourceSet) inForce() *pipeline.Config {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.live == nil {
		return &pipeline.Config{}
	}
	return w.live
}

// watch returns the watch of a source repository, or nil.
func (w *sourceSet) watch(name string) *sourceWatch {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.watched[name]
}

// statusesChanged wakes those who show statuses.
func (w *sourceSet) statusesChanged() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.watched {
		if c := x.converger.Load(); c != nil {
			c.Wake()
		}
	}
}

// hint makes the source repositories that are OWNER/NAME at GitHub be looked at, and
// reports whether there are any.
func (w *sourceSet) hint(name string) (found bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.watched {
		if src := x.source.Load(); src != nil && strings.EqualFold(w.s.opt.onGitHub(x.URL), name) && name != "" {
			src.Hint()
			if pulls := x.pulls.Load(); pulls != nil {
				pulls.Hint()
			}
			found = true
		}
	}
	return found
}

// run starts and ends watches as repositories come into force and go, until ctx ends.
func (w *sourceSet) run(ctx context.Context) error {
	defer func() {
		for name := range w.watched {
			w.stop(name)
		}
	}()
	const again = 5 * time.Second
	for retry := (<-chan time.Time)(nil); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		case <-retry:
		}
		retry = nil
		if err := w.reconcile(ctx); err != nil && ctx.Err() == nil {
			w.s.log.Error("source repositories not brought up to date", "err", err)
			retry = time.After(again)
		}
	}
}

func (w *sourceSet) reconcile(ctx context.Context) error {
	live := w.inForce()
	wanted := map[string]wantedSource{}
	for _, r := range live.Repositories {
		r.Pos = pipeline.Position{} // where it is written changes nothing
		wanted[r.Name] = wantedSource{r, loop.AsksForPulls(live, r.Name)}
	}
	for name, x := range w.watched {
		if !reflect.DeepEqual(wanted[name], x.wantedSource) {
			w.stop(name)
		}
	}
	if err := w.s.commits.KeepSources(ctx, live); err != nil {
		return err
	}
	for name, r := range wanted {
		if w.watched[name] == nil {
			w.start(ctx, r)
		}
	}
	return nil
}

func (w *sourceSet) start(ctx context.Context, r wantedSource) {
	ctx, cancel := context.WithCancel(ctx)
	x := &sourceWatch{s: w.s, wantedSource: r, log: w.s.log.With("source", r.Name), cancel: cancel, done: make(chan struct{})}
	w.mu.Lock()
	w.watched[r.Name] = x
	w.mu.Unlock()
	go func() { // ended by stop, which waits for it
		defer close(x.done)
		x.run(ctx)
	}()
}

func (w *sourceSet) stop(name string) {
	x := w.watched[name]
	x.cancel()
	<-x.done
	w.mu.Lock()
	delete(w.watched, name)
	w.mu.Unlock()
}

// wantedSource is what is in force of a source repository.
type wantedSource struct {
	pipeline.Repository
	asksForPulls bool
}

// sourceWatch watches one source repository.
type sourceWatch struct {
	wantedSource
	s      *server
	log    *slog.Logger
	cancel context.CancelFunc
	done   chan struct{}

	converger atomic.Pointer[forge.Converger]
	source    atomic.Pointer[sources.Source[gitrepo.Refs]]
	pulls     atomic.Pointer[sources.Source[openPulls]] // nil unless they are asked for
	seenAt    atomic.Int64                              // when it last answered, Unix nanoseconds

	troubled sync.Mutex
	// Why the repository and its pull requests cannot be read, "" when they can, and what
	// was told of it last; guarded by troubled.
	trouble, pullTrouble string
	told                 *string

	mu  sync.RWMutex
	git *gitrepo.Repo // guarded by mu; nil while it is not open
}

func (x *sourceWatch) run(ctx context.Context) {
	git := x.open(ctx)
	if git == nil {
		return
	}
	x.setGit(git)
	defer func() {
		x.setGit(nil)
		if err := git.Close(); err != nil {
			x.log.Error("not closed cleanly", "err", err)
		}
	}()
	var beside sync.WaitGroup
	defer beside.Wait()
	f, err := x.s.forgeOf(&x.Repository, git)
	if err != nil {
		x.log.Error("statuses of a source repository are not shown", "err", err)
	} else if f != nil {
		c := forge.NewConverger(forge.Config{Forge: f, Register: x.s.db.Register(x.Name), Log: x.log})
		x.converger.Store(c)
		beside.Go(func() { _ = c.Run(ctx) }) // which ends with ctx alone
	}
	src := &loop.Source{
		Repository: x.Repository, History: &repository{repo: git}, Bring: git.Bring,
		Between: func(ctx context.Context, base, head pipeline.CommitID) (loop.Span, error) {
			return span(ctx, git, base, head)
		},
	}
	if x.asksForPulls {
		beside.Go(func() { x.watchPulls(ctx, f, src) }) // likewise
	}
	source := sources.New(sources.Config[gitrepo.Refs]{
		Repo: loggedIn{git, x}, Poll: x.s.opt.poll, Log: x.log, Problem: x.problem,
		Observe: func(ctx context.Context, refs gitrepo.Refs) error {
			x.problem(ctx, nil)
			more, err := x.s.commits.ObserveSource(ctx, src, refs.Tips)
			x.seenAt.Store(time.Now().UnixNano())
			if err == nil && more {
				return sources.ErrMore
			}
			return err
		},
	})
	x.source.Store(source)
	_ = source.Run(ctx) // likewise
}

// open opens the repository, however often that takes, or returns nil when ctx ends.
func (x *sourceWatch) open(ctx context.Context) *gitrepo.Repo {
	for said := ""; ; {
		git, err := x.s.openSource(ctx, &x.Repository, filepath.Join(x.s.opt.data, "sources", x.Name))
		if err == nil {
			return git
		}
		if err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			x.log.Warn("source repository cannot be opened", "err", err)
			x.problem(ctx, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(x.s.opt.poll):
		}
	}
}

func (x *sourceWatch) setGit(git *gitrepo.Repo) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.git = git
}

// problem records why the repository cannot be read, nil when it can.
func (x *sourceWatch) problem(ctx context.Context, problem error) { x.tell(ctx, &x.trouble, problem) }

// tell records what is wrong with the repository or with its pull requests.
func (x *sourceWatch) tell(ctx context.Context, what *string, problem error) {
	x.troubled.Lock()
	defer x.troubled.Unlock()
	*what = ""
	if problem != nil {
		*what = problem.Error()
	}
	sentence := strings.Trim(x.trouble+"; "+x.pullTrouble, "; ")
	if x.told != nil && *x.told == sentence {
		return
	}
	key := loop.SourceKey(&x.Repository)
	err := x.s.db.Write(ctx, func(tx *store.Tx) error { return tx.RepositoryProblem(key, sentence) })
	if err == nil {
		err = x.s.proposals.RestateLive(ctx)
	}
	if err == nil {
		x.told = &sentence
	} else if ctx.Err() == nil {
		x.log.Error("repository problem not recorded", "err", err)
	}
}

// between tells what head has that base has not.
func (w *sourceSet) between(ctx context.Context, name string, base, head pipeline.CommitID) (loop.Span, error) {
	x := w.watch(name)
	if x == nil {
		return loop.Span{}, fault.New(fault.NotFound, "repository %s is not declared", name)
	}
	x.mu.RLock() // it is not closed meanwhile
	defer x.mu.RUnlock()
	if x.git == nil {
		return loop.Span{}, fault.New(fault.Unavailable, "repository %s cannot be read now", name)
	}
	return span(ctx, x.git, base, head)
}

// loggedIn is a repository that is not asked while its credentials cannot be read: the
// answer would only be that somebody has to log in.
type loggedIn struct {
	*gitrepo.Repo
	x *sourceWatch
}

func (l loggedIn) Fetch(ctx context.Context) (gitrepo.Refs, error) {
	if name := l.x.Credentials; name != "" {
		if _, err := l.x.s.secrets.Secret(name); err != nil {
			return gitrepo.Refs{}, err
		}
	}
	return l.Repo.Fetch(ctx)
}

// openSource opens a source repository where its address is one that may be read.
func (s *server) openSource(ctx context.Context, r *pipeline.Repository, mirror string) (*gitrepo.Repo, error) {
	allowed := s.opt.allowsSource(r.URL)
	if !allowed && !strings.HasPrefix(r.URL, "https://") {
		return nil, fault.New(fault.Invalid,
			"repository %s is at %s, which this server may not read; its operator can allow it with --allow-source", r.Name, r.URL)
	}
	git, err := gitrepo.Open(ctx, gitrepo.Options{
		URL: r.URL, Dir: mirror, Log: s.log, Public: !allowed, Credentials: func() (user, secret string) { return s.login(r.Credentials) },
	})
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", r.Name, err)
	}
	return git, nil
}

// login reads what to log in with: a token, or user:password.
func (s *server) login(name pipeline.SecretName) (user, secret string) {
	if name == "" {
		return "", ""
	}
	v, err := s.secrets.Secret(name)
	if err != nil {
		s.log.Error("credentials not read", "secret", name, "err", err)
		return "", ""
	}
	if user, password, both := strings.Cut(v, ":"); both {
		return user, password
	}
	return "", v
}

// allowsSource reports whether an address is below one that the operator allows.
func (o *options) allowsSource(address string) bool {
	for _, prefix := range o.allowSource {
		if below(address, prefix) {
			return true
		}
	}
	return false
}

// below reports whether an address is a prefix or continues it after a slash. What
// comes before the path has to be the same.
func below(address, prefix string) bool {
	a, p := place(address), place(prefix)
	if a == nil || p == nil || !strings.EqualFold(a.Scheme, p.Scheme) || !strings.EqualFold(a.Host, p.Host) {
		return false
	}
	root := strings.TrimRight(p.Path, "/")
	return strings.TrimRight(a.Path, "/") == root || strings.HasPrefix(a.Path, root+"/")
}

// place is an address as a URL, a path as file://, nil for what is neither.
func place(s string) *url.URL {
	if strings.HasPrefix(s, "/") {
		return &url.URL{Scheme: "file", Path: filepath.Clean(s)}
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Host == "" && u.Scheme != "file" || u.User != nil {
		return nil
	}
	return u
}

// forgeOf returns where the statuses of a source repository are shown, nil for nowhere.
func (s *server) forgeOf(r *pipeline.Repository, git *gitrepo.Repo) (forge.Forge, error) {
	switch {
	case s.opt.forge == "none":
		return nil, nil
	case s.opt.forge == "github":
		if name := s.opt.onGitHub(r.URL); name != "" {
			return s.openGitHub(name)
		}
	}
	return forge.NewLocal(git), nil
}

// onGitHub returns OWNER/NAME of a repository of the GitHub that statuses are posted
// to, "" for one elsewhere.
func (o *options) onGitHub(address string) string {
	api, err := url.Parse(o.githubAPI)
	at, err2 := url.Parse(address)
	if err != nil || err2 != nil || at.Scheme == "file" {
		return ""
	}
	host := api.Host
	if host == "api.github.com" {
		host = "github.com"
	}
	name := strings.TrimSuffix(strings.Trim(at.Path, "/"), ".git")
	if !strings.EqualFold(at.Host, host) || strings.Count(name, "/") != 1 {
		return ""
	}
	return name
}
