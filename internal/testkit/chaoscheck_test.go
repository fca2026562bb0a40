package testkit_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/testkit"
)

// started is what the trace tells of an attempt.
type started struct {
	key   string
	epoch int64
	steps int
	ended bool
}

// checkTrace proves that no two attempts of a task ran at the same time, and returns
// the attempts that started.
func (c *chaos) checkTrace() map[pipeline.AttemptID]*started {
	b, err := os.ReadFile(filepath.Join(c.dir, "trace"))
	if err != nil {
		c.t.Fatal(err)
	}
	starts := map[pipeline.AttemptID]*started{}
	current := map[string]pipeline.AttemptID{} // by key
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 4 {
			c.t.Fatalf("trace has the line %q", line)
		}
		key, id, word := f[0], pipeline.AttemptID(f[1]), f[3]
		epoch, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			c.t.Fatal(err)
		}
		s := starts[id]
		switch {
		case word == "overlap":
			c.wrong(duplicated, "attempt %s began while a process of an earlier one lived", id)
		case word == "start":
			if s != nil {
				c.wrong(duplicated, "attempt %s started twice", id)
			}
			if before := starts[current[key]]; before != nil && before.epoch >= epoch {
				c.wrong(broken, "attempt %s with epoch %d started after one with epoch %d", id, epoch, before.epoch)
			}
			starts[id], current[key] = &started{key: key, epoch: epoch}, id
		case s == nil || current[key] != id || s.ended:
			c.wrong(duplicated, "attempt %s says %q while it does not run", id, word)
		case word == "step":
			s.steps++
		default:
			s.ended = word == "end"
		}
	}
	return starts
}

// checkCommit proves that all that the commit asked for was done, once. It removes
// what is explained from starts.
func (c *chaos) checkCommit(commit pipeline.CommitID, starts map[pipeline.AttemptID]*started) {
	runs, err := c.server.Runs(commit)
	if err != nil {
		c.t.Fatal(err)
	}
	if len(runs) != perCommit {
		c.wrong(lost, "commit %s has %d runs, want %d", commit.Short(), len(runs), perCommit)
	}
	for _, r := range runs {
		var list struct{ Attempts []pipeline.Attempt }
		if err := c.server.Get("/runs/"+string(r.ID)+"/attempts", &list); err != nil {
			c.t.Fatal(err)
		}
		for i := range r.Tasks {
			attempts := slices.DeleteFunc(slices.Clone(list.Attempts), func(a pipeline.Attempt) bool { return a.Task != r.Tasks[i].Name })
			slices.SortFunc(attempts, func(a, b pipeline.Attempt) int { return int(a.Token.Epoch - b.Token.Epoch) })
			c.checkTask(&r, &r.Tasks[i], attempts, starts)
		}
		if r.State != pipeline.Success || len(r.Tasks) != perRun {
			c.wrong(lost, "%s#%d is %s with %d tasks: %s", r.Composition, r.Number, r.State, len(r.Tasks), r.Reason)
		}
		c.repo.AwaitStatus(commit, "maestro/run/"+string(r.Composition), "success")
	}
	c.repo.AwaitStatus(commit, "maestro", "success")
}

func (c *chaos) checkTask(r *pipeline.Run, k *pipeline.RunTask, attempts []pipeline.Attempt, starts map[pipeline.AttemptID]*started) {
	name := fmt.Sprintf("%s#%d %s", r.Composition, r.Number, k.Name)
	w, ok := c.planned[r.Commit][r.Composition][k.Name]
	if !ok || k.State != pipeline.Success {
		c.wrong(lost, "%s (planned: %v) is %s: %s", name, ok, k.State, k.Reason)
	}
	for i, a := range attempts {
		s := starts[a.ID]
		delete(starts, a.ID)
		last := i == len(attempts)-1
		if a.Token.Epoch != int64(i+1) || last != (a.ID == k.Attempt) || s != nil && s.epoch != a.Token.Epoch {
			c.wrong(broken, "%s: attempt %d of %d is %+v with trace %+v, and the task's latest is %s", name, i+1, len(attempts), a, s, k.Attempt)
		}
		switch {
		case last:
			if a.State != pipeline.AttemptDone || a.Outcome != pipeline.Success || s == nil || !s.ended || s.steps != w.steps {
				c.wrong(lost, "%s: its result is of %+v, with trace %+v; want it done, with %d steps", name, a, s, w.steps)
			}
			if got, want := c.server.Log(c.t, a.ID), w.log(a.ID); got != want || a.LogBytes != int64(len(want)) {
				c.wrong(wrongLog, "%s: the log of %d bytes, %d in the record, is not the %d bytes that the task printed:\n%s", name, len(got), a.LogBytes, len(want), difference(got, want))
			}
		case a.State == pipeline.AttemptDeclined && s == nil:
		case a.State == pipeline.AttemptLost && (c.shims[a.ID] || *chaosAway):
		default:
			c.wrong(duplicated, "%s was started again after attempt %+v with trace %+v, whose shim was not killed", name, a, s)
		}
	}
}

