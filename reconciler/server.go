package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/fleet"
	"github.com/maestro-cd/maestro/reconciler/internal/forge"
	"github.com/maestro-cd/maestro/reconciler/internal/hooks"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/sources"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
	"github.com/maestro-cd/maestro/reconciler/internal/web"
)

// shutdownTime bounds how long an orderly stop may take. Nothing is lost when it
// is not met: the record is written before anything is acknowledged.
const shutdownTime = 5 * time.Second

// server is the control plane, wired: each room with those that it talks to. It
// lives from open to close.
type server struct {
	opt options
	log *slog.Logger

	db        *store.DB
	logs      *store.Logs
	repo      *gitrepo.Repo
	evaluator *config.Evaluator
	bundles   *bundles
	fleet     *fleet.Fleet
	runs      *loop.Runs
	commits   *loop.Commits
	proposals *loop.Proposals
	github    *forge.GitHub   // nil without pull requests
	pulls     *loop.Pulls     // likewise
	commenter *loop.Commenter // likewise
	// doorkeeper is nil likewise.
	doorkeeper *loop.Doorkeeper
	// gitHubHost is what all repositories at GitHub share.
	gitHubHost func() (*forge.Host, error)
	watcher    *sources.Source[gitrepo.Refs]
	sources    *sourceSet
	converger  *forge.Converger // nil with --forge none
	secrets    *secrets
	keeper     *keeper
	collector  *collector
	seenAt     atomic.Int64 // when the repository last answered, Unix nanoseconds

	// Why the repository and the forge cannot be asked, "" when they can; guarded by
	// troubled.
	troubled            sync.Mutex
	gitTrouble, trouble string

	web, intake, admin net.Listener
}

// addresses is what a running server writes to its data folder, for the commands
// that talk to it and for tests that let it choose its ports.
type addresses struct {
	Web    string `json:"web"`
	Intake string `json:"intake"`
	PID    int    `json:"pid"`
}

const addressesFile = "server.json"

