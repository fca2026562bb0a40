package testkit_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

var (
	chaosKills = flag.Int("chaos.kills", 20, "how many processes TestKilledAtRandomLosesNothing kills")
	chaosTasks = flag.Int("chaos.tasks", 500, "over how many tasks, about")
	chaosSeed  = flag.Uint64("chaos.seed", 0, "seed of its random choices; 0 takes another one each time")
	chaosAway  = flag.Bool("chaos.away", false, "keep some agents away for so long that their tasks are given up")
)

const (
	chaosAgents = 4
	// perCommit compositions of perRun tasks start with each commit.
	perCommit, perRun = 5, 4
	// settleTime is how long the work may stand still after a kill: an agent that
	// lost its server again and again waits up to 30 s before it dials once more.
	settleTime = 90 * time.Second
	// chaosLostAfter is when tasks are given up with -chaos.away. The agents stop
	// theirs after half of it.
	chaosLostAfter = 20 * time.Second
)

// chaos is a control plane with its agents, of which any process may be killed.
type chaos struct {
	t      *testing.T
	rnd    *rand.Rand
	repo   *testkit.Repo
	server *testkit.Server
	agents []*testkit.Agent
	// dir holds what the tasks do outside of the system: a line for each step in
	// trace, and a lock for each idempotency key.
	dir     string
	commits []pipeline.CommitID
	planned map[pipeline.CommitID]map[pipeline.CompositionName]map[pipeline.TaskName]work
	// shims are the attempts whose shim was killed.
	shims map[pipeline.AttemptID]bool
	kills map[string]int
	// wrongs counts what the checks find, by kind.
	wrongs map[string]int
	// down are the processes to start again, and when.
	down   map[string]time.Time
	seen   []pipeline.Change // what the API told while processes died
	starts int
}

// work is what a task does: steps times lines of output, with a pause after each step.
type work struct {
	steps, lines, seed int
	pause              time.Duration
}

func TestKilledAtRandomLosesNothing(t *testing.T) {
	real(t)
	if runtime.GOOS != "linux" {
		t.Skip("finds the processes to kill in /proc")
	}
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64N(1 << 32)
	}
	t.Logf("-chaos.seed=%d", seed)
	began := time.Now()
	c := startChaos(t, seed)
	c.rampage(max(1, *chaosTasks/(perCommit*perRun)), *chaosKills)
	c.settle()
	starts := c.checkTrace()
	c.starts = len(starts)
	for _, commit := range c.commits {
		c.checkCommit(commit, starts)
	}
	if len(starts) > 0 {
		c.wrong(duplicated, "attempts that started and that the record does not know: %v", starts)
	}
	c.checkChanges()
	c.checkNothingLeft()
	c.checkRecord() // after the server, which removes old backups
	c.report(seed, time.Since(began))
}

// Kinds of what the checks find.
const (
	lost       = "lost"
	duplicated = "duplicated"
	wrongLog   = "wrong log"
	broken     = "broken invariant"
)

// wrong is something that the checks found.
func (c *chaos) wrong(kind, format string, args ...any) {
	c.t.Helper()
	c.wrongs[kind]++
	c.t.Errorf(kind+": "+format, args...)
}

// report prints the figures.
func (c *chaos) report(seed uint64, took time.Duration) {
	var b strings.Builder
	total := 0
	for _, n := range c.kills {
		total += n
	}
	fmt.Fprintf(&b, "seed %d, %s\n", seed, took.Round(time.Second))
	fmt.Fprintf(&b, "%7d tasks in %d runs, %d starts\n", len(c.commits)*perCommit*perRun, len(c.commits)*perCommit, c.starts)
	fmt.Fprintf(&b, "%7d kills\n", total)
	for _, victim := range slices.Sorted(maps.Keys(c.kills)) {
		fmt.Fprintf(&b, "%7d   %s\n", c.kills[victim], victim)
	}
	for _, kind := range []string{lost, duplicated, wrongLog, broken} {
		fmt.Fprintf(&b, "%7d %s\n", c.wrongs[kind], kind)
	}
	c.t.Logf("chaos:\n%s", b.String())
}

