package main_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/internal/wsconn"
)

// crew is agents that are played by this process, over sockets of their own: they
// answer as agentd does, and each task succeeds at once.
type crew struct {
	t       *testing.T
	s       *testkit.Server
	agents  []*player
	ended   context.Context
	wg      sync.WaitGroup
	offers  atomic.Int64
	results atomic.Int64 // that were acknowledged
	refused atomic.Int64 // connections
	online  atomic.Int64
	// offered has an element for the first offer after it was emptied.
	offered chan time.Time
}

type player struct {
	key  ed25519.PrivateKey
	from string // the address that it has
}

// newCrew enrols n agents and connects them. Each address has fifty.
func newCrew(t *testing.T, s *testkit.Server, n int) *crew {
	t.Helper()
	c := &crew{t: t, s: s, offered: make(chan time.Time, 1)}
	var stop context.CancelFunc
	c.ended, stop = context.WithCancel(context.Background())
	t.Cleanup(func() { stop(); c.wg.Wait() })
	for i := range n {
		p := &player{from: fmt.Sprintf("127.0.%d.%d", 1+i/50/250, 1+i/50%250)}
		_, p.key, _ = ed25519.GenerateKey(nil)
		c.enrol(p)
		c.agents = append(c.agents, p)
	}
	for _, p := range c.agents {
		c.wg.Go(func() { c.play(p) })
	}
	c.await(n)
	return c
}

// await waits until n agents are online.
func (c *crew) await(n int) {
	c.t.Helper()
	testkit.Eventually(c.t, fmt.Sprintf("%d agents online", n), func() (bool, string) {
		have := c.online.Load()
		return have >= int64(n), fmt.Sprintf("%d, %d refused", have, c.refused.Load())
	})
}

func (p *player) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(p.from)}}
	return d.DialContext(ctx, network, addr)
}

func (c *crew) enrol(p *player) {
	c.t.Helper()
	admin := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(c.s.Data, "admin.sock"))
	}}}
	defer admin.CloseIdleConnections()
	var invited struct{ Token string }
	c.post(admin, "http://admin/invite", "", map[string]any{"pool": "default"}, &invited)
	intake := &http.Client{Transport: &http.Transport{DialContext: p.dial}}
	defer intake.CloseIdleConnections()
	c.post(intake, c.s.Intake+wire.PathEnrol, invited.Token, wire.EnrolRequest{
		PublicKey: p.key.Public().(ed25519.PublicKey), Name: "played",
		Signature: ed25519.Sign(p.key, wire.SignedEnrol(invited.Token)),
	}, new(wire.EnrolResponse))
}

