package loop_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

var anything = pipeline.Type{Kind: pipeline.KindStruct, Open: true}

func shellTask(name string, needs ...pipeline.TaskName) pipeline.Task {
	return pipeline.Task{Name: pipeline.TaskName(name), Plugin: "shell", Uses: "shell/run", Priority: -1, Outputs: anything, Needs: needs}
}

func coreTask(name string, needs ...pipeline.TaskName) pipeline.Task {
	return pipeline.Task{Name: pipeline.TaskName(name), Plugin: pipeline.CorePlugin, Uses: "core/run", Priority: -1, Outputs: anything, Needs: needs}
}

func callTask(name, composition string, needs ...pipeline.TaskName) pipeline.Task {
	t := coreTask(name, needs...)
	t.Call = &pipeline.Call{Composition: pipeline.CompositionName(composition), Join: true}
	return t
}

// composed is a composition that only others start.
func composed(name string, tasks ...pipeline.Task) pipeline.Composition {
	text, err := json.Marshal(tasks)
	if err != nil {
		panic(err)
	}
	return pipeline.Composition{Name: pipeline.CompositionName(name), Digest: pipeline.DigestOf(append(text, name...)), Tasks: tasks}
}

// pushed is one that a push to main starts.
func pushed(name string, tasks ...pipeline.Task) pipeline.Composition {
	c := composed(name, tasks...)
	c.Triggers = []pipeline.Trigger{{Push: &pipeline.PushTrigger{Branches: []string{"main"}}}}
	return c
}

func (w *world) config(id pipeline.CommitID, compositions ...pipeline.Composition) pipeline.CommitID {
	w.repo.mu.Lock()
	defer w.repo.mu.Unlock()
	w.repo.configs[id] = pipeline.Config{
		Commit:       id,
		Plugins:      []pipeline.Plugin{{Name: "shell", Tree: "git:1", Programs: []pipeline.Program{{Argv: []string{"./run"}}}}},
		Compositions: compositions,
	}
	return id
}

// awaitRun returns the nth run of a composition once ok says so.
func (w *world) awaitRun(c pipeline.CompositionName, n int, ok func(*pipeline.Run) bool) *pipeline.Run {
	w.t.Helper()
	signal, stop := w.db.Watch()
	defer stop()
	deadline := time.After(patience)
	for {
		r, err := w.db.RunByNumber(w.t.Context(), c, n)
		if err == nil && ok(r) {
			return r
		}
		select {
		case <-signal:
		case <-deadline:
			w.t.Fatalf("%s#%d is not as it must be: %+v, %v", c, n, r, err)
		}
	}
}

func in(s pipeline.State) func(*pipeline.Run) bool {
	return func(r *pipeline.Run) bool { return r.State == s }
}

func (w *world) allRuns() []string {
	w.t.Helper()
	runs, err := w.db.Runs(w.t.Context(), store.Filter{Limit: 100})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, r := range runs {
		out = append(out, fmt.Sprintf("%s#%d %s", r.Composition, r.Number, r.State))
	}
	slices.Sort(out)
	return out
}

// TestCalledRunsAreMadeOnceWhateverFails plays runs that call others and fail, with
// each message lost, each version not written, and the loop restarted at each point.
func TestCalledRunsAreMadeOnceWhateverFails(t *testing.T) {
	t.Parallel()
	messages := playCalls(t, "", 0)
	if messages < 15 {
		t.Fatalf("the runs took %d messages", messages)
	}
	step := 2
	if testing.Short() {
		step = 7
	}
	for _, what := range []string{"message lost", "restart before", "restart after", "write fails"} {
		for at := 1; at <= messages; at += step {
			t.Run(fmt.Sprintf("%s %d", strings.ReplaceAll(what, " ", "-"), at), func(t *testing.T) {
				t.Parallel()
				playCalls(t, what, at)
			})
		}
	}
}