// openServer takes hold of all that the server needs, or of nothing.
func openServer(ctx context.Context, opt options, log *slog.Logger) (_ *server, err error) {
	s := &server{opt: opt, log: log}
	s.gitHubHost = sync.OnceValues(s.openGitHubHost)
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := os.MkdirAll(opt.data, 0o700); err != nil {
		return nil, fault.New(fault.Invalid, "make the data folder: %w", err)
	}
	if err := backupBeforeMigration(ctx, opt, log); err != nil {
		return nil, err
	}
	if s.db, err = store.Open(ctx, opt.data, log); err != nil {
		return nil, err
	}
	s.keeper = newKeeper(opt, s.db, log)
	// The fleet and the loop know each other; the loop is made first and finds the
	// fleet here once it exists.
	late := &lateFleet{}
	if s.logs, err = store.OpenLogs(ctx, opt.data, log, store.LogOptions{OnDurable: late.logDurable}); err != nil {
		return nil, err
	}
	if err := s.openRepository(ctx); err != nil {
		return nil, err
	}
	if err := s.openRooms(late); err != nil {
		return nil, err
	}
	if err := s.listen(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *server) openRepository(ctx context.Context) error {
	var err error
	s.repo, err = gitrepo.Open(ctx, gitrepo.Options{
		URL: s.opt.repo, Dir: filepath.Join(s.opt.data, "mirror"), Log: s.log, Credentials: s.credentials,
	})
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	s.evaluator = config.New(config.Options{
		Child: []string{self, evaluateCommand}, CacheDir: filepath.Join(s.opt.data, "evaluated"), Log: s.log,
	})
	s.bundles, err = openBundles(s.opt.data, s.log)
	return err
}

func (s *server) credentials() (user, secret string) {
	if s.opt.gitTokenFile == "" {
		if t := s.appToken(); t != "" {
			return "x-access-token", t
		}
		return "", ""
	}
	token, err := secretFile(s.opt.gitTokenFile)
	if err != nil {
		s.log.Error("git token not read", "err", err)
		return "", ""
	}
	return s.opt.gitUser, token
}

func (s *server) openRooms(late *lateFleet) error {
	if _, err := s.opt.secretKeys(); err != nil {
		return err
	}
	s.secrets, s.sources = valuesOf(s.repo, s.opt), newSourceSet(s)
	repository := &repository{repo: s.repo, evaluator: s.evaluator, bundles: s.bundles}
	wake, github, err := s.openForge()
	if err != nil {
		return err
	}
	s.runs = loop.New(loop.Config{
		DB: s.db, Logs: logLengths{s.logs}, Fleet: late, Filler: repository, Secrets: s.secrets, Law: s.law, Live: s.live, Log: s.log, Hold: s.keeper.hold,
		Default: s.opt.ref(), Repo: s.opt.repo, URL: s.opt.public, StatusesChanged: wake,
		Proposals: true,
	})
	s.commits = loop.NewCommits(loop.CommitsConfig{
		DB: s.db, Repository: s.opt.only.of(repository), Filler: repository, Runs: s.runs, Log: s.log, Name: s.opt.repo, Default: s.opt.ref(),
		RunTip: s.opt.runTip, URL: s.opt.public, StatusesChanged: wake, Live: s.inForce,
		Proposals: true,
	})
	talk := &discussion{repository: repository, sources: s.sources}
	s.proposals = loop.NewProposals(loop.ProposalsConfig{
		DB: s.db, Discussion: talk, Commits: s.commits, Runs: s.runs, Log: s.log,
		Name: s.opt.repo, Default: s.opt.ref(), Branches: s.opt.proposals(), Pulls: github != nil, Notes: s.opt.forge == "local",
		Unsigned: s.opt.unsignedReviews, URL: s.opt.public, StatusesChanged: wake, Look: s.lookAtPulls, Introduced: introduced(github),
	})
	if github != nil {
		s.openPulls(github, talk)
	}
	s.collector = &collector{db: s.db, logs: s.logs, policy: s.law, followed: s.commits.Followed, log: s.log}
	s.watcher = sources.New(sources.Config[gitrepo.Refs]{
		Repo: s.repo, Poll: s.opt.poll, Log: s.log, Observe: s.observe, Problem: s.problem,
	})
	s.fleet = fleet.New(fleet.Config{
		Server: s.db.ID(), Reached: s.reached, Admit: s.admit, Log: s.log, Registry: s.db, Events: s.runs,
		Logs: s.logs, Bundles: s.bundles,
	})
	late.fleet.Store(s.fleet)
	s.keeper.rolled = s.dropAll // for an agent that was let in at the same moment
	return nil
}

// inForce is told of each configuration that comes into force.
func (s *server) inForce(cfg pipeline.Config) {
	s.secrets.declare(cfg)
	if s.opt.only == nil { // else it is a trial of one composition
		s.sources.declare(cfg)
	}
}

// live is the configuration in force, nil while that is not known.
func (s *server) live() *pipeline.Config { return s.commits.Live() }

// law is the policy in force.
func (s *server) law() (*pipeline.Policy, error) {
	return s.commits.Law()
}

// openForge makes the converger and returns what wakes it, and where pull requests
// live, nil when nowhere.
func (s *server) openForge() (wake func(), github *forge.GitHub, err error) {
	var f forge.Forge
	switch s.opt.forge {
	case "local":
		f = forge.NewLocal(s.repo)
	case "github":
		if github, err = s.openGitHub(s.opt.githubRepo); err != nil {
			return nil, nil, err
		}
		f, s.github = github, github
		if s.opt.public == "" {
			s.log.Warn("statuses and comments have no links", "next", "give --public-url, the address at which people reach the web view")
		}
	default:
		return func() {}, nil, nil
	}
	s.converger = forge.NewConverger(forge.Config{Forge: f, Register: s.db.Register(""), Log: s.log})
	return func() {
		s.converger.Wake()
		s.sources.statusesChanged()
	}, github, nil
}

func (s *server) reached() (incarnation int64, seq pipeline.Seq) {
	w := s.db.Watermark()
	return w.Incarnation, w.Seq
}

// admit keeps all agents out while the record is older than it was: each keeps what it
// holds, and would lose it to a record that does not know of it. The word of an agent
// that runs what nobody approved is not taken.
func (s *server) admit(a pipeline.Agent, seen wire.Seen) string {
	before := s.db.Rollback()
	if seen.Server != "" && !a.Untrusted {
		known := store.Watermark{StoreID: seen.Server, Incarnation: seen.Incarnation, Seq: seen.Seq}
		ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		if _, err := s.db.Saw(ctx, known, "agent "+a.Name); err != nil {
			s.log.Error("rollback not remembered", "err", err)
		}
	}
	now := s.db.Rollback()
	if now == nil {
		return ""
	}
	if before == nil {
		s.log.Error("the record is older than it was", "known_seq", now.Known.Seq, "known_incarnation", now.Known.Incarnation,
			"seq", now.Found.Seq, "incarnation", now.Found.Incarnation, "by", now.By)
		s.dropAll()
	}
	return heldBack
}

// dropAll ends the sessions of all agents, which come back.
func (s *server) dropAll() {
	for _, id := range s.fleet.Online() {
		s.fleet.Drop(id, heldBack)
	}
}

// observe is called with the refs as they are now.
func (s *server) observe(ctx context.Context, refs gitrepo.Refs) error {
	s.seenAt.Store(time.Now().UnixNano())
	err := s.commits.Observe(ctx, refs.Tips)
	s.proposals.Observe(loop.Observed{Tips: refs.Tips, Own: refs.Own, Truncated: refs.OwnTruncated})
	if _, ok := refs.Tips[s.opt.ref()]; !ok && err == nil {
		err = fault.New(fault.NotFound, "branch %s does not exist: push a commit to it; what was live stays live", s.opt.branch)
		s.problem(ctx, err)
		return nil
	}
	if err != nil {
		return err
	}
	s.problem(ctx, nil)
	if s.commits.Behind() {
		return sources.ErrMore
	}
	return nil
}

// problem records why the repository cannot be read, nil when it can.
func (s *server) problem(ctx context.Context, problem error) {
	s.tell(ctx, &s.gitTrouble, problem)
}

// tell records what is wrong with one of the two that the repository is made of.
func (s *server) tell(ctx context.Context, what *string, problem error) {
	s.troubled.Lock()
	defer s.troubled.Unlock()
	*what = ""
	if problem != nil {
		*what = problem.Error()
	}
	sentence := strings.Trim(s.gitTrouble+"; "+s.trouble, "; ")
	err := s.db.Write(ctx, func(tx *store.Tx) error { return tx.RepositoryProblem(s.opt.repo, sentence) })
	if err != nil && ctx.Err() == nil {
		s.log.Error("repository problem not recorded", "err", err)
	}
}

func (s *server) listen() error {
	var err error
	if s.web, err = s.listenOn(s.opt.listen, "--listen"); err != nil {
		return err
	}
	if s.intake, err = s.listenOn(s.opt.intake, "--intake"); err != nil {
		return err
	}
	if s.opt.public == "" {
		s.opt.public = "http://" + s.web.Addr().String()
	}
	s.admin, err = listenAdmin(s.opt.data)
	return err
}

func (s *server) listenOn(addr, flag string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err == nil {
		return ln, nil
	}
	host, _, splitErr := net.SplitHostPort(addr)
	if s.opt.lenientPorts && splitErr == nil {
		if ln, err2 := net.Listen("tcp", net.JoinHostPort(host, "0")); err2 == nil {
			fmt.Fprintf(os.Stderr, "%s is in use; took %s instead\n", addr, ln.Addr())
			return ln, nil
		}
	}
	return nil, fault.New(fault.Invalid, "listen on %s: %w; choose another address with %s", addr, err, flag)
}

// run serves until ctx ends, then stops in order: nothing new comes in, what is
// under way is written, and the record is closed last, by close.
func (s *server) run(ctx context.Context, ready func(addresses)) error {
	at := addresses{Web: "http://" + s.web.Addr().String(), Intake: "http://" + s.intake.Addr().String(), PID: os.Getpid()}
	pages, err := web.New(web.Config{
		Source: &view{s}, Version: version(), Public: s.opt.public, Intake: at.Intake, Log: s.log,
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.runs.Run(ctx) })
	g.Go(func() error {
		if err := s.commits.Resume(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("what was in force is not known yet", "err", err)
		}
		return s.watcher.Run(ctx)
	})
	g.Go(func() error { return s.sources.run(ctx) })
	g.Go(func() error { return s.commits.Run(ctx) })
	g.Go(func() error { return s.proposals.Run(ctx) })
	g.Go(func() error { return s.keeper.run(ctx) })
	g.Go(func() error { return s.collector.run(ctx) })
	if s.converger != nil {
		g.Go(func() error { return s.converger.Run(ctx) })
	}
	if s.pulls != nil {
		g.Go(func() error { return s.pulls.Run(ctx) })
		g.Go(func() error { return s.commenter.Run(ctx) })
		g.Go(func() error { return s.doorkeeper.Run(ctx) })
	}
	s.serveHTTP(ctx, g, s.web, pages)
	s.serveHTTP(ctx, g, s.intake, s.intakeHandler())
	s.serveHTTP(ctx, g, s.admin, s.adminHandler())
	g.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		return s.fleet.Close(stop)
	})
	if err := s.announce(at); err != nil {
		return err
	}
	ready(at)
	err = g.Wait()
	if errors.Is(err, context.Canceled) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// intakeHandler serves what comes in: webhooks, and all else to the agents' paths.