func startChaos(t *testing.T, seed uint64) *chaos {
	c := &chaos{
		t: t, rnd: rand.New(rand.NewPCG(seed, 0)), repo: testkit.NewRepo(t), dir: t.TempDir(),
		planned: map[pipeline.CommitID]map[pipeline.CompositionName]map[pipeline.TaskName]work{},
		shims:   map[pipeline.AttemptID]bool{}, kills: map[string]int{}, wrongs: map[string]int{}, down: map[string]time.Time{},
	}
	c.server = testkit.Serve(t, c.repo.Bare, nil, "--backup-every", "1s", "--backup-keep", "3")
	c.begin()
	for i := range chaosAgents {
		c.agents = append(c.agents, c.server.StartAgent(t, "agent-"+strconv.Itoa(i+1), "default", ""))
	}
	return c
}

// begin lets the server make its record several times, and kills it as it does.
func (c *chaos) begin() {
	for range 3 {
		c.server.Kill()
		files, err := filepath.Glob(filepath.Join(c.server.Data, "*.db*"))
		if err != nil || len(files) == 0 {
			c.t.Fatalf("the record to be made again: %v, %v", files, err)
		}
		for _, f := range append(files, filepath.Join(c.server.Data, "watermark.json")) {
			if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
				c.t.Fatal(err)
			}
		}
		c.server.Start(c.t)
		<-time.After(time.Duration(c.rnd.IntN(150)) * time.Millisecond)
		c.server.Kill()
		c.kills["reconciler, making its record"]++
		c.server.Restart(c.t)
	}
}

// rampage pushes the commits and kills processes in between, until all is pushed
// and killed.
func (c *chaos) rampage(commits, kills int) {
	for len(c.commits) < commits || kills > 0 {
		c.rest(600)
		c.revive(time.Now())
		c.follow()
		if len(c.commits) < commits && c.taken() {
			c.push()
		}
		// No kill is spent on a system that rests, and there are some for each commit.
		left := commits - len(c.commits)
		spare := left > 0 && c.rnd.IntN(left+1)*4 > kills*5
		if kills > 0 && !spare && (left > 0 || !c.ended()) {
			kills -= c.strike()
		} else if len(c.commits) == commits {
			kills = 0
		}
	}
}

// rest waits for a random time, now and then hardly at all.
func (c *chaos) rest(most int) {
	if c.rnd.IntN(4) == 0 {
		most /= 20
	}
	<-time.After(time.Duration(c.rnd.IntN(most)) * time.Millisecond)
}

// taken reports whether the last commit has its runs: of commits that are pushed
// faster than they are looked at only the last one counts.
func (c *chaos) taken() bool {
	if len(c.commits) == 0 {
		return true
	}
	runs, err := c.server.Runs(c.commits[len(c.commits)-1])
	return err == nil && len(runs) == perCommit
}

func (c *chaos) push() {
	plan := map[pipeline.CompositionName]map[pipeline.TaskName]work{}
	files := []map[string]string{testkit.Ops()}
	for i := range perCommit {
		name := pipeline.CompositionName("work-" + strconv.Itoa(i+1))
		plan[name] = map[pipeline.TaskName]work{}
		files = append(files, composition(string(name), c.graph(name, plan[name])))
	}
	commit := c.repo.Push("main", testkit.Files(files...))
	c.commits = append(c.commits, commit)
	c.planned[commit] = plan
}

