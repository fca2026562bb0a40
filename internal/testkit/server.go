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
	"sync/atomic"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

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
