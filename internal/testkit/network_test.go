package testkit_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// silentFor is longer than the 15 s after which either side takes a silent peer for gone.
const silentFor = 18 * time.Second

// TestBadNetworkLosesNothing lets one task run behind each way in which a network goes
// wrong: it is started once and ends well, and its log has every line once.
func TestBadNetworkLosesNothing(t *testing.T) {
	real(t)
	cases := map[string]func(t *testing.T, s *testkit.Server, p *testkit.Proxy){
		"black-hole-for-a-moment": func(_ *testing.T, _ *testkit.Server, p *testkit.Proxy) {
			p.BlackHole(true)
			<-time.After(3 * time.Second)
			p.BlackHole(false)
		},
		"black-hole-until-both-give-up": func(_ *testing.T, _ *testkit.Server, p *testkit.Proxy) {
			p.BlackHole(true)
			<-time.After(silentFor)
			p.BlackHole(false)
		},
		"half-open": func(_ *testing.T, _ *testkit.Server, p *testkit.Proxy) {
			p.HalfOpen()
			<-time.After(silentFor)
			p.BlackHole(false)
		},
		"reset-again-and-again": func(_ *testing.T, _ *testkit.Server, p *testkit.Proxy) {
			for range 5 {
				p.Reset()
				<-time.After(400 * time.Millisecond)
			}
		},
		"a-byte-a-second": func(_ *testing.T, _ *testkit.Server, p *testkit.Proxy) {
			p.Slow(time.Second)
			<-time.After(6 * time.Second)
			p.Slow(0)
			p.Reset()
		},
		"old-session-again": playOldSession,
	}
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	files := []map[string]string{testkit.Ops()}
	const lines = 60
	proxies, traces := map[string]*testkit.Proxy{}, map[string]string{}
	for name := range cases {
		script, trace := counting(t, lines)
		proxies[name], traces[name] = testkit.NewProxy(t, s.Intake), trace
		through := *s
		through.Intake = proxies[name].URL
		through.StartAgent(t, name, "default", "role="+name+"\n")
		files = append(files, testkit.Shell(name, script, fmt.Sprintf("agent: facts: role: %q", name)))
	}
	commit := repo.Push("main", testkit.Files(files...))
	for name := range cases {
		r := s.AwaitTask(t, commit, pipeline.CompositionName(name), "work", pipeline.Running)
		awaitLine(t, s, r.Task("work").Attempt, "line 1\n")
	}
	// All networks go wrong at the same time, for some take long.
	var spoilt sync.WaitGroup
	for name, spoil := range cases {
		spoilt.Go(func() { spoil(t, s, proxies[name]) })
	}
	spoilt.Wait()
	for name := range cases {
		r := awaitEnd(t, s, commit, pipeline.CompositionName(name))
		checkCounted(t, s, r, traces[name], lines)
		if epoch := r.Task("work").Epoch; epoch != 1 {
			t.Errorf("%s was assigned %d times", name, epoch)
		}
	}
}

// awaitEnd waits until the run of the composition has ended: a reconnect may take a while.
func awaitEnd(t *testing.T, s *testkit.Server, commit pipeline.CommitID, c pipeline.CompositionName) pipeline.Run {
	t.Helper()
	for began := time.Now(); ; <-time.After(50 * time.Millisecond) {
		runs, err := s.Runs(commit)
		for _, r := range runs {
			if r.Composition == c && r.State.Terminal() {
				return r
			}
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("%s does not end: %+v, %v", c, runs, err)
		}
	}
}

// playOldSession sends the server all that an agent has sent it, once more.
func playOldSession(t *testing.T, s *testkit.Server, p *testkit.Proxy) {
	head, rest, ok := bytes.Cut(p.Recorded(), []byte("\r\n\r\n"))
	if !ok || !bytes.Contains(head, []byte("Upgrade: websocket")) {
		t.Errorf("what was recorded is no session: %q", head)
		return
	}
	c, err := net.Dial("tcp", strings.TrimPrefix(s.Intake, "http://"))
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // of a socket that is open
	if _, err := fmt.Fprintf(c, "%s\r\n\r\n", head); err != nil {
		t.Error(err)
		return
	}
	r := bufio.NewReader(c)
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("upgrade: %+v, %v", resp, err)
		return
	}
	// The server may have closed before it has all of it.
	_, _ = c.Write(rest)
	answer, _ := io.ReadAll(r)
	if !bytes.Contains(answer, []byte("does not answer the challenge")) || bytes.Contains(answer, []byte("fetch_token")) {
		t.Errorf("the server answered %q", answer)
	}
}

// TestAgentWithoutNetworkForAWhileLosesNothing pulls the cable of an agent that has a
// network of its own.
func TestAgentWithoutNetworkForAWhileLosesNothing(t *testing.T) {
	real(t)
	if os.Getuid() != 0 {
		t.Skip("a network of its own takes root")
	}
	const inside = "10.231.77."
	name := fmt.Sprintf("mt%d", os.Getpid())
	ip := func(args ...string) error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	t.Cleanup(func() {
		_ = ip("link", "del", name+"h")
		_ = ip("netns", "del", name)
	})
	for _, args := range []string{
		"netns add " + name,
		"link add " + name + "h type veth peer name " + name + "a netns " + name,
		"addr add " + inside + "1/24 dev " + name + "h",
		"link set " + name + "h up",
		"-n " + name + " addr add " + inside + "2/24 dev " + name + "a",
		"-n " + name + " link set " + name + "a up",
		"-n " + name + " link set lo up",
	} {
		if err := ip(strings.Fields(args)...); err != nil {
			t.Skipf("no network of its own: %v", err)
		}
	}
	const lines = 40
	script, trace := counting(t, lines)
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil, "--intake", inside+"1:0")
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(s.Invite(t, "default")), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := testkit.ShortDir(t)
	testkit.StartShell(t, "agentd", dir, []string{"HOME=" + dir}, fmt.Sprintf(
		"exec ip netns exec %s %s --server %s --data %s --name far --token-file %s",
		name, filepath.Join(testkit.Programs(t), "agentd"), s.Intake, dir, token,
	))
	s.AwaitAgent(t, "far")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("count", script, "")))
	r := s.AwaitTask(t, commit, "count", "work", pipeline.Running)
	awaitLine(t, s, r.Task("work").Attempt, "line 5\n")
	if err := ip("link", "set", name+"h", "down"); err != nil {
		t.Fatal(err)
	}
	<-time.After(silentFor)
	if err := ip("link", "set", name+"h", "up"); err != nil {
		t.Fatal(err)
	}
	r = awaitEnd(t, s, commit, "count")
	checkCounted(t, s, r, trace, lines)
	if epoch := r.Task("work").Epoch; epoch != 1 {
		t.Errorf("it was assigned %d times", epoch)
	}
}