// Neither side may get a path that was cleaned.
func (s *server) intakeHandler() http.Handler {
	posts := hooks.New(hooks.Config{Secret: s.hookSecret, Deliver: s.commits.Deliver, Log: s.log})
	agents := s.fleet.Handler()
	github := s.gitHubPosts()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if github != nil && r.URL.EscapedPath() == hooks.GitHubPath {
			github.ServeHTTP(w, r)
			return
		}
		if strings.HasPrefix(r.URL.EscapedPath(), hooks.Path) {
			posts.ServeHTTP(w, r)
			return
		}
		agents.ServeHTTP(w, r)
	})
}

func (s *server) announce(at addresses) error {
	b, err := json.Marshal(at)
	if err != nil {
		return fmt.Errorf("write addresses: %w", err)
	}
	return durable.WriteFile(filepath.Join(s.opt.data, addressesFile), b, 0o600)
}

func (s *server) serveHTTP(ctx context.Context, g *errgroup.Group, ln net.Listener, h http.Handler) {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, WriteTimeout: time.Minute, // streams extend it
		ErrorLog:    slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	g.Go(func() error { return srv.Serve(ln) })
	g.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		if err := srv.Shutdown(stop); err != nil {
			return srv.Close()
		}
		return nil
	})
}

func (s *server) close() {
	for _, ln := range []net.Listener{s.web, s.intake, s.admin} {
		if ln != nil {
			_ = ln.Close()
		}
	}
	type closer interface{ Close() error }
	var all []closer
	if s.evaluator != nil {
		all = append(all, s.evaluator)
	}
	if s.repo != nil {
		all = append(all, s.repo)
	}
	if s.logs != nil {
		all = append(all, s.logs)
	}
	if s.db != nil {
		all = append(all, s.db)
	}
	for _, c := range all {
		if err := c.Close(); err != nil {
			s.log.Error("not closed cleanly", "what", fmt.Sprintf("%T", c), "err", err)
		}
	}
}

// lateFleet is the fleet for those that are made before it. Until then no agent is
// connected, which is what it says.
type lateFleet struct{ fleet atomic.Pointer[fleet.Fleet] }

func (l *lateFleet) Send(id pipeline.AgentID, m wire.Message) bool {
	f := l.fleet.Load()
	return f != nil && f.Send(id, m)
}

func (l *lateFleet) Drop(id pipeline.AgentID, reason string) {
	if f := l.fleet.Load(); f != nil {
		f.Drop(id, reason)
	}
}

func (l *lateFleet) logDurable(id pipeline.AttemptID, length int64, gap bool) {
	if f := l.fleet.Load(); f != nil {
		f.LogDurable(id, length, gap)
	}
}