// difference shows where two logs part.
func difference(got, want string) string {
	g, w := strings.SplitAfter(got, "\n"), strings.SplitAfter(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d is %q, want %q", i+1, g[i], w[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

// checkChanges proves that the changes have no gap, and that none was told which
// the record then forgot.
func (c *chaos) checkChanges() {
	c.follow()
	seen := c.seen
	for i, ch := range seen {
		if ch.Seq != pipeline.Seq(i+1) {
			c.t.Fatalf("change %d has the number %d", i+1, ch.Seq)
		}
	}
	c.seen = nil
	c.follow()
	for i, ch := range c.seen[:min(len(c.seen), len(seen))] {
		a, errA := json.Marshal(ch)
		b, errB := json.Marshal(seen[i])
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			c.t.Fatalf("change %d was told as %s and is %s", i+1, b, a)
		}
	}
	if len(c.seen) < len(seen) {
		c.wrong(broken, "%d changes were told, and there are %d", len(seen), len(c.seen))
	}
}

// checkRecord proves that what production is checked with finds nothing, in the
// record and in each backup that was made of it meanwhile.
func (c *chaos) checkRecord() {
	backups, err := filepath.Glob(filepath.Join(c.server.Data, "backups", "*", "maestro.db"))
	if err != nil {
		c.t.Fatal(err)
	}
	if len(backups) == 0 {
		c.wrong(broken, "no backup was made")
	}
	for _, dir := range append(backups, filepath.Join(c.server.Data, "maestro.db")) {
		dir = filepath.Dir(dir)
		if strings.HasPrefix(filepath.Base(dir), ".") {
			continue // one that is under way
		}
		if out, exit := testkit.Run(c.t, "reconciler", "fsck", "--data", dir); exit != 0 {
			c.wrong(broken, "fsck of %s: exit %d\n%s", dir, exit, out)
		}
	}
}

// checkNothingLeft proves that the agents hold nothing any more, and that nothing
// runs once the programs have stopped.
func (c *chaos) checkNothingLeft() {
	testkit.Eventually(c.t, "agents without attempts", func() (bool, string) {
		var left []string
		for _, a := range c.agents {
			files, _ := filepath.Glob(filepath.Join(a.Dir, "*", "01*"))
			left = append(left, files...)
		}
		return len(left) == 0, fmt.Sprint(left)
	})
	for _, a := range c.agents {
		if exit := a.Stop(); exit != 0 {
			c.t.Errorf("%s exited with %d", a.Name, exit)
		}
	}
	if exit := c.server.Stop(); exit != 0 {
		c.t.Errorf("reconciler exited with %d", exit)
	}
	testkit.Eventually(c.t, "nothing is left behind", func() (bool, string) {
		var left []string
		for _, p := range testkit.Procs() {
			ours := p.In(c.dir) || p.In(c.server.Data) || slices.ContainsFunc(c.agents, func(a *testkit.Agent) bool { return p.In(a.Dir) })
			// What evaluates configuration knows no folder; it ends with whoever asked it.
			orphan := p.Parent == 1 && strings.HasPrefix(p.Cmdline, testkit.Programs(c.t)) && !strings.HasSuffix(p.Cmdline, "\x00shim\x00")
			if ours || orphan {
				left = append(left, fmt.Sprintf("%d %s", p.PID, strings.ReplaceAll(p.Cmdline, "\x00", " ")))
			}
		}
		return len(left) == 0, fmt.Sprint(left)
	})
}
