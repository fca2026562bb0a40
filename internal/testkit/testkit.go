// Package testkit runs the two programs for tests as people run them: built once,
// started as processes on real sockets, with real Git repositories. It is for
// tests only, and knows of the programs no more than a user does: their command
// lines, their API and Git.
package testkit

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// patience is how long a test waits for something that happens within a second on
// an idle machine. It only bounds how long a failure takes.
const patience = time.Minute

var build struct {
	once sync.Once
	dir  string
	err  error
}

// Programs builds reconciler and agentd once for all tests of the process, with
// the race detector when the test has it, and returns their folder.
func Programs(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		root, err := moduleRoot()
		if err != nil {
			build.err = err
			return
		}
		if build.dir, err = os.MkdirTemp("", "maestro-test-programs-"); err != nil {
			build.err = err
			return
		}
		args := []string{"build", "-o", build.dir + string(os.PathSeparator)}
		if raceEnabled {
			args = append(args, "-race")
		}
		cmd := exec.Command("go", append(args, "./reconciler", "./agentd")...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("build the programs: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return build.dir
}

// RemovePrograms deletes what Programs built; TestMain calls it at the end.
func RemovePrograms() {
	if build.dir != "" {
		_ = os.RemoveAll(build.dir)
	}
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, statErr := os.Stat(filepath.Join(dir, "go.mod")); statErr == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above %s", dir)
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// Run runs one of the programs to its end and returns what it printed and its exit code.
func Run(t testing.TB, program string, args ...string) (out string, exit int) {
	t.Helper()
	return RunIn(t, "", nil, program, args...)
}

// RunIn is Run in a folder, with more environment.
func RunIn(t testing.TB, dir string, env []string, program string, args ...string) (out string, exit int) {
	t.Helper()
	cmd := exec.Command(filepath.Join(Programs(t), program), args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	b, err := cmd.CombinedOutput()
	if exitErr := new(exec.ExitError); err != nil && !asExit(err, &exitErr) {
		t.Fatalf("%s %v: %v", program, args, err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

func asExit(err error, target **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	*target = e
	return ok
}

// Eventually waits until ok, looking often; it fails the test with what and the
// last reason when patience runs out.
func Eventually(t testing.TB, what string, ok func() (done bool, why string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		done, why := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s; last: %s", what, patience, why)
		}
		<-tick.C
	}
}

// Process is a program that runs until the test ends it.
type Process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	log  *output
	done chan struct{}
	// killed: the test has ended it, so that what it said last tells little.
	killed bool
}

// output keeps what a process said, for failures.
type output struct {
	mu sync.Mutex
	b  []byte
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b = append(o.b, p...)
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.b)
}

func start(t testing.TB, name string, env []string, args ...string) *Process {
	t.Helper()
	p := launch(t, name, env, exec.Command(filepath.Join(Programs(t), args[0]), args[1:]...))
	t.Cleanup(func() {
		told := p.killed
		p.Kill()
		if !told {
			p.tell()
		}
	})
	return p
}

// StartShell starts a shell script in a folder, with more environment. At the end
// of the test all that it started is asked to end, and waited for.
func StartShell(t testing.TB, name, dir string, env []string, script string) *Process {
	t.Helper()
	cmd := exec.Command("sh", "-eu", "-c", script)
	cmd.Dir = dir
	p := launch(t, name, env, cmd)
	t.Cleanup(func() {
		_ = syscall.Kill(-p.PID(), syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(patience):
			_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
			<-p.done
			t.Errorf("%s did not stop", name)
		}
		p.tell()
	})
	return p
}

// RunShell runs a shell script to its end and returns what it printed and its exit code.
func RunShell(t testing.TB, dir string, env []string, script string) (out string, exit int) {
	t.Helper()
	p := StartShell(t, "script", dir, env, script)
	<-p.done
	return p.Said(), p.cmd.ProcessState.ExitCode()
}

func launch(t testing.TB, name string, env []string, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{t: t, name: name, cmd: cmd, log: &output{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.Env = append(os.Environ(), env...)
	// A group of its own: what the test's terminal sends does not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait()
	}()
	return p
}

// tell shows what the process said last when the test has failed: no more than leaves
// the failure itself to be found.
func (p *Process) tell() {
	if !p.t.Failed() {
		return
	}
	const most = 20
	lines := strings.SplitAfter(p.Said(), "\n")
	p.t.Logf("%s said:\n%s", p.name, strings.Join(lines[max(0, len(lines)-most):], ""))
}

// Said returns all that the process printed so far.
func (p *Process) Said() string { return p.log.String() }

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Kill ends the process with SIGKILL and waits for that.
func (p *Process) Kill() {
	p.killed = true
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Signal sends a signal to the process.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Stop asks the process to end, waits, and returns its exit code.
func (p *Process) Stop() int {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%s did not stop", p.name)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Ended reports whether the process is gone.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Server is a running control plane.
type Server struct {
	*Process
	Data string
	Web  string
	// Intake is where agents connect.
	Intake string
	// Spoilt: the test has damaged the record, which is not checked when it ends.
	Spoilt bool
	env    []string
	args   []string
}

// Serve starts `reconciler serve` on a repository, with ports of its choice.
func Serve(t testing.TB, repo string, env []string, more ...string) *Server {
	t.Helper()
	return ServeIn(t, ShortDir(t), repo, env, more...)
}

// ServeIn is Serve with a data folder of the caller's.
func ServeIn(t testing.TB, data, repo string, env []string, more ...string) *Server {
	t.Helper()
	s := &Server{Data: data, env: env}
	at := loopback()
	s.args = append([]string{
		"reconciler", "serve", "--repo", repo, "--data", s.Data, "--listen", at, "--intake", at, "--poll", "1s",
	}, more...)
	t.Cleanup(func() { s.checkRecord(t) }) // after the process has ended
	s.begin(t)
	s.Await(t)
	return s
}

var loopbacks atomic.Int32

// loopback is an address of this machine with a port of the system's choice. Where all
// of 127/8 is there, nobody else uses it: a server that comes back finds its port free,
// though other tests opened sockets meanwhile.
func loopback() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1:0"
	}
	pid := os.Getpid()
	return fmt.Sprintf("127.%d.%d.%d:0", 1+pid>>8%250, 1+pid%250, 1+loopbacks.Add(1)%250)
}

// checkRecord fails a test that leaves a record behind which breaks an invariant.
func (s *Server) checkRecord(t testing.TB) {
	if t.Failed() || t.Skipped() || s.Spoilt {
		return
	}
	if out, exit := Run(t, "reconciler", "fsck", "--data", s.Data); exit == 1 {
		t.Errorf("the record that the server leaves behind: exit %d\n%s", exit, out)
	}
}

// ShortDir is t.TempDir with a short path: a Unix socket's path has little room.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "mt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (s *Server) begin(t testing.TB) {
	t.Helper()
	_ = os.Remove(s.addressFile())
	s.Process = start(t, "reconciler", s.env, s.args...)
}

func (s *Server) addressFile() string { return filepath.Join(s.Data, "server.json") }

// Await waits until a server that was started serves.
func (s *Server) Await(t testing.TB) {
	t.Helper()
	Eventually(t, "start of the reconciler", func() (bool, string) {
		if s.Ended() {
			t.Fatalf("reconciler ended:\n%s", s.Said())
		}
		b, err := os.ReadFile(s.addressFile())
		if err != nil {
			return false, err.Error()
		}
		var at struct{ Web, Intake string }
		if err := json.Unmarshal(b, &at); err != nil {
			return false, err.Error()
		}
		s.Web, s.Intake = at.Web, at.Intake
		return true, ""
	})
}

// Restart starts the server again on its data folder and its ports, after Kill or
// Stop, and waits until it serves.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Start(t)
	s.Await(t)
}

// Start is Restart without waiting.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	for i, a := range s.args {
		switch a {
		case "--listen":
			s.args[i+1] = strings.TrimPrefix(s.Web, "http://")
		case "--intake":
			s.args[i+1] = strings.TrimPrefix(s.Intake, "http://")
		}
	}
	s.begin(t)
}

// Get reads a JSON answer of the API; it reports failure instead of failing the
// test, because a server that is being killed does not answer.
func (s *Server) Get(path string, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Web+"/api/v1"+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, b)
	}
	return json.Unmarshal(b, out)
}