func playCalls(t *testing.T, what string, at int) (messages int) {
	w := newWorld(t)
	w.blanks = map[string]string{
		"c: fields of lint": `{"params":{"from":"first"}}`,
		"c: when of maybe":  `false`,
		"build: outputs":    `{"war":"a.war"}`,
	}
	p := &player{w: w, held: map[pipeline.AttemptID]*held{}, starts: map[pipeline.TaskName]int{}, fails: "bad"}
	w.push("")
	p.agent = w.agent("one")
	if what == "write fails" {
		w.breakWrite(at/8 + 1)
	}
	build := composed("build", shellTask("compile"))
	build.Returns = pipeline.Expr{Deferred: true}
	lint := composed("lint", shellTask("check"))
	lint.Params = []pipeline.Field{{Name: "from", Type: pipeline.Type{Kind: pipeline.KindString}}}
	lintCall := callTask("lint", "lint", "first")
	lintCall.Deferred = true
	maybe := shellTask("maybe", "first")
	maybe.If = &pipeline.Expr{Deferred: true, Text: "false"}
	bad := shellTask("bad", "maybe")
	bad.Continue, bad.OnFailure = true, &pipeline.Hook{Composition: "tell"}
	last := shellTask("last", "build", "lint")
	last.Bindings = []pipeline.Binding{{Field: "war", From: "build", Output: "war"}}
	aside := callTask("aside", "note", "first")
	aside.Call.Join = false
	commit := w.config("c1",
		pushed("c", aside, shellTask("first"), callTask("build", "build", "first"), lintCall, maybe, bad, last),
		build, lint, composed("tell", shellTask("say")), composed("note", shellTask("write")),
	)
	w.push(commit)
	signal, stop := w.db.Watch()
	defer func() { stop() }()
	deadline := time.After(patience)
	want := []string{"build#1 success", "c#1 success", "lint#1 success", "note#1 success", "tell#1 success"}
	for {
		if slices.Equal(w.allRuns(), want) {
			w.checkCalls(p)
			return messages
		}
		select {
		case s := <-w.sent:
			if messages++; messages != at {
				p.hear(s.m)
				break
			}
			w.fail(p, what, s.m)
			w.push(commit)
			stop()
			signal, stop = w.db.Watch()
		case <-w.dropped:
			w.mendWrite()
			p.connect()
		case <-signal:
		case <-deadline:
			t.Fatalf("runs are %q, want %q", w.allRuns(), want)
		}
	}
}

func (w *world) checkCalls(p *player) {
	w.t.Helper()
	verdicts, err := w.db.Verdicts(w.t.Context(), "c1")
	if err != nil {
		w.t.Fatal(err)
	}
	ledger := map[string]string{}
	for _, v := range verdicts {
		ledger[v.Kind+" of "+string(v.Composition)] = v.Sentence
		if v.Outcome == pipeline.VerdictRun && v.Run == "" {
			w.t.Errorf("verdict without its run: %+v", v)
		}
	}
	for what, want := range map[string]string{
		"push of c": "push to main", "push of build": "no push trigger; it starts when c calls it", "call of build": "called by c#1, task build",
		"push of tell": "no push trigger; it starts when c calls it", "failure of tell": "c#1, task bad, failed",
	} {
		if ledger[what] != want {
			w.t.Errorf("why %s: %q, want %q", what, ledger[what], want)
		}
	}
	for _, name := range []pipeline.TaskName{"first", "compile", "check", "bad", "last", "say", "write"} {
		if p.starts[name] != 1 {
			w.t.Errorf("task %s was started %d times", name, p.starts[name])
		}
	}
	r := w.awaitRun("c", 1, in(pipeline.Success))
	build := w.awaitRun("build", 1, in(pipeline.Success))
	if k := r.Task("build"); k.Child != build.ID || string(k.Outputs) != `{"war":"a.war"}` || !strings.HasPrefix(k.Reason, "build#1: ") {
		w.t.Errorf("call = %+v", k)
	}
	if k := r.Task("aside"); k.State != pipeline.Success || string(k.Outputs) != fmt.Sprintf(`{"run":%q}`, k.Child) || k.Reason != "started note#1" {
		w.t.Errorf("call that nobody waits for = %+v", k)
	}
	if got := r.Task("maybe").Reason; got != "its condition is false: false" {
		w.t.Errorf("maybe: %s", got)
	}
	if lint := w.awaitRun("lint", 1, in(pipeline.Success)); string(lint.Params) != `{"from":"first"}` || lint.Depth != 1 || lint.Event.Cause.Run != r.ID {
		w.t.Errorf("lint = %+v", lint)
	}
	tell := w.awaitRun("tell", 1, in(pipeline.Success)).Event
	if tell.Kind != pipeline.EventFailure || tell.Cause.Task != "bad" || tell.Cause.State != pipeline.Failure || string(tell.Cause.Outputs["first"]) != `{"id":"first"}` {
		w.t.Errorf("event = %+v, cause %+v", tell, tell.Cause)
	}
}

