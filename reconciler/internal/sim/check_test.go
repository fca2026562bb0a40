package sim_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// verdicts collects what is wrong.
type verdicts struct{ errs []error }

func (v *verdicts) wrong(format string, args ...any) {
	v.errs = append(v.errs, fmt.Errorf(format, args...))
}

// check compares what the record says with what happened.
func (s *sim) check() error {
	v := &verdicts{}
	s.world.mu.Lock()
	lives := slices.Clone(s.world.order)
	for _, id := range s.world.twice {
		v.wrong("attempt %s was started twice", id)
	}
	s.world.mu.Unlock()
	s.checkLives(v, lives)
	known := map[pipeline.AttemptID]pipeline.Attempt{}
	runs, err := s.srv.db.Runs(context.Background(), store.Filter{Limit: 100, Tasks: true})
	if err != nil {
		return err
	}
	if len(runs) != 2*len(s.plan.Commits) {
		v.wrong("%d runs of %d commits", len(runs), len(s.plan.Commits))
	}
	for _, r := range runs {
		if err := s.checkRun(v, r, known); err != nil {
			return err
		}
	}
	for _, l := range lives {
		a, ok := known[l.task.Attempt]
		if !ok || a.State != pipeline.AttemptDone && a.State != pipeline.AttemptLost {
			v.wrong("attempt %s ran, and the record has it as %q", l.task.Attempt, a.State)
		}
	}
	s.checkSaid(v, known)
	if err := s.checkRecord(v); err != nil {
		return err
	}
	return errors.Join(v.errs...)
}

// checkLives looks at what ran, whatever anybody says of it.
func (s *sim) checkLives(v *verdicts, lives []*life) {
	last := map[string]*life{}
	for _, l := range lives {
		before := last[l.task.Key]
		last[l.task.Key] = l
		switch {
		case l.to == 0:
			v.wrong("attempt %s runs still", l.task.Attempt)
		case before == nil:
		case before.to == 0 || before.to > l.from:
			v.wrong("attempts %s and %s of one task ran at the same time", before.task.Attempt, l.task.Attempt)
		case before.task.Try >= l.task.Try:
			v.wrong("attempt %s is try %d, after try %d", l.task.Attempt, l.task.Try, before.task.Try)
		}
	}
}

func (s *sim) checkRun(v *verdicts, r *pipeline.Run, known map[pipeline.AttemptID]pipeline.Attempt) error {
	at := 0
	for i := range s.plan.Commits {
		if commitID(i) == r.Commit {
			at = i
		}
	}
	planned := s.plan.Commits[at].Runs[int(r.Composition[1]-'0')].Tasks
	attempts, err := s.srv.db.Attempts(context.Background(), r.ID)
	if err != nil {
		return err
	}
	for i := range r.Tasks {
		t := &r.Tasks[i]
		of := slices.DeleteFunc(slices.Clone(attempts), func(a pipeline.Attempt) bool { return a.Task != t.Name })
		slices.SortFunc(of, func(a, b pipeline.Attempt) int { return cmp.Compare(a.Token.Epoch, b.Token.Epoch) })
		if err := s.checkTask(v, r, t, &planned[i], of); err != nil {
			return err
		}
		for _, a := range of {
			known[a.ID] = a
		}
	}
	// I7: what a run shows is what its tasks say.
	if want := pipeline.RunState(r.Tasks); r.State != want {
		v.wrong("run %s is %s, and its tasks make it %s", r.ID, r.State, want)
	}
	if shown, want := s.world.forge.state(r.Commit, "maestro/run/"+string(r.Composition)), r.State; r.State.Terminal() {
		good := shown == "success"
		if good != want.Good() || shown == "" || shown == "pending" {
			v.wrong("run %s is %s, and the forge shows %q", r.ID, want, shown)
		}
	}
	return nil
}

func (s *sim) checkTask(v *verdicts, r *pipeline.Run, t *pipeline.RunTask, planned *task, attempts []pipeline.Attempt) error {
	name := fmt.Sprintf("run %s of %s, %s", r.ID, r.Composition, t.Name)
	s.mu.Lock()
	cancelled := s.cancelled[r.ID] && r.Cancel
	s.mu.Unlock()
	starts, open, done := 0, 0, 0
	for i, a := range attempts {
		if a.Token.Epoch != int64(i+1) { // I2
			v.wrong("%s: attempt %d has epoch %d", name, i+1, a.Token.Epoch)
		}
		l := s.world.lives[a.ID]
		if l != nil {
			starts++
		}
		switch a.State {
		case pipeline.AttemptOffered, pipeline.AttemptRunning:
			open++
		case pipeline.AttemptDone:
			if a.Outcome == t.State && t.State.Terminal() {
				done++
			}
		}
		if err := s.checkLog(v, name, a, l); err != nil {
			return err
		}
		if a.State == pipeline.AttemptDone && a.Outcome == pipeline.Success && (l == nil || !l.whole || l.exit != 0) {
			v.wrong("%s: attempt %s counts as success, and did this: %+v", name, a.ID, l)
		}
	}
	if open > 0 { // I1, at rest
		v.wrong("%s: %d attempts are open", name, open)
	}
	if planned.Once && starts > 1 {
		v.wrong("%s may be started once and was started %d times", name, starts)
	}
	if n := len(attempts); n > 0 && attempts[n-1].Outcome == pipeline.Success && t.State != pipeline.Success {
		v.wrong("%s is %s, and its last result was a success", name, t.State)
	}
	switch {
	case t.State == pipeline.Success:
		// I3: one result made it so.
		if done != 1 || len(attempts) == 0 || attempts[len(attempts)-1].ID != t.Attempt {
			v.wrong("%s succeeded with %d accepted results in %+v", name, done, attempts)
		}
	case cancelled:
	case t.State == pipeline.InDoubt && planned.Once:
		if len(attempts) == 0 || attempts[len(attempts)-1].State != pipeline.AttemptLost {
			v.wrong("%s is in doubt, and its attempts are %+v", name, attempts)
		}
	case t.State == pipeline.Pending && waits(r, t):
	default:
		v.wrong("%s is %s: %s", name, t.State, t.Reason)
	}
	return nil
}

