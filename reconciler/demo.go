package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/compositions"
	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// demoTime bounds a demo that does not stay up; it takes a few seconds.
const demoTime = 2 * time.Minute

// demoBlocked is how long a run may be blocked: the demo's agents are all there from
// the start, so nothing ends it.
const demoBlocked = 10 * time.Second

func newDemo() *cobra.Command {
	d := demo{}
	cmd := &cobra.Command{
		Use: "demo", Short: "Run the example end to end and exit", Args: cobra.NoArgs,
		Long: `Run the main job for real, in a temporary folder: make a bare repository, start
the control plane and two agents as processes, push a commit, follow its runs to
the end, and read the statuses back from Git. It needs no account, token or
network; it only runs git, this program and agentd.

Another folder, given with --from, runs on the same two agents: both in the pool
default, with the facts role "build" and "deploy". A run that neither can take ends
the demo with exit code 6, and without --serve it has 2 minutes in all.`,
		Example: "  reconciler demo\n  reconciler demo --serve\n  reconciler demo --from ~/pipelines",
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out = cmd.OutOrStdout()
			if d.from != "" {
				var err error
				if d.from, err = moduleAbove(d.from); err != nil {
					return fmt.Errorf("--from: %w", err)
				}
			}
			return d.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&d.serve, "serve", false, "stay up afterwards, until interrupted")
	cmd.Flags().BoolVar(&d.keep, "keep", false, "keep the folder")
	cmd.Flags().StringVar(&d.from, "from", "", "push this folder instead of the built-in example")
	cmd.Flags().StringVar(&d.listen, "listen", "127.0.0.1:0", "address of the web view")
	return cmd
}

// demo tells one story with ordinary processes and ordinary git. Nothing in it is
// a path of its own: whoever types the same commands gets the same.
type demo struct {
	serve, keep  bool
	from, listen string
	out          io.Writer

	dir, bare, work string
	at              addresses
	children        []*child
	step            int
}

// child is a process of the demo with what it said.
type child struct {
	name string
	cmd  *exec.Cmd
	log  string // path
	done chan struct{}
	err  error // once done is closed
}

func (d *demo) run(ctx context.Context) (err error) {
	stayUp := ctx
	if !d.serve {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, demoTime,
			fault.New(fault.Unavailable, "the demo took longer than %s; with --serve it takes as long as its runs do", demoTime))
		defer cancel()
	}
	if d.dir, err = os.MkdirTemp("", "maestro-demo-"); err != nil {
		return fmt.Errorf("make the demo's folder: %w", err)
	}
	defer func() {
		if errors.Is(err, context.DeadlineExceeded) {
			err = context.Cause(ctx)
		}
		d.stop()
		if e := new(exitError); err != nil && !errors.Is(err, context.Canceled) && !errors.As(err, &e) {
			d.tails() // a run that failed has been told of
		}
		if d.keep || err != nil && !errors.Is(err, context.Canceled) {
			fmt.Fprintf(d.out, "kept: %s\n", d.dir)
			return
		}
		d.remove()
	}()
	fmt.Fprintln(d.out, "Demo: a bare Git repository, the control plane and two agents, all in a temporary folder.")
	fmt.Fprintln(d.out)
	if err := d.start(ctx); err != nil {
		return err
	}
	commit, err := d.push(ctx)
	if err != nil {
		return err
	}
	if err := d.follow(ctx, commit); err != nil {
		return err
	}
	if d.from == "" {
		if commit, err = d.change(ctx); err != nil {
			return err
		}
	}
	if err := d.prove(ctx, commit); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "\nEverything above was ordinary git and three ordinary processes.\n")
	if !d.serve {
		fmt.Fprintf(d.out, "Look around:    reconciler demo --serve\nMake your own:  reconciler init ~/pipelines\n")
		return nil
	}
	fmt.Fprintf(d.out, "Look around:  %s\nPush more:    git clone %s\nCtrl-C ends it.\n", d.at.Web, d.bare)
	<-stayUp.Done()
	return nil
}

// remove deletes the folder. A task that was interrupted with the demo goes on for
// as long as it takes, and may still be writing there.
func (d *demo) remove() {
	for deadline := time.Now().Add(shutdownTime); ; time.Sleep(100 * time.Millisecond) {
		err := os.RemoveAll(d.dir)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(d.out, "kept: %s, a task still works in it (%v)\n", d.dir, err)
			return
		}
	}
}

func (d *demo) say(format string, args ...any) {
	d.step++
	fmt.Fprintf(d.out, "%d %s\n", d.step, fmt.Sprintf(format, args...))
}

