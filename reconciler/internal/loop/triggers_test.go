package loop_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/loop"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// follow runs what fires without a push, until the loop is stopped or restarted.
func (w *world) follow() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan error, 1)
	go func() { done <- w.c.Run(ctx) }()
	stop := w.stop
	w.stop = func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		stop()
	}
}

func triggered(c pipeline.Composition, triggers ...pipeline.Trigger) pipeline.Composition {
	c.Triggers = triggers
	return c
}

func after(c pipeline.CompositionName, result string) pipeline.Trigger {
	return pipeline.Trigger{After: &pipeline.AfterTrigger{Composition: c, Result: result}}
}

func TestRunFollowsAnotherOnceOverRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	a := w.agent("one")
	deploy := after("c", "success")
	deploy.Params = pipeline.Expr{Deferred: true}
	d := triggered(composed("d", shellTask("deploy")), deploy)
	d.Params = []pipeline.Field{{Name: "war", Type: pipeline.Type{Kind: pipeline.KindString}}}
	w.blanks = map[string]string{"d: trigger": `{"war":"a.war"}`}
	w.push(w.config("c0"))
	w.follow()
	w.await0(t)
	w.push(w.config("c1", pushed("c", shellTask("a")), d,
		triggered(composed("cry", shellTask("x")), after("c", "failure")),
		triggered(composed("e"), after("d", "any"))))
	w.runs.Message(a.ID, success(w.accept(a), `{"war":"a.war"}`))
	o := w.accept(a)
	if o.Spec.Task != "deploy" {
		t.Fatalf("%s runs", o.Spec.Task)
	}
	run := w.awaitRun("d", 1, func(*pipeline.Run) bool { return true })
	if c := run.Event.Cause; run.Event.Kind != pipeline.EventAfter || c.Composition != "c" || string(c.Outputs["a"]) != `{"war":"a.war"}` ||
		run.Commit != "c1" || string(run.Params) != `{"war":"a.war"}` || run.Depth != 1 {
		t.Errorf("run = %+v, cause %+v", run, run.Event.Cause)
	}
	w.restart()
	w.push("c1")
	w.follow()
	w.agent("one")
	w.runs.Message(a.ID, success(w.accept(a), `{}`))
	w.awaitRun("e", 1, in(pipeline.Success))
	if got := strings.Join(w.allRuns(), ", "); got != "c#1 success, d#1 success, e#1 success" {
		t.Errorf("runs: %s", got)
	}
	verdicts, err := w.db.Verdicts(t.Context(), "c1")
	if err != nil || len(verdicts) != 7 {
		t.Fatalf("%+v, %v", verdicts, err)
	}
	for _, v := range verdicts {
		want, ok := map[string]string{
			"push of c": "push to main", "after of d": "c#1 ended in success", "after of e": "d#1 ended in success",
			"after of cry": "runs after failure of c, and c#1 ended in success",
		}[v.Kind+" of "+string(v.Composition)]
		if !ok {
			want = map[pipeline.CompositionName]string{
				"d": "no push trigger; it starts after c", "e": "no push trigger; it starts after d", "cry": "no push trigger; it starts after c",
			}[v.Composition]
		}
		if v.Sentence != want {
			t.Errorf("verdict on the %s of %s is %q, want %q", v.Kind, v.Composition, v.Sentence, want)
		}
	}
}

// await0 waits until it is known from where ended runs are followed.
func (w *world) await0(t *testing.T) {
	t.Helper()
	signal, stop := w.db.Watch()
	defer stop()
	deadline := time.After(patience)
	for {
		if _, err := w.db.Followed(t.Context(), repoName); err == nil {
			return
		}
		select {
		case <-signal:
		case <-time.After(50 * time.Millisecond): // it is not told of
		case <-deadline:
			t.Fatal("ended runs are not followed")
		}
	}
}

func TestRunsThatFollowEachOtherInACircleEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.config("c0"))
	w.follow()
	w.await0(t)
	c := pushed("c")
	c.Triggers = append(c.Triggers, after("c", "any"))
	w.push(w.config("c1", c))
	w.awaitRun("c", 17, in(pipeline.Success))
	signal, stop := w.db.Watch()
	defer stop()
	for deadline := time.After(patience); ; {
		v, err := w.db.Verdicts(t.Context(), "c1")
		if err == nil && len(v) == 2 && v[0].Outcome == pipeline.VerdictRejected && v[1].Sentence == "push to main" {
			break
		}
		select {
		case <-signal:
		case <-deadline:
			t.Fatalf("verdicts = %+v, %v", v, err)
		}
	}
	if got := len(w.allRuns()); got != 17 {
		t.Errorf("%d runs", got)
	}
}

func TestTagStartsARunAndTagsOfThePastDoNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.config("c1", triggered(composed("c", shellTask("a")), pipeline.Trigger{Tag: &pipeline.TagTrigger{Tags: []string{"v*"}}}))
	observe := func(tags ...string) {
		t.Helper()
		refs := map[pipeline.Ref]pipeline.CommitID{mainRef: c}
		for _, name := range tags {
			refs[pipeline.Ref("refs/tags/"+name)] = c
		}
		if err := w.c.Observe(t.Context(), refs); err != nil {
			t.Fatal(err)
		}
	}
	observe("v1")
	observe("v1", "v2", "other")
	observe("v1", "v2", "other")
	if got := strings.Join(w.allRuns(), ", "); got != "c#1 ready" {
		t.Errorf("runs: %s", got)
	}
	if r := w.awaitRun("c", 1, func(*pipeline.Run) bool { return true }); r.Event.Kind != pipeline.EventTag || r.Ref != "refs/tags/v2" {
		t.Errorf("run = %+v", r)
	}
}

func cron(schedule, zone string) pipeline.Trigger {
	return pipeline.Trigger{Cron: &pipeline.CronTrigger{Schedule: schedule, Zone: zone}}
}

func TestMissedFiringsAreMadeUpForOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	night := triggered(composed("night"), cron("0 2 * * *", "Europe/Paris"))
	other := triggered(composed("other"), cron("0 2 * * *", "Europe/Paris"), cron("30 4 * * *", "UTC"))
	w.push(w.config("c1", night, other))
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	fire := func(want ...string) time.Time {
		t.Helper()
		next, err := w.c.FireSchedules(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		runs, err := w.db.Runs(t.Context(), store.Filter{Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range runs {
			got = append(got, string(r.Composition)+" "+r.Event.Time.Format("01-02 15:04"))
		}
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("at %s: runs %q, want %q", at, got, want)
		}
		return next
	}
	if next := fire(); !next.Equal(time.Date(2026, 3, 2, 1, 0, 0, 0, time.UTC)) {
		t.Errorf("next = %s", next)
	}
	at = at.AddDate(0, 0, 3) // nobody was there
	all := []string{"other 03-04 04:30", "other 03-04 01:00", "night 03-04 01:00"}
	fire(all...)
	fire(all...)
	w.restart()
	w.push("c1")
	fire(all...)
	// A trigger that was gone does not make up for the time without it.
	w.push(w.config("c2", other))
	fire(all...)
	at = at.AddDate(0, 0, 5)
	w.push(w.config("c3", night))
	fire(all...)
	at = at.AddDate(0, 0, 1)
	fire(append([]string{"night 03-10 01:00"}, all...)...)
}

// TestNoTimeOfAScheduleFiresTwice sets the clock forward and back at random, starts
// again now and then, and lets other commits come into force.
func TestNoTimeOfAScheduleFiresTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	var live pipeline.CommitID
	config := func(n int) {
		c := triggered(composed("c"), cron("*/10 * * * *", ""))
		c.Digest = pipeline.DigestOf(fmt.Appendf(nil, "c%d", n))
		live = w.config(pipeline.CommitID(fmt.Sprintf("c%d", n)), c)
		w.push(live)
	}
	config(0)
	random := rand.New(rand.NewPCG(1, 2))
	at := time.Date(2026, 3, 1, 12, 5, 0, 0, time.UTC)
	fire := func() {
		t.Helper()
		if _, err := w.c.FireSchedules(t.Context(), at); err != nil {
			t.Fatal(err)
		}
	}
	fire()
	for i := range 150 {
		switch random.IntN(6) {
		case 0:
			at = at.Add(-time.Duration(random.IntN(7200)) * time.Second)
		case 1:
			at = at.Add(time.Duration(random.IntN(7200)) * time.Second)
		case 2:
			config(i + 1)
		case 3:
			if i%10 == 0 {
				w.restart()
				w.push(live)
			}
		}
		at = at.Add(7 * time.Minute)
		fire()
	}
	at = at.AddDate(10, 0, 0) // a battery was empty
	fire()
	at = at.AddDate(-10, 0, 0)
	fire()
	at = at.Add(11 * time.Minute) // and it goes on as before
	fire()
	runs, err := w.db.Runs(t.Context(), store.Filter{Composition: "c", Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[time.Time]bool{}
	for _, r := range runs {
		if seen[r.Event.Time] {
			t.Errorf("%s fired twice", r.Event.Time)
		}
		seen[r.Event.Time] = true
	}
	if last := at.Truncate(10 * time.Minute); !seen[last] || len(seen) < 50 {
		t.Errorf("%d runs, and %s has fired: %v", len(seen), last, seen[last])
	}
}

func TestTheClockLeavesAloneWhatThePushWasAnswered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	night := triggered(composed("night"), cron("0 2 * * *", ""),
		pipeline.Trigger{Push: &pipeline.PushTrigger{Branches: []string{"release"}}})
	night.Params = []pipeline.Field{{Name: "what", Type: pipeline.Type{Kind: pipeline.KindString}}} // which the clock does not give
	c := w.config("c1", night)
	w.push(c)
	told := w.rollUp(c)
	at := time.Now()
	for range 2 { // the first look only begins
		if _, err := w.c.FireSchedules(t.Context(), at); err != nil {
			t.Fatal(err)
		}
		at = at.AddDate(0, 0, 2)
	}
	verdicts, err := w.db.Verdicts(t.Context(), c)
	if err != nil || len(verdicts) != 2 || verdicts[0].Kind != pipeline.EventCron || verdicts[1].Kind != pipeline.EventPush {
		t.Errorf("verdicts = %+v, %v", verdicts, err)
	}
	if now := w.rollUp(c); now != told {
		t.Errorf("the status was %+v and is %+v", told, now)
	}
}

func TestLatestFiringIsTheLast(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SampledFrom([]string{"* * * * *", "30 2 * * *", "0 */7 * * *", "15 3 1 * *", "0 0 29 2 *"}).Draw(t, "schedule")
		s, err := pipeline.ParseSchedule(text, rapid.SampledFrom([]string{"", "Europe/Paris", "America/New_York"}).Draw(t, "zone"))
		if err != nil {
			t.Fatal(err)
		}
		seen := time.Unix(rapid.Int64Range(1.7e9, 1.8e9).Draw(t, "seen"), 0)
		now := seen.Add(time.Duration(rapid.Int64Range(0, 3000).Draw(t, "minutes")) * time.Minute)
		var want time.Time
		for at := s.Next(seen); !at.IsZero() && !at.After(now); at = s.Next(at) {
			want = at
		}
		if got := loop.LatestFiring(s, seen, now); !got.Equal(want) {
			t.Fatalf("latest of %q from %s to %s is %s, want %s", text, seen, now, got, want)
		}
	})
}

func TestScheduleFiresByItself(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.push("")
	w.push(w.config("c1", triggered(composed("c"), cron("* * * * *", ""))))
	// As if it had been in force for a while.
	if err := w.db.Write(t.Context(), func(tx *store.Tx) error {
		return tx.SaveFiring(repoName, store.Firing{Composition: "c", Schedule: "* * * * *", SeenTo: time.Now().Add(-time.Hour)})
	}); err != nil {
		t.Fatal(err)
	}
	w.follow()
	w.awaitRun("c", 1, in(pipeline.Success))
}