// Invite returns a join token for the pool.
func (s *Server) Invite(t testing.TB, pool string, more ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(Programs(t), "reconciler"), append([]string{"agents", "invite", "--data", s.Data, "--pool", pool}, more...)...)
	b, err := cmd.Output()
	if err != nil {
		t.Fatalf("invite: %v\n%s", err, s.Said())
	}
	return strings.TrimSpace(string(b))
}

// Agent is a running agentd.
type Agent struct {
	*Process
	Dir  string
	Name string
	args []string
}

// StartAgentWith starts an agent with the join token in a file, without waiting.
func (s *Server) StartAgentWith(t testing.TB, name, tokenFile string) *Agent {
	t.Helper()
	a := &Agent{Dir: ShortDir(t), Name: name}
	a.args = []string{"agentd", "--server", s.Intake, "--data", a.Dir, "--name", name, "--token-file", tokenFile}
	a.Restart(t)
	return a
}

// StartAgent invites and starts an agent, and waits until it is online. facts is
// the content of an external fact file.
func (s *Server) StartAgent(t testing.TB, name, pool, facts string) *Agent {
	t.Helper()
	a := &Agent{Dir: ShortDir(t), Name: name}
	if facts != "" {
		dir := filepath.Join(a.Dir, "facts.d")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "test.txt"), []byte(facts), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	token := filepath.Join(a.Dir, "token")
	if err := os.WriteFile(token, []byte(s.Invite(t, pool)), 0o600); err != nil {
		t.Fatal(err)
	}
	a.args = []string{"agentd", "--server", s.Intake, "--data", a.Dir, "--name", name, "--token-file", token}
	a.Restart(t)
	s.AwaitAgent(t, name)
	return a
}