func (d *demo) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	agentd, err := findAgentd()
	if err != nil {
		return err
	}
	d.bare, d.work = filepath.Join(d.dir, "ops.git"), filepath.Join(d.dir, "work")
	if _, err := d.git(ctx, "", "init", "--quiet", "--bare", "-b", "main", d.bare); err != nil {
		return err
	}
	d.say("git init --bare ops.git")
	data := filepath.Join(d.dir, "reconciler")
	if err := d.spawn("reconciler", nil, self, "serve", "--repo", d.bare, "--data", data, "--listen", d.listen, "--intake", "127.0.0.1:0", "--unsigned-reviews"); err != nil {
		return err
	}
	if d.at, err = d.awaitServer(ctx, data); err != nil {
		return err
	}
	d.say("reconciler serve --repo ops.git          %s", d.at.Web)
	for i, role := range []string{"build", "deploy"} {
		a := localAgent{
			binary: agentd, dir: filepath.Join(d.dir, "agent-"+role), name: role + "-agent",
			facts: fmt.Sprintf("role=%s\nrank=%d\n", role, i+1),
		}
		cmd, err := a.command(ctx, data, d.at)
		if err != nil {
			return err
		}
		if err := d.spawn(a.name, cmd.Env, cmd.Args[0], cmd.Args[1:]...); err != nil {
			return err
		}
	}
	if err := d.awaitAgents(ctx, 2); err != nil {
		return err
	}
	d.say("agentd, twice                             build-agent and deploy-agent are enrolled and online")
	return nil
}

func (d *demo) spawn(name string, env []string, program string, args ...string) error {
	path := filepath.Join(d.dir, name+".log")
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	cmd := exec.Command(program, args...)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = f, f
	// Its own group: Ctrl-C reaches the demo, which stops them in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		_ = f.Close()
		return fmt.Errorf("start %s: %w", name, err)
	}
	c := &child{name: name, cmd: cmd, log: path, done: make(chan struct{})}
	d.children = append(d.children, c)
	go func() {
		defer close(c.done)
		c.err = cmd.Wait()
		_ = f.Close()
	}()
	return nil
}

// stop ends the processes, the agents first, and waits for each.
func (d *demo) stop() {
	for i := len(d.children) - 1; i >= 0; i-- {
		c := d.children[i]
		_ = c.cmd.Process.Signal(os.Interrupt)
		select {
		case <-c.done:
		case <-time.After(shutdownTime):
			_ = c.cmd.Process.Kill()
			<-c.done
		}
	}
}

// tails prints the end of what the processes said, after a failure.
func (d *demo) tails() {
	for _, c := range d.children {
		b, err := os.ReadFile(c.log)
		if err != nil || len(b) == 0 {
			continue
		}
		const lines = 8
		all := strings.Split(strings.TrimSpace(string(b)), "\n")
		fmt.Fprintf(d.out, "\n%s said last:\n  %s\n", c.name, strings.Join(all[max(0, len(all)-lines):], "\n  "))
	}
}

// await polls until ok, a process of the demo dies, or ctx ends.
func (d *demo) await(ctx context.Context, what string, ok func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		for _, c := range d.children {
			select {
			case <-c.done:
				return fault.New(fault.Internal, "%s ended: %v", c.name, c.err)
			default:
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		}
	}
	return nil
}

func (d *demo) awaitServer(ctx context.Context, data string) (at addresses, err error) {
	err = d.await(ctx, "wait for the reconciler", func() bool {
		b, err := os.ReadFile(filepath.Join(data, addressesFile))
		return err == nil && json.Unmarshal(b, &at) == nil
	})
	return at, err
}

func (d *demo) client() *client { return &client{base: d.at.Web} }

func (d *demo) awaitAgents(ctx context.Context, n int) error {
	return d.await(ctx, "wait for the agents", func() bool {
		var list struct {
			Agents []struct {
				Online bool `json:"online"`
			} `json:"agents"`
		}
		if err := d.client().get(ctx, "/agents", nil, &list); err != nil {
			return false
		}
		online := 0
		for _, a := range list.Agents {
			if a.Online {
				online++
			}
		}
		return online >= n
	})
}

// push commits the example, or the folder that was named, and pushes it.
func (d *demo) push(ctx context.Context) (pipeline.CommitID, error) {
	if _, err := d.git(ctx, "", "init", "--quiet", "-b", "main", d.work); err != nil {
		return "", err
	}
	var from fs.FS = compositions.Files
	if d.from != "" {
		from = os.DirFS(d.from)
	}
	if err := copyTree(d.work, from); err != nil {
		return "", err
	}
	for name, b := range config.InitFiles() {
		if vendored(name) {
			if _, err := writeNew(d.work, map[string][]byte{name: b}, true); err != nil {
				return "", err
			}
		}
	}
	paths := []string{"."}
	if d.from == "" {
		paths = append(paths, ":!"+demoSources) // a change brings them
	}
	commit, err := d.commit(ctx, "main", "the example's compositions", paths...)
	if err != nil {
		return "", err
	}
	d.say("git push ops.git main                    commit %s", commit.Short())
	return commit, nil
}