// graph is a composition of tasks in a chain or in a diamond.
func (c *chaos) graph(name pipeline.CompositionName, plan map[pipeline.TaskName]work) string {
	needs := [][]string{{}, {"a"}, {"b"}, {"c"}}
	if c.rnd.IntN(2) == 0 {
		needs = [][]string{{}, {"a"}, {"a"}, {"b", "c"}}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "package ops\n\nimport \"github.com/maestro-cd/maestro/plugins/shell\"\n\ncompositions: %q: {\n\ttriggers: [{push: {}}]\n", name)
	lostAfter := ""
	if *chaosAway {
		lostAfter = fmt.Sprintf("lostAfter: %q, ", chaosLostAfter)
	}
	for i, needed := range needs {
		task := pipeline.TaskName("abcd"[i : i+1])
		w := c.work()
		plan[task] = w
		script, err := json.Marshal(w.script(c.dir))
		if err != nil {
			c.t.Fatal(err)
		}
		list, err := json.Marshal(needed)
		if err != nil {
			c.t.Fatal(err)
		}
		// A loss is made up for as often as it takes. A failure is too, so that a
		// start too many shows in the trace; an error of ours is not.
		fmt.Fprintf(&b, "\ttasks: %q: shell.#Run & {%sneeds: %s, retries: {max: 20, backoff: \"1s\", on: [\"failure\"]}, fields: script: %s}\n", task, lostAfter, list, script)
	}
	return b.String() + "}\n"
}

func (c *chaos) work() work {
	w := work{
		steps: 1 + c.rnd.IntN(5), lines: 1 + c.rnd.IntN(200), seed: c.rnd.IntN(1 << 20),
		pause: time.Duration(5+c.rnd.IntN(60)) * time.Millisecond,
	}
	switch c.rnd.IntN(10) {
	case 0: // more than one frame of log, and more than one acknowledgement
		w.lines *= 40
	case 1:
		if *chaosAway {
			w.steps = 200
		}
	}
	return w
}

// script writes what it does to the trace, and prints lines that each depend on all
// before them. The lock is held by every process of the task, so that one that
// outlives its attempt is found by the next.
func (w work) script(dir string) string {
	return fmt.Sprintf(`me="$MAESTRO_IDEMPOTENCY_KEY $MAESTRO_ATTEMPT $MAESTRO_TRY"
say() { echo "$me $1" >>%[1]s/trace; }
exec 9>>"%[1]s/$MAESTRO_IDEMPOTENCY_KEY"
flock -n 9 || say overlap
say start
i=0 sum=%[2]d
while [ $i -lt %[3]d ]; do
	i=$((i+1)) sum=$(( (sum*31 + i) %% 1000003 ))
	echo "$i $sum $MAESTRO_ATTEMPT"
	[ $((i %% %[4]d)) -ne 0 ] || { say step; sleep %.3[5]f; }
done
say end
`, dir, w.seed, w.steps*w.lines, w.lines, w.pause.Seconds())
}

// log is what the script prints.
func (w work) log(attempt pipeline.AttemptID) string {
	var b strings.Builder
	sum := w.seed
	for i := range w.steps * w.lines {
		sum = (sum*31 + i + 1) % 1000003
		fmt.Fprintf(&b, "%d %d %s\n", i+1, sum, attempt)
	}
	return b.String()
}

// strike kills something, at times two things at once, and returns how many died.
func (c *chaos) strike() int {
	died := 0
	for range 1 + c.rnd.IntN(5)/4 {
		a := c.agents[c.rnd.IntN(len(c.agents))]
		switch n := c.rnd.IntN(20); {
		case n < 1:
			c.freeze(c.server.Process)
		case n < 2:
			c.freeze(a.Process)
		case n < 5:
			died += c.kill("reconciler", c.server.Process)
		case n < 6:
			if c.duringBackup() {
				died += c.kill("reconciler, backing up", c.server.Process)
			}
		case n < 12:
			died += c.kill(a.Name, a.Process)
		default:
			died += c.killShim()
		}
	}
	return died
}

func (c *chaos) kill(name string, p *testkit.Process) int {
	program, _, _ := strings.Cut(name, ",")
	if _, isDown := c.down[program]; isDown {
		return 0
	}
	p.Kill()
	// It comes back mostly at once, as under a supervisor, at times late.
	away := time.Duration(c.rnd.IntN(100)*c.rnd.IntN(20)) * time.Millisecond
	if *chaosAway && program != "reconciler" && c.rnd.IntN(8) == 0 {
		away += chaosLostAfter
	}
	c.down[program] = time.Now().Add(away)
	c.kills[strings.TrimRight(name, "-0123456789")]++
	return 1
}

