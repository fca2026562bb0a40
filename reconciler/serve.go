package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/maestro-cd/maestro/internal/fault"
)

func newServe() *cobra.Command {
	var opt options
	cmd := &cobra.Command{
		Use: "serve --repo REPOSITORY", Short: "Run the control plane", Args: cobra.NoArgs,
		Long: `Run the control plane: watch the ops repository, run what its commits ask for on
the agents that connect, and show it all.

The first time a repository is seen its commits are the past: nothing runs until
the next push. All that this program keeps is in the data folder.`,
		Example: "  reconciler serve --repo /srv/ops.git\n  reconciler serve --repo https://git.example.com/ops.git --git-token-file /run/secrets/git",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, "RECONCILER_"); err != nil {
				return err
			}
			if err := opt.check(); err != nil {
				return err
			}
			return serve(cmd.Context(), opt, opt.logger(os.Stderr), func(at addresses) {
				fmt.Fprintf(cmd.OutOrStdout(), "web    %s\nagents %s\ndata   %s\n", at.Web, at.Intake, opt.data)
			})
		},
	}
	opt.flags(cmd.Flags())
	return cmd
}

func serve(ctx context.Context, opt options, log *slog.Logger, ready func(addresses)) error {
	harden()
	s, err := openServer(ctx, opt, log)
	if err != nil {
		return err
	}
	defer s.close()
	return s.run(ctx, ready)
}

func newDev() *cobra.Command {
	var opt options
	var agents int
	cmd := &cobra.Command{
		Use: "dev --repo REPOSITORY", Short: "Control plane, agents and web view on this machine", Args: cobra.NoArgs,
		Long: `Run the control plane and one agent as processes on this machine, for trying
things out. Unlike serve it runs the newest commit at the first start, and takes
another port when one is in use, and reads source repositories at any path of this
machine. Each agent is an ordinary agentd.

Each repository has a record of its own: --data is a folder that is named after the
repository, unless another is given.`,
		Example: "  reconciler dev --repo ~/pipelines.git",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, "RECONCILER_"); err != nil {
				return err
			}
			if err := opt.check(); err != nil {
				return err
			}
			if agents < 0 {
				return fault.New(fault.Invalid, "--agents %d: want 0 or more", agents)
			}
			if opt.data == "" {
				opt.data = devData(opt.repo)
			}
			opt.runTip, opt.lenientPorts, opt.personal = true, true, true
			if !cmd.Flags().Changed("allow-source") {
				opt.allowSource = []string{"/"}
			}
			if !cmd.Flags().Changed("unsigned-reviews") {
				opt.unsignedReviews = true
			}
			return dev(cmd, opt, agents)
		},
	}
	opt.flags(cmd.Flags())
	data := cmd.Flags().Lookup("data")
	opt.data, data.DefValue = "", filepath.Join(devFolder(), "REPOSITORY")
	cmd.Flags().IntVar(&agents, "agents", 1, "how many agents to start, in the pool default")
	return cmd
}

// devFolder holds a data folder for each repository that dev has served.
func devFolder() string { return filepath.Join(filepath.Dir(defaultData()), "dev") }

// devData is the data folder of one repository: its name, for people, and its address,
// to tell it from others of that name. It is short, because a socket in it has to be.
func devData(repo string) string {
	const mostName = 20
	name := strings.TrimSuffix(path.Base(filepath.ToSlash(repo)), ".git")
	name = strings.Trim(notPlain.ReplaceAllString(name, "-"), "-.")
	sum := sha256.Sum256([]byte(repo))
	return filepath.Join(devFolder(), fmt.Sprintf("%s-%x", name[:min(mostName, len(name))], sum[:4]))
}

var notPlain = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

func dev(cmd *cobra.Command, opt options, agents int) error {
	binary, err := findAgentd()
	if err != nil {
		return err
	}
	log := opt.logger(os.Stderr)
	g, ctx := errgroup.WithContext(cmd.Context())
	started := make(chan addresses, 1)
	g.Go(func() error { return serve(ctx, opt, log, func(at addresses) { started <- at }) })
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case at := <-started:
			fmt.Fprintf(cmd.OutOrStdout(), "web    %s\nCtrl-C ends it; the state stays in %s\n", at.Web, opt.data)
			for i := range agents {
				a := localAgent{binary: binary, dir: filepath.Join(opt.data, fmt.Sprintf("agent-%d", i+1)), name: fmt.Sprintf("local-%d", i+1)}
				g.Go(func() error { return a.run(ctx, opt.data, at, log) })
			}
		}
		return nil
	})
	return g.Wait()
}

// agentEnv is what a local agent inherits of the environment: nothing that may be a
// secret, because tasks run as the same user and can look at their ancestors.
func agentEnv(all []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR":
			return false
		}
		return !strings.HasPrefix(name, "LC_")
	})
}

// localAgent is an agentd that dev and demo start as a child process.
type localAgent struct {
	binary, dir, name string
	pool              string
	facts             string // content of an external fact file, "" for none
	stderr            *os.File
}

