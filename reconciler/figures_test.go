package main_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

var figure = flag.String("figure", "", "measure only this one: latency, history, webhooks, pulls, throughput, path, recovery, agents, log, idle or evaluation")

var figures = flag.Bool("figures", false, "measure and print the table of figures")

func TestMain(m *testing.M) {
	code := m.Run()
	testkit.RemovePrograms()
	os.Exit(code)
}

// table collects what was measured. Nothing is asserted: a figure is for people.
type table struct{ rows [][3]string }

func (t *table) add(what, got, aim string) { t.rows = append(t.rows, [3]string{what, got, aim}) }

// TestFigures prints what the programs cost on this machine. `make bench` runs it.
func TestFigures(t *testing.T) {
	if !*figures {
		t.Skip("run by make bench: it measures, and needs a machine to itself")
	}
	tab := &table{}
	for _, f := range []struct {
		name    string
		measure func(*testing.T, *table)
	}{
		{"latency", func(t *testing.T, tab *table) { latency(t, tab, 0) }},
		{"history", func(t *testing.T, tab *table) { latency(t, tab, 100_000) }},
		{"webhooks", webhooks},
		{"pulls", pullRequests},
		{"throughput", throughput},
		{"path", wholePath},
		{"recovery", recovery},
		{"agents", manyAgents},
		{"log", bigLog},
		{"idle", idle},
		{"evaluation", evaluation},
	} {
		if *figure == "" || *figure == f.name {
			f.measure(t, tab)
		}
	}
	fmt.Printf("\n%s, %d cores, %s\n\n", cpuModel(), runtime.NumCPU(), runtime.Version())
	fmt.Printf("| %-62s | %-34s | %-28s |\n|-|-|-|\n", "figure", "measured", "aim")
	for _, r := range tab.rows {
		fmt.Printf("| %-62s | %-34s | %-28s |\n", r[0], r[1], r[2])
	}
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for _, l := range strings.Split(string(b), "\n") {
		if name, ok := strings.CutPrefix(l, "model name"); ok {
			return strings.Trim(name, "\t :")
		}
	}
	return "unknown processor"
}

func percentile(ds []time.Duration, p int) time.Duration {
	slices.Sort(ds)
	return ds[min(len(ds)-1, len(ds)*p/100)]
}

// stamping is a script that leaves the time at which it began in a file of dir that is
// named for its commit.
func stamping(dir string) string {
	return fmt.Sprintf("date +%%s%%N > %[1]s/$MAESTRO_COMMIT.tmp && mv %[1]s/$MAESTRO_COMMIT.tmp %[1]s/$MAESTRO_COMMIT", dir)
}

// stamp waits for what stamping leaves for the commit.
func stamp(t *testing.T, dir string, commit pipeline.CommitID) time.Time {
	t.Helper()
	var at int64
	testkit.Eventually(t, "the task's stamp", func() (bool, string) {
		b, err := os.ReadFile(filepath.Join(dir, string(commit)))
		if err != nil {
			return false, err.Error()
		}
		at, err = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return err == nil, string(b)
	})
	return time.Unix(0, at)
}

// latency measures from the return of git push to the first act of the first
// task's program.
func latency(t *testing.T, tab *table, finished int) {
	const pushes = 60
	repo := testkit.NewRepo(t)
	stamps := t.TempDir()
	data := testkit.ShortDir(t)
	if finished > 0 {
		seed(t, data, finished)
	}
	s := testkit.ServeIn(t, data, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("first", stamping(stamps), "")))
	var took []time.Duration
	for i := range pushes {
		commit := repo.Commit(map[string]string{"README": fmt.Sprint(i)})
		repo.Git(repo.Work, "push", "--quiet", repo.Bare, "HEAD:refs/heads/main")
		returned := time.Now()
		at := stamp(t, stamps, commit)
		if i > 4 { // the first ones warm the caches
			took = append(took, at.Sub(returned))
		}
		s.AwaitRuns(t, commit, 1)
	}
	what := "push returned -> first process of the first task"
	if finished > 0 {
		what = fmt.Sprintf("the same with %d finished runs in the record", finished)
	}
	tab.add(what, spread(took), "p50 < 60 ms, p95 < 120 ms")
	s.Stop()
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