func (c *crew) post(client *http.Client, url, token string, body, answer any) {
	c.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		c.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(c.ended, http.MethodPost, url, bytes.NewReader(b))
	if err != nil {
		c.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(answer); err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
}

// play keeps an agent connected, with the pauses of agentd.
func (c *crew) play(p *player) {
	for tries := 0; c.ended.Err() == nil; tries++ {
		if err := c.connect(p); err == nil {
			tries = -1
		} else if c.ended.Err() == nil {
			c.refused.Add(1)
		}
		limit := 30 * time.Second
		if tries < 6 {
			limit = 500 * time.Millisecond << max(tries, 0)
		}
		select {
		case <-time.After(rand.N(limit)):
		case <-c.ended.Done():
		}
	}
}

// connect plays one connection; nil means that it was welcomed.
func (c *crew) connect(p *player) error {
	conn, err := wsconn.Dialer{NetDial: p.dial}.Dial(c.ended, c.s.Intake+wire.PathConnect)
	if err != nil {
		return err
	}
	defer func() {
		conn.Close(wsconn.CodeNormal, "")
		<-conn.Done()
	}()
	f, err := conn.Receive(c.ended)
	if err != nil {
		return err
	}
	challenge, ok := f.Message.(*wire.Challenge)
	if !ok {
		return errors.New("no challenge")
	}
	public := p.key.Public().(ed25519.PublicKey)
	err = conn.Send(c.ended, &wire.Hello{
		Versions: [2]int{wire.MinVersion, wire.Version}, PublicKey: public, Name: "played", OS: "linux", Arch: "amd64",
		Signature: ed25519.Sign(p.key, wire.SignedHello(challenge.Nonce, challenge.Server)),
		Facts:     json.RawMessage(`{"kernel":"Linux","architecture":"amd64","memory":{"total_mb":16384},"cpus":{"count":8}}`),
	})
	if err != nil {
		return err
	}
	if f, err = conn.Receive(c.ended); err != nil {
		return err
	}
	if _, ok := f.Message.(*wire.Welcome); !ok {
		return fmt.Errorf("not welcomed but %T", f.Message)
	}
	c.online.Add(1)
	defer c.online.Add(-1)
	c.work(conn)
	return nil
}

// work answers until the connection ends.
func (c *crew) work(conn *wsconn.Conn) {
	beats := sync.WaitGroup{}
	beats.Go(func() {
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for n := int64(1); conn.TrySend(&wire.Beat{N: n}) == nil; n++ {
			select {
			case <-tick.C:
			case <-conn.Ending():
				return
			}
		}
	})
	defer beats.Wait()
	defer conn.Close(wsconn.CodeNormal, "")
	for {
		f, err := conn.Receive(c.ended)
		if err != nil {
			return
		}
		switch m := f.Message.(type) {
		case *wire.Offer:
			c.offers.Add(1)
			select {
			case c.offered <- time.Now():
			default:
			}
			_ = conn.Send(c.ended, &wire.Accept{Attempt: m.Attempt, Token: m.Token})
		case *wire.Go:
			_ = conn.Send(c.ended, &wire.Started{Attempt: m.Attempt, Token: m.Token, At: time.Now()})
			_ = conn.Send(c.ended, &wire.Result{Attempt: m.Attempt, Token: m.Token, Result: pipeline.Result{
				Outcome: pipeline.Success, Outputs: json.RawMessage(`{}`),
			}})
		case *wire.Ack:
			c.results.Add(1)
		}
	}
}

// wholePath runs many tasks on agents that take no time.
func wholePath(t *testing.T, tab *table) {
	const compositions, width, depth, agents = 60, 10, 4, 50
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	c := newCrew(t, s, agents)
	files := testkit.Ops()
	for i := range compositions {
		files = testkit.Files(files, levels(fmt.Sprintf("c%03d", i), width, depth))
	}
	repo.Push("main", files)
	<-c.offered
	began, before := time.Now(), c.results.Load()
	used, _ := cpu(t, s.PID())
	s.AwaitEnded(t, compositions)
	took, n := time.Since(began), c.results.Load()-before
	after, _ := cpu(t, s.PID())
	tab.add(fmt.Sprintf("%d tasks of %d runs on %d agents that take no time", n, compositions, agents),
		fmt.Sprintf("%.0f tasks/s", float64(n)/took.Seconds()), "300 tasks/s")
	tab.add("CPU a task in the reconciler", fmt.Sprintf("%.2f ms", float64((after-used).Microseconds())/1000/float64(n)), "3 ms")
	s.Stop()
}

// levels is a composition of depth times width tasks, each of which needs two before it.
func levels(name string, width, depth int) map[string]string {
	var b strings.Builder
	fmt.Fprintf(&b, "package ops\n\nimport \"github.com/maestro-cd/maestro/plugins/shell\"\n\ncompositions: %q: {\n\ttriggers: [{push: {}}]\n\ttasks: {\n", name)
	for d := range depth {
		for w := range width {
			fmt.Fprintf(&b, "\t\t\"t%d-%d\": shell.#Run & {fields: script: \"true\"", d, w)
			if d > 0 {
				fmt.Fprintf(&b, ", needs: [\"t%d-%d\", \"t%d-%d\"]", d-1, w, d-1, (w+1)%width)
			}
			b.WriteString("}\n")
		}
	}
	b.WriteString("\t}\n}\n")
	return map[string]string{"compositions/" + name + "/" + name + ".cue": b.String()}
}

// recovery kills a reconciler with a long history and a thousand tasks waiting.
func recovery(t *testing.T, tab *table) {
	const runs, each = 10, 100
	repo := testkit.NewRepo(t)
	data := testkit.ShortDir(t)
	seed(t, data, 100_000)
	s := testkit.ServeIn(t, data, repo.Bare, nil)
	files := testkit.Ops()
	for i := range runs {
		files = testkit.Files(files, levels(fmt.Sprintf("c%03d", i), each, 1))
	}
	commit := repo.Push("main", files)
	testkit.Eventually(t, "the runs wait", func() (bool, string) {
		list, err := s.Runs(commit)
		return len(list) == runs, fmt.Sprint(len(list), err)
	})
	c := &crew{t: t, s: s, offered: make(chan time.Time, 1)}
	var stop context.CancelFunc
	c.ended, stop = context.WithCancel(context.Background())
	defer func() { stop(); c.wg.Wait() }()
	p := &player{from: "127.0.0.1"}
	_, p.key, _ = ed25519.GenerateKey(nil)
	c.enrol(p)
	s.Kill()
	began := time.Now()
	s.Start(t)
	c.wg.Go(func() {
		for c.ended.Err() == nil { // it comes as soon as it can
			_ = c.connect(p)
			time.Sleep(5 * time.Millisecond)
		}
	})
	select {
	case at := <-c.offered:
		tab.add("kill -9 with 100,000 tasks recorded and 1,000 waiting -> first offer", ms(at.Sub(began)), "2,000 ms")
	case <-time.After(time.Minute):
		t.Fatalf("no offer:\n%s", s.Said())
	}
	stop()
	c.wg.Wait()
	s.Stop()
}

// manyAgents measures what agents cost that do nothing, and lets half of them come
// back at once.
func manyAgents(t *testing.T, tab *table) {
	const agents, window = 2000, 20 * time.Second
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	repo.Push("main", testkit.Ops())
	c := newCrew(t, s, agents)
	time.Sleep(window) // what their coming left to do is done
	before, _ := cpu(t, s.PID())
	time.Sleep(window) // what is measured is that nothing happens
	after, _ := cpu(t, s.PID())
	now, _ := resident(t, s.PID())
	tab.add("2,000 idle agents: memory of the reconciler", fmt.Sprintf("%d MB", now), "200 MB")
	tab.add("2,000 idle agents: CPU of the reconciler", fmt.Sprintf("%.1f%% of a core", 100*float64(after-before)/float64(window)), "3%")
	s.Kill()
	testkit.Eventually(t, "all are gone", func() (bool, string) { return c.online.Load() == 0, "" })
	c.refused.Store(0)
	s.Restart(t)
	began := time.Now()
	c.await(agents)
	tab.add("2,000 agents back after a restart", fmt.Sprintf("%.1f s, %d tries refused", time.Since(began).Seconds(), c.refused.Load()), "30 s for 1,000")
	s.Stop()
}