// run keeps the agent up until ctx ends: a crash of it is not the end of the work.
func (a *localAgent) run(ctx context.Context, data string, at addresses, log *slog.Logger) error {
	for {
		cmd, err := a.command(ctx, data, at)
		if err != nil {
			return err
		}
		started := time.Now()
		err = cmd.Run()
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(started) < time.Second {
			return fault.New(fault.Internal, "agent %s ended at once: %v; its messages are above", a.name, err)
		}
		log.Warn("agent ended and is started again", "name", a.name, "err", err)
	}
}

// command prepares the agent's folder, invites it when it is new, and returns the
// process to start. Ending ctx asks the process to stop; what it runs goes on.
func (a *localAgent) command(ctx context.Context, data string, at addresses) (*exec.Cmd, error) {
	factsDir := filepath.Join(a.dir, "facts.d")
	if err := os.MkdirAll(factsDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the agent's folder: %w", err)
	}
	if a.facts != "" {
		if err := os.WriteFile(filepath.Join(factsDir, "local.txt"), []byte(a.facts), 0o600); err != nil {
			return nil, fmt.Errorf("write the agent's facts: %w", err)
		}
	}
	args := []string{"--server", at.Intake, "--data", a.dir, "--name", a.name}
	if _, err := os.Stat(filepath.Join(a.dir, "enrolled.json")); errors.Is(err, os.ErrNotExist) {
		pool := a.pool
		if pool == "" {
			pool = "default"
		}
		var resp inviteResponse
		if err := askAdmin(ctx, data, "/invite", map[string]string{"pool": pool}, &resp); err != nil {
			return nil, err
		}
		tokenFile := filepath.Join(a.dir, "token")
		if err := os.WriteFile(tokenFile, []byte(resp.Token), 0o600); err != nil {
			return nil, fmt.Errorf("write the join token: %w", err)
		}
		args = append(args, "--token-file", tokenFile)
	}
	cmd := exec.CommandContext(ctx, a.binary, args...)
	cmd.Env = agentEnv(os.Environ())
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = shutdownTime
	cmd.Stderr = a.stderr
	if a.stderr == nil {
		cmd.Stderr = os.Stderr
	}
	return cmd, nil
}

// findAgentd looks beside this program first, so that the two are of one build.
func findAgentd() (string, error) {
	name := "agentd"
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	beside := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(beside); err == nil {
		return beside, nil
	}
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	return "", fault.New(fault.NotFound, "agentd is neither beside %s nor in PATH: build both with `make`, or `go install ./reconciler ./agentd`", self)
}

func newCheck() *cobra.Command {
	var opt options
	var c client
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check --repo REPOSITORY", Short: "Diagnose configuration, git, forge, record and agents", Args: cobra.NoArgs,
		Long: `Look at everything a server needs and say of each whether it is well, and what
to do when it is not. Run it as the server's user, with its environment and options.
The exit code is 1 when something is wrong.`,
		Example: "  reconciler check --repo /srv/ops.git",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, "RECONCILER_"); err != nil {
				return err
			}
			if err := opt.check(); err != nil {
				return err
			}
			return check(cmd, opt, &c, asJSON)
		},
	}
	opt.flags(cmd.Flags())
	serverFlag(cmd, &c)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what was found as JSON")
	return cmd
}

// finding is a line of check.
type finding struct {
	what, result string
	err          error
	warning      bool
}

// findingJSON is a finding as check --json prints it. State is ok, warning or problem.
type findingJSON struct {
	What  string `json:"what"`
	State string `json:"state"`
	Text  string `json:"text"`
}

func (f finding) json() findingJSON {
	switch {
	case f.err != nil && f.warning:
		return findingJSON{f.what, "warning", f.err.Error()}
	case f.err != nil:
		return findingJSON{f.what, "problem", f.err.Error()}
	}
	return findingJSON{f.what, "ok", f.result}
}

func check(cmd *cobra.Command, opt options, c *client, asJSON bool) error {
	ctx, w := cmd.Context(), cmd.OutOrStdout()
	marks := map[string]string{"ok": "✓", "warning": "!", "problem": "✗"}
	n := map[string]int{}
	all := []findingJSON{}
	for _, probe := range []func(context.Context, options, *client) []finding{checkData, checkBackups, checkGit, checkForge, checkRepository, checkTeams, checkSources, checkServer, checkAgents} {
		for _, found := range probe(ctx, opt, c) {
			f := found.json()
			n[f.State]++
			all = append(all, f)
			if !asJSON {
				fmt.Fprintf(w, "%-14s %s %s\n", f.What, marks[f.State], oneLine(f.Text))
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if asJSON {
		if err := writeJSON(w, all); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(w, "\n%s, %s\n", counted(n["problem"], "problem"), counted(n["warning"], "warning"))
	}
	if n["problem"] > 0 {
		return &exitError{code: exitFailed}
	}
	return nil
}