func TestCallGoesOnWithTheTextThatItWasPlannedWith(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.config("c1", pushed("c", shellTask("a"), callTask("build", "build", "a")), composed("build", shellTask("old"))))
	o := w.accept(a)
	w.push(w.config("c2", composed("build", shellTask("new"))))
	w.runs.Message(a.ID, success(o, `{}`))
	if o := w.accept(a); o.Spec.Task != "old" {
		t.Errorf("%s runs", o.Spec.Task)
	}
	one, two := w.awaitRun("c", 1, in(pipeline.Running)).Digest, w.digestAfter("c3", pushed("c", shellTask("a"), callTask("build", "build", "a")), composed("build", shellTask("new")))
	if one == two {
		t.Error("a caller's digest does not tell what it calls")
	}
}

func TestCallOfWhatIsNotThereSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.config("c1", pushed("c", callTask("build", "build"))))
	if r := w.await(pipeline.Error); !strings.Contains(r.Reason, "build is not there to be called") {
		t.Errorf("reason = %q", r.Reason)
	}
}

func TestParamsThatDoNotFitFailTheCall(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	build := composed("build", shellTask("a"))
	build.Params = []pipeline.Field{{Name: "n", Type: pipeline.Type{Kind: pipeline.KindInt}}}
	w.push(w.config("c1", pushed("c", callTask("build", "build")), build))
	if r := w.await(pipeline.Error); r.Task("build").Reason != "build#1: params of build: n: is missing" {
		t.Errorf("reason = %q", r.Task("build").Reason)
	}
}

func TestCancelReachesCalledRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.config("c1", pushed("c", callTask("build", "build")), composed("build", callTask("inner", "inner")), composed("inner", shellTask("a"))))
	o := w.accept(a)
	w.runs.Cancel(w.await(pipeline.Running).ID, "no longer wanted")
	expect[*wire.Cancel](w, a.ID)
	w.runs.Message(a.ID, &wire.Result{Attempt: o.Attempt, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Cancelled}})
	w.await(pipeline.Cancelled)
	if got := strings.Join(w.allRuns(), ", "); got != "build#1 cancelled, c#1 cancelled, inner#1 cancelled" {
		t.Errorf("runs: %s", got)
	}
}

func TestRunsOfAGroupWaitForEachOtherOverRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	c := pushed("c", shellTask("a"))
	c.Concurrency = &pipeline.Concurrency{Group: pipeline.Expr{Value: json.RawMessage(`"prod"`)}, Policy: pipeline.Queue}
	w.push(w.config("c1", c))
	o := w.accept(a)
	w.push(w.config("c2", c))
	second := w.awaitRun("c", 2, func(r *pipeline.Run) bool { return len(r.Behind) > 0 })
	if second.Reason != "behind c#1 in group prod" || second.Task("a").Reason != second.Reason || second.Group != "prod" {
		t.Errorf("second = %+v", second)
	}
	w.restart()
	w.push("c2")
	w.agent("one", wire.Held{Attempt: o.Attempt, Token: o.Token, Phase: wire.HeldRunning})
	w.runs.Message(a.ID, success(o, `{}`))
	w.awaitRun("c", 1, in(pipeline.Success))
	w.runs.Message(a.ID, success(w.accept(a), `{}`))
	w.awaitRun("c", 2, in(pipeline.Success))
}