// Restart starts the agent again on its folder. At the end of the test it is
// killed, and all that it started.
func (a *Agent) Restart(t testing.TB) {
	t.Helper()
	first := a.Process == nil
	home := filepath.Join(a.Dir, "home") // what tasks leave in a home goes with the test
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	a.Process = start(t, a.Name, []string{"HOME=" + home}, a.args...)
	if first {
		t.Cleanup(a.end)
	}
}

// AwaitAgent waits until an agent of that name is online and returns its id.
func (s *Server) AwaitAgent(t testing.TB, name string) pipeline.AgentID {
	t.Helper()
	var id pipeline.AgentID
	Eventually(t, "agent "+name+" online", func() (bool, string) {
		var list struct {
			Agents []struct {
				ID     pipeline.AgentID
				Name   string
				Online bool
			}
		}
		if err := s.Get("/agents", &list); err != nil {
			return false, err.Error()
		}
		for _, a := range list.Agents {
			if a.Name == name && a.Online {
				id = a.ID
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v", list)
	})
	return id
}

// Runs returns the runs of a commit, tasks included, oldest first.
func (s *Server) Runs(commit pipeline.CommitID) ([]pipeline.Run, error) {
	var list struct{ Runs []pipeline.Run }
	err := s.Get("/runs?tasks=1&limit=200&commit="+string(commit), &list)
	for i, j := 0, len(list.Runs)-1; i < j; i, j = i+1, j-1 {
		list.Runs[i], list.Runs[j] = list.Runs[j], list.Runs[i]
	}
	return list.Runs, err
}

// AwaitRuns waits until the commit has n runs and all have ended.
func (s *Server) AwaitRuns(t testing.TB, commit pipeline.CommitID, n int) []pipeline.Run {
	t.Helper()
	var runs []pipeline.Run
	Eventually(t, fmt.Sprintf("%d runs of %s", n, commit.Short()), func() (bool, string) {
		var err error
		if runs, err = s.Runs(commit); err != nil {
			return false, err.Error()
		}
		ended := 0
		why := fmt.Sprintf("%d runs", len(runs))
		for _, r := range runs {
			if r.State.Terminal() {
				ended++
			}
			why += fmt.Sprintf("; %s#%d %s: %s", r.Composition, r.Number, r.State, r.Reason)
			for _, k := range r.Tasks {
				why += fmt.Sprintf(" [%s %s: %s]", k.Name, k.State, k.Reason)
			}
		}
		if len(runs) < n {
			var rec pipeline.CommitRecord
			_ = s.Get("/commits/"+string(commit), &rec)
			why += fmt.Sprintf("; diagnostics %v", rec.Diagnostics)
		}
		return len(runs) >= n && ended == len(runs), why
	})
	return runs
}

// AwaitEnded follows the changes until n runs have ended. It costs the server
// little, so that figures are the server's own.
func (s *Server) AwaitEnded(t testing.TB, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Web+"/api/v1/events?after=0&follow=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	ended := map[pipeline.RunID]bool{}
	for d := json.NewDecoder(resp.Body); len(ended) < n; {
		var c pipeline.Change
		if err := d.Decode(&c); err != nil {
			t.Fatalf("%d of %d runs ended: %v", len(ended), n, err)
		}
		if c.Kind == pipeline.ChangeRun && c.State.Terminal() {
			ended[c.Run] = true
		}
	}
}

// AwaitTask waits until the task of the commit's first run of the composition is in the state.
func (s *Server) AwaitTask(t testing.TB, commit pipeline.CommitID, c pipeline.CompositionName, task pipeline.TaskName, state pipeline.State) pipeline.Run {
	t.Helper()
	var found pipeline.Run
	Eventually(t, fmt.Sprintf("%s of %s %s", task, c, state), func() (bool, string) {
		runs, err := s.Runs(commit)
		if err != nil {
			return false, err.Error()
		}
		why := fmt.Sprintf("%d runs", len(runs))
		for _, r := range runs {
			if k := r.Task(task); r.Composition == c && k != nil {
				why = fmt.Sprintf("it is %s: %s", k.State, k.Reason)
				found = r
				if k.State == state {
					return true, ""
				}
			}
		}
		return false, why
	})
	return found
}

// Log returns the whole log of a task's latest attempt.
func (s *Server) Log(t testing.TB, attempt pipeline.AttemptID) string {
	t.Helper()
	resp, err := http.Get(s.Web + "/api/v1/attempts/" + string(attempt) + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