// seed writes finished runs into a record, as many transactions of the real store.
func seed(t *testing.T, data string, n int) {
	t.Helper()
	ctx := context.Background()
	db, err := store.Open(ctx, data, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	c := &pipeline.Composition{Name: "old", Digest: "sha256:old", Tasks: []pipeline.Task{{Name: "a", Priority: -1}}}
	at := time.Now().Add(-24 * time.Hour).UTC()
	for done := 0; done < n; {
		err := db.Write(ctx, func(tx *store.Tx) error {
			for range min(1000, n-done) {
				done++
				r := &pipeline.Run{
					ID: pipeline.RunID(fmt.Sprintf("01AAAAAAAAAAAAAAAAAA%06d", done)), Key: pipeline.RunKey(fmt.Sprintf("seed-%d", done)),
					Composition: "old", Digest: c.Digest, Commit: pipeline.CommitID(fmt.Sprintf("%040x", done)), Ref: "refs/heads/main",
					State: pipeline.Success, CreatedAt: at, StartedAt: at, FinishedAt: at, Version: 1,
					Tasks: []pipeline.RunTask{{Name: "a", State: pipeline.Success, StartedAt: at, FinishedAt: at}},
				}
				if err := tx.CreateRun(r, c); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// throughput pushes one commit that starts a thousand runs on eight agents.
func throughput(t *testing.T, tab *table) {
	const compositions, agents = 1000, 8
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	var all []*testkit.Agent
	for i := range agents {
		all = append(all, s.StartAgent(t, fmt.Sprintf("agent-%d", i), "default", ""))
	}
	files := testkit.Ops()
	for i := range compositions {
		files = testkit.Files(files, testkit.Shell(fmt.Sprintf("c%04d", i), "true", ""))
	}
	repo.Commit(files)
	before, _ := cpu(t, s.PID())
	sum := func() (own, children time.Duration) {
		for _, a := range all {
			o, c := cpu(t, a.PID())
			own, children = own+o, children+c
		}
		return own, children
	}
	ownBefore, childrenBefore := sum()
	repo.Git(repo.Work, "push", "--quiet", repo.Bare, "HEAD:refs/heads/main")
	commit := pipeline.CommitID(repo.Git(repo.Work, "rev-parse", "HEAD"))
	pushed := time.Now()
	var first time.Time
	testkit.Eventually(t, "the first run", func() (bool, string) {
		var list struct{ Runs []pipeline.Run }
		err := s.Get("/runs?limit=1&commit="+string(commit), &list)
		first = time.Now()
		return err == nil && len(list.Runs) > 0, fmt.Sprint(err)
	})
	evaluated, _ := cpu(t, s.PID())
	s.AwaitEnded(t, compositions)
	took := time.Since(first)
	ok := 0
	for cursor := ""; ; {
		var list struct {
			Runs []pipeline.Run
			Next string
		}
		if err := s.Get("/runs?limit=200&commit="+string(commit)+cursor, &list); err != nil {
			t.Fatal(err)
		}
		for _, r := range list.Runs {
			if r.State == pipeline.Success {
				ok++
			}
		}
		if list.Next == "" {
			break
		}
		cursor = "&before=" + list.Next
	}
	own, children := sum()
	server, _ := cpu(t, s.PID())
	tab.add("1,000 compositions evaluated and planned after one push", ms(first.Sub(pushed)), "-")
	tab.add("1,000 one-task runs on 8 agents", fmt.Sprintf("%.0f runs/s, %d of %d succeeded", compositions/took.Seconds(), ok, compositions), "100 runs/s, none lost")
	tab.add("CPU a run in the reconciler", ms((server-evaluated)/compositions), "5 ms")
	tab.add("CPU to evaluate and plan, reconciler alone", ms(evaluated-before), "-")
	tab.add("CPU a run in the agent", ms((own-ownBefore)/compositions), "10 ms with the shim")
	tab.add("CPU a run in shim and task (two shells)", ms((children-childrenBefore)/compositions), "")
	s.Stop()
}

// cpu is what a process has used, and what its children did that it waited for.
func cpu(t *testing.T, pid int) (own, children time.Duration) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var ticks [4]time.Duration
	for i := range ticks { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(f[11+i], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks[i] = time.Duration(n) * (time.Second / 100)
	}
	return ticks[0] + ticks[1], ticks[2] + ticks[3]
}

// resident returns the memory that a process holds now, and the most it ever held.
func resident(t *testing.T, pid int) (now, peak int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(b), "\n") {
		var kb int
		if _, err := fmt.Sscanf(l, "VmRSS: %d kB", &kb); err == nil {
			now = kb / 1024
		}
		if _, err := fmt.Sscanf(l, "VmHWM: %d kB", &kb); err == nil {
			peak = kb / 1024
		}
	}
	return now, peak
}

// bigLog runs a task that prints a million lines.
func bigLog(t *testing.T, tab *table) {
	const lines = 1_000_000
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	s.StartAgent(t, "one", "default", "")
	stamp := filepath.Join(t.TempDir(), "ended")
	script := fmt.Sprintf("yes 'one hundred bytes of output in a line, which a task that is asked to be chatty prints without any end' | head -n %d; date +%%s%%N > %s", lines, stamp)
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("chatty", script, "")))
	run := s.AwaitRuns(t, commit, 1)[0]
	served := time.Now()
	b, err := os.ReadFile(stamp)
	if err != nil {
		t.Fatal(err)
	}
	at, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	stored := served.Sub(time.Unix(0, at))
	log := s.Log(t, run.Task("work").Attempt)
	_, peak := resident(t, s.PID())
	tab.add("100 MB of log: from the task's end until all is stored", fmt.Sprintf("%s, %d lines, %d MB", ms(stored), strings.Count(log, "\n"), len(log)>>20), "5 s")
	tab.add("and served whole", ms(time.Since(served)), "-")
	tab.add("most memory of the reconciler meanwhile", fmt.Sprintf("%d MB", peak), "150 MB")
	s.Stop()
}

func idle(t *testing.T, tab *table) {
	repo := testkit.NewRepo(t)
	s := testkit.Serve(t, repo.Bare, nil)
	a := s.StartAgent(t, "one", "default", "")
	commit := repo.Push("main", testkit.Files(testkit.Ops(), testkit.Shell("one", "true", "")))
	s.AwaitRuns(t, commit, 1)
	now, _ := resident(t, s.PID())
	agent, _ := resident(t, a.PID())
	tab.add("memory of the reconciler after one run", fmt.Sprintf("%d MB", now), "60 MB idle")
	tab.add("memory of agentd after one run", fmt.Sprintf("%d MB", agent), "25 MB idle")
	if a.Process.Signal(syscall.SIGTERM) != nil {
		t.Log("agent was gone")
	}
	s.Stop()
}

// evaluation measures what a commit's configuration costs, child process included.
func evaluation(t *testing.T, tab *table) {
	const compositions = 1000
	ctx := t.Context()
	r := testkit.NewRepo(t)
	files := testkit.Ops()
	for i := range compositions {
		files = testkit.Files(files, sevenTasks(fmt.Sprintf("c%04d", i), "1m"))
	}
	first := r.Push("main", files)
	second := r.Push("main", sevenTasks("c0500", "2m"))
	repo, err := gitrepo.Open(ctx, gitrepo.Options{URL: r.Bare})
	if err != nil {
		t.Fatal(err)
	}
	defer repo.Close()
	e := config.New(config.Options{
		Child: []string{filepath.Join(testkit.Programs(t), "reconciler"), "internal-evaluate"},
		Log:   slog.New(slog.DiscardHandler),
	})
	before := processorTime(t)
	evaluate := func(id pipeline.CommitID) time.Duration {
		started := time.Now()
		tree, err := repo.Tree(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := e.Evaluate(ctx, id, tree)
		if err != nil || len(cfg.Compositions) != compositions {
			t.Fatalf("%d compositions, %v, %v", len(cfg.Compositions), cfg.Diagnostics[:min(3, len(cfg.Diagnostics))], err)
		}
		return time.Since(started)
	}
	cold := evaluate(first)
	changed := evaluate(second)
	if err := e.Close(); err != nil { // the children's time counts once they are gone
		t.Fatal(err)
	}
	tab.add("cold evaluation of 1,000 compositions of 7 tasks", fmt.Sprintf("%s CPU, %s wall", ms(processorTime(t)-before), ms(cold)), "4,000 ms CPU")
	tab.add("one of them changed", ms(changed)+" wall", "30 ms")
}

// sevenTasks is a composition like those that people write.
func sevenTasks(name, timeout string) map[string]string {
	return map[string]string{"compositions/" + name + "/" + name + ".cue": fmt.Sprintf(`package ops

import (
	"github.com/maestro-cd/maestro/plugins/git"
	"github.com/maestro-cd/maestro/plugins/shell"
)

compositions: %q: {
	params: version: *"1.0" | string
	timeout: %q
	tasks: {
		checkout: git.#Checkout & {}
		lint: shell.#Run & {needs: ["checkout"], fields: script: "make lint"}
		unit: shell.#Run & {needs: ["checkout"], fields: script: "make unit", timeout: "10m"}
		build: shell.#Run & {
			needs: ["lint", "unit"]
			fields: {script: "make", env: VERSION: params.version}
			outputs: {file: string, bytes: int}
		}
		deploy: shell.#Run & {fields: script: "deploy \(tasks.build.outputs.file)", retries: max: 2}
		accept: shell.#Run & {needs: ["deploy"], fields: script: "make accept"}
		clean: shell.#Run & {needs: ["accept"], run: "always", fields: script: "make clean"}
	}
	triggers: [{push: {}}]
}
`, name, timeout)}
}

// processorTime is what this process and the children it waited for have used.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var sum time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}