// duringBackup waits a moment for the server to make a backup.
func (c *chaos) duringBackup() bool {
	for range 300 {
		files, err := filepath.Glob(filepath.Join(c.server.Data, "backups", ".making-*"))
		if err == nil && len(files) > 0 {
			return true
		}
		<-time.After(5 * time.Millisecond)
	}
	return false
}

// freeze stops a process for a while, as a machine that is short of memory does.
func (c *chaos) freeze(p *testkit.Process) {
	if p.Signal(syscall.SIGSTOP) == nil {
		c.rest(2500)
		_ = p.Signal(syscall.SIGCONT)
	}
}

func (c *chaos) killShim() int {
	shims := map[int]pipeline.AttemptID{}
	for _, a := range c.agents {
		maps.Copy(shims, a.Shims())
	}
	if len(shims) == 0 {
		return 0
	}
	pids := slices.Sorted(maps.Keys(shims))
	pid := pids[c.rnd.IntN(len(pids))]
	c.shims[shims[pid]] = true
	if syscall.Kill(pid, syscall.SIGKILL) != nil {
		return 0 // it has just ended
	}
	c.kills["shim"]++
	return 1
}

// revive starts again what has been down for long enough.
func (c *chaos) revive(now time.Time) {
	for _, a := range c.agents {
		if at, isDown := c.down[a.Name]; isDown && now.After(at) {
			a.Restart(c.t)
			delete(c.down, a.Name)
		}
	}
	if at, isDown := c.down["reconciler"]; isDown && now.After(at) {
		// Not waited for, so that it may be killed while it starts.
		c.server.Start(c.t)
		delete(c.down, "reconciler")
	}
}

// ended reports whether all runs of the last commit, and of those before, are over.
func (c *chaos) ended() bool {
	for _, commit := range slices.Backward(c.commits) {
		runs, err := c.server.Runs(commit)
		if err != nil || len(runs) < perCommit ||
			slices.ContainsFunc(runs, func(r pipeline.Run) bool { return !r.State.Terminal() }) {
			return false
		}
	}
	return true
}

// settle lets everything come up again and waits for the runs to end, as long as
// something moves.
func (c *chaos) settle() {
	c.revive(time.Now().Add(time.Hour))
	c.server.Await(c.t)
	moved, last := time.Now(), 0
	for !c.ended() {
		c.follow()
		if len(c.seen) > last {
			moved, last = time.Now(), len(c.seen)
		}
		if time.Since(moved) > settleTime {
			c.t.Fatalf("nothing moves any more: %s", c.unfinished())
		}
		<-time.After(100 * time.Millisecond)
	}
}

func (c *chaos) unfinished() string {
	var b strings.Builder
	for _, commit := range c.commits {
		runs, err := c.server.Runs(commit)
		fmt.Fprintf(&b, "%s has %d runs (%v);", commit.Short(), len(runs), err)
		for _, r := range runs {
			for _, k := range r.Tasks {
				if !k.State.Terminal() {
					fmt.Fprintf(&b, "\n%s#%d %s is %s, attempt %s on %s: %s", r.Composition, r.Number, k.Name, k.State, k.Attempt, k.Agent, k.Reason)
				}
			}
		}
	}
	return b.String()
}

// follow reads the changes that are new. What was told once must stay told.
func (c *chaos) follow() {
	for {
		after := pipeline.Seq(0)
		if n := len(c.seen); n > 0 {
			after = c.seen[n-1].Seq
		}
		changes, err := c.changes(after)
		if err != nil || len(changes) == 0 {
			return // it is down, or there are none
		}
		c.seen = append(c.seen, changes...)
	}
}

func (c *chaos) changes(after pipeline.Seq) ([]pipeline.Change, error) {
	resp, err := http.Get(fmt.Sprintf("%s/api/v1/events?after=%d", c.server.Web, after))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var all []pipeline.Change
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var ch pipeline.Change
		if err := json.Unmarshal(lines.Bytes(), &ch); err != nil {
			return all, err // it was killed half-way through a line
		}
		all = append(all, ch)
	}
	return all, lines.Err()
}