// waits reports whether the task waits for a person, who settles what is in doubt.
func waits(r *pipeline.Run, t *pipeline.RunTask) bool {
	if len(r.Behind) > 0 {
		return true
	}
	for _, name := range t.Spec.Needs {
		if n := r.Task(name); n.State == pipeline.InDoubt || n.State == pipeline.Pending {
			return true
		}
	}
	return false
}

// checkLog compares what is stored of an attempt's log with what it printed.
func (s *sim) checkLog(v *verdicts, name string, a pipeline.Attempt, l *life) error {
	n, err := s.srv.logs.Length(context.Background(), a.ID)
	if err != nil {
		return err
	}
	got, err := s.srv.logs.Read(context.Background(), a.ID, 0, int(n.Bytes)+1)
	if err != nil {
		return err
	}
	var want strings.Builder
	if l != nil {
		for i := range l.lines {
			want.WriteString(line(a.ID, i))
		}
	}
	switch full := want.String(); {
	case !strings.HasPrefix(full, string(got)):
		v.wrong("%s: the log of %s is not what it printed: %d bytes are stored, %d were printed", name, a.ID, len(got), len(full))
	case a.State == pipeline.AttemptDone && l != nil && l.whole && (string(got) != full || a.LogBytes != int64(len(full))):
		v.wrong("%s: the log of %s has %d bytes, %d by its result, and %d were printed", name, a.ID, len(got), a.LogBytes, len(full))
	}
	return nil
}

// checkSaid looks for what an agent was told and the record does not know.
func (s *sim) checkSaid(v *verdicts, known map[pipeline.AttemptID]pipeline.Attempt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.acked {
		if a := known[id].State; a != pipeline.AttemptDone && (s.knew[id] || a != pipeline.AttemptLost) {
			v.wrong("the result of %s was acknowledged, and the record has it as %q", id, known[id].State)
		}
	}
	for id := range s.gone {
		if a := known[id].State; a != pipeline.AttemptDone && a != pipeline.AttemptLost {
			v.wrong("go was sent for %s, and the record has it as %q", id, a)
		}
	}
	for id, length := range s.durable {
		n, err := s.srv.logs.Length(context.Background(), id)
		if err != nil || n.Received < length {
			v.wrong("%d bytes of the log of %s were acknowledged, and %d are stored (%v)", length, id, n.Received, err)
		}
	}
}

// checkRecord looks at what no single run shows.
func (s *sim) checkRecord(v *verdicts) error {
	changes, err := s.srv.db.Changes(context.Background(), 0, 1<<20)
	if err != nil {
		return err
	}
	running := map[pipeline.RunID]bool{}
	of := map[pipeline.RunID]pipeline.CompositionName{}
	runs, err := s.srv.db.Runs(context.Background(), store.Filter{Limit: 100, Tasks: true})
	if err != nil {
		return err
	}
	for _, r := range runs {
		of[r.ID] = r.Composition
	}
	for i, c := range changes {
		if c.Seq != pipeline.Seq(i+1) { // I9
			v.wrong("change %d has the number %d", i+1, c.Seq)
		}
		if c.Kind != pipeline.ChangeRun || of[c.Run] != limited {
			continue
		}
		delete(running, c.Run)
		if c.State == pipeline.Running || c.State == pipeline.InDoubt {
			running[c.Run] = true
		}
		if len(running) > 1 { // I12
			v.wrong("at change %d, %d runs of %s are under way, and 1 may be", c.Seq, len(running), limited)
		}
	}
	// What production is checked with, I1 to I12, must find nothing either.
	report, err := store.Fsck(context.Background(), s.srv.dir)
	if err != nil {
		return err
	}
	for _, f := range report.Findings {
		if !f.Warning {
			v.wrong("fsck: %s: %s in %s", f.Rule, f.What, f.Where)
		}
	}
	if r := s.srv.db.Rollback(); r != nil {
		v.wrong("nothing was put back, and %s", r.Sentence())
	}
	return nil
}
