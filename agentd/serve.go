package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/maestro-cd/maestro/agentd/internal/facts"
	"github.com/maestro-cd/maestro/agentd/internal/plugins"
	"github.com/maestro-cd/maestro/agentd/internal/runner"
	"github.com/maestro-cd/maestro/agentd/internal/session"
	"github.com/maestro-cd/maestro/internal/fault"
)

const (
	// factsEvery is how soon a change of the machine is noticed.
	factsEvery = time.Minute
	// Plugins that nobody asked for in a month are looked for once a day.
	gcEvery     = 24 * time.Hour
	keepPlugins = 30 * 24 * time.Hour
)

// errDrained is why everything ends when the last task has.
var errDrained = errors.New("all tasks are done")

// serve is agentd: it runs until a signal, or until a person has to act.
func serve(ctx context.Context, s settings, log *slog.Logger) error {
	if s.server == "" {
		return usageError{errors.New("--server is missing: the address of the reconciler, as https://host:port")}
	}
	var err error
	if s.server, err = serverAddress(s.server); err != nil {
		return err
	}
	token, err := joinToken(s)
	if err != nil {
		return err
	}
	if s.data, err = filepath.Abs(s.data); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	unlock, err := lockData(s.data)
	if err != nil {
		return err
	}
	defer unlock()

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, append(drainSignals, syscall.SIGTERM, os.Interrupt)...)
	defer signal.Stop(signals)

	a, err := newAgent(ctx, s, token, log)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { a.obey(ctx, signals, stop) }) // ends with ctx
	err = a.run(ctx, stop)
	stop(err)
	wg.Wait()
	return err
}

// serverAddress returns the address in the form that the session takes. What people
// write of a websocket is the same place.
func serverAddress(given string) (string, error) {
	s := strings.TrimRight(given, "/")
	for ws, http := range map[string]string{"ws://": "http://", "wss://": "https://"} {
		if rest, ok := strings.CutPrefix(s, ws); ok {
			s = http + rest
		}
	}
	u, err := url.Parse(s)
	switch {
	case !strings.Contains(s, "://") && strings.Contains(s, ":"):
		return "", usageError{fmt.Errorf("--server %q has no scheme: write http://%s, or https://%s when a proxy in front of it speaks TLS", given, s, s)}
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return "", usageError{fmt.Errorf("--server: the server address %q is not like https://host:port", given)}
	case u.Path != "":
		return "", usageError{fmt.Errorf("--server %q: leave out the path: %s://%s", given, u.Scheme, u.Host)}
	}
	return s, nil
}

// joinToken reads the token from wherever it is given.
func joinToken(s settings) (string, error) {
	if s.tokenFile == "" {
		return s.token, nil
	}
	if s.token != "" {
		return "", usageError{errors.New("--token and --token-file are both given; one is enough")}
	}
	b, err := os.ReadFile(s.tokenFile)
	if err != nil {
		return "", fault.New(fault.Invalid, "read join token: %w; make one with: reconciler agents invite > %s", err, s.tokenFile)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fault.New(fault.Invalid, "read join token: %s is empty; make one with: reconciler agents invite > %s", s.tokenFile, s.tokenFile)
	}
	return token, nil
}

// agent is everything that runs.
type agent struct {
	log     *slog.Logger
	facts   *facts.Collector
	plugins *plugins.Cache
	runner  *runner.Runner
	session *session.Session
	told    atomic.Pointer[json.RawMessage] // the facts that the control plane was told
}

// tell collects the facts for the control plane.
func (a *agent) tell(ctx context.Context) json.RawMessage {
	f := a.facts.Collect(ctx)
	a.told.Store(&f)
	return f
}

// known returns the facts as they were last told.
func (a *agent) known() json.RawMessage {
	if f := a.told.Load(); f != nil {
		return *f
	}
	return nil
}

func newAgent(ctx context.Context, s settings, token string, log *slog.Logger) (*agent, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the agentd binary: %w", err)
	}
	id, err := session.LoadIdentity(s.data)
	if err != nil {
		return nil, err
	}
	policy, err := runner.LoadPolicy(filepath.Join(s.data, "policy.json"))
	if err != nil {
		return nil, err
	}
	log.Info("agentd starts", "agent_id", id, "name", s.name, "build", build(), "data", s.data, "server", s.server)
	a := &agent{log: log, facts: facts.New(factsDir(s.data), log)}
	a.plugins = plugins.New(plugins.Config{
		Dir: filepath.Join(s.data, "plugins"), Log: log,
		// The session exists by the time that anybody fetches.
		HTTP: func(ctx context.Context, path string) (io.ReadCloser, error) { return a.session.Fetch(ctx, path) },
	})
	// Attempts that the journal knows fetch their plugins at once, so the session
	// is made first, with a runner that is put in before it runs.
	var r lateRunner
	a.session = session.New(session.Config{
		Server: s.server, CA: s.ca, Dir: s.data, Token: token, Name: s.name, Build: build(), Log: log,
		Facts:  func() json.RawMessage { return a.tell(ctx) },
		Runner: &r,
	})
	a.runner, err = runner.Open(ctx, runner.Config{
		Dir: s.data, Shim: []string{self, "shim"}, Self: self, Plugins: a.plugins, Facts: a.known, Log: log,
		Seats: s.seats, Policy: policy,
	})
	r.Runner = a.runner
	return a, err
}

// lateRunner is the session's runner before there is one.
type lateRunner struct{ *runner.Runner }

// run blocks until ctx ends or the session gives up.
func (a *agent) run(ctx context.Context, stop context.CancelCauseFunc) error {
	var wg sync.WaitGroup // all end with ctx
	var runErr error
	wg.Go(func() { runErr = a.runner.Run(ctx) })
	wg.Go(func() { a.facts.Watch(ctx, factsEvery, func(json.RawMessage) { a.session.FactsChanged() }) })
	wg.Go(func() { a.collect(ctx) })
	err := a.session.Run(ctx)
	stop(err)
	wg.Wait()
	return errors.Join(err, runErr)
}

// collect removes plugins that nobody uses any more.
func (a *agent) collect(ctx context.Context) {
	t := time.NewTicker(gcEvery)
	defer t.Stop()
	for {
		if err := a.plugins.GC(ctx, keepPlugins); err != nil && ctx.Err() == nil {
			a.log.Warn("unused plugins not removed", "err", err)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// obey does what signals say: the first asks for an end in good order, which
// leaves tasks running; the second ends the process.
func (a *agent) obey(ctx context.Context, signals <-chan os.Signal, stop context.CancelCauseFunc) {
	var wg sync.WaitGroup
	defer wg.Wait()
	draining := false
	for {
		var sig os.Signal
		select {
		case sig = <-signals:
		case <-ctx.Done():
			return
		}
		if sig == syscall.SIGTERM || sig == os.Interrupt {
			a.log.Info("agentd stops; tasks go on", "signal", sig.String())
			// From here on a signal does what it does by default.
			signal.Reset()
			stop(fmt.Errorf("signal: %s", sig))
			return
		}
		if draining {
			continue
		}
		draining = true
		a.log.Info("agentd takes no new tasks and ends when it has none")
		wg.Go(func() { // ends when drained, or with ctx
			if err := a.runner.Stop(ctx); err == nil {
				stop(errDrained)
			}
		})
	}
}