func TestNewerRunOvertakesWhereThePolicySaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	c := pushed("c", shellTask("a"))
	c.Concurrency = &pipeline.Concurrency{Group: pipeline.Expr{Value: json.RawMessage(`"prod"`)}, Policy: pipeline.CancelRunning}
	w.push(w.config("c1", c))
	o := w.accept(a)
	w.push(w.config("c2", c))
	if m := expect[*wire.Cancel](w, a.ID); m.Reason != "overtaken by c#2" {
		t.Errorf("reason = %q", m.Reason)
	}
	w.runs.Message(a.ID, &wire.Result{Attempt: o.Attempt, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Cancelled}})
	w.runs.Message(a.ID, success(w.accept(a), `{}`))
	w.awaitRun("c", 2, in(pipeline.Success))
}

func TestWaitEndsWithTheLatestRunOfItsCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	wait := coreTask("w")
	wait.Wait = &pipeline.WaitFor{Composition: "lint", Within: pipeline.Duration(time.Hour)}
	w.push(w.config("c1", pushed("c", wait), pushed("lint", shellTask("check"))))
	o := w.accept(a)
	w.awaitRun("c", 1, func(r *pipeline.Run) bool { return r.Task("w").Reason == "waits for lint#1, at most 1h0m0s" })
	w.restart()
	w.push("c1")
	w.agent("one", wire.Held{Attempt: o.Attempt, Token: o.Token, Phase: wire.HeldRunning})
	w.runs.Message(a.ID, &wire.Result{Attempt: o.Attempt, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Failure}})
	if r := w.await(pipeline.Failure); r.Task("w").Reason != "lint#1 ended in failure" {
		t.Errorf("reason = %q", r.Task("w").Reason)
	}
}

func TestWaitForAnyCommitTakesARunThatEndsAfterItBegan(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	w.push(w.config("c1", pushed("lint", shellTask("check"))))
	o := w.accept(a)
	wait := coreTask("w")
	wait.Wait = &pipeline.WaitFor{Composition: "lint", AnyCommit: true, Within: pipeline.Duration(time.Hour)}
	w.push(w.config("c2", pushed("c", wait)))
	w.await(pipeline.Running)
	w.runs.Message(a.ID, success(o, `{}`))
	w.await(pipeline.Success)
}

func TestWhatARunOfABranchCameToIsNothingToWhatIsInForce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	lint := pushed("lint", shellTask("check"))
	lint.Triggers[0].Push.Branches = []string{"main", "x"}
	wait := coreTask("w")
	wait.Wait = &pipeline.WaitFor{Composition: "lint", AnyCommit: true, Within: pipeline.Duration(time.Hour)}
	refs := map[pipeline.Ref]pipeline.CommitID{mainRef: w.config("c1", pushed("c", wait))}
	see := func() {
		t.Helper()
		if err := w.c.Observe(t.Context(), refs); err != nil {
			t.Fatal(err)
		}
	}
	see()
	w.await(pipeline.Running)
	refs["refs/heads/x"] = w.config("x1", lint)
	see()
	w.runs.Message(a.ID, success(w.accept(a), `{"of":"x"}`))
	w.awaitRun("lint", 1, in(pipeline.Success))
	if r, err := w.db.RunByNumber(t.Context(), "c", 1); err != nil || r.State != pipeline.Running {
		t.Fatalf("a run of a branch ended it: %+v, %v", r, err)
	}
	refs["refs/heads/x"] = w.config("x2", lint)
	see()
	o := w.accept(a)
	if string(o.Spec.Previous) != `{"of":"x"}` {
		t.Errorf("previous outputs on the branch: %s", o.Spec.Previous)
	}
	w.runs.Message(a.ID, success(o, `{"of":"x"}`))
	w.awaitRun("lint", 2, in(pipeline.Success))
	refs[mainRef] = w.config("c2", lint)
	see()
	o = w.accept(a)
	if o.Spec.Previous != nil {
		t.Errorf("what is in force goes by a branch: %s", o.Spec.Previous)
	}
	w.runs.Message(a.ID, success(o, `{}`))
	w.await(pipeline.Success)
}

func TestGateExpiresOverARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	gate := coreTask("g")
	gate.Gate = &pipeline.Gate{Count: 2, Expire: pipeline.Duration(1500 * time.Millisecond)}
	w.push(w.config("c1", pushed("c", gate)))
	w.await(pipeline.Held)
	w.restart()
	if r := w.await(pipeline.Timeout); r.Task("g").Reason != "0 of 2 approvals within 1.5s" {
		t.Errorf("reason = %q", r.Task("g").Reason)
	}
}

// digestAfter pushes a configuration and returns the digest of its second run of c.
func (w *world) digestAfter(id pipeline.CommitID, compositions ...pipeline.Composition) pipeline.Digest {
	w.t.Helper()
	w.push(w.config(id, compositions...))
	return w.awaitRun("c", 2, func(*pipeline.Run) bool { return true }).Digest
}

func TestGateHasAStatusOfItsOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	g := coreTask("g")
	g.Gate = &pipeline.Gate{Count: 1, Expire: pipeline.Duration(time.Hour)}
	w.push(w.config("c1", pushed("c", g, shellTask("a"))))
	w.accept(a)
	status := func(want string) {
		t.Helper()
		all, err := w.db.StatusesOf(t.Context(), "c1")
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			if s.Context == "maestro/gate/c/g" {
				if got := s.State + " " + s.Description; got != want {
					t.Errorf("status is %q, want %q", got, want)
				}
				return
			}
		}
		t.Errorf("no status of the gate: %+v", all)
	}
	r := w.await(pipeline.Running)
	w.quiet()
	status("pending #1 held: waits for 1 more approval: reconciler review c#1/g")
	w.runs.Review(r.ID, "g", pipeline.Review{By: "ana", Approve: true, Comment: "fine"})
	w.awaitRun("c", 1, func(r *pipeline.Run) bool { return r.Task("g").State == pipeline.Success })
	status("success #1 success: approved by ana: fine")
}

func TestCalledRunsSpeakThroughTheirCallers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	tolerant := callTask("build", "build")
	tolerant.Continue = true
	w.push(w.config("c1", pushed("c", tolerant), composed("build", shellTask("a"))))
	o := w.accept(a)
	w.runs.Message(a.ID, &wire.Result{Attempt: o.Attempt, Token: o.Token, Result: pipeline.Result{Outcome: pipeline.Failure}})
	w.await(pipeline.Success)
	all, err := w.db.StatusesOf(t.Context(), "c1")
	if err != nil || len(all) != 2 || all[0].State != "success" || all[1].Context != "maestro/run/c" || all[1].State != "success" {
		t.Errorf("statuses = %+v, %v", all, err)
	}
}

func TestPolicyInForceJudgesWhatIsCalled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	work := shellTask("work")
	work.Requirement.Pool = "prod"
	w.config("c1", pushed("c", callTask("build", "build")), composed("build", work))
	cfg := w.repo.configs["c1"]
	cfg.Policy.Pools = []pipeline.PoolRule{{Pool: "prod", Compositions: []string{"release"}}}
	w.repo.configs["c1"] = cfg
	w.push("c1")
	if r := w.await(pipeline.Error); !strings.Contains(r.Reason, "task work: pool prod is for release") {
		t.Errorf("reason = %q", r.Reason)
	}
}

func TestConditionThatCannotBeComputedNowIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.set(&w.noFields, fault.New(fault.Unavailable, "the evaluator is away"))
	a := w.agent("one")
	maybe := shellTask("maybe")
	maybe.If = &pipeline.Expr{Deferred: true}
	w.push(w.config("c1", pushed("c", maybe)))
	w.awaitRun("c", 1, func(r *pipeline.Run) bool { return strings.Contains(r.Task("maybe").Reason, "the evaluator is away") })
	w.mu.Lock()
	w.blanks = map[string]string{"c: when of maybe": "true"}
	w.mu.Unlock()
	w.runs.Message(a.ID, success(w.accept(a), `{}`))
	w.await(pipeline.Success)
}