// commit commits the paths and pushes them to the branch.
func (d *demo) commit(ctx context.Context, branch, subject string, paths ...string) (pipeline.CommitID, error) {
	for _, args := range [][]string{
		append([]string{"add", "-A", "--"}, paths...),
		{"-c", "user.name=Demo", "-c", "user.email=demo@example.com", "commit", "--quiet", "-m", subject},
		{"push", "--quiet", d.bare, "HEAD:refs/heads/" + branch},
	} {
		if _, err := d.git(ctx, d.work, args...); err != nil {
			return "", err
		}
	}
	head, err := d.git(ctx, d.work, "rev-parse", "HEAD")
	return pipeline.CommitID(strings.TrimSpace(head)), err
}

// follow waits for the verdicts on the commit, then follows its runs to their end.
func (d *demo) follow(ctx context.Context, commit pipeline.CommitID) error {
	c := d.client()
	var rec struct {
		pipeline.CommitRecord
		Verdicts []pipeline.Verdict `json:"verdicts"`
	}
	err := d.await(ctx, "wait for the commit to be evaluated", func() bool {
		return c.get(ctx, "/commits/"+string(commit), nil, &rec) == nil
	})
	if err != nil {
		return err
	}
	for _, diag := range rec.Diagnostics {
		fmt.Fprintf(d.out, "    %s\n", diag)
	}
	if pipeline.HasErrors(rec.Diagnostics) {
		return fault.New(fault.Invalid, "the commit has errors")
	}
	for _, v := range rec.Verdicts {
		if v.Ref != "refs/heads/main" || v.Kind != pipeline.EventPush {
			continue // what its branch caused, or what came after the merge
		}
		fmt.Fprintf(d.out, "    %-12s %-8s %s\n", v.Composition, v.Outcome, v.Sentence)
	}
	var list struct {
		Runs []pipeline.Run `json:"runs"`
	}
	if err := c.get(ctx, "/runs", url.Values{"commit": {string(commit)}, "limit": {"200"}}, &list); err != nil {
		return err
	}
	if len(list.Runs) == 0 {
		return fault.New(fault.NotFound, "the commit started no run")
	}
	failed := 0
	for i := len(list.Runs) - 1; i >= 0; i-- {
		r := &list.Runs[i]
		if r.Event.Cause != nil {
			continue // whoever called it tells of it
		}
		d.say("run %s", runName(r))
		w := newWatcher(c, d.out, d.out)
		if w.prefix = "    "; !d.serve {
			w.refuse = refuseBlocked()
		}
		final, err := w.follow(ctx, r.ID)
		if err != nil {
			return err
		}
		if !final.State.Good() {
			failed++
		}
	}
	if failed > 0 {
		return &exitError{exitFailed, fmt.Errorf("%d of %d runs did not succeed", failed, len(list.Runs))}
	}
	return nil
}

// refuseBlocked returns a function that fails once a run has been blocked for long.
func refuseBlocked() func(*shownRun) error {
	var since time.Time
	return func(r *shownRun) error {
		switch {
		case r.Shown != blocked:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > demoBlocked:
			return &exitError{exitBlocked, fmt.Errorf(`%s is blocked: %s
the demo's two agents are in the pool default and have the facts role "build" and "deploy":
change the composition's agent, or serve the repository with agents that fit: reconciler serve`, runName(&r.Run), oneLine(r.Sentence))}
		}
		return nil
	}
}

// prove reads the statuses back with git: they must be there, and all succeed.
func (d *demo) prove(ctx context.Context, commit pipeline.CommitID) error {
	var text string
	err := d.await(ctx, "wait for the statuses in Git", func() bool {
		var err error
		text, err = d.git(ctx, d.bare, "notes", "--ref=refs/notes/maestro/status", "show", string(commit))
		return err == nil && !strings.Contains(text, `"pending"`)
	})
	if err != nil {
		return err
	}
	d.say("git notes --ref=refs/notes/maestro/status show %s", commit.Short())
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		var s pipeline.Status
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			return fault.New(fault.Internal, "the note is not what was written: %w", err)
		}
		fmt.Fprintf(d.out, "    %-24s %-8s %s\n", s.Context, s.State, s.Description)
		if s.State != "success" {
			return &exitError{exitFailed, fmt.Errorf("status %s is %s", s.Context, s.State)}
		}
	}
	return nil
}

// git runs the git program and returns what it printed.
func (d *demo) git(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if errors.Is(err, exec.ErrNotFound) {
			return "", fault.New(fault.NotFound, "git is not installed: apt-get install git")
		}
		return "", fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// copyTree writes a tree of regular files below dir.
func copyTree(dir string, from fs.FS) error {
	return fs.WalkDir(from, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if e.Name() == ".git" {
				return fs.SkipDir
			}
			return os.MkdirAll(filepath.Join(dir, p), 0o755)
		}
		if !e.Type().IsRegular() || strings.HasSuffix(p, ".go") {
			return nil
		}
		b, err := fs.ReadFile(from, p)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if info, err := e.Info(); err == nil && info.Mode()&0o100 != 0 || bytes.HasPrefix(b, []byte("#!")) {
			mode = 0o755
		}
		return os.WriteFile(filepath.Join(dir, p), b, mode)
	})
}
